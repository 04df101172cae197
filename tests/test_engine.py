"""The engine against the oracle with full forward passes, and the promise: a row's ids depend on the row alone."""

import dataclasses

import pytest
from engine_cases import S1, engine, facts, plain, request

from s1jax.generate.control import ControlConfig


def budget(**fields) -> ControlConfig:
    return dataclasses.replace(S1, **fields)


def mixture() -> list:
    """Rows of all kinds and lengths: free and budgeted, greedy and sampled, of each class, some that change class."""
    warm = {"temperature": 1.0, "logprobs": True}
    return [
        request("a", n=60, logprobs=True),
        request("two words", n=20, **warm),
        request("a longer prompt of thirty ids.", n=50, **warm, top_k=5),
        request("b", budget(thinking_token_budget=12), n=60, **warm),
        request("c", budget(thinking_token_budget=30, thinking_n_ignore=2), n=70, **warm, top_p=0.7),
        request("c", budget(thinking_token_budget=0, answer_token_budget=5), n=40, **warm, sample=1),
        request("d", budget(min_thinking_tokens=20, thinking_n_ignore_str=None), n=60, **warm, min_p=0.1),
        request("a longer prompt of forty ids, and the rest", budget(thinking_n_ignore=1), n=40, logprobs=True),
        request("e", budget(thinking=False), n=30, **warm),
        request("x" * 63, n=32, **warm, top_k=20, top_p=0.9),
        request("f", n=80, **warm, seed=8),
    ]


@pytest.fixture(scope="module")
def first():
    return engine()


def run(engine, rows) -> dict:
    for row in rows:
        engine.submit(row)
    return {(done.id, done.sample, len(done.prompt_ids)): done for done in engine.run()}


@pytest.fixture(scope="module")
def company(first):
    return run(first, mixture())


@pytest.mark.parametrize("index", range(len(mixture())))
def test_a_row_is_what_the_oracle_draws_from_full_forward_passes(index, company):
    row = mixture()[index]
    done = company[row.id, row.sample, len(row.prompt_ids)]
    assert facts(done) == facts(plain(row))
