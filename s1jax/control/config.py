"""How a user asks for a control. Knows no model and no loop; what the loop needs of a control lies in `automaton`."""

import dataclasses
from typing import Any, Literal

from s1jax.config import BadInput
from s1jax.engine.protocol import RepetitionDetection
from s1jax.text.tokens import PRESETS, Markers, Tokenizer


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """How long a row thinks.

    Attributes:
      kind: `budget`: a think header is forced and the fields below hold; `free`: plain completion.
      thinking: false: no think header, the prompt ends with `answer_start`.
      preset: texts for the four fields that follow, where they are None.
      thinking_start, thinking_end, answer_start, forced_end: see `s1jax.text.tokens.Markers`.
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


def header_ids(config: ControlConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that stand at the prompt's end: the think header, or `answer_start` without thinking.

    Where `answer_start` follows the end of a block instead of replacing it, the block is there and empty (as Qwen3's
    chat template writes it). No ids for `free`, and with `force_header: false`.
    """
    if config.kind == "free" or not config.force_header:
        return ()
    markers = config.markers
    if config.thinking:
        return tuple(tokenizer.encode_markup(markers.thinking_start))
    is_replaced = any(markers.answer_start.startswith(end) for end in markers.thinking_end)
    return tuple(
        tokenizer.encode_markup(markers.answer_start if is_replaced else markers.thinking_start + markers.answer_start)
    )


def refuse_unfit(name: str, value: Any, least: int, most: int) -> None:
    """Raises BadInput unless `value` is a whole number (no bool, no float) within the limits."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(f"control.{name} is {value!r}; give a whole number from {least} to {most}")
