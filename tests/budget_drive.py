"""Runs the budget-forcing automaton: rows with table models in one compiled loop, and single rows as the oracle does.

Beside the package's letters: Z kind of table model · Y last id · N bucket of the prefix.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from budget_cases import Case, bucket_of
from oracle_budget import Draw, OracleResult, OracleRow, Refused

from s1jax.config import BadInput
from s1jax.control.budget import automaton as budget
from s1jax.control.budget.admission import admit
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.settings import BudgetSettings, RepetitionDetection
from s1jax.engine.protocol import DONE, RUN

MAX_IDS, N_ROWS = 96, 64
# One shape for all tests, so that each loop is compiled once.
N_IDS, N_STATES, N_CLASSES, N_EVENTS, N_TEXTS, N_RECENT, N_PERIODS = 40, 64, 40, 48, 12, 48, 6


def padded(control: budget.BudgetForcing) -> budget.BudgetForcing:
    """The control with every table at the common size; what is added is never reached."""

    def fill(table: np.ndarray, *sizes: int) -> np.ndarray:
        return np.pad(table, [(0, size - have) for size, have in zip(sizes, table.shape, strict=True)])

    tables = control.matching
    matching = dataclasses.replace(
        tables,
        next_MC=fill(tables.next_MC, N_STATES, N_CLASSES),
        event_MC=fill(tables.event_MC, N_STATES, N_CLASSES),
        rank_EJ=fill(tables.rank_EJ, N_EVENTS, N_TEXTS),
        before_EJ=fill(tables.before_EJ, N_EVENTS, N_TEXTS),
        half_MJ=fill(tables.half_MJ, N_STATES, N_TEXTS),
    )
    texts = control.texts + tuple(b"\xff%d" % i for i in range(N_TEXTS - len(control.texts)))
    assert control.n_recent <= N_RECENT and control.max_pattern <= N_PERIODS
    return dataclasses.replace(control, matching=matching, texts=texts, n_recent=N_RECENT, max_pattern=N_PERIODS)


def nameless(control: budget.BudgetForcing) -> budget.BudgetForcing:
    """The control as the compiled step takes it: the texts matter on the host only."""
    return dataclasses.replace(control, texts=(b"",) * len(control.texts))


# ---------------------------------------------------------------------------------------------- rows of table models


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """Rows under way, as an engine holds them."""

    state: Any
    ids_BT: Any
    forced_BT: Any
    length_B: Any
    status_B: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Models:
    """Which table model draws for each row."""

    order_ZYNV: Any
    kind_B: Any
    seed_B: Any


def begin(state: Any) -> Run:
    """Rows that have drawn nothing."""
    n_rows = len(state.progress.length_B)
    return Run(
        state=state,
        ids_BT=np.zeros((n_rows, MAX_IDS), np.int32),
        forced_BT=np.zeros((n_rows, MAX_IDS), bool),
        length_B=np.zeros(n_rows, np.int32),
        status_B=np.full(n_rows, RUN, np.int32),
    )


def models_of(cases: Sequence[Case], orders: np.ndarray) -> Models:
    """The models of `cases`; ids beyond the vocabulary come last."""
    kinds, lasts, buckets, size = orders.shape
    order_ZYNV = np.zeros((kinds, N_IDS + 1, buckets, N_IDS), np.int32)
    order_ZYNV[:, :lasts, :, :size] = orders
    order_ZYNV[..., size:] = np.arange(size, N_IDS)
    order_ZYNV[:, N_IDS] = order_ZYNV[:, size]
    kind_B = np.array([case.kind for case in cases], np.int32)
    return Models(order_ZYNV, kind_B, np.array([case.seed for case in cases], np.int32))


def one_step(xp: Any, control: Any, models: Models, size: Any, run: Run) -> Run:
    """Draw from the table models, ask the control, do what it says; rows that do not run keep everything."""
    rows = np.arange(run.length_B.shape[0])

    def back(n: int) -> Any:
        at_B = xp.clip(run.length_B - n, 0, MAX_IDS - 1)
        return xp.where(run.length_B >= n, run.ids_BT[rows, at_B], size)

    order_BV = models.order_ZYNV[models.kind_B, back(1), bucket_of(models.seed_B, run.length_B, back(2))]
    allowed_BV = ~xp.take_along_axis(control.forbid(run.state), order_BV, axis=1)
    drawn_B = order_BV[rows, xp.argmax(allowed_BV, axis=1)]
    state, step = control.step(run.state, drawn_B)
    runs_B = run.status_B == RUN
    length_B = run.length_B - step.rewind_B
    is_new_BT = (step.keep_B & runs_B)[:, None] & (np.arange(MAX_IDS) == length_B[:, None])

    def kept(new: Any, old: Any) -> Any:
        return xp.where(runs_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return Run(
        state=jax.tree.map(kept, state, run.state),
        ids_BT=xp.where(is_new_BT, step.token_B[:, None], run.ids_BT),
        forced_BT=xp.where(is_new_BT, step.forced_B[:, None], run.forced_BT),
        length_B=kept(length_B + step.keep_B, run.length_B),
        status_B=kept(step.status_B, run.status_B),
    )


@jax.jit
def finish(control: Any, models: Models, size: Any, run: Run) -> Run:
    """Steps until no row runs, in one compiled loop."""
    return jax.lax.while_loop(
        lambda run: jnp.any(run.status_B == RUN), lambda run: one_step(jnp, control, models, size, run), run
    )


def results(control: Any, run: Run) -> list[OracleResult]:
    """What the rows have come to, in the oracle's words."""
    run = jax.tree.map(np.asarray, run)
    return [_result(control, run, index) for index in range(len(run.length_B))]


