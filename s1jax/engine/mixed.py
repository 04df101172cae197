"""Several automata in one program, so that one batch may mix kinds of control. Each row runs under one of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config import BadInput
from s1jax.engine.protocol import Account, Array, Automaton, Step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixedState:
    """A row's state under every automaton; that of the row's own is the one that counts.

    Attributes:
      which_B: int32 index of the row's automaton.
      states: one for each automaton, of zeros where it is not the row's.
    """

    which_B: Array
    states: tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixed:
    """An `Automaton` of automata. Every one of them steps every row, and each row takes what its own says.

    Attributes:
      automata: each once.
      kinds: (kind of control, index of its automaton).
    """

    automata: tuple[Any, ...]
    kinds: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})

    def rows(self, settings: Sequence[Any]) -> MixedState:
        """See `Automaton.rows`; also raises BadInput for a kind that is not among `kinds`."""
        index_of = dict(self.kinds)
        for row in settings:
            if row.kind not in index_of:
                raise BadInput(
                    f"control.kind={row.kind} is none of those that this engine was made for, {', '.join(index_of)}; "
                    "make it for that one too"
                )
        which_B = np.array([index_of[row.kind] for row in settings], np.int32)
        return MixedState(which_B, tuple(self._of_one(i, settings, which_B) for i in range(len(self.automata))))

    def _of_one(self, index: int, settings: Sequence[Any], index_of_row: np.ndarray) -> Any:
        mine = [row for row, of_row in zip(settings, index_of_row, strict=True) if of_row == index]

        def spread(leaf: np.ndarray) -> np.ndarray:
            out = np.zeros((len(settings), *leaf.shape[1:]), leaf.dtype)
            out[index_of_row == index] = leaf
            return out

        return jax.tree.map(spread, self.automata[index].rows(mine))

    def forbid(self, state_B: MixedState) -> Array:
        """`[B, V]` bool."""
        masks = [control.forbid(state) for control, state in zip(self.automata, state_B.states, strict=True)]
        return _pick(state_B.which_B, masks)

    def step(self, state_B: MixedState, drawn_B: Array) -> tuple[MixedState, Step]:
        """See `Automaton.step`."""
        pairs = zip(self.automata, state_B.states, strict=True)
        after, steps = zip(*(control.step(state, drawn_B) for control, state in pairs), strict=True)
        step = jax.tree.map(lambda *leaves: _pick(state_B.which_B, leaves), *steps)
        return MixedState(state_B.which_B, tuple(after)), step

    def account(self, state_row: MixedState, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        """See `Automaton.account`."""
        control, state = self._own(state_row)
        return control.account(state, token_ids, forced)

    def thinking_tokens(self, state_row: MixedState, n_tokens: int) -> int:
        """See `Automaton.thinking_tokens`."""
        control, state = self._own(state_row)
        return control.thinking_tokens(state, n_tokens)

    def extend(self, state_row: MixedState, token_ids: Sequence[int], n_tokens: int) -> MixedState:
        """See `Automaton.extend`."""
        control, state = self._own(state_row)
        return self._with(state_row, control.extend(state, token_ids, n_tokens))

    def refork(self, state_row: MixedState, settings: Any) -> MixedState:
        """See `Automaton.refork`."""
        if dict(self.kinds).get(settings.kind) != int(state_row.which_B):
            raise BadInput(f"a copy cannot go on under control.kind={settings.kind}; give all its tokens as a prompt")
        control, state = self._own(state_row)
        return self._with(state_row, control.refork(state, settings))

    def _own(self, state_row: MixedState) -> tuple[Automaton, Any]:
        index = int(state_row.which_B)
        return self.automata[index], state_row.states[index]

    def _with(self, state_row: MixedState, own: Any) -> MixedState:
        index = int(state_row.which_B)
        return MixedState(state_row.which_B, (*state_row.states[:index], own, *state_row.states[index + 1 :]))


def mix(automata: Mapping[str, Automaton]) -> tuple[Automaton, frozenset[str]]:
    """One automaton for rows of all these kinds, and the kinds. One that serves all of them is taken as it is."""
    different = list({id(automaton): automaton for automaton in automata.values()}.values())
    if len(different) == 1:
        return different[0], frozenset(automata)
    index_of = {id(automaton): i for i, automaton in enumerate(different)}
    kinds = tuple((kind, index_of[id(automaton)]) for kind, automaton in automata.items())
    return Mixed(tuple(different), kinds), frozenset(automata)


def _pick(which_B: Array, choices: Sequence[Array]) -> Array:
    out = choices[0]
    for index, choice in enumerate(choices[1:], 1):
        is_own_B = jnp.asarray(which_B == index)
        out = jnp.where(is_own_B.reshape(is_own_B.shape + (1,) * (choice.ndim - 1)), choice, out)
    return out
