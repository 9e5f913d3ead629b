"""What kind of model a folder holds, told by the names of its files alone, so that a mistyped one costs no import of jax."""

import json
from pathlib import Path

from vital_jax.pipeline.families import TITLES

FACTS = "vital.json"  # of what `vital export` writes, and the mark of a folder that it may overwrite
ADAPTER, CONFIG = "adapter_config.json", "config.json"
RUN, EXPORT, BASE = "a training run", "an export or an adapter", "a base model"


class NoScaffoldError(ValueError):
    """A model has no text decoder and no visual projector, so its latent steps can be neither read nor shown."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model's weights; its base's configuration may lie beside it."""
    return (Path(folder) / ADAPTER).is_file() and not any(Path(folder).glob("model*.safetensors"))


def kind(folder: str | Path) -> str:
    """RUN, EXPORT or BASE. Raises: FileNotFoundError for no such folder; ValueError for one that holds none of these."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give a training run's folder or a Hugging Face one ({TITLES})"
        )
    if (folder / "checkpoints").is_dir():
        return RUN
    if (folder / FACTS).is_file() or is_adapter(folder):
        return EXPORT
    if (folder / CONFIG).is_file():
        return BASE
    raise ValueError(
        f"{folder} holds neither checkpoints (a training run's folder), nor {CONFIG} (a Hugging Face folder: {TITLES}), nor {ADAPTER} (an "
        "adapter)"
    )


def check(
    folder: str | Path,
    base: str | Path | None = None,
    text_decoder: str | Path | None = None,
    encoder: str | Path | None = None,
    steps: bool = False,
    explain: bool = False,
) -> str:
    """The kind of a model's folder, where what is asked of it and the folders named beside it go with that kind; the arguments of `load`.

    Raises: as `kind`; FileNotFoundError for a folder beside it that is not there; ValueError for one that this kind has no use for;
      NoScaffoldError for one that is to be explained and holds nothing that could.
    """
    found = kind(folder)
    if found == BASE and (explain or encoder):
        raise NoScaffoldError(
            f"{folder} is a base model: name a training run's folder, or an export with explain/ in it"
        )
    if found == EXPORT and explain:
        _check_scaffold(Path(folder), encoder)
    if found == EXPORT and text_decoder:
        raise ValueError(
            f"{folder} is an export: it brings its text decoder along, or has none; leave text_decoder out"
        )
    if found == BASE and (steps or base or text_decoder):
        raise ValueError(
            f"{folder} is a base model without latent steps: base, text_decoder and steps are for a run's folder"
        )
    for name, given in (("base", base), ("text_decoder", text_decoder), ("encoder", encoder)):
        if given and not Path(given).is_dir():
            raise FileNotFoundError(f"{name} (--{name.replace('_', '-')}): no folder {given}")
    return found


def _check_scaffold(folder: Path, encoder: str | Path | None) -> None:
    """Raises: NoScaffoldError for an export from which nothing can be explained."""
    path = folder / "explain" / CONFIG
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not {"text", "visual"} & table.keys():
        raise NoScaffoldError(
            f"{folder} holds no explain/ with text decoder or projector: name the run's folder, or an export that was made without "
            "--no-explain (of an adapter beside a whole model, the whole one)"
        )
    if "text" not in table and not encoder:
        raise NoScaffoldError(
            f"{folder} has a projector alone, and no export holds an encoder: name the folder of {table['visual']['encoder']} as encoder "
            "(--encoder)"
        )
