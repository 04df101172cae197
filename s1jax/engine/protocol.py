"""What a control is to the decode loop: the border between the two. Knows no tokenizer, no model and no loop.

A control is a pure automaton over ids, one state per row. It is a pytree: its tables are array leaves that go into the
compiled step as an argument. Ids are drawn by the loop; the control says what stands in the sequence instead.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

# Tables and fresh states are made by NumPy on the host; the compiled step sees JAX arrays.
Array = jax.Array | np.ndarray

RUN, PAUSE, DONE = 0, 1, 2

# Limits of a row; they fix the shapes of a state.
MAX_DELIMITERS, MAX_DELIMITER_IDS, MAX_DELIMITER_BYTES = 8, 8, 64
MAX_STRINGS, MAX_STRING_IDS, MAX_NEWLINE_IDS = 8, 64, 8
MAX_PATTERN_SIZE, MAX_PATTERN_COUNT = 64, 64
MAX_PAUSES = 8
MAX_IDS = 2**31 - 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What the loop does with each row: `length -= rewind`; if `keep`, append `token` and mark it `forced`.

    Without `keep` the id that is then last (the prompt's last, if no other is left) is fed again at its own position;
    its mark and its log-probability stay. Rows whose `status` is PAUSE or DONE wait.

    Attributes:
      token_B: int32 id.
      rewind_B: int32 number of ids taken back.
      keep_B: bool.
      forced_B: bool, the id was put there by the control.
      status_B: int32, RUN, PAUSE or DONE.
    """

    token_B: Array
    rewind_B: Array
    keep_B: Array
    forced_B: Array
    status_B: Array


@dataclasses.dataclass(frozen=True)
class Account:
    """Of one row: thinking is `token_ids[:thinking_tokens]`, the drawn answer `token_ids[answer_offset:]`.

    Attributes:
      thinking_tokens: ids of thinking, injected strings included, the end of thinking not.
      answer_offset: index of the first drawn answer id.
      answer_tokens: drawn answer ids without a final EOS.
      n_ignored: ends of thinking that were ignored.
      steps: decode steps spent, rewound and re-fed ones included, pauses not.
      thinking_finish_reason: `natural | budget | loop | length`, or None without thinking.
      finish_reason: `stop | length | repetition`, or None while the row runs (the host may end it: stop strings).
      loop_at: thinking ids at the first loop, under `loop_action: report`.
      reopened: a delimiter or the think header stands in the answer.
    """

    thinking_tokens: int
    answer_offset: int
    answer_tokens: int
    n_ignored: int
    steps: int
    thinking_finish_reason: str | None
    finish_reason: str | None
    loop_at: int | None
    reopened: bool


@dataclasses.dataclass(frozen=True)
class RepetitionDetection:
    """A loop as vLLM's: `min_count` equal patterns of p ids, for a p from `min_pattern_size` to `max_pattern_size`."""

    max_pattern_size: int
    min_count: int
    min_pattern_size: int = 1


@dataclasses.dataclass(frozen=True)
class ControlRow:
    """One admitted request, in ids and bytes.

    Attributes:
      is_thinking: begins with thinking under control.
      is_free: plain completion: a think block that the model opens by itself is accounted.
      room: most ids after the prompt.
      budget: effective thinking budget; `has_budget`: it was given, so spending it is `budget` and not `length`.
      minimum, n_ignore, strings, answer_budget: as in `ControlConfig`, strings as ids.
      answer_start, forced_end, newline: ids.
      delimiters, header, answer_text: bytes; `is_kept[j]`: delimiter j stays where it was drawn.
      repetition, loop_action, algorithm, pause_at: as in `ControlConfig`.
    """

    is_thinking: bool
    is_free: bool
    room: int
    answer_start: tuple[int, ...]
    forced_end: tuple[int, ...]
    newline: tuple[int, ...]
    delimiters: tuple[bytes, ...]
    is_kept: tuple[bool, ...]
    header: bytes
    answer_text: bytes
    budget: int = 0
    has_budget: bool = False
    minimum: int = 0
    n_ignore: int = 0
    strings: tuple[tuple[int, ...], ...] = ()
    answer_budget: int | None = None
    repetition: RepetitionDetection | None = None
    loop_action: str = "end_thinking"
    algorithm: str = "s1jax"
    pause_at: tuple[int, ...] = ()


class Control(Protocol):
    """The automaton. Its state is a pytree of small arrays with leading axis B, which the loop inserts and copies."""

    def rows(self, requests: Sequence[ControlRow]) -> Any:
        """On the host: fresh states, NumPy arrays, of the same shapes whatever the requests."""
        ...

    def forbid(self, state_B: Any) -> Array:
        """`[B, V]` bool: ids that must not be drawn at this step."""
        ...

    def step(self, state_B: Any, drawn_B: Array) -> tuple[Any, Step]:
        """Pure; each row for itself; harmless for rows that do not run."""
        ...

    def account(self, state_row: Any, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        """On the host: the account of one row, from its last state (arrays without the axis B) and its ids."""
        ...

    def refork(self, state_row: Any, row: ControlRow) -> Any:
        """On the host: the same point of the same sequence under other limits."""
        ...
