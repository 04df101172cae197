"""What once ended or wedged a whole engine: each is one row's affair, or nobody's."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from engine_cases import CONFIG, FREE, MAX_LENGTH, S1, engine, facts, model, plain, request, tokenizer

from s1jax.config import BadInput
from s1jax.control import automata
from s1jax.engine.requests import Listener

WARM = {"temperature": 1.0}


def two_slots(**fields):
    return engine(classes=((2, MAX_LENGTH),), **fields)


def budget(**fields):
    return dataclasses.replace(S1, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": np.int64(3)}, "seed is .*3.*; give a int"),
        ({"seed": "a"}, "seed is 'a'; give a int"),
        ({"sample": None}, "sample is None; give a int"),
        ({"prompt_ids": [1, 2]}, "prompt_ids is .1, 2.; give a tuple"),
        ({"id": "\ud800"}, "half a character"),
        ({"id": 7}, "id is 7; give a str"),
    ],
)
def test_a_request_of_wrong_types_is_refused_when_it_comes(fields, message):
    made = two_slots()
    with pytest.raises(BadInput, match=message):
        made.submit(dataclasses.replace(request("a", n=5), **fields))
    with pytest.raises(BadInput, match="half a character"):
        made.submit(request("a", n=5, stop=("\ud800",)))
    made.submit(request("a", n=5))
    assert len(made.run()) == 1


def test_all_who_wait_hear_of_a_prefill_that_fails():
    made, heard, is_done = two_slots(), [], threading.Event()

    def fails(prompts):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")

    def done(ticket: int, completion) -> None:
        heard.append((ticket, completion.finish_reason))
        if len(heard) == 4:
            is_done.set()

    made._slots.prefill = fails
    tickets = [made.submit(request("a", n=5, sample=i), Listener(done)) for i in range(4)]
    made.start()
    assert is_done.wait(60)
    assert sorted(heard) == [(ticket, "error") for ticket in tickets]
    made.stop()
    assert isinstance(made.failure, BadInput) and "out of device memory" in str(made.failure)


def test_a_listener_may_cancel_a_row_that_the_same_window_ends_or_pauses():
    for ahead in (True, False):
        made, heard, tickets = two_slots(ahead=ahead), [], {}
        tickets["a"] = made.submit(
            request("a", n=3, id="A"), Listener(lambda t, c, made=made, tickets=tickets: made.cancel(tickets["b"]))
        )
        paused = request("s", budget(pause_at=(3,), thinking_n_ignore=9), n=60, id="B", **WARM)
        tickets["b"] = made.submit(
            paused, Listener(lambda t, c, heard=heard: heard.append(c.finish_reason), None, lambda *_: None)
        )
        made.run()
        assert heard == ["cancelled"]
        made.submit(request("a", n=3))
        assert len(made.run()) == 1


def test_an_interrupt_while_a_window_is_read_loses_no_token(monkeypatch):
    made, row, real = two_slots(), request("interrupted", n=40, logprobs=True, **WARM), jax.device_get
    for at in (1, 2):
        calls = iter(range(10**6))

        def interrupted(x, calls=calls, at=at):
            if next(calls) == at:
                raise KeyboardInterrupt
            return real(x)

        made.submit(row)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(jax, "device_get", interrupted)
            made.run()
        [done] = made.run()
        assert facts(done) == facts(plain(row))


def test_an_engine_that_its_own_listener_stops_can_start_again():
    made, is_done, heard = two_slots(), threading.Event(), []
    made.submit(request("a", n=5), Listener(lambda *_: (made.stop(), is_done.set())))
    made.start()
    assert is_done.wait(60)
    while made._thread is not None:
        made._thread.join(0.01)
    made.submit(request("b", n=5), Listener(lambda _, c: heard.append(c)))
    made.run()
    assert len(heard) == 1


def test_runs_in_two_threads_give_each_its_own_completions_and_lose_none():
    made, found = two_slots(), {}
    for i in range(6):
        made.submit(request("a", n=30, sample=i))

    def run(name: str) -> None:
        found[name] = made.run()

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.sample for each in found.values() for done in each) == list(range(6))


def test_a_callback_that_always_raises_gets_each_completion_once_and_none_is_lost():
    made, seen, found = two_slots(), [], []

    def raising(done) -> None:
        seen.append(done.sample)
        raise KeyError(done.sample)

    for i in range(4):
        made.submit(request("a", n=20, sample=i))
    for _ in range(20):
        try:
            found = made.run(raising)
            break
        except KeyError:
            pass
    assert sorted(seen) == [0, 1, 2, 3] and sorted(done.sample for done in found) == [0, 1, 2, 3]


def test_snapshots_do_not_fit_other_tables_or_other_weights():
    made = two_slots()
    row = request("a", budget(pause_at=(3,), thinking_n_ignore=9), n=40, **WARM)

    def taken():
        tickets: list[int] = []
        made.submit(row)
        made.run(on_pause=tickets.append)
        snapshot = made.snapshot(tickets[0])
        made.cancel(tickets[0])
        made.run()
        return snapshot

    before = taken()
    made.load(jax.tree.map(lambda x: x * 0.5, model()))
    with pytest.raises(BadInput, match="in an engine made alike"):
        made.restore(before)
    made.load(model())
    before = taken()
    made.set_controls(automata(tokenizer(), CONFIG.V, [FREE, budget(thinking_end=("<|im_start|>", "zz", "yy", "xx"))]))
    with pytest.raises(BadInput, match="in an engine made alike"):
        made.restore(before)
    made.submit(request("a", n=5))
    assert len(made.run()) == 1


def test_a_fork_that_asks_for_log_probabilities_has_those_of_the_beginning_too():
    made, tickets = two_slots(), []
    row = request("a", budget(pause_at=(9,), thinking_n_ignore=9), n=60, **WARM)
    made.submit(row)
    made.run(on_pause=tickets.append)
    asking = dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, logprobs=True))
    made.fork(tickets[0], [asking])
    [forked] = made.run()
    scored = made.score([*forked.prompt_ids, *forked.token_ids])[len(row.prompt_ids) :]
    np.testing.assert_allclose(forked.logprobs, scored, atol=1e-4)
    made.extend(tickets[0], [70, 71])
    made.cancel(tickets[0])
    made.run()


def test_a_row_paused_before_it_began_says_so():
    made = two_slots()
    ticket = made.submit(request("a", n=20))
    made.pause(ticket)
    for call in (made.snapshot, lambda t: made.extend(t, [1]), lambda t: made.fork(t, [request("a", n=20)])):
        with pytest.raises(BadInput, match="was paused before it began"):
            call(ticket)
    made.resume(ticket)
    assert len(made.run()) == 1


def test_an_engine_that_retires_ends_its_rows_first():
    made, heard = two_slots(), []
    made.start()
    thread = made._thread
    for i in range(5):
        made.submit(request("a", n=30, sample=i), Listener(lambda _, c: heard.append(c)))
    made.retire()
    thread.join(60)
    assert len(heard) == 5 and made._thread is None
