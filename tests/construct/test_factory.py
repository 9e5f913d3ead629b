"""The factory: the same records however it was run and however often it was killed; what fails is set aside and mended alone."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_folder
from PIL import Image

from vital_jax.cli import main
from vital_jax.construct import cut, factory, gate, parts, teacher
from vital_jax.construct.audit import write_rejects
from vital_jax.construct.distill.store import Attempt, Store
from vital_jax.construct.exchange import write_jsonl
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.report import EXPECTED
from vital_jax.construct.teacher import Lesson
from vital_jax.pipeline.records import METADATA_TYPES, RecordSource

SHARES = {"val": 0.2, "test": 0.2}
FAST = dict(shown=False, questions=3, **SHARES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two folders: one with patients of several images, and one with a copy of an image of the first."""
    root = tmp_path_factory.mktemp("corpus")
    draw_folder(root / "first", 14, seed=1, patients=7)
    draw_folder(root / "second", 6, seed=2)
    row = json.loads((root / "second/manifest.jsonl").read_text().splitlines()[0])
    Image.open(root / "first/images/0.png").convert("RGB").save(root / "second" / row["image"])
    return root


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    """The set of `corpus`, built at one go by one process."""
    out = tmp_path_factory.mktemp("built") / "out"
    return out, factory.build(out, [corpus], **FAST)


def records(out):
    """Split -> records."""
    splits = sorted(path.stem.removeprefix("index-") for path in (out / "records").glob("index-*.jsonl"))
    return {split: list(RecordSource(out / "records", split)) for split in splits}


def outputs(out):
    """Everything that has to be equal byte for byte, whatever happened on the way."""
    found = {path.name: path.read_bytes() for path in [*(out / "records").iterdir(), out / "rejects.jsonl"]}
    found["report"] = (out / "report.md").read_text().split("## Throughput")[0]
    return found


def rejects(out):
    """What was set aside, without what a rule of the paper leaves out."""
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return [row for row in rows if row["code"] not in EXPECTED]


def count_reads(monkeypatch):
    """A list that grows by the id of each unit that is read."""
    read, original = [], MaskFolder.read
    monkeypatch.setattr(MaskFolder, "read", lambda self, unit: read.append(unit.id) or original(self, unit))
    return read


# --- the set -------------------------------------------------------------------------------------------


def test_the_set(built, corpus):
    out, result = built
    found = records(out)
    assert result.records == out / "records" and result.waiting == result.set_aside == 0
    assert result.counts == {split: len(rows) for split, rows in found.items()} and set(found) == {
        "train",
        "val",
        "test",
    }
    every = [(split, record) for split, rows in found.items() for record in rows]
    samples = {sample.id for name in ("first", "second") for sample in MaskFolder(corpus / name)}
    assert {record.id.removesuffix("/closed").rpartition("/")[0] for _, record in every} == samples
    assert len({record.id for _, record in every}) == len(every) > 100
    sides, images = defaultdict(set), defaultdict(set)
    for split, record in every:
        sides[record.metadata["group"]].add(split)
        images[sha256(record.images[0]).digest()].add(split)
        assert record.metadata["teacher"] == teacher.TEACHER and record.metadata["gate"] == f"gate-{gate.version()}"
        assert record.metadata["form"] == "open" or split in ("val", "test")
        assert len(record.chain) == record.latent_steps and record.metadata["orientation"] == "image"
        assert record.metadata.keys() <= METADATA_TYPES.keys()
    assert all(len(found) == 1 for found in (*sides.values(), *images.values()))
    assert len(sides) == 7 + 6 and sides["first/patient-0"] == sides["second/0"]  # the copied image joins them
    assert sum(record.metadata["form"] == "closed" for _, record in every) > 5
    report = (out / "report.md").read_text()
    for text in ("not a medical device", "| first |", "1 groups were united", "| train |", "| ask |", "| write |"):
        assert text in report
    assert json.loads((out / "plan.json").read_text())["val"] == 0.2


def test_closed_questions_are_balanced_within_a_split(tmp_path, corpus):
    factory.build(tmp_path, [corpus], **FAST | dict(form="closed", questions=6))
    counts = defaultdict(Counter)
    for split, rows in records(tmp_path).items():
        for record in rows:
            letters = dict.fromkeys("ABCD"[: len(record.options)], 0)
            counts[split, record.metadata["ask"]].update(letters | {record.gold: 1})
    assert counts and all(max(found.values()) - min(found.values()) <= 2 for found in counts.values())


