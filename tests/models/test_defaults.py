"""What stands where a checkpoint's config is silent, what fresh weights are, and which backend is taken."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from s1jax.config import BadInput
from s1jax.models import FAMILIES, attention, config_from_hf, lora
from s1jax.models.attention import BACKENDS, choose, exchanges_heads, stripes
from s1jax.models.config import DecoderConfig, RopeScaling
from s1jax.models.decoder import Decoder, abstract, count, named
from s1jax.models.time import nearest_divisor
from s1jax.parallel.mesh import MeshConfig, make_mesh

LEAST = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 160,
    "vocab_size": 300,
}
SIZES = {"D": 96, "K": 2, "G": 3, "F": 160, "V": 300, "L": 3}
SWITCHES = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}, "llama": {}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_says_the_least(family):
    """The defaults are transformers' own but for three that every published file writes out."""
    width = 128 if family == "qwen3" else 16
    expected = DecoderConfig(family, **SIZES, H=width, rope_theta=10000.0, **SWITCHES[family])
    assert config_from_hf({**LEAST, "model_type": family}) == expected
    assert (expected.norm_eps, expected.max_position, expected.tied) == (1e-6, 32768, False)
    theirs = transformers.AutoConfig.for_model(family, **LEAST)
    assert getattr(theirs, "head_dim", None) in (width, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_read_and_written(family):
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192) if family == "llama" else None
    config = DecoderConfig(
        *(family,), **SIZES, H=8, rope_theta=5e5, norm_eps=1e-5, max_position=777, tied=True, rope_scaling=scaling,
        **SWITCHES[family],
    )  # fmt: skip
    written = FAMILIES[family].to_hf(config)
    assert config_from_hf(written) == config
    named_fields = {
        **{"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300},
        **{"intermediate_size": 160, "num_hidden_layers": 3, "rope_theta": 5e5, "rms_norm_eps": 1e-5},
        **{"max_position_embeddings": 777, "tie_word_embeddings": True, "hidden_act": "silu"},
    }
    assert {key: written[key] for key in named_fields} == named_fields
    theirs = transformers.AutoConfig.for_model(**written).to_dict()
    assert config_from_hf(theirs) == config


def test_rope_stands_where_files_of_every_age_have_it():
    old = {**LEAST, "model_type": "llama", "rope_theta": 7.0}
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    of = {
        "old": {**old, "rope_scaling": {"type": "llama3", **scaled}},
        "middle": {**old, "rope_scaling": {"rope_type": "llama3", **scaled}},
        "new": {
            **LEAST,
            "model_type": "llama",
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **scaled},
        },
    }
    for name, hf in of.items():
        config = config_from_hf(hf)
        assert (config.rope_theta, config.rope_scaling) == (7.0, RopeScaling(8.0, 1.0, 4.0, 64)), name


def test_refusals_are_by_value():
    for change, words in (
        ({"num_attention_heads": 5}, "5 query heads are not a multiple of 2 kv heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0, it must be a whole number above 0"),
        ({"attention_dropout": 0.5}, "attention_dropout=0.5, supported is 0 or 0.0"),
        ({"use_sliding_window": True}, "use_sliding_window=True, supported is False"),
        ({"layer_types": ["full_attention", "chunked"]}, "layer_types with 'chunked'"),
    ):
        with pytest.raises(BadInput, match=words):
            config_from_hf({**LEAST, "model_type": "qwen2", **change})
    allowed = {"attention_dropout": 0.0, "use_sliding_window": None, "layer_types": ["full_attention"] * 3}
    config_from_hf({**LEAST, "model_type": "qwen2", **allowed, "partial_rotary_factor": 1.0, "head_dim": 16})


def test_stretched_frequencies_against_the_peer():
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    config = DecoderConfig("llama", **SIZES, H=32, rope_theta=1e4, rope_scaling=scaling)
    theirs = transformers.AutoConfig.for_model(**FAMILIES["llama"].to_hf(config))
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    np.testing.assert_allclose(config.inverse_frequencies, rotary.inv_freq.numpy(), rtol=1e-6)
    plain = dataclasses.replace(config, rope_scaling=None).inverse_frequencies
    assert (config.inverse_frequencies[-1] == plain[-1] / 8).all() and config.inverse_frequencies[0] == plain[0] == 1


def test_the_spread_of_fresh_weights():
    """Matrices into a layer by 1/sqrt(inputs); out of it also by the number of additions to the residual, 2 L."""
    config = DecoderConfig("qwen2", D=96, K=2, G=3, H=20, F=160, V=400, L=4, qkv_bias=True, qk_norm=True)
    values = named(jax.jit(lambda: Decoder(config, jax.random.key(0)))())
    spread = {name: 1 / math.sqrt(96) for name in ("embed", "head", "blocks.q", "blocks.k", "blocks.v")}
    spread |= {"blocks.gate": 1 / math.sqrt(96), "blocks.up": 1 / math.sqrt(96)}
    spread |= {"blocks.o": 1 / math.sqrt(120 * 8), "blocks.down": 1 / math.sqrt(160 * 8)}
    for name, expected in spread.items():
        assert float(values[name].std()) == pytest.approx(expected, rel=0.03), name
        assert abs(float(values[name].mean())) < 0.03 * expected, name
    for name in set(values) - set(spread):
        assert (values[name] == (0 if "bias" in name else 1)).all(), name
    assert all(value.dtype == jnp.float32 for value in values.values())
    drawn = [np.asarray(values[name][0] if name.startswith("blocks") else values[name]).ravel()[:50] for name in spread]
    assert len({part.tobytes() for part in drawn}) == len(spread), "no two matrices are drawn alike"


