"""The compiled decode loop: one window of steps over all rows, and the edits of rows between windows.

A row's ids (prompt and kept) stand in `tokens_BS` by position. The keys and values of all ids but the last are in the
cache. One step feeds the last id at its own position, draws from its logits, lets the control say what stands in the
sequence instead, and then `length -= rewind`, and one id is appended where it says `keep`. So taking ids back is a
subtraction, and feeding the last id again costs no program of its own.

Letters: see `s1jax.engine.state`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.engine import cache as kv
from s1jax.engine import sampling
from s1jax.engine.protocol import DONE, PAUSE, RUN, Array, Automaton
from s1jax.engine.state import DeviceRows, EngineState, Report, Shape
from s1jax.models.decoder import Model, forward, logits
from s1jax.parallel.axes import constrain

Carry = tuple[EngineState, jax.Array, jax.Array]


def select(is_new_B: jax.Array, new: Any, old: Any) -> Any:
    """Per row, leaves of `new` or of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(is_new_B.reshape(is_new_B.shape + (1,) * (a.ndim - 1)), a, b), new, old)


def constrain_state(state: EngineState) -> EngineState:
    """`state` placed where every program expects it: the cache by kv head, all else on every device."""
    cache = tuple(tuple(kv.place(slots) for slots in layer) for layer in state.cache)
    return EngineState(cache, jax.tree.map(lambda x: constrain(x, ""), state.row))


@functools.partial(jax.jit, static_argnames=("size", "shape"))
def start(size: kv.Size, shape: Shape, control: Any, draw: sampling.SamplingParams) -> EngineState:
    """A state of empty rows. `control` and `draw` are of any one row, with leading axis 1."""
    B, S = shape.rows, shape.max_length
    control, draw = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), B, axis=0), (control, draw))
    row = DeviceRows(
        tokens_BS=jnp.zeros((B, S), jnp.int32),
        forced_BS=jnp.zeros((B, S), bool),
        logprob_BS=jnp.zeros((B, S), jnp.float32),
        length_B=jnp.ones(B, jnp.int32),
        status_B=jnp.full(B, DONE, jnp.int32),
        control=control,
        draw=draw,
    )
    return constrain_state(EngineState(kv.empty(size, shape.classes), row))


@functools.partial(jax.jit, static_argnames=("shape",), donate_argnames=("state",))
def decode_window(model: Model, control: Automaton, state: EngineState, *, shape: Shape) -> tuple[EngineState, Report]:
    """Run `shape.window` steps of every row that runs and has room in its class; all other rows stay as they are.

    Args:
      model: an `Unstacked` model; a stacked one would be copied layer by layer in every step.
      control: a pytree; its tables are arguments of the program, not constants in it.
      state: donated.
    """

    def body(_: jax.Array, carry: Carry) -> Carry:
        state, low_B, n_steps = carry
        active_B = is_active(state.row, shape)
        state = step(model, control, state, active_B, jnp.dtype(shape.dtype))
        # An id that was put where others were taken back lies one below the length after the step.
        low_B = jnp.where(active_B, jnp.minimum(low_B, state.row.length_B - 1), low_B)
        return state, low_B, n_steps + jnp.sum(active_B)

    carry: Carry = (state, state.row.length_B, jnp.int32(0))
    # A branch around the loop for when no row runs would cost a copy of the cache, on several GPUs in every window.
    state, low_B, n_steps = jax.lax.fori_loop(0, shape.window, body, carry)
    return constrain_state(state), _report(state.row, low_B, n_steps, shape.window)


def is_active(row: DeviceRows, shape: Shape) -> jax.Array:
    """Rows that run and whose last id still has a position in their class."""
    return (row.status_B == RUN) & (row.length_B <= shape.capacity_B)


