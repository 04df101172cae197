"""The contract of a control, for every one in the registry: what the decode loop and the engine rely on."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from engine_cases import CONFIG, S1, tokenizer

from s1jax.control import CONTROLS
from s1jax.engine.protocol import DONE, PAUSE, RUN

PROMPT, MAX_LENGTH, N = 5, 64, 30


def config_of(kind: str) -> Any:
    """The kind's config, with the delimiters of these tests where it has any."""
    fields = {field.name for field in dataclasses.fields(CONTROLS[kind].config)} - {"kind"}
    return CONTROLS[kind].config(**{name: getattr(S1, name) for name in fields if hasattr(S1, name)})


def rows_of(kind: str, n: int) -> list[Any]:
    limits = {"prompt_length": PROMPT, "max_length": MAX_LENGTH}
    return [CONTROLS[kind].admit(config_of(kind), tokenizer(), **limits, max_new_tokens=N - 2 * i) for i in range(n)]


def play(control, rows: list[Any], drawn_TB: np.ndarray) -> list[tuple]:
    """Each row's ids and marks as the loop would keep them, its status and last state."""
    state, out = control.rows(rows), [([], [], RUN, None) for _ in rows]
    for drawn_B in drawn_TB:
        forbidden_BV = np.asarray(control.forbid(state))
        assert forbidden_BV.shape == (len(rows), CONFIG.V) and forbidden_BV.dtype == bool
        assert forbidden_BV[:, tokenizer().size :].all() and not forbidden_BV.all(axis=1).any()
        drawn_B = np.where(forbidden_BV[np.arange(len(rows)), drawn_B], forbidden_BV.argmin(axis=1), drawn_B)
        before, (state, step) = state, control.step(state, drawn_B.astype(np.int32))
        step = jax.tree.map(np.asarray, step)
        for i, (ids, forced, status, _) in enumerate(out):
            if status != RUN:
                continue
            assert 0 <= step.rewind_B[i] <= len(ids) and step.status_B[i] in (RUN, PAUSE, DONE)
            del ids[len(ids) - step.rewind_B[i] :], forced[len(forced) - step.rewind_B[i] :]
            if step.keep_B[i]:
                ids.append(int(step.token_B[i]))
                forced.append(bool(step.forced_B[i]))
                assert ids[-1] < tokenizer().size and (forced[-1] or ids[-1] == drawn_B[i])
            assert len(ids) <= rows[i].room
            out[i] = (ids, forced, int(step.status_B[i]), jax.tree.map(lambda x, i=i: np.asarray(x)[i], state))
        same = [(np.shape(a), np.asarray(a).dtype) for a in jax.tree.leaves(before)]
        assert same == [(np.shape(a), np.asarray(a).dtype) for a in jax.tree.leaves(state)]
    return out


@pytest.mark.parametrize("kind", CONTROLS)
def test_contract_of_controls(kind):
    """Shapes, limits, marks and ends; the account is a slice of the ids; no row depends on another."""
    control = CONTROLS[kind].build(tokenizer(), CONFIG.V, [config_of(kind)])
    rows, draw = rows_of(kind, 3), np.random.default_rng(0)
    drawn_TB = draw.integers(0, tokenizer().size, (2 * N, len(rows)))
    ended = play(control, rows, drawn_TB)
    for i, (ids, forced, status, state_row) in enumerate(ended):
        assert status == DONE
        account = control.account(state_row, ids, forced)
        assert account.finish_reason in ("stop", "length", "repetition")
        assert 0 <= account.thinking_tokens <= account.answer_offset <= len(ids) <= account.steps
        assert account.answer_offset + account.answer_tokens <= len(ids)
        assert not any(forced[account.answer_offset :])
        alone = play(control, [rows[i]], drawn_TB[:, i : i + 1])[0]
        assert alone[:3] == (ids, forced, status)
    none = jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), control.rows([]))
    assert none == jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), control.rows(rows[:1]))
    assert len({jax.tree.structure(control.rows(rows[:n])) for n in (1, 3)}) == 1
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(control.rows(rows[:2])))


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_refork_under_the_same_limits_changes_nothing(kind):
    control = CONTROLS[kind].build(tokenizer(), CONFIG.V, [config_of(kind)])
    [row] = rows_of(kind, 1)
    drawn_TB = np.random.default_rng(1).integers(0, 250, (9, 1))
    _, _, _, state_row = play(control, [row], drawn_TB)[0]
    again = control.refork(state_row, row)
    jax.tree.map(np.testing.assert_array_equal, again, state_row)
