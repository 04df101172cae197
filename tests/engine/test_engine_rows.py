"""Rows that pause: fork, snapshot, restore, extend, score, sweeps. Stop texts, refusals, and upstream's way."""

import dataclasses

import numpy as np
import pytest
from engine_cases import CLASSES, CONFIG, FREE, MAX_LENGTH, S1, engine, facts, plain, request, tokenizer

from s1jax.config import BadInput
from s1jax.control import CONTROLS
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.config import EngineConfig, resolve_classes
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.stop import StopFinder
from s1jax.methods import sweep as sweeps


def budget(**fields) -> BudgetConfig:
    return dataclasses.replace(S1, **fields)


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return engine()


def paused(engine_: Engine, row: Request) -> int:
    """The ticket of a row that runs until its first pause."""
    tickets = []
    engine_.submit(row)
    assert engine_.run(on_pause=tickets.append) == []
    [ticket] = tickets
    return ticket


def finish(engine_: Engine, ticket: int):
    engine_.resume(ticket)
    [done] = engine_.run()
    return done


WARM = {"temperature": 1.0, "logprobs": True}
PAUSING = {"thinking_n_ignore": 2, "pause_at": (9,)}


def test_a_pause_changes_nothing(shared_engine):
    row = request("p", budget(**PAUSING), n=60, **WARM)
    done = finish(shared_engine, paused(shared_engine, row))
    assert facts(done) == facts(plain(row))


def test_a_snapshot_restores_the_row_again_and_again(shared_engine):
    row = request("q", budget(**PAUSING), n=60, **WARM)
    ticket = paused(shared_engine, row)
    snapshot = shared_engine.snapshot(ticket)
    done = finish(shared_engine, ticket)
    for _ in range(2):
        shared_engine.restore(snapshot)
        assert shared_engine.run() == [done]


def test_forks_are_the_rows_that_their_requests_would_be(shared_engine):
    """More forks than slots, so that some wait outside: the same draws before the pause, their own after it."""
    row = request("r", budget(**PAUSING), n=60, **WARM)
    ticket = paused(shared_engine, row)
    before = shared_engine.ids(ticket)
    n_rows = sum(rows for rows, _ in CLASSES)
    samples = [dataclasses.replace(row, sample=sample) for sample in range(n_rows + 2)]
    shared_engine.fork(ticket, samples)
    forks = shared_engine.run()
    assert [fork.sample for fork in forks] == list(range(n_rows + 2))
    assert len({fork.token_ids for fork in forks}) > n_rows
    common = len(before) - 3  # half a delimiter may have been taken back
    for fork in forks:
        assert [*fork.prompt_ids, *fork.token_ids][:common] == before[:common]
    assert finish(shared_engine, ticket) == forks[0]
    assert facts(forks[0]) == facts(plain(row))


def test_a_probe_goes_on_from_all_ids_of_a_row(shared_engine):
    """Extend, fork with all ids as the prompt, drop: what a fresh request with those ids gives."""
    ticket = paused(shared_engine, request("s", budget(**PAUSING), n=70, **WARM))
    shared_engine.extend(ticket, tokenizer().encode("so the answer is"))
    ids = tuple(shared_engine.ids(ticket))
    row = CONTROLS["free"].admit(FREE, tokenizer(), prompt_length=len(ids), max_length=MAX_LENGTH, max_new_tokens=20)
    probe = Request("probe", 0, 3, ids, row, SamplingConfig(temperature=1.0, logprobs=True))
    shared_engine.fork(ticket, [probe])
    [forked] = shared_engine.run()
    shared_engine.cancel(ticket)
    shared_engine.submit(probe)
    [cancelled, fresh] = shared_engine.run()
    assert (cancelled.finish_reason, cancelled.id) == ("cancelled", "s")
    assert facts(forked) == facts(fresh) == facts(plain(probe))
    np.testing.assert_allclose(forked.logprobs, fresh.logprobs, atol=1e-4)


