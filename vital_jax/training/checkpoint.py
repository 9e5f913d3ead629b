"""Checkpoints: a state and the record of what made it, written in the background, refused by name where they misfit.

A step folder is written under a temporary name and renamed when complete, so a killed run leaves its previous
checkpoints and a leftover that the next writer removes. What a rename cannot protect from is a folder damaged
afterwards (an interrupted copy or `rm -r`): a step that lacks a part is never picked up, and the writer moves it aside,
since the manager would otherwise silently refuse every save up to that step.

Only what trains (in this phase or in another), the optimizer state and the step number are stored; the frozen base is known by its
fingerprint.
"""

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from vital_jax import __version__
from vital_jax.training import distributed
from vital_jax.training.partition import flatten, unflatten

FORMAT_VERSION = 2
META_KEYS = (
    *("format_version", "written_by", "started_in"),
    *("config", "base_fingerprint", "method", "switches", "phase", "step"),
)
OTHER_PHASES = "other_phases"  # in a state: leaves that are frozen in its phase and trained in another
_WRITERS = {1: "0.1.0"}  # of the formats that did not record it
CLOCK = "clock"  # in the record of a training run: what its clock has counted, so that a restart goes on counting

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
# Every file that Orbax needs before it can read one array; data files are checked when they are read.
_PARTS = ("_CHECKPOINT_METADATA", "meta/metadata", "state/_METADATA", "state/manifest.ocdbt")


