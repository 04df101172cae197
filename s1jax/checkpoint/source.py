"""A checkpoint that can be read by parts, whatever holds it, and how its parts come to lie on devices.

Each device's part of each parameter is read and put on that device. Host memory holds one such part; a stack of layers
that is too large for that is put together on the devices, layer by layer.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from s1jax.checkpoint.entry import Entry, Slices, Source
from s1jax.models.decoder import Decoder, Unstacked, abstract, named, unstack
from s1jax.parallel.mesh import param_sharding

HOST_STACK = 2**30  # bytes of a stacked parameter up to which its layers are put together in host memory


def build(source: Source, *, mesh: Mesh | None, dtype: Any, stacked: bool) -> Decoder | Unstacked:
    """The model of a checkpoint; `mesh`, `dtype` and `stacked` as in `hf.load`."""
    shape = abstract(source.config)
    model = shape if stacked else jax.eval_shape(unstack, shape)
    by_path: dict[str, list[Entry]] = {}
    for entry in source.entries:
        by_path.setdefault(entry.path if stacked else entry.key, []).append(entry)
    leaves = []
    for path, leaf in named(model).items():
        entries = by_path[path]
        held = np.dtype(_common(source, entries) if dtype is None else dtype)
        is_stack = leaf.ndim > len(entries[0].letters)
        leaves.append((_stack if is_stack else _single)(source, entries, mesh, held))
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def _common(source: Source, entries: Sequence[Entry]) -> np.dtype:
    types = {source.dtypes[entry.key] for entry in entries}
    return types.pop() if len(types) == 1 else np.dtype(np.float32)


def _sharding(letters: str, shape: tuple[int, ...], mesh: Mesh | None) -> Sharding:
    return SingleDeviceSharding(jax.devices()[0]) if mesh is None else param_sharding(letters, shape, mesh)


def _single(source: Source, entries: Sequence[Entry], mesh: Mesh | None, dtype: np.dtype) -> jax.Array:
    (entry,) = entries
    sharding = _sharding(entry.letters, entry.shape, mesh)
    return _cast(_place(entry.shape, sharding, lambda index: source.read(entry, index)), dtype)


def _stack(source: Source, entries: Sequence[Entry], mesh: Mesh | None, dtype: np.dtype) -> jax.Array:
    shape = (len(entries), *entries[0].shape)
    sharding = _sharding("L" + entries[0].letters, shape, mesh)
    if math.prod(shape) * dtype.itemsize > HOST_STACK:
        stack = jnp.zeros(shape, dtype, device=sharding)
        for layer, entry in enumerate(entries):
            stack = _set_layer(stack, _single(source, [entry], mesh, source.dtypes[entry.key]), layer)
        return stack
    held = _common(source, entries)

    def read(index: Slices) -> np.ndarray:
        first = source.read(entries[0], index[1:])
        out = np.empty((len(entries), *first.shape), held)
        out[0] = first
        for layer, entry in enumerate(entries[1:], 1):
            out[layer] = source.read(entry, index[1:])
        return out

    return _cast(_place(shape, sharding, read), dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, value: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, axis=0)


def _cast(array: jax.Array, dtype: np.dtype) -> jax.Array:
    return array if array.dtype == dtype else jax.jit(lambda x: x.astype(dtype), out_shardings=array.sharding)(array)


def _place(shape: tuple[int, ...], sharding: Sharding, read: Callable[[Slices], np.ndarray]) -> jax.Array:
    """A global array, one device's part after the other: `make_array_from_callback` would hold all parts at once."""
    buffers, last = [], None
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = index or tuple(slice(None) for _ in shape)
        if last is None or last[0] != index:
            last = (index, read(index))
        buffers.append(jax.device_put(last[1], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, buffers)