def _result(control: Any, run: Run, index: int) -> OracleResult:
    ids = tuple(run.ids_BT[index, : run.length_B[index]].tolist())
    forced = tuple(run.forced_BT[index, : run.length_B[index]].tolist())
    return as_result(control, jax.tree.map(lambda leaf: leaf[index], run.state), ids, forced)


def as_result(control: Any, state_row: Any, ids: Sequence[int], forced: Sequence[bool]) -> OracleResult:
    """One row's account beside its ids."""
    account = dataclasses.asdict(control.account(state_row, ids, forced))
    account |= account.pop("extra")
    del account["reopened"]
    return OracleResult(token_ids=tuple(ids), forced=tuple(forced), **account)


# ------------------------------------------------------------------------------------------- rows of any other model


class GivenTokenizer:
    """Says of exactly the texts of some oracle rows which ids they are."""

    def __init__(self, rows: Sequence[OracleRow]) -> None:
        self._bytes, self.eos_ids = rows[0].token_bytes, rows[0].eos_ids
        self.size = len(self._bytes)
        self._ids: dict[str, tuple[int, ...]] = {"<think>": (0,)}
        for row in rows:
            first = zip(row.delimiters, row.delimiter_first_ids, strict=True)
            self._ids |= {delimiter.decode(): (id,) for delimiter, id in first}
        for row in rows:
            for ids in (row.answer_start, row.forced_end, row.newline, *row.strings):
                self._ids[self.text(ids)] = ids

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[id] for id in ids).decode()

    def encode_markup(self, text: str) -> list[int]:
        return list(self._ids[text])

    def token_bytes(self) -> list[bytes]:
        return list(self._bytes)


def _config(row: OracleRow, tokenizer: GivenTokenizer) -> BudgetConfig:
    return BudgetConfig(
        thinking=row.thinking,
        thinking_start="<think>",
        thinking_end=tuple(delimiter.decode() for delimiter in row.delimiters),
        answer_start=tokenizer.text(row.answer_start),
        forced_end=tokenizer.text(row.forced_end),
        thinking_token_budget=row.budget,
        min_thinking_tokens=row.minimum,
        thinking_n_ignore=row.n_ignore,
        thinking_n_ignore_str=tuple(tokenizer.text(ids) for ids in row.strings),
        answer_token_budget=row.answer_budget,
        repetition_detection=row.repetition
        and RepetitionDetection(row.repetition[0], row.repetition[2], row.repetition[1]),
        loop_action=row.loop_action,  # type: ignore[arg-type]
        algorithm=row.mode,  # type: ignore[arg-type]
    )


