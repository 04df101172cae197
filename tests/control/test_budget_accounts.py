"""Accounts of rows from their tokens: controlled rows, and `free` ones that think by themselves."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import pytest
import transformers

from s1jax.control import CONTROLS
from s1jax.control.budget import automaton as budget
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.state import ANSWER, CLOSE, FULL, NATURAL, OVER, REPETITION, STOP, THINK, State
from s1jax.control.free import FreeConfig
from s1jax.engine.protocol import Account
from s1jax.text.tokens import Tokenizer

CONFIGS = {
    "s1": FreeConfig(),
    "tags": FreeConfig(preset="think_tags"),
    "budget": BudgetConfig(thinking_token_budget=50),
}


@dataclasses.dataclass(frozen=True)
class Bench:
    """The automaton of these configs, and states of rows that have come to some point."""

    tokenizer: Tokenizer
    control: budget.BudgetForcing

    def state(self, name: str, **progress: int) -> State:
        row = CONTROLS[CONFIGS[name].kind].admit(
            CONFIGS[name], self.tokenizer, prompt_length=9, max_length=200, max_new_tokens=150
        )
        state = jax.tree.map(lambda leaf: leaf[0], self.control.rows([row]))
        fields = {f"{field}_B": np.int32(value) for field, value in progress.items()}
        return dataclasses.replace(state, progress=dataclasses.replace(state.progress, **fields))

    def account(self, state: State, ids: Sequence[int]) -> Account:
        return self.control.account(state, tuple(ids), (False,) * len(ids))


@pytest.fixture(scope="module")
def bench(qwen_files) -> Bench:
    tokenizer = Tokenizer.load(qwen_files)
    return Bench(tokenizer, budget.build(tokenizer, tokenizer.size, CONFIGS.values()))


def observed(bench: Bench, name: str, text: str, finish: int = STOP) -> tuple[Account, str, str]:
    """The account of a free row that wrote `text`, its thinking and its answer."""
    ids = bench.tokenizer.encode_markup(text)
    account = bench.account(bench.state(name, phase=OVER, finish=finish), ids)
    decode = bench.tokenizer.decode
    return account, decode(ids[: account.thinking_tokens]), decode(ids[account.answer_offset :])


@pytest.fixture(scope="module")
def cut(qwen_files):
    """Text before and after the end of thinking, cut where tokens are: a token with a byte of the end is of the end."""
    backend = transformers.AutoTokenizer.from_pretrained(str(qwen_files))

    def cut(before: str, end: str, after: str) -> tuple[str, str]:
        text, first, last = before + end + after, len(before), len(before + end)
        spans = backend(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        of_end = [span for span in spans if span[0] < last and span[1] > first]
        return text[: of_end[0][0]], text[of_end[-1][1] :]

    return cut


@pytest.mark.parametrize(
    ("name", "before", "end", "after"),
    [
        ("s1", "<|im_start|>think\na b.\n", "<|im_start|>answer", "\n4<|im_end|>"),
        ("s1", "<|im_start|>think\na", "<|im_start|>", "assistant 4<|im_end|>"),
        ("s1", "<|im_start|>think\na", "", "<|im_end|>"),
        ("tags", "<think>\na b\n", "</think>", "\n\n4<|im_end|>"),
        ("tags", "<think>a b.", "</think>", " 4<|im_end|>"),  # Qwen's `.</` and `>\n\n` are tokens of the end
        ("tags", "<think>", "</think>", "4<|im_end|>"),
    ],
)
def test_a_free_row_that_opens_thinking_by_itself(bench, cut, name, before, end, after):
    account, thought, answered = observed(bench, name, before + end + after)
    assert account.thinking_finish_reason == "natural"
    assert (thought, answered) == (cut(before, end, after) if end else (before, after))
    assert account.answer_tokens == len(bench.tokenizer.encode_markup(answered)) - 1
    assert (account.finish_reason, account.extra["reopened"]) == ("stop", False)


def test_an_end_of_thinking_in_tokens_of_qwen(shared):
    tokenizer = Tokenizer.load(shared / "tokenizer" / "qwen2.5")
    bench = Bench(tokenizer, budget.build(tokenizer, tokenizer.size, CONFIGS.values()))
    for text, thinking, answer in [
        ("<think>\na b\n</think>\n\n4<|im_end|>", "<think>\na b\n", "4<|im_end|>"),
        ("<think>a b.</think> 4<|im_end|>", "<think>a b", " 4<|im_end|>"),
        ("<think></think>4<|im_end|>", "<think", "4<|im_end|>"),
    ]:
        assert observed(bench, "tags", text)[1:] == (thinking, answer)


@pytest.mark.parametrize(
    ("finish", "reason", "finish_reason"),
    [(FULL, "length", "length"), (REPETITION, "loop", "repetition"), (0, None, None)],
)
def test_a_free_row_that_never_ends_its_thinking(bench, finish, reason, finish_reason):
    account, thought, answered = observed(bench, "tags", "<think>\na b c", finish)
    assert (thought, answered) == ("<think>\na b c", "")
    assert (account.thinking_finish_reason, account.finish_reason) == (reason, finish_reason)
    assert account.answer_tokens == 0


@pytest.mark.parametrize("text", ["a b 4<|im_end|>", "", "think a</ think>"])
def test_a_free_row_that_does_not_think(bench, text):
    account, _, _ = observed(bench, "tags", text)
    assert (account.thinking_tokens, account.answer_offset, account.thinking_finish_reason) == (0, 0, None)
    assert not account.extra["reopened"]


def test_a_header_that_is_not_the_first_text_is_answer(bench):
    account, _, _ = observed(bench, "tags", "So: <think>\na</think>4<|im_end|>")
    assert (account.thinking_tokens, account.thinking_finish_reason, account.extra["reopened"]) == (0, None, True)


@pytest.mark.parametrize(
    ("answer", "reopened"),
    [("\n4<|im_end|>", False), ("\n4<|im_start|>", True), ("<|im_start|>think a<|im_end|>", True), ("think a", False)],
)
def test_thinking_that_is_opened_again(bench, answer, reopened):
    ids = bench.tokenizer.encode_markup("a b<|im_start|>answer") + bench.tokenizer.encode_markup(answer)
    state = bench.state("budget", phase=OVER, thinking=2, offset=4, reason=NATURAL, finish=STOP)
    assert bench.account(state, ids).extra["reopened"] == reopened


def test_an_answer_that_the_host_cuts_at_a_stop_string(bench):
    ids = bench.tokenizer.encode_markup("a b<|im_start|>answer 1 2 3")
    state = bench.state("budget", phase=ANSWER, thinking=2, offset=4, reason=NATURAL, answer=6)
    account = bench.account(state, ids[:7])
    assert (account.thinking_tokens, account.answer_tokens, account.finish_reason) == (2, 3, None)


def test_rows_that_are_taken_away_while_they_think(bench):
    ids = bench.tokenizer.encode_markup("a b c")[:3]
    account = bench.account(bench.state("budget", phase=THINK, length=3, steps=4), ids)
    assert (account.thinking_tokens, account.answer_offset, account.answer_tokens) == (3, 3, 0)
    assert (account.thinking_finish_reason, account.finish_reason, account.steps) == (None, None, 4)
    account = bench.account(bench.state("budget", phase=CLOSE, thinking=2, reason=NATURAL, length=3), ids)
    assert (account.thinking_tokens, account.answer_offset, account.thinking_finish_reason) == (2, 3, "natural")


def test_tokens_from_outside_pause_where_they_reach_a_threshold(bench):
    """A threshold at exactly so many tokens is still to come; those before it are passed over."""
    config = dataclasses.replace(CONFIGS["budget"], pause_at=(2, 5, 9), thinking_token_budget=20)
    row = CONTROLS[config.kind].admit(config, bench.tokenizer, prompt_length=9, max_length=200, max_new_tokens=150)
    state = bench.control.refork(bench.state("budget", phase=THINK, length=1), row)
    token = bench.tokenizer.encode("a")
    pauses = [int(bench.control.extend(state, token * n, 1 + n).progress.pause_B) for n in (1, 2, 4, 5, 8, 9)]
    assert pauses == [0, 1, 1, 2, 2, 3]


def test_a_fork_passes_over_the_thresholds_it_has_passed(bench):
    config = dataclasses.replace(CONFIGS["budget"], pause_at=(2, 5, 9), thinking_token_budget=20)
    row = CONTROLS[config.kind].admit(config, bench.tokenizer, prompt_length=9, max_length=200, max_new_tokens=150)
    forked = bench.control.refork(bench.state("budget", phase=THINK, length=5), row)
    assert (int(forked.progress.pause_B), int(forked.limits.budget_B), int(forked.progress.length_B)) == (2, 20, 5)
