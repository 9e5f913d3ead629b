"""What `vital data build` is told, and `plan.json`, which keeps it: the set is a function of the sources and of this alone.

The plan is made by the first run. A later run is given the same, or nothing; a change is an error that names the key, for half of one set
and half of another is a set nobody can describe. How many processes and machines work on it is not part of it.

A source is known by its name, its reader and how that reads. Its path says where it lies today: a folder that was moved, or OUT on another
machine, goes on with --source. Which readers share a `manifest.jsonl` follows from its lines and may change when they are mended.

    questions = 4                   # a plan file; what holds for all sources comes first
    teacher = "endpoint"

    [[source]]
    path = "Task09_Spleen"          # relative to the file
    max_slices = 4                  # whatever else the reader of that kind takes

    [[source]]
    path = "ours"
    kind = "manifest"
    licence = "CC-BY-4.0"
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vital_jax.construct.cut import Job
from vital_jax.construct.parts import source_folder
from vital_jax.construct.questions import FORMS, load_templates
from vital_jax.construct.source import Source
from vital_jax.construct.sources import SHARED, find_folders, open_sources

VERSION = 1
EVALUATION = "evaluation"
TEACHERS = ("measured", "endpoint", "replay")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How samples become records.

    Attributes:
      questions: per sample, 1 to 6, each of another type.
      form: of questions: open, closed, both, or evaluation: open ones everywhere, and closed ones too in val and test.
      seed: of the questions.
      val, test: shares of the splits (VITAL: 0.075 each).
      teacher: measured; endpoint (a language model, asked by `vital data distill run`); replay of recorded answers.
      answers: replay's file.

    Raises: ValueError naming the setting.
    """

    questions: int = 4
    form: str = EVALUATION
    seed: int = 0
    val: float = 0.075
    test: float = 0.075
    teacher: str = "measured"
    answers: str = ""

    def __post_init__(self):
        for key, known in (("form", (*FORMS, "both", EVALUATION)), ("teacher", TEACHERS)):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"unknown {key} {getattr(self, key)!r}: use {', '.join(known)}{_near(getattr(self, key), known)}"
                )
        if type(self.questions) is not int or not 1 <= self.questions <= len(load_templates()):
            raise ValueError(f"questions must be 1..{len(load_templates())}, not {self.questions!r}")
        if type(self.seed) is not int:
            raise ValueError(f"seed must be a whole number, not {self.seed!r}")
        shares = (self.val, self.test)
        # Said so that what is no number at all (nan) is no share either.
        if not (all(type(share) in (int, float) for share in shares) and min(shares) >= 0 and sum(shares) <= 1):
            raise ValueError(f"shares must be between 0 and 1 together, not val={self.val!r} and test={self.test!r}")
        if (self.teacher == "replay") != bool(self.answers):
            raise ValueError("answers is the file that teacher = replay reads: give both or neither")


KEYS = tuple(key.name for key in dataclasses.fields(Settings))
_SOURCE = ("path", "kind", "name", "options", "settings")