def step(model: Model, control: Automaton, state: EngineState, active_B: jax.Array, dtype: jnp.dtype) -> EngineState:
    """One step of the active rows."""
    row = state.row
    position_B = row.length_B - 1
    token_BT = jnp.take_along_axis(row.tokens_BS, position_B[:, None], axis=1)

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, layer: kv.Layer) -> tuple[jax.Array, kv.Layer]:
        layer = kv.write(layer, k_BTKH[:, 0], v_BTKH[:, 0], position_B, active_B)
        return kv.attend(layer, q_BTKGH[:, 0], position_B)[:, None], layer

    x_BTD, cache = forward(model, token_BT, position_B[:, None], attend, state.cache, dtype=dtype)
    logits_BV = logits(model, x_BTD)[:, 0]
    with jax.named_scope("control"):
        forbidden_BV = control.forbid(row.control)
    with jax.named_scope("sampling"):
        drawn_B = sampling.draw(logits_BV, forbidden_BV, row.draw, row.length_B, active_B)
    with jax.named_scope("control"):
        after, what = control.step(row.control, drawn_B)
    length_B = row.length_B - what.rewind_B
    keep_B = what.keep_B & active_B & (what.status_B != PAUSE)
    wanted_B = row.draw.logprobs_B & keep_B
    logprob_B = jnp.where(what.rewind_B > 0, jnp.nan, _logprob(logits_BV, what.token_B, wanted_B))
    at_B = jnp.where(keep_B, length_B, row.tokens_BS.shape[1])  # beyond the end: dropped

    def put(old_BS: jax.Array, new_B: Array) -> jax.Array:
        return old_BS.at[jnp.arange(len(at_B)), at_B].set(new_B, mode="drop")

    changed = dataclasses.replace(row, length_B=length_B + keep_B, status_B=what.status_B, control=after)
    small = select(active_B, _small(changed), _small(row))
    length_B, status_B, after = small
    row = dataclasses.replace(
        row,
        tokens_BS=put(row.tokens_BS, what.token_B),
        forced_BS=put(row.forced_BS, what.forced_B),
        logprob_BS=put(row.logprob_BS, jnp.where(row.draw.logprobs_B, logprob_B, 0.0)),
        length_B=length_B,
        status_B=status_B,
        control=after,
    )
    return EngineState(cache, row)


def _small(row: DeviceRows) -> tuple[jax.Array, jax.Array, Any]:
    return row.length_B, row.status_B, row.control


def _logprob(logits_BV: jax.Array, token_B: Array, wanted_B: jax.Array) -> jax.Array:
    """Log-softmax of the raw logits at `token`, in float32; zero, and no work, where no row wants it."""

    def compute() -> jax.Array:
        chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
        return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)

    return jax.lax.cond(jnp.any(wanted_B), compute, lambda: jnp.zeros(len(token_B), jnp.float32))


def _report(row: DeviceRows, low_B: jax.Array, n_steps: jax.Array, window: int) -> Report:
    def part(x_BS: jax.Array) -> jax.Array:
        at_BT = low_B[:, None] + jnp.arange(min(window, x_BS.shape[1]))
        return jnp.take_along_axis(x_BS, jnp.minimum(at_BT, x_BS.shape[1] - 1), axis=1)

    report = Report(
        low_B=low_B,
        tokens_BT=part(row.tokens_BS),
        forced_BT=part(row.forced_BS),
        logprob_BT=part(row.logprob_BS),
        length_B=row.length_B,
        status_B=row.status_B,
        control=row.control,
        n_steps=n_steps,
    )
    return jax.tree.map(lambda x: constrain(x, ""), report)


@functools.partial(jax.jit, static_argnames=("of_class", "shape"), donate_argnames=("state",))
def insert(
    state: EngineState,
    source: tuple[kv.Slots, ...],
    source_row: jax.Array,
    row: DeviceRows,
    slot: jax.Array,
    *,
    of_class: int,
    shape: Shape,
) -> EngineState:
    """Put a row into a slot, overwriting all that was there.

    Args:
      state: donated.
      source, source_row: cached positions, per layer, and which row of them.
      row: the row, leading axis 1.
      slot: counted from the first slot of its class.
    """
    at = slot + sum(rows for rows, _ in shape.classes[:of_class])

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=0)

    changed = jax.tree.map(put, state.row, row)
    return constrain_state(EngineState(kv.insert(state.cache, of_class, slot, source, source_row), changed))


@functools.partial(jax.jit, static_argnames=("of_class", "shape"))
def extract(
    state: EngineState, slot: jax.Array, *, of_class: int, shape: Shape
) -> tuple[tuple[kv.Slots, ...], DeviceRows]:
    """A copy of one row and of its cached positions, both with leading axis 1."""
    at = slot + sum(rows for rows, _ in shape.classes[:of_class])
    row = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at, axis=0), state.row)
    return kv.extract(state.cache, of_class, slot), row


@functools.partial(jax.jit, donate_argnames=("state",))
def set_status(state: EngineState, chosen_B: jax.Array, before: jax.Array, status: jax.Array) -> EngineState:
    """Give those of the chosen rows a status that have the status `before`; a row that has ended stays so."""
    changes_B = chosen_B & (state.row.status_B == before)
    row = dataclasses.replace(state.row, status_B=jnp.where(changes_B, status, state.row.status_B))
    return constrain_state(EngineState(state.cache, row))