@pytest.mark.parametrize("n_ids", [1, 30, 70])
def test_an_extended_row_sees_the_ids(n_ids, shared_engine):
    """Also across a class border, and with the row waiting outside while others have its slots."""
    row = request("t", budget(**PAUSING), n=92, **WARM)
    ticket = paused(shared_engine, row)
    before = shared_engine.ids(ticket)
    more = np.random.default_rng(0).integers(0, 250, n_ids).tolist()
    for i in range(4):
        shared_engine.submit(request("x" * 50, n=30, id=f"{i}"))
    shared_engine.extend(ticket, more)
    assert shared_engine.ids(ticket) == [*before, *more]
    shared_engine.resume(ticket)
    done = next(done for done in shared_engine.run() if done.id == "t")
    begin = len(before) - len(row.prompt_ids)
    assert list(done.token_ids[begin : begin + n_ids]) == more
    assert all(done.forced[begin : begin + n_ids])
    scored = shared_engine.score([*done.prompt_ids, *done.token_ids])[len(row.prompt_ids) :]
    np.testing.assert_allclose(done.logprobs, scored, atol=1e-4)


def test_score_is_the_log_softmax_of_a_full_forward_pass(shared_engine):
    from engine_cases import next_logits

    ids = tokenizer().encode("some ids whose probability is asked for, more than a bucket of them holds")
    scored = shared_engine.score(ids)
    for i in (1, 40, len(ids) - 1):
        logits_V = next_logits(ids[:i])
        assert scored[i] == pytest.approx(
            logits_V[ids[i]] - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max(), abs=1e-4
        )
    assert scored[0] == 0


def test_rows_that_are_not_paused_are_refused(shared_engine):
    for call in (shared_engine.resume, shared_engine.pause, shared_engine.snapshot, shared_engine.ids):
        with pytest.raises(BadInput, match="row 12345"):
            call(12345)
    with pytest.raises(BadInput, match="row 12345 is not paused"):
        shared_engine.extend(12345, [1])
    ticket = paused(shared_engine, request("u", budget(**PAUSING), n=60))
    with pytest.raises(BadInput, match="96 more fill max_length"):
        shared_engine.extend(ticket, [1] * 96)
    with pytest.raises(BadInput, match="neither the row's prompt"):
        shared_engine.fork(ticket, [request("another prompt")])
    shared_engine.cancel(ticket)
    assert [done.finish_reason for done in shared_engine.run()] == ["cancelled"]


# ---------------------------------------------------------------------------------------------------------- sweeps


def sweep(engine_: Engine, rows: list[Request], budgets: list[int]) -> dict:
    found = {}

    def done(row: Request, completion) -> None:
        found[row.id, row.sample, row.control.budget] = completion

    for row in rows:
        forks = [
            dataclasses.replace(row, control=dataclasses.replace(row.control, budget=n, has_budget=True))
            for n in budgets
        ]
        sweeps.submit(engine_, CONTROLS["budget"].sweep, row, forks, done)
    engine_.run()
    return found


BUDGETS = [0, 3, 8, 13, 21, 34, 40, 47]


@pytest.mark.parametrize("n_ignore", [0, 3])
def test_a_sweep_gives_the_rows_of_separate_runs(n_ignore, shared_engine):
    """Same ids, same accounts; and a step count near that of the largest budgets alone."""
    config = {"thinking_n_ignore": n_ignore, "answer_token_budget": 3}
    fields = {"n": 70, **WARM}
    rows = [request("v", budget(**config, thinking_token_budget=55), sample=i, **fields) for i in range(9)]
    before = shared_engine.stats.row_steps
    swept = sweep(shared_engine, rows, BUDGETS)
    cost = shared_engine.stats.row_steps - before
    alone = 0
    for n in [*BUDGETS, 55]:
        before = shared_engine.stats.row_steps
        for i in range(9):
            shared_engine.submit(request("v", budget(**config, thinking_token_budget=n), sample=i, **fields))
        for done in shared_engine.run():
            assert done == swept[done.id, done.sample, n]
        alone += shared_engine.stats.row_steps - before
    last = shared_engine.stats.row_steps - before
    assert cost < alone
    # Each smaller budget adds its closing and its answer, here up to 3 + 1 + 3 steps, and a step to pause.
    assert cost <= last + 9 * len(BUDGETS) * 8


