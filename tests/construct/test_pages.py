"""The browsable page: whole without a network, deaf to markup in records, outlines where the masks are, the same draw every time."""

import base64
import hashlib
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sheets import HOSTILE, Page, hostile, png, record, write

from vital_jax.construct import pages
from vital_jax.construct.audit import audit_page, draw
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import Record


def pixels(url):
    """A data URL as an image."""
    head, _, body = url.partition(",")
    assert re.fullmatch(r"data:image/(jpeg|png);base64", head)
    return Image.open(BytesIO(base64.b64decode(body)))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Records of two modalities in two splits, one of them hostile, one without a mask."""
    pairs = [record(i, ("CT", "MRI-FLAIR")[i % 2], split=("train", "test")[i % 3 == 0]) for i in range(1, 9)]
    bare = record(9)[1]
    pairs.append(
        ("train", Record("bare", bare.images, "Is it there?", "No.", metadata=bare.metadata | {"site": "skin"}))
    )
    return write([*pairs, hostile()], tmp_path_factory.mktemp("pages") / "OUT")


@pytest.fixture(scope="module")
def both(out):
    """Both kinds of pages over the same records."""
    return {"inspect": pages.inspect_page(out)[0], "audit": audit_page(out, draw(out, 1.0))}


@pytest.mark.parametrize("name", ["inspect", "audit"])
def test_nothing_is_loaded_and_only_the_own_script_may_run(both, name):
    text, page = both[name], Page(both[name])
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "h1",
        "h2",
        "p",
        "span",
        "b",
    }
    allowed |= {
        "div",
        "label",
        "select",
        "option",
        "input",
        "button",
        "kbd",
        "progress",
        "article",
        "figure",
        "img",
        "ol",
    }
    allowed |= {"ul", "li", "details", "summary", "table", "tr", "th", "td", "noscript", "script"}
    assert {tag for tag, _ in page.tags} <= allowed
    for tag, attributes in page.tags:
        assert not any(key.startswith("on") or key in ("style", "srcset", "href", "action") for key in attributes), tag
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/")
    # What could still fetch something: style sheets and the script.
    own = "".join(page.texts["style"]) + page.texts["script"][-1]
    assert not re.search(r"https?:|url\(|@import|\bimport\b|fetch|XMLHttp|WebSocket|sendBeacon|innerHTML|\beval\b", own)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    (policy,) = (tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for key, content in (("style-src", page.texts["style"][0]), ("script-src", page.texts["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[key] == f"'sha256-{digest}'"
    assert len(page.all("script")) == {"inspect": 1, "audit": 2}[name]
    assert "research use only" in text and "Not a medical device" in text


@pytest.mark.parametrize("name", ["inspect", "audit"])
def test_every_element_that_the_script_asks_for_is_there(both, name):
    page = Page(both[name])
    script = page.texts["script"][-1]
    asked = set(re.findall(r"""(?:\$|getElementById)\("(\w+)"\)""", script))
    assert len(asked) >= 3 and asked <= {attributes.get("id") for _, attributes in page.tags}


def test_hostile_text_is_shown_as_text(both):
    page = Page(both["inspect"])
    (at,) = (i for i, tag in enumerate(page.all("article")) if tag["data-source"] == HOSTILE)
    article = page.all("article")[at]
    assert article["aria-label"] == f"record {HOSTILE}" and article["data-modality"] == article["data-type"] == HOSTILE
    # id, question, two options' first, chain, answer, the line of facts and the metadata.
    assert page.texts["article"][at].count(HOSTILE) >= 8
    assert "https://example.org/x.js" in page.texts["article"][at]
    assert HOSTILE in page.texts["option"] and any(HOSTILE in tag["alt"] for tag in page.all("img"))
    assert HOSTILE not in both["inspect"] and HOSTILE not in both["audit"]


def test_cards_show_what_the_records_say(both):
    page = Page(both["inspect"])
    articles = dict(zip((tag["aria-label"] for tag in page.all("article")), page.texts["article"], strict=True))
    assert len(articles) == 10
    text = articles["record describe/3"]
    for words in ("What of 3?", "Step 0 of picture 3.", "Step 2 of picture 3.", "Block.", "patient 3"):
        assert words in text
    assert "MRI · describe · K = 3 · test · kvasir_polyp" in text and "MRI-FLAIR" in text  # family and sequence
    assert "K = none" in articles["record bare"]
    images = page.all("img")
    assert len(images) == 10 + 9  # every record's image, and the outline of all but one
    assert {tag["alt"] for tag in images} > {"CT image of skin", "MRI-FLAIR image", "outline of the mask"}
    assert all({"alt", "width", "height"} <= tag.keys() or tag["class"] == "outline" for tag in images)
    values = {tag["data-filter"] for tag in page.all("select")}
    assert values == {"modality", "type", "steps", "split", "source"}


def test_the_page_is_bounded_and_shows_records_from_the_whole_set(out):
    text, shown, count = pages.inspect_page(out, limit=4)
    assert (shown, count) == (4, 10) and len(Page(text).all("article")) == 4 and "evenly spaced" in text
    ids = [(split, id_) for split, source in pages.open_splits(out).items() for id_ in source.ids]
    told = {tag["aria-label"].removeprefix("record ") for tag in Page(text).all("article")}
    assert told == {ids[number][1] for number in (0, 2, 5, 7)}
    assert "evenly spaced" not in pages.inspect_page(out / "records")[0]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        pages.inspect_page(out, limit=0)


def test_folders_that_are_none(tmp_path, out):
    with pytest.raises(FileNotFoundError, match=r"no finished record folder.*vital data build"):
        pages.inspect_page(tmp_path)
    (tmp_path / "metadata.json").write_text('{"store": "other"}')
    with pytest.raises(ValueError, match=r"metadata\.json: not the description of a record folder"):
        pages.inspect_page(tmp_path)


def test_a_damaged_image_is_named(tmp_path):
    _, good = record(1)
    out = write([("train", Record("bad one", (b"no image",), "Q?", "A.", metadata=good.metadata))], tmp_path)
    with pytest.raises(ValueError, match="record 'bad one': image 1"):
        pages.inspect_page(out)


def test_the_fingerprint_is_of_the_content(tmp_path, out):
    assert pages.fingerprint(out) == pages.fingerprint(out / "records")
    pairs = [record(i) for i in range(3)]
    prints = [pages.fingerprint(write(each, tmp_path / str(i))) for i, each in enumerate((pairs, pairs, pairs[:2]))]
    assert prints[0] == prints[1] != prints[2]


def test_pictures_are_shrunk_and_small_ones_are_not_blown_up():
    large = np.random.default_rng(0).integers(0, 256, (900, 1500, 3), np.uint8)
    url, shown, _ = pages.picture(png(large), "large")
    assert shown == (384, 230) and pixels(url).size == shown and len(url) < 100_000
    url, shown, _ = pages.picture(png(large[:30, :60]), "small")
    assert shown == (384, 192) and pixels(url).size == (60, 30)


@pytest.mark.parametrize("shape", [(30, 50), (384, 384), (1500, 2000)])
def test_the_outline_runs_around_the_region(shape):
    height, width = shape
    mask = np.zeros(shape, bool)
    mask[height // 3 : height // 2, width // 4 : width // 2] = True
    size = (384, round(384 * height / width))
    drawn = np.asarray(pixels(pages.outline(mask, size)).convert("RGBA"))
    assert drawn.shape[:2] == size[::-1]
    line = (drawn[..., 3] > 0) & (drawn[..., 0] == 255)
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    assert not (line & inside).any() and line.sum() >= 2 * sum(np.ptp(np.nonzero(inside), axis=1))
    ys, xs = np.nonzero(line)
    rows, columns = np.nonzero(inside)
    found = np.array([ys.min(), ys.max(), xs.min(), xs.max()])
    wanted = np.array([rows.min() - 1, rows.max() + 1, columns.min() - 1, columns.max() + 1])
    assert np.abs(found - wanted).max() <= 1
    # Bright and dark beside each other, so that it is seen on any ground.
    assert ((drawn[..., 3] > 0) & (drawn[..., 0] == 0)).sum() > line.sum() / 2


def test_a_region_of_one_pixel_is_not_lost():
    mask = np.zeros((2000, 2000), bool)
    mask[777, 1234] = True
    drawn = np.asarray(pixels(pages.outline(mask, (384, 384))).convert("RGBA"))
    ys, xs = np.nonzero(drawn[..., 3])
    assert abs(ys.mean() - 777 * 384 / 2000) < 1 and abs(xs.mean() - 1234 * 384 / 2000) < 1


def test_a_turned_image_and_its_outline_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.full((40, 60, 3), 30, np.uint8)
    image[5:15, 40:55] = 240
    mask = (image[..., 0] == 240).astype(np.uint8) * 255
    turned = Record("t", (png(image, exif=exif),), "Q?", "A.", masks=(png(mask),), metadata={"modality": "X-Ray"})
    album = pages.Album()
    (part,) = album.show(turned)
    picture = album.pictures[part["picture"]]
    assert (picture["width"], picture["height"]) == (256, 384)
    bright = np.asarray(pixels(picture["src"]).convert("L").resize((256, 384))) > 128
    line = np.asarray(pixels(part["outline"]).convert("RGBA"))[..., 3] > 0
    for axis in (0, 1):
        where, around = np.nonzero(bright.any(axis))[0], np.nonzero(line.any(axis))[0]
        assert abs(around.min() - where.min()) <= 8 and abs(around.max() - where.max()) <= 8


def test_an_image_that_many_records_ask_about_is_kept_once():
    album = pages.Album()
    first = next(phantoms(1, seed=0, size=64))
    kinds = [Record(f"{i}", (first.image,), "Q?", "A.", masks=(first.mask,)) for i in range(3)]
    assert [album.show(each)[0]["picture"] for each in kinds] == [0, 0, 0] and len(album.pictures) == 1


def test_a_file_is_written_whole(tmp_path):
    file = pages.write_text(tmp_path / "new/x.txt", "one\ntwo\n")
    assert file.read_bytes() == b"one\ntwo\n" and [path.name for path in file.parent.iterdir()] == ["x.txt"]
    with pytest.raises(UnicodeEncodeError):
        pages.write_text(file, "\ud800")
    assert file.read_bytes() == b"one\ntwo\n" and [path.name for path in file.parent.iterdir()] == ["x.txt"]


def test_a_deep_image_is_shown_in_its_record_s_window():
    deep = png(np.linspace(0, 4000, 40 * 60, dtype=np.uint16).reshape(40, 60))
    album = pages.Album()
    for number, window in enumerate(([0, 4000], [0, 1000], [0, 1000])):
        metadata = {"window": window}
        album.show(Record(f"{number}", (deep,), "What is it?", "A ramp.", metadata=metadata))
    wide, narrow = (np.asarray(pixels(shown["src"]).convert("L")) for shown in album.pictures)
    assert wide[-1].min() > 243 and abs(int(wide[20, 0]) - 127) < 12
    assert narrow[20:].min() > 243
