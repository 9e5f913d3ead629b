"""ROI sidecars: rows by record number, refusal beside other records, atomic writing, small pickles."""

import dataclasses
import errno
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.features import FeatureParts, FeatureSpec, RoiFeatures, distinctness, write_features
from vital_jax.pipeline.feed import Feed

SPEC = FeatureSpec("google/medsiglip 448", "block", threshold=0.20, margin=0.05, fingerprint="abc")
IDS = [f"r{i}" for i in range(6)]


def rows(width=7):
    rng = np.random.default_rng(0)
    made = [
        (rng.normal(size=width), rng.normal(size=width), ("full", "crop")[i % 2], np.arange(5) + i) for i in range(6)
    ]
    made[2] = None
    return made


def test_round_trip_by_record_number(tmp_path):
    folder = write_features(tmp_path, SPEC, IDS, iter(rows()))
    assert folder == tmp_path / "roi-google_medsiglip_448-block-T0.20-P0.05" / "train"
    features = RoiFeatures(folder, IDS)
    assert len(features) == 6 and features.info["width"] == 7 and features.info["valid"] == 5
    for number, row in enumerate(rows()):
        roi, valid = features[number]
        assert valid == (row is not None) and roi.dtype == np.float32
        np.testing.assert_array_equal(roi, np.zeros(7) if row is None else np.float32(row[0]))
        if row is not None:
            np.testing.assert_array_equal(features.whole[number], np.float32(row[1]))
            np.testing.assert_array_equal(features.patches[number], row[3])
            assert ("full", "crop")[features.path[number]] == row[2]
    with pytest.raises(IndexError, match=r"row 6 asked for, there are 0\.\.5"):
        features[6]
    assert isinstance(features.roi, np.memmap)


def stepped(width=7):
    """The same rows with regions of steps: two of r0, three of r2, which has none of its own, and one of r5."""
    rng, made = np.random.default_rng(1), rows(width)
    made[2] = (None, rng.normal(size=width), "crop", np.zeros(5))
    for number, count in ((0, 2), (2, 3), (5, 1)):
        made[number] = (*made[number], rng.normal(size=(count, width)))
    return made


