"""The store of cut samples: what goes in comes out, parts are whole or absent, and the same thing is there once."""

import json
import shutil
from dataclasses import replace
from zipfile import ZipFile

import pytest

from vital_jax.construct.build import encode_mask
from vital_jax.construct.measure import look
from vital_jax.construct.parts import Parts, new_part, record_row, sample_of, sample_row, source_folder
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.records import FILES, Record


@pytest.fixture
def samples():
    """Drawn ones, with masks encoded as records hold them."""
    drawn = list(phantoms(2, seed=3, size=64))
    masks = {sample.mask: encode_mask(sample) for sample in drawn}
    near = [tuple((name, masks[mask]) for name, mask in sample.neighbours) for sample in drawn]
    return [replace(s, mask=masks[s.mask], neighbours=pairs) for s, pairs in zip(drawn, near, strict=True)]


def fill(folder, samples, rejects=()):
    """One unit per image, in one part."""
    with new_part(folder) as writer:
        for name in dict.fromkeys(sample.group for sample in samples):
            for sample in (sample for sample in samples if sample.group == name):
                writer.item(sample_row(sample, look(sample), writer, encode_mask(sample), dict(sample.neighbours)))
            writer.close_unit(name, "mark", "files", "content", rejects)


def test_samples_and_measurements_come_back_equal(tmp_path, samples):
    fill(tmp_path / "set", samples)
    parts, found = Parts(tmp_path), []
    for unit, entry in parts.entries("set"):
        rows = list(parts.items(entry))
        assert {row["group"] for row in rows} == {unit} and entry.items == len(rows)
        found += [(sample_of(row, (parts, entry.part)), sample_of(row)) for row in rows]
    assert len(found) == len(samples) >= 4
    for ((again, facts), (bare, same_facts)), sample in zip(found, samples, strict=True):
        assert again == sample and facts == same_facts == look(sample)
        assert bare.image == bare.mask == b"" and bare.present == sample.present
    parts.close()


def test_a_file_is_kept_once_and_a_part_once(tmp_path, samples):
    fill(tmp_path / "set", samples)
    (part,) = (tmp_path / "set").iterdir()
    names = ZipFile(part / "files.zip").namelist()
    assert len(set(names)) == len(names) == len({data for s in samples for data in (s.image, s.mask)})
    before = part.stat().st_mtime_ns
    fill(tmp_path / "set", samples)
    assert [path.name for path in (tmp_path / "set").iterdir()] == [part.name] and part.stat().st_mtime_ns == before
    other = samples[:1]
    fill(tmp_path / "set", other)
    assert len(list((tmp_path / "set").iterdir())) == 2


def test_a_part_that_was_not_finished_leaves_nothing(tmp_path, samples):
    with pytest.raises(RuntimeError), new_part(tmp_path / "set") as writer:
        writer.put(b"image")
        raise RuntimeError
    assert list((tmp_path / "set").iterdir()) == []
    assert list(Parts(tmp_path).entries("set")) == list(Parts(tmp_path).entries("absent")) == []


@pytest.mark.parametrize("name", ["files.zip", "items.jsonl", "units.jsonl", "part.json"])
def test_a_part_cut_short_does_not_count(tmp_path, samples, name):
    fill(tmp_path / "set", samples)
    (part,) = (tmp_path / "set").iterdir()
    (part / name).write_bytes((part / name).read_bytes()[:-1])
    parts = Parts(tmp_path)
    assert list(parts.entries("set")) == [] and parts.broken == [part]
    fill(tmp_path / "set", samples)  # made again in its place
    assert len(list(Parts(tmp_path).entries("set"))) == 2


def test_bytes_changed_later_are_noticed(tmp_path, samples):
    fill(tmp_path / "set", samples)
    parts = Parts(tmp_path)
    _, entry = next(parts.entries("set"))
    row = next(parts.items(entry))
    data = (entry.part / "files.zip").read_bytes()
    place = data.index(samples[0].image) + 60
    (entry.part / "files.zip").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"damaged .*remove this folder, and the next run makes it again"):
        parts.read(entry.part, row["image"])
    parts.close()


def test_dropped_items_and_rejects(tmp_path, samples):
    rejects = [
        {"code": "small-mask", "file": "a.png", "reason": "of 3 pixels"},
        {"code": "bad-line", "file": "b", "reason": "?"},
    ]
    with new_part(tmp_path / "set") as writer:
        writer.item({"kind": "picture"})
        writer.drop()
        writer.close_unit("one", "m", "f", "c", rejects)
        writer.item({"kind": "picture", "ü": 1})
        writer.close_unit("two", "m", "f", "c", ())
    parts = Parts(tmp_path)
    held = dict(parts.entries("set"))
    assert held["one"].codes == ("bad-line", "small-mask") and parts.rejects(held["one"]) == rejects
    assert list(parts.items(held["one"])) == [] and list(parts.items(held["two"])) == [{"kind": "picture", "ü": 1}]
    assert held["two"].codes == () and parts.rejects(held["two"]) == []


def test_finished_records_keep_every_field(tmp_path):
    record = Record(
        "r", (b"i",), "Q?", "A.", ("Step.",), ("a", "b"), "B", ((0.1, 0.2, 0.3, 0.4),), (b"m",), {"group": "g"}, (b"s",)
    )
    with new_part(tmp_path / "set") as writer:
        writer.item(record_row(record, writer))
        writer.close_unit("r", "m", "f", "c", ())
    parts = Parts(tmp_path)
    (_, entry), = parts.entries("set")  # fmt: skip
    (row,) = parts.items(entry)
    files = {key: [parts.read(entry.part, name) for name in row[key]] for key in FILES}
    assert Record(**row["fields"], **files) == record
    parts.close()


def test_many_parts_are_read_with_few_files_open(tmp_path, samples, monkeypatch):
    monkeypatch.setattr("vital_jax.construct.parts._OPEN", 2)
    for number in range(5):
        with new_part(tmp_path / "set") as writer:
            name = writer.put(b"%d" % number)
            writer.item({"name": name})
            writer.close_unit(str(number), "m", "f", "c", ())
    parts = Parts(tmp_path)
    for unit, entry in list(parts.entries("set")) * 2:
        (row,) = parts.items(entry)
        assert parts.read(entry.part, row["name"]) == unit.encode() and len(parts._zips) <= 2
    parts.close()


def test_merged_folders_hold_both(tmp_path, samples):
    for number, share in enumerate((samples[:2], samples[2:])):
        fill(tmp_path / f"{number}" / "set", share)
        shutil.copytree(tmp_path / f"{number}", tmp_path / "all", dirs_exist_ok=True)
    assert sum(entry.items for _, entry in Parts(tmp_path / "all").entries("set")) == len(samples)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b"])
def test_names_that_are_no_folders(tmp_path, name):
    with pytest.raises(ValueError, match=r"cannot be a folder's name"):
        source_folder(tmp_path, name)


def test_lines_are_plain_json(tmp_path, samples):
    fill(tmp_path / "set", samples)
    (part,) = (tmp_path / "set").iterdir()
    for line in (part / "items.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["kind"] == "sample"
