"""`vital data distill`: asks a teacher for reasoning chains, live, in batches or from a file, and says how that stands."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vital_jax.commands.data_pages import add_audit
from vital_jax.commands.values import (
    DONE,
    EXITS,
    INCOMPLETE,
    INTERRUPTED,
    LIMIT,
    MISTAKE,
    OUT,
    count,
    positive,
    price,
    whole,
)

FILE = "distill.sqlite"  # within the folder that `vital data build` fills


def register(parts: argparse._SubParsersAction) -> None:
    """Adds `distill` to `vital data`."""
    distill = parts.add_parser(
        "distill",
        help="ask a teacher for reasoning chains",
        description="Asks an OpenAI-compatible endpoint (VITAL_TEACHER_BASE_URL and VITAL_TEACHER_API_KEY, else OPENAI_BASE_URL and "
        "OPENAI_API_KEY) about the tasks of `vital data build --teacher endpoint`. Every reply is kept; stop and go on at any moment.",
        epilog=EXITS,
    )
    actions = distill.add_subparsers(dest="action", required=True)
    run = _action(actions, "run", "ask what is pending", _run)
    add_settings(run)
    run.add_argument("--limit", type=whole, default=0, metavar="N", help=f"of the tasks {LIMIT}; default all")
    instead = run.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="only estimate tokens and cost, and say which images would leave this machine",
    )
    instead.add_argument(
        "--replay", metavar="FILE", help="take recorded replies (JSON lines or another store) instead of asking"
    )
    status = _action(actions, "status", "counts, rates and cost", _status)
    _prices(status)
    status.add_argument("--json", action="store_true", help="print one JSON object")
    retry = _action(actions, "retry", "put dropped tasks back", _retry)
    retry.add_argument("--code", default="", help="only those with this code (leak, steps, ...)")
    batch = actions.add_parser("batch", help="ask by files, at the price of batches").add_subparsers(
        dest="step", required=True
    )
    write = _action(batch, "write", "write request files to OUT/batches", _write)
    add_settings(write)
    write.add_argument("--limit", type=whole, default=0, metavar="N", help=f"of the tasks {LIMIT}; default all")
    write.add_argument("--max-bytes", type=whole, default=200_000_000, metavar="N", help="of one file (200 MB)")
    write.add_argument("--max-requests", type=whole, default=50_000, metavar="N", help="of one file (50,000)")
    write.add_argument(
        "--form",
        default="json_schema",
        choices=("json_schema", "json_object", "text"),
        help="how the endpoint is held to JSON",
    )
    submit = _action(batch, "submit", "upload the files and start their batches", _submit)
    submit.add_argument("--allow-upload", action="store_true", help="images not known as public may leave this machine")
    for action in (
        _action(batch, "collect", "fetch the results of batches that are over", _collect),
        _action(batch, "read", "take a file of results fetched by hand", _read, "file"),
    ):
        action.add_argument("--tries", type=whole, default=5, metavar="N", help="replies per task before it is dropped")
        _prices(action)
    _action(batch, "drop", "give a batch up: its tasks are pending again", _drop, "name")
    add_audit(actions)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a teacher is asked; `settings` reads them."""
    parser.add_argument("--model", metavar="NAME", help="the teacher's name at the endpoint")
    parser.add_argument("--concurrency", type=whole, default=8, metavar="N", help="requests under way at once (8)")
    parser.add_argument(
        "--per-minute", type=positive, default=0, metavar="N", help="requests started per minute at most"
    )
    parser.add_argument("--timeout", type=positive, default=180, metavar="SECONDS", help="of one request (180)")
    parser.add_argument(
        "--transport-retries", type=count, default=6, metavar="N", help="after timeouts, 429 and 5xx (6)"
    )
    parser.add_argument("--tries", type=whole, default=5, metavar="N", help="replies per task before it is dropped (5)")
    parser.add_argument("--allow-upload", action="store_true", help="images not known as public may leave this machine")
    parser.add_argument(
        "--again", action="store_true", help="ask also what another model or other prompts have answered"
    )
    parser.add_argument("--prompts", default="", metavar="FOLDER", help="a prompt folder of your own")
    parser.add_argument(
        "--extra", type=_object, default={}, metavar="JSON", help="further request fields, as '{\"temperature\": 0.3}'"
    )
    _prices(parser)


def settings(arguments: argparse.Namespace):
    """The `Settings` that the flags say. Raises: ValueError without a model."""
    from vital_jax.construct.distill.endpoint import Settings

    if not arguments.model:
        raise ValueError("name the teacher with --model")
    names = (
        "concurrency",
        "per_minute",
        "timeout",
        "transport_retries",
        "tries",
        "allow_upload",
        "again",
        "extra",
        "prompts",
    )
    known = {name: getattr(arguments, name) for name in names}
    return Settings(arguments.model, limit=getattr(arguments, "limit", 0), prices=_priced(arguments), **known)


def _action(actions, name: str, text: str, run: Callable, more: str = "") -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXITS)
    parser.add_argument("out", metavar="OUT", help=OUT)
    if more:
        parser.add_argument(more, metavar=more.upper())
    parser.set_defaults(run=lambda arguments: _guarded(run, arguments))
    return parser


