"""Phantoms: the same for the same (seed, index), exact masks, and nothing about a structure follows from its name."""

from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.questions import absent_targets
from vital_jax.construct.targets import load_targets
from vital_jax.demo.looks import LEXICONS, LOOKS, colour
from vital_jax.demo.phantoms import FORMS, LONG, PATTERNS, _window, draw, phantoms

IMAGES = 600


@pytest.fixture(scope="module")
def scenes():
    return [draw(11, i) for i in range(IMAGES)]


def test_an_image_depends_on_seed_and_index_alone():
    samples = list(phantoms(6, seed=4, size=64))
    tail = list(phantoms(2, seed=4, size=64, start=4))
    assert tail == [s for s in samples if s.group in {t.group for t in tail}] and len({t.group for t in tail}) == 2
    assert tail[0].image != next(phantoms(1, seed=5, size=64, start=4)).image
    assert len({s.image for s in samples}) == 6
    assert not np.array_equal(draw(4, 0).rgb, draw(4, 1).rgb)


@pytest.mark.parametrize("size", [32, 65, 128, 200])
def test_masks_are_apart_inside_and_two_to_four(size):
    gap = max(1, round(3 * size / 128))
    for i in range(60):
        scene = draw(7, i, size)
        assert scene.rgb.shape == (size, size, 3) and scene.rgb.dtype == np.uint8
        assert 2 <= len(scene.structures) <= 4
        assert len({name for name, _ in scene.structures}) == len(scene.structures)
        for name, mask in scene.structures:
            assert name in LEXICONS[scene.modality] and mask.shape == (size, size)
            assert 0.013 < mask.mean() < 0.135
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        for (_, one), (_, other) in combinations(scene.structures, 2):
            assert not (_window(one, gap, "any") & other).any()


def test_samples_carry_the_scene():
    table = load_targets()
    for i in range(20):
        scene, samples = draw(2, i), list(phantoms(1, seed=2, start=i))
        assert [s.target for s in samples] == [name for name, _ in scene.structures]
        regions = dict(scene.structures)
        for s in samples:
            np.testing.assert_array_equal(np.asarray(s.picture), scene.rgb)
            np.testing.assert_array_equal(s.region, regions[s.target])
            assert s.others.keys() == regions.keys() - {s.target}
            assert all(np.array_equal(region, regions[name]) for name, region in s.others.items())
            assert s.modality == scene.modality and (s.site, s.source) == ("phantom", "phantom")
            assert s.target_type == table.row(s.target)["type"]
            assert set(s.present) == set(regions) and set(s.present) | set(s.absent) == set(LEXICONS[s.modality])
            # Only names of the look are offered as absent, and none of them was drawn.
            assert set(absent_targets(s)) == set(s.absent) and not set(s.absent) & set(regions)
        assert len({(s.group, s.image) for s in samples}) == 1 and len({s.id for s in samples}) == len(samples)


def test_the_mask_is_where_the_structure_was_drawn():
    # Against a thin ring, the contrast is greatest where the mask lies on what was drawn: moved, it falls.
    better = total = 0
    for i in range(150):
        scene = draw(3, i)
        grey = np.asarray(Image.fromarray(scene.rgb).convert("L")) / 255
        for _, mask in scene.structures:
            inside, ring = grey[mask].mean(), grey[_window(mask, 2, "any") & ~mask].mean()
            moved = np.roll(mask, (3, 3), (0, 1))
            off = grey[moved].mean() - grey[_window(moved, 2, "any") & ~moved].mean()
            better += abs(inside - ring) > abs(off)
            total += 1
    assert better / total > 0.97


