"""Loading at its true size: a random checkpoint in a published layout, read by this package and by transformers, a process each.

    python benchmarks/load_8b.py LAYOUT FOLDER

LAYOUT holds the config.json and the model.safetensors.index.json of a checkpoint: which tensor lies in which shard comes from the index,
the shapes from the configuration, and their sizes must add up to the index's `total_size`. FOLDER gets the shards (17.5 GB for 8B), tensor
by tensor, and is left there; a folder that is whole is used again. Then, on the CPU and one after the other, with the files put out of the
page cache first: `load_backbone` in bfloat16, and transformers' `from_pretrained` (bfloat16, low_cpu_mem_usage).

transformers may leave the numbers in the files, mapped, until they are used: seconds are given to the return of the loader, and to when one
byte of every page has been read. Peak memory is VmHWM, which counts mapped files; `own` is the largest RssAnon seen every 20 ms, the part
that the system could not take back. Ends with status 1 where ours passes --limit. Needs Linux.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from load_memory import memory

_POOL = 1 << 22
_COPIED = ("config.json", "generation_config.json")


def layout(folder: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """(the shard of each tensor, its shape) of the checkpoint that a folder describes.

    Raises: ValueError where index and configuration do not describe the same tensors, or not the same number of bytes.
    """
    from vital_jax.hub.safetensors import INDEX
    from vital_jax.models.backbone import Backbone, abstract_backbone
    from vital_jax.models.families import backbone_entries, read_config
    from vital_jax.training.partition import flatten

    index = json.loads((folder / INDEX).read_text())
    config = read_config(folder)
    leaves, v = flatten(abstract_backbone(Backbone(config))), config.vision
    shapes = {
        name: tuple(leaves[entry.path].shape[int(entry.stacked) :])
        for entry in backbone_entries(config)
        for name in entry.names
    }
    shapes["model.visual.patch_embed.proj.weight"] = (v.width, v.channels, v.temporal_patch, v.patch, v.patch)
    if strange := sorted(set(shapes) ^ set(index["weight_map"])):
        raise ValueError(
            f"{folder}: {len(strange)} tensors are in one of {INDEX} and config.json only, first {strange[0]}"
        )
    size, promised = 2 * sum(map(math.prod, shapes.values())), index["metadata"]["total_size"]
    if size != promised:
        raise ValueError(f"{folder}: the shapes make {size} bytes in bfloat16, {INDEX} promises {promised}")
    return index["weight_map"], shapes


def write(source: Path, folder: Path) -> int:
    """Writes the checkpoint, one tensor in memory at a time; returns its bytes. The index comes last, as the mark of a whole folder."""
    import ml_dtypes

    from vital_jax.hub.safetensors import INDEX, write_file
    from vital_jax.hub.writing import Pending

    shard_of, shapes = layout(source)
    size = 2 * sum(map(math.prod, shapes.values()))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).is_file() and (folder / INDEX).read_bytes() == (source / INDEX).read_bytes():
        return size
    if (free := shutil.disk_usage(folder).free) < size + (1 << 30):
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, the checkpoint takes {size / 1e9:.1f} GB and 1 GB must stay"
        )
    pool = (0.02 * np.random.default_rng(0).standard_normal(_POOL)).astype(ml_dtypes.bfloat16)

    def make(number: int, shape: tuple[int, ...]) -> np.ndarray:
        # From a place of its own in the pool, so that no two tensors are alike.
        return np.resize(np.roll(pool, -7919 * number), shape)

    numbers = {name: number for number, name in enumerate(shapes)}
    for file in sorted(set(shard_of.values())):
        names = sorted(name for name, where in shard_of.items() if where == file)
        dtype = np.dtype(ml_dtypes.bfloat16)
        shard = {
            name: Pending(shapes[name], dtype, lambda name=name: make(numbers[name], shapes[name])) for name in names
        }
        write_file(folder / file, shard)
        with (folder / file).open("rb") as written:
            os.fsync(written.fileno())
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    shutil.copyfile(source / INDEX, folder / INDEX)
    return size


def forget(folder: Path) -> None:
    """Puts the folder's weights out of the page cache, so that every reader reads the disk."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(folder: Path) -> Iterator[Any]:
    """Loads onto the CPU as JAX: nothing but imports first, then the parameters."""
    import jax

    from vital_jax.hub.load import load_backbone

    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    yield
    yield [np.asarray(leaf) for leaf in jax.tree.leaves(load_backbone(folder)[1])]


def theirs(folder: Path) -> Iterator[Any]:
    """Loads onto the CPU as transformers, likewise."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.zeros(1) + 1
    yield
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, low_cpu_mem_usage=True, local_files_only=True, trust_remote_code=False
    )
    yield [parameter.detach().view(torch.int16).numpy() for parameter in model.parameters()]


READERS = {"vital_jax": ours, "transformers": theirs}


def read(reader: str, folder: Path) -> None:
    """Loads and prints baseline, VmHWM, largest RssAnon, the model in bytes, and both times. Runs in the child."""
    own, over = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            own[0] = max(own[0], memory("RssAnon"))

    steps = READERS[reader](folder)
    next(steps)  # imports and the first computation are not loading
    baseline, start = memory("VmRSS"), time.perf_counter()
    threading.Thread(target=watch, daemon=True).start()
    held = next(steps)
    seconds = [time.perf_counter() - start]
    for array in held:
        array.reshape(-1).view(np.uint8)[::4096].max()
    seconds.append(time.perf_counter() - start)
    over.set()
    size = sum(array.nbytes for array in held)
    print(json.dumps([baseline, memory("VmHWM"), max(own[0], memory("RssAnon")), size, *seconds]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", type=Path, help="holds config.json and model.safetensors.index.json")
    parser.add_argument("folder", type=Path, help="gets the shards")
    parser.add_argument("--limit", type=float, default=24.0, help="GiB of host memory that ours may take (24)")
    parser.add_argument("--only", choices=READERS, help="leave the other one out")
    parser.add_argument("--read", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read, options.folder)
        return
    start = time.perf_counter()
    size = write(options.layout, options.folder)
    shard = max(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    gib = lambda count: f"{count / 2**30:.2f}"  # noqa: E731
    print(
        f"{gib(size)} GiB of weights, largest shard {gib(shard)} GiB, ready after {time.perf_counter() - start:.0f} s\n"
    )
    print(
        "| reader | before GiB | peak (VmHWM) GiB | of it own (RssAnon) GiB | own over weights | returns after s | all read after s |"
    )
    print("|---|---|---|---|---|---|---|")
    passed = True
    for reader in [options.only] if options.only else READERS:
        forget(options.folder)
        child = subprocess.run(
            [sys.executable, __file__, "--read", reader, str(options.layout), str(options.folder)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if child.returncode:
            # A negative status is a signal; -9 is what a machine out of memory sends.
            sys.exit(f"{reader} ended with status {child.returncode}\n{child.stderr[-2000:]}")
        baseline, peak, own, held, *seconds = json.loads(child.stdout.splitlines()[-1])
        if held != size:
            sys.exit(f"{reader} holds {held} bytes of parameters, the files {size}")
        numbers = [gib(baseline), gib(peak), gib(own), f"{own / size:.2f}", *(f"{each:.1f}" for each in seconds)]
        print(f"| {reader} | {' | '.join(numbers)} |", flush=True)
        passed &= reader != "vital_jax" or peak <= options.limit * 2**30
    if not passed:
        sys.exit(f"ours took more than {options.limit:g} GiB")


if __name__ == "__main__":
    main()
