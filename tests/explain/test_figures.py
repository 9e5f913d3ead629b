"""The paper's figures as SVG: well-formed, nothing loaded, the right panels, colours in the order of the heat."""

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pictured
import pytest
from PIL import Image

from vital_jax.explain import figures

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text):
    root = ET.fromstring(text)
    assert all(image.get("href").startswith("data:image/") for image in root.iter(f"{SVG}image"))
    assert "not a medical device" in text
    return root


def words(root):
    return " ".join("".join(node.itertext()) for node in root.iter(f"{SVG}text"))


def titles(root):
    return [node.text for node in root.iter(f"{SVG}title")]


def test_progress_shows_every_step_and_the_region():
    cases = [pictured.case(0), pictured.case(1, masks=(None,)), pictured.case(2, steps=1)]
    root = parsed(figures.progress(cases))
    shown = titles(root)
    assert shown.count("heat map of step 1") == 3 and shown.count("heat map of step 2") == 2
    assert shown.count("the image") == 3 and shown.count("the region") == 2
    said = words(root)
    # One scale for a case: from the coldest to the hottest patch of all its steps.
    for scale in ("region 0.10 cosine 0.50", "image 0.10 cosine 0.50", "region 0.10 cosine 0.40"):
        assert scale in said
    with pytest.raises(ValueError, match="heat maps are missing"):
        figures.progress([pictured.with_steps(pictured.case(), heat=())])


def test_hotter_patches_are_brighter_and_equal_maps_look_equal():
    def brightness(step):
        (image,) = [node for node in root.iter(f"{SVG}image") if node[0].text == f"heat map of step {step}"]
        data = base64.b64decode(image.get("href").partition(",")[2])
        array = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
        h, w = array.shape
        return array[h // 4 + 6 : h // 2 - 6, w // 2 + 6 : 2 * w // 3 - 6].mean(), array[3 * h // 4 + 6 :].mean()

    flat = pictured.case()
    root = parsed(figures.progress([flat]))
    (warm, cold), (hot, _) = brightness(1), brightness(2)
    assert hot > warm + 10 > cold + 20


def test_collapse_draws_a_matrix_for_each():
    one = np.array([[1.0, 0.25], [0.25, 1.0]])
    root = parsed(figures.collapse({"a": one, "b & c": np.full((1, 1), np.nan)}, {"a": 7, "b & c": 8}))
    assert len(list(root.iter(f"{SVG}svg"))) == 3  # itself and two
    said = words(root)
    assert "a (N = 7)" in said and "b & c (N = 8)" in said and said.count("0.250") == 2
    with pytest.raises(ValueError, match="no matrices"):
        figures.collapse({}, {})


def test_compare_sets_checkpoints_below_each_other():
    bare = pictured.case(answer="<Nothing>.", correct=False, steps=0)
    mute = pictured.with_steps(pictured.case(correct=None), text="")
    root = parsed(figures.compare({"VITAL": pictured.case(), "K = 0": bare, "visual only": mute}))
    said = words(root)
    assert "VITAL: A block. (right), log-probability -0.50" in said and "<Nothing>. (not the right answer)" in said
    assert "z_1: It lies 0." in said and "no scaffold to read them with" in said and "z_2: no text decoder" in said
    assert titles(root).count("heat map of step 2") == 2 and "Right answer: Block." in said
    with pytest.raises(ValueError, match="of one question"):
        figures.compare({"a": pictured.case(0), "b": pictured.case(1)})