def test_lexicons_can_be_told_apart_and_are_in_the_table():
    assert LEXICONS.keys() == LOOKS.keys()
    table = load_targets()
    for modality, names in LEXICONS.items():
        assert table.family(modality) == modality
        forms, patterns = zip(*names.values(), strict=True)
        assert len(set(forms)) == len(set(patterns)) == len(names) >= 4
        assert set(forms) <= FORMS.keys() and set(patterns) <= PATTERNS.keys()
        for name in names:
            assert not table.row(name).get("generic") and table.row(name)["type"] != "cell"
    assert len([name for names in LEXICONS.values() for name in names]) == len(set().union(*LEXICONS.values()))


def test_no_site_offers_what_phantoms_alone_know():
    table = load_targets()
    assert table.never_at("CT", "phantom") == []
    added = {"vertebra", "clavicle", "macula", "hemorrhage", "exudate", "nevus", "keratosis", "hemangioma", "scar"}
    for modality in table.modalities:
        for site in table.sites:
            assert not added & set(table.never_at(modality, site))


def test_presence_is_a_coin_toss_whatever_the_look(scenes):
    looks = Counter(scene.modality for scene in scenes)
    assert looks.keys() == LOOKS.keys() and min(looks.values()) > IMAGES / 6 * 0.7
    drawn = Counter(name for scene in scenes for name, _ in scene.structures)
    for modality, names in LEXICONS.items():
        for name in names:
            assert 0.35 <= drawn[name] / looks[modality] <= 0.65, name


def facts(grey, mask):
    """Row and column of the center, share of the area, contrast against a ring, elongation by second moments."""
    y, x = np.nonzero(mask)
    long, short = np.sqrt(np.linalg.eigvalsh(np.cov(y, x) + np.eye(2) / 12))[::-1]
    ring = _window(mask, 5, "any") & ~mask
    size = len(mask)
    return (
        (y.mean() + 0.5) / size,
        (x.mean() + 0.5) / size,
        mask.mean(),
        grey[mask].mean() - grey[ring].mean(),
        long / short,
    )


def test_place_size_shape_and_brightness_do_not_follow_from_the_name(scenes):
    found = defaultdict(list)
    for scene in scenes:
        grey = np.asarray(Image.fromarray(scene.rgb).convert("L")) / 255
        for name, mask in scene.structures:
            found[name].append(facts(grey, mask))
    forms = {name: form for names in LEXICONS.values() for name, (form, _) in names.items()}
    for name, rows in found.items():
        row, column, share, contrast, elongation = np.transpose(rows)
        # About 50 of each name: three standard deviations of a fair half are 0.21, of a fair third 0.2.
        assert 0.27 <= np.mean(contrast > 0) <= 0.73, name
        assert np.mean(np.abs(contrast) >= 0.1) >= 0.9, name
        assert 0.25 <= np.mean(share < 0.05) <= 0.75, name
        for outer in (column < 1 / 3, column > 2 / 3, row < 1 / 3, row > 2 / 3):
            assert 0.1 <= np.mean(outer) <= 0.55, name
        if forms[name] in LONG:
            assert np.mean(elongation < 2) >= 0.2, name
        else:
            assert 0.15 <= np.mean(elongation < 1.25) <= 0.7, name
    row, column, share, contrast, elongation = np.transpose([one for rows in found.values() for one in rows])
    assert 0.46 <= np.mean(contrast > 0) <= 0.54
    for place in (row, column):
        thirds = np.histogram(place, [0, 1 / 3, 2 / 3, 1])[0] / len(place)
        assert thirds.min() > 0.24 and thirds.max() < 0.45
    assert np.histogram(elongation, [1, 1.25, 2, 9])[0].min() > 0.2 * len(elongation)


def test_colour_keeps_the_grey():
    grey = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 30)
    rgb = colour(grey, np.array([0.9, 0.4, 0.2]))
    np.testing.assert_allclose(np.tensordot([0.299, 0.587, 0.114], rgb, 1), grey, atol=1e-5)
    assert rgb.min() >= 0 and rgb.max() <= 1 + 1e-6


def test_tiny_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        next(phantoms(1, seed=0, size=16))
