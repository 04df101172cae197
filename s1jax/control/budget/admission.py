"""From a `BudgetConfig` and the size of a prompt to `BudgetSettings`, or a refusal before any work."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig, refuse_unfit
from s1jax.control.budget.settings import (
    MAX_DELIMITER_BYTES,
    MAX_DELIMITER_IDS,
    MAX_DELIMITERS,
    MAX_NEWLINE_IDS,
    MAX_PATTERN_COUNT,
    MAX_PATTERN_SIZE,
    MAX_PAUSES,
    MAX_STRING_IDS,
    MAX_STRINGS,
    BudgetSettings,
)
from s1jax.engine.protocol import MAX_TOKENS
from s1jax.text.tokens import Tokenizer


def admit(
    config: BudgetConfig, tokenizer: Tokenizer, *, prompt_length: int, max_length: int, max_new_tokens: int
) -> BudgetSettings:
    """One request in tokens, with its effective budget.

    Args:
      prompt_length: tokens of the prompt, the control's header included.
      max_length: most tokens of prompt and completion together.
      max_new_tokens: most tokens after the prompt.

    Raises:
      BadInput: a number is none, a text is too long, or what is asked for cannot fit; all numbers are named.
    """
    check(config)
    row = _encode(config, tokenizer)
    row = dataclasses.replace(row, room=min(max_length - prompt_length, max_new_tokens))
    asked = f"prompt of {prompt_length} tokens, max_length {max_length} and max_new_tokens {max_new_tokens}"
    room = f"{asked}: room {row.room}"
    if config.thinking:
        return _fit_thinking(row, room)
    answer = row.answer_budget or 0
    if row.room < max(1, answer):
        raise BadInput(f"{room}, but {max(1, answer)} tokens of answer are asked for; {_WAY_OUT}")
    return row


_WAY_OUT = "shorten the prompt, raise max_length or max_new_tokens, or ask for less"


def check(config: BudgetConfig) -> None:
    """Raises BadInput for a number that is none or out of its limits, or for fields that contradict each other."""
    if config.thinking_token_budget is not None:
        refuse_unfit("thinking_token_budget", config.thinking_token_budget, -1, MAX_TOKENS)
    refuse_unfit("min_thinking_tokens", config.min_thinking_tokens, 0, MAX_TOKENS)
    refuse_unfit("thinking_n_ignore", config.thinking_n_ignore, 0, MAX_TOKENS)
    if config.answer_token_budget is not None:
        refuse_unfit("answer_token_budget", config.answer_token_budget, 1, MAX_TOKENS)
    for threshold in config.pause_at:
        refuse_unfit("pause_at", threshold, 0, MAX_TOKENS)
    if len(config.pause_at) > MAX_PAUSES or list(config.pause_at) != sorted(set(config.pause_at)):
        raise BadInput(f"control.pause_at is {list(config.pause_at)}; give at most {MAX_PAUSES} ascending numbers")
    if config.repetition_detection is not None:
        longest = config.repetition_detection.max_pattern_size
        refuse_unfit("repetition_detection.max_pattern_size", longest, 1, MAX_PATTERN_SIZE)
        refuse_unfit("repetition_detection.min_pattern_size", config.repetition_detection.min_pattern_size, 1, longest)
        refuse_unfit("repetition_detection.min_count", config.repetition_detection.min_count, 2, MAX_PATTERN_COUNT)
    _check_together(config)


def _check_together(config: BudgetConfig) -> None:
    asked = {
        "thinking_token_budget": config.has_budget,
        "min_thinking_tokens": config.min_thinking_tokens > 0,
        "thinking_n_ignore": config.thinking_n_ignore > 0,
        "pause_at": bool(config.pause_at),
    }
    if not config.thinking:
        for name in (name for name, is_asked in asked.items() if is_asked):
            raise BadInput(
                f"control.{name} is {getattr(config, name)!r} but control.thinking is false; leave one of the two out"
            )
    elif config.algorithm != "s1jax":
        asked["repetition_detection"] = config.repetition_detection is not None
        for name in ("min_thinking_tokens", "pause_at", "repetition_detection"):
            if asked[name]:
                raise BadInput(
                    f"control.{name} is {getattr(config, name)!r}, which control.algorithm={config.algorithm} does not "
                    "have; leave it out or take algorithm=s1jax"
                )


def _refuse_spelled(config: BudgetConfig, tokenizer: Tokenizer) -> None:
    """A preset's special tokens must be tokens: spelled out they are text that the model never saw in that place."""
    for name in ("thinking_start", "thinking_end", "answer_start", "forced_end"):
        if getattr(config, name) is not None:
            continue
        texts = getattr(config.markers, name)
        for token in re.findall(r"<\|[^|]*\|>", texts if isinstance(texts, str) else " ".join(texts)):
            if (n_ids := len(tokenizer.encode_markup(token))) != 1:
                raise BadInput(
                    f"control.preset={config.preset} has {token!r} in {name}, which is no token of this tokenizer "
                    f"({n_ids} tokens); take another preset or set control.{name}"
                )


