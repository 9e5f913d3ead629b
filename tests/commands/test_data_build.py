"""`vital data ...` as a user reads it: one table of exit statuses and one word for every folder, in the help of every door."""

import argparse
import re

import pytest
from sheets import record, write

from vital_jax import cli
from vital_jax.commands.values import DONE, EXITS, INCOMPLETE, INTERRUPTED, MISTAKE, OUT, RECORDS


def doors(parser, name="vital"):
    """(what a user types, its parser) of every door below a parser that has none below it."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        for word, below in action.choices.items():
            yield from doors(below, f"{name} {word}")


DOORS = {name: parser for name, parser in doors(cli._parser()) if name.startswith("vital data ")}
BUILT = [
    "build",
    *(f"distill {step}" for step in ("run", "status", "retry")),
]  # they need what `vital data build` keeps beside records
BUILT += [f"distill batch {step}" for step in ("write", "submit", "collect", "read", "drop")]
READ = ["audit", "distill audit", "stats", "inspect", "export", "features", "grid"]


def test_every_door_is_known():
    assert sorted(DOORS) == sorted(f"vital data {name}" for name in BUILT + READ)


@pytest.mark.parametrize("name", DOORS)
def test_help_tells_the_exit_statuses_and_what_the_folder_is(name):
    parser = DOORS[name]
    assert parser.epilog == EXITS and "not a medical device" in " ".join(parser.format_help().split())
    folder = next(action for action in parser._actions if not action.option_strings)
    short = name.removeprefix("vital data ")
    assert (folder.metavar, folder.help) == (("OUT", OUT) if short in BUILT else ("RECORDS", RECORDS))
    outputs = [action for action in parser._actions if "--out" in action.option_strings]
    assert all(action.option_strings == ["-o", "--out"] and action.metavar in ("FILE", "FOLDER") for action in outputs)


def test_statuses_are_four():
    said = [int(number) for number in re.findall(r"(?:: |; )(\d+) ", EXITS)]
    assert said == [DONE, INCOMPLETE, MISTAKE, INTERRUPTED] == [0, 1, 2, 130]


def test_the_audit_stands_beside_the_teacher_too(tmp_path, capsys):
    out = write([record(i) for i in range(4)], tmp_path / "OUT")
    assert cli.main(["data", "distill", "audit", str(out), "--share", "1"]) == 0
    page = (out / "audit.html").read_bytes()
    assert "4 of 4 records" in capsys.readouterr().err
    assert cli.main(["data", "audit", str(out), "--share", "1"]) == 0
    assert (out / "audit.html").read_bytes() == page
