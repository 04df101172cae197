"""How a user asks for budget forcing. Knows no model and no loop."""

import dataclasses
from typing import Any, Literal

from s1jax.config import BadInput
from s1jax.control.budget.settings import RepetitionDetection
from s1jax.text.tokens import PRESETS, Markers, Tokenizer


@dataclasses.dataclass(frozen=True)
class ThinkingTexts:
    """Texts around thinking.

    Attributes:
      preset: texts for the four fields that follow, where they are not given: `s1`, `think_tags` or `qwen3`.
      thinking_start: put before thinking, at the prompt's end.
      thinking_end: texts that end thinking where the model writes them.
      answer_start: stands between thinking and answer when the model ends thinking by itself.
      forced_end: put when thinking is ended by force.
    """

    preset: Literal["s1", "think_tags", "qwen3"] = "s1"
    thinking_start: str | None = None
    thinking_end: tuple[str, ...] | None = None
    answer_start: str | None = None
    forced_end: str | None = None

    @property
    def markers(self) -> Markers:
        """The preset's texts, with those given here in their place."""
        names = [field.name for field in dataclasses.fields(Markers)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(PRESETS[self.preset], **given)


@dataclasses.dataclass(frozen=True)
class BudgetConfig(ThinkingTexts):
    """Budget forcing (arXiv 2501.19393, section 3.1): how long a row thinks.

    Attributes:
      kind: `budget`.
      thinking: false: no think header, the prompt ends with `answer_start`.
      preset: texts for the four fields that follow, where they are not given: `s1`, `think_tags` or `qwen3`.
      thinking_start: put before thinking, at the prompt's end.
      thinking_end: texts that end thinking where the model writes them.
      answer_start: stands between thinking and answer when the model ends thinking by itself.
      forced_end: put when thinking is ended by force.
      force_header: false: the prompt's template has put the think header already; thinking begins with the first token.
      thinking_token_budget: most tokens of thinking, drawn and injected; null or -1: what the context leaves.
      min_thinking_tokens: ends before so many tokens of thinking are ignored.
      thinking_n_ignore: how many ends of thinking are ignored.
      thinking_n_ignore_str: put in place of an ignored end; a list is cycled; null: the model goes on without one.
      answer_token_budget: most drawn tokens of the answer; reserved at admission.
      repetition_detection: looks for loops in drawn tokens.
      loop_action: on a loop in thinking: `end_thinking` closes it, `stop` ends the row, `report` only records where.
      algorithm: `s1jax`; or, for comparison token by token with simplescaling/s1@77272c6, `harness`, whose budget
        counts the drawn tokens of each round, or `readme`, whose budget counts all drawn tokens, with no closing.
      pause_at: ascending numbers of thinking tokens at which the row pauses so that it can be forked.
    """

    kind: Literal["budget"] = "budget"
    thinking: bool = True
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
    def has_budget(self) -> bool:
        """A thinking budget was given."""
        return self.thinking_token_budget not in (None, -1)

    @property
    def strings(self) -> tuple[str, ...]:
        """What is put in place of ignored ends, in turn."""
        text = self.thinking_n_ignore_str
        return () if text is None else (text,) if isinstance(text, str) else tuple(text)


def header(config: BudgetConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that stand at the prompt's end: the think header, or `answer_start` without thinking.

    Where `answer_start` follows the end of a block instead of replacing it, the block is there and empty (as Qwen3's
    chat template writes it). None with `force_header: false`.
    """
    if not config.force_header:
        return ()
    markers = config.markers
    if config.thinking:
        return tuple(tokenizer.encode_markup(markers.thinking_start))
    is_replaced = any(markers.answer_start.startswith(end) for end in markers.thinking_end)
    return tuple(
        tokenizer.encode_markup(markers.answer_start if is_replaced else markers.thinking_start + markers.answer_start)
    )


def label(config: BudgetConfig) -> str:
    """What a reader calls it."""
    if not config.thinking:
        parts = ["no thinking"]
    else:
        parts = [f"budget {config.thinking_token_budget}" if config.has_budget else "no limit"]
    if config.min_thinking_tokens:
        parts.append(f"at least {config.min_thinking_tokens}")
    if config.thinking_n_ignore:
        parts.append(f"ignore {config.thinking_n_ignore}")
    return ", ".join(parts)


def thinking_limits(config: BudgetConfig) -> tuple[int, int] | None:
    """Least and most tokens of thinking; None where nothing is promised."""
    if not config.thinking or not (config.has_budget or config.min_thinking_tokens):
        return None
    budget = config.thinking_token_budget
    return config.min_thinking_tokens, budget if config.has_budget and budget is not None else 2**31


def answer_words(config: ThinkingTexts, forced: str) -> str:
    """What of the text forced between thinking and answer is answer: "Final Answer:", not the headers before it."""
    for delimiter in config.markers.thinking_end:
        if delimiter in forced:
            name = config.markers.answer_start.rpartition(delimiter)[2].strip()
            forced = forced.rpartition(delimiter)[2].lstrip().removeprefix(name)
    return forced


def may_rewind(config: BudgetConfig) -> int:
    """Bytes at the end of a row that may still be taken back: the longest end of thinking, twice.

    Where an ignored end leaves nothing in its place, another may be completed by what stood before it.
    """
    return 2 * max((len(text.encode()) for text in config.markers.thinking_end), default=0) if config.thinking else 0


def split(config: BudgetConfig) -> tuple[BudgetConfig, int] | None:
    """The config without its thinking budget, and the budget; without one it is above all others."""
    if not config.thinking or config.algorithm != "s1jax":
        return None
    budget = config.thinking_token_budget
    return dataclasses.replace(config, thinking_token_budget=None), 2**31 if budget in (None, -1) else budget


def refuse_unfit(name: str, value: Any, least: int, most: int) -> None:
    """Raises BadInput unless `value` is a whole number (no bool, no float) within the limits."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(f"control.{name} is {value!r}; give a whole number from {least} to {most}")
