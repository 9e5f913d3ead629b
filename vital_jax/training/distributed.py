"""Several processes as one program: how they find each other, agree before they work, wait for each other, and end together.

jax brings the coordination service (a key-value store and barriers, served by process 0), the detection of clusters, and heartbeats. What
it lacks is kindness: a dead neighbour ends in a stack trace, or in a collective that never returns. So each process also writes a beat of
its own into the store and reads those of the others; whoever is silent for `heartbeat` seconds is named in a last line, and this process
ends, wherever its main thread may be. A run that ended so is started again with the same command and goes on from its last checkpoint.

With one process everything here does nothing. jax gives no public handle on the store: `jax._src.distributed` is what Orbax uses too.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed as runtime
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

STOPPED = 75  # EX_TEMPFAIL: the state is saved, "try again later" is meant literally; an unsaved end by SIGTERM is 143
_BROKEN = re.compile(
    r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|connection (reset|closed|refused)|coordination service", re.I
)
_ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
_ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "index": "JAX_PROCESS_ID",
}


def _detected(method: str) -> int:
    """Processes of the cluster that jax recognises (TPU on GCE or GKE, SLURM, Open MPI, Kubernetes), 1 where it finds none."""
    if method == "none":
        return 1
    known = {env.name: env for env in ClusterEnv._cluster_types if env.name}
    if method != "auto" and method not in known:
        raise ValueError(
            f"unknown config.distributed.cluster={method!r}: use auto, none or one of {', '.join(sorted(known))}"
        )
    found = [
        env
        for env in ClusterEnv._cluster_types
        if (env.name == method or (method == "auto" and not env.opt_in_only_method)) and env.is_env_present()
    ]
    if method != "auto" and not found:
        raise ValueError(f"config.distributed.cluster={method!r}, but this process was not started by one")
    return found[0].get_process_count() if found else 1


def _on_cpu() -> bool:
    """Whether jax will use the CPU, told without starting it."""
    asked = jax.config.jax_platforms or os.environ.get("JAX_PLATFORMS", "")
    return asked == "cpu" or (not asked and not any(map(importlib.util.find_spec, _ACCELERATORS)))


def start(settings: Mapping[str, Any]) -> None:
    """Connects to the other processes, if there are any. To be called before jax touches a device.

    Args:
      settings: `config.distributed`. `coordinator` (host:port of process 0), `processes` and `index` say it outright, and so do the
        variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; without them jax looks for a cluster (`cluster`: auto,
        none, or one of its names). `heartbeat`, `connect` and `wait` are seconds.
    Raises: ValueError for half an address or an unknown cluster; RuntimeError where process 0 cannot be reached.
    """
    given = {
        key: settings[key] if settings[key] not in ("", None) else os.environ.get(variable)
        for key, variable in _ENVIRONMENT.items()
    }
    missing = [key for key, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"config.distributed.{missing[0]} (or {_ENVIRONMENT[missing[0]]}) is missing: coordinator, processes and index "
            "go together, or leave all three to the cluster"
        )
    arguments: dict[str, Any] = {}
    if not missing:
        try:
            processes, index = int(given["processes"]), int(given["index"])
        except ValueError:
            raise ValueError(f"config.distributed: processes and index are numbers, not {given}") from None
        if not 0 <= index < processes or ":" not in given["coordinator"]:
            raise ValueError(
                f"config.distributed: process {index} of {processes} at {given['coordinator']!r}: "
                "index counts from 0, and the coordinator is HOST:PORT"
            )
        # jax would restrict a process of a known cluster to one device each; who says everything himself decides that too.
        arguments = dict(
            coordinator_address=given["coordinator"],
            num_processes=processes,
            process_id=index,
            cluster_detection_method="deactivate",
        )
    else:
        processes = _detected(settings["cluster"])
        if settings["cluster"] not in ("auto", "none"):
            arguments["cluster_detection_method"] = settings["cluster"]
    if processes == 1:
        return
    if _on_cpu():
        # XLA's threads on a CPU start collectives that do not depend on each other in any order, another one in each process; gloo then
        # pairs what does not belong together. One thread keeps the order of the program.
        os.environ.setdefault("NPROC", "1")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(settings["connect"]),
            # Our own heartbeat names the dead; jax's is for a process whose Python stands still.
            heartbeat_timeout_seconds=3 * int(settings["heartbeat"]),
            shutdown_timeout_seconds=int(settings["connect"]),
        )
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"no connection to process 0 at {runtime.global_state.coordinator_address} within {settings['connect']} s "
            f"(config.distributed.connect): {str(error).splitlines()[0]}"
        ) from None
    global _group
    _group = _Group(settings)
    _group.barrier("start", settings["connect"])
    print(f"process {_group.index} of {_group.count} on {socket.gethostname()}", file=sys.stderr, flush=True)


class _Group:
    """The processes that run together, seen from one of them."""

    def __init__(self, settings: Mapping[str, Any]):
        self.client = runtime.global_state.client
        self.index, self.count = runtime.global_state.process_id, runtime.global_state.num_processes
        self.coordinator = runtime.global_state.coordinator_address
        self.heartbeat, self.patience = float(settings["heartbeat"]), float(settings["wait"])
        self.beat = min(5.0, self.heartbeat / 5)
        self.calls = Counter()
        self.over = threading.Event()
        self.silent: dict[int, float] = {}  # who had not beaten for how many seconds when the store was last read
        self.client.key_value_set(f"vital/who/{self.index}", f"{socket.gethostname()}, pid {os.getpid()}")
        self._say_who_is_gone_when_jax_aborts()
        threading.Thread(target=self._watch, daemon=True).start()

    def read(self, folder: str) -> dict[int, str]:
        """The values that the processes wrote under a name, by process."""
        found = self.client.key_value_dir_get(f"vital/{folder}/")
        return {int(key.rpartition("/")[2]): value for key, value in found}

    def name(self, index: int) -> str:
        return f"process {index} ({self.read('who').get(index, 'never started')})"

    def barrier(self, name: str, seconds: float | None = None) -> str:
        """Waits for all and returns the folder of this call. Raises: TimeoutError naming who did not come."""
        self.calls[name] += 1
        here = f"{name}#{self.calls[name]}"
        seconds = self.patience if seconds is None else seconds
        self.client.key_value_set(f"vital/at/{here}/{self.index}", "")
        try:
            self.client.wait_at_barrier(f"vital/{here}", int(1000 * seconds))
        except jax.errors.JaxRuntimeError:
            absent = sorted(set(range(self.count)) - set(self.read(f"at/{here}")))
            who = ", ".join(map(self.name, absent[:8])) + (" ..." if len(absent) > 8 else "")
            raise TimeoutError(f"waited {seconds:g} s at {name!r} (config.distributed.wait) for {who}") from None
        return here

    def _watch(self) -> None:
        heard = {index: ("", time.monotonic()) for index in range(self.count)}
        number = 0
        while not self.over.wait(self.beat):
            number += 1
            # A store that does not answer: process 0 is gone, and jax aborts this process in a moment, see below.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.client.key_value_set(f"vital/beat/{self.index}", str(number), allow_overwrite=True)
                self._look(heard)

    def _look(self, heard: dict[int, tuple[str, float]]) -> None:
        """Ends this process where another one died, hangs or failed: who is dead comes first, since failures follow from it."""
        now = time.monotonic()
        for index, beat in self.read("beat").items():
            if beat != heard[index][0]:
                heard[index] = (beat, now)
        # The longest silent first: the others may only be slow, or have ended because of it.
        self.silent = dict(sorted(((i, now - since) for i, (_, since) in heard.items()), key=lambda one: -one[1]))
        if dead := self.read("dead"):
            self.leave(next(iter(dead.values())))
        # A process that waits in a barrier while another one fails hears of it here.
        failed = self.read("failed")
        if others := sorted(set(failed) - {self.index}):
            self.leave(f"{self.name(others[0])} stopped: {failed[others[0]]}")
        silent = [index for index, seconds in self.silent.items() if seconds > self.heartbeat]
        if silent and self.index not in silent:
            who = ", ".join(map(self.name, silent[:8]))
            line = f"{who}: no sign of life for {self.heartbeat:g} s (config.distributed.heartbeat), dead or hung"
            self.leave(line, {f"dead/{index}": line for index in silent})

    def leave(self, line: str = "", told: Mapping[str, str] | None = None) -> NoReturn:
        """Ends this process, with a last line if there is one, once `told` stands in the store, if that is still there.

        Process 0 goes last: with it goes the store, in which the others read why they end. It has patience with those that are slow.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # gone before this process had said all
            for key, value in {**(told or {}), f"left/{self.index}": ""}.items():
                self.client.key_value_set(f"vital/{key}", value, allow_overwrite=True)
            until = time.monotonic() + 3 * self.heartbeat
            while (
                self.index == 0 and time.monotonic() < until and len(self.read("left") | self.read("dead")) < self.count
            ):
                time.sleep(self.beat / 10)
        _end(line)

    def _say_who_is_gone_when_jax_aborts(self) -> None:
        """jax aborts a process that lost process 0, in C++ and at once; its own Python callback for this does not work (jax 0.10)."""

        def last_words(_: int) -> None:
            _end(self.last_words())

        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(last_words)
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, self._handler)

    def last_words(self) -> str:
        """What this process knows of why jax ends it, without the store: whether process 0 is there, and who fell silent while it was."""
        host, _, port = self.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            line = "ended by jax, for the reason above"
        except OSError:
            line = f"process 0 at {self.coordinator} no longer answers: dead, unreachable, or ended for what its own last line says"
        # A beat may be late; three in a row are not.
        missed = {
            i: seconds for i, seconds in self.silent.items() if seconds > 3 * self.beat and i not in (0, self.index)
        }
        who = ", ".join(f"process {index}, silent for {seconds:.0f} s before that" for index, seconds in missed.items())
        return f"{who}; {line}" if who else line