@jax.jit
def step_and_forbid(control: Any, state: Any, drawn_B: Any) -> Any:
    """One compiled step, and what is forbidden at the next."""
    state, step = control.step(state, drawn_B)
    return state, step, control.forbid(state)


def simulate_group(rows: Sequence[OracleRow], draws: Sequence[Draw]) -> list[OracleResult]:
    """The automaton in the oracle's place, for rows of one vocabulary. Raises Refused."""
    tokenizer: Any = GivenTokenizer(rows)
    configs = [_config(row, tokenizer) for row in rows]
    lengths = [{name: getattr(row, name) for name in ("prompt_length", "max_length", "max_new_tokens")} for row in rows]
    if any(row.unstripped_eos_ids for row in rows):
        raise Refused("every EOS is an end that is taken out")
    try:
        admitted = [admit(config, tokenizer, **sizes) for config, sizes in zip(configs, lengths, strict=True)]
    except BadInput as error:
        raise Refused(str(error)) from error
    kept = [row.kept_delimiter for row in rows]
    admitted = [dataclasses.replace(row, is_kept=is_kept) for row, is_kept in zip(admitted, kept, strict=True)]
    control = padded(budget.build(tokenizer, N_IDS, configs))
    found: list[OracleResult] = []
    for start in range(0, len(rows), N_ROWS):
        found += _simulate_batch(control, admitted[start : start + N_ROWS], draws[start : start + N_ROWS])
    return found


def _simulate_batch(control: Any, rows: Sequence[BudgetSettings], draws: Sequence[Draw]) -> list[OracleResult]:
    state = control.rows([*rows, *rows[:1] * (N_ROWS - len(rows))])
    on_device = nameless(control)
    forbidden_BV = np.asarray(control.forbid(state))
    ids: list[list[int]] = [[] for _ in rows]
    forced: list[list[bool]] = [[] for _ in rows]
    last: dict[int, Any] = {}
    while len(last) < len(rows):
        drawn_B = np.zeros(N_ROWS, np.int32)
        for index in [index for index in range(len(rows)) if index not in last]:
            drawn_B[index] = draws[index](tuple(ids[index]), _forbidden(control, forbidden_BV[index]))
        state, step, forbidden_BV = jax.tree.map(np.asarray, step_and_forbid(on_device, state, drawn_B))
        for index in [index for index in range(len(rows)) if index not in last]:
            keep = len(ids[index]) - int(step.rewind_B[index])
            ids[index], forced[index] = ids[index][:keep], forced[index][:keep]
            if step.keep_B[index]:
                ids[index].append(int(step.token_B[index]))
                forced[index].append(bool(step.forced_B[index]))
            if step.status_B[index] == DONE:
                last[index] = jax.tree.map(lambda leaf, at=index: leaf[at], state)
    return [as_result(control, last[index], ids[index], forced[index]) for index in range(len(rows))]


def _forbidden(control: Any, forbidden_V: np.ndarray) -> frozenset[int]:
    return frozenset(np.flatnonzero(forbidden_V & (control.marks_V & budget.ABSENT == 0)).tolist())


def simulate(row: OracleRow, draw: Draw) -> OracleResult:
    """`oracle_budget.simulate` by the automaton."""
    return simulate_group([row], [draw])[0]


def simulate_all(rows: Sequence[OracleRow], draws: Sequence[Draw]) -> list[OracleResult]:
    """`simulate` of many rows, by vocabulary and EOS ids, in the order given."""
    groups: dict[Any, list[int]] = collections.defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.token_bytes, row.eos_ids].append(index)
    found: dict[int, OracleResult] = {}
    for indices in groups.values():
        done = simulate_group([rows[i] for i in indices], [draws[i] for i in indices])
        found |= dict(zip(indices, done, strict=True))
    return [found[index] for index in range(len(rows))]
