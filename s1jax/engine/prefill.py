"""Keys and values of prompts and of chunks behind a row, log-probabilities of given ids: forward passes over many ids.

Each program has a fixed number of rows and a fixed length (its bucket); what is missing is padding. So the number of
programs is bounded, and a row's bits depend on its own length alone.
"""

import functools

import jax
import jax.numpy as jnp

from s1jax.engine import cache as kv
from s1jax.models import layers
from s1jax.models.decoder import Model, forward, logits
from s1jax.parallel.axes import constrain

CHUNK = 256  # queries, and head positions, that are worked on at once


def bucket_of(length: int, most: int, smallest: int) -> int:
    """The bucket of a text of `length` ids: the least of `smallest * 2**i` that holds it, and at most `most`."""
    bucket = smallest
    while bucket < length:
        bucket *= 2
    return min(bucket, most)


@functools.partial(jax.jit, static_argnames=("dtype", "cache_dtype"))
def prefill(model: Model, tokens_BT: jax.Array, *, dtype: str, cache_dtype: str) -> tuple[kv.Slots, ...]:
    """Cached positions of prompts, padded on the right: no query sees the padding, and no row reads it later."""

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, _: None) -> tuple[jax.Array, kv.Slots]:
        return _attend(q_BTKGH, k_BTKH, v_BTKH, at_T), kv.from_prompt(k_BTKH, v_BTKH, cache_dtype)

    at_T = jnp.arange(tokens_BT.shape[1])
    return forward(model, tokens_BT, jnp.broadcast_to(at_T, tokens_BT.shape), attend, dtype=jnp.dtype(dtype))[1]


@functools.partial(jax.jit, static_argnames=("size", "length", "dtype", "has_scores"))
def extend(
    model: Model,
    row: tuple[kv.Slots, ...] | None,
    tokens_BT: jax.Array,
    next_BT: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    size: kv.Size,
    length: int,
    dtype: str,
    has_scores: bool,
) -> tuple[tuple[kv.Slots, ...], jax.Array | None]:
    """Cached positions of one row with a chunk written behind them, and what the chunk says of the ids after it.

    Args:
      row: per layer, `Slots` of one row; None for an empty one.
      tokens_BT: `[1, T]` ids of the chunk, padded. next_BT: the id after each.
      start: position of its first id. count: how many are ids.
      length: positions of the result.

    Returns: the row; and, if `has_scores`, the log-softmax of the raw float32 logits at `next_BT`, `[1, T]`.
    """
    blank = tuple(slots for (slots,) in kv.empty(size, ((1, length),)))
    slots = blank if row is None else kv.resize(row, length)
    at_T = start + jnp.arange(tokens_BT.shape[1])

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, slots: kv.Slots) -> tuple[jax.Array, kv.Slots]:
        slots = kv.write_chunk(slots, k_BTKH, v_BTKH, start, count)
        return _attend(q_BTKGH, *kv.unpack(slots, q_BTKGH.dtype), at_T), slots

    x_BTD, slots = forward(model, tokens_BT, at_T[None], attend, slots, dtype=jnp.dtype(dtype))

    def score(x_and_next: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_BTD, next_BT = x_and_next
        logits_BTV = logits(model, x_BTD)
        chosen_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
        return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)

    return slots, _by_chunk(score, (x_BTD, next_BT)) if has_scores else None


def _attend(q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, at_T: jax.Array) -> jax.Array:
    """Causal attention of queries at positions `at`, by chunks of them: scores of all at once do not exist."""
    at_BT = jnp.broadcast_to(at_T, q_BTKGH.shape[:2])
    k_BSKH, v_BSKH = constrain(k_BSKH, "BSKH"), constrain(v_BSKH, "BSKH")

    def part(q_and_at: tuple[jax.Array, jax.Array]) -> jax.Array:
        q_BTKGH, at_BT = q_and_at
        seen_BTS = jnp.arange(k_BSKH.shape[1])[None, None] <= at_BT[..., None]
        return layers.attention(q_BTKGH, k_BSKH, v_BSKH, seen_BTS)

    return _by_chunk(part, (q_BTKGH, at_BT))


def _by_chunk(function, arrays):
    """`function` of pieces of CHUNK positions (axis 1), one after the other; the last piece is padded."""
    B, T = arrays[0].shape[:2]
    if T <= CHUNK:
        return function(arrays)
    n = -(-T // CHUNK)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, n * CHUNK - T)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, n, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(function, tuple(cut(x) for x in arrays))
    out = out.swapaxes(0, 1)
    return out.reshape(B, n * CHUNK, *out.shape[3:])[:, :T]