_group: _Group | None = None


def _end(line: str) -> NoReturn:
    """Ends this process now, with a last line if there is one: its main thread may wait in a collective for ever."""
    if line:
        again = "; started again with the same command, the run goes on from its last checkpoint"
        print(f"\nprocess {runtime.global_state.process_id} ends: {line}{again}", file=sys.stderr, flush=True)
    os._exit(1)


def lost_a_peer(error: BaseException) -> bool:
    """Whether this is the trace of another process's death: a broken collective, whichever library it passed through."""
    chain: list[BaseException] = []
    while _group is not None and error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return any(_BROKEN.search(str(each)) for each in chain)


def abandon(error: BaseException) -> None:
    """Tells the other processes why this one stops, and ends it; does nothing where there are none.

    A broken connection is the trace of a death elsewhere: then the name of the dead is waited for, and comes as this process's last line.
    """
    if _group is None:
        return
    if lost_a_peer(error):
        time.sleep(2 * _group.heartbeat)
    _group.leave(told={f"failed/{_group.index}": str(error).splitlines()[0][:500]})


def finish() -> None:
    """The orderly end: no process leaves before all have come here."""
    if _group is not None:
        _group.barrier("end")
        _group.over.set()


def gather(name: str, value: Any) -> list[Any]:
    """What each process gives (plain JSON, short), in the order of the processes. Every process must call it.

    Raises: TimeoutError naming the processes that did not come.
    """
    if _group is None:
        return [value]
    number = _group.calls[f"{name}!"] = _group.calls[f"{name}!"] + 1
    _group.client.key_value_set(f"vital/gather/{name}#{number}/{_group.index}", json.dumps(value))
    _group.barrier(name)
    return [json.loads(text) for _, text in sorted(_group.read(f"gather/{name}#{number}").items())]


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Refuses to go on where the processes differ in any of these values (plain JSON).

    Raises: ValueError, on every process, naming what differs on which process.
    """
    if _group is None:
        return
    mine = json.loads(json.dumps(values))
    if _group.index == 0:
        _group.client.key_value_set(f"vital/agree/{what}", json.dumps(mine), allow_overwrite=True)
    _group.barrier(f"agree on {what}")
    first = json.loads(_group.client.blocking_key_value_get(f"vital/agree/{what}", int(1000 * _group.patience)))
    absent = "(nothing)"
    differing = [
        f"{key} is {mine.get(key, absent)!r} on process {_group.index}, {first.get(key, absent)!r} on process 0"
        for key in sorted({*mine, *first})
        if mine.get(key, absent) != first.get(key, absent)
    ]
    if found := [line for lines in gather(what, differing[:5]) for line in lines]:
        raise ValueError(f"the processes do not have the same {what}: " + "; ".join(found[:20]))


def first(name: str, work: Callable[[], Any]) -> Any:
    """Process 0 does it, the others wait; all get its result (plain JSON).

    Raises: TimeoutError naming process 0, where it takes longer than `config.distributed.wait`.
    """
    return gather(name, work() if jax.process_index() == 0 else None)[0]


def check_shared(folder: Path) -> None:
    """Refuses a folder that is not the same for all processes: each host would keep its own part of every checkpoint.

    Raises: ValueError naming the processes that do not see what process 0 wrote there.
    """
    if _group is None:
        return
    mark = folder / ".shared"

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(token := f"{socket.gethostname()} {os.getpid()} {time.time_ns()}")
        return token

    token = first("workdir", write)
    seen = gather("workdir seen", mark.is_file() and mark.read_text() == token)
    if _group.index == 0:
        mark.unlink()
    if blind := [_group.name(index) for index, sees in enumerate(seen) if not sees]:
        raise ValueError(
            f"{folder} (config.workdir) is not shared: {', '.join(blind[:8])} has another folder of that name"
        )


def leave(line: str) -> NoReturn:
    """The orderly end of a run that was asked to stop: the line, and the status STOPPED, on every process."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
    finish()
    sys.exit(STOPPED)


