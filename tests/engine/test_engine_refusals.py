"""Appended tokens, copies under other limits, scores and new weights: what counts, and what is refused untouched."""

import dataclasses

import jax
import pytest
from engine_cases import (
    CONFIG,
    MAX_LENGTH,
    S1,
    budget,
    ended,
    engine,
    facts,
    make_model,
    model,
    paused,
    plain,
    request,
    tokenizer,
)

from s1jax.config import BadInput
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Listener, Request

WARM = {"temperature": 1.0}


@pytest.fixture(scope="module")
def few() -> Engine:
    """Two slots."""
    return engine(classes=((2, MAX_LENGTH),))


# --------------------------------------------------------------------------------------------------------------- extend


def test_extended_tokens_count_as_thinking_and_never_exceed_the_budget(few):
    row = request("e", budget(thinking_token_budget=20, pause_at=(9,)), n=60, **WARM)
    ticket = paused(few, row)
    before = few.ids(ticket)
    for tokens, message in [
        ([5] * 12, "12 tokens behind 9 of thinking are above the thinking budget of 20; give at most 11"),
        ([], "no tokens to append"),
        ([tokenizer().size], f"has the token {tokenizer().size}"),
        ([-1], "has the token -1"),
    ]:
        with pytest.raises(BadInput, match=message):
            few.extend(ticket, tokens)
    assert few.ids(ticket) == before  # nothing was touched
    few.extend(ticket, [5] * 8)
    done = ended(few, ticket)
    assert done.thinking_tokens <= 20 and list(done.token_ids[9:17]) == [5] * 8 and all(done.forced[9:17])
    assert facts_of_plain_after(row, done, 17)


def facts_of_plain_after(row: Request, done, n: int) -> bool:
    """What follows the appended tokens is what the rules say of thinking that has so many tokens already."""
    thought = done.token_ids[: done.thinking_tokens]
    closing = done.token_ids[done.thinking_tokens : done.answer_offset]
    limits = row.control
    reasons = {"budget": len(thought) == 20, "natural": True}
    texts = {limits.forced_end, limits.newline + limits.forced_end, limits.answer_start}
    return len(thought) >= n and reasons[done.thinking_finish_reason] and closing in texts


def test_a_row_extended_to_its_budget_closes_at_once(few):
    row = request("f", budget(thinking_token_budget=12, pause_at=(9,)), n=60, **WARM)
    ticket = paused(few, row)
    few.extend(ticket, tokenizer().encode("ab\n"))
    done = ended(few, ticket)
    assert (done.thinking_tokens, done.thinking_finish_reason) == (12, "budget")
    assert done.token_ids[12 : 12 + len(row.control.forced_end)] == row.control.forced_end  # no second newline
    assert done.steps == 9 + len(row.control.forced_end) + len(done.token_ids) - done.answer_offset


def test_an_appended_delimiter_is_no_end_and_appended_loops_are_none(few):
    looking = budget(thinking_token_budget=40, pause_at=(5,), repetition_detection=S1.repetition_detection)
    row = request("g", looking, n=80, **WARM)
    ticket = paused(few, row)
    few.extend(ticket, [*tokenizer().encode_markup("<|im_start|>"), *tokenizer().encode("ababab")])
    assert few.ids(ticket)[-7:-6] == list(tokenizer().encode_markup("<|im_start|>"))
    done = ended(few, ticket)
    assert done.thinking_tokens >= 12 and done.thinking_finish_reason in ("budget", "natural")


