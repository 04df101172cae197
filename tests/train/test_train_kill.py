"""Runs killed with SIGKILL at random moments: what they leave is what an undisturbed run leaves, bit for bit.

Five kills by default; `S1JAX_KILLS=20 S1JAX_KILLS_SEED=7 pytest -s tests/train/test_train_kill.py` makes twenty
others and says where each fell.
"""

import dataclasses
import os
import pathlib
import time

import numpy as np
import pytest
from train_run_cases import make_world, metrics, run_config, start, steps_written, unfinished_saves, wait_until

from s1jax.checkpoint import hf
from s1jax.models.decoder import named
from s1jax.train.run import run

KILLS = int(os.environ.get("S1JAX_KILLS", "5"))
SEED = int(os.environ.get("S1JAX_KILLS_SEED", "0"))


def left(out):
    """Metrics and exported tensors of a finished run."""
    model = named(hf.load(pathlib.Path(out) / "hf"))
    return metrics(out), {name: np.asarray(x).tobytes() for name, x in model.items()}


def kill(config, world, moment, rng):
    """SIGKILL while a checkpoint is being written, or some time after the start or after a step.

    Returns: what was killed, in words; None when the process had ended before.
    """
    out = config.out
    ahead, before = steps_written(out) + int(rng.integers(1, 9)), unfinished_saves(out)
    process = start(config, world)
    if moment == "save":
        wait_until(process, lambda: unfinished_saves(out) - before)
    elif moment == "step":
        wait_until(process, lambda: steps_written(out) >= ahead)
        time.sleep(rng.uniform(0, 0.1))
    else:
        time.sleep(rng.uniform(0, 6))
    was_running = process.poll() is None
    process.kill()
    process.communicate()
    saving = "".join(f", saving {name}" for name, _ in unfinished_saves(out) - before)
    return f"after step {steps_written(out)}{saving}" if was_running else None


@pytest.mark.timeout(1800)
def test_killed_anywhere_it_goes_on_bit_by_bit(tmp_path):
    world = make_world(tmp_path)
    config = run_config(world)
    run(config)
    undisturbed = left(config.out)
    rng = np.random.default_rng(SEED)
    kills, runs, in_a_save = 0, 0, 0
    disturbed = dataclasses.replace(config, out=str(world / "disturbed0"))
    while kills < KILLS:
        moment = "save" if not in_a_save else str(rng.choice(["start", "step", "step", "save"]))
        where = kill(disturbed, world, moment, rng)
        if where is None:  # it came to its end: the next kill needs a run of its own
            assert left(disturbed.out) == undisturbed, f"seed of the kills: {SEED}"
            runs += 1
            disturbed = dataclasses.replace(config, out=str(world / f"disturbed{runs}"))
            continue
        kills, in_a_save = kills + 1, in_a_save + ("saving" in where)
        print(f"kill {kills}: run {runs}, {where}")
    run(disturbed)
    assert left(disturbed.out) == undisturbed, f"seed of the kills: {SEED}"
    assert in_a_save
