"""Does a recipe fit a slice, and is it laid out well? Its programs, compiled from shapes alone for chips that need not be there.

The training step is the function that `train.py` jits, whole: vision tower, tables, deepstack, latent loop, text decoder, AdamW. Every
budget of its batch is full, so no batch of that bucket needs more. What the compiler plans is what it would allocate on the chips; what it
sends between them is read from the program it made (training/hlo.py).
"""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import Plan, respond
from vital_jax.latent.loop import LOOP, variables_of
from vital_jax.methods.base import Method
from vital_jax.models.attention import implementation_for
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run import flops, lesson, program, setup
from vital_jax.training import chips, hlo
from vital_jax.training.sharding import ROWS

_TOO_LARGE = re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_GIB = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}
_PREVIEW_ROWS = 8  # rows of a program that answers while training (evaluate/preview.py)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says of one program.

    Attributes:
      name: `train` or `sample`. rows: over all chips. S, P, K: prefix tokens, patches and latent steps.
      peak, limit: GiB of one chip; limit is None where the chip is not known, peak what would be needed where that is more than it has.
      seconds: of compiling. flops: of the model, all chips together, by arithmetic; None for a sampler.
      loop, total: bytes that one chip sends in the latent loop, and in the whole program; None where nothing could be compiled, or
        where `unread` says why they could not be counted.
    """

    name: str
    rows: int
    S: int
    P: int
    K: int
    peak: float
    limit: float | None
    seconds: float
    flops: float | None = None
    loop: float | None = None
    total: float | None = None
    unread: str = ""

    @property
    def fits(self) -> bool | None:
        """None where the chip's memory is not known."""
        return None if self.limit is None else self.peak <= self.limit


def _compile(lowered: jax.stages.Lowered, chip: str, **facts: Any) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if not (found := _TOO_LARGE.search(str(error))):
                raise
            needed, limit = (float(found[i]) * _GIB[found[i + 1]] for i in (1, 3))
            return Compiled(**facts, peak=needed, limit=limit, seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        made = Compiled(**facts, peak=planned(Path(folder)), limit=chips.memory(chip), seconds=seconds)
    try:
        sent = hlo.collectives(compiled.as_text())
    except hlo.Uncounted as error:
        if facts["name"] == "train":  # which has no such loop: only answers end when their data says so
            raise
        return dataclasses.replace(made, unread=str(error))
    return dataclasses.replace(made, loop=hlo.sent(sent, LOOP), total=hlo.sent(sent))


def planned(folder: Path) -> float:
    """GiB of the chip's memory in the report that the compiler left in `folder`: the number it holds against the chip's when it refuses.

    What jax calls the peak leaves out the gaps between buffers, and its sum of arguments and temporaries counts other memories too.

    Raises: RuntimeError where there is no such report.
    """
    for report in folder.glob("*-memory-usage-report.txt"):
        if found := re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", report.read_text()):
            return int(found[1]) / 2**30
    raise RuntimeError(
        "the compiler left no report of the memory it planned: a program out of jax's compilation cache is not compiled at all "
        "(unset JAX_COMPILATION_CACHE_DIR), and another jaxlib than this package was tested with may write none"
    )


def prepared(config: Any, mesh: Mesh, roi_width: int) -> tuple[Method, str]:
    """The method with the attention its chips take, and what jax calls the chips."""
    device = mesh.devices.flat[0]
    if config.model.attention == "auto":
        config.model.attention = implementation_for(device.platform)
    return setup.make_method(config, roi_width), device.device_kind


@dataclasses.dataclass(frozen=True)
class Folder:
    """The tokens of a model's folder, opened only where a layout has literal text: what is compiled from shapes needs no tokenizer."""

    path: str
    added: tuple[str, ...]

    @classmethod
    def of(cls, config: Any) -> "Folder":
        """Of a configuration's backbone."""
        return cls(config.model.folder, setup.token_texts(config))

    def literal(self, text: str) -> list[int]:
        return Prompter(self.path, self.added).literal(text)


def lower_training(
    config: Any, method: Method, mesh: Mesh, index: int, layout: Layout
) -> tuple[jax.stages.Lowered, dict[str, np.ndarray]]:
    """The training step of phase `index`, lowered for one bucket; and its batch [B, ...]."""
    state, frozen = program.abstract_training(config, method, mesh, index)
    batch = program.full_rows(method, layout, config.batch)
    with jax.set_mesh(mesh):
        if config.get("rl"):
            loss, normalizers, rollouts = lesson.full(config, method, Folder.of(config))
            batch |= rollouts
        else:
            loss, normalizers = program.objective(method, setup.phases_of(config)[index], layout.suffix)
        step = program.train_step(config, config.phases[index], loss, normalizers, state)
        return step.lower(state, frozen, program.abstract_batch(batch, config.micro_batches, mesh)), batch


def lower_sampling(
    config: Any, method: Method, mesh: Mesh, layout: Layout, rows: int = _PREVIEW_ROWS, groups: int = 1
) -> jax.stages.Lowered:
    """The program that answers a batch of `rows` prompts: `groups` answers each; one, as evaluation calls it."""
    batch = program.full_rows(method, layout, rows)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items() if name != "index"}
    variables = variables_of(program.shapes_on(config, method, mesh))
    # Values, which the chips of a topology cannot hold, so they are made outside its mesh.
    sampling = Decoding(config.data.answer, (0,)).rows(rows, groups)
    with jax.set_mesh(mesh):
        plan = Plan(layout.suffix, method.feed, drawn=groups > 1)
        return respond.lower(method.model, variables, shapes, plan, sampling)


