"""Vocabularies, rows and helpers of the hand-made cases for the budget oracle."""

import dataclasses

from oracle_budget import OracleResult, OracleRow, simulate

# The s1 vocabulary of these cases: ids are the positions.
S1_TEXT = (
    "<|im_start|>",
    "<|im_end|>",
    "think",
    "answer",
    "\n",
    "Final",
    " Answer:",
    "Wait",
    "a",
    "b",
    "c",
    ".\n",
    "Hmm",
    "<|endoftext|>",
)
SOT, EOT, THINK, ANSWER, NL, FINAL, COLON, WAIT, A, B, C, DOT_NL, HMM, EOD = range(14)
HALF_1, HALF_2 = 14, 15  # the two bytes of one character
S1 = OracleRow(
    prompt_length=10,
    max_length=110,
    max_new_tokens=1000,
    token_bytes=tuple(text.encode() for text in S1_TEXT) + (b"\xc3", b"\xa9"),
    eos_ids=frozenset({EOT, EOD}),
    delimiters=(b"<|im_start|>",),
    delimiter_first_ids=(SOT,),
    kept_delimiter=(False,),
    answer_start=(SOT, ANSWER),
    forced_end=(SOT, ANSWER, NL, FINAL, COLON),
    newline=(NL,),
    budget=6,
)
ENDS = {SOT, EOT, EOD}
X = EOT  # the draw of a step that must not look at it: an end, so that a look would show

# The vocabulary of the think tags.
TAG_TEXT = ("<think>", "</think>", "<eos>", "\n\n", "\n", "</", "think", ">", ">\n", "a", "b", ".</", "Wait", "<")
OPEN, CLOSE, END, NL2, NL1, LT, THINK_WORD, GT, GT_NL, P, Q, DOT_LT, WAIT2, LESS = range(14)
BEGINNINGS = {END, CLOSE, LT, DOT_LT, LESS}  # an end by itself, or an id whose last bytes begin one
TAGS = dataclasses.replace(
    S1,
    token_bytes=tuple(text.encode() for text in TAG_TEXT),
    eos_ids=frozenset({END}),
    delimiters=(b"</think>",),
    delimiter_first_ids=(CLOSE,),
    kept_delimiter=(True,),
    answer_start=(NL1, CLOSE, NL2),
    forced_end=(CLOSE, NL2),
    newline=(NL1,),
)


def with_(row: OracleRow, **changes) -> OracleRow:
    return dataclasses.replace(row, **changes)


def play(row: OracleRow, draws: list[int], forbidden: dict[int, set[int]] | None = None) -> OracleResult:
    """Run `row` on one draw for each step; `forbidden` says by step what must be forbidden there (else nothing)."""
    seen: list[frozenset[int]] = []

    def draw(kept: tuple[int, ...], forbidden_now: frozenset[int]) -> int:
        seen.append(forbidden_now)
        return draws[len(seen) - 1]

    result = simulate(row, draw)
    assert len(seen) == len(draws) == result.steps
    assert {step: set(ids) for step, ids in enumerate(seen) if ids} == (forbidden or {})
    return result


def expect(
    result: OracleResult,
    ids: list[int],
    marks: str,
    thinking: int,
    offset: int,
    answer: int,
    reason: str | None,
    **more,
) -> None:
    """`marks` has one letter for each id: F for a forced one."""
    assert list(result.token_ids) == ids
    assert "".join("F" if forced else "." for forced in result.forced) == marks
    assert (result.thinking_tokens, result.answer_offset, result.answer_tokens) == (thinking, offset, answer)
    assert result.thinking_finish_reason == reason
    assert result.finish_reason == more.get("finish", "stop")
    assert result.n_ignored == more.get("ignored", 0)
    assert result.loop_at == more.get("loop_at")
