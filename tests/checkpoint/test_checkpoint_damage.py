"""Damaged and unsupported checkpoints: a different line for each."""

import json
import pathlib

import jax
import numpy as np
import parity
import pytest
import safetensors.numpy

from s1jax.checkpoint import files, hf
from s1jax.config import BadInput
from s1jax.models.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig("qwen2", D=16, K=2, G=3, H=8, F=24, V=40, L=3, qkv_bias=True)


@pytest.fixture(scope="module")
def model():
    return jax.jit(Decoder, static_argnums=0, compiler_options=parity.FAST)(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(model, tmp_path) -> pathlib.Path:
    """A checkpoint in three files."""
    hf.save(model, tmp_path / "model", file_bytes=20_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 3
    return tmp_path / "model"


def edit(folder: pathlib.Path, name: str, change) -> None:
    """Change one tensor of a checkpoint, or drop it where `change` gives None."""
    path = folder / json.loads((folder / files.INDEX).read_text())["weight_map"][name]
    given = safetensors.numpy.load_file(path)
    changed = change(given.pop(name))
    safetensors.numpy.save_file({**given, **({} if changed is None else {name: changed})}, path)


def edit_index(folder: pathlib.Path, change) -> None:
    index = json.loads((folder / files.INDEX).read_text())
    change(index["weight_map"])
    (folder / files.INDEX).write_text(json.dumps(index))


def cut(folder: pathlib.Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder: pathlib.Path) -> None:
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"\x10\x00")


def only_pickle(folder: pathlib.Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def unknown(folder: pathlib.Path) -> None:
    safetensors.numpy.save_file({"model.layers.0.extra": np.ones(2)}, folder / "more.safetensors")
    edit_index(folder, lambda where: where.update({"model.layers.0.extra": "more.safetensors"}))


NORM, GATE = "model.norm.weight", "model.layers.2.mlp.gate_proj.weight"
DAMAGES = {
    "cut off": (cut, "model-00002-of-00003.safetensors is cut off or not a safetensors file"),
    "no header": (cut_header, "model-00001-of-00003.safetensors is cut off or not a safetensors file"),
    "type": (lambda f: edit(f, NORM, lambda x: x.astype(np.int8)), f"'{NORM}' in .* has type I8, supported are F32"),
    "shape": (lambda f: edit(f, GATE, lambda x: x[:-1]), rf"'{GATE}' in .* has shape \(23, 16\), .* \(24, 16\)"),
    "transposed": (lambda f: edit(f, GATE, lambda x: x.T.copy()), rf"'{GATE}' in .* has shape \(16, 24\)"),
    "missing in file": (lambda f: edit(f, NORM, lambda x: None), f"places '{NORM}' in .*, which lacks it"),
    "unknown": (unknown, "holds tensor 'model.layers.0.extra', which no qwen2 model has"),
    "outside": (
        lambda f: edit_index(f, lambda w: w.update({NORM: "../x"})),
        "points to '../x', outside",
    ),
    "absolute": (
        lambda f: edit_index(f, lambda w: w.update({NORM: "/etc/x"})),
        "points to '/etc/x', outside",
    ),
    "windows": (lambda f: edit_index(f, lambda w: w.update({NORM: "..\\x"})), "outside its folder"),
    "not a name": (lambda f: edit_index(f, lambda w: w.update({NORM: 3})), "points to 3, outside its folder"),
    "file gone": (lambda f: (f / "model-00003-of-00003.safetensors").unlink(), "names model-00003-of-00003.*not there"),
    "index": (lambda f: (f / files.INDEX).write_text("{}"), "is not an index with a weight_map"),
    "index text": (lambda f: (f / files.INDEX).write_text("{"), "is not an index with a weight_map"),
    "pickle": (only_pickle, "holds pytorch_model.bin, a pickle, which can run code"),
    "nothing": (lambda f: [p.unlink() for p in f.glob("model*")], "holds neither model.safetensors nor"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config text": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not an object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_says_so(folder, damage):
    do, words = DAMAGES[damage]
    do(folder)
    with pytest.raises(BadInput, match=words) as raised:
        hf.load(folder)
    assert "\n" not in str(raised.value)


def test_missing_tensors_are_named_and_counted(folder):
    gone = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)] + [NORM]
    for name in gone:
        edit(folder, name, lambda x: None)
        edit_index(folder, lambda where, name=name: where.pop(name))
    with pytest.raises(BadInput, match=f"lacks tensors '{gone[0]}', .* and 1 more, which its config.json asks for"):
        hf.load(folder)
