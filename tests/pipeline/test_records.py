"""The record store: schema errors, order, exact round trips, a stranger's reader, atomic writing, light imports."""

import io
import json
import pickle
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vital_jax.pipeline import records as record_store
from vital_jax.pipeline.records import FORMAT_VERSION, Record, RecordSource, ids_hash, write_records, write_splits


def picture(number: int, mode: str = "RGB", size=(9, 7)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    return file.getvalue()


def make(number: int, **changes) -> Record:
    modes = ["RGB", "L", "RGBA"][: number % 3 + 1]
    images = tuple(picture(number + 100 * k, mode, (9 + k, 7 + 2 * k)) for k, mode in enumerate(modes))
    fields = {
        "id": f"set/picture ({number})",
        "images": images,
        "question": f"Où est le foie n° {number}?",
        "answer": "It lies in the upper left.",
        "chain": tuple(f"Step {k}: bright — 明るい." for k in range(number % 5)),
        "options": ("yes", "no") if number % 2 else (),
        "gold": "B" if number % 2 else "",
        "boxes": ((0.1, 0.2, 0.30000001, 1.0),) * (number % 3),
        "masks": tuple(picture(number, "L") for _ in images) if number % 2 else (),
        "step_masks": tuple(picture(number + k, "L") for k in range(number % 5)) if number > 5 else (),
        "metadata": {"source": "test", "modality": "CT", "window": [40, 400], "nested": {"é": [1, None, True]}},
    }
    return Record(**(fields | changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    records = [make(i) for i in range(11)]
    return records, write_records(records, tmp_path_factory.mktemp("store") / "set", shard_size=4)


def test_round_trip_keeps_order_and_every_byte(store):
    records, folder = store
    source = RecordSource(folder)
    assert len(source) == 11 and len(list(folder.glob("*.array_record-*"))) == 3
    assert list(source) == records
    assert [source[i] for i in (10, 0, 7)] == [records[i] for i in (10, 0, 7)]
    assert type(source[1].images[0]) is bytes and type(source[1].boxes[0][0]) is float
    with pytest.raises(IndexError, match=r"record 11 asked for, split 'train' has 0\.\.10"):
        source[11]


def test_index_answers_without_images(store):
    records, folder = store
    source = RecordSource(folder)
    assert source.ids == [record.id for record in records]
    assert [row["latent_steps"] for row in source.index] == [len(record.chain) or None for record in records]
    assert replace(records[0], metadata={"latent_steps": 0}).latent_steps == 0
    assert source.index[3]["metadata"] == records[3].metadata
    assert (
        ids_hash(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    )  # printf "a\nb" | sha256sum


def test_a_stranger_reads_the_folder_with_plain_tfds(store):
    records, folder = store
    builder = tfds.builder_from_directory(folder)
    assert builder.info.metadata["format_version"] == FORMAT_VERSION and builder.info.splits["train"].num_examples == 11
    example = builder.as_data_source("train")[5]
    assert example["id"].decode() == records[5].id and [t.decode() for t in example["chain"]] == list(records[5].chain)
    assert json.loads(example["metadata"]) == records[5].metadata
    for decoded, encoded in zip(example["images"], records[5].images, strict=True):
        # TFDS announces three channels: it repeats a grey image and leaves the fourth channel of RGBA.
        mode = "RGBA" if Image.open(io.BytesIO(encoded)).mode == "RGBA" else "RGB"
        np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(encoded)).convert(mode)))
    np.testing.assert_array_equal(example["masks"][0][..., 0], np.asarray(Image.open(io.BytesIO(records[5].masks[0]))))
    # TFDS keeps boxes as (y_min, x_min, y_max, x_max).
    np.testing.assert_array_equal(example["boxes"][0], np.float32([0.2, 0.1, 1.0, 0.3]))


def test_several_splits_in_any_mixture(tmp_path):
    records = [make(i) for i in range(6)]
    folder = write_splits(
        ((("train", "val")[i % 3 == 0], record) for i, record in enumerate(records)), tmp_path / "two"
    )
    assert list(RecordSource(folder, "val")) == [records[0], records[3]]
    assert list(RecordSource(folder, "train")) == [records[i] for i in (1, 2, 4, 5)]
    with pytest.raises(ValueError, match=r"no split 'test', only \['train', 'val'\]"):
        RecordSource(folder, "test")


def test_source_pickles_small_and_reopens(store):
    records, folder = store
    text = pickle.dumps(RecordSource(folder))
    assert len(text) < 1000
    assert pickle.loads(text)[4] == records[4]


def test_neither_tensorflow_nor_jax_is_imported(store, tmp_path):
    code = (
        "import sys\n"
        "from vital_jax.pipeline.records import RecordSource, write_records\n"
        "import vital_jax.pipeline.features\n"
        f"source = RecordSource({str(store[1])!r})\n"
        f"write_records([source[0], source[3]], {str(tmp_path / 'copy')!r})\n"
        "print([name for name in ('tensorflow', 'jax', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": " "}, "id must be a non-empty string"),
        ({"id": "two\nlines"}, "id must be printable"),
        ({"question": ""}, "question must be a non-empty string"),
        ({"answer": None}, "answer must be a non-empty string, got None"),
        ({"images": ()}, "needs at least one image"),
        ({"images": (b"",)}, r"images\[0\] must be non-empty bytes"),
        ({"images": ("path.png",)}, r"images\[0\] must be non-empty bytes, got str"),
        ({"chain": ("a.", "")}, r"chain\[1\] must be non-empty str"),
        ({"masks": (b"x", b"y")}, "2 masks for 1 images"),
        ({"step_masks": (b"x",)}, "1 step_masks for a chain of 0 steps; give none or one per step"),
        ({"chain": ("a.", "b."), "step_masks": (b"x",)}, "1 step_masks for a chain of 2 steps"),
        ({"chain": ("a.",), "step_masks": ("x",)}, r"step_masks\[0\] must be non-empty bytes, got str"),
        ({"options": ("a", "b"), "gold": "C"}, "gold 'C' is none of the options"),
        ({"gold": "A"}, "gold 'A' is none of the options"),
        ({"boxes": ((0.5, 0, 0.2, 1),)}, "must be .x_min"),
        ({"boxes": ((0.5, 0, 0.9),)}, "must be .x_min"),
        ({"metadata": {"modality": 3}}, r"metadata\['modality'\] has the wrong type: 3"),
        ({"metadata": {"latent_steps": True}}, r"metadata\['latent_steps'\] has the wrong type"),
        ({"metadata": {"latent_steps": -1}}, "negative"),
        ({"chain": ("a.",), "metadata": {"latent_steps": 2}}, "says 2, the chain has 1"),
        ({"metadata": {"a": {1, 2}}}, "metadata is not JSON"),
        ({"metadata": {"a": float("nan")}}, "metadata is not JSON"),
        ({"metadata": {"a": (1, 2)}}, "lists for tuples"),
        ({"format_version": FORMAT_VERSION + 1}, "record format 3; this vital_jax reads up to 2"),
    ],
)
def test_bad_records_are_refused_by_name(changes, message):
    plain = {"id": "r", "images": (b"x",), "question": "Q?", "answer": "A."}
    with pytest.raises(ValueError, match=message) as caught:
        Record(**(plain | changes))
    assert "record " in str(caught.value)


