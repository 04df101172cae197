"""Cutting the time dimension into chunks that are worked on one after another, T sharded or not."""

import jax
import jax.numpy as jnp


def nearest_divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most` (at least 1)."""
    return max(d for d in range(1, max(min(n, most), 1) + 1) if n % d == 0)


def cut_time(x: jax.Array, size: int, ways: int) -> jax.Array:
    """`[B, T, ...]` as `[n, B, ways * size, ...]`: a chunk has `size` positions of each of `ways` equal parts of T.

    With T sharded over `ways` devices every chunk has an equal part of each, so none waits and nothing moves.
    """
    B, T = x.shape[:2]
    x = x.reshape(B, ways, T // ways // size, size, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(x.shape[0], B, ways * size, *x.shape[4:])


def join_time(x: jax.Array, ways: int) -> jax.Array:
    """The inverse of `cut_time`."""
    n, B, positions = x.shape[:3]
    x = jnp.moveaxis(x.reshape(n, B, ways, positions // ways, *x.shape[3:]), 0, 2)
    return x.reshape(B, n * positions, *x.shape[4:])
