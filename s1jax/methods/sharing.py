"""What is asked of a model: rows under settings, and the fewest rows that have to be computed for them.

Rows alike in everything are one row. Rows alike but for one limit (`s1jax.engine.protocol.Sweep`) are one row too, with
the others forked off on its way: a sweep over budgets costs little more than its longest row.
"""

import dataclasses
from collections.abc import Hashable, Iterable

from s1jax import control as controls
from s1jax.config import BadInput
from s1jax.engine.protocol import Sweep
from s1jax.methods.task import Ask


@dataclasses.dataclass(frozen=True)
class SharedRow:
    """Rows that one computed row serves.

    Attributes:
      leader: asks for the computed row (alike but for their setting).
      forks: asks with smaller limits, in ascending order; those of one entry are alike.
    """

    leader: tuple[Ask, ...]
    forks: tuple[tuple[Ask, ...], ...] = ()


def plan(asks: Iterable[Ask]) -> list[SharedRow]:
    """The fewest computed rows for these asks, in their order.

    Raises:
      BadInput: a control that pauses by itself: nobody would let its rows go on.
    """
    groups: dict[Hashable, dict[int, list[Ask]]] = {}
    sweeps: dict[Hashable, Sweep | None] = {}
    for ask in asks:
        if getattr(ask.control, "pause_at", ()):
            raise BadInput(
                f"control.pause_at={list(ask.control.pause_at)} is for programs that fork rows; leave it out"
            )
        sweep = controls.of(ask.control).sweep
        parts = sweep.split(ask.control) if sweep is not None else None
        shared, limit = (ask.control, 0) if parts is None else parts
        key = (ask.id, ask.sample, ask.seed, ask.prompt_ids, ask.sampling, shared)
        groups.setdefault(key, {}).setdefault(limit, []).append(ask)
        sweeps[key] = sweep
    return [row for key, by_limit in groups.items() for row in _rows(by_limit, sweeps[key])]


def _rows(by_limit: dict[int, list[Ask]], sweep: Sweep | None) -> list[SharedRow]:
    """One row, or several where there are more limits than a row can pause at."""
    rows, limits, most = [], sorted(by_limit), sweep.most if sweep is not None else 0
    while limits:
        mine, limits = limits[-most - 1 :], limits[: -most - 1]
        rows.append(SharedRow(tuple(by_limit[mine[-1]]), tuple(tuple(by_limit[limit]) for limit in mine[:-1])))
    return rows