def test_regions_of_steps_lie_beside_those_of_records(tmp_path):
    features = RoiFeatures(write_features(tmp_path, SPEC, IDS, stepped(), steps=3), IDS)
    assert features.steps.shape == (6, 3, 7) and features.info["steps"] == 3 and isinstance(features.steps, np.memmap)
    assert features.steps_valid.sum(1).tolist() == [2, 0, 3, 0, 0, 1]
    for number, row in enumerate(stepped()):
        own = row[4] if len(row) > 4 else np.zeros((0, 7))
        np.testing.assert_array_equal(features.of_steps(number), np.float32(own))
        np.testing.assert_array_equal(features.steps[number], np.pad(np.float32(own), [(0, 3 - len(own)), (0, 0)]))
    assert features[2][1] == False and not features.roi[2].any()  # noqa: E712
    np.testing.assert_array_equal(features.whole[2], np.float32(stepped()[2][1]))
    with pytest.raises(ValueError, match="record 'r2': 3 regions of steps, room for 2"):
        write_features(tmp_path / "other", SPEC, IDS, stepped(), steps=2)
    (features.folder / "steps_valid.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"steps_valid.npy: missing"):
        RoiFeatures(features.folder, IDS)


def test_a_feed_hands_the_regions_of_steps_to_the_row(tmp_path):
    features = RoiFeatures(write_features(tmp_path, SPEC, IDS, stepped(), steps=3), IDS)
    encoder = SimpleNamespace(encode=lambda *given: given[3:])
    make = Feed(dict.fromkeys(range(6)), encoder, features, ((8, 4),), 1, 1).maker(Layout(roi=7))
    for number, row in enumerate(stepped()):
        roi, _, steps = make(number, 0)
        np.testing.assert_array_equal(
            np.reshape(steps, (-1, 7)), np.float32(row[4] if row and len(row) > 4 else []).reshape(-1, 7)
        )
        assert (roi is None) == (row[0] is None)


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_parts_with_regions_of_steps_join_to_the_same_bytes(tmp_path, size):
    whole = write_features(tmp_path / "whole", SPEC, IDS, stepped(), steps=3)
    parts = FeatureParts(tmp_path / "parts", SPEC, IDS, "train", size)
    for number in range(len(parts)):
        parts.write(number, [stepped()[i] for i in parts.records(number)])
    assert contents(parts.finish()) == contents(whole)


def test_without_regions_of_steps_nothing_is_written_of_them(tmp_path):
    folder = write_features(tmp_path, SPEC, IDS, rows())
    assert sorted(path.name for path in folder.iterdir()) == [
        "global.npy", "info.json", "patches.npy", "path.npy", "roi.npy", "valid.npy",
    ]  # fmt: skip
    features = RoiFeatures(folder, IDS)
    assert "steps" not in features.info and features.steps.shape == (6, 0, 7) and features.steps_valid.shape == (6, 0)


def test_positions_are_rows_and_columns_of_the_grid(tmp_path):
    spec = dataclasses.replace(SPEC, grid=4)
    features = RoiFeatures(write_features(tmp_path, spec, IDS, rows()), IDS)
    assert features.positions.shape == (6, 5, 2)
    assert features.positions[5].tolist() == [[1, 1], [1, 2], [1, 3], [2, 0], [2, 1]]
    info = json.loads((features.folder / "info.json").read_text())
    del info["grid"]  # as written before the grid was kept
    (features.folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="no grid; extract"):
        _ = RoiFeatures(features.folder, IDS).positions


def test_the_name_keeps_unusual_thresholds_apart():
    names = {FeatureSpec("e", "h", t, 0.0, "").name for t in (0.2, 0.205, 0.21, 0.0)}
    assert names == {"roi-e-h-T0.20-P0.00", "roi-e-h-T0.205-P0.00", "roi-e-h-T0.21-P0.00", "roi-e-h-T0.00-P0.00"}


def test_pickle_carries_the_folder_not_the_data(tmp_path):
    many = 2000
    ids = [str(i) for i in range(many)]
    row = (np.ones(64), np.ones(64), "full", np.zeros(5))
    features = RoiFeatures(write_features(tmp_path, SPEC, ids, (row for _ in ids)), ids)
    text = pickle.dumps(features)
    assert len(text) < 2000
    again = pickle.loads(text)
    np.testing.assert_array_equal(again[1999][0], np.ones(64))


def test_other_records_are_refused(tmp_path):
    folder = write_features(tmp_path, SPEC, IDS, rows())
    with pytest.raises(ValueError, match="features of 6 records, but there are 5"):
        RoiFeatures(folder, IDS[:5])
    with pytest.raises(ValueError, match="other records or another order"):
        RoiFeatures(folder, IDS[::-1])
    with pytest.raises(FileExistsError, match="remove it to write"):
        write_features(tmp_path, SPEC, IDS, rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made[:5], "5 feature rows for 6 records"),
        (lambda made: [*made, made[0]], "more feature rows than the 6 records"),
        (lambda made: [None] * 6, "no record has a region"),
        (
            lambda made: [*made[:5], (np.ones(6), np.ones(7), "full", np.zeros(5))],
            "record 'r5': features must be 7 finite",
        ),
        (lambda made: [*made[:5], (np.ones(7), np.full(7, np.nan), "full", np.zeros(5))], "record 'r5'"),
        (lambda made: [*made[:5], (np.ones(7), np.ones(7), "whole", np.zeros(5))], "not in tuple"),
    ],
)
def test_bad_rows_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_features(tmp_path, SPEC, IDS, change(rows()))
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / SPEC.name] == []


def test_torn_and_newer_sidecars(tmp_path):
    folder = write_features(tmp_path, SPEC, IDS, rows())
    np.save(folder / "roi.npy", np.zeros((6, 8), np.float32))
    with pytest.raises(ValueError, match=r"roi.npy: float32\[6, 8\], expected float32\[6, 7\]"):
        RoiFeatures(folder, IDS)
    (folder / "roi.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"roi.npy: missing"):
        RoiFeatures(folder, IDS)
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | {"format_version": 2}))
    with pytest.raises(ValueError, match="feature format 2, this vital_jax reads up to 1"):
        RoiFeatures(folder, IDS)
    (folder / "info.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a finished feature folder"):
        RoiFeatures(folder, IDS)


