"""Plain completion: nothing is put into a row. A think block that the model opens by itself is accounted.

Rows run through the automaton of `budget` from their answer on, so both kinds share its tables and its program.
"""

import dataclasses
from typing import Any, Literal

from s1jax.control.budget import admission, automaton
from s1jax.control.budget.config import BudgetConfig, ThinkingTexts, answer_words
from s1jax.control.budget.settings import BudgetSettings, RepetitionDetection
from s1jax.engine.protocol import Control
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class FreeConfig(ThinkingTexts):
    """Plain completion.

    Attributes:
      kind: `free`.
      preset: texts for the four fields that follow, where they are not given: `s1`, `think_tags` or `qwen3`.
      thinking_start: begins a think block, which is accounted where a completion begins with it.
      thinking_end: texts that end such a block.
      answer_start: belongs to the end of such a block where it follows.
      forced_end: not put; there so that one set of texts serves every control.
      answer_token_budget: most drawn tokens.
      repetition_detection: ends a row whose drawn tokens loop.
    """

    kind: Literal["free"] = "free"
    answer_token_budget: int | None = None
    repetition_detection: RepetitionDetection | None = None


def admit(config: FreeConfig, tokenizer: Tokenizer, **lengths: int) -> BudgetSettings:
    """See `s1jax.control.budget.admission.admit`."""
    fields: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    shared = BudgetConfig(**{**fields, "kind": "budget", "thinking": False})
    return dataclasses.replace(admission.admit(shared, tokenizer, **lengths), is_free=True)


CONTROL = Control(
    config=FreeConfig,
    header=lambda config, tokenizer: (),
    admit=admit,
    build=automaton.build,
    label=lambda config: "free",
    answer_words=answer_words,
)
