"""Many questions to one loaded model: from a file of JSON lines, or typed one after the other.

A line of the file is {"question": ..., "image": FILE or [FILE, ...]}, and perhaps an "id" (else its number, from 1). Relative files lie
beside the file of questions. Every line and every image is looked at before the model is opened. Answers come in the order of the
questions, a JSON line each as `vital evaluate score` reads them, as soon as their batch is answered. With --out they are kept as
`vital evaluate run` keeps its own: the same command goes on where it stopped, and asks nothing twice.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vital_jax.commands import checks, models
from vital_jax.commands.values import DONE, whole

SHOWN = 5  # faulty lines named in an error


class Line(NamedTuple):
    """A question of the file; digest: of all that decides its answer."""

    id: str
    question: str
    images: tuple[Path, ...]
    digest: str


def read(path: Path) -> list[Line]:
    """The questions of a file, whose images decode. Raises: FileNotFoundError; ValueError naming the first faulty lines."""
    if not path.is_file():
        raise FileNotFoundError(f"--questions {path}: no such file")
    lines, faults, seen = [], [], set()
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = _line(text, str(number), path.parent)
            if line.id in seen:
                raise ValueError(f"id {line.id!r} is that of an earlier line")
            seen.add(line.id)
            lines.append(line)
        except (OSError, ValueError) as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(f"{path}: {len(faults)} lines cannot be asked: {'; '.join(faults[:SHOWN])}{more}")
    if not lines:
        raise ValueError(f"{path}: holds no questions")
    return lines


def _line(text: str, number: str, home: Path) -> Line:
    row = json.loads(text)
    names = row.get("image") if isinstance(row, dict) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError('needs {"question": TEXT, "image": FILE or [FILE, ...]}')
    if not isinstance(question := row.get("question"), str) or not question.strip():
        raise ValueError('"question" is empty or missing')
    images = tuple(home / name for name in names)
    digest = hashlib.sha256(json.dumps(question).encode())
    for data in checks.images(images):
        digest.update(hashlib.sha256(data).digest())
    return Line(str(row.get("id", number)), question, images, digest.hexdigest()[:16])


def many(arguments: argparse.Namespace, opened: Callable[[], Any]) -> int:
    """Answers the file of --questions. opened: gives the model."""
    lines = read(arguments.questions)
    if arguments.out:
        checks.writable(arguments.out)
    model = opened()
    if not arguments.out:
        for rows in _answered(arguments, model, lines):
            print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), flush=True)
        return DONE
    from vital_jax.evaluate.answers import Answers

    asked = hashlib.sha256(json.dumps([[line.id, line.digest] for line in lines]).encode()).hexdigest()[:16]
    settings = {
        "model": models.identity(arguments, model), "questions": asked, "steps": arguments.steps,
        "latent_steps": arguments.latent_steps, "max_new_tokens": arguments.max_new_tokens,
    }  # fmt: skip
    with Answers(arguments.out, settings) as answers:
        left = [line for line in lines if line.id not in answers.rows]
        print(f"{len(lines) - len(left)} of {len(lines)} are answered already", file=sys.stderr)
        for rows in _answered(arguments, model, left):
            answers.append(rows)
    print(f"wrote {arguments.out}: answers.jsonl", file=sys.stderr)
    return DONE


def _answered(arguments: argparse.Namespace, model: Any, lines: list[Line]) -> Iterator[list[dict[str, Any]]]:
    """Batch after batch, as rows of a predictions file."""
    for start in range(0, len(lines), arguments.batch):
        group = lines[start : start + arguments.batch]
        images, asked = [list(line.images) for line in group], [line.question for line in group]
        found = model.answer(images, asked, arguments.latent_steps, arguments.max_new_tokens, arguments.batch)
        yield [
            {"id": line.id, "question": line.question, **as_json(answer, "prediction")}
            for line, answer in zip(group, found, strict=True)
        ]


def talk(arguments: argparse.Namespace, model: Any, show: Callable[[Any, str], None]) -> int:
    """Answers what is typed, a question a line, until the input ends; `/image FILE ...` changes the images. show: prints one."""
    images: list[str] = arguments.image
    hints = sys.stdin.isatty()
    if hints:
        print("A question a line; /image FILE changes the image, Ctrl-D ends.", file=sys.stderr)
    while True:
        if hints:
            print("question> ", end="", file=sys.stderr, flush=True)
        if not (text := sys.stdin.readline()):
            return DONE
        try:
            if text.startswith("/image "):
                named = shlex.split(text.removeprefix("/image "))
                checks.images(named)
                images = named
            elif text.strip():
                show(model.answer(images, text.strip(), arguments.latent_steps, arguments.max_new_tokens), model.dtype)
        except (OSError, ValueError) as error:  # the next question may be a better one
            print(f"vital answer: {' '.join(str(error).split())}", file=sys.stderr)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How much is asked: --question, --questions with --batch and --out, or --interactive."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--question", metavar="TEXT", help="one question")
    asked.add_argument(
        "--questions", type=Path, metavar="FILE", help='JSON lines {"question", "image", "id"?}; answers are JSON lines'
    )
    asked.add_argument("--interactive", action="store_true", help="questions are typed, one a line")
    parser.add_argument(
        "--batch", type=whole, default=8, metavar="B", help="of --questions: rows of a program, default 8"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of --questions: keep the answers there; the same one goes on"
    )


def as_json(answer: Any, text: str = "answer") -> dict[str, Any]:
    """An answer with its text first, under this name."""
    found = dataclasses.asdict(answer)
    return {text: found.pop("text"), **found}