def test_pickled_objects_in_an_array_file_are_refused(tmp_path):
    folder = write_features(tmp_path, SPEC, IDS, rows())
    np.save(folder / "valid.npy", np.array([True, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        RoiFeatures(folder, IDS)


def test_distinctness_is_the_mean_over_pairs_and_the_share_of_the_strongest_channels():
    rows = np.random.default_rng(0).normal(size=(7, 12)) * np.array([5.0] * 2 + [1.0] * 10)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine, energy = distinctness(rows, top=2)
    pairs = [rows[i] @ rows[j] for i in range(7) for j in range(7) if i != j]
    assert cosine == pytest.approx(np.mean(pairs), abs=1e-12)
    assert energy == pytest.approx((rows[:, :2] ** 2).sum() / (rows**2).sum(), abs=1e-12)
    with pytest.raises(ValueError, match="1 features"):
        distinctness(rows[:1])


# --- parts -------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts_of(root, share=(0, 1), size=2):
    """Parts of a share, made like a machine that has this folder makes them."""
    parts = FeatureParts(root, SPEC, IDS, "train", size)
    for number in parts.missing(share):
        parts.write(number, [rows()[i] for i in parts.records(number)])
    return parts


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_parts_join_to_the_same_bytes(tmp_path, size):
    whole = write_features(tmp_path / "whole", SPEC, IDS, rows())
    parts = parts_of(tmp_path / "parts", size=size)
    assert len(parts) == -(-6 // size) and parts.missing() == []
    assert contents(parts.finish()) == contents(whole)
    assert not parts.folder.exists()
    with pytest.raises(FileExistsError, match="remove it to write"):
        parts_of(tmp_path / "parts")


@pytest.mark.parametrize("machines", [1, 2, 3, 5])
def test_shares_cover_everything_once_and_join_by_copying(tmp_path, machines):
    made = [parts_of(tmp_path / f"m{i}", (i, machines)) for i in range(machines)]
    numbers = [number for i, parts in enumerate(made) for number in parts.share((i, machines))]
    assert numbers == [0, 1, 2]
    for parts in made[1:]:
        for path in parts.folder.glob("part-*"):
            (made[0].folder / path.name).write_bytes(path.read_bytes())
        assert contents(parts.folder)["plan.json"] == contents(made[0].folder)["plan.json"]
    whole = write_features(tmp_path / "whole", SPEC, IDS, rows())
    assert contents(made[0].finish()) == contents(whole)


def test_unfinished_parts(tmp_path):
    parts = parts_of(tmp_path, (0, 2))
    assert parts.missing() == [1, 2]
    with pytest.raises(ValueError, match="2 of 3 parts are missing"):
        parts.finish()
    with pytest.raises(
        FileNotFoundError, match=r"not a finished feature folder .*1 parts of it are made.*vital data features"
    ):
        RoiFeatures(parts.target, IDS)
    for other in (dataclasses.replace(SPEC, fingerprint="another"), dataclasses.replace(SPEC, grid=9)):
        with pytest.raises(ValueError, match=r"train.parts was begun with another (fingerprint|grid); remove it"):
            FeatureParts(tmp_path, other, IDS, "train", 2)
    with pytest.raises(ValueError, match="another ids_sha256"):
        FeatureParts(tmp_path, SPEC, IDS[::-1], "train", 2)


@pytest.mark.parametrize("damage", [lambda data: data[:60], lambda data: b"", lambda data: data[:-30] + bytes(30)])
def test_a_damaged_part_is_named(tmp_path, damage):
    parts = parts_of(tmp_path)
    path = parts.folder / "part-00001.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"part-00001.npz is damaged .*; remove it and run again"):
        parts.finish()
    assert not parts.target.exists()
    path.unlink()
    assert parts.missing() == [1]
    assert contents(parts_of(tmp_path).finish()) == contents(write_features(tmp_path / "w", SPEC, IDS, rows()))


def test_pickled_objects_in_a_part_are_refused(tmp_path):
    parts = parts_of(tmp_path)
    row = np.array([{}], dtype=object)
    with (parts.folder / "part-00000.npz").open("wb") as file:
        np.savez(file, row=row, roi=row, path=row, patches=row, **{"global": row})
    with pytest.raises(ValueError, match=r"part-00000.npz is damaged .*Object arrays"):
        parts.finish()


def test_bad_rows_and_a_full_disk_leave_no_part(tmp_path, monkeypatch):
    parts = FeatureParts(tmp_path, SPEC, IDS, "train", 3)
    with pytest.raises(ValueError, match="2 feature rows for 3 records"):
        parts.write(0, rows()[:2])
    bad = (np.ones(7), np.full(7, np.inf), "full", np.zeros(5))
    with pytest.raises(ValueError, match="record 'r4': features must be 7 finite"):
        parts.write(1, [rows()[3], bad, rows()[5]])

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(RuntimeError, match=r"part-00000.npz: No space left on device; .*run again"):
        parts.write(0, rows()[:3])
    assert [path.name for path in parts.folder.iterdir()] == ["plan.json"]


def test_a_part_without_any_region(tmp_path):
    made = rows()
    made[0] = made[1] = None
    parts = FeatureParts(tmp_path / "p", SPEC, IDS, "train", 2)
    for number in parts.missing():
        parts.write(number, [made[i] for i in parts.records(number)])
    assert contents(parts.finish()) == contents(write_features(tmp_path / "w", SPEC, IDS, made))
