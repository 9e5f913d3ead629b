"""The TFDS folder `data/vital_five_tuples`: what the factory left, record by record, without TensorFlow."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vital_jax.construct.build import assign_splits, build_records
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import RecordSource, write_splits

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = "vital_five_tuples.vital_five_tuples_dataset_builder"


@pytest.fixture(scope="module")
def builder_class():
    """The class as TFDS finds it in a community folder."""
    with tfds.core.utils.add_sys_path(REPOSITORY / "data"):
        return tfds.core.community.builder_cls_from_module(MODULE)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A small set as the factory leaves it."""
    out = tmp_path_factory.mktemp("five") / "OUT"
    records = build_records(phantoms(6, seed=2, size=64), 2, seed=0, form="both")
    write_splits(assign_splits(records, val=0.3, test=0.2), out / "records")
    return out


def prepare(builder, folder):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return builder.as_data_source()


@pytest.mark.parametrize("inner", ["", "records"])
def test_the_records_of_the_factory_come_back(builder_class, out, tmp_path, inner):
    builder = builder_class(data_dir=tmp_path)
    sources = prepare(builder, out / inner)
    names = sorted(path.stem.removeprefix("index-") for path in (out / "records").glob("index-*.jsonl"))
    assert sorted(sources) == names and len(names) > 1
    for split, source in sources.items():
        records = RecordSource(out / "records", split)
        assert len(source) == len(records) > 0
        for example, record in zip(source, records, strict=True):
            assert example["id"].decode() == record.id and json.loads(example["metadata"]) == record.metadata
            assert tuple(text.decode() for text in example["chain"]) == record.chain
            assert tuple(text.decode() for text in example["options"]) == record.options
            assert (example["answer"].decode(), example["gold"].decode()) == (record.answer, record.gold)
            assert len(example["masks"]) == len(record.masks)
            shown = np.asarray(Image.open(BytesIO(record.images[0])).convert("RGB"))
            np.testing.assert_array_equal(np.broadcast_to(example["images"][0], shown.shape), shown)
    store = tfds.builder_from_directory(out / "records")
    assert store.info.features.to_json() == builder.info.features.to_json()


def test_the_module_builds_and_reads_without_tensorflow(out, tmp_path):
    script = """
import sys
from data.vital_five_tuples.__main__ import main
status = main(sys.argv[1:])
print(status, "tensorflow" in sys.modules)
"""
    run = [sys.executable, "-c", script, out, tmp_path / "data"]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 False"
    assert f"train: {len(RecordSource(out / 'records'))} examples" in done.stdout
    assert (tmp_path / "data/vital_five_tuples/2.0.0/dataset_info.json").is_file()


def test_mistakes_are_one_line(out, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "data.vital_five_tuples", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    done = run(tmp_path / "absent", tmp_path)
    assert done.returncode == 2 and "absent: not a folder" in done.stderr
    (tmp_path / "vital_five_tuples/2.0.0").mkdir(parents=True)
    done = run(out, tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("exists; remove it or choose another folder")


def test_a_folder_without_records_is_an_error(builder_class, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError, match=r"in: no finished record folder"):
        prepare(builder_class(data_dir=tmp_path / "out"), tmp_path / "in")


def test_the_card_says_what_it_must(builder_class, tmp_path):
    info = builder_class(data_dir=tmp_path).info
    card = " ".join(info.description.split())
    for words in (
        "Research use only",
        "licences of their sources",
        "Known limits",
        "Nothing is downloaded",
        "CC BY-NC-SA 4.0",
    ):
        assert words in card
    assert "2605.28422" in info.citation and "Medical Segmentation Decathlon" in info.citation
    tags = builder_class.get_metadata().tags
    assert tags and set(tags) <= set(tfds.core.dataset_metadata.valid_tags())
    assert builder_class.name == "vital_five_tuples"