def test_the_spread_of_fresh_adapters_is_pefts():
    """Kaiming uniform with a = sqrt(5): within 1/sqrt(inputs); the other side is zero."""
    config = DecoderConfig("qwen2", D=96, K=2, G=3, H=20, F=160, V=400, L=4)
    made = lora.new(config, lora.LoraConfig(rank=8, alpha=4.0), jax.random.key(0))
    inputs = {"q": 96, "k": 96, "v": 96, "o": 120, "gate": 96, "up": 96, "down": 160}
    for name, adapter in made.items():
        bound = 1 / math.sqrt(inputs[name])
        assert 0.99 * bound < float(jnp.abs(adapter.down).max()) <= bound, name
        assert float(adapter.down.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert not adapter.up.any() and adapter.down.dtype == adapter.up.dtype == jnp.float32
    assert made["o"].down.shape == (4, 2, 3, 20, 8) and made["o"].up.shape == (4, 8, 96)
    other = lora.new(config, lora.LoraConfig(rank=8, alpha=4.0), jax.random.key(1))
    assert not jnp.array_equal(other["q"].down, made["q"].down)
    assert not jnp.array_equal(made["gate"].down, made["up"].down), "each target by a key of its own"
    assert lora.LoraConfig(rank=8, alpha=4.0).scale == 0.5 and lora.LoraConfig().scale == 2.0
    sizes = lora.sizes(config, lora.LoraConfig(rank=8))
    assert sizes["q"] == 4 * 8 * (96 + 120) and sizes["down"] == 4 * 8 * (160 + 96)


def test_parameters_are_counted():
    config = DecoderConfig("qwen2", D=96, K=2, G=3, H=20, F=160, V=400, L=4, qkv_bias=True)
    layer = 96 * 20 * (6 + 2 + 2 + 6) + 3 * 96 * 160 + 20 * (6 + 2 + 2) + 2 * 96
    assert count(abstract(config)) == 4 * layer + 2 * 400 * 96 + 96
    assert count(abstract(dataclasses.replace(config, tied=True))) == 4 * layer + 400 * 96 + 96


def test_backends_and_what_they_take():
    says = {
        "xla": (True, None, ("float32", "bfloat16")),
        "splash": (True, "tpu", ("float32", "bfloat16")),
        "splash_interpreted": (True, None, ("float32", "bfloat16")),
        "cudnn": (True, "gpu", ("bfloat16",)),
        "cudnn_gathered": (True, "gpu", ("bfloat16",)),
        "cudnn_causal": (False, "gpu", ("bfloat16",)),
    }
    assert {name: (b.keeps_segments, b.platform, b.dtypes) for name, b in BACKENDS.items()} == says
    device = types.SimpleNamespace(platform="tpu")
    config = DecoderConfig("qwen2", **SIZES, H=16)
    for ways, chosen in (((1, 1), "splash"), ((2, 1), "splash"), ((1, 2), "splash"), ((2, 2), "xla"), ((4, 1), "xla")):
        mesh = types.SimpleNamespace(
            devices=np.array([device]), shape=dict(zip(("tensor", "context"), ways, strict=True))
        )
        assert choose("auto", config, mesh, dtype="float32", is_packed=True) == chosen, ways  # type: ignore[arg-type]


def test_stripes_are_for_gathered_keys_alone():
    mesh = make_mesh(MeshConfig(fsdp=1, context=4, tensor=2))
    assert exchanges_heads(8, mesh) and exchanges_heads(16, mesh) and not exchanges_heads(4, mesh)
    assert stripes("xla", 8, 1024, mesh) == 1 and stripes("splash", 4, 1024, mesh) == 1
    assert stripes("xla", 4, 1024, None) == 1
    assert stripes("xla", 4, 1024, make_mesh(MeshConfig(fsdp=-1, tensor=2))) == 1
    assert stripes("xla", 4, 1024, mesh) == 8, "a piece for each 128 positions, at most 8"
    assert stripes("xla", 4, 512, mesh) == 4 and stripes("xla", 4, 120, mesh) == 1
    assert stripes("xla", 4, 4096, mesh) == 8 and stripes("xla", 4, 4 * 129 * 2, mesh) == 6, "a divisor of the part"
    assert (attention.ROUNDS, attention.ROUND, attention.SCORES) == (8, 128, 2**26)


@pytest.mark.parametrize(
    ("n", "most", "expected"), [(12, 5, 4), (12, 4, 4), (12, 12, 12), (12, 99, 12), (7, 6, 1), (12, 0, 1), (1, 1, 1)]
)
def test_nearest_divisor(n, most, expected):
    assert nearest_divisor(n, most) == expected
