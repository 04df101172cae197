"""A number for each array of a tree that any damage to it changes, the same on every mesh and number of hosts.

It is computed where the arrays lie, before they are written and after they are read, so a checkpoint is checked while
it is read: no file is read a second time for its hash.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
SALTS = (0x9E3779B9, 0x7F4A7C15)


def fingerprints(tree: Any) -> dict[str, str]:
    """16 hexadecimal digits for each array, by its path in the tree. On several hosts all must call it.

    Each element's bits are mixed with its index by a bijection of 32-bit words (the finalizer of MurmurHash3) and
    summed modulo 2^32, twice with different salts: one changed element always changes the sum, and sums have no order.
    """
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]
    on_devices = [x for _, x in named if _is_on_devices(x)]
    sums = iter(_sums(on_devices))
    # One by one: what lies in the hosts' memory does not fit on the devices all at once.
    found = [next(sums) if _is_on_devices(x) else _sums([_on_devices(x)])[0] for _, x in named]
    return {name: "".join(f"{int(word):08x}" for word in words) for (name, _), words in zip(named, found, strict=True)}


def differing(tree: Any, expected: Mapping[str, str]) -> str | None:
    """The path of the first array whose fingerprint is not the expected one; None where all are as expected."""
    found = fingerprints(tree)
    return next((name for name, value in found.items() if name in expected and expected[name] != value), None)


def _is_on_devices(x: jax.Array) -> bool:
    return x.sharding.memory_kind != "pinned_host"


def _on_devices(x: jax.Array) -> jax.Array:
    return jax.device_put(x, x.sharding.with_memory_kind("device"))


def _sums(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    if not arrays:
        return []
    mesh = next((x.sharding.mesh for x in arrays if isinstance(x.sharding, NamedSharding)), None)
    return list(np.asarray(_program(mesh)(list(arrays))))


@functools.cache
def _program(mesh: Mesh | None) -> Any:
    everywhere = None if mesh is None else NamedSharding(mesh, P())
    return jax.jit(lambda arrays: jnp.stack([_sum(x) for x in arrays]), out_shardings=everywhere)


def _sum(x: jax.Array) -> jax.Array:
    """Two 32-bit words `[2]` of an array of any shape and type."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    words = jax.lax.bitcast_convert_type(x, WORDS[min(x.dtype.itemsize, 4)]).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.stack([jnp.sum(_mix(words ^ _mix(index + np.uint32(salt))), dtype=jnp.uint32) for salt in SALTS])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
