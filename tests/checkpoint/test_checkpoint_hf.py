"""Hugging Face folders in and out: against transformers and safetensors, on meshes, and damaged in every way."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import parity
import pytest
import safetensors.numpy
import transformers

from s1jax.checkpoint import files, hf, layout
from s1jax.checkpoint.entry import Entry
from s1jax.config import BadInput
from s1jax.models import FAMILIES
from s1jax.models.decoder import Decoder, DecoderConfig, named, unstack
from s1jax.parallel import mesh
from s1jax.text.tokens import Tokenizer

SMALL = {
    "qwen2": DecoderConfig("qwen2", D=16, K=2, G=3, H=8, F=24, V=40, L=3, qkv_bias=True),
    "qwen3": DecoderConfig("qwen3", D=24, K=2, G=2, H=8, F=40, V=48, L=2, tied=True, qk_norm=True),
    "llama": DecoderConfig("llama", D=32, K=2, G=2, H=8, F=40, V=48, L=2),
}


def new(config: DecoderConfig) -> Decoder:
    return jax.jit(Decoder, static_argnums=0, compiler_options=parity.FAST)(config, jax.random.key(0))


@pytest.fixture(scope="module")
def models():
    return {name: new(config) for name, config in SMALL.items()}


@pytest.fixture
def folder(models, tmp_path) -> pathlib.Path:
    """A qwen2 checkpoint in several files."""
    hf.save(models["qwen2"], tmp_path / "model", file_bytes=12_000)
    return tmp_path / "model"


def assert_equal(one, other):
    for name, value in named(one).items():
        assert value.dtype == named(other)[name].dtype, name
        np.testing.assert_array_equal(value, named(other)[name], err_msg=name)


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder as the safetensors library reads it."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(path).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_transformers_reads(models, family, tmp_path):
    model = models[family]
    hf.save(model, tmp_path / "model", file_bytes=10_000)
    other, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert parity.error_by_row(model, other)["full"] < 1e-4
    # and what transformers saves is what we read
    other.save_pretrained(tmp_path / "theirs")
    assert_equal(hf.load(tmp_path / "theirs"), model)


def test_files_are_what_the_safetensors_library_writes(models, tmp_path, folder):
    """The same header, offsets and bytes; the index maps every tensor, and no file exceeds its size by a tensor."""
    index = json.loads((folder / files.INDEX).read_text())
    stored = tensors(folder)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    assert set(index["weight_map"]) == set(stored)
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    for name in names:
        part = safetensors.numpy.load_file(folder / name)
        assert sum(value.nbytes for value in part.values()) <= 12_000
        with safetensors.safe_open(folder / name, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
    hf.save(models["qwen2"], tmp_path / "one")
    assert not (tmp_path / "one" / files.INDEX).exists()
    assert {k: v.tobytes() for k, v in tensors(tmp_path / "one").items()} == {k: v.tobytes() for k, v in stored.items()}


@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (2, 1, 2, 2), (1, 8, 1, 1)])
@pytest.mark.parametrize("stacked", [True, False])
def test_loading_straight_into_shards(models, folder, sizes, stacked):
    made = mesh.make_mesh(mesh.MeshConfig(*sizes))
    loaded = hf.load(folder, mesh=made, stacked=stacked)
    assert_equal(loaded, models["qwen2"] if stacked else unstack(models["qwen2"]))
    q = named(loaded)["blocks.q" if stacked else "blocks.0.q"]
    expected = mesh.param_sharding("L" * stacked + "DKGH", q.shape, made)
    assert q.sharding.is_equivalent_to(expected, q.ndim)
    assert q.addressable_shards[0].data.size == q.size // (sizes[1] * sizes[2] * sizes[3])


def test_a_sharded_or_unstacked_model_saves_the_same_bytes(models, folder, tmp_path):
    made = mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    for number, model in enumerate((hf.load(folder, mesh=made), hf.load(folder, mesh=made, stacked=False))):
        hf.save(model, tmp_path / str(number))
        for name, value in tensors(tmp_path / str(number)).items():
            np.testing.assert_array_equal(value, tensors(folder)[name])


def test_each_device_reads_its_own_part_only(folder, monkeypatch):
    """Eight devices, cut eight ways: no read is larger than an eighth of a matrix."""
    sizes = []
    blocks = files.Stored.blocks

    def watched(self, slices=None):
        sizes.append((self.name, np.prod([part.stop - part.start for part in slices])))
        return blocks(self, slices)

    monkeypatch.setattr(files.Stored, "blocks", watched)
    hf.load(folder, mesh=mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=2, tensor=2)))
    config = SMALL["qwen2"]
    assert max(size for name, size in sizes if "gate_proj" in name) == config.D * config.F // 8
    assert sum(size for name, size in sizes if "gate_proj" in name) == config.L * config.D * config.F


def test_the_type_is_chosen(models, folder, tmp_path):
    narrow = hf.load(folder, dtype=jnp.bfloat16)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), models["qwen2"])
    assert_equal(narrow, expected)
    assert_equal(hf.load(folder, dtype=jnp.bfloat16, mesh=mesh.make_mesh(mesh.MeshConfig())), expected)
    hf.save(models["qwen2"], tmp_path / "narrow", dtype=jnp.bfloat16)
    assert {value.dtype for value in tensors(tmp_path / "narrow").values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_equal(hf.load(tmp_path / "narrow"), expected)
    assert_equal(hf.load(tmp_path / "narrow", dtype=jnp.float32), jax.tree.map(lambda x: x.astype(float), expected))


def test_layers_of_different_types_are_widened_when_stacked(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    path = folder / json.loads((folder / files.INDEX).read_text())["weight_map"][name]
    given = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({**given, name: given[name].astype(ml_dtypes.bfloat16)}, path)
    up = named(hf.load(folder))["blocks.up"]
    assert up.dtype == jnp.float32
    flat = named(hf.load(folder, stacked=False))
    assert (flat["blocks.0.up"].dtype, flat["blocks.1.up"].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(up[1], flat["blocks.1.up"].astype(jnp.float32))


def test_what_lies_beside_the_tensors_comes_along(config_files, qwen_files, tmp_path):
    real = json.loads((config_files / "qwen2.5-0.5b-instruct.json").read_text())
    small = {**real, "num_hidden_layers": 1, "hidden_size": 56, "intermediate_size": 8, "vocab_size": 64}
    source = tmp_path / "source"
    shutil.copytree(qwen_files, source)
    (source / "config.json").write_text(json.dumps(small))
    model = new(hf.read_config(source))
    hf.save(model, tmp_path / "out", dtype=jnp.bfloat16, tokenizer_source=source)
    for path in source.iterdir():
        if path.name != "config.json":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == small
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.chat_template and tokenizer.eos_ids == {151645, 151643}
    # a source of another architecture gives its special ids only, and a tokenizer in memory writes itself
    tokenizer = Tokenizer.load(source)
    hf.save(new(SMALL["qwen2"]), tmp_path / "other", tokenizer_source=tokenizer, config_extra={"note": 1})
    hf.save(new(SMALL["qwen2"]), tmp_path / "named", config_extra={"dtype": "mine"})
    named_so = json.loads((tmp_path / "named" / "config.json").read_text())
    assert named_so["torch_dtype"] == "mine", "extra fields are last"
    written = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (written["eos_token_id"], written["note"], written["hidden_size"]) == (151645, 1, 16)
    assert (tmp_path / "other" / "tokenizer.json").is_file()


def test_a_block_stays_until_the_one_after_the_next_is_made():
    """One is being written while the next is turned."""
    config = dataclasses.replace(SMALL["qwen2"], F=3 * layout.BLOCK - 5)
    entry = next(entry for entry in layout.entries(config) if entry.path == "blocks.gate")
    value = np.random.default_rng(0).standard_normal(entry.shape).astype(np.float32)
    made = layout.to_file(entry, value, np.dtype(np.float32))
    first = next(made)
    for start, block in zip(range(layout.BLOCK, config.F, layout.BLOCK), made, strict=True):
        np.testing.assert_array_equal(first, value.T[start - layout.BLOCK : start])
        np.testing.assert_array_equal(block, value.T[start : start + layout.BLOCK])
        first = block


def test_a_tied_checkpoint_may_hold_its_head_twice(models, tmp_path):
    """Qwen3-0.6B is published so. A head that differs is an error."""
    hf.save(models["qwen3"], tmp_path / "model")
    path = tmp_path / "model" / files.SINGLE
    given = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({**given, "lm_head.weight": given["model.embed_tokens.weight"]}, path)
    assert_equal(hf.load(tmp_path / "model"), models["qwen3"])
    for wrong in (given["model.embed_tokens.weight"] + 1, given["model.embed_tokens.weight"][:-1]):
        safetensors.numpy.save_file({**given, "lm_head.weight": wrong}, path)
        with pytest.raises(BadInput, match="tied by config.json, but 'lm_head.weight' differs"):
            hf.load(tmp_path / "model")


def test_an_indivisible_mesh_is_refused(folder):
    with pytest.raises(BadInput, match=r"\(4 ways\) do not divide the 2 of dimension K"):
        hf.load(folder, mesh=mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=1, tensor=4)))


def test_neither_a_folder_nor_a_hub_id(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file; give the folder"):
        hf.load(tmp_path / "file")
    with pytest.raises(BadInput, match="neither a folder nor a hub id that can be read"):
        hf.load("nobody/nothing-of-the-kind")


def test_a_folder_in_use_is_left_alone(models, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and is not empty"):
        hf.save(models["llama"], target)
    with pytest.raises(BadInput, match="is not a checkpoint"):
        hf.save(models["llama"], target, replace=True)
    assert (target / "notes.txt").read_text() == "mine"
    hf.save(models["llama"], tmp_path / "new")
    hf.save(models["qwen3"], tmp_path / "new", replace=True)
    assert hf.read_config(tmp_path / "new").family == "qwen3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new"]


def test_what_a_killed_save_left_is_cleared(models, tmp_path):
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / files.SINGLE).write_bytes(b"half")
    hf.save(models["llama"], tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_leaves_no_checkpoint(models, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "to_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.save(models["llama"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 300), (256, 256), (513, 260)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_blocks_there_and_back(rows, columns, dtype):
    """A turned and an unturned matrix, in blocks that do not divide it, out of order, and with another type."""
    for letters in ("DF", "FD"):
        entry = Entry("blocks.up", 0, "up", ("F", "D"), letters, {"F": rows, "D": columns})
        matrix = (np.arange(rows * columns) % 2039).reshape(rows, columns).astype(dtype)
        whole = (slice(None), slice(None))
        blocks = [(start, matrix[start : start + 100]) for start in range(0, rows, 100)]
        value = layout.to_model(entry, reversed(blocks), whole, np.dtype(dtype))
        np.testing.assert_array_equal(value, matrix.T if letters == "DF" else matrix)
        parts = [block.copy() for block in layout.to_file(entry, value, value.dtype)]
        assert all(part.flags.c_contiguous and len(part) <= layout.BLOCK for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), matrix)
        wide = np.dtype(np.float32)
        assert layout.to_model(entry, blocks, whole, wide).dtype == wide
        parts = [block.copy() for block in layout.to_file(entry, value, wide)]
        np.testing.assert_array_equal(np.concatenate(parts), matrix.astype(wide))


def test_a_rule_that_needs_more_than_one_transposition_is_refused(monkeypatch):
    family = dataclasses.replace(
        FAMILIES["llama"], layout={"embed": ("e", "V D -> V D"), "norm": ("n", "D F V -> F D V")}
    )
    monkeypatch.setitem(FAMILIES, "llama", family)
    with pytest.raises(ValueError, match="is not its groups in the same or the opposite order"):
        layout.entries(SMALL["llama"])


def test_an_inner_letter_cannot_be_cut():
    entry = next(entry for entry in layout.entries(SMALL["llama"]) if entry.path == "blocks.q")
    whole = tuple(slice(None) for _ in entry.shape)
    assert layout.file_slices(entry, whole) == (slice(0, 32), slice(0, 32))
    assert layout.file_slices(entry, (slice(8, 16), slice(1, 2), *whole[2:])) == (slice(16, 32), slice(8, 16))
    with pytest.raises(ValueError, match="G is cut, but lies inside the axis KGH"):
        layout.file_slices(entry, (*whole[:2], slice(0, 1), *whole[3:]))