def test_same_content_is_accepted_other_content_refused(store, tmp_path):
    records, _ = store
    folder = write_records(records[:3], tmp_path / "set")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert write_records(records[:3], folder) == folder
    for other in (records[:2], [*records[:2], replace(records[2], answer="No.")], records[2::-1]):
        with pytest.raises(FileExistsError, match="holds other records"):
            write_records(other, folder)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_crash_leaves_nothing_that_looks_finished(store, tmp_path):
    def failing():
        yield store[0][0]
        raise RuntimeError("disk pulled")

    with pytest.raises(RuntimeError, match="disk pulled"):
        write_records(failing(), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="comes twice"):
        write_records([store[0][0], store[0][0]], tmp_path / "set")
    with pytest.raises(ValueError, match=r"split name '\.\./train' must be letters"):
        write_records(store[0][:1], tmp_path / "set", split="../train")
    with pytest.raises(ValueError, match="no records to write"):
        write_records([], tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="not a finished record folder"):
        RecordSource(tmp_path / "set")


def test_foreign_unfinished_newer_and_torn_folders(store, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a record folder"):
        write_records(store[0][:1], foreign)
    assert (foreign / "notes.txt").read_text() == "mine"

    folder = write_records(store[0][:5], tmp_path / "set", shard_size=2)
    shard = sorted(folder.glob("*.array_record-*"))[1]
    shard.rename(tmp_path / "shard")
    with pytest.raises(FileNotFoundError, match=r"array_record-00001: missing; copy"):
        RecordSource(folder)
    whole = (tmp_path / "shard").read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"array_record-00001: \d+ bytes instead of \d+; copy the folder again"):
        RecordSource(folder)
    damaged = bytearray(whole)
    damaged[65600] ^= 255
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"record [23] of 'train' is damaged; copy it again"):
        [RecordSource(folder)[number] for number in (2, 3)]
    shard.write_bytes(whole)
    assert len(list(RecordSource(folder))) == 5

    marker = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(marker | {"format_version": 3}))
    with pytest.raises(ValueError, match="record format 3; this vital_jax reads up to 2: install a newer"):
        RecordSource(folder)
    (folder / "metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a finished record folder"):
        RecordSource(folder)


def test_every_field_of_the_schema_is_stored(store):
    """A field added to the dataclass and forgotten in the store would come back at its default."""
    stored = asdict(RecordSource(store[1])[7])
    assert stored == asdict(store[0][7])
    assert all(stored[name] for name in stored), stored


def test_a_folder_of_format_1_is_read_and_its_fingerprint_still_holds(tmp_path, monkeypatch):
    """Format 1 had no step_masks, neither in its features nor in its hash."""
    kept = [replace(make(number), step_masks=()) for number in range(11)]
    with monkeypatch.context() as older:
        older.setattr(record_store, "FILES", ("images", "masks"))
        older.setattr(record_store, "FORMAT_VERSION", 1)
        folder = write_records([replace(record, format_version=1) for record in kept], tmp_path / "one")
    assert json.loads((folder / "metadata.json").read_text())["format_version"] == 1
    assert "step_masks" not in (folder / "features.json").read_text()
    source = RecordSource(folder)
    # What the code of format 1 wrote for these records.
    assert source.fingerprint == "9f653ca70fbf313ee5230186115624842507c98bd9cd5866faf0d3ecc75bf993"
    assert list(source) == kept
    again = write_records(kept, tmp_path / "two")
    assert RecordSource(again).fingerprint == source.fingerprint
    assert write_records(kept, folder) == folder  # the same records, so they stay
    stepped = [replace(record, step_masks=(b"x",) * len(record.chain)) for record in source]
    other = RecordSource(write_records(stepped, tmp_path / "three"))
    assert other.fingerprint != source.fingerprint and list(other) == stepped