def test_a_second_run_does_nothing(built, corpus, monkeypatch, capsys):
    out, _ = built
    read = count_reads(monkeypatch)
    before = {path: path.stat().st_mtime_ns for name in ("records", "samples") for path in (out / name).rglob("*")}
    monkeypatch.setattr(factory, "write_splits", None)
    result = factory.build(out, [corpus], **FAST | dict(shown=True))
    assert result.counts and read == []
    assert before == {
        path: path.stat().st_mtime_ns for name in ("records", "samples") for path in (out / name).rglob("*")
    }
    assert "the records are there" in capsys.readouterr().err


def test_what_the_audit_rejected_is_left_out(built, corpus, tmp_path):
    shutil.copytree(built[0], tmp_path / "out")
    every = [record.id for rows in records(tmp_path / "out").values() for record in rows]
    write_rejects(tmp_path / "out", {every[3]: "leak", every[7]: "accept"})
    result = factory.build(tmp_path / "out", [corpus], **FAST)
    left = [record.id for rows in records(tmp_path / "out").values() for record in rows]
    assert left == [each for each in every if each != every[3]] and result.set_aside == 1
    (reject,) = rejects(tmp_path / "out")
    assert (reject["file"], reject["code"], reject["stage"]) == (every[3], "audit-leak", "audit")


def test_processes_and_shards_make_the_same(built, corpus, tmp_path, monkeypatch):
    expected = outputs(built[0])
    monkeypatch.setattr(cut, "CHUNK_UNITS", 3)
    factory.build(tmp_path / "jobs", [corpus], jobs=2, **FAST)
    assert outputs(tmp_path / "jobs") == expected
    for number in (2, 0, 1):
        out = tmp_path / f"shard{number}"
        result = factory.build(out, [corpus], shard=(number, 3), **FAST)
        assert result.records is None and not (out / "records").exists()
        shutil.copytree(out / "samples", tmp_path / "merged/samples", dirs_exist_ok=True)
    read = count_reads(monkeypatch)
    factory.build(tmp_path / "merged", [corpus], **FAST)
    assert outputs(tmp_path / "merged") == expected and read == []
    with pytest.raises(ValueError, match=r"shard 3/3: the first of 3 is 0/3 and the last 2/3"):
        factory.build(tmp_path / "x", [corpus], shard=(3, 3), **FAST)


# --- killed --------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from vital_jax.construct import cut, factory, parts
cut.CHUNK_UNITS = 2
def slowly(function):
    return lambda *given: (time.sleep(0.04), function(*given))[1]
parts.Writer.close_unit = slowly(parts.Writer.close_unit)
factory._Run._pairs = (lambda pairs: lambda *given: (time.sleep(0.02) or pair for pair in pairs(*given)))(factory._Run._pairs)
if __name__ == "__main__":
    from vital_jax.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("moment", "jobs"),
    [("samples/first/[!.]*/part.json", 1), ("samples/second/[!.]*/part.json", 2), (".records.next.*/index-*.jsonl", 1)],
)
def test_a_kill_at_any_moment_costs_nothing(built, corpus, tmp_path, moment, jobs):
    out, script = tmp_path / "out", tmp_path / "slow.py"
    script.write_text(SLOW)
    flags = [f"--{key}={value}" for key, value in (FAST | {"jobs": jobs}).items() if key != "shown"]
    command = [sys.executable, str(script), "data", "build", str(out), f"--source={corpus}", *flags]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not any(out.glob(moment)):
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    workers = children(running.pid) if jobs > 1 else []
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL and not (out / "records").exists()
    # A worker ends with its parent: nobody is left writing into the folder.
    for worker in workers:
        while Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
            time.sleep(0.02)
    factory.build(out, [corpus], **FAST)
    assert outputs(out) == outputs(built[0])
    left = [path for path in out.rglob("*") if ".tmp" in path.name or "next" in path.name]
    assert left == []


def test_ctrl_c_stops_at_once_and_keeps_what_is_done(built, corpus, tmp_path):
    out, script = tmp_path / "out", tmp_path / "slow.py"
    script.write_text(SLOW.replace("0.04", "2"))  # where a busy machine looks late, there is still something to stop
    flags = [f"--{key}={value}" for key, value in (FAST | {"jobs": 2}).items() if key != "shown"]
    command = [sys.executable, str(script), "data", "build", str(out), f"--source={corpus}", *flags]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any(out.glob("samples/*/[!.]*/part.json")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGINT)
    told = running.communicate()[1]
    assert running.returncode == 130 and "the same command goes on" in told and "Traceback" not in told
    factory.build(out, [corpus], **FAST)
    assert outputs(out) == outputs(built[0])


