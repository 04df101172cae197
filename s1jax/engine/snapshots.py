"""Rows outside of their slots: copies of paused rows, rows that wait on the host, and how a copy goes another way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.engine import cache as kv
from s1jax.engine import requests
from s1jax.engine.protocol import RUN, Automaton
from s1jax.engine.requests import Listener, Request
from s1jax.engine.state import DeviceRows


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A row outside of its slot: tokens, cached positions, control state. The arrays have a leading axis 1.

    Attributes:
      request: what it runs.
      of_class: the length class it needs.
      cache, row: on the device or on the host.
      identity: of the engine that it was taken from; it fits into engines of that identity.
    """

    request: Request
    of_class: int
    cache: tuple[kv.Slots, ...]
    row: DeviceRows
    identity: str = ""

    @property
    def length(self) -> int:
        """Tokens, prompt included."""
        return int(np.asarray(self.row.length_B)[0])

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens, prompt included."""
        return tuple(np.asarray(self.row.tokens_BS)[0, : self.length].tolist())

    @property
    def state_row(self) -> Any:
        """The control's state, without the axis B."""
        return jax.tree.map(lambda x: np.asarray(x)[0], self.row.control)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A request that has no row yet."""

    request: Request
    listener: Listener


@dataclasses.dataclass(frozen=True)
class Parked:
    """A row that waits outside, on the host."""

    snapshot: Snapshot
    listener: Listener

    @property
    def status(self) -> int:
        """RUN: it waits for a slot; PAUSE: for its caller."""
        return int(np.asarray(self.snapshot.row.status_B)[0])

    def with_status(self, status: int) -> "Parked":
        """The row with another status."""
        row = dataclasses.replace(self.snapshot.row, status_B=np.array([status], np.int32))
        return dataclasses.replace(self, snapshot=dataclasses.replace(self.snapshot, row=row))

    def on_host(self) -> "Parked":
        """The row with its cached positions in the host's memory."""
        return dataclasses.replace(
            self, snapshot=dataclasses.replace(self.snapshot, cache=jax.device_get(self.snapshot.cache))
        )


def initial_row(request: Request, control_state: Any, max_length: int) -> DeviceRows:
    """The row's arrays as it enters a slot, leading axis 1. `control_state` has that axis too."""
    tokens_BS = np.zeros((1, max_length), np.int32)
    tokens_BS[0, : len(request.prompt_ids)] = request.prompt_ids
    return DeviceRows(
        tokens_BS=tokens_BS,  # pyright: ignore[reportArgumentType]
        forced_BS=np.zeros((1, max_length), bool),  # pyright: ignore[reportArgumentType]
        logprob_BS=np.zeros((1, max_length), np.float32),  # pyright: ignore[reportArgumentType]
        length_B=np.array([len(request.prompt_ids)], np.int32),  # pyright: ignore[reportArgumentType]
        status_B=np.array([RUN], np.int32),  # pyright: ignore[reportArgumentType]
        control=control_state,
        draw=requests.sampling_params(request),
    )


def copy_of(snapshot: Snapshot, request: Request | None, automaton: Automaton) -> Snapshot:
    """A copy of a row that runs from where it was taken, under another request if one is given.

    The request has the same prompt and other limits, seed or sampling; or its prompt is all that the row has by now,
    and its control begins afresh.

    Raises:
      BadInput: its prompt is neither, or the row is beyond its limits.
    """
    if request is not None:
        control, params = _control_under(snapshot, request, automaton), requests.sampling_params(request)
        row = dataclasses.replace(snapshot.row, control=control, draw=params)
        if request.sampling.logprobs and not snapshot.request.sampling.logprobs:
            unknown_BS = np.full_like(np.asarray(row.logprob_BS), np.nan)  # nobody asked for those so far
            row = dataclasses.replace(row, logprob_BS=unknown_BS)  # pyright: ignore[reportArgumentType]
        snapshot = dataclasses.replace(snapshot, request=request, row=row)
    return Parked(snapshot, Listener()).with_status(RUN).snapshot


def _control_under(snapshot: Snapshot, request: Request, automaton: Automaton) -> Any:
    before = snapshot.request
    if request.prompt_ids == snapshot.token_ids and request.prompt_ids != before.prompt_ids:
        return automaton.rows([request.control])
    if request.prompt_ids != before.prompt_ids:
        raise BadInput(
            f"{request.name} has a prompt of {len(request.prompt_ids)} tokens that is neither the row's prompt "
            f"({len(before.prompt_ids)} tokens) nor all of its {snapshot.length} tokens"
        )
    if request.control == before.control:
        return snapshot.row.control
    if request.control.kind != before.control.kind:
        raise BadInput(
            f"{request.name} has control.kind={request.control.kind}, the row {before.control.kind}; give the row's "
            "own, or all its tokens as a new prompt"
        )
    return _with_axis(automaton.refork(snapshot.state_row, request.control))


def extended_row(snapshot: Snapshot, ids: Sequence[int], automaton: Automaton) -> DeviceRows:
    """The arrays of the row with tokens appended, marked as forced. Raises BadInput for what the control refuses."""
    row, begin, end = snapshot.row, snapshot.length, snapshot.length + len(ids)
    state = automaton.extend(snapshot.state_row, ids, begin - len(snapshot.request.prompt_ids))
    tokens_BS, forced_BS, logprob_BS = (np.array(x) for x in (row.tokens_BS, row.forced_BS, row.logprob_BS))
    tokens_BS[0, begin:end], forced_BS[0, begin:end] = ids, True
    logprob_BS[0, begin:end] = np.nan if snapshot.request.sampling.logprobs else 0.0
    return dataclasses.replace(
        row,
        tokens_BS=tokens_BS,
        forced_BS=forced_BS,
        logprob_BS=logprob_BS,
        length_B=np.array([end], np.int32),
        control=_with_axis(state),
    )


def _with_axis(state_row: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[None], state_row)
