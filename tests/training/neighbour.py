"""One small process of several, for tests of training/distributed.py: finds the others on loopback and does what its arguments say."""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vital_jax.hub import safetensors
from vital_jax.hub.load import load_backbone
from vital_jax.training import distributed
from vital_jax.training.checkpoint import Checkpoints, make_meta
from vital_jax.training.partition import flatten, unflatten
from vital_jax.training.sharding import base_rows, make_mesh, own_mesh, shardings


def settings(coordinator: str, processes: int, index: int, **changes) -> dict:
    """`config.distributed` as a test wants it: short waits."""
    fixed = dict(coordinator=coordinator, processes=processes, index=index, cluster="none")
    return fixed | dict(heartbeat=15, connect=200, wait=200) | changes


def part(act: str, folder: Path) -> None:
    """What this process does once all are connected."""
    index = jax.process_index()
    if act == "agree":
        distributed.agree("configuration", {"config.seed": 0, "config.optim.learning_rate": 1e-3 if index else 2e-3})
    elif act == "gather":
        assert distributed.gather("numbers", 10 * index) == [10 * i for i in range(jax.process_count())]
        assert distributed.gather("numbers", index) == list(range(jax.process_count()))
        assert distributed.first("work", lambda: {"by": jax.process_index()}) == {"by": 0}
        distributed.agree("configuration", {"config.seed": 0})
        distributed.check_shared(folder)
        distributed.gather("checked", index)  # process 0 has taken its mark away when it comes here
        assert not (folder / ".shared").exists()
    elif act == "absent":
        if index == 1:
            time.sleep(15)
        distributed.gather("late", index)
    elif act == "load":
        read, rows, block = Counter(), safetensors.Tensor.rows, safetensors.Tensor.block

        def counted(tensor, *bounds):
            out = rows(tensor, *bounds)
            read[tensor.offset] += out.nbytes
            return out

        def counted_block(tensor, *bounds):
            block(tensor, *bounds)
            read[tensor.offset] += bounds[-1].nbytes

        safetensors.Tensor.rows, safetensors.Tensor.block = counted, counted_block
        mesh, table = make_mesh(data=1, fsdp=-1), base_rows("fsdp")
        place = lambda path, shape: flatten(  # noqa: E731
            shardings(
                {"base": unflatten({path: jax.ShapeDtypeStruct(shape, "float32")})}, mesh, table, allow_unused=True
            )
        )[f"base/{path}"]
        load_backbone(folder / "model", place, "float32")
        (folder / f"read{index}").write_text(json.dumps(read))
    elif act == "first":
        mesh, own = make_mesh(data=1, fsdp=-1), own_mesh("fsdp")
        whole = {"split": np.arange(12.0).reshape(6, 2), "copied": np.ones(3)}
        places = {"split": PartitionSpec("fsdp"), "copied": PartitionSpec()}
        tree = {
            name: jax.make_array_from_callback(x.shape, NamedSharding(mesh, places[name]), lambda part, x=x: x[part])
            for name, x in whole.items()
        }
        here = distributed.to_first(tree, {name: NamedSharding(own, place) for name, place in places.items()})

        def work() -> float:
            with jax.set_mesh(own):
                return float(jax.jit(lambda x: x["split"].sum() + x["copied"].sum())(here))

        assert distributed.first("sum", work) == 69.0
        assert index == 0 or here == {"split": None, "copied": None}
    elif act == "alone":
        distributed.check_shared(folder / str(index))
    elif act.startswith("killed"):
        if index == int(act[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.gather("never", index)
    elif act == "save":
        everywhere = NamedSharding(make_mesh(data=1, fsdp=-1), PartitionSpec("fsdp"))
        x = jax.make_array_from_callback((8,), everywhere, lambda part: np.arange(8.0)[part])
        with Checkpoints(folder / "checkpoints") as checkpoints:
            for step in (1, 2):
                if (step, index) == (2, 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                checkpoints.save(step, {"trainable": {"x": x}}, make_meta({}, "base", "vital", {}, 0, step))
                checkpoints.wait()
    elif act == "error":
        if index == 1:
            raise ValueError("record 'x7' has no image")
        distributed.gather("never", index)
    elif act == "stop":
        with distributed.StopRequests() as stop:
            for step in range(1, 1000):
                if step == 3 and index == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                distributed.gather("step", step)  # as a collective of a step would, this keeps the processes together
                if stop.at(step):
                    (folder / f"stopped{index}").write_text(str(step))
                    distributed.leave(f"stopped after step {step}")
                time.sleep(0.05)
    distributed.finish()


if __name__ == "__main__":
    address, count, number, act, folder = sys.argv[1:]
    changes = {"wait": 6} if act == "absent" else {}
    try:
        distributed.start(settings(address, int(count), int(number), **changes))
        part(act, Path(folder))
    except Exception as error:  # an assertion above too: a process that only went would leave the others waiting
        print(
            f"error: {error!r}" if isinstance(error, AssertionError) else f"error: {error}", file=sys.stderr, flush=True
        )
        distributed.abandon(error)
        sys.exit(1)
