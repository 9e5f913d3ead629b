"""Sizes of records: measured once, kept beside them, made again where anything they depend on differs or the file is damaged."""

import dataclasses
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vital_jax.hub import tiny
from vital_jax.pipeline import sizes
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.prompts import Prompter
from vital_jax.pipeline.records import Record, RecordSource, write_splits

QUESTIONS = ("What is shown?", "What is shown in the upper left of this image, and where exactly?")
MAX_PIXELS = 96 * 64


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(answer="It is the spleen."):
    """Two splits of records of different sizes."""
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            yield (
                split,
                Record(f"{split}{i}", (png(64 + 32 * (i % 2), 64),), QUESTIONS[i % 2], answer, chain=("Look.",) * i),
            )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.write_backbone(folder / "base", [*QUESTIONS, "It is the spleen. Look."], width=64, layers=2, vocab=300)
    return folder


@pytest.fixture
def encoder(models):
    return Encoder.from_folder(models / "base", MAX_PIXELS)


@pytest.fixture
def folder(tmp_path):
    return write_splits(records(), tmp_path / "records")


@pytest.fixture
def measured(monkeypatch):
    """Ids of the records that were measured."""
    found, original = [], Encoder.measure
    monkeypatch.setattr(Encoder, "measure", lambda self, record: found.append(record.id) or original(self, record))
    return found


def kept(folder):
    return sorted(path.name for path in folder.iterdir() if "sizes" in path.name)


def feed(folder, encoder, split="train"):
    return Feed(RecordSource(folder, split), encoder, None, ((96, 24),), 10, 8)


def test_a_second_start_measures_nothing(folder, encoder, measured):
    first = feed(folder, encoder).sizes
    assert sorted(measured) == ["train0", "train1", "train2"]
    longhand = [(*encoder.measure(record), *encoder.measure_text(record)) for record in RecordSource(folder)]
    np.testing.assert_array_equal(first, longhand)
    assert len({row[0] for row in longhand}) > 1 and {row[3] > 0 for row in longhand} == {True, False}
    measured.clear()
    again = feed(folder, encoder).sizes
    assert not measured and again.dtype == first.dtype == np.int32
    np.testing.assert_array_equal(again, first)
    feed(folder, encoder, "test").sizes  # noqa: B018
    assert sorted(measured) == ["test0", "test1"] and len(kept(folder)) == 2


def test_another_tokenizer_template_system_prompt_pixel_limit_or_content_is_another_file(
    folder, encoder, models, measured, tmp_path
):
    def copy(name, **changes):
        shutil.copytree(models / "base", tmp_path / name)
        path = tmp_path / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path / name

    plain = Prompter(models / "base").template
    other = Encoder.from_folder(copy("template", chat_template=f"{plain} "), MAX_PIXELS)
    tiny.write_backbone(tmp_path / "words", ["other words"], width=64, layers=2, vocab=300)
    changed = [
        encoder,
        other,
        Encoder.from_folder(tmp_path / "words", MAX_PIXELS),
        Encoder.from_folder(models / "base", 64 * 64),
        dataclasses.replace(encoder, system="Answer briefly."),
        dataclasses.replace(encoder, chain_prompter=Prompter(tmp_path / "words")),
    ]
    for number, one in enumerate(changed, 1):
        measured.clear()
        feed(folder, one).sizes  # noqa: B018
        assert len(measured) == 3 and len(kept(folder)) == number
    rewritten = write_splits(records("No."), tmp_path / "rewritten")
    for name in kept(folder):
        shutil.copy(folder / name, rewritten)
    measured.clear()
    np.testing.assert_array_equal(feed(rewritten, encoder).sizes[:, 2], [len(encoder.prompter.encode_text("No."))] * 3)
    assert len(measured) == 3


def test_a_copied_model_folder_has_the_same_sizes(folder, encoder, models, measured, tmp_path):
    feed(folder, encoder).sizes  # noqa: B018
    measured.clear()
    shutil.copytree(models / "base", tmp_path / "moved")
    feed(folder, Encoder.from_folder(tmp_path / "moved", MAX_PIXELS)).sizes  # noqa: B018
    assert not measured


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other shape", "pickle"])
def test_a_damaged_file_is_made_again(folder, encoder, measured, damage):
    first = feed(folder, encoder).sizes
    (name,) = kept(folder)
    path = folder / name
    whole = path.read_bytes()
    if damage == "other shape":
        np.save(path, first[:2])
    elif damage == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        path.write_bytes({"cut": whole[:-9], "empty": b"", "text": b"no numbers"}[damage])
    measured.clear()
    np.testing.assert_array_equal(feed(folder, encoder).sizes, first)
    assert len(measured) == 3 and path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_still_serves(folder, encoder, measured, monkeypatch, capsys):
    opened = sizes.Path.open

    def refused(self, mode="r", **options):  # whoever tests as root may write anywhere
        if mode == "xb":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode, **options)

    monkeypatch.setattr(sizes.Path, "open", refused)
    found = feed(folder, encoder).sizes
    assert found.shape == (3, 5) and not kept(folder)
    assert f"{folder}: sizes of its records are not kept (Permission denied)" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing_behind(folder, encoder, monkeypatch, capsys):
    def full(file, *_, **__):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sizes.np, "save", full)
    assert feed(folder, encoder).sizes.shape == (3, 5)
    assert not kept(folder) and "No space left on device" in capsys.readouterr().err


def test_several_that_start_together_leave_one_whole_file(folder, encoder):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: feed(folder, encoder).sizes, range(8)))
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    (name,) = kept(folder)
    np.testing.assert_array_equal(np.load(folder / name), found[0])
    assert os.access(folder / name, os.R_OK)
