"""What a method is given back: stored samples as they were, each number once, errors of rows as errors."""

import asyncio
import dataclasses

import pytest

from s1jax.config import BadInput
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.single import SingleConfig
from s1jax.methods.task import Job, RowError, Task
from s1jax.records import Completion

DONE = Completion("q", 0, 5, (1, 2), (3,), (False,), 0, 0, 1, 1, None, "stop", "t")
JOB = Job("s", "q", 5, ({"role": "user", "content": "?"},), (1, 2), "control", SamplingConfig(), SingleConfig(), 3)


class Broker:
    """Gives each ask the completion that is due, and another prompt under another control."""

    def __init__(self, *due: Completion) -> None:
        self.due, self.asked = list(due), []

    def prompt_ids(self, messages, control) -> tuple[int, ...]:
        return (len(messages), len(control))

    async def ask(self, ask, keep) -> Completion:
        self.asked.append(ask)
        done = self.due.pop(0)
        if done.is_finished:
            keep(done)
        return done


def task_of(broker: Broker, stored=None) -> tuple[Task, list]:
    kept: list = []
    return Task(JOB, broker, stored or {}, lambda *given: kept.append(given)), kept  # type: ignore[arg-type]


def test_a_stored_sample_is_given_back_and_one_of_another_prompt_refused():
    stored = {0: DONE, 1: dataclasses.replace(DONE, sample=1, prompt_ids=(1, 3))}
    broker = Broker()
    task, kept = task_of(broker, stored)
    assert asyncio.run(task.complete(0)) is DONE
    with pytest.raises(BadInput, match="sample 1 of 'q' completes another prompt"):
        asyncio.run(task.complete(1))
    assert not broker.asked and not kept


def test_each_number_is_asked_for_once_and_within_what_was_said():
    task, _ = task_of(Broker())
    ask = task.ask(2)
    assert (ask.setting, ask.id, ask.sample, ask.seed, ask.prompt_ids) == ("s", "q", 2, 5, (1, 2))
    for sample in (2, 3, -1):
        with pytest.raises(BadInput, match=f"asks for sample {sample} of 'q'; it has said that there are 3, each once"):
            task.ask(sample)


def test_another_chat_or_control_is_another_prompt():
    task, _ = task_of(Broker())
    assert task.ask(0, control="other").prompt_ids == (1, 5)
    longer = task.ask(1, messages=(*JOB.messages, *JOB.messages), sampling=SamplingConfig(temperature=0.5))
    assert longer.prompt_ids == (2, 7) and longer.control == "control" and longer.sampling.temperature == 0.5
    assert task.ask(2, control="control").prompt_ids == (1, 2)


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_a_row_that_did_not_finish_is_an_error_and_is_not_kept(reason):
    broken = dataclasses.replace(DONE, finish_reason=reason, error="boom" if reason == "error" else None)
    task, kept = task_of(Broker(DONE, broken))
    assert asyncio.run(task.complete(0)) is DONE and [given[2] for given in kept] == [DONE]
    with pytest.raises(RowError, match=f"'q' sample 1: {'boom' if reason == 'error' else 'cancelled'}"):
        asyncio.run(task.complete(1))
    assert len(kept) == 1


def test_rows_that_a_method_drives_itself_are_kept_when_they_finish():
    task, kept = task_of(Broker())
    ask = task.ask(0)
    assert task.keep(ask, DONE) is DONE and kept == [(JOB, ask, DONE)]
    cancelled = dataclasses.replace(DONE, finish_reason="cancelled")
    assert task.keep(ask, cancelled) is cancelled and len(kept) == 1
    with pytest.raises(RowError, match="'q' sample 0: boom"):
        task.keep(ask, dataclasses.replace(DONE, finish_reason="error", error="boom"))