def make_meta(
    config: Mapping[str, Any],
    base_fingerprint: str,
    method: str,
    switches: Mapping[str, Any],
    phase: int,
    step: int,
    clock: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The record saved beside a state, plain JSON; it says which version wrote it and where that was started, for paths that are relative.

    Args:
      config: resolved. base_fingerprint: of the frozen weights. method: its name.
      switches: those that change what is computed, by name.
      phase, step: index of the phase, and optimizer steps done in the run. clock: of `Clock.state`, if there is one.
    """
    return {
        **({CLOCK: dict(clock)} if clock is not None else {}),
        "format_version": FORMAT_VERSION,
        "written_by": __version__,
        "started_in": str(Path.cwd()),
        "config": dict(config),
        "base_fingerprint": base_fingerprint,
        "method": method,
        "switches": dict(switches),
        "phase": phase,
        "step": step,
    }


def check_readable(saved: Mapping[str, Any]) -> None:
    """Refuses a record of another format than this package writes. Raises: ValueError that says which version wrote it and what to do."""
    version = saved.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        writer = saved.get("written_by") or _WRITERS.get(version, "(not recorded)")
        older = "use that version for it, or train it again in another folder"
        raise ValueError(
            f"vital_jax {writer} wrote it in format {version}, and this is vital_jax {__version__}, which reads format {FORMAT_VERSION}: "
            + ("update vital_jax" if version > FORMAT_VERSION else older)
        )
    if missing := [key for key in META_KEYS if key not in saved]:
        raise ValueError(f"its record lacks {', '.join(missing)}: it was not written by this package, or it was edited")


def check_compatible(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint that another base, method or switch made.

    The rest of the configuration may differ: another learning rate or batch size is a choice, another latent norm is
    another model.

    Raises: ValueError that names every such key with the saved value, this run's and the way out.
    """
    absent = "(absent)"
    pairs = [(key, saved[key], current[key]) for key in ("base_fingerprint", "method")] + [
        (f"switches.{key}", saved["switches"].get(key, absent), current["switches"].get(key, absent))
        for key in sorted({*saved["switches"], *current["switches"]})
    ]
    ways_out = {"base_fingerprint": "point the run at the base weights it was trained on"}
    if differing := [
        f"{key}: the checkpoint has {old!r}, this run has {new!r}; "
        f"{ways_out.get(key, f'set it to {old!r}')}, or start in another folder"
        for key, old, new in pairs
        if old != new
    ]:
        raise ValueError("checkpoint does not fit this run:\n  " + "\n  ".join(differing))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays: a target for `restore` that holds no memory."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def _missing_part(step_folder: Path) -> str | None:
    return next((part for part in _PARTS if not (step_folder / part).exists()), None)


def _step_folders(folder: Path) -> dict[int, Path]:
    return {int(path.name): path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.isdecimal()}


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (" ..." if len(paths) > 5 else "")


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _registry() -> ocp.handlers.CheckpointHandlerRegistry:
    """Says how each part is stored before any was saved, so that a reader can ask for its metadata."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, handler, *arguments in (
        ("state", ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave, ocp.args.PyTreeRestore),
        ("meta", ocp.JsonCheckpointHandler(), ocp.args.JsonSave, ocp.args.JsonRestore),
    ):
        for argument in arguments:
            registry.add(item, argument, handler)
    return registry


def _policy(keep: int | None, keep_every: int, best: tuple[str, str] | None, keep_best: int) -> Any:
    policies = [checkpoint_managers.LatestN(keep)]
    if keep_every:
        policies.append(checkpoint_managers.EveryNSteps(keep_every))
    if best is not None:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[best[1]],
                reverse=best[0] == "min",
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return checkpoint_managers.AnyPreservationPolicy(policies)


@contextlib.contextmanager
def _quiet(asked: bool) -> Iterator[None]:
    """Without Orbax's warnings that what was opened for reading only is read-only."""
    kept = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR if asked else kept)
    try:
        yield
    finally:
        logging.set_verbosity(kept)


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the save in flight when left.

    Args:
      folder: one sub-folder per step. keep: how many of the newest steps stay; None keeps all.
      read_only: for evaluation and export; creates, moves and removes nothing.
      best: "min NAME" or "max NAME" of a metric given to `save`; the `keep_best` best steps by it stay too. Empty: none.
      keep_every: steps that are a multiple of it stay too; 0: none.
    Raises: FileNotFoundError for a folder that is not there, when read-only; ValueError for another `best`.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int | None = 3,
        read_only: bool = False,
        best: str = "",
        keep_best: int = 1,
        keep_every: int = 0,
    ):
        mode, _, name = best.partition(" ")
        if best and (mode not in ("min", "max") or not name):
            raise ValueError(f'checkpoint.best={best!r}: write "min NAME" or "max NAME", for instance "min task"')
        self._best = (mode, name) if best else None
        self.folder = Path(folder).resolve()
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"no checkpoint folder at {self.folder}")
        self._read_only = read_only
        if not read_only and self.folder.is_dir() and jax.process_index() == 0:
            self._set_aside()
        with _quiet(read_only):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=None if read_only else _policy(keep, keep_every, self._best, keep_best),
                    best_fn=(lambda metrics: metrics[name]) if best else None,
                    best_mode=mode if best else "max",
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=False,  # in a thread that outlives a run refused at its start; see `_set_aside`
                ),
                handler_registry=_registry(),
            )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            with self._naming_the_folder():
                self._manager.close()
        except Exception as error:
            if kind is None:
                raise
            _say(str(error))  # what ended the run comes first

    def _set_aside(self) -> None:
        """Removes what a killed save was writing, and moves steps that lack a part out of the way, with a word on stderr."""
        for path in self.folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in _step_folders(self.folder).values():
            if part := _missing_part(path):
                names = (path.with_name(f"{path.name}.incomplete-{number}") for number in itertools.count())
                aside = path.rename(next(name for name in names if not name.exists()))
                _say(f"checkpoint {path} lacks {part}: not used, moved to {aside.name}")

    def latest_step(self) -> int | None:
        """The newest complete step, or None. A step that lacks a part is passed over with a word on stderr."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            part = _missing_part(self.folder / str(step))
            if part is None:
                return step
            _say(f"checkpoint {self.folder / str(step)} lacks {part}: passed over")
        return None

    def _check_for_errors(self) -> None:
        with self._naming_the_folder():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        """A full disk, a quota or a lost mount arrives from a writer's thread, in many shapes and without a path."""
        try:
            yield
        except Exception as error:
            if distributed.lost_a_peer(
                error
            ):  # processes meet to save: that one of them died is no fault of the folder
                raise
            kept = sorted(_step_folders(self.folder)) if self.folder.is_dir() else []
            raise OSError(
                f"saving to {self.folder} failed ({str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__}); "
                f"complete there: {kept or 'nothing'}. Make room, or repair the folder, and start again"
            ) from error

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Starts saving; returns when the arrays have left the devices, so the state may be donated next.

        Args:
          metrics: of this step, where the best are kept; a step whose metric is missing or None is not among the best.
        Raises: ValueError for a record that lacks a key, names another step or is not JSON; for a step not behind the
          newest one saved; for a folder opened read-only; OSError for this save or the one before, if it failed. What was complete before
          stays: a step counts, and older ones go, only when it is whole.
        """
        self._check_for_errors()
        if self._read_only:
            raise ValueError(f"{self.folder} was opened read-only: nothing can be saved there")
        if set(meta) - {CLOCK} != set(META_KEYS) or meta["step"] != step:
            raise ValueError(
                f"the record of step {step} must hold exactly {', '.join(META_KEYS)}, and that step; "
                f"it holds {dict(meta)}"
            )
        try:
            json.dumps(meta)
        except TypeError as error:
            raise ValueError(f"the record of step {step} is not plain JSON: {error}") from None
        found = None
        if self._best and (value := (metrics or {}).get(self._best[1])) is not None:
            found = {self._best[1]: float(value)}
        arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(dict(meta)))
        with self._naming_the_folder():
            written = self._manager.save(step, args=arguments, metrics=found)
        if not written:
            raise ValueError(
                f"step {step} was not saved: {self.folder} already holds step {self._manager.latest_step()}. "
                "Resume from that step, or start in another folder"
            )

    def wait(self) -> None:
        """Returns when the save in flight is committed. Raises: OSError, if it failed."""
        with self._naming_the_folder():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def _resolve(self, step: int | None) -> int:
        self.wait()
        found = self.latest_step() if step is None else step
        if found is None:
            raise FileNotFoundError(f"no complete checkpoint in {self.folder}")
        if found not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint of step {found} in {self.folder}; it holds {sorted(self._manager.all_steps())}"
            )
        if part := _missing_part(self.folder / str(found)):
            raise FileNotFoundError(
                f"checkpoint {self.folder / str(found)} lacks {part}: "
                f"use another step of {sorted(self._manager.all_steps())}"
            )
        return found

    def _read(self, step: int, **items: Any) -> Any:
        with self._naming_damage(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _saved_leaves(self, step: int) -> dict[str, Any]:
        with self._naming_damage(step):
            return _by_path(self._manager.item_metadata(step)["state"].tree)

    @contextlib.contextmanager
    def _naming_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            first = str(error).splitlines()[0][:200]
            raise ValueError(
                f"checkpoint {self.folder / str(step)} cannot be read ({first}); "
                "if it is damaged, delete that folder to go on from the step before"
            ) from error

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """The record of a step (the newest by default).

        Raises: FileNotFoundError, ValueError as `restore`; ValueError as `check_readable`, naming the folder.
        """
        step = self._resolve(step)
        meta = self._read(step, meta=ocp.args.JsonRestore()).meta
        try:
            check_readable(meta)
        except ValueError as error:
            raise ValueError(f"checkpoint {self.folder / str(step)}: {error}") from None
        return meta

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a step (the newest by default), bit for bit as saved, with the target's shardings.

        Args:
          target: a state of arrays or of ShapeDtypeStructs (see `abstract`); every leaf must be in the checkpoint with
            its shape and dtype.
        Raises: FileNotFoundError when there is no such complete step; ValueError that lists the leaves that do not fit,
          or says what is damaged.
        """
        step = self._resolve(step)
        self._check(step, self._saved_leaves(step), _by_path(target))
        read = self._read(step, state=_restore_args(abstract(target)), meta=ocp.args.JsonRestore())
        return read.state, read.meta

    def parameters(self, step: int | None = None) -> dict[str, Any]:
        """Shapes and dtypes of a step's parameters by path, whether its phase trains them or another. Raises: as `restore`."""
        return {path.partition("/")[2]: leaf for path, leaf in self._parameters(self._resolve(step)).items()}

    def _parameters(self, step: int) -> dict[str, Any]:
        leaves = self._saved_leaves(step)
        return {path: leaf for path, leaf in leaves.items() if path.partition("/")[0] in ("trainable", OTHER_PHASES)}

    def read_parameters(self, prefixes: Sequence[str], sharding: Any, step: int | None = None) -> dict[str, Any]:
        """The parameters whose paths start with one of `prefixes`, nested; optimizer state and the rest stay on disk.

        Raises: FileNotFoundError, ValueError as `restore`.
        """
        step = self._resolve(step)
        target = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for path, leaf in self._parameters(step).items()
            if path.partition("/")[2].startswith(tuple(prefixes))
        }
        if not target:
            return {}
        read = flatten(self._read(step, state=_restore_args(unflatten(target), partial=True)).state)
        return unflatten({path.partition("/")[2]: leaf for path, leaf in read.items() if path in target})

    def _restore_trainable(self, target: Mapping[str, Any], step: int, strict: bool) -> dict[str, Any]:
        """See `init_from`."""
        leaves = self._saved_leaves(step)
        saved = {
            path.removeprefix("trainable/"): leaf for path, leaf in leaves.items() if path.startswith("trainable/")
        }
        flat = flatten(target)
        common = {path: leaf for path, leaf in flat.items() if path in saved}
        self._check(step, saved if strict else {path: saved[path] for path in common}, flat if strict else common)
        if not common:
            raise ValueError(f"checkpoint {self.folder / str(step)} shares no trainable leaf with this run")
        wanted = {"trainable": abstract(unflatten(common))}
        read = flatten(self._read(step, state=_restore_args(wanted, partial=True)).state["trainable"])
        for paths, words in (
            ([path for path in flat if path not in saved], "are not in it and stay as they are"),
            ([path for path in saved if path not in flat], "are only in it and were ignored"),
        ):
            if paths:
                _say(f"init from {self.folder / str(step)}: {len(paths)} leaves {words}: {_some(paths)}")
        return unflatten({**flat, **read})

    def _check(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Orbax would cast to another dtype in silence, and name no leaf of another shape."""
        problems = [f"{path}: not in the checkpoint" for path in wanted if path not in saved]
        problems += [f"{path}: only in the checkpoint" for path in saved if path not in wanted]
        problems += [
            f"{path}: the checkpoint has {_describe(saved[path])}, this run has {_describe(leaf)}"
            for path, leaf in wanted.items()
            if path in saved and _describe(saved[path]) != _describe(leaf)
        ]
        if problems:
            lines = problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
            raise ValueError(f"checkpoint {self.folder / str(step)} does not fit this run:\n  " + "\n  ".join(lines))


def _restore_args(target: Any, partial: bool = False) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
    )


def init_from(
    folder: str | Path, target: Mapping[str, Any], step: int | None = None, strict: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trainable parameters of another run, and its record: a start, not a resume (no optimizer state, step 0).

    Args:
      folder: the other run's checkpoints. target: nested dict of arrays; gives shapes and shardings.
      step: the newest by default.
      strict: both hold the same leaves; otherwise leaves the checkpoint lacks keep the target's values, and leaves only
        it has are ignored (both are named on stderr).
    Raises: FileNotFoundError as `Checkpoints`; ValueError that lists the leaves that do not fit, or as `read_meta`.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        meta = checkpoints.read_meta(step)
        return checkpoints._restore_trainable(target, meta["step"], strict), meta
