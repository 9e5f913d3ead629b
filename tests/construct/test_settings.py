"""What `vital data build` is told: every mistake is one line before anything is read, and nothing that is not its own is replaced."""

import json
import shutil

import pytest
from drawn import draw_folder

from vital_jax.cli import main
from vital_jax.construct import cut, factory
from vital_jax.construct.exchange import write_jsonl
from vital_jax.construct.settings import Settings

SOURCE = '[[source]]\npath = "set"\n'


@pytest.fixture
def work(tmp_path):
    """A folder with a source of six images."""
    draw_folder(tmp_path / "set", 6, seed=3)
    return tmp_path


def build(work, *flags):
    return main(["data", "build", str(work / "out"), "--jobs=1", *flags])


@pytest.mark.parametrize(
    "values", [{"questions": True}, {"seed": False}, {"val": float("nan")}, {"test": float("nan")}]
)
def test_values_that_only_look_right(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'answers = 3\nteacher = "replay"\n{SOURCE}', "answers is the name of a file, not 3"),
        (f'answers = "nope.jsonl"\nteacher = "replay"\n{SOURCE}', "nope.jsonl: no recorded answers here"),
        (f"val = nan\n{SOURCE}", "shares must be between 0 and 1"),
        (f'{SOURCE}min_area = "40"', "option min_area is a whole number, not '40'"),
        (f"{SOURCE}complete = 1", "option complete is true or false, not 1"),
        (f"{SOURCE}licence = 3", "option licence is text, not 3"),
        (f'{SOURCE}targets = "mine.json"', "has no option 'targets'"),
        (f'{SOURCE}name = "two\\nlines"', "cannot be a folder's name"),
    ],
)
def test_a_plan_of_wrong_types_is_one_line(work, capsys, monkeypatch, text, message):
    monkeypatch.setattr(cut, "cut", lambda *_: pytest.fail("read before the plan was checked"))
    (work / "plan.toml").write_text(text)
    assert build(work, "--plan", str(work / "plan.toml")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vital data build: ") and message in line


def test_flags_that_are_no_numbers(work, capsys):
    for flag, message in (
        ("--jobs=0", "'0' is not a whole number"),
        ("--shard=3/3", "not I/N"),
        ("--shard=0/0", "not I/N"),
    ):
        with pytest.raises(SystemExit):
            build(work, f"--source={work / 'set'}", flag)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="jobs 0: at least one"):
        factory.build(work / "out", [work / "set"], jobs=0)
    assert build(work, "--plan", str(work)) == 2
    assert "no plan file here" in capsys.readouterr().err
    assert not (work / "out").exists()


def test_a_plan_that_lacks_something_is_named(work, capsys):
    (work / "out").mkdir()
    for plan in ({"version": 1}, {"version": 1, "sources": 3}, [], {"version": 1, "sources": [{"path": "set"}]}):
        (work / "out/plan.json").write_text(json.dumps(plan))
        assert build(work) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "plan.json: not a plan" in line and "remove it" in line


def test_a_folder_of_records_that_is_not_ours_is_left_alone(work, capsys):
    (work / "out/records").mkdir(parents=True)
    (work / "out/records/notes.txt").write_text("mine")
    assert build(work, f"--source={work / 'set'}") == 2
    assert "not made by `vital data build`" in capsys.readouterr().err
    assert (work / "out/records/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("lost", ["records/metadata.json", "records/index-train.jsonl", "records", "records.json"])
def test_records_of_which_something_is_lost_are_written_again(work, lost):
    given = dict(shown=False, questions=1, val=0, test=0)
    factory.build(work / "out", [work / "set"], **given)
    whole = {path.name: path.read_bytes() for path in (work / "out/records").iterdir()}
    gone = work / "out" / lost
    if lost == "records.json":
        gone.write_text("")  # as a full disk leaves it
    elif gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    factory.build(work / "out", [work / "set"], **given)
    assert {path.name: path.read_bytes() for path in (work / "out/records").iterdir()} == whole
    assert not list((work / "out").glob(".*tmp"))


def test_a_set_beside_its_own_export_is_kept_once(work):
    given = dict(shown=False, questions=2, val=0, test=0)
    first = factory.build(work / "out", [work / "set"], **given)
    write_jsonl(first.records, work / "export")
    both = factory.build(work / "both", [work / "set", work / "export"], **given)
    assert both.counts == first.counts and both.set_aside == first.counts["train"] + first.set_aside
    rows = [json.loads(line) for line in (work / "both/rejects.jsonl").read_text().splitlines()]
    assert {row["code"] for row in rows if row["source"] == "export"} == {"duplicate-id"}
