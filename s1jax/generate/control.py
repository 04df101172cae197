"""What a control is to the decode loop, how a user asks for one, and what is admitted. Knows no model and no loop.

A control is a pure automaton over ids, one state per row. It is a pytree: its tables are array leaves that go into the
compiled step as an argument. Ids are drawn by the loop; the control says what stands in the sequence instead.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import jax

from s1jax.config import BadInput
from s1jax.generate.matching import Array
from s1jax.tokens import PRESETS, Markers, Tokenizer

RUN, PAUSE, DONE = 0, 1, 2

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
class ControlConfig:
    """How long a row thinks.

    Attributes:
      kind: `budget`: a think header is forced and the fields below hold; `free`: plain completion.
      thinking: false: no think header, the prompt ends with `answer_start`.
      preset: texts for the four fields that follow, where they are None.
      thinking_start, thinking_end, answer_start, forced_end: see `s1jax.tokens.Markers`.
      force_header: false: the prompt's template has put the think header already; thinking begins with the first id.
      thinking_token_budget: most ids of thinking, drawn and injected; None or -1: what the context leaves.
      min_thinking_tokens: ends before so many ids of thinking are ignored.
      thinking_n_ignore: ends that are ignored.
      thinking_n_ignore_str: put in place of an ignored end; a list is cycled; None: the model goes on without one.
      answer_token_budget: most drawn ids of the answer; reserved at admission.
      repetition_detection: looks for loops in drawn ids.
      loop_action: on a loop in thinking: `end_thinking` closes it, `stop` ends the row, `report` only records where.
      algorithm: `s1jax`; or, for comparison at id level with simplescaling/s1@77272c6, `harness`, whose budget counts
        the drawn ids of each round, or `readme`, whose budget counts all drawn ids and which puts no closing.
      pause_at: ascending numbers of thinking ids at which the row pauses so that it can be forked.
    """

    kind: Literal["free", "budget"] = "budget"
    thinking: bool = True
    preset: Literal["s1", "think_tags", "qwen3"] = "s1"
    thinking_start: str | None = None
    thinking_end: tuple[str, ...] | None = None
    answer_start: str | None = None
    forced_end: str | None = None
    force_header: bool = True
    thinking_token_budget: int | None = None
    min_thinking_tokens: int = 0
    thinking_n_ignore: int = 0
    thinking_n_ignore_str: str | tuple[str, ...] | None = "Wait"
    answer_token_budget: int | None = None
    repetition_detection: RepetitionDetection | None = None
    loop_action: Literal["end_thinking", "stop", "report"] = "end_thinking"
    algorithm: Literal["s1jax", "harness", "readme"] = "s1jax"
    pause_at: tuple[int, ...] = ()

    @property
    def is_thinking(self) -> bool:
        """Rows begin with thinking that is under control."""
        return self.kind == "budget" and self.thinking

    @property
    def strings(self) -> tuple[str, ...]:
        """What is put in place of ignored ends, in turn."""
        text = self.thinking_n_ignore_str
        return () if text is None else (text,) if isinstance(text, str) else tuple(text)

    @property
    def markers(self) -> Markers:
        """The preset's texts, with those given here in their place."""
        names = [field.name for field in dataclasses.fields(Markers)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(PRESETS[self.preset], **given)


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


def header_ids(config: ControlConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that stand at the prompt's end: the think header, or `answer_start` without thinking.

    Empty for `free`, and with `force_header: false`.
    """
    if config.kind == "free" or not config.force_header:
        return ()
    markers = config.markers
    return tuple(tokenizer.encode_markup(markers.thinking_start if config.thinking else markers.answer_start))


def refuse_unfit(name: str, value: Any, least: int, most: int) -> None:
    """Raises BadInput unless `value` is a whole number (no bool, no float) within the limits."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(f"control.{name} is {value!r}; give a whole number from {least} to {most}")
