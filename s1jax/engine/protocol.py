"""What a control is to the decode engine: the border between the two, which both sides import.

A control decides what stands in a row's sequence in place of, or beside, the tokens that the model draws. To the engine
it is a pure automaton over tokens, one state per row; the automaton knows no model, no tokenizer and no loop. It is a
pytree: its tables are array leaves that go into the compiled step as an argument.

A `Control` is an entry of a registry (`s1jax.control.CONTROLS`): the config class that a user fills in, and functions
that make of it what the engine runs. The engine itself sees `Settings`, `Automaton`, `Step` and `Account` only.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

# Tables and fresh states are made by NumPy on the host; the compiled step sees JAX arrays.
Array = jax.Array | np.ndarray

RUN, PAUSE, DONE = 0, 1, 2
MAX_TOKENS = 2**31 - 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What the loop does with each row: `length -= rewind`; if `keep`, append `token` and mark it `forced`.

    Without `keep` the token that is then last (the prompt's last, if no other is left) is fed again at its own
    position; its mark and its log-probability stay. Rows whose `status` is PAUSE or DONE wait.

    Attributes:
      token_B: int32 token.
      rewind_B: int32 number of tokens taken back.
      keep_B: bool.
      forced_B: bool, the token was put there by the control.
      status_B: int32, RUN, PAUSE or DONE.
    """

    token_B: Array
    rewind_B: Array
    keep_B: Array
    forced_B: Array
    status_B: Array


@dataclasses.dataclass(frozen=True)
class Account:
    """Of one row: thinking is `token_ids[:thinking_tokens]`, the drawn answer begins at `token_ids[answer_offset]`.

    Attributes:
      thinking_tokens: tokens of thinking, injected strings included, the end of thinking not.
      answer_offset: index of the first drawn token of the answer.
      answer_tokens: drawn tokens of the answer without a final EOS.
      steps: decode steps spent, rewound and re-fed ones included, pauses not.
      thinking_finish_reason: why thinking ended, or None without thinking.
      finish_reason: `stop | length | repetition`, or None while the row runs (the engine may end it: stop strings).
      extra: what the control adds; a record carries it at its top level.
    """

    thinking_tokens: int
    answer_offset: int
    answer_tokens: int
    steps: int
    thinking_finish_reason: str | None
    finish_reason: str | None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Settings(Protocol):
    """One admitted request, in tokens and bytes; hashable. The engine reads these two fields and no others."""

    @property
    def kind(self) -> str:
        """Key of the registry."""
        ...

    @property
    def room(self) -> int:
        """Most tokens after the prompt."""
        ...


class Automaton(Protocol):
    """What runs. Its state is a pytree of small arrays with leading axis B, which the loop inserts and copies.

    A method that says "on the host" gets the state of one row, arrays without the axis B, and gives such a state back.
    """

    def rows(self, settings: Sequence[Any]) -> Any:
        """On the host: fresh states, NumPy arrays, of the same shapes (but for B) whatever the settings, none included.

        Raises:
          BadInput: settings that this automaton was not built for.
        """
        ...

    def forbid(self, state_B: Any) -> Array:
        """`[B, V]` bool: tokens that must not be drawn at this step."""
        ...

    def step(self, state_B: Any, drawn_B: Array) -> tuple[Any, Step]:
        """Pure; each row for itself; harmless for rows that do not run, and for states of zeros."""
        ...

    def account(self, state_row: Any, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        """On the host: the account of one row. Raises RuntimeError if the row broke its own limits."""
        ...

    def thinking_tokens(self, state_row: Any, n_tokens: int) -> int:
        """On the host, for display: how many of the row's `n_tokens` so far are thinking."""
        ...

    def extend(self, state_row: Any, token_ids: Sequence[int], n_tokens: int) -> Any:
        """On the host: the state after `token_ids` were put behind the row's `n_tokens` from outside.

        Raises:
          BadInput: they exceed a limit of the row, or cannot stand here; nothing has changed then.
        """
        ...

    def refork(self, state_row: Any, settings: Any) -> Any:
        """On the host: the same point of the same sequence under other settings.

        Raises:
          BadInput: the row is already beyond the new limits, or the settings are of another sort.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How rows that differ in one limit alone share their beginning: one runs and pauses where copies branch off.

    Attributes:
      split: config -> (the config without the limit, the limit), equal first parts mean rows that can share; None where
        the rows share nothing.
      limit: settings -> the limit, in tokens of thinking.
      pause_at: settings and ascending limits below their own -> settings that pause where each is reached.
      most: limits that a row can pause at.
    """

    split: Callable[[Any], tuple[Any, int] | None]
    limit: Callable[[Any], int]
    pause_at: Callable[[Any, Sequence[int]], Any]
    most: int


def no_bytes(config: Any) -> int:
    """Nothing of a row is taken back."""
    return 0


def no_words(config: Any, forced: str) -> str:
    """No word that the control puts belongs to the answer."""
    return ""


@dataclasses.dataclass(frozen=True)
class Control:
    """An entry of the registry.

    Attributes:
      config: frozen dataclass of what a user may set, with a field `kind` whose default is the key of the registry.
      header: config, tokenizer -> tokens that the control puts at the end of a prompt.
      admit: config, tokenizer, `prompt_length` (header included), `max_length`, `max_new_tokens` -> `Settings`.
        Raises BadInput, all numbers named, for what cannot fit.
      build: tokenizer, vocabulary size, configs -> the `Automaton` for all rows that will be admitted under them.
        Entries with the same `build` share one automaton. Raises BadInput.
      label: config -> what a reader calls it.
      thinking_limits: config -> least and most tokens of thinking that it promises; None where it promises none.
      answer_words: config, text that it forced between thinking and answer -> the part of it that is answer.
      may_rewind: config -> how many of a row's last bytes may still be taken back; a stream does not show them yet.
      sweep: how rows that differ in one limit share their beginning; None: they do not.
    """

    config: type
    header: Callable[[Any, Any], tuple[int, ...]]
    admit: Callable[..., Any]
    build: Callable[[Any, int, Sequence[Any]], Any]
    label: Callable[[Any], str]
    thinking_limits: Callable[[Any], tuple[int, int] | None] = lambda config: None
    answer_words: Callable[[Any, str], str] = no_words
    may_rewind: Callable[[Any], int] = no_bytes
    sweep: Sweep | None = None
