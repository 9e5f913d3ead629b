"""The doors `vital data audit|stats|inspect|export`: files where they should be, one table, and a word about what is missing."""

import argparse
import json
import re

import pytest
from sheets import Page, record, write

from vital_jax.cli import main
from vital_jax.commands import data_pages
from vital_jax.construct.audit import read_rejects


def vital_data(*arguments):
    """Runs a sub-command as `vital data` would."""
    parser = argparse.ArgumentParser()
    data_pages.register(parser.add_subparsers(dest="part", required=True))
    found = parser.parse_args([str(each) for each in arguments])
    return found.run(found)


@pytest.fixture
def out(tmp_path):
    return write([record(i, ("CT", "MRI")[i % 2], source="my|lab") for i in range(12)], tmp_path / "OUT")


def test_an_audit_from_page_to_rejects(out, tmp_path, capsys):
    assert vital_data("audit", out, "--share", "0.5", "--seed", "3") == 0
    page = out / "audit.html"
    assert re.search(r"audit\.html: 6 of 12 records, \d\.\d MB", capsys.readouterr().err)
    data = json.loads(Page(page.read_text()).texts["script"][0])
    verdicts = {card["id"]: "accept" for card in data["cards"][:4]} | {data["cards"][4]["id"]: "leak"}
    file = tmp_path / "verdicts.json"
    keys = ("format", "format_version", "fingerprint", "share", "seed", "limit")
    file.write_text(json.dumps({key: data[key] for key in keys} | {"verdicts": verdicts}))
    assert vital_data("audit", out, "--verdicts", file) == 0
    said = capsys.readouterr()
    (whole,) = (line for line in said.out.splitlines() if line.startswith("| all "))
    assert whole.replace(" ", "") == "|all|5|80.0|37.6to96.4|20.0|3.6to62.4|1|0|0|"
    assert "5 of 6 shown records are judged" in said.err
    assert json.loads((out / "audit.json").read_text())["judged"] == 5
    assert not (out / "audit_rejects.jsonl").exists()
    assert vital_data("audit", out, "--verdicts", file, "--apply") == 0
    assert read_rejects(out / "audit_rejects.jsonl") == {data["cards"][4]["id"]: "audit-leak"}
    with pytest.raises(ValueError, match="--apply needs --verdicts"):
        vital_data("audit", out, "--apply")


def test_stats_prints_and_writes(out, tmp_path, capsys):
    assert vital_data("stats", out, "-o", tmp_path / "stats") == 0
    text = capsys.readouterr().out
    assert (tmp_path / "stats/stats.md").read_text() == text
    assert re.search(r"## Records by data set and K.*\n\n\| source +\| K=1 \|", text) and "| my\\|lab |" in text
    names = {path.name for path in (tmp_path / "stats").iterdir()}
    assert {"by_source.csv", "by_modality.csv", "licences.csv", "by_source.svg", "by_split.svg", "stats.md"} <= names
    assert vital_data("stats", out / "records") == 0
    assert {path.name for path in out.iterdir()} == {"records"}


def test_inspect_writes_one_page(out, tmp_path, capsys):
    assert vital_data("inspect", out, "--limit", "5", "-o", tmp_path / "page.html") == 0
    assert len(Page((tmp_path / "page.html").read_text()).all("article")) == 5
    assert "5 of 12 records" in capsys.readouterr().err


def test_export_hands_the_record_folder_on(out, tmp_path, capsys):
    assert vital_data("export", out, tmp_path / "plain") == 0
    lines = (tmp_path / "plain/records-train.jsonl").read_text().splitlines()
    assert len(lines) == 12 and "train: 12 records" in capsys.readouterr().err


def test_verdicts_on_records_go_where_the_factory_looks(out, tmp_path):
    (out / "plan.json").write_text("{}")
    assert vital_data("audit", out / "records", "--share", "1") == 0
    assert (out / "audit.html").exists() and not (out / "records/audit.html").exists()


def test_a_file_that_cannot_be_written_is_one_line(out, tmp_path, capsys):
    for words in (
        ("audit", out, "-o", tmp_path),
        ("inspect", out, "-o", tmp_path),
        ("audit", out, "--verdicts", tmp_path),
    ):
        assert main(["data", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"vital data {words[0]}: ") and str(tmp_path) in line