def test_a_sweep_refuses_what_it_cannot_run():
    for row, budgets in [
        (request("w", budget(thinking_token_budget=20)), [20]),
        (request("w", budget(thinking_token_budget=20, min_thinking_tokens=5)), [4]),
        (request("w", budget(thinking_token_budget=20)), list(range(9))),
        (request("w"), [1]),
    ]:
        with pytest.raises(BadInput, match="budgets"):
            CONTROLS["budget"].sweep.pause_at(row.control, budgets)


# -------------------------------------------------------------------------------------------------------- stopping


def test_stop_texts_end_the_answer(shared_engine):
    """At the text, across ids, in the answer alone; and the same whatever the window."""
    fields = {"n": 60, "temperature": 1.0}
    config = budget(thinking_token_budget=20, thinking_n_ignore=1)
    shared_engine.submit(request("two words", config, **fields))
    [whole] = shared_engine.run()
    pieces = [tokenizer().token_bytes()[id] for id in whole.token_ids]
    answer = pieces[whole.answer_offset :]
    stops = [
        (begin, (answer[begin] + answer[begin + 1]).decode())
        for begin in range(len(answer) - 1)
        if all(len(piece) == 1 and piece < b"\x7f" for piece in answer[begin : begin + 2])
    ]
    thought = next(text for text in (p.decode() for p in pieces[: whole.thinking_tokens] if p < b"\x7f"))
    begin, stop = stops[len(stops) // 2]
    first = b"".join(answer).find(stop.encode())
    for engine_ in (shared_engine, engine(window=3)):
        engine_.submit(request("two words", config, **fields, stop=(stop, "never there")))
        [cut] = engine_.run()
        assert cut.finish_reason == "stop"
        assert cut.token_ids == whole.token_ids[: whole.answer_offset + first + 2]
        assert cut.text == b"".join([*pieces[: whole.answer_offset], *answer[:first]]).decode(errors="replace")
        assert cut.steps == whole.steps - (len(whole.token_ids) - len(cut.token_ids))
        assert cut.answer_tokens == first + 2
        assert cut.thinking_tokens == whole.thinking_tokens
    assert begin >= first
    if thought.encode() not in b"".join(answer):
        shared_engine.submit(request("two words", config, **fields, stop=(thought,)))
        [kept] = shared_engine.run()
        assert kept.token_ids == whole.token_ids


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["bc"], (2, 1)),
        (["cd", "bc"], (2, 1)),
        (["abcde"], (4, 0)),
        (["d", "cd"], (3, 2)),
        (["x"], None),
        (["e"], (4, 4)),
    ],
)
def test_stop_texts_are_found_across_tokens(stops, expected):
    for pieces in ([4], [1, 3], [2, 1, 1], [1, 1, 1, 1]):  # however the row grows
        finder, at = StopFinder([b"ab", b"c", b"d", b"ef"], stops), 0
        for size in pieces:
            finder.update(at, range(at, at + size))
            at += size
        assert finder.first(0) == expected


# -------------------------------------------------------------------------------------------------- upstream's way