def programs(
    config: Any, mesh: Mesh, index: int, S: int, P: int, roi_width: int, names: Collection[str]
) -> Iterator[Compiled]:
    """Compiles the training step of phase `index` and the sampler's programs (with the phase's latents, and without any), one bucket each.

    Args:
      config: resolved (plan.resolve). mesh: of real devices or of a topology's. S, P: the bucket. roi_width: E.
      names: which of them, `train` and `sample`.
    Raises: ValueError naming what does not fit together, before anything is compiled.
    """
    method, chip = prepared(config, mesh, roi_width)
    _check(config, method, mesh, P)
    phase = setup.phases_of(config)[index]
    tokens, facts = Folder.of(config), dict(S=S, P=P)
    if "train" in names:
        layout = dataclasses.replace(setup.layouts_of(config, method, roi_width, tokens)[index], prefix=S, patches=P)
        lowered, batch = lower_training(config, method, mesh, index, layout)
        (columns,) = lesson.columns_of(config, method, tokens, [layout])
        work = flops.of_phase(config, method, index, columns)(batch)
        yield _compile(lowered, chip, name="train", rows=config.batch, K=phase.latent_steps, flops=work, **facts)
    for K in dict.fromkeys((phase.latent_steps, 0)) if "sample" in names else ():
        suffix = method.asking(K, setup.budgets_of(config, None)).bound(tokens)
        rows, groups = lesson.drawing(config) or (_PREVIEW_ROWS, 1)
        lowered = lower_sampling(config, method, mesh, Layout(S, P, suffix), rows, groups)
        yield _compile(lowered, chip, name="sample", rows=rows * groups, K=K, **facts)


def _check(config: Any, method: Method, mesh: Mesh, P: int) -> None:
    """Raises: ValueError for rows that do not divide, or a patch budget that splits a token."""
    groups, four = math.prod(mesh.shape[axis] for axis in ROWS), method.model.config.vision.merge**2
    if config.batch % (config.micro_batches * groups):
        raise ValueError(
            f"config.batch={config.batch}: no multiple of config.micro_batches={config.micro_batches} times data*fsdp = {groups}"
        )
    if P % four:
        raise ValueError(f"{P} patches are not a multiple of {four}, the patches of one token")
