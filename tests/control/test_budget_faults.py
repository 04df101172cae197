"""Seeded faults: the comparison with the oracle finds each of them, so it would find a real one of its kind."""

import functools
import pathlib
import random
import sys
import types
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import pytest
from budget_cases import Case, groups
from budget_drive import N_IDS, begin, models_of, one_step, results
from budget_faults import FAULTS
from oracle_budget import OracleResult
from test_budget_fuzz import Batch, make_batch

import s1jax.control
from s1jax.engine.protocol import DONE

MODULES = (
    "trail",
    "matching",
    "budget/settings",
    "budget/state",
    "budget/rules",
    "budget/account",
    "budget/outside",
    "budget/automaton",
)
FOLDER = pathlib.Path(s1jax.control.__file__).parent
STEPS, MAX_STEPS, MAX_BATCHES = 24, 240, 24


def copy_of_automaton(module: str = "", right: str = "", wrong: str = "") -> types.ModuleType:
    """The automaton's modules executed again, over NumPy so that nothing is compiled, with one text replaced."""
    with mock.patch.dict(sys.modules):
        for name in MODULES:
            source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
            source = source.replace("import jax.numpy as jnp", "import numpy as jnp")
            source = source.replace(right, wrong) if name == module else source
            copy = types.ModuleType(f"s1jax.control.{name.replace('/', '.')}")
            sys.modules[copy.__name__] = copy
            exec(compile(source, f"{name}.py", "exec"), copy.__dict__)
        return sys.modules["s1jax.control.budget.automaton"]


def finds(automaton: types.ModuleType, batch: Batch) -> bool:
    """Whether the automaton differs from the oracle, or fails, on these cases."""
    tokenizer = batch.cases[0].group.tokenizer
    control = automaton.build(tokenizer, N_IDS, [case.config for case in batch.cases])
    models, run = models_of(batch.cases, batch.orders), begin(control.rows(batch.rows))
    for _ in range(MAX_STEPS // STEPS):
        was_over_B = run.status_B == DONE
        try:
            for _ in range(STEPS):
                run = one_step(np, control, models, batch.size, run)
        except IndexError:
            return True
        new = np.flatnonzero((run.status_B == DONE) & ~was_over_B)
        try:
            found = results(control, jax.tree.map(lambda leaf, new=new: leaf[new], run))
        except RuntimeError:  # the account's own check of the row's limits
            return True
        if found != [batch.expected[i] for i in new]:
            return True
        if (run.status_B == DONE).all():
            return False
    return True


@functools.cache
def batch(number: int) -> Batch:
    """Cases of one vocabulary, or of one of the realistic ones those that are rare."""
    rng = random.Random(number)
    tags, spelled, other = groups(rng, 1)
    if number % 4 == 3:
        return _only(make_batch(rng, (spelled, other)[number // 4 % 2], n_cases=2500), is_rare)
    return make_batch(rng, (tags, spelled, other)[number % 4], n_cases=260)


def is_rare(case: Case, result: OracleResult) -> bool:
    """What random cases seldom come to: an end that is dropped beside loops, and all of the harness."""
    is_dropped = result.n_ignored > 0 and not any(case.config.strings)
    return case.config.algorithm == "harness" or (is_dropped and case.config.repetition_detection is not None)


def _only(batch: Batch, wanted: Callable[[Case, OracleResult], bool]) -> Batch:
    kept = [i for i, case in enumerate(batch.cases) if wanted(case, batch.expected[i])]
    return Batch(*([part[i] for i in kept] for part in (batch.cases, batch.rows, batch.expected)), batch.orders)


def test_there_are_enough_and_each_is_one_place():
    assert len(FAULTS) >= 30
    assert len({name for name, *_ in FAULTS}) == len(FAULTS)
    for name, module, right, wrong in FAULTS:
        assert (FOLDER / f"{module}.py").read_text(encoding="utf-8").count(right) == 1, name
        assert right != wrong


def test_the_copy_itself_has_no_fault():
    automaton = copy_of_automaton()
    assert not any(finds(automaton, batch(number)) for number in range(8))


@pytest.mark.parametrize(
    ("module", "right", "wrong"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_each_fault_is_found(module, right, wrong):
    """Nearly all by the first batches; a fault that needs a rare case by one of those that follow."""
    automaton = copy_of_automaton(module, right, wrong)
    assert any(finds(automaton, batch(number)) for number in range(MAX_BATCHES))
