"""`vital data features` and `vital data grid` as a user types them: files, exit status, shares, and more devices than one."""

import argparse
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
import pytest

from vital_jax.commands import data_features
from vital_jax.construct.build import assign_splits, build_records
from vital_jax.construct.roi import record_rows
from vital_jax.demo.phantoms import phantoms
from vital_jax.hub import tiny
from vital_jax.hub.encoders import load_encoder
from vital_jax.pipeline.features import RoiFeatures
from vital_jax.pipeline.records import Record, RecordSource, write_records, write_splits

NAME = "roi-encoder-block-T0.20-P0.05"


def vital(*words):
    """Runs a sub-command of `vital data` in this process; returns its exit status."""
    parser = argparse.ArgumentParser()
    data_features.register(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    return arguments.run(arguments)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "encoder"
    tiny.write_siglip(folder, width=32, image=56)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    records = assign_splits(build_records(phantoms(10, seed=4, size=64), 3, seed=0), val=0.3, test=0)
    return write_splits(records, tmp_path_factory.mktemp("store") / "records")


@pytest.fixture
def records(store, tmp_path):
    return shutil.copytree(store, tmp_path / "out" / "records")


def test_features_of_all_splits(records, encoder, capsys):
    """OUT of `vital data build` is taken as well as its record folder."""
    assert vital("features", records.parent, "--encoder", encoder) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(records / NAME / split) for split in ("train", "val")]
    assert "images/s" in err
    for split in ("train", "val"):
        source = RecordSource(records, split)
        held = RoiFeatures(records / NAME / split, source.ids)
        assert held.info["grid"] == 4 and held.info["width"] == 32
        loaded = load_encoder(encoder, "block")
        rows = list(record_rows(source, loaded.apply, 8, loaded.grid, loaded.size))
        for number, row in enumerate(rows):
            assert held.valid[number] == (row is not None)
            if row is not None:
                # one program for eight devices, another for one
                np.testing.assert_allclose(held.roi[number], row.feature, atol=1e-5)
                np.testing.assert_allclose(held.whole[number], row.global_feature, atol=1e-5)
                assert held.patches[number].tolist() == row.top5.tolist()
    assert vital("features", records, "--encoder", encoder) == 0
    assert "all features are there already" in capsys.readouterr().err


FOUR = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, test_data_features
assert len(jax.devices()) == 4
sys.exit(test_data_features.vital(*sys.argv[2:]))
"""


def test_four_devices_make_the_features_of_one(records, encoder, tmp_path):
    made = {}
    for devices in (1, 4):
        folder = shutil.copytree(records, tmp_path / f"records{devices}")
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        code = FOUR.replace("== 4", f"== {devices}")
        words = ("features", folder, "--encoder", encoder, "--splits", "train", "--batch", "8")
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, words)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made[devices] = RoiFeatures(folder / NAME / "train", RecordSource(folder, "train").ids)
    for name in ("roi", "whole"):
        np.testing.assert_allclose(getattr(made[4], name), getattr(made[1], name), atol=1e-6)
    for name in ("valid", "path", "patches"):
        np.testing.assert_array_equal(getattr(made[4], name), getattr(made[1], name))


def test_images_are_split_over_the_devices(encoder):
    four = load_encoder(encoder, "block", devices=jax.devices()[:4])
    images = np.random.default_rng(0).uniform(-1, 1, (8, 56, 56, 3)).astype(np.float32)
    states = four.apply(images)
    assert four.devices == 4
    assert {shard.data.shape for shard in states.addressable_shards} == {(2, 16, 32)}
    np.testing.assert_allclose(states, load_encoder(encoder, "block").apply(images), atol=2e-5)


def test_machines_share_the_work_by_copying(records, encoder, tmp_path, capsys):
    other = shutil.copytree(records, tmp_path / "other")
    words = ("--encoder", encoder, "--splits", "train", "--shard")
    assert vital("features", other, *words, "1/2") == 0
    assert vital("features", records, *words, "0/2") == 0
    assert not (records / NAME / "train").exists()
    assert "then run without --shard" in capsys.readouterr().err
    parts = "train.parts"
    for path in (other / NAME / parts).glob("part-*"):
        shutil.copy(path, records / NAME / parts)
    assert vital("features", records, *words[:4]) == 0
    assert len(RoiFeatures(records / NAME / "train", RecordSource(records).ids)) == len(RecordSource(records))


def test_a_damaged_record_is_named_and_the_status_says_so(tmp_path, encoder, capsys):
    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(file, "PNG")
    good, bad = file.getvalue(), b"no picture"
    pairs = [("train", Record("r0", (good,), "Q?", "A.", masks=(good,)))]
    pairs += [("val", Record(f"v{i}", (image,), "Q?", "A.", masks=(good,))) for i, image in enumerate((good, bad))]
    folder = write_splits(pairs, tmp_path / "records")
    assert vital("features", folder, "--encoder", encoder) == 1
    out, err = capsys.readouterr()
    assert out.split() == [str(folder / NAME / "train")]
    assert "val: v1 is no image" in err and "1 parts are missing; repair these records, then run again" in err


def test_what_is_refused_says_so(records, encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no finished record folder"):
        vital("features", tmp_path / "nowhere", "--encoder", encoder)
    with pytest.raises(ValueError, match="no split dev, only train, val"):
        vital("features", records, "--encoder", encoder, "--splits", "dev")
    for words in (
        ("--batch", "0"),
        ("--hook", "last"),
        ("--shard", "2/2"),
        ("--shard", "0/0"),
        ("--shard", "half"),
        ("--threshold", "1.5"),
    ):
        with pytest.raises(SystemExit):
            vital("features", records, "--encoder", encoder, *words)
    with pytest.raises(SystemExit):
        vital("grid", records, "--encoder", encoder, "--samples", "0")


def test_grid_writes_table_figure_and_goes_on(records, encoder, capsys):
    assert vital("grid", records.parent, "--encoder", encoder, "--samples", "3") == 0
    folder = records / "grid-encoder-block"
    out, _ = capsys.readouterr()
    assert (folder / "grid.md").read_text().strip() == out.strip() and "3 targets" in out
    assert (folder / "grid.svg").read_text().startswith("<svg") and len((folder / "grid.csv").read_text().split()) == 13
    before = (folder / "samples.jsonl").read_text()
    assert vital("grid", records, "--encoder", encoder, "--samples", "5") == 0
    after = (folder / "samples.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 1 + 5
    assert "5 targets" in capsys.readouterr().out


def test_records_without_masks_have_no_grid(tmp_path, encoder):
    folder = write_records([Record("r0", (b"image",), "Q?", "A.")], tmp_path / "records")
    with pytest.raises(ValueError, match="no record has a mask"):
        vital("grid", folder, "--encoder", encoder)
