"""The doors `vital evaluate score|compare|export|list`: numbers counted by hand on real questions, and what does not fit."""

import csv
import json
import re

import pytest

from vital_jax import cli

RESEARCH = "Research software, not a medical device."


def vital(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def cells(text, *start):
    """The cells of a table's only line that starts so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (row,) = (row for row in rows if row[: len(start)] == list(start))
    return row[len(start) :]


@pytest.fixture(scope="module")
def rad(real):
    """(folder, rows): VQA-RAD's published test questions as its own file holds them, read here without the package."""
    folder = real("vqa_rad")
    rows = json.loads((folder / "VQA_RAD_Dataset_Public.json").read_text(encoding="utf-8"))
    return folder, [row for row in rows if row["phrase_type"].startswith("test_")]


def answers(rows, wrong=0):
    """Right answers, but for the first `wrong` questions."""
    told = ["zebra"] * wrong + [str(row["answer"]) for row in rows[wrong:]]
    return [{"id": f"public-{row['qid']}", "prediction": text} for row, text in zip(rows, told, strict=True)]


@pytest.fixture
def score_rad(rad, tmp_path):
    def score(predictions, *more, protocol="paper"):
        file = lines(tmp_path / "answers.jsonl", predictions)
        return vital(
            "score", "--benchmark", "vqa_rad", "--data", rad[0], "--predictions", file, "--protocol", protocol, *more
        )

    return score


QUESTIONS = [
    {"id": "q1", "question": "Is there a nodule?", "answer": "yes", "modality": "CT"},
    {"id": "q2", "question": "Is there a fracture?", "answer": "no", "modality": "CT"},
    {"id": "q3", "question": "Which organ?", "answer": "liver", "modality": "MRI"},
    {"id": "q4", "question": "Which side?", "answer": "left", "modality": "MRI"},
]
RIGHT = [{"id": row["id"], "prediction": row["answer"]} for row in QUESTIONS]


@pytest.fixture
def own(tmp_path):
    """`own(part, predictions, ...)` runs a part on the four questions above."""
    data = lines(tmp_path / "questions.jsonl", QUESTIONS)

    def run(part, predictions, *more, data=data):
        file = lines(tmp_path / "answers.jsonl", predictions)
        return vital(*part.split(), "--benchmark", "file", "--data", data, "--predictions", file, *more)

    return run


# --- real questions ---------------------------------------------------------------------------------


def test_gold_answers_of_vqa_rad_are_all_right(rad, score_rad, tmp_path, capsys):
    rows, out = rad[1], tmp_path / "out"
    closed = sum(row["answer_type"].strip() == "CLOSED" for row in rows)
    yes_no = sum(str(row["answer"]).strip().lower() in ("yes", "no") for row in rows)
    assert (len(rows), closed, yes_no) == (284, 160, 151)
    assert score_rad(answers(rows), "--out", out) == 0
    said = capsys.readouterr()
    for measure, n in (("closed accuracy", closed), ("yes/no accuracy", yes_no), ("accuracy", len(rows))):
        assert cells(said.out, measure, "all")[:3] == [str(n), "0", "100.0"]
    assert cells(said.out, "accuracy", "all")[3:] == [
        "98.7 to 100.0",
        "Wilson",
        "all questions, open ones by exact match",
    ]
    assert "284 items of vqa_rad test, nothing dropped." in said.out and RESEARCH in said.out
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "table.csv", "table.md"]
    assert (out / "table.md").read_text(encoding="utf-8") == said.out and "## By" not in said.out
    kept = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in kept] == [f"public-{row['qid']}" for row in rows]
    assert all(row["correct"] and row["protocol"] == "paper/2" for row in kept)


