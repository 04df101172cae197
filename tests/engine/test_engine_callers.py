"""What callers do to an engine, from any thread and at any moment: nothing wedges it."""

import dataclasses
import threading
import time
from collections import Counter

import numpy as np
import pytest
from engine_cases import (
    FREE,
    MAX_LENGTH,
    budget,
    engine,
    facts,
    kinds,
    paused,
    plain,
    request,
    tokenizer,
)

from s1jax.engine.engine import Engine
from s1jax.engine.requests import Listener

WARM = {"temperature": 1.0}


@pytest.fixture(scope="module")
def few() -> Engine:
    """Two slots."""
    return engine(classes=((2, MAX_LENGTH),))


# ----------------------------------------------------------------------------------------------------------- cancelling


def test_rows_are_cancelled_whatever_they_do(few):
    """Queued, running, paused, paused before they began, waiting outside, ended, never there."""
    done: dict[int, list] = {}
    cancel_now: list[int] = []

    def listener() -> Listener:
        return Listener(
            lambda ticket, completion: done.setdefault(ticket, []).append(completion),
            None,
            lambda ticket, ids, *_: few.cancel(ticket) if ticket in cancel_now and len(ids) > 8 else None,
        )

    held = few.submit(request("k", n=60, id="held"), listener())
    few.pause(held)
    running, queued, other = (few.submit(request("k", n=60, id=name, **WARM), listener()) for name in "rqo")
    cancel_now.append(running)
    few.cancel(queued)
    few.run()
    assert set(done) == {running, queued, other}
    assert [done[t][0].finish_reason for t in (running, queued)] == ["cancelled", "cancelled"]
    cut, whole = done[running][0], done[other][0]
    assert 8 < len(cut.token_ids) <= 8 + 3 * 8 and done[queued][0].token_ids == ()
    assert whole.finish_reason in ("stop", "length")
    few.submit(request("k", n=60, id="r", **WARM))
    [again] = few.run()
    assert again.token_ids[: len(cut.token_ids)] == cut.token_ids  # a beginning of what it would have been
    few.cancel(held)
    few.cancel(held)
    few.cancel(10**6)
    few.run()
    assert [completion.finish_reason for completion in done[held]] == ["cancelled"]
    ticket = paused(few, request("l", budget(pause_at=(9,), thinking_n_ignore=9), n=60, **WARM))
    few.cancel(ticket)
    assert [c.thinking_tokens for c in few.run()] == [9]


def test_paused_rows_give_their_slots_to_those_that_wait(few):
    """More paused rows than slots, and more rows behind them: all run, and the paused ones come back as they were."""
    rows = [request("m", budget(pause_at=(7,)), n=60, sample=i, **WARM) for i in range(5)]
    waiting: list[int] = []
    for row in rows:
        few.submit(row)
    later = [few.submit(request("n", n=30, sample=i, **WARM)) for i in range(4)]
    ends = few.run(on_pause=waiting.append)
    assert len(waiting) == 5 and len(ends) == len(later)
    for ticket in waiting:
        few.resume(ticket)
    assert [facts(done) for done in few.run()] == [facts(plain(row)) for row in rows]


# --------------------------------------------------------------------------------------------------------------- errors


class Faulty:
    """The automaton of these tests, whose account fails for rows with a budget of 11."""

    def __init__(self, automaton) -> None:
        self._automaton = automaton

    def __getattr__(self, name):
        return getattr(self._automaton, name)

    def account(self, state_row, token_ids, forced):
        if int(state_row.limits.budget_B) == 11:
            raise RuntimeError("an account of eleven")
        return self._automaton.account(state_row, token_ids, forced)


def test_an_error_of_one_row_ends_that_row_alone(few, caplog):
    made = engine(classes=((2, MAX_LENGTH),))
    for holder in (made, made._loop, made._loop.scheduler):
        holder._automaton = Faulty(made._automaton)
    bad = request("o", budget(thinking_token_budget=11), n=60, id="bad", **WARM)
    good = [request("o", budget(thinking_token_budget=12), n=60, id=f"{i}", **WARM) for i in range(4)]
    for row in [good[0], bad, *good[1:]]:
        made.submit(row)
    ends = {done.id: done for done in made.run()}
    assert ends["bad"].finish_reason == "error" and "an account of eleven" in ends["bad"].error
    assert [facts(ends[row.id]) for row in good] == [facts(plain(row)) for row in good]
    made.submit(good[0])
    assert made.run() == [ends["0"]]