def _encode(config: BudgetConfig, tokenizer: Tokenizer) -> BudgetSettings:
    if config.thinking:
        _refuse_spelled(config, tokenizer)
    markers = config.markers
    delimiters = tuple(dict.fromkeys(markers.thinking_end))
    if len(delimiters) > MAX_DELIMITERS:
        raise BadInput(f"control.thinking_end has {len(delimiters)} texts; give at most {MAX_DELIMITERS}")
    if len(config.strings) > MAX_STRINGS:
        raise BadInput(f"control.thinking_n_ignore_str has {len(config.strings)} texts; give at most {MAX_STRINGS}")
    for text in delimiters:
        _ids(tokenizer, "thinking_end", text, 1, MAX_DELIMITER_IDS)
        if len(text.encode()) > MAX_DELIMITER_BYTES:
            size = len(text.encode())
            raise BadInput(f"control.thinking_end {text!r} has {size} bytes; give at most {MAX_DELIMITER_BYTES}")
    strings = [_ids(tokenizer, "thinking_n_ignore_str", text, 0, MAX_STRING_IDS) for text in config.strings]
    return BudgetSettings(
        is_thinking=config.thinking,
        is_free=False,
        room=0,
        answer_start=_ids(tokenizer, "answer_start", markers.answer_start, 1, MAX_STRING_IDS),
        forced_end=_ids(tokenizer, "forced_end", markers.forced_end, 1, MAX_STRING_IDS),
        newline=_ids(tokenizer, "newline", "\n", 1, MAX_NEWLINE_IDS),
        delimiters=tuple(text.encode() for text in delimiters),
        is_kept=tuple(not markers.answer_start.startswith(text) for text in delimiters),
        # A model that opens thinking again does not always add the header's white space.
        header=markers.thinking_start.strip().encode(),
        answer_text=markers.answer_start.encode(),
        has_budget=config.has_budget,
        budget=max(config.thinking_token_budget or 0, 0),
        minimum=config.min_thinking_tokens,
        n_ignore=config.thinking_n_ignore,
        strings=tuple(strings),
        answer_budget=config.answer_token_budget,
        repetition=config.repetition_detection,
        loop_action=config.loop_action,
        algorithm=config.algorithm,
        pause_at=config.pause_at,
    )


@functools.lru_cache(maxsize=512)
def _ids(tokenizer: Tokenizer, name: str, text: str, least: int, most: int) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode_markup(text))
    if not least <= len(ids) <= most:
        raise BadInput(f"control.{name} {text!r} is {len(ids)} tokens long; give a text of {least} to {most} tokens")
    return ids


def _fit_thinking(row: BudgetSettings, room: str) -> BudgetSettings:
    reserve = max(len(row.newline) + len(row.forced_end), len(row.answer_start))
    capacity = row.room - reserve - (row.answer_budget or 0)
    free, rounds = _free_and_rounds(row, capacity)
    less = f"{room}, less {reserve} for the end of thinking and {row.answer_budget or 0} for the answer"
    less += f" and {capacity - free} for strings" if capacity != free else ""
    if free < 0:
        raise BadInput(f"{less} leaves {free} tokens; {_WAY_OUT}")
    if row.has_budget and row.budget * rounds > free:
        shown = f"{row.budget}" if rounds == 1 else f"{row.budget} in each of {rounds} rounds"
        raise BadInput(f"{less} leaves {free} tokens of thinking, but thinking_token_budget is {shown}; {_WAY_OUT}")
    budget = row.budget if row.has_budget else free // rounds
    if row.minimum > budget:
        raise BadInput(
            f"{less} leaves a thinking budget of {budget}, but min_thinking_tokens is {row.minimum}; {_WAY_OUT}"
        )
    return dataclasses.replace(row, budget=budget)


def _free_and_rounds(row: BudgetSettings, capacity: int) -> tuple[int, int]:
    """Tokens left for drawn thinking, and for how many rounds: upstream's strings and rounds come on top."""
    if row.algorithm == "s1jax":
        return capacity, 1
    cycles, rest = divmod(row.n_ignore, max(len(row.strings), 1))
    injected = cycles * sum(map(len, row.strings)) + sum(map(len, row.strings[:rest]))
    return capacity - injected, row.n_ignore + 1 if row.algorithm == "harness" else 1


def limit(row: BudgetSettings) -> int:
    """The thinking budget."""
    return row.budget if row.is_thinking else 0


def pause_at(row: BudgetSettings, budgets: Sequence[int]) -> BudgetSettings:
    """The row, pausing where each of these smaller budgets is spent.

    Raises:
      BadInput: a budget that is not smaller, or below the row's minimum; more than 8 of them; a row without thinking.
    """
    wrong = [budget for budget in budgets if not row.minimum <= budget < limit(row)]
    if wrong or len(budgets) > MAX_PAUSES:
        raise BadInput(
            f"budgets {list(budgets)} below {limit(row)}; give at most {MAX_PAUSES}, each from "
            f"min_thinking_tokens={row.minimum} to {limit(row) - 1}"
        )
    return dataclasses.replace(row, pause_at=tuple(sorted(budgets)))
