"""What is asked of a model: rows under settings, and the fewest rows that have to be computed for them.

Rows alike in everything are one row. Rows alike but for their thinking budget are one row too, with the others forked
off on its way (`s1jax.methods.sweep`): a sweep over budgets costs little more than its longest row.
"""

import dataclasses
from collections.abc import Hashable, Iterable

from s1jax.config import BadInput
from s1jax.control.config import ControlConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.sweep import MAX_SMALLER


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row to complete.

    Attributes:
      setting: name of the setting that it belongs to.
      id, sample, seed: name the row; its draws depend on them.
      prompt_ids: the control's header included.
      control, sampling: of the row.
    """

    setting: str
    id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    control: ControlConfig
    sampling: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Tree:
    """Rows that one computed row serves.

    Attributes:
      leader: asks for the computed row (alike but for their setting).
      forks: asks with smaller budgets, by ascending budget; those of one entry are alike.
    """

    leader: tuple[Ask, ...]
    forks: tuple[tuple[Ask, ...], ...] = ()


def plan(asks: Iterable[Ask]) -> list[Tree]:
    """The fewest computed rows for these asks, in their order.

    Raises:
      BadInput: a control that pauses by itself: nobody would let its rows go on.
    """
    groups: dict[Hashable, dict[int, list[Ask]]] = {}
    for ask in asks:
        if ask.control.pause_at:
            raise BadInput(
                f"control.pause_at={list(ask.control.pause_at)} is for programs that fork rows; leave it out"
            )
        can_fork = ask.control.is_thinking and ask.control.algorithm == "s1jax"
        shared = dataclasses.replace(ask.control, thinking_token_budget=None) if can_fork else ask.control
        key = (ask.id, ask.sample, ask.seed, ask.prompt_ids, ask.sampling, shared)
        groups.setdefault(key, {}).setdefault(_budget(ask.control), []).append(ask)
    return [tree for by_budget in groups.values() for tree in _trees(by_budget)]


def _trees(by_budget: dict[int, list[Ask]]) -> list[Tree]:
    """One tree, or several where there are more budgets than a row can pause at."""
    trees, budgets = [], sorted(by_budget)
    while budgets:
        mine, budgets = budgets[-MAX_SMALLER - 1 :], budgets[: -MAX_SMALLER - 1]
        trees.append(Tree(tuple(by_budget[mine[-1]]), tuple(tuple(by_budget[budget]) for budget in mine[:-1])))
    return trees


def _budget(control: ControlConfig) -> int:
    """The thinking budget as a number; without one it is above all others."""
    budget = control.thinking_token_budget
    return 2**31 if budget in (None, -1) else budget
