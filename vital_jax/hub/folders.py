"""What kind of model a folder holds, told by the names of its files alone, so that a mistyped one costs no import of jax."""

from pathlib import Path

from vital_jax.pipeline.families import TITLES

FACTS = "vital.json"  # of what `vital export` writes, and the mark of a folder that it may overwrite
ADAPTER, CONFIG = "adapter_config.json", "config.json"
RUN, EXPORT, BASE = "a training run", "an export or an adapter", "a base model"


class NoScaffoldError(ValueError):
    """A model has no text decoder and no visual projector, so its latent steps can be neither read nor shown."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a model."""
    return (Path(folder) / ADAPTER).is_file() and not (Path(folder) / CONFIG).is_file()


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
      NoScaffoldError, it is to be explained and no run.
    """
    found = kind(folder)
    if found != RUN and (explain or encoder):
        raise NoScaffoldError(
            f"{folder} is no training run's folder: the scaffold that explains is in the run's checkpoints"
        )
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
