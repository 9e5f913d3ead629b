"""What `vital data build` is told: every mistake is one line before anything is read, nothing that is not its own is replaced, and what was
mended or moved goes on."""

import json
import shutil
import textwrap

import pytest
from drawn import draw_folder

from vital_jax.cli import main
from vital_jax.construct import cut, factory, settings
from vital_jax.construct.audit import write_rejects
from vital_jax.construct.exchange import write_jsonl
from vital_jax.construct.report import EXPECTED
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


def test_the_example_in_the_docstring_is_one(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(textwrap.dedent(settings.__doc__.partition("\n\n    ")[2].join(["    ", ""])))
    sources, told = settings.read_plan_file(plan)
    assert [row["max_slices"] for row in sources if "max_slices" in row] == [4] and len(sources) == 2
    assert told == {"questions": 4, "teacher": "endpoint"}


# --- what may change between runs ----------------------------------------------------------------------


def outputs(out):
    """Records and rejects, byte for byte."""
    return {path.name: path.read_bytes() for path in [*(out / "records").iterdir(), out / "rejects.jsonl"]}


def rejected(out):
    """(source, file, code) of what was set aside, but for what a rule of the paper leaves out."""
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return [(row["source"], row["file"], row["code"]) for row in rows if row["code"] not in EXPECTED]


@pytest.fixture
def read(monkeypatch):
    """A list that grows by the id of each unit that is read."""
    found, original = [], cut._cut
    monkeypatch.setattr(cut, "_cut", lambda job, unit, writer: found.append(unit.id) or original(job, unit, writer))
    return found


def change(work, number, edit):
    """Edits one line of the manifest; returns the text that was there."""
    path = work / "set/manifest.jsonl"
    text = path.read_text()
    lines = text.splitlines()
    row = json.loads(lines[number])
    edit(row)
    path.write_text("\n".join([*lines[:number], json.dumps(row), *lines[number + 1 :]]) + "\n")
    return text


TYPOS = {
    "mask": lambda row: row.update(mask=row.pop("masks")),  # a line for nobody
    "label": lambda row: row.update(label=row.pop("masks")),  # for the reader of volumes
    "suffix": lambda row: row.update(image=row["image"].removesuffix(".png")),  # for the reader of DICOM
}


@pytest.mark.parametrize("again", [("--source",), ()], ids=["given", "planned"])
@pytest.mark.parametrize("typo", TYPOS)
def test_a_manifest_that_is_mended_goes_on(work, capsys, read, typo, again):
    source, few = f"--source={work / 'set'}", ("--questions=2", "--val=0", "--test=0")
    whole = change(work, 3, TYPOS[typo])
    assert build(work, source, *few) == 1
    ((_, _, code),) = rejected(work / "out")
    assert ("perhaps meant as 'masks'" in capsys.readouterr().err) == (typo == "mask") and code in (
        "bad-line",
        "missing-file",
    )
    (work / "set/manifest.jsonl").write_text(whole)
    read.clear()
    assert build(work, *(source for _ in again)) == 0
    assert read == ["3"] and rejected(work / "out") == []
    shutil.move(work / "out", work / "mended")
    assert build(work, source, *few) == 0
    assert outputs(work / "mended") == outputs(work / "out")
    plans = [json.loads((work / name / "plan.json").read_text()) for name in ("mended", "out")]
    assert plans[0] == plans[1] and [row["name"] for row in plans[0]["sources"]] == ["set"]


def test_a_reader_that_comes_to_a_manifest_is_taken(work):
    """The other way round: the plan knew one reader, and a line for another was added."""
    source, few = f"--source={work / 'set'}", ("--questions=2", "--val=0", "--test=0")
    assert build(work, source, *few) == 0
    change(work, 2, TYPOS["suffix"])
    assert build(work) == 1
    assert rejected(work / "out")[0][0] == "set-dicom"


def test_a_broken_line_is_counted_once_however_many_readers_there_are(work):
    with (work / "set/manifest.jsonl").open("a") as file:
        volume = {"id": "v", "modality": "CT", "site": "abdomen", "image": "v.nii.gz", "label": "l.nii.gz"}
        file.write('{"id": "bro\n' + json.dumps(volume) + '\n{"id": "x"}\n')
    assert build(work, f"--source={work / 'set'}", "--val=0", "--test=0", "--questions=1") == 1
    lines = [row for row in rejected(work / "out") if row[2] == "bad-line"]
    assert lines == [("set", "manifest.jsonl:7", "bad-line"), ("set", "manifest.jsonl:9", "bad-line")]
    # A kind that is stated does not lose them.
    with pytest.raises(ValueError, match="no record could be made"):
        factory.build(work / "other", [{"path": work / "set", "kind": "volumes"}], shown=False)
    assert [row[1] for row in rejected(work / "other") if row[2] == "bad-line"] == [
        "manifest.jsonl:7",
        "manifest.jsonl:9",
    ]


def test_a_line_that_goes_costs_nothing_but_itself(work, read):
    path, few = work / "set/manifest.jsonl", ("--questions=2", "--val=0", "--test=0")
    change(work, 4, lambda row: row["masks"][0].update(file="../out.png"))  # its reject names the line
    assert build(work, f"--source={work / 'set'}", *few) == 1
    read.clear()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert build(work) == 1
    assert read == ["4"] and rejected(work / "out")[0][1] == "manifest.jsonl:4"
    shutil.move(work / "out", work / "mended")
    assert build(work, f"--source={work / 'set'}", *few) == 1
    assert outputs(work / "mended") == outputs(work / "out")


def test_what_is_moved_goes_on_and_another_set_does_not(work, capsys, read):
    draw_folder(work / "more", 3, seed=4)
    few = ("--questions=2", "--val=0", "--test=0")
    assert build(work, f"--source={work / 'set'}", f"--source={work / 'more'}", *few) == 0
    whole = outputs(work / "out")
    (work / "away").mkdir()
    for name in ("set", "more", "out"):
        shutil.move(work / name, work / "away" / name)
    away = work / "away"
    capsys.readouterr()
    assert build(away) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{work / 'set'}: set lay here; give all sources with --source" in line
    # A folder of that name with other images is not taken for it, not even by the second try.
    draw_folder(work / "another/set", 6, seed=77)
    before = (away / "out/plan.json").read_bytes()
    for _ in range(2):
        assert build(away, f"--source={work / 'another/set'}", f"--source={away / 'more'}") == 2
        assert f"no file of it is what was read as set in {work / 'set'}" in capsys.readouterr().err
    assert (away / "out/plan.json").read_bytes() == before
    read.clear()
    # Settings are the plan's, in any order of the sources.
    assert build(away, f"--source={away / 'more'}", f"--source={away / 'set'}") == 0
    assert read == [] and outputs(away / "out") == whole
    assert f"set: read from {away / 'set'}, formerly {work / 'set'}" in capsys.readouterr().err
    assert build(away) == 0 and read == []
    plan = json.loads((away / "out/plan.json").read_text())
    assert [row["path"] for row in plan["sources"]] == [str(away / "set"), str(away / "more")]


def test_a_plan_that_does_not_say_how_readers_were_found_is_read(work, read):
    assert build(work, f"--source={work / 'set'}", "--questions=2", "--val=0", "--test=0") == 0
    path = work / "out/plan.json"
    plan = json.loads(path.read_text())
    del plan["sources"][0]["found"]
    path.write_text(json.dumps(plan))
    read.clear()
    assert build(work) == 0 and build(work, f"--source={work / 'set'}") == 0 and read == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "set"}, {"path": "more"}], "more is not in it"),
        ([{"path": "more"}], "set is not given; more is not in it"),
        ([{"path": "set", "min_area": 5}], "set: min_area 100, not 5"),
        ([{"path": "set", "kind": "volumes"}], "set as manifest, not as volumes"),
        ([{"path": "set", "name": "other"}], "set is not given; other is not in it"),
    ],
)
def test_other_sources_are_named(work, monkeypatch, rows, message):
    draw_folder(work / "more", 1, seed=4)
    given = dict(shown=False, questions=1, val=0, test=0)
    factory.build(work / "out", [work / "set"], **given)
    monkeypatch.setattr(cut, "cut", lambda *_: pytest.fail("read before the plan was compared"))
    with pytest.raises(ValueError, match=rf"made with other sources \({message}\); give the same"):
        factory.build(work / "out", [row | {"path": work / row["path"]} for row in rows], **given)


