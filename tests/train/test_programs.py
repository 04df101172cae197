"""All programs of a run are compiled before its first step, and none later."""

import dataclasses

import jax
import pytest
from jax._src import monitoring
from train_run_cases import make_world, run_config

from s1jax.train import run as runs
from s1jax.train.packing import PackingConfig

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Names of the programs that are compiled, as they are."""
    names = []

    def note(event: str, seconds: float, **named) -> None:
        if event == COMPILED:
            names.append(named.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    monitoring.unregister_event_duration_listener(note)


def test_every_shape_is_compiled_before_the_first_step_and_none_later(tmp_path, monkeypatch, compilations, capfd):
    """Rows of several lengths in 12 steps, validation three times: one program a length, and one for validation."""
    config = run_config(make_world(tmp_path))
    packing = PackingConfig(rows=4, shapes=3, multiple=4)
    config = dataclasses.replace(config, packing=packing, steps=12, eval_every=5, save=runs.SaveConfig(every=None))
    train, seen = runs.train, {}

    def counted(loop, state, start):
        seen["lengths"], seen["before"] = loop.plan.lengths, list(compilations)
        save = loop.store.save

        def saved(*arguments):
            seen["steps"] = compilations[len(seen["before"]) :]
            return save(*arguments)

        monkeypatch.setattr(loop.store, "save", saved)
        return train(loop, state, start)

    monkeypatch.setattr(runs, "train", counted)
    runs.run(config)
    count = len(seen["lengths"])
    assert count > 1
    assert seen["before"].count("jit(step)") == count and seen["before"].count("jit(loss)") == 1
    assert seen["steps"] == []
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("compil")]
    assert len(said) == 2 and said[1].startswith("compiled in ")
    assert f"compiling {count + 1} programs side by side, a step for 4 x {seen['lengths'][0]}, 4 x" in said[0]


def test_a_run_that_is_done_compiles_no_step(tmp_path, compilations):
    config = dataclasses.replace(run_config(make_world(tmp_path)), steps=1, eval_rows=(), save=runs.SaveConfig())
    runs.run(config)
    assert compilations.count("jit(step)") == 1
    compilations.clear()
    runs.run(config)
    assert "jit(step)" not in compilations