def test_tokens_appended_to_an_answer_are_not_drawn_ones(few):
    """`answer_token_budget` bounds what is drawn; what is put there takes room only."""
    row = request("h", budget(thinking_token_budget=4, answer_token_budget=4), n=90, temperature=30.0, id="h6")
    heard: list = []

    def progress(ticket: int, ids: list, forced: list, thinking: int) -> None:
        if len(ids) > thinking + 6 and not heard:
            heard.append(ticket)
            few.pause(ticket)

    slow = engine(classes=((1, MAX_LENGTH),), window=1, ahead=False)
    done: list = []

    def pause(ticket: int, ids: list, forced: list, thinking: int) -> None:
        if not heard and ids and not forced[-1] and len(ids) > 4 + 3:
            heard.append(ticket)
            slow.pause(ticket)

    slow.submit(row, Listener(lambda _, c: done.append(c), None, pause))
    slow.run()
    [ticket] = heard
    n = len(slow.ids(ticket))
    with pytest.raises(BadInput, match="leave no room to go on"):
        slow.extend(ticket, [1] * (len(row.prompt_ids) + row.control.room - n))
    slow.extend(ticket, tokenizer().encode("well"))
    slow.resume(ticket)
    slow.run()
    [completion] = done
    answer = completion.forced[completion.answer_offset :]
    assert sum(answer) == 4 and completion.answer_tokens <= 4
    assert completion.answer_tokens == len(answer) - 4 - (completion.finish_reason == "stop")


# ----------------------------------------------------------------------------------------------------- fork and restore


@pytest.mark.parametrize(
    ("fields", "n", "message"),
    [
        ({"thinking_token_budget": 5}, 60, "9 tokens of thinking, above the thinking budget of 5; give at least 9"),
        ({"algorithm": "harness", "pause_at": ()}, 60, "another control.algorithm"),
        ({"thinking_end": ("zz",)}, 60, "delimiter b'zz'"),
    ],
)
def test_a_fork_beyond_its_limits_is_refused_before_any_is_made(few, fields, n, message):
    row = request("i", budget(pause_at=(9,)), n=60, **WARM)
    ticket = paused(few, row)
    snapshot = few.snapshot(ticket)
    wrong = request("i", budget(**{"pause_at": (9,), **fields}), n=n, **WARM)
    fine = dataclasses.replace(row, sample=1)
    for call in (lambda: few.fork(ticket, [fine, wrong]), lambda: few.restore(snapshot, wrong)):
        with pytest.raises(BadInput, match=message):
            call()
    assert facts(ended(few, ticket)) == facts(plain(row))  # and no fork is there that would have come along


def test_a_fork_into_less_room_than_the_row_has_is_refused(few):
    row = request("j", budget(pause_at=(30,), thinking_n_ignore=20), n=80, **WARM)
    ticket = paused(few, row)
    with pytest.raises(BadInput, match="30 tokens of thinking, above the thinking budget of"):
        few.fork(ticket, [request("j", budget(thinking_n_ignore=20), n=20, **WARM)])
    assert facts(ended(few, ticket)) == facts(plain(row))


# --------------------------------------------------------------------------------------------------- scores and weights


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "0 tokens cannot be scored; give 1 to max_length=96"),
        ([1] * 97, "97 tokens cannot be scored"),
        ([1, 400], "the text to score has the token 400"),
    ],
)
def test_scores_that_cannot_be_are_refused(few, tokens, message):
    with pytest.raises(BadInput, match=message):
        few.score(tokens)


def test_new_weights_are_taken_without_compiling_again_and_not_while_rows_live():
    made = engine(classes=((2, MAX_LENGTH),))
    row = request("r", n=40, logprobs=True)
    made.submit(row)
    [before] = made.run()
    programs = made.programs
    halved = jax.tree.map(lambda x: x * 0.5, model())
    ticket = paused(made, request("s", budget(pause_at=(3,)), n=40))
    with pytest.raises(BadInput, match="new weights cannot come while 1 rows live"):
        made.load(halved)
    made.cancel(ticket)
    made.run()
    made.load(halved)
    made.submit(row)
    [after] = made.run()
    assert after.logprobs != before.logprobs and made.programs <= programs | {
        p for p in made.programs if p[0] != "window"
    }
    made.load(model())
    made.submit(row)
    assert made.run() == [before]
    with pytest.raises(BadInput, match="another kind of model|a weight has shape"):
        made.load(make_model(dataclasses.replace(CONFIG, F=32)))


def test_an_explicit_number_of_slots_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="the slots asked for do not fit: .*; lower engine.slots"):
        engine(classes=None, slots=100_000_000)