@pytest.mark.parametrize(
    ("out", "source", "what"),
    [
        ("set/out", "set", "OUT lies in the source"),
        ("set", "set", "OUT lies in the source"),
        ("out", "out/set", "set lies in OUT"),
    ],
)
def test_out_and_a_source_lie_apart(work, capsys, out, source, what):
    if source != "set":
        shutil.copytree(work / "set", work / source)
    before = sorted(work.rglob("*"))
    assert main(["data", "build", str(work / out), f"--source={work / source}", "--jobs=1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert what in line and "a folder of its own" in line
    assert sorted(work.rglob("*")) == before


def test_a_split_that_gets_nothing_is_named_with_the_reason(work, capsys):
    for number in range(6):
        change(work, number, lambda row: row.update(group="one patient"))
    assert build(work, f"--source={work / 'set'}", "--questions=1", "--test=0") == 0
    said = "val is empty: its share of 0.075 is too little of 1 groups"
    err, report = capsys.readouterr().err, (work / "out/report.md").read_text()
    assert err.count(said) == 1 and said in report and "a larger --val" not in err and "other --val and --test" in err
    assert "test is empty" not in report and "train is empty" not in report


def test_a_split_whose_records_were_all_set_aside_is_named_too(work, capsys):
    given = ("--questions=1", "--test=0", "--val=0.5")
    assert build(work, f"--source={work / 'set'}", *given) == 0
    lines = (work / "out/records/index-val.jsonl").read_text().splitlines()
    write_rejects(work / "out", {json.loads(line)["id"]: "wrong" for line in lines})
    capsys.readouterr()
    assert build(work) == 1
    err = capsys.readouterr().err
    assert "val is empty: all that its " in err and "groups made was set aside" in (work / "out/report.md").read_text()
