"""The automaton against its oracle on random requests, token for token; its promises; forks against separate runs."""

import collections
import dataclasses
import random

import jax
import numpy as np
import pytest
from budget_cases import Case, TableModel, groups, random_case, random_orders
from budget_drive import N_IDS, Models, begin, finish, models_of, nameless, padded, results
from oracle_budget import OracleResult, Refused, effective_budget, simulate

from s1jax.control.budget import automaton as budget
from s1jax.control.budget.settings import BudgetSettings
from s1jax.engine.protocol import DONE, PAUSE, RUN

N_GROUPS, N_CASES, N_ROWS = 12, 1400, 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """Admitted cases of one vocabulary, and what the oracle says."""

    cases: list[Case]
    rows: list[BudgetSettings]
    expected: list[OracleResult]
    orders: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """The id that stands for no id; an array, since a Python number would be compiled in."""
        return np.int32(self.cases[0].group.tokenizer.size)


def expect(case: Case, orders: np.ndarray) -> OracleResult | None:
    try:
        return simulate(case.oracle_row(), TableModel(case, orders))
    except Refused:
        return None


def make_batch(rng: random.Random, group, n_cases: int) -> Batch:
    orders = random_orders(rng, group)
    cases = [random_case(rng, group, seed) for seed in range(n_cases)]
    admitted, expected = [case.admitted() for case in cases], [expect(case, orders) for case in cases]
    for case, row, result in zip(cases, admitted, expected, strict=True):
        assert (row is None) == (result is None), f"one of the two refuses {case.config} {case.lengths}"
    kept = [index for index, row in enumerate(admitted) if row is not None]
    return Batch([cases[i] for i in kept], [admitted[i] for i in kept], [expected[i] for i in kept], orders)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    rng = random.Random(20250131)
    return [make_batch(rng, group, N_CASES) for group in groups(rng, N_GROUPS - 2)]


def run_cases(control, models: Models, size, rows: list[BudgetSettings]) -> list[OracleResult]:
    """Results of any number of rows, in compiled batches of one size."""
    found: list[OracleResult] = []
    for start in range(0, len(rows), N_ROWS):
        index = np.arange(start, start + N_ROWS) % len(rows)
        part = Models(models.order_ZYNV, models.kind_B[index], models.seed_B[index])
        run = finish(nameless(control), part, size, begin(control.rows([rows[i] for i in index])))
        found += results(control, run)
    return found[: len(rows)]


@pytest.fixture(scope="module")
def outcomes(batches) -> list[list[OracleResult]]:
    return [
        run_cases(control_of(batch), models_of(batch.cases, batch.orders), batch.size, batch.rows) for batch in batches
    ]


def control_of(batch: Batch) -> budget.BudgetForcing:
    return padded(budget.build(batch.cases[0].group.tokenizer, N_IDS, [case.config for case in batch.cases]))


def show(case: Case, result: OracleResult) -> str:
    vocabulary = case.group.tokenizer.vocabulary
    return f"{result} {[vocabulary[id] for id in result.token_ids]}"


def test_token_for_token(batches, outcomes):
    assert sum(len(batch.cases) for batch in batches) >= 10_000
    for batch, found in zip(batches, outcomes, strict=True):
        for case, expected, result in zip(batch.cases, batch.expected, found, strict=True):
            assert result == expected, f"{case}\noracle    {show(case, expected)}\nautomaton {show(case, result)}"


def test_the_cases_reach_every_rule(batches):
    """A fuzz that never comes to a rule shows nothing of it."""
    seen = collections.Counter()
    for batch in batches:
        for case, row, result in zip(batch.cases, batch.rows, batch.expected, strict=True):
            algorithm = case.config.algorithm
            seen[algorithm, result.thinking_finish_reason] += 1
            seen[result.finish_reason] += 1
            seen["only by the minimum"] += algorithm == "s1jax" and result.n_ignored > row.n_ignore
            seen["ignored", algorithm] += result.n_ignored > 0
            seen["without a string"] += result.n_ignored > 0 and not any(row.strings)
            seen["loop reported"] += result.loop_at is not None
            seen["no answer"] += result.answer_tokens == 0
            seen["taken back"] += result.steps > len(result.token_ids) + result.n_ignored
            seen["stays"] += result.thinking_finish_reason == "natural" and not any(
                result.forced[result.thinking_tokens :]
            )
    reasons = [("s1jax", reason) for reason in ("natural", "budget", "length", "loop", None)]
    reasons += [(other, reason) for other in ("harness", "readme") for reason in ("natural", "budget", "length")]
    rules = ["only by the minimum", "without a string", "loop reported", "no answer", "taken back", "stays"]
    rules += ["stop", "length", "repetition", *(("ignored", name) for name in ("s1jax", "harness", "readme"))]
    assert {rule: seen[rule] for rule in reasons + rules if seen[rule] < 20} == {}


