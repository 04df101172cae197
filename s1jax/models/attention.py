"""Attention of training: causal, within the segments of packed rows, by backend.

Every backend gives each position the keys of its own segment up to its own position, whatever order the positions of a
row have. A backend that cannot keep segments apart refuses to run.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.axes import constrain
from s1jax.models import layers
from s1jax.models.decoder import Attend

SCORES = 1 << 26  # float32 scores that XLA attention may hold per device, roughly


def segmented(segments_BT: jax.Array, positions_BT: jax.Array) -> Attend:
    """Attention in plain XLA, exact in float32; queries are taken in chunks where T x S scores would be too many.

    Args:
      segments_BT: 1, 2, ... for the examples of a row; 0 for padding, which sees and is seen by nothing but padding.
      positions_BT: positions in their segments.
    """

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        def of_queries(q_BCKGH: jax.Array, segments_BC: jax.Array, positions_BC: jax.Array) -> jax.Array:
            mask_BCT = visible(segments_BC, positions_BC, segments_BT, positions_BT)
            return layers.attention(q_BCKGH, k_BTKH, v_BTKH, mask_BCT)

        chunk = query_chunk(q_BTKGH.shape)
        return over_queries(of_queries, chunk, q_BTKGH, segments_BT, positions_BT), state

    return attend


def visible(
    segments_BT: jax.Array, positions_BT: jax.Array, segments_BS: jax.Array, positions_BS: jax.Array
) -> jax.Array:
    """Mask `[B, T, S]`: the key is in the query's segment and not after it."""
    same = segments_BT[:, :, None] == segments_BS[:, None, :]
    return same & (positions_BT[:, :, None] >= positions_BS[:, None, :])


def query_chunk(shape: tuple[int, ...]) -> int:
    """Queries `[B, T, K, G, H]` to take at once: the largest divisor of T whose scores stay below `SCORES`."""
    B, T, K, G, _ = shape
    most = max(1, SCORES // (B * K * G * T))
    return max(d for d in range(1, math.isqrt(T) + 1) for d in (d, T // d) if T % d == 0 and d <= most)


def over_queries(of_queries: Callable[..., jax.Array], chunk: int, *arrays: jax.Array) -> jax.Array:
    """`of_queries` over chunks of the second dimension, recomputed in the backward pass; at once where that is one."""
    B, T = arrays[0].shape[:2]
    if chunk >= T:
        return of_queries(*arrays)
    parts = tuple(jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0) for x in arrays)
    out = jax.lax.map(jax.checkpoint(lambda part: of_queries(*part)), parts)
    return constrain(jnp.moveaxis(out, 0, 1).reshape(B, T, *out.shape[3:]), "BTKGH")
