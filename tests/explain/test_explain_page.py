"""The page of explanations: what it holds, how small it stays, and that it loads nothing and shows markup as text."""

import dataclasses
import hashlib
import json
import re
from base64 import b64decode, b64encode

import numpy as np
import pytest
from pictured import SUMMARY, case, heat, near, row, with_steps
from sheets import HOSTILE, Page, png

from vital_jax.explain import pointing
from vital_jax.explain.page import FLAT, LIMIT, NOTICE, TEMPLATES, page


def made(cases, summary=SUMMARY, **options):
    """(the page, the page parsed, what its script reads)."""
    text = page(cases, summary, **options)
    found = Page(text)
    return text, found, json.loads(found.texts["script"][0])


def noise(number, height=450, width=600):
    """An image that no codec makes small."""
    return png(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


def test_a_case_holds_what_was_read_and_measured():
    one = case(0, correct=None, gold="", complete=False)
    _, _, data = made([one, case(1, correct=False)])
    first, second = data["cases"]
    assert (first["verdict"], second["verdict"], first["complete"], first["gold"]) == ("not judged", "wrong", False, "")
    assert (first["log_prob"], first["tokens"]) == (-0.5, 2) and first["similarity"] == [[1.0, 0.25], [0.25, 1.0]]
    step = first["steps"][1]
    assert (step["text"], step["gold"], step["norm"]) == ("It lies 1.", "Gold 1.", 4.0)
    assert step["scores"] == {"pointing": True, "iou_best": 0.5, "iou_area": 0.25, "share": 0.125}
    assert step["similar"][0]["id"] == "near/1" and data["thumbs"][step["similar"][0]["thumb"]].startswith(
        "data:image/jpeg"
    )
    (image,) = first["images"]
    assert image["alt"] == "CT image" and image["outline"].startswith("data:image/png;base64,")
    assert data["pictures"][image["picture"]]["width"] == 384 and data["pictures"][image["picture"]]["height"] == 256
    assert data["notice"] == NOTICE and data["flat"] == FLAT


def test_heat_travels_as_levels_between_its_ends():
    grid = np.linspace(-0.2, 0.7, 24, dtype=np.float32).reshape(4, 6)
    _, _, data = made([with_steps(case(0), heat=(grid,))])
    found = data["cases"][0]["steps"][0]["heat"][0]
    levels = np.frombuffer(b64decode(found["levels"]), np.uint8).reshape(found["rows"], found["columns"])
    assert (found["low"], found["high"]) == pytest.approx((-0.2, 0.7), abs=1e-6)
    back = found["low"] + (found["high"] - found["low"]) * levels / 255
    np.testing.assert_allclose(back, grid, atol=0.9 / 255 / 2 + 1e-6)


@pytest.mark.parametrize("values", [np.full((2, 2), 0.3, np.float32), np.zeros((1, 1), np.float32)])
def test_an_even_map_has_one_level(values):
    _, _, data = made([with_steps(case(0), heat=(values,))])
    found = data["cases"][0]["steps"][0]["heat"][0]
    assert found["low"] == found["high"] and set(b64decode(found["levels"])) == {0}


def test_numbers_that_are_none_do_not_break_the_page():
    broken = heat()
    broken[0, 0] = np.nan
    one = with_steps(
        case(0, log_prob=float("-inf"), similarity=np.full((2, 2), np.nan)), heat=(broken,), norm=float("nan")
    )
    text, found, data = made([one], {"table": [row(low=None, high=None, target=None, own=float("nan"), over={})]})
    assert "NaN" not in found.texts["script"][0] and "Infinity" not in found.texts["script"][0]
    assert data["cases"][0]["steps"][0]["heat"] == [None] and data["cases"][0]["log_prob"] is None
    assert data["cases"][0]["similarity"] == [[None, None]] * 2
    assert "Explanations of a model" in text and found.texts["td"][2:4] == ["–", "–"]


def test_the_table_says_whether_the_model_is_ahead_of_every_baseline():
    behind = row("CT", "share", over=row()["over"] | {"other": {"n": 40, "value": 0.0, "low": -0.1, "high": 0.1}})
    bare = row("CT", "new_measure", over={}, low=0.3)
    _, found, data = made(
        [case(0)], SUMMARY | {"table": [row(), behind, bare, row(over={}, shuffled=None, other=None)]}
    )
    cells = np.reshape(found.texts["td"], (-1, 9))[:4]
    assert cells[0].tolist() == [
        "pointing game", "50", "0.600", "0.500 to 0.700", *["0.400ahead by +0.100 to +0.300"] * 2,
        "0.100ahead by +0.100 to +0.300", "0.900", "yes",
    ]  # fmt: skip
    # A baseline of other questions than the row's is neither compared nor counted; one that is not beaten is.
    assert cells[1][5] == "0.400N 40: not compared" and cells[1][8] == "yes"
    beaten = row("CT", "share", over=row()["over"] | {"other": {"n": 50, "value": 0.0, "low": -0.1, "high": 0.1}})
    again = np.reshape(made([case(0)], SUMMARY | {"table": [row(), beaten]})[1].texts["td"], (-1, 9))[1]
    assert again[5] == "0.400ahead by -0.100 to +0.100" and again[8] == "no"
    # Without differences the interval itself must lie above the baselines; a measure without a name keeps its own.
    assert cells[2][0] == "new_measure" and cells[2][8] == "no" and cells[3][4] == "–" and cells[3][8] == "yes"
    assert data["summary"]["table"][1]["over"]["other"]["low"] == -0.1
    _, found, _ = made([case(0)], {"model": "toy"})
    assert "scores" not in {tag.get("class") for tag in found.all("table")}
    assert any("No number says here" in text for text in found.texts["p"])


def test_all_modalities_stand_first_and_the_rest_on_demand():
    step = {"K": 3, "step": 2} | {key: value for key, value in row().items() if key != "modality"}
    whole = SUMMARY | {
        "table": [row("all"), row("all", "share"), row("CT"), row("MRI")], "steps": [step], "said": ["It is ahead."],
        "notes": ["A note.", pointing.ABOUT[0]],
    }  # fmt: skip
    _, found, data = made([case(0)], whole)
    assert [tag["aria-label"] for tag in found.all("div") if tag.get("aria-label", "").startswith("numbers")] == [
        "numbers against baselines", "numbers by modality", "numbers step by step"
    ]  # fmt: skip
    names = [text for text in found.texts["th"] if text in ("all", "CT", "MRI", "K = 3, z2")]
    assert names == ["all", "all", "CT", "MRI", "K = 3, z2"] and data["summary"]["steps"][0]["K"] == 3
    assert {"It is ahead.", pointing.ABOUT[0]} <= set(found.texts["li"]) and "A note." in found.texts["p"]


def test_filters_are_those_in_which_cases_differ():
    other = {"modality": "MRI", "question_type": "describe"}
    _, found, _ = made([case(0), case(1, metadata=other, correct=False), case(2, metadata={})])
    assert [tag["data-filter"] for tag in found.all("select") if "data-filter" in tag] == [
        "verdict", "modality", "question_type"
    ]  # fmt: skip
    assert [text for text in found.texts["option"] if text in ("CT", "MRI", "none", "wrong")].count("none") == 2
    _, found, _ = made([case(0), case(1)])
    assert not any("data-filter" in tag for tag in found.all("select"))


def test_a_case_stays_below_100_kB_and_alone_with_the_script_too():
    """The worst that may come: an image and pictures of noise, eight steps, the grid of a 448-pixel encoder, long texts."""
    grid = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    size = {}
    for count in (1, 4):
        cases = [
            with_steps(case(n, 8, images=(noise(n),), masks=(None,), question="Why? " * 500),
                       heat=(grid,), text="word " * 100, similar=tuple(near(100 * n + i, i) for i in range(5)))
            for n in range(count)
        ]  # fmt: skip
        text, _, data = made(cases)
        size[count] = len(text.encode())
        assert len(data["pictures"]) == count and all(each["src"] for each in data["pictures"])
        assert data["cases"][0]["question"].endswith("[...]")
    several = case(0, images=tuple(noise(n) for n in range(4)), masks=(None,) * 4)
    assert len(made([with_steps(several, heat=(grid,) * 4)])[0]) < 100_000
    assert size[1] < 100_000 and (size[4] - size[1]) / 3 < LIMIT + 3_000 < 100_000


def test_similar_cases_lose_their_pictures_from_the_farthest_on_when_there_is_no_room():
    one = with_steps(case(0, 8, images=(noise(0),), masks=(None,)), similar=())
    near_ones = [tuple(near(10 * k + i, i) for i in range(5)) for k in range(8)]
    one = dataclasses.replace(
        one, steps=tuple(dataclasses.replace(s, similar=n) for s, n in zip(one.steps, near_ones, strict=True))
    )
    _, _, data = made([one])
    kept = [[each["thumb"] >= 0 for each in step["similar"]] for step in data["cases"][0]["steps"]]
    by_rank = np.array(kept).mean(0)
    assert 0 < by_rank.mean() < 1 and (np.diff(by_rank) <= 0).all()
    assert all(each["text"] for step in data["cases"][0]["steps"] for each in step["similar"])


def test_an_image_and_a_picture_are_held_once():
    same = case(0)
    _, _, data = made([same, dataclasses.replace(same, id="again"), case(1)])
    assert [one["images"][0]["picture"] for one in data["cases"]] == [0, 0, 1] and len(data["pictures"]) == 2
    assert len(data["thumbs"]) == 4


def test_several_images_have_a_map_each():
    one = case(0)
    two = with_steps(dataclasses.replace(one, images=one.images * 2, masks=(None, *one.masks)), heat=(heat(), heat()))
    _, _, data = made([two])
    assert [each["alt"] for each in data["cases"][0]["images"]] == ["CT image, 1 of 2", "CT image, 2 of 2"]
    assert [bool(each["outline"]) for each in data["cases"][0]["images"]] == [False, True]


def test_a_step_has_the_outline_of_its_own_region():
    region = np.zeros((40, 60), bool)
    region[2:6, 3:9] = True
    _, _, data = made([with_steps(case(0), region=region), with_steps(case(1), region=np.zeros_like(region)), case(2)])
    own, empty, without = ([step["outline"] for step in one["steps"]] for one in data["cases"])
    assert own[0].startswith("data:image/png;base64,") and own[0] == own[1] != data["cases"][0]["images"][0]["outline"]
    assert empty == without == ["", ""]


def test_cases_beyond_the_bound_are_named():
    _, found, data = made([case(n) for n in range(3)], SUMMARY | {"cases": 40}, most=2)
    assert len(data["cases"]) == 2 and data["summary"]["cases"] == 40
    assert any("This page shows 2 of the 40 cases" in text for text in found.texts["p"])
    _, found, _ = made([case(n) for n in range(3)])
    assert not any("This page shows" in text for text in found.texts["p"])


def test_it_loads_nothing_and_runs_nothing_but_itself():
    one = case(0, id=HOSTILE, question=HOSTILE, answer=HOSTILE, metadata={"modality": HOSTILE, HOSTILE: HOSTILE})
    one = with_steps(one, text=HOSTILE, similar=(dataclasses.replace(near(0), id=HOSTILE, label=HOSTILE, picture=b""),))
    text, found, data = made([one, case(1)], {"model": HOSTILE, "notes": [HOSTILE], "table": [row(HOSTILE)]})
    assert data["cases"][0]["question"] == HOSTILE and data["cases"][0]["steps"][0]["similar"][0]["thumb"] == -1
    assert (
        len(found.all("script")) == 2 and not found.all("link") and "onerror=alert(2)>" not in text.split("<script")[0]
    )
    style, script = found.texts["style"][0], found.texts["script"][1]
    forbidden = r"https?:|url\(|@import|\bimport\b|fetch|XMLHttp|WebSocket|sendBeacon|innerHTML|insertAdjacent|\beval\b"
    assert not re.search(forbidden, style + script)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    (policy,) = (tag["content"] for tag in found.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    for key, content in (("style-src", style), ("script-src", script)):
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[key] == f"'sha256-{digest}'"


def test_every_part_of_the_page_that_the_script_asks_for_is_there():
    _, found, _ = made([case(0)])
    named = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    asked = set(re.findall(r'\$\("(\w+)"\)', found.texts["script"][1]))
    assert len(asked) > 15 and asked <= named
    assert found.texts["footer"] == [NOTICE] and "Not a medical device" in NOTICE and "Approximate" in NOTICE


def test_colour_maps_keep_their_order_in_grey():
    maps = re.findall(
        r'(\w+): "([0-9a-f]{6}(?: [0-9a-f]{6}){17})"', (TEMPLATES / "page.js").read_text(encoding="utf-8")
    )
    assert [name for name, _ in maps] == ["cividis", "viridis", "magma"]
    for name, colours in maps:
        grey = [np.dot([0.299, 0.587, 0.114], list(bytes.fromhex(one))) for one in colours.split()]
        assert (np.diff(grey) > 0).all() and grey[-1] - grey[0] > 150, name


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (case(0, images=(b"no image",)), "case 'case/0': image 1 is no image"),
        (case(0, masks=()), "case 'case/0': 0 masks for 1 images"),
        (with_steps(case(0), heat=(heat(), heat())), "case 'case/0': 2 heat maps for 1 images"),
        (case(0, similarity=np.eye(3)), r"case 'case/0': similarity is \(3, 3\) for 2 steps"),
        (with_steps(case(0), similar=(dataclasses.replace(near(0), picture=b"x"),)), "similar case 'near/0' is no image"),
    ],
)  # fmt: skip
def test_a_broken_case_is_named(broken, message):
    with pytest.raises(ValueError, match=message):
        page([broken], {})


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no cases to show"):
        page([], {})
