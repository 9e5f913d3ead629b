"""Splits: near-duplicates are found and others left alone, what belongs together stays together, strata get their shares."""

from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.near import describe
from vital_jax.construct.splits import Key, Pictures, assign, divide, first_names, official
from vital_jax.demo.phantoms import draw
from vital_jax.pipeline.images import decode


def picture(number, size=160):
    return Image.fromarray(draw(0, number, size).rgb)


def unite(tmp_path, pictures):
    """[(group, picture, content)] -> the groups as they were united."""
    held = Pictures(tmp_path)
    for number, (group, image, *content) in enumerate(pictures):
        held.add(group, content[0] if content else f"{number:016x}", describe(image))
    united = held.unite()
    components = held.components()
    held.close()
    found = {}
    for group, number in components.items():
        found.setdefault(number, set()).add(group)
    assert united == len(components) - len(found)
    return sorted(sorted(groups) for groups in found.values())


def jpeg(image):
    file = BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def padded(image):
    wide = Image.new("RGB", (image.width + 40, image.height + 12))
    wide.paste(image, (25, 4))
    return wide


def boxed(image):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((8, 6, 46, 20), fill=(255, 255, 0))
    return image


CHANGES = {
    "poor JPEG": jpeg,
    "half the size": lambda image: image.resize((80, 80)),
    "brighter": lambda image: image.point(lambda v: min(255, v + 20)),
    "gamma 0.8": lambda image: image.point(lambda v: int(255 * (v / 255) ** 0.8)),
    "gamma 1.6": lambda image: image.point(lambda v: int(255 * (v / 255) ** 1.6)),
    "grey": lambda image: image.convert("L"),
    "cropped by 2 %": lambda image: image.crop((3, 3, 157, 157)),
    "cropped by 5 % of one corner": lambda image: image.crop((8, 8, 160, 160)),
    "cropped by 5 %": lambda image: image.crop((8, 8, 152, 152)),
    "padded": padded,
    "left to right": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "turned by -3 degrees": lambda image: image.rotate(-3, Image.Resampling.BICUBIC),
    "a burnt-in box": boxed,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_others_left_alone(tmp_path, change):
    pictures = [(f"patient {i}", picture(i)) for i in range(12)]
    copies = [(f"copy {i}", CHANGES[change](picture(i))) for i in range(0, 12, 3)]
    found = unite(tmp_path, pictures + copies)
    expected = [[f"copy {i}", f"patient {i}"] if i % 3 == 0 else [f"patient {i}"] for i in range(12)]
    assert found == sorted(expected)


@pytest.mark.parametrize("cut", [(1, 1, 1, 1), (2, 2, 0, 0), (2, 2, 2, 2)])
def test_crops_of_small_pictures_are_found(tmp_path, cut):
    left, top, right, bottom = cut
    small = [picture(i).resize((36, 52), Image.Resampling.BOX) for i in range(12)]
    crops = [(f"copy {i}", small[i].crop((left, top, 36 - right, 52 - bottom))) for i in range(12)]
    found = unite(tmp_path, [(f"patient {i}", each) for i, each in enumerate(small)] + crops)
    assert found == sorted([f"copy {i}", f"patient {i}"] for i in range(12))


def test_sameness_is_passed_on_through_groups(tmp_path):
    # Group b has a picture of a and one of c; d has nothing of them.
    a, c = picture(0), picture(1)
    rows = [("a", a), ("b", jpeg(a)), ("b", jpeg(c)), ("c", c), ("d", picture(2))]
    assert unite(tmp_path, rows) == unite(tmp_path, rows[::-1]) == [["a", "b", "c"], ["d"]]


def test_an_even_ground_is_like_nothing_but_the_same_file_is(tmp_path):
    black, grey = (Image.new("L", (64, 64), value) for value in (0, 128))
    assert unite(tmp_path, [("a", black), ("b", grey), ("c", black)]) == [["a"], ["b"], ["c"]]
    same = "f" * 64
    assert unite(tmp_path, [("a", black, same), ("b", grey), ("c", black, same)]) == [["a", "c"], ["b"]]
    assert unite(tmp_path, []) == []


def test_a_volume_that_is_a_crop_of_another_goes_with_it(real, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    rows = []
    for name in ("ct_trunk", "ct_spine"):
        volume = nibabel.load(real("totalsegmentator_reference") / name / "image.nii.gz").get_fdata()
        grey = (np.clip((volume + 200) / 600, 0, 1) * 255).astype(np.uint8)
        rows += [(name, Image.fromarray(grey[:, :, z])) for z in range(0, volume.shape[2], 2)]
    assert unite(tmp_path, rows) == [["ct_spine", "ct_trunk"]]


@pytest.mark.parametrize("name", ["chase_db1_vessel", "busi_breast_ultrasound", "shenzhen_cxr_lung", "hc18_fetal_head"])
def test_different_patients_stay_apart(real, tmp_path, name):
    source = MaskFolder(real(name))
    rows = [(u.id, decode((source.root / u.files[0]).read_bytes(), u.id)[0]) for u in source.units()]
    assert unite(tmp_path, rows) == sorted([unit] for unit, _ in rows)


def test_strata_get_their_shares_whatever_the_order():
    rng = np.random.default_rng(0)
    weights = {}
    for number in range(400):
        # Large volumes and single images; K = 3 is rare, as in the paper.
        size = int(rng.choice([1, 3, 40], p=[0.7, 0.2, 0.1]))
        drawn = Counter(rng.choice(["1", "2", "3", "4"], 4 * size, p=[0.42, 0.38, 0.04, 0.16]).tolist())
        weights[number] = Counter({("K", K): n for K, n in drawn.items()})
    names = {number: f"patient {number}" for number in weights}
    found = assign(weights, names, 0.075, 0.075)
    backwards = assign(dict(reversed(weights.items())), names, 0.075, 0.075)
    assert found == backwards and set(found) == set(weights)
    held = {side: Counter() for side in ("train", "val", "test")}
    for number, side in found.items():
        held[side].update(weights[number])
    total = sum(held.values(), Counter())
    for stratum in total:
        for side, share in (("train", 0.85), ("val", 0.075), ("test", 0.075)):
            assert abs(held[side][stratum] / total[stratum] - share) < 0.01, (stratum, side, held)


def test_shares_of_nothing_and_no_shares():
    weights, names = {0: Counter(a=3), 1: Counter(a=1)}, {0: "x", 1: "y"}
    assert set(assign(weights, names, 0, 0).values()) == {"train"}
    assert set(assign(weights, names, 1, 0).values()) == {"val"}
    assert assign({}, {}, 0.1, 0.1) == {} and set(assign({0: Counter()}, {0: "x"}, 0.1, 0.1)) == {0}
    for shares in ((-0.1, 0), (0.6, 0.5)):
        with pytest.raises(ValueError, match="shares must be between 0 and 1"):
            assign(weights, names, *shares)
    assert first_names(["b", "a", "c"], {"a": 0, "b": 0, "c": 2}) == {0: "a", 2: "c"}


@pytest.mark.parametrize(
    ("word", "side"),
    [
        ("train", "train"), ("Training", "train"), ("trainset", "train"), ("train2017", "train"), ("val", "val"),
        ("valid", "val"), ("validate", "val"), ("dev", "val"), ("test", "test"), ("Test-set", "test"), ("test_0", "test"),
        ("split_0", ""), ("demo", ""), ("", ""), ("contest", ""), ("questions", ""), ("trained", ""),
    ],
)  # fmt: skip
def test_words_for_sides(word, side):
    assert official(word) == side


def test_a_source_keeps_its_split_and_lends_what_it_lacks():
    parts = {("rad", f"p{i}", "test" if i < 10 else "train"): 2 for i in range(100)}
    weights = {Key(*part): Counter(q=count) for part, count in parts.items()}
    sides, overlaps = divide(weights, {key.group: i for i, key in enumerate(weights)}, 0.1, 0.1)
    assert all((side == "test") == (key.official == "test") for key, side in sides.items()) and overlaps == {}
    assert Counter(sides.values()) == {"train": 80, "val": 10, "test": 10}  # validation comes from its training part
    # A set that names nothing but its training part has no split to keep.
    weights = {Key("hub", f"p{i}", "train"): Counter(q=1) for i in range(100)}
    sides, _ = divide(weights, {key.group: i for i, key in enumerate(weights)}, 0.1, 0.1)
    assert Counter(sides.values()) == {"train": 80, "val": 10, "test": 10}


def test_what_others_hold_out_is_not_trained_on_and_what_a_split_shares_is_named():
    parts = [
        Key("rad", "image 1", "test"), Key("rad", "image 1", "train"), Key("rad", "image 2", "train"),
        Key("lab", "scan 1"), Key("lab", "scan 2"), Key("lake", "x", "train"), Key("lake", "y", "val"), Key("lake", "z", "test"),
    ]  # fmt: skip
    # scan 1 and x are near-duplicates of image 1, scan 2 of y.
    components = {"image 1": 0, "scan 1": 0, "x": 0, "image 2": 1, "y": 2, "scan 2": 2, "z": 3}
    sides, overlaps = divide({key: Counter(q=1) for key in parts}, components, 0.1, 0.1)
    for key in parts:
        if key.official:
            assert sides[key] == key.official or key == parts[2]
    assert sides[Key("lab", "scan 1")] == "test" and sides[Key("lab", "scan 2")] == "val"
    assert overlaps == {Key("rad", "image 1", "train"): {"rad"}, Key("lake", "x", "train"): {"rad"}}


def test_what_is_held_out_before_counts_for_the_shares():
    weights = {Key("rad", f"t{i}", "test"): Counter(q=1) for i in range(30)}
    weights |= {Key("lab", f"g{i}"): Counter(q=1) for i in range(70)}
    sides, _ = divide(weights, {key.group: i for i, key in enumerate(weights)}, 0.1, 0.1)
    assert Counter(side for key, side in sides.items() if key.source == "lab") == {"train": 62, "val": 8}
