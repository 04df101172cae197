"""Runs of two processes stopped by SIGTERM at random moments: what they say is saved is, and nothing is lost.

Three stops by default; `S1JAX_STOPS=20 S1JAX_STOPS_SEED=7 pytest -s tests/train/test_train_sigterm.py` makes twenty
others and says where each fell.
"""

import dataclasses
import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest
from host_cases import environments
from train_run_cases import make_world, metrics, run_config, start, steps_written, unfinished_saves, wait_until

from s1jax.checkpoint import saved
from s1jax.parallel.mesh import MeshConfig
from s1jax.train.packing import PackingConfig
from s1jax.train.run import SaveConfig, run

STOPS = int(os.environ.get("S1JAX_STOPS", "3"))
SEED = int(os.environ.get("S1JAX_STOPS_SEED", "0"))


def stop(config, world, rng):
    """SIGTERM to one process or both, some time after a step or in a save. Returns where it fell, codes and words."""
    out = config.out
    ahead, is_in_save, to_both = steps_written(out) + int(rng.integers(1, 8)), rng.random() < 0.5, rng.random() < 0.5
    before = unfinished_saves(out)
    processes = [start(config, world, environment) for environment in environments(2)]
    if is_in_save:
        wait_until(processes[0], lambda: unfinished_saves(out) - before)
    else:
        wait_until(processes[0], lambda: steps_written(out) >= ahead)
        time.sleep(rng.uniform(0, 0.5))
    where = f"step {steps_written(out)}, {'in a save' if unfinished_saves(out) - before else 'between saves'}"
    for process in processes if to_both else [processes[int(rng.integers(2))]]:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in processes]
    return where, [process.returncode for process in processes], said


@pytest.mark.timeout(3600)
def test_stopped_anywhere_it_has_saved_what_it_says(tmp_path):
    world = make_world(tmp_path)
    config = dataclasses.replace(
        run_config(world),
        micro_batch=1,
        eval_rows=(),
        packing=PackingConfig(rows=8, shapes=1, multiple=32),
        mesh=MeshConfig(data=2, fsdp=4),
        save=SaveConfig(every=5, keep=2, dtype="float32"),
    )
    run(config)
    undisturbed, n_runs = np.array(metrics(config.out)), 0
    rng = np.random.default_rng(SEED)
    disturbed = dataclasses.replace(config, out=str(world / "stopped0"))
    for number in range(STOPS):
        where, codes, said = stop(disturbed, world, rng)
        print(f"stop {number + 1}: run {n_runs}, {where}: {codes}")
        assert codes in ([75, 75], [0, 0]), (SEED, where, codes, said)
        newest = saved.saved(pathlib.Path(disturbed.out) / "checkpoints")[-1]
        saved.verify(newest)
        if codes == [75, 75]:
            (step,) = re.findall(r"stopped after step (\d+), saved", said[0])
            assert newest.step == int(step) == steps_written(disturbed.out), (SEED, where)
        else:  # it came to its end: the next stop needs a run of its own
            np.testing.assert_allclose(np.array(metrics(disturbed.out)), undisturbed, rtol=1e-6, atol=1e-9)
            n_runs += 1
            disturbed = dataclasses.replace(config, out=str(world / f"stopped{n_runs}"))
    run(disturbed)
    np.testing.assert_allclose(np.array(metrics(disturbed.out)), undisturbed, rtol=1e-6, atol=1e-9)