def test_budgets_are_never_exceeded_and_accounts_are_slices(batches, outcomes):
    for batch, found in zip(batches, outcomes, strict=True):
        eos_ids = batch.cases[0].group.tokenizer.eos_ids
        for case, row, result in zip(batch.cases, batch.rows, found, strict=True):
            assert len(result.token_ids) == len(result.forced) <= row.room
            if case.config.algorithm != "readme":
                assert result.thinking_tokens <= row.budget
            assert result.answer_tokens <= (row.answer_budget or row.room)
            answer = result.token_ids[result.answer_offset :]
            is_stopped = result.finish_reason == "stop"
            assert is_stopped == bool(answer and answer[-1] in eos_ids)
            assert result.answer_tokens == len(answer) - is_stopped
            assert not any(result.forced[result.answer_offset :])
            assert not eos_ids & {id for id, put in zip(result.token_ids, result.forced, strict=True) if not put} - {
                *answer[-1:]
            }


def test_a_row_is_the_same_in_other_company(batches, outcomes):
    batch, found = batches[0], outcomes[0]
    order = random.Random(5).sample(range(len(batch.rows)), N_ROWS)
    order += order[:1] * N_ROWS  # and beside copies of one row
    models = models_of([batch.cases[i] for i in order], batch.orders)
    again = run_cases(control_of(batch), models, batch.size, [batch.rows[i] for i in order])
    assert again == [found[i] for i in order]


def test_one_program_serves_all_requests(outcomes):
    assert finish._cache_size() == 1


@pytest.mark.parametrize("index", [0, 1, 2])
def test_forks_at_a_budget_are_separate_runs(batches, index):
    """Rows pause where a smaller budget would part from them; forked there they end as under that budget alone."""
    batch, rng = batches[index], random.Random(index)
    chosen = [i for i, row in enumerate(batch.rows) if row.algorithm == "s1jax" and row.is_thinking and row.budget > 2]
    part = Batch(*([x[i] for i in chosen[:N_ROWS]] for x in (batch.cases, batch.rows, batch.expected)), batch.orders)
    thresholds = [tuple(sorted(rng.sample(range(row.budget), min(3, row.budget)))) for row in part.rows]
    whole, forks = run_with_forks(part, thresholds)
    assert whole == part.expected
    assert len(forks) > 100
    for n, case in enumerate(part.cases):
        for threshold in thresholds[n]:
            config = dataclasses.replace(case.config, thinking_token_budget=threshold)
            alone = expect(dataclasses.replace(case, config=config), batch.orders)
            # None: the minimum is above the threshold. No fork: the row had ended its thinking before.
            assert alone in (None, forks.get((n, threshold), whole[n])), (case, threshold)


def run_with_forks(batch: Batch, thresholds: list[tuple[int, ...]]) -> tuple[list[OracleResult], dict]:
    """Rows that pause at `thresholds`: their results, and by (row, threshold) those of the forks made there."""
    control, models = control_of(batch), models_of(batch.cases, batch.orders)
    rows = [dataclasses.replace(row, pause_at=at) for row, at in zip(batch.rows, thresholds, strict=True)]
    run = finish(nameless(control), models, batch.size, begin(control.rows(rows)))
    forks: dict[tuple[int, int], OracleResult] = {}
    while (waits_B := np.asarray(run.status_B) == PAUSE).any():
        paused_at = [thresholds[n][k] if waits_B[n] else 0 for n, k in enumerate(run.state.progress.pause_B - 1)]
        smaller = [
            dataclasses.replace(row, budget=at, has_budget=True) for row, at in zip(batch.rows, paused_at, strict=True)
        ]
        status_B = np.where(waits_B, RUN, DONE).astype(np.int32)
        forked = dataclasses.replace(run, state=refork(control, run.state, smaller), status_B=status_B)
        ended = results(control, finish(nameless(control), models, batch.size, forked))
        forks |= {(n, paused_at[n]): ended[n] for n in np.flatnonzero(waits_B)}
        run = finish(nameless(control), models, batch.size, dataclasses.replace(run, status_B=status_B))
    return results(control, run), forks


def refork(control, state, rows: list[BudgetSettings]):
    state = jax.tree.map(np.asarray, state)
    each = [control.refork(jax.tree.map(lambda leaf, n=n: leaf[n], state), row) for n, row in enumerate(rows)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def test_the_effective_budget_is_the_oracles(batches):
    for batch in batches[:3]:
        for case, row in zip(batch.cases, batch.rows, strict=True):
            if row.is_thinking:
                assert row.budget == effective_budget(case.oracle_row())
