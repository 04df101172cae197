"""The device mesh, the two tables that say which letter lies on which mesh axis, and what follows from them.

Mesh axes: `data` and `fsdp` shard the batch, `context` shards time in training, `tensor` shards heads, feed-forward and
vocabulary. Parameters, gradients and moments are sharded over `fsdp` and `context` together, so a longer context costs
activations only.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.config import BadInput
from s1jax.parallel import axes

AXES = ("data", "fsdp", "context", "tensor")
PARAM: axes.Rules = {"D": ("fsdp", "context"), "K": "tensor", "F": "tensor", "V": "tensor"}
# Matrices that end in D lie in parts of F: gathered along their last dimension, all layers would be transposed first.
PARAM_FD: axes.Rules = {"F": ("tensor", "fsdp", "context")}
ACTIVATION: axes.Rules = {"B": ("data", "fsdp"), "T": "context", "K": "tensor", "F": "tensor", "V": "tensor"}

# Intermediate shardings of the lookup, from the parts of D that the table lies in to `ACTIVATION`, one mesh axis at a
# time; a direct reshard all-gathers.
LOOKUP: tuple[axes.Rules, ...] = (
    {"B": "data", "V": "tensor", "D": ("fsdp", "context")},
    {"B": "data", "T": "context", "D": "fsdp"},
)
# Of the loss: every device has some ids of all positions, so neither the head nor its gradient is ever whole anywhere.
LOSS: axes.Rules = {"B": "data", "V": ("tensor", "fsdp", "context")}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: what the others leave.

    Attributes:
      data: ways that the batch is divided, each with a copy of the parameters; when decoding, independent engines.
      fsdp: ways that batch and parameters are both divided.
      context: ways that the time of a row is divided, and the parameters with it.
      tensor: ways that heads, feed-forward and vocabulary are divided.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None, *, explicit: bool = False) -> Mesh:
    """The mesh of `config` over `devices` (default: all), with the axis types written out.

    Raises:
      BadInput: the sizes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _resolve(config, len(devices))
    types = (AxisType.Explicit if explicit else AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # `jax.make_mesh` does not split an axis of a torus: 16 x 4 could not be laid over 8 x 8 chips.
    if slices == 1:
        laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        outer = slice_sizes(sizes, slices)
        inner = tuple(size // ways for size, ways in zip(sizes, outer, strict=True))
        laid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def slice_sizes(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """How many slices (joined by the slower network) each axis spans: `data` as many as it can, then `fsdp`.

    `context` and `tensor` talk in every layer and stay within a slice.

    Raises:
      BadInput: `data` and `fsdp` cannot be divided among the slices.
    """
    data = math.gcd(sizes[0], slices)
    fsdp = math.gcd(sizes[1], slices // data)
    if data * fsdp != slices:
        raise BadInput(
            f"mesh data={sizes[0]} x fsdp={sizes[1]} cannot be laid over {slices} slices; use sizes of data and fsdp "
            f"that together are a multiple of {slices}"
        )
    return data, fsdp, 1, 1


def _resolve(config: MeshConfig, devices: int) -> tuple[int, ...]:
    sizes = [getattr(config, axis) for axis in AXES]
    written = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise BadInput(f"mesh {written}: every size must be at least 1, and at most one of them -1 (what is left)")
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and devices % known == 0:
        return tuple(devices // known if size == -1 else size for size in sizes)
    if known != devices:
        raise BadInput(
            f"mesh {written} needs {'a multiple of ' if -1 in sizes else ''}{known} devices, there are {devices}; "
            f"set mesh sizes whose product is {devices}"
        )
    return tuple(sizes)


@contextlib.contextmanager
def use(mesh: Mesh, rules: axes.Rules = ACTIVATION) -> Iterator[None]:
    """Within this context models place their activations on `mesh`. The only ambient state of the project."""
    with jax.set_mesh(mesh), axes.placed(mesh, rules):
        yield


def param_sharding(letters: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where a parameter with these dimensions lies; a vector is replicated (it is too small to gain).

    Raises:
      BadInput: a dimension is not divisible by the mesh axes it lies on.
    """
    if len(letters.replace("L", "")) == 1:
        return NamedSharding(mesh, P())
    partition = axes.spec(letters, PARAM_FD if letters.endswith("FD") else PARAM)
    for letter, size, entry in zip(letters, shape, partition, strict=True):
        ways = math.prod(mesh.shape[axis] for axis in ((entry,) if isinstance(entry, str) else entry or ()))
        if size % ways:
            raise BadInput(
                f"mesh axes {entry} ({ways} ways) do not divide the {size} of dimension {letter} "
                f"({axes.ALPHABET[letter]}) of a parameter {letters}; use sizes that divide {size}"
            )
    return NamedSharding(mesh, partition)


def shard_rows(rows: Any, mesh: Mesh, letters: str = "BT") -> Any:
    """Host arrays of whole global rows `[B, ...]` as global arrays placed by the activation rules.

    Every process passes the rows that its own devices hold when `jax.process_count()` is above 1, all rows otherwise.
    """

    def place(array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, axes.spec(letters[: array.ndim], ACTIVATION))
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(place, rows)
