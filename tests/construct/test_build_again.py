"""A start that finds nothing changed asks nothing again; what records follow from makes them anew, and a kill leaves no half of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_folder
from ml_collections import ConfigDict
from PIL import Image

from vital_jax.construct import factory
from vital_jax.construct.asking import Asker
from vital_jax.construct.audit import write_rejects
from vital_jax.construct.exchange import write_jsonl
from vital_jax.construct.report import Report
from vital_jax.pipeline.records import RecordSource
from vital_jax.run.prepare import make_records

FAST = dict(shown=False, questions=2, val=0.2, test=0.2)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(sources, what was built of them)."""
    root = tmp_path_factory.mktemp("again")
    draw_folder(root / "sources" / "one", 8, seed=1)
    factory.build(root / "out", [root / "sources"], **FAST)
    return root / "sources", root / "out"


@pytest.fixture
def asked(monkeypatch):
    """How often questions were asked, and splits made."""
    counted = []
    for owner, name in ((Asker, "questions"), (factory._Run, "split")):
        own = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, *given, own=own, name=name: counted.append(name) or own(self, *given)
        )
    return counted


@pytest.fixture
def copy(first, tmp_path):
    for path in first:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path


def build(copy, **changes):
    return factory.build(copy / "out", [copy / "sources"], **FAST | changes)


def content(out):
    return {
        path.name: path.read_bytes()
        for path in [*(out / "records").iterdir(), out / "rejects.jsonl", out / "report.md"]
    }


def test_nothing_changed_is_nothing_done(first, copy, asked):
    build(copy)  # the sources were copied, so their times are others and their contents decide
    before, asked[:] = content(copy / "out"), []
    whole = build(copy)
    assert asked == [] and content(copy / "out") == before
    counts = {split: len(RecordSource(copy / "out" / "records", split)) for split in ("train", "val", "test")}
    assert (whole.records, whole.counts, whole.waiting) == (copy / "out" / "records", counts, 0)


def other_image(copy):
    path = sorted((copy / "sources" / "one" / "images").iterdir())[0]
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)


def one_less(copy):
    path = copy / "sources" / "one" / "manifest.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def rejected(copy):
    write_rejects(copy / "out", {RecordSource(copy / "out" / "records", "train").ids[0]: "leak"})


def damaged(copy):
    sorted((copy / "out" / "records").glob("*array_record*"))[0].unlink()


def other_rules(copy):
    factory._rules = lambda: "a later version"


@pytest.mark.parametrize("change", [other_image, one_less, rejected, damaged, other_rules])
def test_whatever_records_follow_from_makes_them_anew(copy, asked, monkeypatch, change):
    monkeypatch.setattr(factory, "_rules", factory._rules)
    change(copy)
    build(copy)
    assert asked == ["split", "questions"]
    again = content(copy / "out")
    asked.clear()
    build(copy)
    assert asked == []
    shutil.rmtree(copy / "out" / "records")  # from the beginning, with what was cut
    (copy / "out" / "records.json").unlink()
    build(copy)
    assert asked == ["split", "questions"]
    parts = ("report.md",)
    assert {k: v for k, v in content(copy / "out").items() if k not in parts} == {
        k: v for k, v in again.items() if k not in parts
    }


def test_a_start_that_was_killed_is_no_start(first, copy, asked, monkeypatch):
    """After the records were written, and before all was: the next start, with the sources as they were first, makes the first records."""
    build(copy)
    before = content(copy / "out")
    shutil.copytree(copy / "sources", copy / "kept")
    other_image(copy)
    with monkeypatch.context() as patch:
        patch.setattr(Report, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(copy)
    assert not (copy / "out" / "made.json").exists()
    shutil.rmtree(copy / "sources")
    shutil.copytree(copy / "kept", copy / "sources")
    asked.clear()
    build(copy)
    assert asked == ["split", "questions"]
    parts = ("report.md",)
    assert {k: v for k, v in content(copy / "out").items() if k not in parts} == {
        k: v for k, v in before.items() if k not in parts
    }
    assert json.loads((copy / "out" / "made.json").read_text())["counts"]


def test_a_recipe_starts_again_without_asking(copy, asked):
    build_of = dict(
        source="factory",
        path=str(copy / "sources"),
        kinds=("manifest",),
        seed=0,
        questions=2,
        form="open",
        val=0.2,
        test=0.2,
    )
    config = ConfigDict(dict(data=dict(records=str(copy / "recipe" / "records"), build=build_of)))
    make_records(config)
    assert asked == ["split", "questions"]
    make_records(config)
    assert asked == ["split", "questions"]
    config.data.build.questions = 3
    with pytest.raises(ValueError, match="questions"):
        make_records(config)
    assert Path(config.data.records).is_dir()


def test_the_regions_of_steps_come_through_a_build(first, tmp_path):
    write_jsonl(first[1] / "records", tmp_path / "data")
    path = tmp_path / "data/records-train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stepped = next(row for row in rows if row["masks"])
    stepped["step_masks"] = stepped["masks"] * len(stepped["chain"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert factory.build(tmp_path / "out", [tmp_path / "data"], **FAST).set_aside == 0
    found = {one.id: one for one in RecordSource(tmp_path / "out/records", "train")}
    one = found.pop(stepped["id"])
    assert one.step_masks == one.masks * len(one.chain) and not any(other.step_masks for other in found.values())
