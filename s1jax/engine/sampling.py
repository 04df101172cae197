"""How one id is drawn from a row of logits. Every row for itself: no row's draw depends on another row.

The key of a row is a hash of (run seed, id, sample) and is folded with the position of the drawn id. So a draw depends
on nothing else: a row that is interrupted, moved or forked draws the same ids again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config import BadInput
from s1jax.engine.protocol import Array

# Below it a float32 is no number to divide by, or a probability that no id reaches; above its inverse all are alike.
SMALLEST, MOST_K = 1e-6, 2**31 - 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
      temperature: 0 takes the most likely token.
      top_p: the smallest set of most likely tokens with at least this probability; 1.0 keeps all. At equal logits at
        the border all are kept.
      top_k: this many most likely tokens (before `top_p`); 0 keeps all.
      min_p: tokens with at least this share of the most likely one's probability; 0.0 keeps all.
      n: samples of each prompt.
      max_new_tokens: most tokens after the prompt; None: what the context leaves.
      stop: texts at which the answer ends (never thinking); the text is cut before, the tokens after the match.
      logprobs: keep the log-softmax of the raw logits at every token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False


def check(config: SamplingConfig) -> None:
    """Raises BadInput for a field outside its limits."""
    least, most = SMALLEST, 1 / SMALLEST
    is_warm = least <= config.temperature <= most
    whole = f"a whole number from 0 (0 keeps all) to {MOST_K}"
    limits = {
        "temperature": (
            config.temperature,
            config.temperature == 0 or is_warm,
            f"0, or a number from {least} to {most}",
        ),
        "top_p": (config.top_p, least <= config.top_p <= 1.0, f"a number from {least} to 1"),
        "top_k": (config.top_k, 0 <= config.top_k <= MOST_K, whole),
        "min_p": (config.min_p, config.min_p == 0 or least <= config.min_p <= 1, f"0, or a number from {least} to 1"),
        "n": (config.n, config.n >= 1, "a whole number from 1"),
        "max_new_tokens": (
            config.max_new_tokens,
            config.max_new_tokens is None or config.max_new_tokens >= 1,
            "a whole number from 1, or null",
        ),
        "stop": (list(config.stop), all(config.stop), "texts that are not empty"),
    }
    for name, (value, is_good, wanted) in limits.items():
        if not is_good:
            raise BadInput(f"sampling.{name} is {value!r}; give {wanted}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of the rows.

    Attributes:
      temperature_B, top_p_B, min_p_B: float32. top_k_B: int32.
      logprobs_B: bool, the row asks for log-probabilities.
      key_B: uint32 `[B, 2]`, key data of each row.
    """

    temperature_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    top_k_B: jax.Array
    logprobs_B: jax.Array
    key_B: jax.Array


def row_key(seed: int, id: str, sample: int) -> np.ndarray:
    """Key data `[2]` of a row: the first 64 bits of the SHA-256 of the JSON list `[seed, id, sample]`."""
    digest = hashlib.sha256(json.dumps([seed, id, sample]).encode()).digest()
    return np.frombuffer(digest[:8], dtype=">u4").astype(np.uint32)


def rows(configs: Sequence[SamplingConfig], keys: Sequence[np.ndarray]) -> SamplingParams:
    """Host arrays of the rows' parameters."""

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(config, name) for config in configs], dtype)

    return SamplingParams(
        column("temperature", np.float32),  # pyright: ignore[reportArgumentType]
        column("top_p", np.float32),  # pyright: ignore[reportArgumentType]
        column("min_p", np.float32),  # pyright: ignore[reportArgumentType]
        column("top_k", np.int32),  # pyright: ignore[reportArgumentType]
        column("logprobs", bool),  # pyright: ignore[reportArgumentType]
        np.stack(list(keys)).astype(np.uint32),  # pyright: ignore[reportArgumentType]
    )


