"""Training checkpoints: what is restored is what was saved, bit by bit, or is said to be damaged."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from store_cases import abstract, assert_bits
from train_cases import RECIPE, TINY

from s1jax.checkpoint import store
from s1jax.checkpoint.saved import FORMAT, HASHED_BYTES, Damaged, restore, resume, saved, superseded
from s1jax.checkpoint.store import Store
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


def newest(root, state, say):
    """The newest intact checkpoint and its state, whose shapes and placement are those of `state`."""
    found = resume(root, lambda checkpoint: abstract(state), say)
    assert found is not None
    return found


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
    found, state = newest(template, states[2], pytest.fail)
    assert found.step == 30
    assert_bits(state, states[2])
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
    "cut manifest": (lambda folder: cut(folder / "manifest.json") or cut(folder / "manifest.json"), "cannot be read"),
    "altered manifest": (alter_manifest, "manifest.json is not what was written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, root, states):
    act, reason = DAMAGES[damage]
    act(root / "00000030")
    lines = []
    found, state = newest(root, states[1], lines.append)
    assert found.step == 20
    assert_bits(state, states[1])
    assert len(lines) == 1 and "\n" not in lines[0]
    assert re.match(f"checkpoint 30 is passed over: .*{reason}.*; it is now 00000030.damaged", lines[0])
    assert [checkpoint.step for checkpoint in saved(root)] == [10, 20]
    assert sorted(path.name for path in root.iterdir()) == ["00000010", "00000020", "00000030.damaged"]


def test_a_save_that_was_never_finished_goes(root, states):
    (root / "00000030" / "manifest.json").unlink()
    for name in ("00000007.damaged", "00000008.damaged"):  # earlier versions left one for every kill in a save
        (root / name).mkdir()
    lines = []
    found, state = newest(root, states[1], lines.append)
    assert found.step == 20 and lines == ["the save of step 30 was not finished; it is removed"]
    assert_bits(state, states[1])
    assert sorted(path.name for path in root.iterdir()) == ["00000008.damaged", "00000010", "00000020"]


def test_of_several_damaged_ones_the_newest_stays_for_a_look(root, states):
    for step in (20, 30):
        flip(largest(root / f"{step:08d}"))
    (root / "00000007.damaged").mkdir()
    lines = []
    found, state = newest(root, states[0], lines.append)
    assert found.step == 10 and len(lines) == 2 and lines[1].endswith("it is removed")
    assert_bits(state, states[0])
    assert sorted(path.name for path in root.iterdir()) == ["00000010", "00000030.damaged"]


def test_every_flipped_bit_of_the_data_is_found(root, states):
    """Bits anywhere in the files of arrays: in values the fingerprint tells, in what leads to them tensorstore."""
    rng = np.random.default_rng(0)
    checkpoint = saved(root)[-1]
    path = largest(checkpoint.folder)
    whole = path.read_bytes()
    passed = 0
    for position in rng.integers(0, len(whole), 12):
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            passed += 1
            assert_bits(restore(checkpoint, abstract(states[2])), states[2])  # in a byte that nothing reads
            passed -= 1
        except Damaged:
            passed -= 1
    assert passed == 0


def test_a_restart_reads_a_large_file_once(tmp_path):
    """In bytes that the process read, as the kernel counts them; twice would be twice the checkpoint."""
    sharding = NamedSharding(make_mesh(MeshConfig(fsdp=8)), P("fsdp"))
    state = {"x": jax.device_put(np.random.default_rng(0).random(2**25, np.float32), sharding)}
    writer = Store(tmp_path, keep=1)
    writer.save(1, state)
    writer.close()
    path = largest(tmp_path / "00000001")
    assert path.stat().st_size > HASHED_BYTES

    def read():
        counts = dict(line.split(": ") for line in pathlib.Path("/proc/self/io").read_text().splitlines())
        return int(counts["rchar"])

    before = read()
    newest(tmp_path, state, pytest.fail)
    assert 0.9 * 2**27 < read() - before < 1.2 * 2**27
    flip(path)
    with pytest.raises(BadInput, match=r"every checkpoint .* \(step 1: array x is not what was written"):
        newest(tmp_path, state, pytest.fail)


def test_all_damaged_is_an_error_and_none_is_a_start(root, states, tmp_path):
    for folder in root.iterdir():
        flip(largest(folder))
    lines = []
    for _ in range(2):  # nothing is moved: the second start does not take the folder for an empty one
        with pytest.raises(BadInput, match=r"every checkpoint in .* is damaged \(step 30: .*\); remove the folder to"):
            newest(root, states[2], lines.append)
    assert lines == [] and [checkpoint.step for checkpoint in saved(root)] == [10, 20, 30]
    assert resume(tmp_path / "nothing", abstract, lines.append) is None


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
    assert manifest["format"] == FORMAT and manifest["step"] == 3


def test_a_failed_save_is_raised(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("disk is gone")

    writer = Store(tmp_path, keep=1)
    monkeypatch.setattr(store, "hash_file", fail)
    writer.save(1, {"x": jnp.ones(3)})
    with pytest.raises(OSError, match="disk is gone"):
        writer.close()
    assert saved(tmp_path) == []
    with pytest.raises(BadInput, match="save.keep=0"):
        Store(tmp_path, keep=0)


def test_a_save_that_is_interrupted_before_it_begins_is_not_waited_for(tmp_path, monkeypatch):
    """A second Ctrl-C does not wait; without an end of the save the store would, for ever."""

    def interrupted(state):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "fingerprints", interrupted)
    writer = Store(tmp_path, keep=1)
    with pytest.raises(KeyboardInterrupt):
        writer.save(1, {"x": jnp.ones(3)})
    assert writer._under_way is not None and writer._under_way.done.done()
    writer.__exit__(KeyboardInterrupt)
    assert saved(tmp_path) == []
