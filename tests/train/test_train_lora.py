"""Adapters trained by the verb: one loss on any mesh, stopped and gone on, merged at the end or by `convert`."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import yaml
from train_run_cases import SIZES, make_world, metrics, run_config, stopping

from s1jax.checkpoint import convert, hf
from s1jax.checkpoint import lora as files
from s1jax.checkpoint.convert import ConvertRun
from s1jax.config import BadInput, to_dict
from s1jax.models import lora
from s1jax.models.decoder import Decoder, named
from s1jax.parallel.mesh import MeshConfig
from s1jax.train.run import RandomModel, SaveConfig, run

LORA = lora.LoraConfig(rank=4, alpha=8.0, targets=("q", "v", "o", "down"))


def tensors(folder):
    return {name: np.asarray(value) for name, value in named(hf.load(folder)).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The model that a run begins from, and a world of data."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    model = jax.jit(Decoder, static_argnums=0)(SIZES, jax.random.key(3))
    hf.save(model, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def config(base):
    save = SaveConfig(every=4, keep=2, dtype="float32")
    given = {"model": str(base), "lora": LORA, "steps": 12, "save": save, "out": str(base.parent / "adapted")}
    return dataclasses.replace(run_config(base.parent), **given)


@pytest.fixture(scope="module")
def trained(config):
    """The folder of an undisturbed run."""
    run(config)
    return pathlib.Path(config.out)


def test_the_loss_falls_and_only_adapters_are_saved(trained, config):
    losses = [row[1] for row in metrics(trained)]
    assert losses[-1] < losses[0] - 0.1
    held = sum(path.stat().st_size for path in (trained / "checkpoints" / "00000012").rglob("*") if path.is_file())
    assert held < sum(x.nbytes for x in tensors(config.model).values())


def test_the_export_is_the_base_with_the_adapters_merged(trained, config):
    adapters, found = files.load(trained / "adapter", SIZES)
    assert found == LORA
    assert json.loads((trained / "adapter" / files.CONFIG).read_text())["base_model_name_or_path"] == config.model
    merged, before, after = (
        lora.merge(hf.load(config.model), adapters, LORA),
        tensors(config.model),
        tensors(trained / "hf"),
    )
    for name, value in named(merged).items():
        np.testing.assert_allclose(after[name], value, atol=1e-7, err_msg=name)
        is_adapted = name.removeprefix("blocks.") in LORA.targets
        assert (np.abs(after[name] - before[name]).max() > 1e-4) == is_adapted, name


def test_another_mesh_and_accumulation_give_the_same_losses(trained, config, base):
    mesh = MeshConfig(data=2, fsdp=1, context=2, tensor=2)
    other = dataclasses.replace(config, out=str(base.parent / "other"), mesh=mesh, micro_batch=1)
    run(other)
    np.testing.assert_allclose(np.array(metrics(other.out)), np.array(metrics(trained)), rtol=1e-5, atol=1e-9)


def test_stopped_and_gone_on_is_the_same_run(trained, config, base):
    config = dataclasses.replace(config, out=str(base.parent / "stopped"))
    with pytest.raises(SystemExit):
        run(config, progress=stopping(signal.SIGTERM, 6))
    run(config)
    assert metrics(config.out) == metrics(trained)
    for name, value in tensors(trained / "hf").items():
        np.testing.assert_array_equal(tensors(pathlib.Path(config.out) / "hf")[name], value)


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_checkpoint_is_merged_on_conversion(trained, tmp_path, to):
    target = convert.run(ConvertRun(str(trained / "checkpoints" / "00000012"), str(tmp_path / "out"), to=to))
    mine, expected = tensors(target), tensors(trained / "hf")
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(mine[name], value, atol=1e-7, err_msg=name)


def test_a_random_base_cannot_be_merged_again(trained, config, tmp_path):
    checkpoint = shutil.copytree(trained / "checkpoints" / "00000012", tmp_path / "run" / "checkpoints" / "00000012")
    fields = to_dict(dataclasses.replace(config, model=RandomModel(SIZES)))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(BadInput, match="had random weights, which are nowhere; use the run's hf/"):
        convert.run(ConvertRun(str(checkpoint), str(tmp_path / "out")))


def test_adapters_that_make_no_sense_are_refused(config):
    with pytest.raises(BadInput, match="lora.rank=0; it must be at least 1"):
        run(dataclasses.replace(config, lora=lora.LoraConfig(rank=0), out=config.out + "x"))
