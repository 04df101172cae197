"""Topologies by name: `h100:2x8` (2 hosts of 8), `v5p:2x4x4`; their devices without the devices.

The compilers come with the plugin wheels of the extras `cuda` and `tpu` and need no device. `cpu:8` is the host's own
CPU as JAX shows it, for trying things out.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from s1jax.config import BadInput

GIB = 2**30
CUDNN, HOPPER = 91000, "9.0"  # the version and the capability that a compilation without a GPU assumes


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, from the vendors' data sheets.

    Attributes:
      platform: `tpu`, `gpu` or `cpu`.
      memory: bytes that programs can have, as the runtime or the compiler grants them.
      bandwidth: bytes a second of its memory.
      ici_bandwidth: bytes a second and direction to devices of its slice or host.
      dcn_bandwidth: bytes a second and direction to devices of other slices or hosts.
      host: bytes a second to the host's memory.
      name: as the driver names it (GPU).
    """

    platform: str
    memory: int
    bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    host: float
    name: str = ""


CHIPS = {
    "h100": Chip("gpu", 84942979072, 3.35e12, 450e9, 50e9, 50e9, "NVIDIA H100 80GB HBM3"),
    "h200": Chip("gpu", int(139.8 * GIB), 4.8e12, 450e9, 50e9, 50e9, "NVIDIA H200"),
    "v5p": Chip("tpu", int(95.74 * GIB), 2.765e12, 600e9, 600e9, 16e9),
    "v5e": Chip("tpu", int(15.75 * GIB), 0.819e12, 200e9, 200e9, 16e9),
    "v6e": Chip("tpu", int(31.25 * GIB), 1.64e12, 400e9, 400e9, 16e9),
    "cpu": Chip("cpu", 0, 20e9, 20e9, 1e9, 20e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind. `hosts` is the number of groups that are joined by the slower network."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    hosts: int

    @property
    def memory(self) -> int:
        """Bytes of a device; of a CPU its share of the machine's."""
        if self.chip.platform != "cpu":
            return self.chip.memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(self.devices)


def find(name: str) -> Topology:
    """The topology of this name.

    Raises:
      BadInput: the name is not of the form, the chip is not known, there is no such topology, or the wheel with the
        compiler is not installed; the message names the extra.
    """
    matched = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", name)
    if matched is None or matched[1] not in CHIPS:
        raise BadInput(
            f"topology={name!r} is not known; write chip:shape, such as h100:2x8 (hosts x GPUs) or v5p:2x4x4, with a "
            f"chip of {', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[matched[1]], [int(n) for n in matched[2].split("x")]
    if chip.platform == "cpu":
        return Topology(name, chip, _cpus(name, shape), 1)
    if chip.platform == "gpu":
        return Topology(name, chip, _gpus(name, chip, shape), shape[0])
    return Topology(name, chip, _tpus(name), 1)


def _cpus(name: str, shape: list[int]) -> tuple[Any, ...]:
    devices = jax.devices("cpu")
    if len(shape) != 1 or not 1 <= shape[0] <= len(devices):
        raise BadInput(
            f"topology={name}: JAX shows {len(devices)} CPU devices; write cpu:1 to cpu:{len(devices)}, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count"
        )
    return tuple(devices[: shape[0]])


def _gpus(name: str, chip: Chip, shape: list[int]) -> tuple[Any, ...]:
    if len(shape) != 2 or 0 in shape:
        raise BadInput(f"topology={name} is not hosts x GPUs; write for example h100:2x8")
    if not any(_is_installed(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise BadInput(f"topology={name} needs the CUDA plugin, which is not installed; pip install s1jax[cuda]")
    hosts, gpus = shape
    text = _target_config(chip)
    return tuple(
        topologies.get_topology_desc(platform="cuda", topology=f"1x{hosts}x{gpus}", target_config=text).devices
    )


def _tpus(name: str) -> tuple[Any, ...]:
    if not _is_installed("libtpu"):
        raise BadInput(f"topology={name} needs libtpu, which is not installed; pip install s1jax[tpu]")
    # Without these libtpu asks the cloud's metadata server what machine this is, and says on stderr that none answers.
    for key, value in (("SKIP_MDS_QUERY", "1"), ("ACCELERATOR_TYPE", "v5p-8"), ("WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(f"TPU_{key}", value)
    # A second process that compiles would be refused as if both wanted the one device of the machine.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"topology={name} is none that libtpu knows ({reason}); write for example v5p:2x4x4") from None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _target_config(chip: Chip) -> str:
    """XLA's description of a Hopper GPU (its `GpuTargetConfigProto` as text)."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": 227 * 1024,
        "shared_memory_per_core": 228 * 1024,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "l2_cache_size": 50 * 2**20,
        "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": chip.memory,
        "device_address_bits": 64,
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{chip.name}"',
        "driver_version": '"13.0.0"',
        "runtime_version": '"12.8.0"',
        "compile_time_toolkit_version": '"12.8.0"',
        "cuda_compute_capability": "{ major: 9 feature_extension: ACCELERATED_FEATURES }",
        "device_interconnect_info": "{ active_links: 18 }",
    }
    fields = "\n".join(f"{key}{' ' if str(value)[0] == '{' else ': '}{value}" for key, value in device.items())
    version = f"{{ major: {CUDNN // 10000} minor: {CUDNN // 100 % 100} patch: {CUDNN % 100} }}"
    return (
        f'gpu_device_info {{\n{fields}\n}}\nplatform_name: "CUDA"\ndnn_version_info {version}\n'
        f'device_description_str: "{chip.name}"\n'
    )


@contextlib.contextmanager
def assumed(topology: Topology) -> Iterator[None]:
    """Within this context cuDNN's attention is lowered as on the topology's GPUs.

    JAX asks the machine it runs on for cuDNN's version and the GPU's capability, and has no way to be told.
    """
    if topology.chip.platform != "gpu":
        yield
        return
    import jax._src.cudnn.fused_attention_stablehlo as module

    answers = {
        "check_cudnn_version": lambda: CUDNN,
        "check_compute_capability": lambda least: float(least) <= float(HOPPER),
        "is_cuda_compute_capability_equal": lambda capability: capability == HOPPER,
    }
    before = {name: getattr(module, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(module, name, answer)
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
