"""Chips that are not there: the devices of a named slice, as a compiler knows them without any hardware.

Programs are lowered on a mesh of these devices from shapes alone and compiled by the compiler that the real slice uses, which plans memory
to the byte; nothing can be run. TPU slices need libtpu, in the version that this jax was built against: another one may compile and then
die while its program is read. GPUs need the CUDA plugin and its libraries, and no driver. Without a card no kernels are tuned: products are
left to cuBLAS, since of Triton's the first shape would be taken, which for some products is none that exists. `cpu:N` is this machine as N
devices, for trying things out.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re

import jax

_TPU = re.compile(r"(v\d+[a-z]*|tpu\d+x):\d+x\d+(x\d+)?")
_GPU = re.compile(r"(h100|h200):([1-8])")
_WAYS = (
    "a TPU slice is for instance v5e:4x4, v5p:2x2x1 or v6e:4x4 (a generation and its chips along each axis); "
    "h100:8 and h200:1 are cards of one node; cpu:8 is this machine"
)

# What the compiler asks of a card: name, bytes of memory, bytes a second. The rest is Hopper's.
_CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 84_929_347_584, 3_352_320_000_000),
    "h200": ("NVIDIA H200", 150_754_820_096, 4_800_000_000_000),
}
_HOPPER = """\
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: {memory} memory_bandwidth: {bandwidth}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


def devices(name: str) -> list[jax.Device]:
    """The devices of a topology.

    Args:
      name: GENERATION:AXES (`v5e:4x4`), CARD:N (`h200:8`), or `cpu:N`, which has to come before anything else has used jax in this process.
    Raises: ValueError for an unknown name, or where this machine was already started with other devices; RuntimeError without the
      compiler, or with another version than jax wants.
    """
    if found := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return _cpu(int(found[1]))
    if found := _GPU.fullmatch(name):
        return _gpus(*found.groups())
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


def _gpus(card: str, count: str) -> list[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise RuntimeError(
            f"{card}:{count}: the CUDA plugin is not installed (its libraries take 5 GB; an environment of its own serves best): "
            'pip install "vital_jax[cuda]"'
        )
    # The plugin looks for a driver unless told that there is none.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
    from jax.experimental import topologies

    name, memory, bandwidth = _CARDS[card]
    described = topologies.get_topology_desc(
        topology_name=card,
        platform="cuda",
        target_config=_HOPPER.format(name=name, memory=memory, bandwidth=bandwidth),
        topology=f"1x1x{count}",
    )
    return list(described.devices)


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