def rounds(engine_: Engine, row: Request, string: str, n_ignore: int, thinking: int) -> tuple[int, ...]:
    """Budget forcing as the paper's code does it: stop at an end, append the string, prefill all of it again, go on.

    The engine sees only plain completions: each round is a new request, cut on the host at the first end.
    """
    tok, markers = tokenizer(), S1.markers
    ends = [id for id in range(tok.size) if tok.token_bytes()[id] == markers.thinking_end[0].encode()]
    ends += sorted(tok.eos_ids)
    kept: list[int] = []

    def go_on(n: int) -> list[int]:
        ids = (*row.prompt_ids, *kept)
        limits = CONTROLS["free"].admit(FREE, tok, prompt_length=len(ids), max_length=MAX_LENGTH, max_new_tokens=n)
        engine_.submit(Request(row.id, row.sample, row.seed, ids, limits, row.sampling))
        return list(engine_.run()[0].token_ids)

    for _ in range(n_ignore + 1):
        drawn = go_on(thinking - len(kept))
        end = next((i for i, id in enumerate(drawn) if id in ends), None)
        if end is None:
            kept += drawn
            kept += [] if tok.token_bytes()[kept[-1]].endswith(b"\n") else tok.encode("\n")
            kept += tok.encode_markup(markers.forced_end)
            break
        kept += drawn[:end]
        kept += tok.encode_markup(string if _ < n_ignore else markers.answer_start)
    room = row.control.room - len(kept)
    return (*kept, *go_on(room)) if room else tuple(kept)


def test_stopping_appending_and_prefilling_again_gives_the_same_ids():
    """Delimiters of one id, and strings after which the model draws no end at once (upstream does not forbid it)."""
    single = budget(thinking_end=("<|im_start|>",))
    engine_ = engine()
    compared = 0
    for i in range(12):
        config = dataclasses.replace(single, thinking_n_ignore=2, thinking_token_budget=45)
        row = request("two words and three", config, id=f"{i}", n=70, temperature=1.0)
        engine_.submit(row)
        [done] = engine_.run()
        ours = done.token_ids
        theirs = rounds(engine_, row, "Wait", 2, 45)
        text = tokenizer().decode(theirs)
        if "Wait<" in text or "WaitWait" in text:
            continue
        assert ours == theirs
        compared += done.n_ignored > 0
    assert compared >= 3


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (lambda: dataclasses.replace(request("a"), prompt_ids=()), "empty prompt"),
        (lambda: dataclasses.replace(request("a"), prompt_ids=(1, 263)), "token 263"),
        (lambda: dataclasses.replace(request("a"), prompt_ids=(1,) * 90), "max_length=96"),
        (lambda: request("a", temperature=-1.0), "temperature"),
        (lambda: request("a", temperature=1e-40), "temperature is 1e-40; give 0, or a number from 1e-06 to"),
        (lambda: request("a", temperature=1e30), "temperature is 1e.30"),
        (lambda: request("a", temperature=float("nan")), "temperature is nan"),
        (lambda: request("a", top_p=1e-46), "top_p"),
        (lambda: request("a", top_k=2**40), "top_k is 1099511627776; give .* to 2147483647"),
        (lambda: request("a", min_p=1e-46), "min_p"),
        (lambda: request("a", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: request("a", top_p=0.0), "top_p"),
        (lambda: request("a", top_k=-1), "top_k"),
        (lambda: request("a", min_p=1.5), "min_p"),
        (lambda: request("a", stop=("",)), "stop"),
        (lambda: request("a", budget(thinking_end=("zz",))), "delimiter"),
    ],
)
def test_a_request_that_cannot_run_is_refused(row, message, shared_engine):
    with pytest.raises(BadInput, match=message):
        shared_engine.submit(row())
    assert shared_engine.run() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slots": 0, "classes": None}, "slots is 0"),
        ({"max_length": 1000}, "max_length is 1000"),
        ({"window": 0}, "window is 0"),
        ({"prefill_ids": 0}, "prefill_ids is 0"),
        ({"classes": ((1, 20), (1, 10))}, "ascending"),
        ({"classes": ((0, 96),)}, "at least one row"),
        ({"classes": ((1, 64),)}, "ends at length 64"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        engine(**fields)


def test_classes_follow_the_slots():
    config = EngineConfig(max_length=32768)
    long = dataclasses.replace(CONFIG, max_position=32768)
    assert resolve_classes(config, long, 50) == ((32, 4096), (12, 8192), (4, 16384), (2, 32768))
    assert resolve_classes(config, long, 3) == ((3, 32768),)
    assert sum(rows for rows, _ in resolve_classes(config, long, 17)) == 17
    assert resolve_classes(EngineConfig(), CONFIG, 5) == ((5, 128),)
