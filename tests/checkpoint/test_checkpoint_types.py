"""Types, templates and neighbours of a checkpoint, as asked for. The tokenizer is made here."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import parity
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from s1jax.checkpoint import convert, files, folder, hf, orbax
from s1jax.checkpoint.convert import ConvertRun
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, named
from s1jax.quickstart import task
from s1jax.quickstart.tokenizer import CHAT_TEMPLATE, train_tokenizer
from s1jax.text.tokens import Tokenizer

CONFIG = DecoderConfig("qwen2", D=16, K=2, G=2, H=8, F=24, V=600, L=2, qkv_bias=True)


@pytest.fixture(scope="module")
def model():
    return jax.jit(Decoder, static_argnums=0, compiler_options=parity.FAST)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def source(model, tmp_path_factory) -> pathlib.Path:
    """A float32 checkpoint with a tokenizer beside it."""
    home = tmp_path_factory.mktemp("source")
    train_tokenizer(task.corpus(1, 50)).save(home / "tokenizer")
    hf.save(model, home / "model", tokenizer_source=home / "tokenizer", config_extra={"eos_token_id": 2})
    return home / "model"


def tensors(where: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: v for path in where.glob("*.safetensors") for k, v in safetensors.numpy.load_file(path).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("to", ["orbax", "hf"])
def test_every_tensor_has_the_type_that_was_asked_for(source, tmp_path, to, dtype):
    target = convert.run(ConvertRun(str(source), str(tmp_path / "out"), to=to, dtype=dtype))
    stored = dict(ocp.load(str(target / orbax.ARRAYS))) if to == "orbax" else tensors(target)
    given = named(hf.load(source, stacked=False)) if to == "orbax" else tensors(source)
    assert set(stored) == set(given)
    for name, value in stored.items():
        assert value.dtype == np.dtype(dtype), name
        np.testing.assert_array_equal(np.asarray(value), np.asarray(given[name]).astype(dtype))
    written = json.loads((target / "config.json").read_text())
    assert written["torch_dtype"] == dtype
    loaded = named(hf.load(target))
    assert {value.dtype for value in loaded.values()} == {np.dtype(dtype)}


def test_its_own_types_stay_where_none_is_asked_for(source, tmp_path):
    mixed = tmp_path / "mixed"
    convert.run(ConvertRun(str(source), str(mixed), to="hf"))
    path = mixed / files.SINGLE
    given = safetensors.numpy.load_file(path)
    given = {name: value.astype(ml_dtypes.bfloat16) if "mlp" in name else value for name, value in given.items()}
    safetensors.numpy.save_file(given, path)
    there = convert.run(ConvertRun(str(mixed), str(tmp_path / "there")))
    back = convert.run(ConvertRun(str(there), str(tmp_path / "back"), to="hf"))
    assert {name: value.dtype for name, value in tensors(back).items()} == {k: v.dtype for k, v in given.items()}
    assert json.loads((back / "config.json").read_text()) == json.loads((mixed / "config.json").read_text())


def test_a_tokenizer_with_a_template_of_ones_own_keeps_it(model, source, tmp_path):
    """Whoever trained with `chat_template=FILE` gets that template with the model, not the folder's."""
    own = "{{ messages[0]['content'] }} of my own"
    tokenizer = Tokenizer.load(source, chat_template=own)
    hf.save(model, tmp_path / "out", tokenizer_source=tokenizer)
    assert Tokenizer.load(tmp_path / "out").chat_template == own
    assert Tokenizer.load(source).chat_template == CHAT_TEMPLATE
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    hf.save(model, tmp_path / "plain", tokenizer_source=Tokenizer.load(source))
    assert Tokenizer.load(tmp_path / "plain").chat_template == CHAT_TEMPLATE


def test_special_tokens_of_another_architecture_are_carried_and_nothing_else(model, source, tmp_path):
    given = json.loads((source / "config.json").read_text())
    assert given["eos_token_id"] == 2
    other = DecoderConfig("llama", D=16, K=2, G=2, H=8, F=24, V=600, L=2)
    written = folder.config_json(other, source, {"dtype": "bfloat16", "note": 1})
    assert written["eos_token_id"] == 2 and written["model_type"] == "llama" and written["note"] == 1
    assert written.get("torch_dtype", written.get("dtype")) == "bfloat16"
    same = folder.config_json(CONFIG, source, {})
    assert same == given, "word for word"
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text(json.dumps({**given, "dtype": "float32"}))
    assert folder.config_json(CONFIG, newer, {"dtype": "bfloat16"})["dtype"] == "bfloat16"
    assert folder.config_json(CONFIG, None, {})["model_type"] == "qwen2"


def test_loading_widens_only_when_asked(source):
    assert {value.dtype for value in named(hf.load(source)).values()} == {np.dtype("float32")}
    narrow = named(hf.load(source, dtype=jnp.bfloat16, stacked=False))
    assert {value.dtype for value in narrow.values()} == {np.dtype(jnp.bfloat16)}


def test_files_begin_anew_at_their_size(model, source, tmp_path):
    sizes = {name: value.nbytes for name, value in tensors(source).items()}
    largest = max(sizes.values())
    hf.save(model, tmp_path / "parts", file_bytes=largest)
    parts = [safetensors.numpy.load_file(path) for path in sorted((tmp_path / "parts").glob("*.safetensors"))]
    held = [sum(value.nbytes for value in part.values()) for part in parts]
    assert max(held) <= largest and sum(held) == sum(sizes.values()) and len(parts) > 2
    index = json.loads((tmp_path / "parts" / files.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values()) and set(index["weight_map"]) == set(sizes)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "holds no config.json"), ("{", "is not JSON"), ("[]", "holds a list, not an object")]
)
def test_a_config_that_is_none(tmp_path, content, says):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=says):
        folder.read_config(tmp_path)
