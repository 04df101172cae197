"""What a model is before any comparison: sizes, refusals, names, frequencies, trees."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from s1jax.checkpoint import layout
from s1jax.config import BadInput
from s1jax.models import FAMILIES, config_from_hf
from s1jax.models.decoder import Decoder, DecoderConfig, abstract, count, forward, letters, logits, named, unstack
from s1jax.parallel import axes, mesh

# As published: torchtune's tables for Qwen2.5, the weights' own index files for the others. Qwen3 0.6B and 1.7B are
# published with a copy of the embedding as the head, 151936 x D more than here.
PUBLISHED = {
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-14b-instruct": 14_770_033_664,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "qwen2.5-72b-instruct": 72_706_203_648,
    "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-3b-instruct": 3_212_749_824,
}
SMALL = {
    "qwen2": DecoderConfig("qwen2", D=16, K=2, G=3, H=8, F=24, V=40, L=3, qkv_bias=True),
    "qwen3": DecoderConfig("qwen3", D=24, K=2, G=2, H=8, F=40, V=48, L=2, tied=True, qk_norm=True),
    "llama": DecoderConfig("llama", D=32, K=2, G=2, H=8, F=40, V=48, L=2),
}


def fast(function, **options):
    return jax.jit(function, compiler_options=parity.FAST, **options)


new = fast(Decoder, static_argnums=0)
flatten = fast(unstack)


@pytest.fixture(scope="module")
def real(config_files):
    """Name -> content of every shipped `config.json`."""
    return parity.real_configs(config_files)


def test_parameter_counts_equal_the_published_ones(real):
    assert set(real) == set(PUBLISHED)
    for name, hf in real.items():
        model = abstract(config_from_hf(hf))
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))
        assert count(model) == PUBLISHED[name], name


def test_a_config_comes_back_from_its_own_file_and_from_the_peers(real):
    for name, hf in real.items():
        config = config_from_hf(hf)
        own = FAMILIES[config.family].to_hf(config)
        assert config_from_hf(own) == config, name
        assert config_from_hf(transformers.AutoConfig.for_model(**hf).to_dict()) == config, name
        assert config_from_hf(transformers.AutoConfig.for_model(**own).to_dict()) == config, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_names_every_parameter_once(family):
    config = SMALL[family]
    for tied in (True, False):
        model = abstract(dataclasses.replace(config, tied=tied))
        entries = layout.entries(model.config)
        assert {entry.path for entry in entries} == set(named(model))
        assert {entry.key for entry in entries} == set(named(jax.eval_shape(unstack, model)))
        assert len({entry.name for entry in entries}) == len(entries)
        for entry in entries:
            assert named(model)[entry.path].shape == (config.L,) * (entry.layer is not None) + entry.shape


REFUSED = [
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types with 'sliding_attention'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}, supported is its absence"),
    ({"num_experts": 60}, "num_experts=60"),
    ({"num_local_experts": 8}, "num_local_experts=8"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_type='linear'"),
    ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'; supported are llama, qwen2, qwen3"),
    ({"num_key_value_heads": 3}, "14 query heads are not a multiple of 3 kv heads"),
    ({"hidden_size": "896"}, "hidden_size='896', it must be a whole number"),
    ({"vocab_size": None}, "vocab_size=None, it must be a whole number"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_would_change_the_mathematics_is_refused_by_name(real, change, words):
    with pytest.raises(BadInput) as raised:
        config_from_hf({**real["qwen2.5-0.5b-instruct"], **change})
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen3-8b", {"attention_bias": True}, "attention_bias=True"),
        ("llama-3.1-8b", {"attention_bias": True}, "attention_bias=True"),
        ("llama-3.1-8b", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without low_freq_factor"),
        ("qwen3-8b", {"rope_scaling": {"rope_type": "llama3"}}, "rope_type='llama3'"),
    ],
)
def test_a_familys_own_refusals(real, name, change, words):
    with pytest.raises(BadInput, match=words):
        config_from_hf({**real[name], **change})


def test_a_missing_field_is_named(real):
    for key in ("hidden_size", "num_key_value_heads", "vocab_size"):
        hf = {k: v for k, v in real["qwen2.5-0.5b-instruct"].items() if k != key}
        with pytest.raises(BadInput, match=f"lacks {key}"):
            config_from_hf(hf)


# Checksum of the float32 bits, and the bits of entries 1, 17 and the last.
GOLDEN_BITS = {
    "qwen2.5-0.5b-instruct": (512616341, "0x3f263de0", "0x3a2a3b44", "0x35ceaf79"),
    "qwen2.5-32b-instruct": (2343108693, "0x3f4e4bad", "0x3cd0c1a8", "0x35a68e4c"),
    "llama-3.1-8b": (3212893763, "0x3f508ac1", "0x3cfaf53f", "0x34a4c2ff"),
    "llama-3.2-3b-instruct": (1161267292, "0x3f508ac1", "0x3cfaf53f", "0x33a4c2ff"),
}


@pytest.mark.parametrize("name", GOLDEN_BITS)
def test_golden_bits_of_the_frequencies(real, name):
    bits = config_from_hf(real[name]).inverse_frequencies.view(np.uint32)
    assert (zlib.crc32(bits.tobytes()), *(hex(bits[i]) for i in (1, 17, -1))) == GOLDEN_BITS[name]


def test_frequencies_against_the_peer_to_position_32768(real):
    """torch's power is one unit off in entry 37 of theta 1e6; all else is equal, and every cosine within 1e-6."""
    position_T = np.arange(32768, dtype=np.float32)
    for name, hf in real.items():
        other = transformers.AutoConfig.for_model(**hf)
        rotary = parity.rotary_embedding(other)
        theirs, mine = rotary.inv_freq.numpy(), config_from_hf(hf).inverse_frequencies
        assert list(np.flatnonzero(theirs != mine)) in ([], [37]), name
        gap = np.cos(np.outer(position_T, theirs)) - np.cos(np.outer(position_T, mine))
        assert np.abs(gap).max() < 1e-6, name


