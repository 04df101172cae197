"""Hugging Face to Orbax and back: bit by bit, by the contract of files, killed, damaged."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import parity
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from s1jax.checkpoint import convert, files, hf, orbax, source
from s1jax.checkpoint.convert import ConvertRun
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, named, unstack
from s1jax.parallel import mesh

CONFIG = DecoderConfig("qwen3", D=24, K=2, G=2, H=8, F=40, V=48, L=2, tied=True, qk_norm=True)


@pytest.fixture(scope="module")
def model():
    return jax.jit(Decoder, static_argnums=0, compiler_options=parity.FAST)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def original(model, qwen_files, tmp_path_factory) -> pathlib.Path:
    """A tied checkpoint in several files whose tensors have three types, with its head written twice."""
    folder = tmp_path_factory.mktemp("original") / "model"
    hf.save(model, folder, tokenizer_source=qwen_files, file_bytes=20_000)
    for path in folder.glob("*.safetensors"):
        given = safetensors.numpy.load_file(path)
        types = {name: ml_dtypes.bfloat16 if "mlp" in name else np.float32 for name in given}
        types |= {name: np.float16 for name in given if "k_norm" in name}
        safetensors.numpy.save_file({name: value.astype(types[name]) for name, value in given.items()}, path)
    embed = tensors(folder)["model.embed_tokens.weight"]
    safetensors.numpy.save_file({"lm_head.weight": embed}, folder / "head.safetensors")
    index = json.loads((folder / files.INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (folder / files.INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory) -> pathlib.Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    return convert.run(ConvertRun(str(original), str(target)))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(path).items()}


def fingerprint(folder: pathlib.Path) -> dict[str, tuple]:
    """Name -> type, shape and hash of the bytes of every tensor."""
    return {k: (v.dtype, v.shape, hashlib.sha256(v.tobytes()).hexdigest()) for k, v in tensors(folder).items()}


def test_there_and_back_is_bit_exact(original, converted, tmp_path):
    back = convert.run(ConvertRun(str(converted), str(tmp_path / "back"), to="hf", file_bytes=9_000))
    before = fingerprint(original)
    assert {dtype for dtype, _, _ in before.values()} == {
        np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)
    }
    assert fingerprint(back) == before
    assert json.loads((back / "config.json").read_text()) == json.loads((original / "config.json").read_text())
    for path in original.iterdir():
        if not path.name.startswith(("model", "head", "config")):
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(back.glob("*.safetensors"))) > 2
    hf.load(back)


def test_config_json_is_carried_word_for_word(model, tmp_path):
    """Also one that names no type, and with fields that nothing here knows."""
    hf.save(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != "torch_dtype"}
    path.write_text(json.dumps({**data, "note": {"by": "trainer"}}))
    middle = convert.run(ConvertRun(str(tmp_path / "model"), str(tmp_path / "middle")))
    back = convert.run(ConvertRun(str(middle), str(tmp_path / "back"), to="hf"))
    assert json.loads((back / "config.json").read_text()) == {**data, "note": {"by": "trainer"}}


def test_safetensors_to_safetensors_with_another_type(original, tmp_path):
    target = convert.run(ConvertRun(str(original), str(tmp_path / "narrow"), to="hf", dtype="bfloat16"))
    for name, value in tensors(target).items():
        assert value.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(value, tensors(original)[name].astype(ml_dtypes.bfloat16))
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_it_is_an_orbax_checkpoint_of_an_unstacked_model(converted):
    flat = named(hf.load(converted, stacked=False))
    stored = ocp.load(str(converted / orbax.ARRAYS))
    assert set(stored) == set(flat) and "blocks.1.q" in stored
    for name, value in flat.items():
        assert stored[name].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(stored[name]), value)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("limit", [0, 2**30], ids=["on devices", "on the host"])
def test_loading_either_kind_onto_a_mesh(original, converted, stacked, limit, monkeypatch):
    monkeypatch.setattr(source, "HOST_STACK", limit)
    made = mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    expected = named(hf.load(original, stacked=stacked))
    for folder in (original, converted):
        for name, value in named(hf.load(folder, mesh=made, stacked=stacked)).items():
            np.testing.assert_array_equal(value, expected[name])
            assert value.dtype == expected[name].dtype
            assert value.sharding.mesh.devices.size == 8
    narrow = named(hf.load(converted, mesh=made, stacked=stacked, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(narrow["norm"], expected["norm"].astype(jnp.bfloat16))


def test_what_the_run_leaves(original, converted, capsys):
    """The receipt, no neighbour; the same command again does nothing, another one is refused."""
    assert [path.name for path in converted.parent.iterdir()] == ["model"]
    receipt = json.loads((converted / "run.json").read_text())
    assert receipt["kind"] == "ConvertRun" and receipt["identity"]["to"] == "orbax"
    assert f"target: {converted}" in (converted / "config.yaml").read_text()
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*.json")}
    convert.run(ConvertRun(str(original), str(converted)))
    assert "is complete" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path.name != "run.json")
    with pytest.raises(BadInput, match="belongs to another run: dtype was None, is 'bfloat16'"):
        convert.run(ConvertRun(str(original), str(converted), dtype="bfloat16"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "s3://bucket/model"}, "s3://bucket/model: paths are local or gs://, s3:// is neither; mount"),
        ({"file_bytes": 0}, "file_bytes=0; it must be at least 1"),
        ({"source": "nobody/nothing"}, "neither a folder nor a hub id"),
    ],
)
def test_refusals(original, tmp_path, change, words):
    with pytest.raises(BadInput, match=words):
        convert.run(dataclasses.replace(ConvertRun(str(original), str(tmp_path / "x")), **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("small", [convert.SMALL_BYTES, 1000], ids=["small files", "large files"])
def test_a_target_is_complete_only_where_all_that_was_written_is_there(original, tmp_path, capsys, monkeypatch, small):
    """Files that went or changed, a source that changed; a source that is gone asks for nothing."""
    monkeypatch.setattr(convert, "SMALL_BYTES", small)
    source = tmp_path / "source"
    shutil.copytree(original, source)
    config = ConvertRun(source=str(source), target=str(tmp_path / "t"), to="hf", dtype="bfloat16")
    convert.run(config)
    weights = tmp_path / "t" / "model.safetensors"
    content, times = weights.read_bytes(), weights.stat()
    for damage, words in (
        (content[:-1] + bytes([content[-1] ^ 1]), "model.safetensors is not as it was written"),
        (content[:-1], "model.safetensors is not as it was written"),
        (None, "model.safetensors is gone"),
    ):
        weights.unlink() if damage is None else weights.write_bytes(damage)
        with pytest.raises(BadInput, match=f"/t holds this conversion, but {words}; remove the folder and convert"):
            convert.run(config)
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "t" / "config.json").unlink()
    with pytest.raises(BadInput, match="config.json is gone"):
        convert.run(config)
    shutil.rmtree(tmp_path / "t")
    convert.run(config)
    assert weights.read_bytes() == content
    edited = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**edited, "rope_theta": 7.0}))
    with pytest.raises(BadInput, match=f"source={source}: config.json has changed"):
        convert.run(config)
    shutil.rmtree(source)
    capsys.readouterr()
    assert convert.run(config) == tmp_path / "t" and "t is complete" in capsys.readouterr().err
    (tmp_path / "t" / "run.json").write_text("{")
    with pytest.raises(BadInput, match="run.json cannot be read .*; give another target"):
        convert.run(config)


def test_a_target_in_use_is_refused(original, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and is not empty"):
        convert.run(ConvertRun(str(original), str(tmp_path)))


def _manifest(folder, change):
    manifest = json.loads((folder / orbax.MANIFEST).read_text())
    change(manifest)
    (folder / orbax.MANIFEST).write_text(json.dumps(manifest))


def _cut(folder):
    paths = (folder / orbax.ARRAYS / orbax.STATE / "blocks.1.q").rglob("*")
    path = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-8])


def _flip(folder):
    (folder / orbax.ARRAYS / orbax.STATE / "norm" / "zarr.json").write_text(
        (folder / orbax.ARRAYS / orbax.STATE / "norm" / "zarr.json").read_text().replace("float32", "floaty2")
    )


NORM = {"shape": [3], "dtype": "float32", "bytes": 12}
DAMAGES = {
    "cut": (_cut, "tensor 'blocks.1.q' in .* is cut off"),
    "gone": (lambda f: shutil.rmtree(f / "orbax" / "state" / "norm"), "tensor 'norm' in .* is cut off: 0 of"),
    "missing": (lambda f: _manifest(f, lambda m: m["tensors"].pop("norm")), "lacks tensor 'norm'"),
    "unknown": (
        lambda f: _manifest(f, lambda m: m["tensors"].update(x=m["tensors"]["norm"])),
        "holds tensor 'x', which no",
    ),
    "shape": (
        lambda f: _manifest(f, lambda m: m["tensors"]["norm"].update(shape=[3])),
        r"'norm' .* has shape \(3,\), .* \(24,\)",
    ),
    "format": (lambda f: _manifest(f, lambda m: m.update(format="s1jax.model/9")), "its format is 's1jax.model/9'"),
    "text": (lambda f: (f / orbax.MANIFEST).write_text("{"), "is not a model's manifest"),
    "field": (lambda f: _manifest(f, lambda m: m["tensors"]["norm"].pop("dtype")), "is not a model's manifest"),
    "metadata": (_flip, "tensor 'norm' in .* cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_orbax_checkpoint_is_one_line(converted, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    do, words = DAMAGES[damage]
    do(folder)
    with pytest.raises(BadInput, match=words) as raised:
        hf.load(folder)
    assert "\n" not in str(raised.value)


CHILD = """
import sys, time
from s1jax.checkpoint import convert, layout
turn, slow = layout.to_model, float(sys.argv[4])
def slowly(*arguments):
    print("tensor", flush=True)
    time.sleep(slow)
    return turn(*arguments)
