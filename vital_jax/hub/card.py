"""The model card: what a stranger has to know before running an exported folder. Research only stands first, numbers never without N."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

_TEMPLATE = Path(__file__).parent / "templates" / "card.md"


@dataclass(frozen=True)
class Data:
    """A data set of the training records: its licence, how that is known ("page", "file", "repository", "unknown"), further terms."""

    name: str
    records: int
    licence: str
    basis: str
    note: str = ""
    url: str = ""


@dataclass(frozen=True)
class Metric:
    """A number with what it was counted over; `value` and `interval` as they are shown."""

    name: str
    n: int
    value: str
    interval: str
    protocol: str


@dataclass(frozen=True)
class About:
    """What the run does not record. `encoder` made the region features; `licence` is an SPDX identifier, known as `licence_basis` says."""

    title: str = ""
    licence: str = ""
    licence_basis: str = ""
    encoder: str = ""
    data: Sequence[Data] = ()
    metrics: Sequence[Metric] = ()


def licence_of(folder: str | Path) -> str:
    """The licence that a model folder's own card states, or nothing."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return ""
    try:
        return str(ModelCard.load(path, ignore_metadata_errors=True).data.license or "")
    except (ValueError, UnicodeDecodeError):
        return ""


def render(facts: Mapping[str, Any], form: str, scaffold: Sequence[str], about: About) -> str:
    """README.md.

    Args:
      facts: of vital.json. form: `merged`, `peft` or `both`. scaffold: names inside explain/, empty without it.
    """
    front = ModelCardData(
        license=about.licence.lower() or None,
        library_name="peft" if form == "peft" else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=facts["base"]["name"] if "/" in facts["base"]["name"] else None,
        base_model_relation=("adapter" if form == "peft" else "finetune") if "/" in facts["base"]["name"] else None,
        tags=["custom_generate", "latent-reasoning", "medical", "research-only"],
    )
    # Nothing is escaped: this is Markdown, and the values come from the run.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return f"---\n{front.to_yaml()}\n---\n\n" + page.render(facts=facts, form=form, scaffold=scaffold, about=about)
