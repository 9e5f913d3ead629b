"""Chips that are not there: the devices of a named slice, as a compiler knows them without any hardware.

Programs are lowered on a mesh of these devices from shapes alone and compiled by the compiler that the real slice uses, which plans memory
to the byte; nothing can be run. TPU slices need libtpu, in the version that this jax was built against: another one may compile and then
die while its program is read. `cpu:N` is this machine as N devices, for trying things out.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re

import jax

_TPU = re.compile(r"(v\d+[a-z]*|tpu\d+x):\d+x\d+(x\d+)?")
_WAYS = "a TPU slice is for instance v5e:4x4, v5p:2x2x1 or v6e:4x4 (a generation and its chips along each axis); cpu:8 is this machine"


def devices(name: str) -> list[jax.Device]:
    """The devices of a topology.

    Args:
      name: GENERATION:AXES (`v5e:4x4`), or `cpu:N`, which has to come before anything else has used jax in this process.
    Raises: ValueError for an unknown name, or where this machine was already started with other devices; RuntimeError without libtpu, or
      with another version than jax wants.
    """
    if found := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return _cpu(int(found[1]))
    if not _TPU.fullmatch(name):
        raise ValueError(f"unknown topology {name!r}: {_WAYS}")
    _check_libtpu(name)
    # libtpu looks for a TPU host's metadata server, and lets one process in at a time, unless told otherwise.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"unknown topology {name!r} ({str(error).splitlines()[0]}): {_WAYS}") from error


def _cpu(count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # this process has started its devices; they may be enough
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise ValueError(
            f"cpu:{count}: this process has {len(found)} CPU devices; set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return found[:count]


def _check_libtpu(name: str) -> None:
    """Raises: RuntimeError that says what to install."""
    remedy = 'pip install "vital_jax[fit]"'
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(f"{name}: the TPU compiler, libtpu, is not installed: {remedy}")
    wanted = [line for line in importlib.metadata.requires("jax") or () if re.match(r"libtpu\b.*extra == .tpu.", line)]
    series = re.search(r"libtpu==([\d.]+)\.\*", wanted[0]) if wanted else None
    held = importlib.metadata.version("libtpu")
    if series and not f"{held}.".startswith(f"{series[1]}."):
        raise RuntimeError(
            f"{name}: jax {jax.__version__} compiles with libtpu {series[1]}.*, and {held} is installed: {remedy}"
        )