def test_a_quarter_of_zebras_costs_a_quarter(rad, score_rad, tmp_path, capsys):
    rows = rad[1]
    assert score_rad(answers(rows, wrong=71), "--by", "question_type, modality", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    # 213 of 284. Wilson by hand: z² = 3.8415, (0.75 + z²/568) / (1 + z²/284) = 0.7467, and to each side
    # z · sqrt(0.1875/284 + z²/(4·284²)) / (1 + z²/284) = 0.0501.
    assert cells(said, "accuracy", "all")[::2][:3] == ["284", "75.0", "Wilson"]
    assert cells(said, "accuracy", "all")[3] == "69.7 to 79.7"
    asked = ["PRES" in map(str.strip, row["question_type"].split(",")) for row in rows]
    right = sum(asked[71:])
    assert cells(said, "accuracy", "question_type=PRES")[:3:2] == [str(sum(asked)), f"{100 * right / sum(asked):.1f}"]
    assert "## By modality\n\nThe items do not differ in modality." in said
    with (tmp_path / "out/table.csv").open(encoding="utf-8", newline="") as file:
        (line,) = (row for row in csv.DictReader(file) if (row["measure"], row["group"]) == ("accuracy", "all"))
    assert (line["protocol"], line["benchmark"], line["split"], line["n"]) == ("paper/2", "vqa_rad", "test", "284")
    assert (float(line["value"]), float(line["low"]), float(line["high"])) == pytest.approx(
        (0.75, 0.6965, 0.7968), abs=1e-4
    )


def test_the_official_protocol_and_its_published_arithmetic(real, score_rad, rad, tmp_path, capsys):
    from vital_jax.evaluate.benchmarks import load

    data = real("mmmu_health")
    items = load("mmmu_pro_health", data).items
    file = lines(tmp_path / "pro.jsonl", [{"id": item.id, "prediction": item.gold} for item in items])
    given = ("score", "--benchmark", "mmmu_pro_health", "--data", data, "--predictions", file, "--protocol", "official")
    assert vital(*given) == vital(*given, "--compat") == 0
    said = capsys.readouterr().out
    assert "under mmmu/2\n" in said and "under mmmu/1 compat\n" in said
    assert score_rad(answers(rad[1]), protocol="official") == 2
    assert capsys.readouterr().err.startswith("vital evaluate score: no official scorer of vqa_rad is maintained; name")


# --- files that do not fit --------------------------------------------------------------------------

NOT_THERE = [{"id": f"x{n}", "prediction": "yes"} for n in range(7)]


@pytest.mark.parametrize(
    ("predictions", "more", "message"),
    [
        (RIGHT[2:], (), r"2 of 4 items have no prediction: q1, q2; mend the file, or give --partial"),
        (RIGHT + NOT_THERE, (), r"7 of 11 predictions belong to no item: x0, x1, x2, x3, x4 and 2 more; mend"),
        (RIGHT[1:] + NOT_THERE[:1], (), r"1 of 4 items have no .*: q1; 1 of 4 predictions belong to no item: x0; "),
        (NOT_THERE, ("--partial",), r"no prediction belongs to an item; ids there are like x0.*of file test like q1"),
        (RIGHT + RIGHT[:3], ("--partial",), r"answers.jsonl:5: 'q1' is .*\(3 ids are answered .*: q1, q2, q3\)"),
        ([*RIGHT[:3], {"id": "q4", "prediction": None}], (), r"prediction of 'q4': 'prediction' must be text"),
        (RIGHT, ("--protocol", "medevalkit", "--judge"), r"answers.jsonl: prediction of 'q3' has no 'judge'"),
        (
            [{**RIGHT[0], "benchmark": ["file"]}, *RIGHT[1:]],
            (),
            r"answers.jsonl:1: 'benchmark' must be text, got \['file'\]",
        ),
        (RIGHT, ("--by", "colour"), r"--by colour: there are modality, question_type"),
        (RIGHT, ("--protocol", "papr"), r"no protocol 'papr'; there are paper, "),
        (RIGHT, ("--compat",), r"protocol 'paper' has no compat"),
        (RIGHT, ("--benchmark", "slake", "--data", "nowhere"), r"slake comes from https://.*\(licence: CC BY 4.0\)"),
        (RIGHT, ("--predictions", "nowhere.jsonl"), r"nowhere.jsonl: there is no such predictions file"),
        (RIGHT, ("--predictions", "."), r"a folder, not predictions file"),
    ],
)
def test_what_does_not_fit_is_one_line(own, capsys, tmp_path, predictions, more, message):
    assert own("score --protocol paper", predictions, *more, "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.out == "" and not (tmp_path / "out").exists()
    (line,) = said.err.splitlines()
    assert line.startswith("vital evaluate score: ") and re.search(message, line), line


def test_a_file_that_is_not_utf8_is_named(own, tmp_path, capsys):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"id": "q1", "prediction": "\xe9"}\n')
    assert own("score --protocol paper", RIGHT, "--predictions", file) == 2
    assert "latin.jsonl: not text in UTF-8" in capsys.readouterr().err


def test_partial_says_so_beside_every_number(own, tmp_path, capsys):
    # q1 right, q2 wrong; q3 right; q4 lacks its answer, and nobody asked x0.
    told = [RIGHT[0], {"id": "q2", "prediction": "yes"}, RIGHT[2], NOT_THERE[0]]
    out = tmp_path / "out"
    assert own("score --protocol paper", told, "--partial", "--out", out) == 0
    said = capsys.readouterr().out
    assert cells(said, "accuracy", "all")[:3] == ["3", "0", "66.7"]
    rules = [line for line in said.splitlines() if "Wilson" in line or "bootstrap" in line or "one image" in line]
    assert len(rules) > 3 and all("partial: only the 3 of 4 items that are answered |" in line for line in rules)
    assert "Partial: 1 of 4 items have no prediction: q4." in said and "belong to no item: x0." in said
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 3
    assert all("3 of 4" in line for line in (out / "table.csv").read_text().splitlines()[1:])
    assert own("score --protocol paper", RIGHT, "--partial") == 0
    assert "artial" not in capsys.readouterr().out


def test_what_the_reader_dropped_is_shown_with_its_reason(own, tmp_path, capsys):
    bad = [{"id": f"b{n}", "question": "Why?", "answer": ""} for n in range(7)]
    data = lines(tmp_path / "more.jsonl", QUESTIONS + bad)
    assert own("score --protocol paper", RIGHT, "--out", tmp_path / "out", data=data) == 0
    said = capsys.readouterr().out
    assert "4 items of file test, dropped: 7 no-answer." in said and "- and 2 more\n" in said
    assert "more.jsonl:5: 'b0' has no answer [no-answer]" in said and "'b6'" not in said
    assert "more.jsonl:11: 'b6' has no answer [no-answer]" in (tmp_path / "out/table.md").read_text()
    # A prediction for a dropped question is a stranger, and the line says that rows were dropped.
    assert own("score --protocol paper", [*RIGHT, {"id": "b0", "prediction": "x"}], data=data) == 2
    assert re.search(r"dropped: 7 no-answer: 1 of 5 predictions belong to no item: b0", capsys.readouterr().err)


def test_nothing_is_overwritten(own, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("mine")
    assert own("score --protocol paper", RIGHT, "--out", out) == 2
    assert "table.md would be overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("table.md", "mine")]
    assert own("score --protocol paper", RIGHT, "--out", out / "table.md") == 2
    assert "table.md: is a file; name a folder" in capsys.readouterr().err


def test_verdicts_of_a_judge_count_where_they_are_asked_for(own, capsys):
    told = [*RIGHT[:2], {"id": "q3", "prediction": "hepar", "judge": True}, {**RIGHT[3], "judge": True}]
    for judge, value in (((), "50.0"), (("--judge",), "100.0")):
        assert own("score --protocol medevalkit", told, *judge) == 0
        said = capsys.readouterr().out
        assert cells(said, "open accuracy", "all")[:3] == ["2", "0", value]
        assert ("under medevalkit/2 judge" in said) == bool(judge)


# --- compare, export, list --------------------------------------------------------------------------


def test_two_systems_are_compared(rad, score_rad, tmp_path, capsys):
    rows = rad[1]
    assert score_rad(answers(rows), "--out", tmp_path / "gold") == 0
    assert score_rad(answers(rows, wrong=4), "--out", tmp_path / "noise") == 0
    capsys.readouterr()
    assert vital("compare", tmp_path / "noise", tmp_path / "gold/predictions.jsonl") == 0
    said = capsys.readouterr()
    assert said.out.startswith("paper/2, measure: correct\n") and RESEARCH in said.err
    assert "| gold - noise |" in said.out
    n, _, noise, gold, difference, _, only_noise, only_gold, exact, mid = cells(said.out, "vqa_rad")
    # 4 disagreements, all for one side: 2 / 2^4, and half of it.
    assert [n, noise, gold, difference, only_noise, only_gold] == ["284", "98.6", "100.0", "+1.4", "0", "4"]
    assert (exact, mid) == ("0.125", "0.0625")
    opened = sum(row["answer_type"].strip() == "OPEN" for row in rows)
    assert vital("compare", tmp_path / "noise", tmp_path / "gold", "--measure", "open token F1") == 0
    assert cells(capsys.readouterr().out, "vqa_rad")[0] == str(opened)


def test_only_scored_rows_of_one_protocol_are_compared(own, tmp_path, capsys):
    for name, given in (("a", ()), ("b", ("--protocol", "llava_med")), ("c", ("--partial",))):
        told = RIGHT[1:] if name == "c" else RIGHT
        assert own("score --protocol paper", told, *given, "--out", tmp_path / name) == 0
    raw = lines(tmp_path / "raw.jsonl", [{**row, "correct": True} for row in RIGHT])
    capsys.readouterr()
    for a, b, message in (
        ("a", "b", r"a/predictions.jsonl is scored under paper/2 and .*b/predictions.jsonl under llava_med/2; score"),
        ("a", raw, r"raw.jsonl: 4 of 4 rows are not scored: q1, q2, q3, q4; give what `vital evaluate score --out`"),
        ("a", "c", r"the second file lacks 1 questions of the other: file/test/q1"),
        ("a", "nowhere", r"nowhere: there is no such predictions file"),
    ):
        assert vital("compare", tmp_path / a, tmp_path / b) == 2
        said = capsys.readouterr()
        assert said.out == "" and re.search(rf"^vital evaluate compare: .*{message}", said.err), said.err


def test_export_writes_for_other_programs_and_overwrites_nothing(own, tmp_path, capsys):
    out = tmp_path / "logs"
    assert own("export medevalkit", RIGHT, "--out", out) == 0
    assert capsys.readouterr().out == f"{out / 'results.json'}\n"
    assert [sample["response"] for sample in json.loads((out / "results.json").read_text())] == [
        "yes",
        "no",
        "liver",
        "left",
    ]
    places = tmp_path / "places.json"
    places.write_text(json.dumps({row["id"]: 40 + n for n, row in enumerate(QUESTIONS)}))
    assert own("export lmms_eval", RIGHT, "--out", out, "--task", "mine", "--model", "m", "--indices", places) == 0
    log = json.loads((out / "mine.json").read_text())
    assert log["args"]["model"] == "m" and [entry["doc_id"] for entry in log["logs"]] == [40, 41, 42, 43]
    assert own("export vlmevalkit", RIGHT, "--out", out, "--task", "MINE", "--model", "m") == 0
    assert sorted(path.name for path in out.iterdir()) == ["m_MINE.tsv", "mine.json", "results.json"]
    capsys.readouterr()
    places.write_text("[1]")
    for harness, told, more, message in (
        ("medevalkit", RIGHT, (), "results.json would be overwritten"),
        ("medevalkit", RIGHT, ("--task", "x"), "medevalkit takes neither --task nor --indices"),
        ("lmms_eval", RIGHT, (), "lmms-eval has no data set known here for file test; give its name"),
        ("lmms_eval", RIGHT, ("--indices", places), 'places.json: needs one object {"id": place}'),
        ("helm", RIGHT, (), "no format 'helm'; there are lmms_eval, vlmevalkit, medevalkit"),
        ("medevalkit", RIGHT[1:], (), "1 of 4 items have no prediction: q1; the format needs the whole split"),
    ):
        before = {path: path.read_bytes() for path in out.iterdir()}
        assert own(f"export {harness}", told, "--out", out, *more) == 2
        err = capsys.readouterr().err
        assert err.startswith("vital evaluate export: ") and message in err, err
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    for harness in ("helm", "lmms_eval"):
        assert own(f"export {harness}", RIGHT, "--out", tmp_path / "none") == 2 and not (tmp_path / "none").exists()


def test_list_says_where_benchmarks_come_from_and_what_is_wrong_with_scorers(capsys):
    from vital_jax.evaluate.benchmarks import BENCHMARKS
    from vital_jax.evaluate.protocols import PROTOCOLS, defects_table

    assert vital("list") == 0
    plain = capsys.readouterr()
    assert RESEARCH in plain.err and defects_table() not in plain.out
    for name, benchmark in BENCHMARKS.items():
        block = plain.out.split(f"\n{name} (")[1].split("\n")[1]
        assert benchmark.where in block and f"licence: {benchmark.licence}" in block
    assert "\npmc_vqa_2 (splits: test; official protocol: pmc_vqa)\n" in plain.out
    assert "\nslake_en (splits: train, validation, test; official protocol: none)\n" in plain.out
    assert all(re.search(rf"^{name}/\d", plain.out, re.M) for name in PROTOCOLS)
    assert vital("list", "--defects") == 0
    assert defects_table() in capsys.readouterr().out
