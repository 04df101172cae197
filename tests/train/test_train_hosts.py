"""Several hosts, as processes of several CPU devices each over the loopback: a run that two and four of them share."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from host_cases import environments
from store_cases import abstract, assert_bits
from train_cases import RECIPE, TINY
from train_run_cases import make_world, metrics, run_config, start, steps_written, wait_until

from s1jax.checkpoint import saved, store
from s1jax.models.decoder import Decoder
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train.packing import PackingConfig
from s1jax.train.run import SaveConfig, run
from s1jax.train.step import initial_state, state_shardings

STEPS = 16
WORKER = pathlib.Path(__file__).parent.parent / "host_worker.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world):
    return dataclasses.replace(
        run_config(world),
        steps=STEPS,
        micro_batch=1,
        eval_rows=(),
        packing=PackingConfig(rows=8, shapes=1, multiple=32),
        mesh=MeshConfig(data=2, fsdp=4),
        save=SaveConfig(every=4, keep=2, dtype="float32"),
    )


def launch(config, world, count):
    return [start(config, world, environment) for environment in environments(count)]


def wait(processes):
    """Exit codes and what was said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.timeout(1800)
def test_one_run_on_four_two_and_four_hosts(config, world):
    run(config)
    config = dataclasses.replace(config, out=str(world / "hosts"))

    four = launch(config, world, 4)
    assert wait_until(four[0], lambda: steps_written(config.out) >= 2)
    four[3].send_signal(signal.SIGTERM)  # a scheduler takes one host away: all save and stop
    codes, said = wait(four)
    assert codes == [75] * 4, said
    assert "stopped after step" in said[0] and "step" not in said[1].replace("[Gloo]", "")
    stopped = steps_written(config.out)
    assert stopped < STEPS - 4

    two = launch(config, world, 2)
    assert wait_until(two[0], lambda: steps_written(config.out) >= stopped + 3)
    two[1].kill()
    codes, said = wait(two)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 75), said  # the other does not wait for ever
    assert steps_written(config.out) < STEPS

    codes, said = wait(launch(config, world, 4))
    assert codes == [0] * 4, said
    assert "going on from the checkpoint of step" in said[0]
    ours, theirs = np.array(metrics(config.out)), np.array(metrics(world / "undisturbed"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    newest = saved.saved(pathlib.Path(config.out) / "checkpoints")[-1]
    saved.verify(newest)
    assert newest.step == STEPS


def test_what_each_of_four_hosts_reads_writes_and_agrees_to(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    shapes = jax.eval_shape(lambda: initial_state(Decoder(TINY, jax.random.key(0)), RECIPE))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape) * 9).astype(x.dtype), shapes)
    state = jax.device_put(state, state_shardings(shapes, mesh, RECIPE))
    writer = store.Store(tmp_path / "one", keep=1)
    writer.save(7, state)
    writer.close()
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path)],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(4)
    ]
    codes, said = wait(processes)
    assert codes == [0] * 4, said
    reports = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(4)]

    different = "the processes are not at the same work: seed is 0 in process 0 and 1 in process 2; start all with"
    assert all(report["said"].startswith(different) for report in reports)

    # data=2 x fsdp=2 over four hosts: each holds one row of each micro-batch, and reads the examples of those alone
    assert sorted(tuple(report["own"]) for report in reports) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    for step in zip(*(report["read"] for report in reports), strict=True):
        everything = [name for read in step for name in read]
        assert len(everything) == len(set(everything)) == 8, "eight examples a step, each read by one host"

    # what four hosts restored from the file of one and wrote again, each its part
    (found,) = saved.saved(tmp_path / "several")
    saved.verify(found)  # each process hashed what it wrote
    assert found.step == 7
    assert_bits(saved.restore(found, abstract(state)), state)
    sizes = [
        sum(path.stat().st_size for path in (found.folder / "arrays" / "state" / f"ocdbt.process_{index}").rglob("*"))
        for index in range(4)
    ]
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    assert min(sizes) > 0.1 * whole and max(sizes) < 0.5 * whole, sizes
