"""`vital data build`: the whole way from folders of segmentations to records, in one command that may be stopped and given again."""

import argparse
import os
import re
import sqlite3
import sys
from pathlib import Path

from vital_jax.commands.values import DONE, EXITS, INCOMPLETE, INTERRUPTED, MISTAKE, OUT, shard, whole

_FULL = "the disk is full; make room and give the same command again: what is done is kept"


def register(parts: argparse._SubParsersAction) -> None:
    """Adds its sub-commands to `vital data`."""
    build = parts.add_parser(
        "build",
        help="make records of folders of segmentations",
        description="Cuts images and masks out of the sources, splits them by patient, asks, answers, checks and writes records. Give it "
        "again after a stop or after mending files: it does what is missing. What is set aside stands in OUT/rejects.jsonl; while "
        "questions wait for a teacher, the set is incomplete.",
        epilog=EXITS,
    )
    add = build.add_argument
    add("out", metavar="OUT", type=Path, help=OUT)
    add(
        "--source",
        action="append",
        default=[],
        metavar="PATH",
        help="a folder of data, or one that holds some; give it again for more",
    )
    add("--plan", metavar="FILE", help="a TOML file with the same settings and options of single sources")
    add("--questions", type=int, metavar="N", help="per sample, each of another type (default 4)")
    add(
        "--form",
        metavar="{open,closed,both,evaluation}",
        help="open, closed, both, or evaluation (default): closed ones in val and test too",
    )
    add("--seed", type=int, help="of the questions (default 0)")
    add("--val", type=float, metavar="SHARE", help="of patients, for choosing a model (default 0.075)")
    add("--test", type=float, metavar="SHARE", help="of patients, for the last word (default 0.075)")
    add("--teacher", metavar="{measured,endpoint,replay}", help="measured (default), endpoint or replay")
    add("--answers", metavar="FILE", help="recorded answers, for --teacher replay")
    add(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="read every N-th unit only, from 0/N to N-1/N; merge by copying OUT/samples together",
    )
    add(
        "--jobs",
        type=whole,
        default=_processors(),
        metavar="N",
        help="processes that read (default: one per processor)",
    )
    build.set_defaults(run=_build)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build(arguments: argparse.Namespace) -> int:
    from concurrent.futures.process import BrokenProcessPool

    from vital_jax.construct import factory

    def fail(message: object, status: int = MISTAKE) -> int:
        print(f"vital data build: {' '.join(str(message).split())}", file=sys.stderr)
        return status

    out = arguments.out
    try:
        sources, settings = _given(arguments)
        result = factory.build(out, sources, jobs=arguments.jobs, shard=arguments.shard, **settings)
    except (ValueError, FileNotFoundError, NotADirectoryError, FileExistsError, BlockingIOError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return fail("stopped; the same command goes on", INTERRUPTED)
    except BrokenProcessPool:
        return fail("a reading process died, perhaps for want of memory; the same command goes on, try fewer --jobs")
    except (OSError, RuntimeError, sqlite3.Error) as error:
        # What writes shards or the store of tasks says it in words of its own.
        full = getattr(error, "errno", None) in factory.FULL or re.search(
            r"no space|is full", str(error), re.IGNORECASE
        )
        return fail(f"{getattr(error, 'filename', None) or out}: {_FULL}" if full else error)
    aside = f"; {result.set_aside} set aside, see {out}/rejects.jsonl" if result.set_aside else ""
    if result.records:
        counts = ", ".join(f"{split} {number}" for split, number in sorted(result.counts.items()))
        print(f"{result.records}: {counts} records{aside}; see {out}/report.md. Research only, not a medical device.")
    elif result.waiting:
        print(
            f"{result.waiting} questions wait for the teacher: vital data distill run {out}, then this command again{aside}"
        )
    else:
        aside = f"; {result.set_aside} set aside, listed when the records are made" if result.set_aside else ""
        print(f"{out}/samples: this shard is cut{aside}")
    for name, reason in result.failed.items():
        print(f"vital data build: {name} was not read: {reason}", file=sys.stderr)
    return INCOMPLETE if result.set_aside or result.waiting or result.failed else DONE


def _given(arguments: argparse.Namespace) -> tuple[list, dict]:
    """Sources and settings: those of OUT/plan.json, then of the plan file, then of the command line."""
    from vital_jax.construct.settings import KEYS, planned, read_plan, read_plan_file

    sources, settings = read_plan_file(arguments.plan) if arguments.plan else ([], {})
    sources += arguments.source
    settings |= {key: value for key in KEYS if (value := getattr(arguments, key)) is not None}
    if settings.get("answers"):
        settings["answers"] = str(Path(settings["answers"]).resolve())
    if plan := read_plan(arguments.out):
        # With another teacher its answers are none of the plan's.
        settings = {key: plan[key] for key in KEYS if key != "answers" or "teacher" not in settings} | settings
        sources = sources or planned(plan)
    return sources, settings