def to_first(tree: Any, place: Any) -> Any:
    """A tree of global arrays as arrays on process 0's own devices, leaf by leaf; None on the others. Every process must call it.

    Args:
      place: the tree of `NamedSharding`s over the devices of process 0.
    """
    own = jax.process_index() == 0

    def copy(x: jax.Array, sharding: NamedSharding) -> jax.Array | None:
        if x.is_fully_replicated:
            return jax.device_put(x.addressable_data(0), sharding) if own else None
        whole = multihost_utils.process_allgather(x, tiled=True)
        return jax.device_put(whole, sharding) if own else None

    return jax.tree.map(copy, tree, place)


class StopRequests:
    """SIGTERM, and the first SIGINT, as a question asked after every step; a second SIGINT ends the process at once.

    With several processes jax's preemption service carries a signal that reached one of them to all, and names a step that none has passed.
    """

    def __init__(self):
        self._asked = False

    def __enter__(self):
        self._before = {}
        # Over jax's own handler of SIGTERM, the one of its preemption service, nothing may be set.
        for number in (signal.SIGINT,) if _group else (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self._asked = True
        print("\nstopping after this step", file=sys.stderr, flush=True)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if _group is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def at(self, step: int) -> bool:
        """Whether to stop after this step: the same answer on every process. Call it after every step."""
        return self._asked if _group is None else multihost_utils.reached_preemption_sync_point(step)
