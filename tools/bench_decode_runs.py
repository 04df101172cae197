"""The benchmarks of `bench_decode.py` that run whole queues: refill, sweeps, upstream's rounds, and a peer."""

import dataclasses
import heapq
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np
from bench_decode_steps import (
    NO_CONTROL,
    Scripted,
    emit,
    engine_of,
    numbers,
    random_model,
    requests_of,
    scripted,
    shape_of,
)

from s1jax.checkpoint import hf
from s1jax.control import CONTROLS, automata
from s1jax.control.budget.admission import admit
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.free import FreeConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods import sweep
from s1jax.records import Completion
from s1jax.text.tokens import byte_tokenizer

START = "<|im_start|>"
ASKED = BudgetConfig(thinking_start=START, thinking_end=(START,), answer_start=START, forced_end=START)


def trace_lengths(options: dict) -> list[int]:
    """Ids of the traces in a JSONL file (`model_response`), by a tokenizer folder, or four bytes an id without one."""
    rows = [json.loads(line) for line in pathlib.Path(options["lengths"]).read_text(encoding="utf-8").splitlines()]
    texts = [row["model_response"].partition("<|im_start|>think")[2] for row in rows]
    if "tokenizer" not in options:
        return [max(1, len(text.encode()) // 4) for text in texts]
    from s1jax.text.tokens import Tokenizer

    tokenizer = Tokenizer.load(options["tokenizer"])
    return [max(1, len(tokenizer.encode_markup(text))) for text in texts]


def in_order(lengths: Sequence[int], rows: int) -> int:
    """Steps until all rows have ended, where a slot that is free takes the next row at once."""
    ends = [0] * rows
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def bench_refill(options: dict) -> None:
    """Rows of real lengths through few slots: occupancy while somebody waits, and the share of the ideal gain.

    The static batch takes the rows in the same order, each batch as long as its longest. The ideal wastes no slot,
    which the last rows make impossible; `reachable` refills in the same order at once, without windows.
    """
    config, lengths = shape_of(options), trace_lengths(options)
    model, longest = random_model(config), max(lengths) + 8
    for rows in numbers(options, "rows", "16"):
        for ahead in (False, True):
            engine = engine_of(
                model, {"free": scripted(config)}, ((rows, longest),), {"window": 32, **options}, ahead=ahead
            )
            for i, length in enumerate(lengths):
                row = dataclasses.replace(NO_CONTROL, room=length)
                engine.submit(Request(f"{i}", 0, 0, (1, 2, 3), row, SamplingConfig()))
            engine.run()
            stats = engine.stats
            static = sum(max(lengths[begin : begin + rows]) for begin in range(0, len(lengths), rows))
            reachable = in_order(lengths, rows)
            ideal, ours = sum(lengths) / rows, stats.slot_steps / rows
            emit(
                "refill", options, rows=rows, ahead=ahead, queue=len(lengths), mean_length=sum(lengths) / len(lengths),
                max_length=max(lengths), occupancy_while_queued=stats.queued_row_steps / stats.queued_slot_steps,
                static_steps=static, ideal_steps=ideal, steps=ours, gain=static / ours, ideal_gain=static / ideal,
                share_of_ideal=ideal / ours, reachable_steps=reachable, share_of_reachable=reachable / ours,
            )  # fmt: skip


def spent(engine: Engine, work) -> tuple[float, int]:
    """Seconds and row steps that `work` takes."""
    before, begin = engine.stats.row_steps, time.perf_counter()
    work()
    return time.perf_counter() - begin, engine.stats.row_steps - before


def bench_sweep(options: dict) -> None:
    """Eight budgets by forking, by separate runs, and the largest alone."""
    config, tokenizer = shape_of(options), byte_tokenizer()
    rows, most = int(options.get("rows", 16)), int(options.get("budget", 1024))
    budgets, answer = [most * i // 8 for i in range(1, 9)], int(options.get("answer", 8))
    asked = dataclasses.replace(ASKED, answer_token_budget=answer)
    classes = ((rows * 2, most + answer + 16),)
    engine = engine_of(random_model(config), automata(tokenizer, config.V, [asked]), classes, options, ahead=False)

    def request(i: int, budget: int) -> Request:
        control = dataclasses.replace(asked, thinking_token_budget=budget)
        length = classes[0][1]
        row = admit(control, tokenizer, prompt_length=3, max_length=length, max_new_tokens=length)
        return Request(f"{i}", 0, 0, (1, 2, 3), row, SamplingConfig(temperature=1.0))

    def separate(budget: int) -> dict:
        for i in range(rows):
            engine.submit(request(i, budget))
        return {(done.id, budget): done.token_ids for done in engine.run()}

    swept, apart = {}, {}

    def fork() -> None:
        def done(row: Request, completion: Completion) -> None:
            swept[row.id, row.control.budget] = completion.token_ids

        for i in range(rows):
            forks = [request(i, budget) for budget in budgets[:-1]]
            sweep.submit(engine, CONTROLS["budget"].sweep, request(i, most), forks, done)
        engine.run()

    fork()
    forked = spent(engine, fork)
    all_apart = spent(engine, lambda: [apart.update(separate(budget)) for budget in budgets])
    last = spent(engine, lambda: separate(most))
    emit(
        "sweep", options, rows=rows, budgets=budgets, same_ids=swept == apart, steps_by_last=forked[1] / last[1],
        seconds_by_last=forked[0] / last[0], separate_steps_by_last=all_apart[1] / last[1],
        separate_seconds_by_last=all_apart[0] / last[0],
    )  # fmt: skip


def bench_rounds(options: dict) -> None:
    """Ends ignored in the loop, against rounds that stop, append the string and prefill everything again."""
    config, tokenizer = shape_of(options), byte_tokenizer()
    rows, length, n_ignore = int(options.get("rows", 8)), int(options.get("length", 256)), int(options.get("ignore", 4))
    asked = dataclasses.replace(ASKED, thinking_n_ignore=n_ignore, thinking_token_budget=length)
    most = length + 64
    control = automata(tokenizer, config.V, [asked, FreeConfig()])
    engine = engine_of(random_model(config), control, ((rows, most),), options, ahead=False, prefill_rows=rows)
    row = admit(asked, tokenizer, prompt_length=3, max_length=most, max_new_tokens=length + 32)
    free = CONTROLS["free"].admit(FreeConfig(), tokenizer, prompt_length=3, max_length=most, max_new_tokens=1)

    def ours() -> None:
        for request in requests_of(rows, row, temperature=1.0):
            engine.submit(request)
        engine.run()

    def rounds() -> None:
        # The same number of ids in as many rounds; where the model ends by itself does not matter to the cost.
        prompts = [(1, 2, 3)] * rows
        for _ in range(n_ignore + 1):
            limits = dataclasses.replace(free, room=length // (n_ignore + 1))
            for i, prompt in enumerate(prompts):
                engine.submit(Request(f"{i}", 0, 0, prompt, limits, SamplingConfig(temperature=1.0)))
            prompts = [(*done.prompt_ids, *done.token_ids, 4) for done in engine.run()]

    for work in (ours, rounds):
        work()
    one, many = spent(engine, ours), spent(engine, rounds)
    emit(
        "rounds", options, rows=rows, length=length, n_ignore=n_ignore, seconds=one[0], steps=one[1],
        rounds_seconds=many[0], rounds_steps=many[1],
        seconds_a_step_of_rounds_by_ours=(many[0] / many[1]) / (one[0] / one[1]),
    )  # fmt: skip


def start_peer(name: str, python: str, job: dict) -> tuple[subprocess.Popen, dict]:
    """A peer that has read the model, and its versions."""
    tool = pathlib.Path(__file__).with_name("bench_decode_peers.py")
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    peer = subprocess.Popen([python, str(tool), name, json.dumps(job)], **pipes)
    return peer, json.loads(peer.stdout.readline())  # pyright: ignore[reportOptionalMemberAccess]


def ask_peer(peer: subprocess.Popen, prompts: list[list[int]], new: int) -> dict:
    """Seconds and ids."""
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
    peer.stdin.flush()
    return json.loads(peer.stdout.readline())


def bench_peer(options: dict) -> None:
    """Greedy ids a second beside `transformers` and Tunix: the same weights in float32, prompts with them, in turns."""
    config, new, context = shape_of(options), int(options.get("new", 32)), int(options.get("context", 64))
    model, draw = random_model(config), np.random.default_rng(0)
    names = {"transformers": sys.executable, "tunix": options.get("tunix")}
    with tempfile.TemporaryDirectory() as folder:
        model = jax.device_put(model, jax.devices()[0])
        hf.save(model, pathlib.Path(folder) / "hf", config_extra={"eos_token_id": config.V - 1})
        job = {**dataclasses.asdict(config), "folder": f"{folder}/hf", "length": context + new}
        peers = {name: start_peer(name, python, job) for name, python in names.items() if python}
        for rows in numbers(options, "rows", "1,8,16"):
            classes, given = ((rows, context + new + 1),), {"window": new, **options}
            engine = engine_of(model, Scripted(np.zeros(config.V, bool)), classes, given, ahead=False)
            prompts = draw.integers(0, 250, (rows, context)).tolist()

            def ours(engine: Engine = engine, prompts: list[list[int]] = prompts) -> dict:
                begin = time.perf_counter()
                for i, prompt in enumerate(prompts):
                    row = dataclasses.replace(NO_CONTROL, room=new)
                    engine.submit(Request(f"{i}", 0, 0, tuple(prompt), row, SamplingConfig()))
                ids = [list(done.token_ids) for done in engine.run()]
                return {"seconds": time.perf_counter() - begin, "ids": ids}

            turns = []
            for _ in range(int(options.get("repeats", 3)) + 1):
                answers = {name: ask_peer(peer, prompts, new) for name, (peer, _) in peers.items()}
                turns.append({"s1jax": ours(), **answers})
            figures = {}
            for name in turns[0]:
                seconds = sorted(turn[name]["seconds"] for turn in turns[1:])
                figures[name] = {
                    "tokens_per_second": rows * new / seconds[len(seconds) // 2], "seconds": seconds,
                    "same_ids": float(np.mean(np.array(turns[0][name]["ids"]) == np.array(turns[0]["s1jax"]["ids"]))),
                    "versions": peers[name][1] if name in peers else {"jax": jax.__version__},
                }  # fmt: skip
            emit("peer", options, rows=rows, context=context, new=new, engines=figures)
        for peer, _ in peers.values():
            peer.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            peer.wait()


BENCHES = {
    "refill": bench_refill,
    "sweep": bench_sweep,
    "rounds": bench_rounds,
    "peer": bench_peer,
}
