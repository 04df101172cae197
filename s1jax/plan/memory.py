"""What a compiled program takes of a device's memory, by part, and whether that fits."""

import concurrent.futures
import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.errors import JaxRuntimeError

from s1jax.plan.topology import GIB, Topology, assumed

Fit = Literal["fits", "tight", "too large"]

# What programs share a device with: buffers of the collectives, cuDNN's workspace.
BESIDE = int(1.5 * GIB)
# The allocator's share of the memory. Between it and all of the memory a plan is tight.
USABLE = 0.92
# No autotuning without a device. Triton's products are left out where they are not needed (see `options`).
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_shard_autotuning": False}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parts: by name; they sum to the total.
      host: bytes in the host's memory for each device.
      limit: what the device has.
    """

    parts: Mapping[str, int]
    host: int
    limit: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def verdict(self) -> Fit:
        """`fits` with the room that a run needs, `tight` without it."""
        return judge(self.total, self.limit)

    @property
    def over(self) -> int:
        """Bytes above what fits; 0 where it does."""
        return max(0, self.total + BESIDE - int(USABLE * self.limit))


def judge(planned: int, limit: int) -> Fit:
    """Whether planned bytes fit into a device of `limit` bytes."""
    if planned + BESIDE <= USABLE * limit:
        return "fits"
    return "tight" if planned + BESIDE <= limit else "too large"


def shard_bytes(tree: Any) -> tuple[int, int]:
    """Bytes of abstract arrays with shardings that one device holds: in its own memory, and in the host's."""
    own = host = 0
    for x in jax.tree.leaves(tree):
        size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        if x.sharding.memory_kind == "pinned_host":
            host += size
        else:
            own += size
    return own, host


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program: bytes of a device, arguments and results included, and of the host."""

    total: int
    host: int


def compile(lowered: Any, topology: Topology, *, triton: bool) -> Any:
    """The program for the topology.

    Args:
      triton: let Triton make products: it fuses the conversion of int8 weights, which else stand there once more.
    """
    with _uncached():
        return lowered.compile(_options(topology, triton))


def _options(topology: Topology, triton: bool) -> dict[str, Any]:
    return {**GPU_OPTIONS, "xla_gpu_enable_triton_gemm": triton} if topology.chip.platform == "gpu" else {}


def measure(lowered: Any, topology: Topology, *, triton: bool) -> Compiled:
    """Compile (see `compile`) and read the bytes off; see `measure_all`."""
    return measure_all([lowered], topology, triton=triton)[0]


def measure_all(lowered: Sequence[Any], topology: Topology, *, triton: bool) -> list[Compiled]:
    """Compile programs side by side and read the bytes off.

    A TPU's compiler refuses what is larger than the chip and says how large it is; that is what is returned then.
    """
    options = _options(topology, triton)
    with _uncached(), concurrent.futures.ThreadPoolExecutor(len(lowered)) as pool:
        return list(pool.map(lambda each: _measured(each, options), lowered))


def _measured(lowered: Any, options: dict[str, Any]) -> Compiled:
    try:
        stats = lowered.compile(options).memory_analysis()
    except JaxRuntimeError as error:
        found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
        if found is None:
            raise
        return Compiled(int(float(found[1]) * 2 ** (10 * (" KMGT".index(found[2])))), 0)
    device = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    device += stats.output_size_in_bytes - stats.alias_size_in_bytes
    host = stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes
    host += stats.host_output_size_in_bytes - stats.host_alias_size_in_bytes
    return Compiled(device, host)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Nothing goes to the compilation cache: programs for absent devices cannot be read back from it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def lower(function: Any, topology: Topology, *arguments: Any, **static: Any) -> Any:
    """`function.lower` of a jitted function, as if on the topology."""
    with assumed(topology):
        return function.lower(*arguments, **static)