def test_a_listener_that_raises_is_heard_of_and_loses_no_row():
    made = engine(classes=((2, MAX_LENGTH),))

    def raising(*_):
        raise KeyError("my own fault")

    for i in range(3):
        made.submit(request("p", n=30, sample=i), Listener(raising))
    others = [made.submit(request("p", n=30, sample=i)) for i in range(3, 6)]
    ends, raised = [], 0
    while len(ends) < len(others):
        try:
            ends += made.run()
        except KeyError:
            raised += 1
    assert raised >= 1 and sorted(done.sample for done in ends) == [3, 4, 5]


# ---------------------------------------------------------------------------------------------------------------- stops


def test_nothing_is_shown_beyond_a_stop_text_nor_of_its_beginning(few):
    row = request("two words", budget(thinking_token_budget=12), n=80, **WARM)
    few.submit(row)
    [whole] = few.run()
    text = [tokenizer().token_bytes()[token] for token in whole.token_ids]
    answer = b"".join(text[whole.answer_offset :])
    stop = next(
        answer[i : i + 3].decode()
        for i in range(6, len(answer) - 8)
        if answer[i : i + 3].isascii() and answer.count(answer[i : i + 3]) == 1
    )
    for window in (1, 5, 8):
        made, shown, ends = engine(classes=((2, MAX_LENGTH),), window=window), [], []
        listener = Listener(
            lambda _, done, ends=ends: ends.append(done), None, lambda _, ids, *__, shown=shown: shown.append(list(ids))
        )
        made.submit(dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, stop=(stop,))), listener)
        made.run()
        assert ends[0].finish_reason == "stop" and stop not in ends[0].text
        cut = len(b"".join(text[: whole.answer_offset])) + answer.index(stop.encode())
        for ids in shown:
            said = b"".join(tokenizer().token_bytes()[token] for token in ids)
            assert b"".join(text).startswith(said) and len(said) <= cut


def test_stop_texts_cost_what_is_new(few, monkeypatch):
    """The account is asked for when a text is found, not in every window; every byte is searched a bounded time."""
    counts: Counter = Counter()
    automaton = kinds()["budget"]
    real = type(automaton).account

    def counted(self, state_row, token_ids, forced):
        counts[len(token_ids)] += 1
        return real(self, state_row, token_ids, forced)

    monkeypatch.setattr(type(automaton), "account", counted)
    made = engine(classes=((1, MAX_LENGTH),), window=1)
    made.submit(request("q", budget(thinking_token_budget=30), n=80, stop=("never there",), **WARM))
    made.run()
    assert sum(counts.values()) == 1


# -------------------------------------------------------------------------------------------------------------- threads


def test_rows_of_many_threads_are_what_they_are_alone(few):
    """Four threads submit, cancel and score while the engine runs in a thread of its own."""
    ends: dict[str, object] = {}
    is_done = threading.Event()
    lock = threading.Lock()
    n_rows = 24

    def done(_: int, completion) -> None:
        with lock:
            ends[completion.id] = completion
            if len(ends) == n_rows:
                is_done.set()

    few.start()
    few.start()  # without effect
    with pytest.raises(RuntimeError, match="runs already"):
        few.run()

    def caller(number: int) -> None:
        for i in range(n_rows // 4):
            config = (FREE, budget(thinking_n_ignore=1), budget(thinking_token_budget=7))[i % 3]
            ticket = few.submit(request("t", config, n=40, id=f"{number}-{i}", **WARM), Listener(done))
            if i == 2:
                few.cancel(ticket)
            if i == 3:
                assert few.score([1, 2, 3]).shape == (3,)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_done.wait(120)
    few.stop()
    few.stop()
    for i in range(n_rows // 4):
        for number in range(4):
            found = ends[f"{number}-{i}"]
            config = (FREE, budget(thinking_n_ignore=1), budget(thinking_token_budget=7))[i % 3]
            if i != 2:
                assert facts(found) == facts(plain(request("t", config, n=40, id=f"{number}-{i}", **WARM)))
            else:
                assert found.finish_reason in ("cancelled", "stop", "length")


def test_a_window_that_fails_tells_all_who_wait():
    made = engine(classes=((2, MAX_LENGTH),))
    heard = []
    is_done = threading.Event()

    def break_down():
        raise MemoryError("the device is gone")

    made._slots.window = break_down
    for i in range(3):
        made.submit(request("u", n=30, sample=i), Listener(lambda _, done: (heard.append(done), is_done.set())))
    made.start()
    assert is_done.wait(60)
    while len(heard) < 3:
        time.sleep(0.01)
    assert {done.finish_reason for done in heard} == {"error"} and "the device is gone" in heard[0].error
    with pytest.raises(RuntimeError, match="the engine has stopped: the device is gone"):
        made.submit(request("u", n=30))
    made.stop()
    assert isinstance(made.failure, MemoryError) and np.isfinite(made.max_length)
