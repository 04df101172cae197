"""Adapters: against PEFT in logits, gradients and files; merged; quantized; refused."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from s1jax.checkpoint import hf
from s1jax.checkpoint import lora as files
from s1jax.config import BadInput
from s1jax.engine.weights import prepare
from s1jax.models import lora
from s1jax.models.decoder import Decoder, DecoderConfig, forward, logits, named
from s1jax.parallel import axes, mesh

CONFIG = DecoderConfig("qwen2", D=16, K=2, G=3, H=8, F=24, V=40, L=2, qkv_bias=True)
LORA = lora.LoraConfig(rank=4, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 40, (3, 12))


def fast(function, **options):
    return jax.jit(function, compiler_options=parity.FAST, **options)


def compute(model):
    positions_BT = jnp.broadcast_to(jnp.arange(12), (3, 12))
    x_BTD, _ = forward(model, jnp.asarray(TOKENS), positions_BT, parity.attend_segments(jnp.ones((3, 12), int)))
    return logits(model, x_BTD)


run = fast(compute)


@pytest.fixture(scope="module")
def model():
    """Fresh weights, and biases that are not zero: what is zero shows nothing."""
    fresh = fast(Decoder, static_argnums=0)(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(1)
    values = {
        name: x + jnp.asarray(rng.standard_normal(x.shape), x.dtype) if "bias" in name else x
        for name, x in named(fresh).items()
    }
    return jax.tree.unflatten(jax.tree.structure(fresh), list(values.values()))


@pytest.fixture(scope="module")
def adapters():
    """Adapters that have moved: `up` is no longer zero."""
    start = lora.new(CONFIG, LORA, jax.random.key(1))
    rng = np.random.default_rng(2)
    noise = {name: jnp.asarray(0.2 * rng.standard_normal(a.up.shape), jnp.float32) for name, a in start.items()}
    return {name: lora.Adapter(adapter.down, noise[name]) for name, adapter in start.items()}


@pytest.fixture(scope="module")
def saved(model, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    hf.save(model, folder / "base")
    files.save(adapters, CONFIG, LORA, folder / "adapter", base=str(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def other(saved):
    """The peer: transformers' model with PEFT's adapters, trainable, both read from our files."""
    base = transformers.AutoModelForCausalLM.from_pretrained(saved / "base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own use of torch
        return peft.PeftModel.from_pretrained(base, saved / "adapter", is_trainable=True).eval()


def test_new_adapters_change_nothing(model):
    start = lora.new(CONFIG, LORA, jax.random.key(1))
    np.testing.assert_allclose(run(lora.apply(model, start, LORA)), run(model), atol=1e-6)


def test_adapted_and_merged_logits_equal_pefts(model, adapters, other):
    with torch.no_grad():
        theirs = other(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(theirs - np.asarray(run(model))).max() > 0.1
    np.testing.assert_allclose(run(lora.apply(model, adapters, LORA)), theirs, atol=1e-4)
    np.testing.assert_allclose(run(lora.merge(model, adapters, LORA)), theirs, atol=1e-4)


def test_gradients_equal_pefts(model, adapters, other):
    def loss(adapters):
        return jnp.mean(compute(lora.apply(model, adapters, LORA)) ** 2)

    mine = jax.device_get(fast(jax.grad(loss))(adapters))
    (other(torch.tensor(TOKENS)).logits ** 2).mean().backward()
    theirs = {name: p.grad.numpy() for name, p in other.named_parameters() if p.grad is not None}
    assert len(theirs) == 2 * CONFIG.L * len(lora.TARGETS)
    for target, layer, _, name in files._entries(CONFIG, LORA):
        for letter, value in (("A", mine[target].down), ("B", mine[target].up)):
            grad = theirs[f"base_model.model.{name}.lora_{letter}.default.weight"]
            ours = value[layer].reshape(-1, 4).T if letter == "A" else value[layer].reshape(4, -1).T
            assert np.linalg.norm(ours - grad) <= 1e-4 * np.linalg.norm(grad), (name, letter)


def test_training_moves_the_adapters_only(model):
    before = jax.device_get(named(model))
    optimizer = optax.adam(1e-2)
    adapters = lora.new(CONFIG, LORA, jax.random.key(1))

    @fast
    def step(adapters, state, model):
        def loss(adapters):
            out_BTV = jax.nn.log_softmax(compute(lora.apply(model, adapters, LORA))[:, :-1])
            return -jnp.mean(jnp.take_along_axis(out_BTV, jnp.asarray(TOKENS)[:, 1:, None], -1))

        value, grad = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(grad, state)
        return optax.apply_updates(adapters, updates), state, value

    state, losses = optimizer.init(adapters), []
    for _ in range(20):
        adapters, state, value = step(adapters, state, model)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    for name, value in named(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_an_int8_base_keeps_float_adapters(model, adapters):
    flat = prepare(model, "int8", None)
    exact, packed = named(model)["blocks.q"][0], named(flat)["blocks.0.q"]
    adapter = adapters["q"]
    x_BTD = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3, 16)), jnp.float32)
    mine = axes.einsum("BTD,DKGH->BTKGH", x_BTD, axes.Adapted(packed, adapter.down[0], adapter.up[0], LORA.scale))
    term = jnp.einsum("DR,RKGH->DKGH", adapter.down[0], adapter.up[0]) * LORA.scale
    whole = packed.values * packed.scale + term
    np.testing.assert_allclose(mine, jnp.einsum("BTD,DKGH->BTKGH", x_BTD, whole), atol=1e-4)
    assert float(jnp.abs(whole - term - exact).max()) < 0.05


def test_adapters_lie_by_their_letters(adapters):
    made = mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    where = jax.tree.map(lambda text, x: mesh.param_sharding(text, x.shape, made), lora.letters(LORA), adapters)
    placed = jax.device_put(adapters, where)
    assert placed["q"].down.addressable_shards[0].data.shape == (2, 4, 4)
    assert placed["q"].up.addressable_shards[0].data.shape == (2, 4, 1, 3, 8)


def test_there_and_back(saved, adapters):
    loaded, config = files.load(saved / "adapter", CONFIG)
    assert config == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


def test_a_subset_of_targets(model, tmp_path):
    some = lora.LoraConfig(rank=2, targets=("q", "v"))
    files.save(lora.new(CONFIG, some, jax.random.key(0)), CONFIG, some, tmp_path / "a", base="x")
    loaded, config = files.load(tmp_path / "a", CONFIG)
    assert set(loaded) == {"q", "v"} and config == some
    assert json.loads((tmp_path / "a" / files.CONFIG).read_text())["target_modules"] == ["q_proj", "v_proj"]
    with pytest.raises(BadInput, match="exists and is not empty"):
        files.save(loaded, CONFIG, some, tmp_path / "a", base="x")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lora.LoraConfig(rank=0), "lora.rank=0; it must be at least 1"),
        (lora.LoraConfig(targets=()), "lora.targets is empty"),
        (lora.LoraConfig(targets=("embed",)), "lora.targets names 'embed'; it may name q, k"),
    ],
)
def test_configs_that_make_no_sense_are_refused(config, words):
    with pytest.raises(BadInput, match=words):
        lora.new(CONFIG, config, jax.random.key(0))


def _fields(folder, **change):
    path = folder / files.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _tensors(folder, change):
    given = safetensors.numpy.load_file(folder / files.MODEL)
    change(given)
    safetensors.numpy.save_file(given, folder / files.MODEL)


KEY = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
DAMAGES = {
    "config": (lambda f: (f / files.CONFIG).unlink(), "is missing or names no r, lora_alpha"),
    "kind": (lambda f: _fields(f, peft_type="IA3"), "has peft_type='IA3', supported is 'LORA'"),
    "dora": (lambda f: _fields(f, use_dora=True), "has use_dora=True, supported is False"),
    "ranks": (lambda f: _fields(f, rank_pattern={"q_proj": 2}), "ranks or alphas that differ by layer"),
    "module": (lambda f: _fields(f, target_modules=["lm_head"]), "adapts 'lm_head'; supported are q_proj"),
    "rank": (lambda f: _fields(f, r=8), r"has shape \(4, .*\), not \(8, "),
    "file": (lambda f: (f / files.MODEL).write_bytes(b"x"), "is missing, cut off or not a safetensors file"),
    "missing": (lambda f: _tensors(f, lambda t: t.pop(KEY)), f"tensor '{KEY}' in .* is missing"),
    "unknown": (lambda f: _tensors(f, lambda t: t.update(extra=np.ones(1))), "holds tensor 'extra'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_one_line(adapters, tmp_path, damage):
    files.save(adapters, CONFIG, LORA, tmp_path / "a", base="x")
    do, words = DAMAGES[damage]
    do(tmp_path / "a")
    with pytest.raises(BadInput, match=words) as raised:
        files.load(tmp_path / "a", CONFIG)
    assert "\n" not in str(raised.value)