def _near(word: Any, known: Sequence[str]) -> str:
    close = get_close_matches(str(word), known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def read_plan_file(path: str | Path) -> tuple[list[dict], dict[str, Any]]:
    """The sources and the settings of a TOML file.

    Raises:
      FileNotFoundError: no such file. ValueError: not TOML, or a key that is none, with the nearest that is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no plan file here")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from error
    known = ("source", *KEYS)
    for key in table:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}{_near(key, known)}")
    sources = table.pop("source", [])
    if not isinstance(sources, list) or not all(
        isinstance(row, dict) and isinstance(row.get("path"), str) for row in sources
    ):
        raise ValueError(f"{path}: sources are tables [[source]], each with a path")
    sources = [row | {"path": str(path.parent / row["path"])} for row in sources]
    if not isinstance(table.get("answers", ""), str):
        raise ValueError(f"{path}: answers is the name of a file, not {table['answers']!r}")
    if table.get("answers"):
        table["answers"] = str(path.parent / table["answers"])
    return sources, table


def read_plan(out: Path) -> dict | None:
    """OUT's plan, or None before the first run. Raises: ValueError where it is none of this version."""
    path = out / "plan.json"
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        version = plan["version"]
        if version == VERSION:
            for row, keys in ((plan, KEYS), *((row, _SOURCE) for row in plan["sources"])):
                if missing := {*keys} - row.keys():
                    raise ValueError(f"without {', '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a plan ({reason}); remove it, and a run with --source makes it again") from error
    if version != VERSION:
        raise ValueError(f"{path}: plan version {version}, this vital_jax reads {VERSION}")
    return plan


def planned(plan: Mapping) -> list[dict]:
    """A plan's sources, as `open_jobs` takes them. Raises: FileNotFoundError for one that lies elsewhere today."""
    found = []
    for row in plan["sources"]:
        if not Path(row["path"]).is_dir():
            raise FileNotFoundError(
                f"{row['path']}: {row['name']} lay here; give all sources with --source, as they lie today"
            )
        one = {"path": row["path"], **row["options"]} | ({} if row.get("found") else {"kind": row["kind"]})
        if one not in found:
            found.append(one)
    return found


def agree(out: Path, jobs: Sequence[Job], settings: Settings) -> tuple[dict, list[Job], dict[str, str]]:
    """Compares what is given with OUT's plan, if there is one.

    Returns:
      The plan to keep; the jobs in the plan's order; source name -> where it lay, of those that lie elsewhere today.

    Raises:
      ValueError: something changed; the message names it.
    """
    rows = [
        {"path": str(job.source.root), "kind": job.source.kind, "name": job.source.name, "found": job.found}
        | {"options": dict(job.options), "settings": dict(job.settings)}
        for job in jobs
    ]
    plan = json.loads(json.dumps({"version": VERSION, "sources": rows} | dataclasses.asdict(settings), default=str))
    held = read_plan(out)
    if held is None:
        return plan, list(jobs), {}
    changed = [key for key in KEYS if key != "answers" and held[key] != plan[key]]  # where answers lie is a path too
    told = [f"another {', '.join(sorted(changed))}"] if changed else []
    if differ := _differences(held["sources"], plan["sources"]):
        told.append(f"other sources ({'; '.join(differ)})")
    if told:
        raise ValueError(
            f"{out}/plan.json was made with {' and '.join(told)}; give the same (without --source, the planned ones), or name "
            f"another folder (with a copy of {out}/samples in it, what is the same is not read again)"
        )
    order = list(_folders(held["sources"]))
    places = sorted(range(len(jobs)), key=lambda i: order.index(_folder_name(plan["sources"][i])))
    plan["sources"] = [plan["sources"][i] for i in places]
    lay = {row["name"]: row["path"] for row in held["sources"]}
    moved = {
        row["name"]: lay[row["name"]] for row in plan["sources"] if lay.get(row["name"], row["path"]) != row["path"]
    }
    return plan, [jobs[i] for i in places], moved


def keep_plan(out: Path, plan: Mapping) -> None:
    """Writes OUT's plan, unless it is there."""
    if read_plan(out) == plan:
        return
    temporary = out / ".plan.json.tmp"
    temporary.write_text(json.dumps(plan, indent=2), encoding="utf-8")
    temporary.replace(out / "plan.json")


def _folder_name(row: Mapping) -> str:
    """What a source and others that read the same manifest have in common."""
    return row["name"].removesuffix(f"-{row['kind']}") if row["kind"] in SHARED else row["name"]


def _folders(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    folders = {}
    for row in rows:
        folders.setdefault(_folder_name(row), []).append(row)
    return folders


def _differences(held: Sequence[Mapping], given: Sequence[Mapping]) -> list[str]:
    """In what two lists of sources differ, apart from paths, order and which readers share a manifest."""
    held, given = _folders(held), _folders(given)
    told = [f"{name} is not given" for name in held if name not in given]
    told += [f"{name} is not in it" for name in given if name not in held]
    for name in filter(given.get, held):
        before, after = ({row["name"]: row for row in rows} for rows in (held[name], given[name]))
        for each in sorted({*before, *after}):
            one, other = before.get(each), after.get(each)
            if one and other and one["kind"] == other["kind"]:
                known = {*one["settings"], *other["settings"]}
                keys = sorted(key for key in known if one["settings"].get(key) != other["settings"].get(key))
                told += [
                    f"{each}: {key} {one['settings'].get(key)!r}, not {other['settings'].get(key)!r}" for key in keys
                ]
            elif not all(row["kind"] in SHARED and row.get("found", True) for row in (one, other) if row):
                told.append(
                    f"{each} as {one['kind'] if one else 'nothing'}, not as {other['kind'] if other else 'nothing'}"
                )
    return told


# --- sources -------------------------------------------------------------------------------------------


def open_jobs(given: Sequence[str | Path | Mapping | Source]) -> list[Job]:
    """Opens sources.

    Args:
      given: folders (a source, or one that holds sources), {"path", "kind", options of its reader...}, or open sources.

    Raises:
      FileNotFoundError, ValueError: nothing to read there, two sources of one name, or a name that is none of a folder.
    """
    plain, jobs = [], []
    for each in given:
        if isinstance(each, Mapping):
            options = dict(each)
            path, kind = options.pop("path"), options.pop("kind", "")
            jobs += [_job(source, options, found=not kind) for source in open_sources(path, kind, options)]
        elif isinstance(each, str | Path):
            plain.append(each)
        else:
            jobs.append(_job(each, _named(each.name, each.root)))
    # All at once: it is they that give two folders of one name different ones.
    for name, sources in find_folders(*plain).items() if plain else ():
        jobs += [_job(source, _named(name, source.root), found=True) for source in sources]
    if not jobs:
        raise ValueError("no source: name at least one folder with --source")
    names: dict[str, Source] = {}
    for source in (job.source for job in jobs):
        source_folder(Path(), source.name)  # before the plan is kept
        other = names.setdefault(source.name, source)
        if other is not source:
            raise ValueError(
                f"{other.root} and {source.root} are both named {source.name!r}; rename one folder, or give one a name"
            )
    return jobs


def _named(name: str, root: Path) -> dict[str, str]:
    return {} if name == root.name else {"name": name}


def _job(source: Source, options: Mapping[str, Any], found: bool = False) -> Job:
    """A source with its settings: those of its fields that are plain values."""
    listed = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
    values = {field.name: getattr(source, field.name) for field in listed if field.init}
    kept = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    return Job(source, {key: value for key, value in kept.items() if key not in ("name", "kind")}, options, found)
