"""Splits: near-duplicates are found and others left alone, what belongs together stays together, strata get their shares."""

from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.splits import Pictures, assign, correlation, describe, first_names
from vital_jax.demo.phantoms import draw
from vital_jax.pipeline.images import decode


def picture(number, size=160):
    return Image.fromarray(draw(0, number, size).rgb)


def unite(tmp_path, pictures):
    """[(group, picture, content)] -> the groups as they were united."""
    held = Pictures(tmp_path)
    for number, (group, image, *content) in enumerate(pictures):
        held.add(group, content[0] if content else f"{number:016x}", *describe(image))
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


CHANGES = {
    "poor JPEG": jpeg,
    "half the size": lambda image: image.resize((80, 80)),
    "brighter": lambda image: image.point(lambda v: min(255, v + 20)),
    "gamma": lambda image: image.point(lambda v: int(255 * (v / 255) ** 0.8)),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_others_left_alone(tmp_path, change):
    pictures = [(f"patient {i}", picture(i)) for i in range(12)]
    copies = [(f"copy {i}", CHANGES[change](picture(i))) for i in range(0, 12, 3)]
    found = unite(tmp_path, pictures + copies)
    expected = [[f"copy {i}", f"patient {i}"] if i % 3 == 0 else [f"patient {i}"] for i in range(12)]
    assert found == sorted(expected)


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


def test_a_hash_alone_does_not_unite(tmp_path, monkeypatch):
    # Both propose the pair; only the thumbnails tell it apart.
    hashed, thumb = describe(picture(0))
    for other, together in ((thumb, 1), (describe(picture(5))[1], 0)):
        held = Pictures(tmp_path)
        held.add("a", "0" * 16, hashed, thumb)
        held.add("b", "1" * 16, hashed ^ 0b111011, other)
        assert held.unite() == together
        held.close()


def test_long_runs_of_equal_bands_are_not_compared_all_with_all(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "vital_jax.construct.splits.correlation", lambda a, b: compared.append(len(a)) or np.zeros(len(a), np.float32)
    )
    monkeypatch.setattr("vital_jax.construct.splits._WINDOW", 4)
    held = Pictures(tmp_path)
    hashed, thumb = describe(picture(0))
    for number in range(300):
        held.add(f"{number}", f"{number:016x}", hashed, thumb)
    assert held.unite() == 0 and 0 < sum(compared) <= 28 * 4 * 300
    held.close()


def test_correlation_is_pearsons():
    rows = np.random.default_rng(0).integers(0, 255, (2, 5, 1024), dtype=np.uint8)
    expected = [np.corrcoef(a.astype(float), b.astype(float))[0, 1] for a, b in zip(*rows, strict=True)]
    np.testing.assert_allclose(correlation(*rows), expected, atol=1e-5)


def test_a_volume_that_is_a_crop_of_another_goes_with_it(real, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    rows = []
    for name in ("ct_trunk", "ct_spine"):
        volume = nibabel.load(real("totalsegmentator_reference") / name / "image.nii.gz").get_fdata()
        grey = (np.clip((volume + 200) / 600, 0, 1) * 255).astype(np.uint8)
        rows += [(name, Image.fromarray(grey[:, :, z])) for z in range(0, volume.shape[2], 2)]
    assert unite(tmp_path, rows) == [["ct_spine", "ct_trunk"]]


@pytest.mark.parametrize("name", ["chase_db1_vessel", "busi_breast_ultrasound", "shenzhen_cxr_lung"])
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
