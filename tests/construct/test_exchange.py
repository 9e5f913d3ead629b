"""Records out and in again: equal in every field, each image once, and what a hand-made line can get wrong."""

import json
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.build import assign_splits, build_records
from vital_jax.construct.exchange import Exchange, write_jsonl
from vital_jax.construct.source import Rejected, Unit
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import Record, RecordSource, write_splits


def read_all(source):
    records, rejected = [], []
    for unit in source.units():
        try:
            records += list(source.read(unit))
        except Rejected as reason:
            rejected.append((reason.code, reason.file, reason.reason))
    return records, rejected


def encode(pixels, kind="PNG"):
    file = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(records by split, the record folder, the exported folder) of phantoms and one record that uses every field."""
    root = tmp_path_factory.mktemp("exchange")
    pairs = list(assign_splits(build_records(phantoms(6, seed=2, size=64), 3, seed=0, form="both"), val=0.3, test=0.2))
    r = np.random.default_rng(0)
    photo, other = encode(r.integers(0, 255, (20, 30, 3)), "JPEG"), encode(r.integers(0, 255, (20, 30)))
    odd = Record(
        id="odd/\u00e9 \u2713",
        chain=("This.", "That."),
        images=(photo, other),
        question='Where \u2014 "here"?\nOr there?',
        answer="Hier.",
        options=("a", "b"),
        gold="B",
        boxes=((0.1, 0.2, 1 / 3, 0.7), (0, 0, 1, 1)),
        masks=(encode(np.eye(20, 30) * 255), encode(np.ones((20, 30)))),
        step_masks=(encode(np.eye(20, 30) * 255), encode(np.eye(20, 30, 5) * 255)),
        metadata={"group": "odd", "latent_steps": 2, "nested": {"deep": [1, 2.5, None]}, "spacing": [0.1, 0.2]},
    )
    pairs.append(("test", odd))
    folder = write_splits(pairs, root / "records")
    counts = write_jsonl(folder, root / "out")
    assert counts == {split: sum(s == split for s, _ in pairs) for split in sorted({s for s, _ in pairs})}
    return pairs, folder, root / "out"


def test_what_is_written_comes_back_equal(written):
    pairs, _, out = written
    source = Exchange(out)
    assert source.kind == "records" and Exchange.claims(out) and not Exchange.claims(out / "images")
    records, rejected = read_all(source)
    assert rejected == []
    by_split = [record for split in ("test", "train", "val") for side, record in pairs if side == split]
    assert records == by_split and {type(record.boxes) for record in records} == {tuple}
    # Back in a record folder it is the same data set, by its own checksum.
    again = {record.id: record for record in records}
    folder = write_splits(((split, again[record.id]) for split, record in pairs), out.parent / "again")
    for split in ("train", "val", "test"):
        assert list(RecordSource(folder, split)) == [record for side, record in pairs if side == split]


def test_files_are_untouched_and_kept_once(written):
    pairs, _, out = written
    images = {data for _, record in pairs for data in record.images}
    masks = {data for _, record in pairs for data in (*record.masks, *record.step_masks)}
    for part, expected in (("images", images), ("masks", masks)):
        files = list((out / part).iterdir())
        assert {file.read_bytes() for file in files} == expected and len(files) == len(expected)
        assert all(file.stem == sha256(file.read_bytes()).hexdigest() for file in files)
    assert {file.suffix for file in (out / "images").iterdir()} == {".png", ".jpg"}
    assert sum(len(record.images) for _, record in pairs) > 2 * len(images)
    assert sorted(path.name for path in out.iterdir()) == [
        "images", "masks", "records-test.jsonl", "records-train.jsonl", "records-val.jsonl",
    ]  # fmt: skip


def test_units_are_small_and_travel(written):
    _, _, out = written
    source = Exchange(out)
    units = source.units()
    assert units[0].id == "records-test.jsonl:1" and units == Exchange(out).units()
    for unit in units[:3]:
        again = Unit(unit.id, unit.files, json.loads(json.dumps(unit.facts)))
        assert list(Exchange(out).read(again)) == list(source.read(unit))
        assert set(unit.facts) == {"file", "number", "sha256", "split"}


def test_nothing_is_written_over(written):
    _, folder, out = written
    with pytest.raises(FileExistsError, match="out: exists; remove it"):
        write_jsonl(folder, out)
    with pytest.raises(FileNotFoundError, match="not a finished record folder"):
        write_jsonl(out, out.parent / "nothing")
    assert not (out.parent / "nothing").exists()


# --- made by hand -------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "hand"
    root.mkdir()
    (root / "a.png").write_bytes(encode(np.random.default_rng(0).integers(0, 255, (20, 30))))
    (root / "m.png").write_bytes(encode(np.eye(20, 30) * 255))
    (root / "turned.png").write_bytes(encode(np.eye(30, 20) * 255))
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:-40])
    (root / "cut_mask.png").write_bytes((root / "a.png").read_bytes()[:-60])
    (root / "lossy.jpg").write_bytes(encode(np.eye(20, 30) * 255, "JPEG"))
    return root


def line(**fields):
    return {"images": ["a.png"], "question": "Q?", "answer": "A."} | fields


def write(root, *rows):
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "records.jsonl").write_text("\n".join(texts), encoding="utf-8")


def test_little_is_needed(root):
    write(root, line(), line(id="x", metadata={"group": "g"}, masks=["m.png"], chain=["One.", "Two."]))
    records, rejected = read_all(Exchange(root, licence="CC0-1.0"))
    assert rejected == []
    assert records[0] == Record(
        "hand/records.jsonl:1", ((root / "a.png").read_bytes(),), "Q?", "A.",
        metadata={"source": "hand", "licence": "CC0-1.0", "group": "hand/a.png"},
    )  # fmt: skip
    assert (records[1].id, records[1].metadata, records[1].latent_steps) == ("x", {"group": "g"}, 2)


def test_a_changed_line_changes_its_unit_and_no_other(root):
    write(root, line(id="a"), "broken", line(id="b"))
    before = Exchange(root).units()
    write(root, line(id="a"), line(id="mended", answer="It is longer than what stood here."), line(id="b"))
    after = Exchange(root).units()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert [record.id for record in read_all(Exchange(root))[0]] == ["a", "mended", "b"]
    write(root, line(id="a"), line(id="mended", answer="It is longer than what stood HERE."), line(id="b"))
    assert [old == new for old, new in zip(after, Exchange(root).units(), strict=True)] == [True, False, True]


BAD = [
    ("{", "bad-line", "not a JSON object"),
    ("7", "bad-line", "not a JSON object"),
    ('{"a":' * 100000, "bad-line", "not a JSON object"),
    ({"images": ["a.png"], "question": "Q?"}, "bad-line", "answer missing"),
    (line(images=[]), "bad-line", "images missing"),
    (line(images="a.png"), "bad-line", "images must be a list of texts"),
    (line(images=[3]), "bad-line", "images must be a list of texts"),
    (line(masks=3), "bad-line", "masks must be a list of texts"),
    (line(chain="one step"), "bad-line", "chain must be a list of texts"),
    (line(answr="A."), "bad-line", "unknown field 'answr'"),
    (line(answer=4), "bad-line", "answer must be a non-empty string"),
    (line(question="  "), "bad-line", "question must be a non-empty string"),
    (line(gold="C", options=["a", "b"]), "bad-line", "gold 'C'"),
    (line(boxes=[[0.5, 0, 0.2, 1]]), "bad-line", "must be .x_min"),
    (line(boxes=[["a", 0, 1, 1]]), "bad-line", "could not convert"),
    (line(boxes=[3]), "bad-line", "boxes must be a list of boxes"),
    (line(metadata=3), "bad-line", "metadata must be a dict"),
    (line(metadata={"group": 3}), "bad-line", "group.* has the wrong type"),
    (line(metadata={"latent_steps": 3}, chain=["s"]), "bad-line", "latent_steps"),
    (line(format_version=99), "bad-line", "install a newer vital_jax"),
    (line(id="a\nb"), "bad-line", "printable"),
    (line(id="first"), "duplicate-id", "id 'first' is that of records.jsonl:1 too"),
    (line(masks=["m.png", "m.png"]), "bad-line", "2 masks for 1 images"),
    (line(step_masks=["m.png"]), "bad-line", "1 step_masks for a chain of 0 steps"),
    (line(step_masks="m.png", chain=["One."]), "bad-line", "step_masks must be a list of texts"),
    (line(images=["../a.png"]), "path-escape", "'../a.png' leads out"),
    (line(images=["/etc/hostname"]), "path-escape", "leads out"),
    (line(masks=["/etc/hostname"]), "path-escape", "leads out"),
]


@pytest.mark.parametrize(("row", "code", "reason"), BAD)
def test_a_mistake_costs_its_line_only(root, row, code, reason):
    write(root, line(id="first"), row, "", line(id="last"))
    records, (found,) = read_all(Exchange(root))
    assert [record.id for record in records] == ["first", "last"]
    assert found[:2] == (code, "records.jsonl:2")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found[2])


@pytest.mark.parametrize(
    ("fields", "code", "file"),
    [
        ({"images": ["lost.png"]}, "missing-file", "lost.png"),
        ({"images": ["cut.png"]}, "unreadable-image", "cut.png"),
        ({"masks": ["lost.png"]}, "missing-file", "lost.png"),
        ({"masks": ["cut_mask.png"]}, "unreadable-mask", "cut_mask.png"),
        ({"masks": ["lossy.jpg"]}, "unreadable-mask", "lossy.jpg"),
        ({"masks": ["turned.png"]}, "size-mismatch", "turned.png"),
        ({"step_masks": ["m.png", "turned.png"], "chain": ["One.", "Two."]}, "size-mismatch", "turned.png"),
    ],
)
def test_a_broken_file_costs_its_line_only(root, fields, code, file):
    write(root, line(id="first"), line(**fields), line(id="last"))
    records, rejected = read_all(Exchange(root))
    assert [record.id for record in records] == ["first", "last"]
    assert [reason[:2] for reason in rejected] == [(code, file)]


def test_a_folder_without_records(root):
    with pytest.raises(FileNotFoundError, match=r"no records-\*.jsonl"):
        Exchange(root).units()
