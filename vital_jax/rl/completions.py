"""Rollouts on disk: a JSON line for each prompt, its images beside, and a page to look at.

    rollouts/00000012.jsonl   what was drawn after 12 steps: every answer with its rewards and its columns
    rollouts/00000012.html    the same for eyes, images inside
    rollouts/images/          the images of those lines, each once, as the records hold them

A line holds all that an update reads of a rollout, so that a run can learn from the files of another without drawing (`read`).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.construct import pages
from vital_jax.latent.engine import Reply
from vital_jax.pipeline.records import Record, RecordSource
from vital_jax.rl.rollout import Rollout

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 24  # prompts of a page


def path_of(folder: Path, step: int) -> Path:
    """The lines of what was drawn after `step` steps."""
    return folder / f"{step:08d}.jsonl"


def lines(
    rollout: Rollout,
    replies: Sequence[Sequence[Reply]],
    records: Sequence[Record],
    names: Sequence[str],
    advantages: np.ndarray,
) -> list[dict[str, Any]]:
    """A JSON object for each prompt. replies: [N][G]. names: [R], of the reward functions. advantages: [N, G]."""

    def completion(n: int, g: int) -> dict[str, Any]:
        reply, own = replies[n][g], rollout.mode[n, g] != 0
        return {
            "text": reply.text,
            "chain": reply.chain,
            "complete": bool(rollout.complete[n, g]),
            "rewards": dict(zip(names, rollout.rewards[n, g].tolist(), strict=True)),
            "advantage": float(advantages[n, g]),
            "answer_at": int(rollout.answer[n, g]),
            "mode": rollout.mode[n, g][own].tolist(),
            "tokens": rollout.tokens[n, g][own].tolist(),
            "sampler": rollout.sampler[n, g][own].tolist(),
        }

    return [
        {
            "id": record.id,
            "question": record.question,
            "gold": record.answer,
            "images": [_image_name(image) for image in record.images],
            "completions": [completion(n, g) for g in range(len(replies[n]))],
        }
        for n, record in enumerate(records)
    ]


def write(folder: Path, step: int, found: Sequence[dict[str, Any]], records: Sequence[Record], page: bool) -> None:
    """Writes the lines of a rollout and the images that they name, and a page of the first prompts where one is asked for."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in {image for record in records for image in record.images}:
        if not (place := folder / _image_name(image)).exists():
            place.write_bytes(image)
    pages.write_text(path_of(folder, step), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found))
    if page:
        pages.write_text(path_of(folder, step).with_suffix(".html"), show(step, found[:SHOWN], records[:SHOWN]))


def _image_name(image: bytes) -> str:
    kinds = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}
    kind = next((end for start, end in kinds.items() if image.startswith(start)), ".bin")
    return f"images/{hashlib.sha256(image).hexdigest()[:16]}{kind}"


def show(step: int, found: Sequence[dict[str, Any]], records: Sequence[Record]) -> str:
    """The page of some prompts."""
    album = pages.Album()  # type: ignore[no-untyped-call]
    cards = []
    for line, record in zip(found, records, strict=True):
        images = [shown | album.pictures[shown["picture"]] for shown in album.show(record)]
        rewards = [list(one["rewards"].values()) for one in line["completions"]]
        cards.append({**line, "images": images, "spread": len({tuple(each) for each in rewards}) > 1})
    names = list(found[0]["completions"][0]["rewards"]) if found else []
    title = f"Rollouts after step {step}"
    return pages.page("rollouts", TEMPLATES, title=title, cards=cards, names=names)


def read(folder: Path, step: int, source: RecordSource, groups: int, columns: int, names: Sequence[str]) -> Rollout:
    """What `write` wrote, as arrays. groups, columns: G and U of this run. names: its reward functions.

    Raises: FileNotFoundError for a step without a file; ValueError naming file and line for what does not fit this run.
    """
    path, places = path_of(folder, step), {record: number for number, record in enumerate(source.ids)}
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no rollouts of step {step} are kept there; leave config.rl.rollouts empty to draw them"
        )
    rows: list[Rollout] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line, where = json.loads(text), f"{path}, line {number}"
        answers = line["completions"]
        if line["id"] not in places:
            raise ValueError(f"{where}: record {line['id']!r} is not among the records of this run ({source.folder})")
        if len(answers) != groups:
            raise ValueError(f"{where}: {len(answers)} answers, config.rl.group={groups}")
        if (longest := max(len(one["mode"]) for one in answers)) > columns:
            raise ValueError(
                f"{where}: an answer of {longest} columns, this run has room for {columns} (data.answer, data.written)"
            )
        if strange := set(names) - set(answers[0]["rewards"]):
            raise ValueError(
                f"{where}: no reward of {', '.join(sorted(strange))}; there are {', '.join(answers[0]['rewards'])}"
            )

        def padded(name: str, dtype: type, answers: list[dict[str, Any]] = answers) -> np.ndarray:
            return np.stack([np.pad(np.asarray(one[name], dtype), (0, columns - len(one[name]))) for one in answers])

        rows.append(
            Rollout(
                np.asarray(places[line["id"]], np.int32),
                padded("mode", np.int32),
                padded("tokens", np.int32),
                padded("sampler", np.float32),
                np.asarray([one["answer_at"] for one in answers], np.int32),
                np.asarray([one["complete"] for one in answers], bool),
                np.asarray([[one["rewards"][name] for name in names] for one in answers], np.float32),
            )
        )
    return Rollout(*(np.stack(part) for part in zip(*rows, strict=True)))
