"""Whole runs: stopped, damaged, moved to another mesh; and what a run refuses before its first step."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from train_run_cases import RUN_STEPS, SIZES, make_world, metrics, run_config, stopping

from s1jax.checkpoint import hf, saved
from s1jax.checkpoint.folder import read_config
from s1jax.config import BadInput
from s1jax.models.decoder import Decoder, named
from s1jax.parallel.mesh import MeshConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.run import SaveConfig, run
from s1jax.train.step import Recipe, initial_state


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world):
    return run_config(world)


def tensors(out):
    return {name: np.asarray(x) for name, x in named(hf.load(pathlib.Path(out) / "hf")).items()}


@pytest.fixture(scope="module")
def undisturbed(config):
    """Metrics and exported tensors of a run that nothing happened to."""
    assert run(config) == pathlib.Path(config.out) / "hf"
    return metrics(config.out), tensors(config.out)


def assert_same_run(out, undisturbed):
    assert metrics(out) == undisturbed[0]
    for name, x in tensors(out).items():
        np.testing.assert_array_equal(x, undisturbed[1][name], err_msg=name)


def test_a_run_learns_and_leaves_what_it_says(config, undisturbed):
    out = pathlib.Path(config.out)
    rows, _ = undisturbed
    assert len(rows) == RUN_STEPS and rows[0][3] == 0.0 and rows[-1][1] < rows[0][1] - 1
    assert [c.step for c in saved.saved(out / "checkpoints")] == [21, 24]
    validation = [json.loads(row) for row in (out / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in validation] == [7, 14, 21, 24]
    assert read_config(out / "hf") == SIZES and (out / "hf" / "tokenizer.json").is_file()
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["mfu"] is None  # a CPU's peak is not known
    assert json.loads((out / "run.json").read_text())["seed"] == 42


def test_a_finished_run_is_left_alone(config, undisturbed):
    before = (pathlib.Path(config.out) / "hf" / "model.safetensors").stat().st_mtime_ns
    records = []
    run(config, progress=records.append)
    assert records == [] and metrics(config.out) == undisturbed[0]
    assert (pathlib.Path(config.out) / "hf" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_over_other_rows_is_another_run(config, undisturbed, tmp_path):
    """Rows edited in place and held-out rows are refused; the same rows elsewhere are the same run."""
    rows = [json.loads(line) for line in pathlib.Path(config.data.rows).read_text().splitlines()]
    shutil.copytree(config.out, tmp_path / "run")
    moved = dataclasses.replace(
        config,
        out=str(tmp_path / "run"),
        data=dataclasses.replace(config.data, rows=str(tmp_path / "rows.jsonl")),
    )

    def write(edited) -> None:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edited))

    write(rows)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert run(moved) == tmp_path / "run" / "hf"
    last = {**rows[-1], "answer": str(int(rows[-1]["answer"]) ^ 1)}  # as many tokens
    write([*rows[:-1], last])
    with pytest.raises(BadInput, match=r"data.rows=.*rows.jsonl: the content has changed .*since the run in out="):
        run(moved)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


# ---- stopped by a signal, in this process


@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_and_the_same_command_goes_on(number, leaves, config, undisturbed, world, capfd):
    config = dataclasses.replace(
        config, out=str(world / f"stopped{number}"), save=SaveConfig(every=None, dtype="float32")
    )
    handler = signal.getsignal(number)
    with pytest.raises(leaves) as stop:
        run(config, progress=stopping(number, 5))
    if leaves is SystemExit:
        assert stop.value.code == 75
    assert signal.getsignal(number) == handler
    steps = len(metrics(config.out))
    assert 5 <= steps <= 8 and f"stopped after step {steps}, saved" in capfd.readouterr().err
    run(config)
    assert_same_run(config.out, undisturbed)


def test_a_damaged_newest_checkpoint_costs_only_steps(config, undisturbed, world, capfd):
    config = dataclasses.replace(config, out=str(world / "damaged"))
    with pytest.raises(SystemExit):
        run(config, progress=stopping(signal.SIGTERM, 18))
    newest = saved.saved(pathlib.Path(config.out) / "checkpoints")[-1]
    next((newest.folder / "arrays").rglob("manifest.ocdbt")).unlink()
    run(config)
    said = capfd.readouterr().err
    assert f"checkpoint {newest.step} is passed over" in said and "going on from the checkpoint of step 14" in said
    assert_same_run(config.out, undisturbed)


def test_another_mesh_goes_on_with_the_same_losses(config, undisturbed, world):
    out = str(world / "moved")
    with pytest.raises(SystemExit):
        run(dataclasses.replace(config, out=out), progress=stopping(signal.SIGTERM, 1))
    assert len(metrics(out)) <= RUN_STEPS - 20
    run(dataclasses.replace(config, out=out, mesh=MeshConfig(data=2, fsdp=2, context=1, tensor=2), micro_batch=1))
    ours, theirs = np.array(metrics(out)), np.array(undisturbed[0])
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(config, world):
    out = str(world / "infinite")
    wild = dataclasses.replace(
        config, out=out, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=9, clip=None)
    )
    with pytest.raises(FloatingPointError, match=r"step \d+: loss is .*; nothing of it is saved") as error:
        run(wild)
    assert "Rows of the step: rows" in str(error.value) and "there is no checkpoint yet" in str(error.value)
    assert saved.saved(pathlib.Path(out) / "checkpoints") == []


def test_the_best_by_validation_is_exported(config, world):
    out = world / "best"
    wild = OptimizerConfig(learning_rate=0.3, warmup_steps=1, final=1.0)
    save = SaveConfig(every=1, keep=1, export="best", dtype="float32")
    run(dataclasses.replace(config, out=str(out), optimizer=wild, steps=6, save=save, profile_steps=(5, 3)))
    assert list((out / "profile").rglob("*.xplane.pb"))
    losses = [json.loads(row)["loss"] for row in (out / "validation.jsonl").read_text().splitlines()]
    assert min(losses) < losses[-1], "the last step is the best, so the export shows nothing"
    by_loss = {checkpoint.loss: checkpoint for checkpoint in saved.saved(out / "checkpoints")}
    recipe = Recipe(wild, config.loss, 6, "float32", "none")
    shapes = jax.eval_shape(lambda: initial_state(Decoder(SIZES, jax.random.key(0)), recipe))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    kept = named(saved.restore(by_loss[min(losses)], abstract).model)
    for name, x in tensors(out).items():
        np.testing.assert_array_equal(x, kept[name], err_msg=name)
