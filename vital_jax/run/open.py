"""Opening a training run's folder: what a checkpoint and the folders it stands on say, checked; parameters when they are asked for.

The only way into such a folder for whoever answers, explains, audits, exports or serves. `open_run` reads the checkpoint's record and the
names of its arrays, finds the base and compares it; tokenizers and weights are read when first asked for. So a mistake costs a second.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vital_jax.hub.encoders import identity
from vital_jax.hub.load import load_backbone
from vital_jax.hub.place import check_base, located
from vital_jax.latent.loop import KEPT
from vital_jax.methods.base import Method, get
from vital_jax.models.backbone import LATENT_STATES
from vital_jax.models.config import read_json
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.images import ImageConfig
from vital_jax.run import setup
from vital_jax.training.checkpoint import Checkpoints
from vital_jax.training.config import steps_in_use

# Folders that a run names in its configuration: what stands in for one that moved, here and on the command line.
_STAND_INS = {
    "model.folder": ("base", "--base"),
    "model.text_decoder": ("text_decoder", "--text-decoder"),
    "data.encoder": ("encoder", "--encoder"),
    "data.records": ("records", "--data"),
}
TEXT = ("scaffold/pj_in", "scaffold/text_decoder")  # what reads a latent as text
VISUAL = ("scaffold/visual_projector",)  # what places it among regions of images


@dataclass(frozen=True, eq=False)
class Run:
    """One checkpoint of a training run; made by `open_run`.

    Attributes:
      folder: the run's. config: as it was trained, folders as they were named there.
      meta: the checkpoint's record (see `training.checkpoint.make_meta`). step: optimizer steps done.
      leaves: shapes and dtypes of the parameters that the checkpoint holds, by path: all that any phase trains.
      given: folders in place of those that the configuration names, by key.
    """

    folder: Path
    config: ConfigDict = field(repr=False)
    meta: Mapping[str, Any] = field(repr=False)
    leaves: Mapping[str, Any] = field(repr=False)
    given: Mapping[str, Path]

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def phases(self) -> Sequence[ConfigDict]:
        """Those trained so far: a run stopped in its first phase has not learned the steps of its last."""
        return self.config.phases[: self.meta["phase"] + 1]

    @property
    def latent_steps(self) -> int:
        """K, the largest it was trained with so far, which it is asked with; 0 without latents."""
        return steps_in_use(self.phases)

    @property
    def kind(self) -> str:
        """The name of its method."""
        return self.config.method.name

    def need_latents(self, purpose: str) -> None:
        """Refuses a run without latent steps by its method's name. purpose: what it would need them for ("explain")."""
        if not self.latent_steps:
            raise ValueError(f"{self.folder}: this run is {self.kind!r}: it has no latent steps to {purpose}")

    @property
    def exports(self) -> bool:
        """Whether the loop that goes out with an export can run its method."""
        return get(self.kind).exports

    @property
    def latent_state(self) -> str:
        """Which state it feeds back: after the final norm, or before it."""
        return self.config.method.get("latent_state", LATENT_STATES[0])

    @property
    def parts(self) -> frozenset[str]:
        """What there is to read: `base`, the trained trees (`lora`) and the parts of the scaffold (`scaffold/pj_in`)."""
        names = (path.split("/") for path in self.leaves)
        return frozenset({"base", *("/".join(name[: 1 + (name[0] == "scaffold")]) for name in names)})

    @property
    def roi_width(self) -> int | None:
        """E of the visual projector; None where the checkpoint has none."""
        last = self.leaves.get("scaffold/visual_projector/w2/kernel")
        return None if last is None else int(last.shape[0])

    @functools.cached_property
    def base(self) -> Path:
        """The folder of its base. Raises: as `place`; ValueError for another base than the one it was trained on."""
        return self.place("model.folder", lambda path: check_base(self.folder, path, self.meta["base_fingerprint"]))

    @functools.cached_property
    def text_decoder(self) -> Path:
        """The folder of the text decoder. Raises: as `place`."""
        return self.place("model.text_decoder")

    @functools.cached_property
    def encoders(self) -> frozenset[str]:
        """What tells the encoder of its region features from others, where those are still to be seen; whoever has the run need not have
        its records."""
        data = self.config.data
        with contextlib.suppress(FileNotFoundError):
            made = (self.place("data.records") / data.features).glob("*/info.json") if data.features else ()
            return frozenset(read_json(info.parent, info.name)["fingerprint"] for info in made)
        return frozenset()

    @functools.cached_property
    def region_encoder(self) -> Path:
        """The folder of the encoder of its region features, compared with those where they are still to be seen.

        Raises: as `place`; ValueError for another encoder.
        """

        def check(path: Path) -> None:
            if self.encoders and self.encoders != {found := identity(path, self.config.data.max_pixels)}:
                raise ValueError(
                    f"{self.folder} was trained on region features of encoder {', '.join(sorted(self.encoders))}, {path} is {found}; name "
                    "the folder of that encoder as encoder (--encoder)"
                )

        return self.place("data.encoder", check)

    def place(self, key: str, check: Callable[[Path], Any] = lambda path: None) -> Path:
        """The folder that the configuration names under `key`, or the one given in its place.

        A relative one is looked for from here, from where the run was started, and from the run's folder upwards.

        Raises: FileNotFoundError naming the key and what to give; what `check` raises (see `located`).
        """
        argument, option = _STAND_INS[key]
        if key in self.given:
            return located([self.given[key]], check, f"{argument} ({option}): no folder {self.given[key]}")
        part, _, name = key.partition(".")
        named, started = self.config[part][name], self.meta["started_in"]
        upwards = (self.folder.resolve(), *self.folder.resolve().parents)
        starts = () if not named else ("",) if Path(named).is_absolute() else ("", started, *upwards)
        absent = (
            f"{self.folder} needs config.{key}={named!r}, which is neither there from {Path.cwd()}, nor from where the run was "
            f"started ({started}), nor beside the run: name the folder as {argument} ({option} FOLDER)"
        )
        return located((Path(start) / named for start in starts), check, absent)

    def method(self, scaffold: Collection[str] = ()) -> Method:
        """The method without parameters, as one device answers with it, with these parts of its scaffold (see `setup.make_method`).

        Raises: as `setup.make_method`; ValueError naming the version where the configuration is another version's.
        """
        config = self.config.copy_and_resolve_references()
        with self._config():
            config.model.update(folder=str(self.base), remat="none", attention="auto")
            if "text_decoder" in scaffold:
                config.model.text_decoder = str(self.text_decoder)
            return setup.make_method(config, self.roi_width, scaffold)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Questions to rows, as in training. Raises: as `Encoder.from_folder`."""
        with self._config():
            data = self.config.data
            return Encoder.from_folder(self.base, data.max_pixels, setup.token_texts(self.config), system=data.system)

    @property
    def tokens(self) -> Mapping[str, int]:
        """The rows of the tokens that its method added, by text. Raises: as `encoder`."""
        return self.encoder.prompter.added if setup.token_texts(self.config) else {}

    @property
    def images(self) -> ImageConfig:
        """How it resizes images: nothing of its tokenizer is read. Raises: as `ImageConfig.from_folder`."""
        return ImageConfig.from_folder(self.base, self.config.data.max_pixels)

    @property
    def answer_tokens(self) -> int:
        """The most tokens it writes for a question: the answer, and whatever its method writes before. Raises: as `method`, `encoder`."""
        asking = self.method().asking(self.latent_steps, setup.budgets_of(self.config, self.roi_width))
        columns = asking.bound(self.encoder.prompter).segments
        return sum(segment.budget for segment in columns if segment.kind == "tokens" and not segment.branch)

    @contextlib.contextmanager
    def _config(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, KeyError) as error:  # a key that this package reads and that one did not write
            raise ValueError(
                f"{self.folder}: vital_jax {self.meta['written_by']} wrote its checkpoint, whose configuration lacks what this version "
                f"reads ({error}); use that one"
            ) from error

    def read_trained(self, parts: Collection[str], sharding: Any = None) -> dict[str, Any]:
        """What the checkpoint holds of these parts or leaves, nested, in the precision it was trained in.

        Args: sharding: of every array; by default the first device.
        Raises: as `Checkpoints.read_parameters`.
        """
        place = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        chosen = [path for path in self.leaves if any(path == part or path.startswith(f"{part}/") for part in parts)]
        with _checkpoints(self.folder) as checkpoints:
            return checkpoints.read_parameters(chosen, place, self.step)

    def read_params(self, parts: Collection[str] = ("base", *KEPT)) -> dict[str, Any]:
        """These parts (see `parts`; absent ones are left out) on the first device: the base as frozen, with what the run trained put in.

        Raises: as `read_trained` and `load_backbone`.
        """
        tree, model = {}, self.config.model
        if "base" in parts:
            quantize = model.get("quantize", "")
            tree["base"] = load_backbone(self.base, None, model.param_dtype, quantize=quantize)[1]
        return setup.overlay(tree, self.read_trained(parts))


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", read_only=True)


def open_run(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    text_decoder: str | Path | None = None,
    encoder: str | Path | None = None,
    step: int | None = None,
) -> Run:
    """Opens a run's folder for reading; weights stay on disk.

    Args:
      folder: it holds `checkpoints`.
      base, text_decoder, encoder: folders that are no longer where the run's configuration says.
      step: of the checkpoint; by default the newest complete one.
    Raises: FileNotFoundError for a folder, checkpoint or base that is not there; ValueError for a checkpoint of another format or a base
      other than the one trained on. Each names what to give.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name a training run's folder")
    if not (folder / "checkpoints").is_dir():
        raise FileNotFoundError(f"{folder} holds no checkpoints: name a training run's folder")
    with _checkpoints(folder) as checkpoints:
        meta = checkpoints.read_meta(step)
        leaves = checkpoints.parameters(meta["step"])
    moved = {"model.folder": base, "model.text_decoder": text_decoder, "data.encoder": encoder}
    given = {key: Path(path) for key, path in moved.items() if path}
    config = ConfigDict(meta["config"])
    config.phases = tuple(map(ConfigDict, config.phases))
    run = Run(folder, config, meta, leaves, given)
    run.base  # noqa: B018 (compared now)
    return run
