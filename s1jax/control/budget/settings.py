"""One admitted request under budget forcing, in tokens and bytes, and the limits that fix the shapes of a state."""

import dataclasses

# Limits of a row; they fix the shapes of a state.
MAX_DELIMITERS, MAX_DELIMITER_IDS, MAX_DELIMITER_BYTES = 8, 8, 64
MAX_STRINGS, MAX_STRING_IDS, MAX_NEWLINE_IDS = 8, 64, 8
MAX_PATTERN_SIZE, MAX_PATTERN_COUNT = 64, 64
MAX_PAUSES = 8


@dataclasses.dataclass(frozen=True)
class RepetitionDetection:
    """A loop as vLLM's: `min_count` equal patterns of p tokens, for a p from `min_pattern_size` to `max_pattern_size`.

    Attributes:
      max_pattern_size: most tokens of a pattern.
      min_count: how many equal patterns in a row are a loop.
      min_pattern_size: least tokens of a pattern.
    """

    max_pattern_size: int
    min_count: int
    min_pattern_size: int = 1


@dataclasses.dataclass(frozen=True)
class BudgetSettings:
    """A row of `budget` or `free`.

    Attributes:
      is_thinking: begins with thinking under control.
      is_free: plain completion: a think block that the model opens by itself is accounted.
      room: most tokens after the prompt.
      budget: effective thinking budget; `has_budget`: it was given, so spending it is `budget` and not `length`.
      minimum, n_ignore, strings, answer_budget: as in `BudgetConfig`, strings as tokens.
      answer_start, forced_end, newline: tokens.
      delimiters, header, answer_text: bytes; `is_kept[j]`: delimiter j stays where it was drawn.
      repetition, loop_action, algorithm, pause_at: as in `BudgetConfig`.
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

    @property
    def kind(self) -> str:
        """Key of the registry."""
        return "free" if self.is_free else "budget"