layout.to_model = slowly
convert.run(convert.ConvertRun(sys.argv[1], sys.argv[2], to=sys.argv[3]))
"""


@pytest.mark.parametrize("to", ["orbax", "hf"])
def test_a_killed_conversion_leaves_nothing_that_looks_complete(original, tmp_path, to, monkeypatch):
    """SIGKILL after some tensors; then the same command, to the end, with the right bytes."""
    monkeypatch.setattr(orbax, "BATCH_BYTES", 1)
    target = tmp_path / "model"
    command = [sys.executable, "-c", CHILD, str(original), str(target), to, "0.02"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": ""})
    assert child.stdout is not None
    for _ in range(9):
        assert child.stdout.readline() == "tensor\n"
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not target.exists() and (tmp_path / ".model.partial").exists()
    convert.run(ConvertRun(str(original), str(target), to=to))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    expected = named(unstack(hf.load(original, dtype=jnp.float32)))
    for name, value in named(hf.load(target, stacked=False, dtype=jnp.float32)).items():
        np.testing.assert_array_equal(value, expected[name])


def test_reading_ahead_keeps_order_and_bounds_memory(monkeypatch):
    """Never more than the limit at once, unless one alone is larger; results in order; an error comes through."""
    monkeypatch.setattr(convert, "AHEAD_BYTES", 100)
    sizes = [60, 30, 30, 80, 10, 10, 200, 5]
    started = []

    def task(number):
        started.append(number)
        return np.full(1, number)

    seen = []
    for value in convert.ahead([lambda n=n: task(n) for n in range(len(sizes))], sizes):
        seen.append(int(value[0]))
        time.sleep(0.01)
        running = [n for n in started if n >= seen[-1]]
        assert len(running) == 1 or sum(sizes[n] for n in running) <= 100
    assert seen == list(range(len(sizes)))
    assert list(convert.ahead([], [])) == []
    with pytest.raises(ZeroDivisionError):
        list(convert.ahead([lambda: np.zeros(1), lambda: 1 / 0], [1, 1]))
