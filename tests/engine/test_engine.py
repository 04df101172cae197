"""The engine against the oracle with full forward passes, and the promise: a row's ids depend on the row alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import MAX_LENGTH, S1, engine, facts, near_tie, plain, request

from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.settings import RepetitionDetection
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.records import Completion


def budget(**fields) -> BudgetConfig:
    return dataclasses.replace(S1, **fields)


@functools.cache
def mixture() -> list[Request]:
    """Rows of all kinds and lengths: free and budgeted, greedy and sampled, of each class, some that change class."""
    warm = {"temperature": 1.0, "logprobs": True}
    loops = RepetitionDetection(max_pattern_size=2, min_count=3)
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
        request("g", budget(thinking_n_ignore=8, thinking_n_ignore_str=("", "Wait", "\n")), n=80, **warm, top_k=8),
        request("l", budget(repetition_detection=loops, thinking_n_ignore=2), n=60, logprobs=True),
    ]


def name(row: Request | Completion) -> tuple:
    return row.id, row.sample, len(row.prompt_ids)


def run(engine: Engine, rows: list[Request]) -> dict[tuple, Completion]:
    tickets = [engine.submit(row) for row in rows]
    assert tickets == sorted(tickets)
    found = engine.run()
    assert [name(done) for done in found] == [name(row) for row in rows]  # in the order of submission
    return {name(done): done for done in found}


ENGINES = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"weights": "int8", "cache": "int8"},
}


@pytest.fixture(scope="module", params=ENGINES)
def tried(request) -> tuple[Engine, dict[tuple, Completion]]:
    """An engine of each type, and what it makes of the mixture."""
    engine_ = engine(**ENGINES[request.param])
    return engine_, run(engine_, mixture())


@pytest.fixture(scope="module")
def first() -> tuple[Engine, dict[tuple, Completion]]:
    """The float32 engine alone."""
    engine_ = engine()
    return engine_, run(engine_, mixture())


# ------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("index", range(13))
def test_a_row_is_what_the_oracle_draws_from_full_forward_passes(index, first):
    row = mixture()[index]
    assert facts(first[1][name(row)]) == facts(plain(row))


def test_the_mixture_meets_what_it_should(first):
    """Ids taken back, ends ignored, every reason, rows that changed class: else the comparisons say little."""
    rows = list(first[1].values())
    assert {"budget", "length", "natural", "loop", None} <= {row.thinking_finish_reason for row in rows}
    assert {"stop", "length"} <= {row.finish_reason for row in rows}
    assert any(row.n_ignored > 1 for row in rows)
    assert any(row.steps > len(row.token_ids) for row in rows)
    assert {key for key in first[0].programs if key[0] == "extract"} == {("extract", 0), ("extract", 1)}


def test_log_probabilities_are_those_of_the_ids_that_stand_there(first):
    """Also where ids were taken back: the logits at hand were then those of another position."""
    for done in first[1].values():
        scored = first[0].score([*done.prompt_ids, *done.token_ids])[len(done.prompt_ids) :]
        if done.logprobs is not None:
            np.testing.assert_allclose(done.logprobs, scored, atol=1e-4)


def test_int8_and_bfloat16_stay_near(first):
    """Log-probabilities of the same ids under the other types: not equal, and not something else."""
    ids = next(row for row in first[1].values() if len(row.token_ids) > 60)
    ids = [*ids.prompt_ids, *ids.token_ids]
    exact = first[0].score(ids)
    for fields in (ENGINES["bfloat16"], ENGINES["int8"]):
        near = engine(**fields).score(ids)
        assert 1e-6 < np.abs(near - exact).mean() < 0.25 * np.abs(exact).mean()


# ----------------------------------------------------------------------------------------------------- the promise


def test_alone(tried):
    engine_, company = tried
    for row in mixture():
        [alone] = run(engine_, [row]).values()
        assert alone == company[name(row)]


def test_in_any_order_and_slot(tried):
    """Reversed and shuffled rows take other slots, beside others, and are refilled at other moments."""
    engine_, company = tried
    assert run(engine_, mixture()[::-1]) == company
    order = np.random.default_rng(0).permutation(len(mixture()))
    assert run(engine_, [mixture()[i] for i in order]) == company


def poison(engine_: Engine) -> None:
    """All slots hold NaN and wrong numbers, as if a broken row had been there."""

    def spoil(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.full_like(x, jnp.nan)
        return jnp.full_like(x, 127) if x.dtype == jnp.int8 else x

    state = engine_._slots._state
    engine_._slots._state = dataclasses.replace(state, cache=jax.tree.map(spoil, state.cache))


def test_beside_and_after_a_poisoned_tenant(tried):
    engine_, company = tried
    poison(engine_)
    [alone] = run(engine_, [mixture()[4]]).values()
    assert alone == company[name(alone)]
    poison(engine_)
    assert run(engine_, mixture()) == company


@pytest.mark.parametrize("fields", [{"window": 3}, {"ahead": False}])
def test_under_any_window(fields, first):
    assert run(engine(**fields), mixture()) == first[1]


def test_across_engines_up_to_near_ties(first):
    """One class instead of three: other programs, so other last bits; ids may part only where two draws nearly tie."""
    parted = 0
    other = run(engine(classes=((4, MAX_LENGTH),)), mixture())
    for row in mixture():
        done, before = other[name(row)], first[1][name(row)]
        if done.token_ids != before.token_ids:
            parted += 1
            index = next(i for i, (a, b) in enumerate(zip(done.token_ids, before.token_ids, strict=False)) if a != b)
            assert near_tie(row, before.token_ids[:index]) < 1e-3
        elif done.logprobs is not None:
            np.testing.assert_allclose(done.logprobs, before.logprobs, atol=1e-4)
    assert parted <= 2


# -------------------------------------------------------------------------------------------------------- programs


def test_programs_are_bounded_and_not_compiled_again(first):
    """Other lengths and other numbers of rows need nothing new but a longer prefill bucket."""
    engine_, _ = first
    before = engine_.programs
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        run(engine_, [request("x" * i, n=96 - i, id=f"of {i}", temperature=i % 2) for i in range(1, 64, 3)])
    finally:
        jax.monitoring.clear_event_listeners()
    assert engine_.programs == before
    assert not compiled
    # start, window; two buckets of prefill, from each into each class, one move into each class but the first
    assert len({name for name in before if name[0] != "score"}) <= 1 + 1 + 2 + 2 * 3 + 2 * 2


def test_compiling_is_announced_once(first):
    lines = []
    engine_ = engine(notify=lines.append)
    assert ["GiB, 7 slots (3 x 24, 2 x 48, 2 x 96)" in line for line in lines] == [True]
    run(engine_, mixture()[:2])
    run(engine_, mixture()[:2])
    assert ["compiling" in line for line in lines] == [False, True]


def test_a_prompt_longer_than_a_prefill_program_goes_through_it_in_pieces():
    rows = [request("y" * i, n=20, temperature=1.0, id=f"{i}") for i in (16, 17, 33, 70)]
    engine_ = engine(prefill_ids=16, prefill_smallest=8)
    for done, row in zip(run(engine_, rows).values(), rows, strict=True):
        assert facts(done) == facts(plain(row))
    assert {name[:2] for name in engine_.programs if name[0] == "prefill"} == {("prefill", 1)}
    assert len({name for name in engine_.programs if name[0] == "extend"}) == 4  # first and later pieces, two classes


def test_samples_of_a_prompt_share_its_prefill(first):
    engine_, _ = first
    before = engine_.stats.prefills
    run(engine_, [request("shared prompt", id="s", sample=i, temperature=1.0) for i in range(12)])
    assert engine_.stats.prefills == before + 1


def test_slots_are_refilled(first):
    """With many rows of one length waiting the slots of their class are in use nearly all the time."""
    engine_ = engine(classes=((4, MAX_LENGTH),), ahead=False)
    ends = run(engine_, [request("y", n=64, id=f"{i}", temperature=1.0) for i in range(12)])
    stats = engine_.stats
    assert stats.queued_row_steps >= 0.9 * stats.queued_slot_steps > 0
    assert stats.slot_steps == stats.windows * 4 * 8 > stats.queued_slot_steps
    assert stats.row_steps == sum(done.steps for done in ends.values()) > stats.queued_row_steps
