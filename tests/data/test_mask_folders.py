"""The TFDS folder `data/mask_folders`: what it builds is what the construct room builds, in the one schema, without TensorFlow."""

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
from vital_jax.construct.folders import MaskFolder
from vital_jax.pipeline.records import write_splits

DATA = Path(__file__).resolve().parents[2] / "data"
MODULE = "mask_folders.mask_folders_dataset_builder"


@pytest.fixture(scope="module")
def builder_class():
    """The class as TFDS finds it in a community folder."""
    with tfds.core.utils.add_sys_path(DATA):
        return tfds.core.community.builder_cls_from_module(MODULE)


def write_folder(root, count, size=32, modality="CT", target="liver"):
    """A folder of grey images with one rectangle each."""
    (root / "files").mkdir(parents=True)
    rows = []
    for i in range(count):
        r = np.random.default_rng(i)
        mask = np.zeros((size, size + 8), np.uint8)
        mask[4 : 18 + i % 5, 6:20] = 255
        pixels = np.where(mask[..., None] > 0, 180, r.integers(20, 90, (*mask.shape, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"files/{i}.png")
        Image.fromarray(mask).save(root / f"files/{i}_mask.png")
        row = {"id": str(i), "modality": modality, "site": "abdomen", "image": f"files/{i}.png", "licence": "CC0-1.0"}
        rows.append(row | {"masks": [{"target": target, "file": f"files/{i}_mask.png"}]})
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))


def prepare(builder, root):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    return builder.as_data_source()


def expected(folders, questions, **shares):
    """(split, record) as the construct room gives them."""
    samples = (sample for folder in folders for sample in MaskFolder(folder))
    return list(assign_splits(build_records(samples, questions, seed=0), **shares))


def check_example(example, record):
    """An example as TFDS decodes it against the record it stands for, field by field."""
    for name in ("id", "question", "answer", "gold"):
        assert example[name].decode() == getattr(record, name)
    for name in ("chain", "options"):
        assert tuple(text.decode() for text in example[name]) == getattr(record, name)
    assert json.loads(example["metadata"]) == record.metadata
    assert example["format_version"] == record.format_version
    for name in ("images", "masks"):
        assert len(example[name]) == len(getattr(record, name))
        for pixels, data in zip(example[name], getattr(record, name), strict=True):
            picture = np.asarray(Image.open(BytesIO(data)))
            np.testing.assert_array_equal(pixels, picture.reshape(pixels.shape))
    boxes = [tuple(box[[1, 0, 3, 2]].tolist()) for box in example["boxes"]]  # TFDS keeps (y, x, y, x)
    assert tuple(boxes) == record.boxes


def test_two_folders_become_the_records_of_the_construct_room(builder_class, tmp_path):
    write_folder(tmp_path / "in/one", 14)
    write_folder(tmp_path / "in/two", 6, modality="X-Ray", target="lung")
    config = sys.modules[MODULE].MaskFoldersConfig(name="wide", questions=3, val=0.3, test=0.2)
    builder = builder_class(data_dir=tmp_path / "out", config=config)
    sources = prepare(builder, tmp_path / "in")
    pairs = expected([tmp_path / "in/one", tmp_path / "in/two"], 3, val=0.3, test=0.2)
    assert set(sources) == {"train", "val", "test"} == {split for split, _ in pairs}
    assert {record.metadata["source"] for _, record in pairs} == {"one", "two"}
    for split, source in sources.items():
        records = [record for side, record in pairs if side == split]
        assert len(source) == len(records)
        for example, record in zip(source, records, strict=True):
            check_example(example, record)
    assert any(record.masks for _, record in pairs) and all(record.metadata["licence"] for _, record in pairs)

    # The same schema as the store that training reads: the same fields, kinds and order.
    store = tfds.builder_from_directory(write_splits(pairs, tmp_path / "store"))
    assert store.info.features.to_json() == builder.info.features.to_json()
    for mine, theirs in zip(sources["val"], store.as_data_source("val"), strict=True):
        assert str(mine) == str(theirs)
    again = tfds.builder_from_directory(builder.data_dir).as_data_source("val")
    assert [example["id"] for example in again] == [example["id"] for example in sources["val"]]


def test_real_polyps_with_the_default_configuration(builder_class, real, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/polyps").symlink_to(real("kvasir_polyp"), target_is_directory=True)
    sources = prepare(builder_class(data_dir=tmp_path / "out"), tmp_path / "in")
    pairs = expected([real("kvasir_polyp")], 4)
    assert len(pairs) == 22 * 4
    assert set(sources) == {split for split, _ in pairs}
    for split, source in sources.items():
        ids = [record.id for side, record in pairs if side == split]
        assert [example["id"].decode() for example in source] == ids
    last = len(sources["train"]) - 1
    check_example(sources["train"][last], [record for side, record in pairs if side == "train"][last])


def test_a_split_without_records_is_left_out(builder_class, tmp_path):
    write_folder(tmp_path / "in/small", 2)
    sides = {split for split, _ in expected([tmp_path / "in/small"], 4)}
    assert len(sides) < 3
    assert set(prepare(builder_class(data_dir=tmp_path / "out"), tmp_path / "in")) == sides


def test_tensorflow_is_never_imported(tmp_path):
    write_folder(tmp_path / "in/small", 2)
    script = f"""
import sys
import tensorflow_datasets as tfds
from {MODULE} import Builder
builder = Builder(data_dir=sys.argv[2])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=sys.argv[1]))
count = sum(len(source) for source in builder.as_data_source().values())
print(count, builder.info.file_format.value, "tensorflow" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"],
        cwd=DATA,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "8 array_record False"


def test_nothing_to_build_is_an_error_with_a_way_out(builder_class, tmp_path):
    build = lambda: prepare(builder_class(data_dir=tmp_path / "out"), tmp_path / "in")  # noqa: E731
    with pytest.raises(AssertionError, match=r"(?s)in does not exist or is empty.*manifest\.jsonl"):
        build()
    (tmp_path / "in/bare").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"in: no folder with a manifest\.jsonl in it"):
        build()
    write_folder(tmp_path / "in/small", 1)
    Image.new("L", (40, 32)).save(tmp_path / "in/small/files/0_mask.png")
    with pytest.raises(ValueError, match="in: no mask to ask about in 1 folders"):
        build()
    (tmp_path / "in/small/files/0_mask.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"manifest\.jsonl:1: files/0\.png"):
        build()
    assert not list((tmp_path / "out").rglob("*.array_record*"))


def test_the_card_says_what_it_must(builder_class, tmp_path):
    info = builder_class(data_dir=tmp_path).info
    for words in ("Research use only", "licences of their sources", "Known limits", "Nothing is downloaded"):
        assert words in info.description
    assert "2605.28422" in info.citation
    tags = builder_class.get_metadata().tags
    assert tags and set(tags) <= set(tfds.core.dataset_metadata.valid_tags())
    assert builder_class.name == "mask_folders"