def test_a_compiled_program_uses_the_same_bits():
    """Computed inside jit, XLA would fold another form of the power, 24 of 64 entries off."""
    config = DecoderConfig("qwen2", D=8, K=1, G=1, H=128, F=8, V=8, L=1)
    inside = jax.jit(lambda one: one * config.inverse_frequencies)(jnp.float32(1))
    np.testing.assert_array_equal(np.asarray(inside), config.inverse_frequencies)
    folded = jax.jit(lambda: 1 / (1e6 ** (jnp.arange(0, 128, 2, dtype=jnp.float32) / 128)))()
    assert (np.asarray(folded) != config.inverse_frequencies).sum() > 5


def _run(model, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    x_BTD, _ = forward(model, tokens_BT, positions_BT, parity.attend_segments(jnp.ones(tokens_BT.shape, int)))
    return logits(model, x_BTD)


run = fast(_run)


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_equals_unstacked_and_rematerialised(family):
    model = new(SMALL[family], jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 7), 0, model.config.V)
    flat = flatten(model)
    np.testing.assert_array_equal(named(flat)["blocks.1.q"], named(model)["blocks.q"][1])
    np.testing.assert_allclose(run(flat, tokens_BT), run(model, tokens_BT), atol=1e-5)


def test_a_state_passes_through_each_layer_in_order():
    model = new(SMALL["qwen2"], jax.random.key(0))
    tokens_BT = jnp.ones((1, 2), int)

    def attend(q_BTKGH, k_BTKH, v_BTKH, state):
        return q_BTKGH, state + 1

    for kind, given in ((model, jnp.arange(3)), (flatten(model), [jnp.int32(i) for i in range(3)])):
        _, state = fast(lambda m, s: forward(m, tokens_BT, tokens_BT, attend, s))(kind, given)
        assert [int(layer) for layer in state] == [1, 2, 3]


def test_remat_changes_nothing():
    model = new(SMALL["llama"], jax.random.key(0))
    tokens_BT = jnp.arange(8).reshape(2, 4)
    attend = parity.attend_segments(jnp.ones((2, 4), int))
    calls = []

    def remat(layer):
        calls.append(layer)
        return jax.checkpoint(layer)

    def loss(model, **options):
        x_BTD, _ = forward(model, tokens_BT, tokens_BT % 4, attend, **options)
        return jnp.sum(logits(model, x_BTD) ** 2)

    plain, kept = fast(jax.grad(loss))(model), fast(jax.grad(lambda m: loss(m, remat=remat)))(model)
    assert len(calls) == 1
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kept), strict=True):
        # An entry is a sum of large terms that cancel, so its rounding is measured by the tensor.
        assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)


def test_names_letters_and_leaves_agree():
    model = new(SMALL["qwen2"], jax.random.key(0))
    for kind in (model, flatten(model)):
        values, by_letters = named(kind), named(letters(kind))
        assert list(values) == list(by_letters)
        for value, text in zip(values.values(), by_letters.values(), strict=True):
            sizes = tuple(getattr(model.config, letter) for letter in text)
            assert value.shape == sizes
        again = jax.tree.unflatten(jax.tree.structure(kind), list(values.values()))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, kind, again))


def test_initial_values():
    """Norms are one, biases zero, matrices spread by fan-in; two keys differ, layers differ, one key repeats."""
    config = dataclasses.replace(SMALL["qwen2"], D=64, F=256)
    values = named(new(config, jax.random.key(0)))
    assert (values["norm"] == 1).all() and (values["blocks.q_bias"] == 0).all()
    assert float(values["blocks.gate"].std()) == pytest.approx(1 / math.sqrt(64), rel=0.05)
    assert not jnp.array_equal(values["blocks.q"][0], values["blocks.q"][1])
    assert jnp.array_equal(values["embed"], named(new(config, jax.random.key(0)))["embed"])
    assert not jnp.array_equal(values["embed"], named(new(config, jax.random.key(1)))["embed"])


def test_shipped_models_are_sharded_without_a_clash(real):
    """No mesh axis twice in a spec; no parameter of a layer above 1 MB whole on every device of `fsdp`."""
    for name, hf in real.items():
        model = abstract(config_from_hf(hf))
        for path, text in named(letters(model)).items():
            leaf = named(model)[path]
            partition = axes.spec(text, mesh.PARAM_FD if text.endswith("FD") else mesh.PARAM)
            layers = leaf.shape[0] if text.startswith("L") else 1
            is_cut = "fsdp" in str(partition)
            assert is_cut or leaf.size // layers * leaf.dtype.itemsize <= 2**20, (name, path)


def test_the_peer_is_what_it_should_be(real):
    """The oracle's own parameters are random everywhere, or a swapped bias would not show."""
    model = parity.peer(parity.reduced(real["qwen2.5-7b-instruct"]))
    assert all(float(torch.std(parameter.detach())) > 0.05 for parameter in model.parameters())