def draw(
    logits_BV: jax.Array, forbidden_BV: Array, params: SamplingParams, position_B: jax.Array, active_B: jax.Array
) -> jax.Array:
    """One id a row, int32 `[B]`.

    Args:
      logits_BV: raw float32 logits.
      forbidden_BV: true for ids that must not be drawn.
      position_B: position of the id to be drawn, counted from the prompt's first id.
      active_B: rows whose draw is used; others only must not switch the costly branches on.
    """
    allowed_BV = jnp.where(forbidden_BV, -jnp.inf, logits_BV)
    greedy_B = jnp.argmax(allowed_BV, axis=-1).astype(jnp.int32)
    is_sampled_B = (params.temperature_B > 0) & active_B

    def sample() -> jax.Array:
        scaled_BV = allowed_BV / jnp.where(params.temperature_B > 0, params.temperature_B, 1.0)[:, None]
        scaled_BV = jnp.where(scaled_BV >= _border(scaled_BV, params, is_sampled_B)[:, None], scaled_BV, -jnp.inf)
        keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(params.key_B), position_B)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)
        return jnp.where(is_sampled_B, drawn_B, greedy_B)

    return jax.lax.cond(jnp.any(is_sampled_B), sample, lambda: greedy_B)


def _border(scaled_BV: jax.Array, params: SamplingParams, is_sampled_B: jax.Array) -> jax.Array:
    """The least logit of each row that may be drawn."""
    most_B = jnp.max(scaled_BV, axis=-1)
    with_k_B = (params.top_k_B > 0) & (params.top_k_B < scaled_BV.shape[-1])
    with_p_B = params.top_p_B < 1
    lowest_B = jnp.full_like(most_B, -jnp.inf)

    def by_rank() -> jax.Array:
        count_B = jnp.where(with_k_B, params.top_k_B, scaled_BV.shape[-1]).astype(jnp.float32)
        by_k_B = jnp.where(with_k_B, _level(scaled_BV, jnp.ones_like(scaled_BV), count_B), lowest_B)
        weight_BV = jnp.exp(scaled_BV - most_B[:, None])
        weight_BV = jnp.where(scaled_BV >= by_k_B[:, None], weight_BV, 0.0)
        mass_B = params.top_p_B * jnp.sum(weight_BV, axis=-1)
        return jnp.maximum(by_k_B, jnp.where(with_p_B, _level(scaled_BV, weight_BV, mass_B), lowest_B))

    border_B = jax.lax.cond(jnp.any((with_k_B | with_p_B) & is_sampled_B), by_rank, lambda: lowest_B)
    return jnp.maximum(border_B, jnp.where(params.min_p_B > 0, most_B + jnp.log(params.min_p_B), lowest_B))


def _level(x_BV: jax.Array, weight_BV: jax.Array, wanted_B: jax.Array) -> jax.Array:
    """The greatest value t of a row such that the weights where `x >= t` sum to `wanted` or more.

    Exact, by halving the ordered integers that floats are: 32 sums, where a sort of 152,064 logits a row costs more.
    """
    order_BV = _ordered(x_BV)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds  # enough weight at or above low; too little at or above high
        middle_B = low_B + (high_B - low_B) // 2
        sum_B = jnp.sum(jnp.where(order_BV >= middle_B[:, None], weight_BV, 0.0), axis=-1)
        is_enough_B = sum_B >= wanted_B
        return jnp.where(is_enough_B, middle_B, low_B), jnp.where(is_enough_B, high_B, middle_B)

    low_B = jnp.zeros(x_BV.shape[:1], jnp.uint32)
    low_B, _ = jax.lax.fori_loop(0, 32, halve, (low_B, jnp.full_like(low_B, 2**32 - 1)))
    return _float(low_B)


def _ordered(x: jax.Array) -> jax.Array:
    """Float32 as uint32 in the same order (-0.0 counts as 0.0)."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _float(order: jax.Array) -> jax.Array:
    """Inverse of `_ordered`. The border found lies between two logits or on one; NaN patterns lie below -inf."""
    bits = jnp.where(order >> 31 == 1, order & jnp.uint32(2**31 - 1), ~order)
    x = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isnan(x), -jnp.inf, x)