def _guarded(run: Callable, arguments: argparse.Namespace) -> int:
    """Runs an action; what goes wrong is one line."""
    import sqlite3

    from vital_jax.construct.distill.store import Store

    try:
        with Store(Path(arguments.out) / FILE, create=False) as store:
            return run(store, arguments)
    except sqlite3.Error as error:
        barred = any(words in str(error) for words in ("unable to open", "readonly"))
        way_out = "it and its folder must be writable" if barred else "what it holds is whole"
        print(f"vital data distill: {Path(arguments.out) / FILE}: {error}; {way_out}", file=sys.stderr)
        return MISTAKE
    except (OSError, ValueError, RuntimeError) as error:
        print(f"vital data distill: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("vital data distill: stopped; what was answered is kept, give the same command to go on", file=sys.stderr)
        return INTERRUPTED


def _run(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill.replay import replay
    from vital_jax.construct.distill.run import run

    if arguments.replay:
        outcome = replay(store, arguments.replay)
    elif arguments.dry_run:
        return _estimate(store, settings(arguments))
    else:
        outcome = run(store, settings(arguments))
    print(outcome)
    if waiting := len(store.waiting()):
        print(f"{waiting} tasks lie in batches: `vital data distill batch collect {arguments.out}`")
    if outcome.why:
        print(f"vital data distill: ended early: {outcome.why}", file=sys.stderr)
    if outcome.dropped:
        print(
            f"dropped tasks stand in `status`; `vital data distill retry {arguments.out}` puts them back",
            file=sys.stderr,
        )
    if outcome.why or outcome.unanswered or outcome.pending:
        print("what was answered is kept; give the same command to go on", file=sys.stderr)
    return INTERRUPTED if outcome.interrupted else DONE if outcome.complete else INCOMPLETE


def _estimate(store, chosen) -> int:
    from vital_jax.construct.distill.endpoint import address
    from vital_jax.construct.distill.progress import estimate
    from vital_jax.construct.distill.prompts import load_prompts
    from vital_jax.construct.distill.run import check_upload, selected

    prompts, where = load_prompts(chosen.prompts) if chosen.prompts else load_prompts(), address(needs_key=False)
    ids = selected(store, chosen, prompts)
    try:
        warning = check_upload(store, ids, where, chosen.allow_upload)
    except ValueError as error:
        warning = f"warning: a run will refuse: {error}"
    if warning:
        print(warning, file=sys.stderr)
    found = estimate(store, ids, prompts, chosen.model, chosen.prices)
    measured = found["measured"]
    basis = f"the mean of {measured} replies" if measured else "rules of thumb, without retries and hidden thinking"
    tokens = f"{found['tokens_in']} tokens in and {found['tokens_out']} out"
    print(f"{found['tasks']} tasks, about {found['requests']} requests, {tokens} ({basis})")
    if found["cost"] is None:
        print("cost unknown: give your endpoint's prices per million tokens as --price-in X --price-out Y")
    else:
        print(f"cost about {found['cost']:.4g} in the currency of the prices")
    return DONE


def _status(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill.progress import render, standing

    found = standing(store, _priced(arguments))
    print(json.dumps(found) if arguments.json else render(found, str(store.path)))
    return DONE


def _retry(store, arguments: argparse.Namespace) -> int:
    codes = Counter(code for found in store.dropped().values() for code in set(found))
    if arguments.code and arguments.code not in codes:
        there = ", ".join(f"{code} ({count})" for code, count in codes.most_common()) or "none at all"
        raise ValueError(f"no dropped task has the code {arguments.code!r}; there are: {there}")
    with store.exclusive():
        print(f"{store.retry(arguments.code)} tasks are pending again")
    return DONE


def _write(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill import batch
    from vital_jax.construct.distill.endpoint import address
    from vital_jax.construct.distill.prompts import load_prompts
    from vital_jax.construct.distill.run import check_upload, selected

    chosen = settings(arguments)
    prompts = load_prompts(chosen.prompts) if chosen.prompts else load_prompts()
    with store.exclusive():
        ids = selected(store, chosen, prompts)
        if warning := check_upload(store, ids, address(), chosen.allow_upload):
            print(warning, file=sys.stderr)
        limits = (arguments.max_bytes, arguments.max_requests)
        for path in batch.write(store, ids, chosen, prompts, arguments.form, *limits):
            print(f"{path}: {path.stat().st_size} bytes")
    print(
        f"{len(ids)} tasks; next: `vital data distill batch submit {arguments.out}`, or send the files by hand and `batch read` results"
    )
    return DONE


def _submit(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill import batch

    with store.exclusive():
        started = batch.submit(store, arguments.allow_upload)
    print(f"{len(started)} batches started; later: `vital data distill batch collect {arguments.out}`")
    return DONE


def _collect(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill import batch

    with store.exclusive():
        return _told(batch.collect(store, arguments.tries, _priced(arguments)), arguments.out)


def _read(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill import batch

    with store.exclusive():
        return _told(batch.read(store, arguments.file, arguments.tries, _priced(arguments)), arguments.out)


def _told(counts: dict[str, int], out: str) -> int:
    print(", ".join(f"{number} {what}" for what, number in counts.items()) or "no batch is under way")
    if counts.get("running"):
        print("some batches are still running: collect again later")
    if left := counts.get("rejected", 0) + counts.get("unanswered", 0) + counts.get("error", 0):
        print(f"{left} tasks are pending again: `vital data distill batch write {out}` or `run {out}`")
    return DONE if set(counts) <= {"accepted", "seen"} else INCOMPLETE


def _drop(store, arguments: argparse.Namespace) -> int:
    from vital_jax.construct.distill import batch

    with store.exclusive():
        print(f"{batch.drop(store, arguments.name)} tasks are pending again")
    return DONE


def _prices(parser: argparse.ArgumentParser) -> None:
    for flag, what in (("--price-in", "read"), ("--price-out", "written")):
        parser.add_argument(flag, type=price, metavar="X", help=f"price of a million tokens {what}, in any currency")


def _priced(arguments: argparse.Namespace):
    from vital_jax.construct.distill.replies import Prices

    return Prices(arguments.price_in, arguments.price_out)


def _object(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return found
