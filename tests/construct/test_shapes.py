"""What a mask means by its shape: specks, outlines, rings, and masks drawn the wrong way round."""

import json

import numpy as np
import pytest
from drawn import read_all
from PIL import Image
from scipy import ndimage

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.measure import look
from vital_jax.construct.shapes import meant_region, without_specks
from vital_jax.construct.source import Rejected
from vital_jax.construct.targets import load_targets

ROWS, COLUMNS = np.indices((160, 200))
TARGETS = load_targets()


def disc(row, column, radius):
    return np.hypot(ROWS - row, COLUMNS - column) < radius


HEAD = disc(80, 110, 40)
LINE = HEAD & ~disc(80, 110, 37)


def meant(region, target, outline=None):
    return meant_region(region, target, TARGETS, "m.png", outline)


def refused(code, region, target):
    with pytest.raises(Rejected) as caught:
        meant(region, target)
    assert caught.value.code == code and caught.value.file == "m.png", caught.value
    return caught.value.reason


# --- specks --------------------------------------------------------------------------------------------


def test_specks_are_pieces_too_small_to_be_targets_beside_a_far_larger_one():
    big = disc(80, 110, 40)  # about 5,000 pixels
    stray, small = np.zeros_like(big), disc(20, 20, 5.1)
    stray[3, 2] = stray[4, 3] = True
    assert small.sum() < 100 < small.sum() * 1.3
    np.testing.assert_array_equal(without_specks(big | stray | small, 100), big)
    # Large enough by one of the two rules: a target of its own, or a fiftieth of the largest.
    np.testing.assert_array_equal(without_specks(big | stray | small, 60), big | small)
    middle = disc(80, 110, 20)
    np.testing.assert_array_equal(without_specks(middle | small, 100), middle | small)
    for region in (stray, big, np.zeros_like(big)):
        np.testing.assert_array_equal(without_specks(region, 100), region)


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of one image with one mask."""

    def write(pixels, target="liver", image=None, exif=None, **keys):
        picture = np.full(ROWS.shape, 90, np.uint8) if image is None else image
        Image.fromarray(picture).save(tmp_path / "i.png", **({"exif": exif} if exif else {}))
        Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(tmp_path / "m.png")
        row = {"id": "a", "modality": "ultrasound", "site": "abdomen", "image": "i.png"}
        mask = {"target": target, "file": "m.png", **keys}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(row | {"masks": [mask]}))
        return read_all(MaskFolder(tmp_path))

    return write


def test_one_stray_pixel_moves_neither_box_nor_words(folder):
    pixels = HEAD * 255
    (clean,), _ = folder(pixels)
    pixels[2, 0] = 255
    (sample,), rejected = folder(pixels)
    assert rejected == []
    np.testing.assert_array_equal(sample.region, HEAD)
    assert look(sample).own == look(clean).own and look(sample).own.box[0] == pytest.approx(0.355, abs=0.01)


# --- outlines and rings --------------------------------------------------------------------------------


def gap(region):
    region = region.copy()
    region[78:81, :90] = False
    return region


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        HEAD & ~ndimage.binary_erosion(HEAD),
        gap(LINE),
        LINE | (disc(40, 30, 15) & ~disc(40, 30, 13)),
    ],
)
@pytest.mark.parametrize("target", ["fetal head", "liver", "kidney cyst"])
def test_a_closed_line_means_what_it_encloses(line, target):
    found = meant(line, target)
    whole = HEAD | (disc(40, 30, 15) & bool(line[40, 17]))
    assert (found ^ whole).sum() <= 0.02 * whole.sum()


def test_a_line_that_ends_at_the_images_border_is_closed_by_it():
    half = disc(0, 100, 60)
    line = half & ~disc(0, 100, 57)
    assert (meant(line, "fetal head") ^ half).sum() <= 0.02 * half.sum()


def test_a_wider_ring_is_named_where_the_target_is_none():
    ring = HEAD & ~disc(80, 110, 30)
    reason = refused("ring-mask", ring, "optic cup")
    assert (
        "marks a ring, 44 percent of what it encloses, and optic cup is no ring" in reason
        and '"outline": true' in reason
    )
    np.testing.assert_array_equal(meant(ring, "optic cup", True), HEAD)
    np.testing.assert_array_equal(meant(ring, "optic cup", False), ring)
    for target in (
        "myocardium",
        "optic disc",
        "T9 vertebra",
        "retinal vessels",
        "nuclei",
        "enhancing tumor",
        "edema",
        "polyp",
    ):
        np.testing.assert_array_equal(meant(ring, target), ring)


def test_regions_and_trees_stay_as_they_are():
    holed = HEAD & ~disc(80, 110, 15)  # more than half of what it encloses
    tree = ((abs(ROWS - COLUMNS) < 2) | (abs(ROWS + COLUMNS - 180) < 2)) & disc(90, 90, 60)
    for region in (HEAD, holed, tree, np.zeros_like(HEAD)):
        np.testing.assert_array_equal(meant(region, "liver"), region)
    net = LINE | tree
    np.testing.assert_array_equal(meant(net, "retinal vessels"), net)


def test_the_real_fetal_heads_are_heads(real):
    samples, rejected = read_all(MaskFolder(real("hc18_fetal_head")))
    assert rejected == [] and len(samples) == 16
    for sample in samples:
        own = look(sample).own
        assert own.share > 0.08 and own.compactness > 0.7 and own.parts == 1


# --- the wrong way round -------------------------------------------------------------------------------


def test_a_mask_of_everything_but_a_part_inside_is_named():
    assert "drawn the wrong way round" in refused("unclear-mask", ~HEAD, "liver")
    assert "drawn the wrong way round" in refused(
        "unclear-mask", ~disc(80, 190, 30), "optic disc"
    )  # a part at the border
    np.testing.assert_array_equal(meant(~HEAD, "white matter"), ~HEAD)
    everything, corners = np.ones_like(HEAD), np.hypot(ROWS - 80, COLUMNS - 100) < 110
    for region in (everything, corners):
        np.testing.assert_array_equal(meant(region, "polyp"), region)


# --- manifests -----------------------------------------------------------------------------------------


def test_value_and_outline_of_a_manifest_are_obeyed(folder):
    labels = np.where(disc(80, 110, 12), 2, HEAD)
    assert folder(labels)[1] == [("a", "unclear-mask", "m.png")]
    assert folder(labels, value=2)[0][0].region.sum() == disc(80, 110, 12).sum()
    assert folder(labels, value=[1, 2])[0][0].region.sum() == HEAD.sum()
    assert folder(~HEAD * 255, value=0)[0][0].region.sum() == HEAD.sum()
    ring = HEAD & ~disc(80, 110, 30)
    assert folder(ring)[1] == [("a", "ring-mask", "m.png")]
    assert folder(ring, outline=True)[0][0].region.sum() == HEAD.sum()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"values": [1]}, "'values' of a mask is not read; it is perhaps meant as 'value'"),
        ({"invert": True}, "'invert' of a mask is not read; it is perhaps meant as 'value'"),
        ({"colour": "red"}, "'colour' of a mask is not read; a mask has target, file, value, outline"),
        ({"value": "red"}, "value 'red' must be a number"),
        ({"outline": "yes"}, "outline must be true or false"),
    ],
)
def test_keys_of_a_mask_are_read_or_named(folder, tmp_path, keys, said):
    assert folder(HEAD * 255, **keys) == ([], [("manifest.jsonl:1", "bad-line", "manifest.jsonl:1")])
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        list(MaskFolder(tmp_path))
    assert len(folder(HEAD * 255, area=5000, comment="second reader")[0]) == 1


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("value", "value of a mask"),
        ("license", "licence"),
        ("modalitty", "modality"),
        ("Group", "group"),
        ("Patient", "group"),
        ("subject_id", "group"),
        ("Split", "split"),
    ],
)
def test_keys_of_a_line_that_are_nearly_ours_are_named(folder, tmp_path, key, meant):
    folder(HEAD * 255)
    row = json.loads((tmp_path / "manifest.jsonl").read_text())
    row.pop(meant, None)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row | {key: "x", "width": 200, "source_id": "7"}))
    with pytest.raises(ValueError, match=f"{key!r} is not read; it is perhaps meant as {meant!r}|{meant} missing"):
        list(MaskFolder(tmp_path))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_of_a_turned_image_is_noted(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples, rejected = folder(HEAD * 255, exif=exif)
    assert len(samples) == 1 and rejected == [("a", "exif-turned", "i.png")]
    samples, rejected = folder(HEAD.T * 255, exif=exif)  # drawn as the image is seen
    assert samples == [] and rejected == [("a", "exif-turned", "i.png"), ("a", "size-mismatch", "m.png")]


def test_a_folder_that_is_a_link_is_read_and_its_changes_are_seen(folder, tmp_path):
    from vital_jax.construct.cut import content_of, sizes_of

    folder(HEAD * 255)
    root, disk = tmp_path / "set", tmp_path / "disk"
    disk.mkdir(), root.mkdir()
    for name in ("i.png", "m.png"):
        (tmp_path / name).rename(disk / name)
    (root / "images").symlink_to(disk)
    (root / "loose.png").symlink_to(disk / "i.png")
    row = json.loads((tmp_path / "manifest.jsonl").read_text())
    line = row | {"image": "images/i.png", "masks": [{"target": "liver", "file": "images/m.png"}]}
    (root / "manifest.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"id": "b", "image": "loose.png"}))
    source = MaskFolder(root)
    samples, rejected = read_all(source)
    assert [s.id for s in samples] == ["set/a/liver"] and rejected == [("b", "path-escape", "manifest.jsonl:2")]
    (unit, _) = source.units()
    before = sizes_of(source, unit), content_of(source, unit)
    assert all(size > 0 for _, size, _ in before[0])
    Image.fromarray((HEAD * 200).astype(np.uint8)).save(disk / "m.png")
    assert content_of(source, unit) != before[1] and sizes_of(source, unit) != before[0]
