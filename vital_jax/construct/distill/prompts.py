"""The words a teacher is asked with: the components of VITAL A.2 as files in `data/prompts`, and the request made of them.

The files `1-...txt` to `6-...txt` in order are the system prompt: role, teacher-only help, leakage, evidence, directions, output.
`user.txt` carries the task, `types.json` the guidance and the examples per type of question, `strict.txt` is appended when a reply was
refused. Their hash is the version that stands beside every reply, so that no reply to other words passes for one to these. A folder of
one's own with the same files can be given instead.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from vital_jax.construct.gate import KEYS, Violation
from vital_jax.construct.targets import DATA
from vital_jax.construct.tasks import Task

FOLDER = DATA / "prompts"
MODES = ("json_schema", "json_object", "text")  # how an endpoint is held to the form, the strictest first
NAMED = 12  # violations that a strict-rules block names at most
_NEEDED = ("user.txt", "strict.txt", "types.json")
_SCHEMA = {
    "type": "object",
    "properties": {KEYS[0]: {"type": "string"}, KEYS[1]: {"type": "array", "items": {"type": "string"}}},
    "required": list(KEYS),
    "additionalProperties": False,
}
_FORMATS = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "lesson", "strict": True, "schema": _SCHEMA}},
    "json_object": {"type": "json_object"},
}
OURS = ("model", "messages", "response_format", "stream", "n")  # fields of a request that no one else sets


@dataclass(frozen=True)
class Prompts:
    """The files of a prompt folder, by name."""

    folder: Path
    files: Mapping[str, str]

    @cached_property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 over all names and texts."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()[:12]

    @cached_property
    def system(self) -> str:
        """The part that is the same in every request."""
        return "\n\n".join(text.strip() for name, text in sorted(self.files.items()) if name[0].isdigit())

    @cached_property
    def types(self) -> dict:
        """`types.json`."""
        return json.loads(self.files["types.json"])

    def kind(self, question_type: str) -> dict:
        """Guidance and examples of a type of question. Raises: ValueError where there are none."""
        if question_type not in self.types["types"]:
            raise ValueError(
                f"{self.folder / 'types.json'}: no guidance for questions of type {question_type!r}; add it"
            )
        return self.types["types"][question_type]

    def user(self, task: Task, violations: Sequence[Violation] = ()) -> str:
        """The part about one task, with the strict rules where earlier replies broke some.

        Raises:
          ValueError: no guidance for this type of question.
        """
        kind = self.kind(task.question_type)
        example = _example(kind["examples"], task)
        steps = _steps(*task.steps)
        options = Template(self.types["options"]).substitute(options="; ".join(task.options)) if task.options else ""
        text = Template(self.files["user.txt"]).substitute(
            target=task.target,
            target_type=task.target_type,
            image=" of ".join(filter(None, (task.modality, task.site))),
            view=self.types["views"]["present" if task.mask else "absent"],
            question_type=task.question_type,
            steps=steps,
            guidance=kind["guidance"],
            question=task.question,
            options=f"{options}\n" if options else "",
            example_question=example["question"],
            example=json.dumps(example["reply"], ensure_ascii=False),
        )
        if not violations:
            return text.strip()
        named = list(dict.fromkeys(f"- {violation}" for violation in violations))[-NAMED:]
        strict = Template(self.files["strict.txt"]).substitute(violations="\n".join(named), steps=steps)
        return f"{text.strip()}\n\n{strict.strip()}"


def load_prompts(folder: str | Path = FOLDER) -> Prompts:
    """Reads a prompt folder.

    Raises:
      ValueError: a file is missing or not what it should be; the message names it.
    """
    folder = Path(folder)
    files = {
        path.name: path.read_text(encoding="utf-8") for path in folder.glob("*") if path.suffix in (".txt", ".json")
    }
    missing = [name for name in _NEEDED if name not in files]
    if missing or not any(name[0].isdigit() for name in files):
        raise ValueError(
            f"{folder}: no prompt folder, {', '.join(missing) or '1-role.txt and the like'} missing; copy {FOLDER}"
        )
    prompts = Prompts(folder, files)
    try:
        rows = prompts.types["types"].values()
        whole = {"present", "absent"} <= prompts.types["views"].keys() and "$options" in prompts.types["options"]
        whole = whole and all(row["guidance"] and row["examples"][0]["reply"] for row in rows)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'types.json'}: not a table of question types ({error!r}); compare {FOLDER}"
        ) from error
    if not whole:
        raise ValueError(f"{folder / 'types.json'}: views, options, guidance or examples missing; compare {FOLDER}")
    return prompts


def request(
    task: Task,
    view: bytes,
    prompts: Prompts,
    model: str,
    mode: str = MODES[0],
    violations: Sequence[Violation] = (),
    extra: Mapping = {},
) -> dict:
    """The body of one chat-completions request.

    Args:
      task: what is asked.
      view: JPEG bytes from `overlay.teacher_view`.
      prompts, model: whom is asked, and how.
      mode: one of `MODES`.
      violations: of earlier replies, which the strict rules name.
      extra: further fields of the body (temperature, max_completion_tokens, ...).

    Raises:
      ValueError: no guidance for the type of question, or `extra` holds a field that is ours.
    """
    if taken := [key for key in OURS if key in extra]:
        raise ValueError(f"request field {taken[0]!r} is set by vital_jax; leave it out of the extra fields")
    picture = {"url": f"data:image/jpeg;base64,{base64.b64encode(view).decode()}"}
    content = [{"type": "text", "text": prompts.user(task, violations)}, {"type": "image_url", "image_url": picture}]
    body = {
        "model": model,
        "messages": [{"role": "system", "content": prompts.system}, {"role": "user", "content": content}],
        **extra,
    }
    return body | ({"response_format": _FORMATS[mode]} if mode in _FORMATS else {})


def request_hash(body: Mapping) -> str:
    """SHA-256 over a request, its picture included."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _example(examples: Sequence[dict], task: Task) -> dict:
    """One with the task's presence and number of steps; where there is none, one with its presence; else the first."""
    low, high = task.steps
    same = [row for row in examples if row.get("absent", False) is not bool(task.mask)]
    right = [row for row in same if low <= len(row["reply"]["reasoning_chain"]) <= high]
    return (right or same or list(examples))[0]


def _steps(low: int, high: int) -> str:
    one = "step" if high == 1 else "steps"
    return f"exactly {low} {one}" if low == high else f"{low} to {high} {one}"
