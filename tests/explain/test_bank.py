"""The bank of training regions: an exact search in blocks, each region once, another encoder's features refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from vital_jax.explain import bank as module
from vital_jax.explain.bank import Bank
from vital_jax.pipeline.features import FeatureSpec, write_features
from vital_jax.pipeline.records import Record, write_splits

SPEC = FeatureSpec("siglip", "block", 0.2, 0.05, "aaaa", 4)
WIDTH, COUNT = 6, 40


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def records():
    r = np.random.default_rng(0)
    for i in range(COUNT):
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 20 : 22 + i % 9] = 255
        yield "train", Record(
            f"r{i}", (png(r.integers(0, 256, (40, 60, 3), np.uint8)),), "What?", "This.",
            chain=tuple(f"r{i} step {k + 1}" for k in range(i % 3)), masks=(png(mask),),
            metadata={"group": f"p{i // 2}", "modality": "CT", "target_name": f"t{i % 4}"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def features():
    """Unit rows; 10 and 11 are one region, 7 has none."""
    rows = np.random.default_rng(1).normal(size=(COUNT, WIDTH))
    rows[11] = rows[10]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
    path = write_splits(records(), tmp_path_factory.mktemp("bank") / "records")
    rows = [None if i == 7 else (row, row, "crop", np.zeros(5)) for i, row in enumerate(features.astype(np.float32))]
    write_features(path, SPEC, [f"r{i}" for i in range(COUNT)], rows)
    return path


@pytest.fixture
def opened(folder):
    return Bank.open(folder, "siglip", "aaaa", "block")


def test_it_finds_what_a_whole_search_finds(opened, features, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr(module, "QUERIES", 4)
    queries = 3 * np.random.default_rng(2).normal(size=(9, WIDTH))
    numbers, cosines = opened.nearest(queries, 5)
    cosine = queries @ features.T / np.linalg.norm(queries, axis=1, keepdims=True)
    cosine[:, [7, 11]] = -np.inf
    expected = np.argsort(-cosine, axis=1)[:, :5]
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(cosine, expected, 1), atol=1e-6)


def test_a_region_counts_once_and_a_record_without_one_never(opened, features):
    numbers, cosines = opened.nearest(features[[10]], 100)
    assert sorted(numbers[0]) == sorted({*range(COUNT)} - {7, 11})
    assert numbers[0, 0] == 10 and cosines[0, 0] == pytest.approx(1, abs=1e-6)
    assert isinstance(opened.features.roi, np.memmap)


def test_a_querys_own_group_does_not_count(opened, features):
    numbers, _ = opened.nearest(features[[10, 20]], 3, ["p5", "somebody"])
    assert numbers[0, 0] != 10 and numbers[1, 0] == 20
    numbers, cosines = opened.nearest(features[[10]], 100, ["p5"])
    assert 10 not in numbers and numbers[0, -1] == -1 and cosines[0, -1] == -np.inf


def test_similar_regions_carry_words_and_a_picture(opened, features):
    (first,), (second,), (third,) = opened.similar(features[[20, 20, 21]], [1, 4, 2], 1)
    assert (first.id, first.step, first.text, first.label) == ("r20", 1, "r20 step 1", "t0, CT")
    assert first.cosine == pytest.approx(1, abs=1e-6) and (second.step, second.text) == (2, "r20 step 2")
    assert (third.id, third.step, third.text) == ("r21", 1, "")
    picture = Image.open(io.BytesIO(first.picture))
    assert max(picture.size) == module.SIDE and len(first.picture) < 5000


def test_fewer_regions_than_asked_for_are_what_there_is(opened, features):
    (found,) = opened.similar(features[[10]], [1], 100, ["p5"])
    assert len(found) == COUNT - 3  # r7 has none, r10 is of the query's group and r11 is its region


@pytest.mark.parametrize(("fingerprint", "hook"), [("bbbb", "block"), ("aaaa", "post_layernorm")])
def test_another_encoder_is_refused_by_name(folder, fingerprint, hook):
    found = rf"of siglip \(aaaa, block\), but the model projects to medsiglip \({fingerprint}, {hook}\).*vital data features"
    with pytest.raises(ValueError, match=found):
        Bank.open(folder, "medsiglip", fingerprint, hook)


def test_what_is_no_bank_is_named(tmp_path, folder, opened):
    with pytest.raises(FileNotFoundError, match="no finished record folder"):
        Bank.open(tmp_path, "siglip", "aaaa", "block")
    with pytest.raises(ValueError, match="no split 'test'"):
        Bank.open(folder, "siglip", "aaaa", "block", "test")
    bare = write_splits(list(records())[:2], tmp_path / "records")
    with pytest.raises(FileNotFoundError, match=r"no region features of split 'train'.*vital data features"):
        Bank.open(bare, "siglip", "aaaa", "block")
    with pytest.raises(ValueError, match=r"queries are \[1, 5\], the bank's width is 6"):
        opened.nearest(np.ones((1, 5)), 3)
