"""Training checkpoints: what is restored is what was saved, bit by bit, or is said to be damaged."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from train_cases import RECIPE, TINY

from s1jax.checkpoint import store
from s1jax.checkpoint.store import Store, newest_intact, restore, saved, superseded
from s1jax.config import BadInput
from s1jax.models.decoder import Decoder
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.step import initial_state, state_shardings


@pytest.fixture(scope="module")
def states():
    """Three states of a run with bfloat16 moments, on a mesh of eight."""
    recipe = dataclasses.replace(RECIPE, optimizer=OptimizerConfig(mu="bfloat16", nu="bfloat16"))
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    shapes = jax.eval_shape(lambda: initial_state(Decoder(TINY, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)

    def fill(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape) * 9).astype(x.dtype), shapes)

    return [jax.device_put(fill(seed), shardings) for seed in range(3)]


def abstract(state, shardings=None):
    shardings = jax.tree.map(lambda x: x.sharding, state) if shardings is None else shardings
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def assert_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def template(states, tmp_path_factory):
    """A folder with checkpoints of steps 10, 20 and 30."""
    root = tmp_path_factory.mktemp("store") / "checkpoints"
    writer = Store(root, keep=5)
    for step, state in zip((10, 20, 30), states, strict=True):
        writer.save(step, state)
    writer.close()
    return root


@pytest.fixture
def root(template, tmp_path):
    return shutil.copytree(template, tmp_path / "checkpoints")


def test_restored_on_any_mesh_bit_by_bit(template, states):
    found = newest_intact(template, lambda line: pytest.fail(line))
    assert found is not None and found.step == 30
    assert_bits(restore(found, abstract(states[2])), states[2])
    for config, devices in ((MeshConfig(data=2, fsdp=4), 8), (MeshConfig(fsdp=1), 1)):
        mesh = make_mesh(config, jax.devices()[:devices])
        other = restore(found, abstract(states[2], state_shardings(states[2], mesh, RECIPE)))
        assert_bits(other, states[2])
        assert jax.tree.leaves(other.model)[0].sharding.mesh == mesh


def test_the_arrays_may_be_donated_at_once(tmp_path):
    """The step after a save writes into the memory of what is being saved."""
    sharding = NamedSharding(make_mesh(MeshConfig(fsdp=8)), P("fsdp"))
    value = jax.device_put(jnp.arange(2**20, dtype=jnp.float32), sharding)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    writer = Store(tmp_path, keep=2)
    writer.save(1, {"x": value})
    overwritten = overwrite(value)
    writer.close()
    like = {"x": jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=sharding)}
    assert float(overwritten[0]) == -1
    np.testing.assert_array_equal(restore(saved(tmp_path)[0], like)["x"], np.arange(2**20))


def largest(folder):
    return max(
        (path for path in (folder / "arrays").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 30', '"step": 29'))


DAMAGES = {
    "missing file": (lambda folder: largest(folder).unlink(), "is missing"),
    "cut file": (lambda folder: cut(largest(folder)), r"bytes, \d+ were written"),
    "flipped bit": (lambda folder: flip(largest(folder)), "is not what was written"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "cut manifest": (lambda folder: cut(folder / "manifest.json") or cut(folder / "manifest.json"), "cannot be read"),
    "altered manifest": (alter_manifest, "manifest.json is not what was written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, root, states):
    act, reason = DAMAGES[damage]
    act(root / "00000030")
    lines = []
    found = newest_intact(root, lines.append)
    assert found is not None and found.step == 20
    assert_bits(restore(found, abstract(states[1])), states[1])
    assert len(lines) == 1 and "\n" not in lines[0]
    assert re.match(f"checkpoint 30 is passed over: .*{reason}.*; it is now 00000030.damaged", lines[0])
    assert [checkpoint.step for checkpoint in saved(root)] == [10, 20]


def test_all_damaged_is_an_error_and_none_is_a_start(root, tmp_path):
    for folder in root.iterdir():
        flip(largest(folder))
    lines = []
    with pytest.raises(BadInput, match="every checkpoint in .* is damaged; remove the folder to begin anew"):
        newest_intact(root, lines.append)
    assert len(lines) == 3
    assert newest_intact(tmp_path / "nothing", lines.append) is None


def test_the_newest_and_the_best_stay(tmp_path):
    writer = Store(tmp_path, keep=2)
    for step, loss in ((1, 0.9), (2, 0.5), (3, 0.7), (4, None), (5, 0.6)):
        writer.save(step, {"x": jnp.full(3, step)}, loss)
    writer.close()
    assert [(c.step, c.loss) for c in saved(tmp_path)] == [(2, 0.5), (4, None), (5, 0.6)]
    assert writer.newest() == saved(tmp_path)[-1]
    equal = [dataclasses.replace(c, loss=0.5) for c in saved(tmp_path)]
    assert [c.step for c in superseded(equal, 1)] == [4]


def test_an_unfinished_save_is_written_anew(tmp_path):
    (tmp_path / "00000003" / "arrays").mkdir(parents=True)
    (tmp_path / "00000003" / "arrays" / "left").write_text("half")
    writer = Store(tmp_path, keep=1)
    writer.save(3, {"x": jnp.ones(3)})
    writer.close()
    assert not any(path.name == "left" for path in tmp_path.rglob("*"))
    manifest = json.loads((tmp_path / "00000003" / "manifest.json").read_text())
    assert manifest["format"] == store.FORMAT and manifest["step"] == 3


def test_a_failed_save_is_raised(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("disk is gone")

    writer = Store(tmp_path, keep=1)
    monkeypatch.setattr(store, "_hash", fail)
    writer.save(1, {"x": jnp.ones(3)})
    with pytest.raises(OSError, match="disk is gone"):
        writer.close()
    assert saved(tmp_path) == []
    with pytest.raises(BadInput, match="save.keep=0"):
        Store(tmp_path, keep=0)
