"""The style that pages share, by arithmetic: text can be read on every ground by day and by night, and nothing is wider than a phone.

A browser would say the same of one page as it is drawn; here every colour of every stylesheet is looked at.
"""

import re

import pytest

from vital_jax.construct import drawing, pages
from vital_jax.evaluate import figure
from vital_jax.evaluate import page as evaluation
from vital_jax.explain import page as explanation

STYLES = {
    "records": pages.stylesheet(),
    "evaluation": pages.stylesheet(evaluation.TEMPLATES),
    "explanation": pages.stylesheet(explanation.TEMPLATES),
    "audit of latents": f"{pages.stylesheet()}\n{figure._STYLE}",
}
TEXT, GROUNDS = ("ink", "soft", "key", "good", "bad"), ("page", "panel", "field")
AA = 4.5  # WCAG 2.1, 1.4.3: the least contrast of text
HEX = re.compile(r"--([a-z]+): (#[0-9a-f]{6});")


def rgb(text):
    """#rrggbb, or #rgb."""
    text = "".join(2 * letter for letter in text[1:]) if len(text) == 4 else text[1:]
    return tuple(int(text[at : at + 2], 16) for at in (0, 2, 4))


def colours(night):
    """The variables of the shared style, as they hold by day or by night."""
    day, dark = pages.stylesheet().splitlines()[:2]
    assert day.startswith(":root { color-scheme: light dark;") and "prefers-color-scheme: dark" in dark
    found = dict(HEX.findall(day)) | (dict(HEX.findall(dark)) if night else {})
    return {name: rgb(value) for name, value in found.items()}


def rules(style):
    """(selector, property, value) of every declaration."""
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style):
        for name, value in re.findall(r"([\w-]+):\s*([^;]+)", body):
            yield selector.strip(), name, value.strip()


def test_contrast_is_that_of_wcag():
    # The W3C's own example values: black on white, and the least grey that passes on white.
    assert drawing.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert drawing.contrast((0x76,) * 3, (255,) * 3) == pytest.approx(4.54, abs=0.005)
    assert drawing.contrast((0x77,) * 3, (255,) * 3) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("night", [False, True], ids=["day", "night"])
def test_text_can_be_read_on_every_ground(night):
    found = colours(night)
    least = {(a, b): drawing.contrast(found[a], found[b]) for a in TEXT for b in GROUNDS}
    assert min(least.values()) >= AA, sorted(least.items(), key=lambda pair: pair[1])[:3]


@pytest.mark.parametrize("name", STYLES)
def test_every_colour_of_text_and_ground_is_one_of_these(name):
    """So that the test above is of all there is; what lies over pictures is black with white, and drawings are on white."""
    for selector, what, value in rules(STYLES[name]):
        if what == "color":
            assert re.fullmatch(rf"var\(--({'|'.join(TEXT)})\)|#fff", value), (selector, value)
        elif what == "background" and value != "#000b":
            assert re.fullmatch(rf"var\(--({'|'.join(GROUNDS)})\)|#000|#fff", value), (selector, value)
        elif what == "opacity":
            assert "canvas" in selector, f"{selector} fades its text"


def test_a_caption_can_be_read_on_the_brightest_picture():
    (alpha,) = re.findall(r"figcaption \{[^}]*background: #000(\w); color: #fff;", STYLES["explanation"])
    ground = (255 * (1 - int(2 * alpha, 16) / 255),) * 3
    assert drawing.contrast(ground, (255,) * 3) >= AA


@pytest.mark.parametrize("name", STYLES)
def test_nothing_is_wider_than_a_phone_and_nothing_sticks_to_its_top(name):
    said = {(selector, what): value for selector, what, value in rules(STYLES[name])}
    widths = [value for (_, what), value in said.items() if what in ("width", "min-width")]
    wide = [float(n) * 16 for value in widths for n in re.findall(r"^([\d.]+)rem$", value)]
    assert max(wide, default=0) <= 368, "the window of 400 pixels less its edges"
    # A table that may break within words shrinks until nobody can read it, and never scrolls.
    assert said[".wide th, .wide td", "overflow-wrap"] == "normal"
    assert said[".wide", "overflow-x"] == "auto" and said["figure", "max-width"] == "100%"
    assert "@media (max-width: 60rem), (max-height: 40rem) { header { position: static; }" in STYLES[name]
    tall = [float(n) for n in re.findall(r"height: ([\d.]+)vh; width: auto", STYLES[name])]
    assert all(height < 20 for height in tall), "what stays on a phone's screen takes less than a quarter of it"


def test_every_wide_table_scrolls_within_itself():
    for folder, pattern in ((evaluation.TEMPLATES, "page.html"), (explanation.TEMPLATES, "page.html")):
        text = (folder / pattern).read_text(encoding="utf-8")
        for at in (found.start() for found in re.finditer(r'<table class="(scores|matrix)"', text)):
            assert re.search(r'<div class="wide" role="region" [^>]*tabindex="0">\s*$', text[:at]), text[at - 80 : at]


def test_the_heat_leaves_the_image_visible():
    """By default the image keeps more than half of its contrast under the colours."""
    text = (explanation.TEMPLATES / "page.html").read_text(encoding="utf-8")
    (default,) = re.findall(r'id="opacity" min="0" max="100" step="5" value="(\d+)"', text)
    assert int(default) <= 40 and f"--heat: 0.{int(default) // 10};" in STYLES["explanation"]


def test_numbers_in_cells_can_be_read_on_their_colours():
    for i in range(101):
        colour = drawing.mixed(i / 100)
        assert drawing.contrast(colour, rgb(drawing.ink(colour))) >= AA
    script = (explanation.TEMPLATES / "page.js").read_text(encoding="utf-8")
    (even,) = map(float, re.findall(r"const EVEN = ([\d.]+);", script))
    maps = re.findall(r'^  \w+: "([0-9a-f ]+)",$', script, re.M)
    assert len(maps) == 3
    for stop in " ".join(maps).split():
        colour = rgb(f"#{stop}")
        chosen = (0, 0, 0) if drawing.luminance(colour) > even else (255, 255, 255)
        assert drawing.contrast(colour, chosen) >= AA
