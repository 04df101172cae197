"""The loop over steps with stand-ins for all that computes: what is written, measured, validated, saved, and when."""

import dataclasses
import json
import signal
import threading
import types

import jax
import numpy as np
import pytest
from train_cases import RECIPE, TINY, one_device

from s1jax.models.decoder import Decoder, named
from s1jax.models.lora import LoraConfig
from s1jax.train import loop as loops
from s1jax.train import run as runs
from s1jax.train import stop as stops
from s1jax.train.config import RandomModel
from s1jax.train.flops import train_flops
from s1jax.train.loop import Clock, Loop, Pace, train
from s1jax.train.plan import HostBatch
from s1jax.train.step import Metrics, initial_state, state_shardings

STEPS, LENGTHS = 7, (10, 22)


@dataclasses.dataclass(frozen=True)
class State:
    step: int
    base: str | None = "base"


class World:
    """A clock, and everything that the loop talks to; each wait takes its seconds of that clock."""

    def __init__(self, monkeypatch, out, **pace) -> None:
        self.now, self.events, self.records, self.said, self.losses = 0.0, [], [], [], {}
        self.asked_at = 99
        monkeypatch.setattr(loops.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(loops, "prefetched", self.batches)
        monkeypatch.setattr(loops, "own_rows", lambda rows, micro_batches, sharding: (rows, micro_batches))
        monkeypatch.setattr(loops, "place_batch", lambda arrays, micro_batches, sharding: micro_batches)
        monkeypatch.setattr(loops.jax, "device_get", self.get)
        monkeypatch.setattr(loops.jax.profiler, "start_trace", lambda path: self.events.append(("trace", path)))
        monkeypatch.setattr(loops.jax.profiler, "stop_trace", lambda: self.events.append(("traced", self.step)))
        self.step = 0
        self.loop = Loop(
            model=TINY,
            lora=None,
            plan=types.SimpleNamespace(rows=6, steps=STEPS),  # type: ignore[arg-type]
            step=self.update,
            evaluate=self.evaluate,
            rows_at_once=2,
            sharding=None,  # type: ignore[arg-type]
            validation=(),
            store=types.SimpleNamespace(save=self.save, wait=self.wait, check=self.check, newest=lambda: None),
            log=types.SimpleNamespace(write=self.write, sync=lambda: self.events.append("sync")),
            stop=types.SimpleNamespace(is_asked=self.is_asked, leave=self.leave),
            pace=Pace(**{"save": None, "validate": None, "profile": None, **pace}),
            out=out,
            peak=1e9,
            say=self.said.append,
        )

    def batches(self, plan, start, own):
        assert own == (6, 3), "rows of a step, and their micro-batches"
        for step in range(start + 1, plan.steps + 1):
            self.now += 0.5  # the loop waits for its data
            yield batch_of(step)

    def update(self, state, micro_batches):
        assert micro_batches == 3
        self.step = state.step + 1
        loss, norm = self.losses.get(self.step, (1.0 / self.step, 2.0))
        return State(self.step), Metrics(loss, norm, 0.1 * self.step)  # type: ignore[arg-type]

    def get(self, values):
        self.now += 2.0  # the step is computed by then
        return values

    def evaluate(self, state, micro_batches):
        self.now += 100.0
        self.events.append(("validate", state.step, micro_batches))
        return 0.25

    def save(self, step, state, loss):
        self.now += 50.0
        self.events.append(("save", step, state.base, loss))

    def wait(self):
        self.events.append("wait")
        return True

    def check(self):
        return True

    def write(self, record, *, seconds_left):
        self.records.append({**record, "left": seconds_left})

    def is_asked(self, step):
        return step >= self.asked_at

    def leave(self):
        self.events.append("leave")
        raise SystemExit(75)


def batch_of(step: int) -> HostBatch:
    arrays = types.SimpleNamespace(tokens=np.zeros((6, 8 if step < 3 else 16), np.int32))
    return HostBatch(arrays, (f"a{step}", f"b{step}"), 30 + step, LENGTHS)  # type: ignore[arg-type]


def test_records_of_every_step_and_their_seconds(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    assert train(world.loop, State(0), 0).step == STEPS
    assert [row["step"] for row in world.records] == list(range(1, STEPS + 1))
    # A step is reported when the next is on its way: two waits for data and one for the step, then one of each.
    seconds = [3.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.0]
    flops = train_flops(TINY, LENGTHS)
    for number, (row, spent) in enumerate(zip(world.records, seconds, strict=True), 1):
        assert row["loss"] == 1.0 / number and row["grad_norm"] == 2.0 and row["tokens"] == 30 + number
        assert row["learning_rate"] == pytest.approx(0.1 * number)
        assert row["tokens_per_second"] == pytest.approx(32 / spent), "positions, prompts included"
        assert row["mfu"] == pytest.approx(flops / spent / 1e9) and row["data_seconds"] == 0.5
        median = 3.0 if number == 1 else 2.75 if number == 2 else 2.5
        assert row["left"] == pytest.approx((STEPS - number) * median)
    assert world.events == ["sync", ("save", STEPS, None, None), "wait"], "at the end, and without the base"
    assert world.said == []


def test_a_peak_that_is_not_known(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    train(dataclasses.replace(world.loop, peak=None), State(0), 0)
    assert {row["mfu"] for row in world.records} == {None}


def test_validation_comes_as_often_as_asked_and_before_each_save(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, save=3, validate=2)
    train(dataclasses.replace(world.loop, validation=[batch_of(1), batch_of(2)]), State(0), 0)
    validated = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert validated == [{"step": step, "loss": 0.5} for step in (2, 3, 4, 6, 7)], "the sum over the batches"
    assert [event for event in world.events if event[0] == "save"] == [("save", n, None, 0.5) for n in (3, 6, 7)]
    at = world.events.index(("save", 3, None, 0.5))
    assert world.events[at - 3 : at] == [("validate", 3, 3), ("validate", 3, 3), "sync"]
    # A step after a validation or a save is not charged with it.
    assert max(32 / row["tokens_per_second"] for row in world.records) <= 3.0
    assert "step 4: validation loss 0.5000" in world.said


def test_without_held_out_rows_nothing_is_validated(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, save=4)
    train(world.loop, State(0), 0)
    assert not (tmp_path / "validation.jsonl").exists()
    assert [event[1] for event in world.events if event[0] == "save"] == [4, 7]


def test_a_run_goes_on_from_its_step(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, save=4)
    train(world.loop, State(5), 5)
    assert [row["step"] for row in world.records] == [6, 7]


@pytest.mark.parametrize(
    "values", [(float("nan"), 1.0), (1.0, float("inf")), (float("-inf"), 1.0), (1.0, float("nan"))]
)
def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run(monkeypatch, tmp_path, values):
    world = World(monkeypatch, tmp_path)
    world.losses[3] = values
    found = types.SimpleNamespace(step=2, folder="there")
    world.loop.store.newest = lambda: world.events.append("newest") or found  # type: ignore[method-assign]
    says = r"nothing of it is saved, the last checkpoint is of step 2 \(there\). Rows of the step: a3, b3"
    with pytest.raises(FloatingPointError, match=r"step 3: loss is .*; " + says):
        train(world.loop, State(0), 0)
    assert world.events == ["wait", "newest"], "a save under way is waited for; nothing is saved"
    assert [row["step"] for row in world.records] == [1, 2]


def test_a_run_that_is_asked_to_stop_saves_first(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    world.asked_at = 3
    with pytest.raises(SystemExit):
        train(world.loop, State(0), 0)
    assert world.events == ["sync", ("save", 3, None, None), "wait", "leave"]
    assert [row["step"] for row in world.records] == [1, 2, 3] and world.said[-1].startswith(
        "stopped after step 3, saved"
    )
    world = World(monkeypatch, tmp_path)
    world.asked_at = STEPS
    train(world.loop, State(0), 0)
    assert "leave" not in world.events, "it came to its end"


@pytest.mark.parametrize(
    ("profile", "start", "first", "last"),
    [
        ((2, 3), 0, 2, 4),
        ((5, 9), 0, 5, 7),
        ((4, 1), 0, 4, 4),
        ((3, 0), 0, 0, 0),
        ((2, 4), 3, 4, 5),
        ((3, 1), 2, 3, 3),
        ((2, 2), 3, 0, 0),
        ((9, 2), 0, 0, 0),
        ((1, 99), 5, 6, 7),
    ],
)
def test_the_steps_that_are_traced(monkeypatch, tmp_path, profile, start, first, last):
    """Wherever the window lies: gone on from within it, ended within it, over before, or never reached."""
    world = World(monkeypatch, tmp_path, profile=profile)
    steps = []
    update = world.update
    monkeypatch.setattr(world, "update", lambda *arguments: steps.append(len(world.events)) or update(*arguments))
    train(dataclasses.replace(world.loop, step=world.update), State(start), start)
    traced = [event for event in world.events if event[0] in ("trace", "traced")]
    assert traced == ([("trace", str(tmp_path / "profile")), ("traced", last)] if last else [])
    if last:
        assert steps.index(1) + 1 + start == first, "it begins before that step"


@pytest.mark.parametrize("end", ["asked", "not finite"])
def test_a_trace_ends_with_the_run(monkeypatch, tmp_path, end):
    world = World(monkeypatch, tmp_path, profile=(2, 5))
    if end == "asked":
        world.asked_at = 3
    else:
        world.losses[3] = (float("nan"), 1.0)
    with pytest.raises((SystemExit, FloatingPointError)):
        train(world.loop, State(0), 0)
    assert world.events.count(("trace", str(tmp_path / "profile"))) == 1
    assert len([event for event in world.events if event[0] == "traced"]) == 1


def test_a_clock(monkeypatch):
    times = iter([0.0, 3.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(loops.time, "perf_counter", lambda: next(times))
    clock = Clock()
    assert clock.lap() == 3.0
    clock.skip()
    assert clock.lap() == 1.0 and clock.lap() == 1.0 and clock.left(4) == 4.0


# ---- signals


def test_the_first_signal_waits_for_the_step_and_a_second_ctrl_c_does_not():
    asked = stops.Stop()
    assert not asked.is_asked(1)
    asked.receive(signal.SIGTERM, None)
    asked.receive(signal.SIGTERM, None)
    assert asked.is_asked(1)
    with pytest.raises(SystemExit) as left:
        asked.leave()
    assert left.value.code == 75
    asked.receive(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        asked.leave()
    with pytest.raises(KeyboardInterrupt):
        asked.receive(signal.SIGINT, None)


def test_handlers_are_put_back_and_other_threads_have_none():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stops.listening() as stop:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [stop.receive] * 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    seen = []

    def elsewhere():
        with stops.listening():
            seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_on_several_hosts_the_preemption_service_says_when(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stops.multihost_utils, "reached_preemption_sync_point", lambda step: step == 4)
    before = signal.getsignal(signal.SIGTERM)
    with stops.listening() as stop:
        assert signal.getsignal(signal.SIGTERM) is before
        stop.receive(signal.SIGTERM, None)
        assert [stop.is_asked(step) for step in (3, 4, 5)] == [False, True, False]


# ---- seeds


def first_state(seed: int, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    shapes = jax.eval_shape(lambda: initial_state(Decoder(TINY, jax.random.key(0)), recipe))
    config = types.SimpleNamespace(model=RandomModel(TINY), seed=seed, lora=recipe.lora)
    return runs._first(config, recipe, state_shardings(shapes, one_device(), recipe))  # type: ignore[arg-type]


def test_random_weights_are_of_the_seed():
    one, other, again = (named(first_state(seed).model) for seed in (1, 2, 1))
    for name in ("embed", "blocks.q", "blocks.down"):
        assert not np.array_equal(one[name], other[name]), name
        np.testing.assert_array_equal(one[name], again[name])


def test_adapters_are_of_the_seed():
    lora = LoraConfig(rank=2)
    one, other, again = (first_state(seed, lora=lora) for seed in (1, 2, 1))
    for name in lora.targets:
        assert not np.array_equal(one.model[name].down, other.model[name].down), name
        np.testing.assert_array_equal(one.model[name].down, again.model[name].down)
    assert not np.array_equal(named(one.base)["embed"], named(other.base)["embed"])