# --- what fails ----------------------------------------------------------------------------------------


def test_bad_files_are_set_aside_and_mended_alone(corpus, tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(corpus / "first", root)
    whole = {name: (root / name).read_bytes() for name in ("images/3.png", "images/5.png")}
    (root / "images/3.png").write_bytes(whole["images/3.png"][:200])
    (root / "images/5.png").unlink()
    mask = next((root / "masks").glob("7_*.png"))
    whole[f"masks/{mask.name}"] = mask.read_bytes()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(mask)
    command = ["data", "build", str(out), "--source", str(root), "--jobs=1", "--val=0.2", "--test=0.2", "--questions=3"]
    assert main(command) == 1
    told = capsys.readouterr()
    found = {(row["code"], row["file"]) for row in rejects(out)}
    expected = [
        ("unreadable-image", "images/3.png"),
        ("missing-file", "images/5.png"),
        ("empty-mask", f"masks/{mask.name}"),
    ]
    assert found == set(expected) and all(row["stage"] == "cut" and row["source"] == "first" for row in rejects(out))
    assert "3 set aside" in told.out and all(f"first/{file}: " in told.err for _, file in expected)
    # Nothing is read while nothing changed; what was mended is read, and only that.
    read = count_reads(monkeypatch)
    assert main(command) == 1 and read == []
    for name, data in whole.items():
        (root / name).write_bytes(data)
    assert main(command) == 0
    assert set(read) == {"3", "5", "7"} and rejects(out) == []
    factory.build(tmp_path / "fresh", [root], **FAST)
    assert outputs(out) == outputs(tmp_path / "fresh")
    # Touched, but the same: looked at, not read again.
    read.clear()
    os.utime(root / "images/3.png", ns=(1, 1))
    assert main(command) == 0 and read == []


def test_a_reader_that_stumbles_costs_one_unit_and_is_asked_again(corpus, tmp_path, monkeypatch):
    original = MaskFolder.read

    def stumble(self, unit):
        found = original(self, unit)
        yield next(found)
        if unit.id == "2":
            raise KeyError("surprise")
        yield from found

    with monkeypatch.context() as patch:
        patch.setattr(MaskFolder, "read", stumble)
        result = factory.build(tmp_path, [corpus / "first"], **FAST)
    assert result.set_aside == 1 and [row["code"] for row in rejects(tmp_path)] == ["reader-failed"]
    assert "KeyError" in rejects(tmp_path)[0]["reason"] and rejects(tmp_path)[0]["unit"] == "2"
    assert not any("first/2/" in record.id for rows in records(tmp_path).values() for record in rows)
    read = count_reads(monkeypatch)
    assert factory.build(tmp_path, [corpus / "first"], **FAST).set_aside == 0 and read == ["2"]


def test_a_full_disk_is_one_line_and_state_is_kept(built, corpus, tmp_path, monkeypatch, capsys):
    command = [
        "data",
        "build",
        str(tmp_path),
        "--source",
        str(corpus),
        "--jobs=1",
        "--val=0.2",
        "--test=0.2",
        "--questions=3",
    ]
    original, number = parts.Writer.put, iter(range(1000))

    def full(self, data):
        if next(number) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(cut, "CHUNK_UNITS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(parts.Writer, "put", full)
        assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "the disk is full" in lines[0]
    kept = len(list(tmp_path.glob("samples/*/*/part.json")))
    assert kept > 0 and not list(tmp_path.glob("samples/*/.*"))
    assert main(command) == 0
    assert outputs(tmp_path) == outputs(built[0])


def test_a_chain_that_breaks_a_rule_is_rejected(corpus, tmp_path, monkeypatch):
    original = teacher.teach

    def leaky(question, *rest):
        lesson = original(question, *rest)
        if question.type != "location":
            return lesson
        return Lesson(("The red overlay shows it.", *lesson.chain[1:]), lesson.answer, lesson.slots)

    monkeypatch.setattr("vital_jax.construct.asking.teach", leaky)
    result = factory.build(tmp_path, [corpus / "first"], **FAST)
    found = rejects(tmp_path)
    assert {row["code"] for row in found} == {"leak"} and {row["stage"] for row in found} == {"gate"}
    assert result.set_aside == len(found) > 3 and all("overlay" in row["reason"] for row in found)
    kinds = {record.metadata["question_type"] for rows in records(tmp_path).values() for record in rows}
    assert "location" not in kinds and len(kinds) >= 3


def test_one_id_in_two_sources_is_kept_once(corpus, tmp_path):
    factory.build(tmp_path / "out", [corpus / "first"], **FAST)
    for name in ("one", "two"):
        write_jsonl(tmp_path / "out/records", tmp_path / name)
    result = factory.build(tmp_path / "both", [tmp_path / "one", tmp_path / "two"], **FAST)
    assert Counter(row["code"] for row in rejects(tmp_path / "both")) == {"duplicate-id": sum(result.counts.values())}


# --- settings ------------------------------------------------------------------------------------------


def test_other_settings_are_an_error_that_names_them(built, corpus, capsys):
    out, _ = built
    with pytest.raises(ValueError, match=r"plan.json was made with another questions, seed; give the same"):
        factory.build(out, [corpus], **FAST | dict(questions=2, seed=5))
    with pytest.raises(ValueError, match=r"was made with other sources \(second is not given\); give the same"):
        factory.build(out, [corpus / "first"], **FAST)
    assert main(["data", "build", str(out), "--seed=5"]) == 2
    assert "another seed" in capsys.readouterr().err
    assert main(["data", "build", str(out), "--jobs=1"]) == 0  # as it was planned


def test_a_plan_file(corpus, tmp_path, capsys):
    shutil.copytree(corpus / "first", tmp_path / "data/first")
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(
        'questions = 2\n[[source]]\npath = "data/first"\nkind = "manifest"\nlicence = "CC0-1.0"\nmin_area = 150\n'
    )
    assert main(["data", "build", str(out), "--plan", str(plan), "--jobs=1", "--seed=7"]) in (0, 1)
    kept = json.loads((out / "plan.json").read_text())
    assert (kept["questions"], kept["seed"], kept["sources"][0]["options"]) == (
        2,
        7,
        {"licence": "CC0-1.0", "min_area": 150},
    )
    assert all(record.metadata["licence"] == "CC0-1.0" for rows in records(out).values() for record in rows)
    assert main(["data", "build", str(out), "--jobs=1"]) in (0, 1)
    capsys.readouterr()
    for text, message in (
        ("question = 2", "unknown key 'question'; did you mean 'questions'?"),
        ("questions = ", "not TOML"),
        ('source = "x"', r"tables [[source]], each with a path"),
        ('teacher = "endpiont"\n[[source]]\npath = "data/first"', "did you mean 'endpoint'?"),
        ('[[source]]\npath = "data/first"\nmin_are = 3', "no option 'min_are'"),
        ('[[source]]\npath = "nowhere"', "no such folder"),
        ("seed = 1", "no source"),
        ('teacher = "replay"\n[[source]]\npath = "data/first"', "give both or neither"),
        ('val = 0.9\ntest = 0.2\n[[source]]\npath = "data/first"', "shares must be between 0 and 1"),
        ('questions = 7\n[[source]]\npath = "data/first"', "questions must be 1..6"),
    ):
        plan.write_text(text)
        assert main(["data", "build", str(tmp_path / "other"), "--plan", str(plan), "--jobs=1"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line, line


def test_two_runs_in_one_folder_are_held_apart(built, corpus, capsys):
    out, _ = built
    with factory._alone(out):
        assert main(["data", "build", str(out), "--jobs=1"]) == 2
    assert "another run is at work here" in capsys.readouterr().err


def test_what_was_made_for_records_is_not_thrown_away(corpus, tmp_path):
    shutil.copytree(corpus / "first", tmp_path / "first")
    out = tmp_path / "out"
    factory.build(out, [tmp_path / "first"], **FAST)
    (out / "records/features").mkdir()
    factory.build(out, [tmp_path / "first"], **FAST)  # the same records: all stays
    (tmp_path / "first/images/4.png").unlink()
    with pytest.raises(ValueError, match=r"features in it was made for the old ones; move or remove"):
        factory.build(out, [tmp_path / "first"], **FAST)
    (out / "records/features").rmdir()
    assert factory.build(out, [tmp_path / "first"], **FAST).set_aside == 1
    assert not any("first/4/" in record.id for rows in records(out).values() for record in rows)


# --- teachers and finished records ---------------------------------------------------------------------


def replies(out):
    """Task id -> a reply that passes, made of the measured set's record of the same id."""
    return {record.id: record for rows in records(out).values() for record in rows if record.metadata["form"] == "open"}


def test_an_endpoint_is_asked_through_the_store(built, corpus, tmp_path, capsys):
    good = replies(built[0])
    command = [
        "data",
        "build",
        str(tmp_path),
        "--source",
        str(corpus),
        "--teacher=endpoint",
        "--jobs=1",
        "--questions=3",
    ]
    command += ["--val=0.2", "--test=0.2"]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert f"{len(good)} questions wait" in told and f"vital data distill run {tmp_path}" in told
    assert not (tmp_path / "records").exists() and "Not finished" in (tmp_path / "report.md").read_text()
    with Store(tmp_path / "distill.sqlite") as store:
        waiting = store.pending("p", "m")
        assert set(waiting) == set(good)
        task = store.task(waiting[0])
        assert task.image == good[waiting[0]].images[0] and task.question == good[waiting[0]].question
        for number, name in enumerate(waiting):
            lesson = Lesson(good[name].chain, good[name].answer, ())
            status = "dropped" if number < 2 else "accepted"
            store.record(Attempt(name, "p", "m", str(number), status, lesson=lesson if number >= 2 else None))
    assert main(command) == 1
    found = {record.id: record for rows in records(tmp_path).values() for record in rows}
    opened = {name: record for name, record in found.items() if record.metadata["form"] == "open"}
    assert set(opened) == set(waiting[2:]) and {record.metadata["teacher"] for record in opened.values()} == {"m"}
    assert all(
        (record.chain, record.answer) == (good[name].chain, good[name].answer) for name, record in opened.items()
    )
    closed = [record for name, record in found.items() if name not in opened]
    assert closed and {record.metadata["teacher"] for record in closed} == {teacher.TEACHER}
    assert [(row["file"], row["code"], row["stage"]) for row in rejects(tmp_path)] == [
        (name, "teacher-gave-up", "teach") for name in waiting[:2]
    ]


def test_recorded_answers_are_replayed(built, corpus, tmp_path):
    good, answers = replies(built[0]), tmp_path / "answers.jsonl"
    rows = [{"id": name, "final_answer": r.answer, "reasoning_chain": list(r.chain)} for name, r in good.items()]
    rows[0]["reasoning_chain"][0] = "The segmentation mask shows it."
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    settings = FAST | dict(teacher="replay", answers=str(answers))
    result = factory.build(tmp_path / "out", [corpus], **settings)
    assert result.set_aside == 2 and result.waiting == 0
    assert {(row["file"], row["code"]) for row in rejects(tmp_path / "out")} == {
        (rows[0]["id"], "teacher-gave-up"),
        (rows[-1]["id"], "no-answer"),
    }
    assert set(replies(tmp_path / "out")) == {row["id"] for row in rows[1:-1]}


def test_questions_without_masks_and_finished_records_go_in(built, corpus, tmp_path):
    write_jsonl(built[0] / "records", tmp_path / "data/finished")
    lines = [{"image": f"images/{i}.png", "question": "Which plane?", "answer": "axial"} for i in range(8)]
    shutil.copytree(corpus / "first/images", tmp_path / "data/vqa/images")
    (tmp_path / "data/vqa/questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = factory.build(tmp_path / "out", [tmp_path / "data"], **FAST)
    found = records(tmp_path / "out")
    # The split of finished records is an official one, which their metadata keep.
    before = {record.id: replace(record, metadata=record.metadata | {"source_split": split})
              for split, rows in records(built[0]).items() for record in rows}  # fmt: skip
    after = {record.id: record for rows in found.values() for record in rows}
    assert result.set_aside == 0 and len(after) == len(before) + 8
    assert all(after[name] == record for name, record in before.items())
    images = [{sha256(record.images[0]).digest() for record in rows} for rows in found.values()]
    # An image that both have is on one side, with all its questions.
    assert sum(map(len, images)) == len(set().union(*images))


def test_a_finished_chain_passes_the_gate_too(built, tmp_path):
    write_jsonl(built[0] / "records", tmp_path / "finished")
    path = next((tmp_path / "finished").glob("records-train.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["chain"][0] = "As the annotation shows, it is there."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = factory.build(tmp_path / "out", [tmp_path / "finished"], **FAST)
    assert result.set_aside == 1 and [(r["file"], r["code"]) for r in rejects(tmp_path / "out")] == [
        (rows[0]["id"], "leak")
    ]
