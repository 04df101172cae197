"""Training checkpoints as a source of `convert`: exported by layer, and refused where they do not fit."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import yaml

from s1jax.checkpoint import convert, hf, store
from s1jax.checkpoint.convert import ConvertRun
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, named

CONFIG = DecoderConfig("qwen3", D=24, K=2, G=2, H=8, F=40, V=48, L=2, tied=True, qk_norm=True)


@pytest.fixture(scope="module")
def original(qwen_files, tmp_path_factory) -> pathlib.Path:
    """The checkpoint that a run began from, in bfloat16."""
    model = jax.jit(Decoder, static_argnums=0, compiler_options=parity.FAST)(CONFIG, jax.random.key(0))
    folder = tmp_path_factory.mktemp("original") / "model"
    hf.save(model, folder, dtype=jnp.bfloat16, tokenizer_source=qwen_files)
    return folder


@pytest.fixture
def trained(original, tmp_path) -> pathlib.Path:
    """A checkpoint inside a run's folder, its optimizer's state beside the model."""
    model = hf.load(original, dtype=jnp.float32)
    kept = store.Store(tmp_path / "run" / "checkpoints", keep=1)
    kept.save(7, {"step": jnp.int32(7), "model": model, "optimizer": jax.tree.map(jnp.zeros_like, model)})
    kept.close()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model": str(original), "tokenizer": None}))
    return tmp_path / "run" / "checkpoints" / "00000007"


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_training_checkpoint_is_exported_by_layer(trained, original, tmp_path, to):
    target = convert.run(ConvertRun(str(trained), str(tmp_path / "out"), to=to))
    expected = named(hf.load(original, dtype=jnp.float32))
    for name, value in named(hf.load(target)).items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, expected[name])
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"
    assert (target / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()


def test_a_training_checkpoint_of_random_weights(trained, tmp_path):
    (trained.parent.parent / "config.yaml").write_text(yaml.safe_dump({"model": {"init": dataclasses.asdict(CONFIG)}}))
    target = convert.run(ConvertRun(str(trained), str(tmp_path / "out"), to="hf", dtype="bfloat16"))
    assert hf.read_config(target) == CONFIG


def _run_yaml(folder, text):
    (folder.parent.parent / "config.yaml").write_text(text)


def _other(folder, **change):
    _run_yaml(folder, yaml.safe_dump({"model": {"init": dataclasses.asdict(dataclasses.replace(CONFIG, **change))}}))


TRAINING_DAMAGES = {
    "bytes": (lambda f: next((f / "arrays").rglob("_METADATA")).write_text("x"), "is damaged: arrays/state/_METADATA"),
    "config": (lambda f: (f.parent.parent / "config.yaml").unlink(), "config.yaml is missing; give one inside"),
    "model": (lambda f: _run_yaml(f, "seed: 1"), "config.yaml names no model"),
    "shape": (lambda f: _other(f, F=41), "has shape .* config.yaml's model asks for"),
    "family": (lambda f: _other(f, family="qwen2", qk_norm=False, qkv_bias=True), "holds no parameter blocks.q_bias"),
}


@pytest.mark.parametrize("damage", TRAINING_DAMAGES)
def test_a_training_checkpoint_that_does_not_fit_is_one_line(trained, tmp_path, damage):
    do, words = TRAINING_DAMAGES[damage]
    do(trained)
    with pytest.raises(BadInput, match=words) as raised:
        convert.run(ConvertRun(str(trained), str(tmp_path / "out")))
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()
