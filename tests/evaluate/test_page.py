"""The page of an evaluation: one file that loads nothing, says what it leaves out, and shows markup as text."""

import hashlib
import json
import re
from base64 import b64encode

import pytest
from sheets import HOSTILE, Page, png, record

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.page import page
from vital_jax.evaluate.protocols import apply, get

PICTURES = [record(number)[1].images[0] for number in range(3)]


def item(number, picture=0, answer="yes", **fields):
    """A yes/no question about one of three images."""
    metadata = {"modality": ("CT", "MRI")[number % 2], "question_type": "PRES, POS", **fields.pop("metadata", {})}
    given = {"question": f"Is it {number}?", "images": (PICTURES[picture],), "metadata": metadata, **fields}
    return Item(id=f"q{number}", answer=answer, benchmark="mine", split="test", **given)


def made(items, told, answers=None, notes=(), **options):
    """(the page parsed, what its script reads)."""
    facts = {"K": 2, "tokens": 3, "latency": 0.25}
    rows = [{"id": one.id, "prediction": text, **facts} for one, text in zip(items, told, strict=True)]
    scored = apply(get("paper"), items, rows)
    text = page(scored, items, answers or {}, notes, **options)
    found = Page(text)
    return text, found, json.loads(found.texts["script"][0])


def test_cards_say_what_was_asked_answered_and_how_it_was_read():
    items = [item(0), item(1, 1, "no"), item(2, 0, "B", options=("left", "right"), gold="B")]
    more = {"q1": {"complete": False, "steps": ["One.", "Two."], "first": "Let me think."}}
    _, found, data = made(items, ["Yes.", "Yes.", "B. right"], more, ["Asked with K = 2."])
    first, second, third = data["cards"]
    assert [card["correct"] for card in data["cards"]] == [True, False, True]
    assert first["modality"] == ["CT"] and first["question_type"] == ["POS", "PRES"] and first["steps"] == []
    assert (
        ["K", "2"] in first["facts"]
        and ["latency", "250 ms"] in first["facts"]
        and ["read as", "yes"] in first["facts"]
    )
    assert second["steps"] == ["One.", "Two."] and second["first"] == "Let me think."
    assert ["cut", "the answer did not end"] in second["facts"] and ["accuracy", "0"] in second["facts"]
    assert third["options"] == ["A. left", "B. right"] and third["gold"] == "B. B"
    # Questions 0 and 2 are about one image, which is held once.
    assert [card["images"][0]["picture"] for card in data["cards"]] == [0, 1, 0] and len(data["pictures"]) == 2
    assert first["images"][0]["alt"] == "CT image"
    notes = [text for text in found.texts["p"] if "K = 2" in text]
    assert notes == ["Asked with K = 2."] and not any("Only the first" in text for text in found.texts["p"])
    cells = found.texts["td"]
    assert "66.7" in cells and "all questions, open ones by exact match" in cells


def test_filters_are_those_in_which_the_questions_differ():
    _, found, _ = made([item(0), item(1)], ["yes", "no"])
    names = [tag["data-filter"] for tag in found.all("select")]
    assert names == ["correct", "modality", "question_type"]
    _, found, _ = made(
        [item(0, metadata={"question_type": ""}), item(2, metadata={"question_type": ""})], ["yes", "no"]
    )
    assert [tag["data-filter"] for tag in found.all("select")] == ["correct"]


def test_it_loads_nothing_and_runs_nothing_but_itself():
    items = [item(0, question=HOSTILE, metadata={"modality": HOSTILE}), item(1)]
    text, found, data = made(items, [HOSTILE, "no"], notes=[HOSTILE])
    assert data["cards"][0]["prediction"] == HOSTILE and data["cards"][0]["modality"] == [HOSTILE]
    assert (
        len(found.all("script")) == 2 and not found.all("link") and "onerror=alert(2)>" not in text.split("<script")[0]
    )
    style, script = found.texts["style"][0], found.texts["script"][1]
    forbidden = r"https?:|url\(|@import|\bimport\b|fetch|XMLHttp|WebSocket|sendBeacon|innerHTML|\beval\b"
    assert not re.search(forbidden, style + script)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    (policy,) = (tag["content"] for tag in found.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    for key, content in (("style-src", style), ("script-src", script)):
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[key] == f"'sha256-{digest}'"
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in data["pictures"])
    assert text.count("Not a medical device") == 2


def test_every_part_of_the_page_that_the_script_asks_for_is_there():
    _, found, _ = made([item(0), item(1)], ["yes", "no"])
    named = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    asked = set(re.findall(r'getElementById\("(\w+)"\)', found.texts["script"][1]))
    assert asked and asked <= named
    assert found.all("html")[0]["lang"] == "en" and len(found.all("label") or found.texts["label"]) >= 3
    assert {"status"} == {tag["role"] for tag in found.all("span") if "role" in tag}


def test_images_stop_at_the_bound_and_the_page_says_so():
    items = [item(0, 0), item(1, 1), item(2, 0), item(3, 2)]
    _, _, data = made(items, ["yes"] * 4)
    one = max(len(picture["src"]) for picture in data["pictures"])
    _, found, data = made(items, ["yes"] * 4, bound=one + one // 2)
    assert [card["images"][0]["picture"] for card in data["cards"]] == [0, -1, 0, -1] and len(data["pictures"]) == 1
    assert any("Only the first 2 questions with images show them" in text for text in found.texts["p"])
    _, found, data = made(items, ["yes"] * 4, most=3)
    assert len(data["cards"]) == 3
    assert any("Only the first 3 of 4 questions are on this page" in text for text in found.texts["p"])


def test_a_large_image_is_shrunk():
    import numpy as np

    noise = png(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8))
    _, _, data = made([item(0, images=(noise,))], ["yes"])
    (picture,) = data["pictures"]
    assert (picture["width"], picture["height"]) == (256, 192) and len(picture["src"]) < 80_000 < len(noise)


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no items to show"):
        page(apply(get("paper"), [item(0)], {"q0": "yes"}), [], {}, [])
