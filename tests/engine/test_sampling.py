"""Drawing one id a row: against plain NumPy with the same keys, and against the probabilities that were asked for."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import plain_scores

from s1jax.engine import sampling
from s1jax.engine.sampling import SamplingConfig

V = 50
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.3),
    SamplingConfig(temperature=1.0, top_k=1),
    SamplingConfig(temperature=1.5, top_k=7),
    SamplingConfig(temperature=1.0, top_k=500),
    SamplingConfig(temperature=1.0, top_p=0.6),
    SamplingConfig(temperature=0.7, top_p=1e-6),
    SamplingConfig(temperature=1.0, min_p=0.2),
    SamplingConfig(temperature=1.0, top_k=20, top_p=0.8, min_p=0.05),
    SamplingConfig(temperature=2.0, top_k=3, top_p=0.99),
    SamplingConfig(temperature=1e-6, min_p=1e-6),
    SamplingConfig(temperature=1e6, top_k=2**31 - 1),
    SamplingConfig(temperature=1e6, top_k=2, top_p=0.9, min_p=1.0),
]
draw = jax.jit(sampling.draw)


def rows(configs: list[SamplingConfig], seed: int = 0) -> sampling.SamplingParams:
    return sampling.rows(configs, [sampling.row_key(seed, "row", i) for i in range(len(configs))])


def some_logits(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    logits_BV = noise.normal(0, 3, (n, V)).astype(np.float32)
    logits_BV[:, 10:14] = logits_BV[:, 10:11]  # ties
    return logits_BV, noise.random((n, V)) < 0.2


@pytest.mark.parametrize("seed", range(20))
def test_draws_are_those_of_plain_numpy(seed):
    n = len(CONFIGS)
    logits_BV, forbidden_BV = some_logits(seed, n)
    params, position_B = rows(CONFIGS, seed), np.arange(n, dtype=np.int32) * 7 + seed
    drawn_B = draw(logits_BV, forbidden_BV, params, position_B, np.ones(n, bool))
    for b, config in enumerate(CONFIGS):
        forbidden = np.flatnonzero(forbidden_BV[b])
        scores_V = plain_scores(logits_BV[b], forbidden, config, np.asarray(params.key_B[b]), int(position_B[b]))
        assert int(drawn_B[b]) == int(scores_V.argmax()), config


def test_a_row_does_not_depend_on_what_others_ask_for():
    """Alone, beside greedy rows, beside rows that switch the costly branches on, beside rows that are not active."""
    n = len(CONFIGS)
    logits_BV, forbidden_BV = some_logits(1, n)
    params, position_B = rows(CONFIGS), np.full(n, 3, np.int32)
    company_B = draw(logits_BV, forbidden_BV, params, position_B, np.ones(n, bool))
    for b in range(n):
        only_B = np.arange(n) == b
        alone_B = draw(logits_BV, forbidden_BV, params, position_B, only_B)
        assert alone_B[b] == company_B[b]
        greedy = rows([config if i == b else SamplingConfig() for i, config in enumerate(CONFIGS)])
        assert draw(logits_BV, forbidden_BV, greedy, position_B, np.ones(n, bool))[b] == company_B[b]


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.temperature > 0])
def test_frequencies_are_the_probabilities(config):
    """20,000 draws of one row at as many positions: within five standard deviations of what the cut softmax says."""
    n = 20_000
    logits_V = some_logits(2, 1)[0][0]
    params = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (n, *x.shape[1:])), rows([config]))
    drawn_B = draw(
        jnp.broadcast_to(logits_V, (n, V)), jnp.zeros((n, V), bool), params, jnp.arange(n), jnp.ones(n, bool)
    )
    scaled_V = logits_V / config.temperature
    order_V = np.argsort(-scaled_V, kind="stable")
    allowed_V = np.ones(V, bool)
    if config.top_k:
        allowed_V &= scaled_V >= scaled_V[order_V[min(config.top_k, V) - 1]]
    weight_V = np.where(allowed_V, np.exp(scaled_V - scaled_V.max()), 0)
    before_V = np.cumsum(weight_V[order_V]) - weight_V[order_V]
    last = order_V[np.flatnonzero(before_V < config.top_p * weight_V.sum())[-1]]
    allowed_V &= scaled_V >= scaled_V[last]
    allowed_V &= weight_V >= config.min_p
    probability_V = np.where(allowed_V, weight_V, 0) / weight_V[allowed_V].sum()
    count_V = np.bincount(np.asarray(drawn_B), minlength=V)
    assert not count_V[~allowed_V].any()
    assert (np.abs(count_V - n * probability_V) <= 5 * np.sqrt(n * probability_V) + 1).all()


def test_a_key_is_a_hash_of_what_names_the_row():
    digest = hashlib.sha256(b'[5, "q\\u00e9", 2]').digest()
    expected = [int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")]
    assert sampling.row_key(5, "qé", 2).tolist() == expected
    names = [(s, i, n) for s in (0, 1) for i in ("a", "1, a") for n in (0, 1)]
    assert len({tuple(sampling.row_key(*name).tolist()) for name in names}) == len(names)


def test_positions_draw_independently():
    """The same row at other positions, and the same position of other rows, draw other ids."""
    n = 200
    config = SamplingConfig(temperature=1.0)
    flat_BV, none_BV, all_B = jnp.zeros((n, V)), jnp.zeros((n, V), bool), jnp.ones(n, bool)
    one = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (n, *x.shape[1:])), rows([config]))
    by_position = draw(flat_BV, none_BV, one, jnp.arange(n), all_B)
    by_row = draw(flat_BV, none_BV, rows([config] * n), jnp.zeros(n, jnp.int32), all_B)
    for drawn_B in (by_position, by_row):
        assert len(np.unique(np.asarray(drawn_B))) > 40


def test_config_is_frozen_and_loads():
    from s1jax.config import from_dict

    loaded = from_dict(SamplingConfig, {"temperature": 1, "stop": ["x"], "max_new_tokens": 3})
    assert loaded == SamplingConfig(temperature=1.0, stop=("x",), max_new_tokens=3)
    assert dataclasses.replace(loaded, n=2).n == 2
