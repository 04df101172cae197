"""What int8 loses on text that a model has learned: a small one, trained here on the documents of this repository."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from eval_cases import tokenizer_folder

from s1jax import records
from s1jax.checkpoint import hf
from s1jax.models import layers
from s1jax.models.decoder import Decoder, DecoderConfig, forward, logits
from s1jax.text.tokens import Tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = DecoderConfig("qwen2", D=48, K=2, G=2, H=16, F=96, V=264, L=2, max_position=256, tied=True, qkv_bias=True)
T, STEPS = 96, 250


def tool():
    spec = importlib.util.spec_from_file_location("compare_types", ROOT / "tools" / "compare_types.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(ids: np.ndarray) -> Decoder:
    """Next byte, AdamW, windows drawn at random."""
    optimizer = optax.adamw(1e-2)

    def loss(model: Decoder, ids_BT: jax.Array) -> jax.Array:
        at_T = jnp.arange(T)

        def attend(q_BTKGH, k_BTKH, v_BTKH, _):
            return layers.attention(q_BTKGH, k_BTKH, v_BTKH, (at_T[None] <= at_T[:, None])[None]), None

        x_BTD, _ = forward(model, ids_BT[:, :-1], jnp.broadcast_to(at_T, ids_BT[:, 1:].shape), attend)
        return optax.softmax_cross_entropy_with_integer_labels(logits(model, x_BTD), ids_BT[:, 1:]).mean()

    @jax.jit
    def step(model: Decoder, state: optax.OptState, ids_BT: jax.Array) -> tuple[Decoder, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(model, ids_BT), state, model)
        return optax.apply_updates(model, updates), state

    model = Decoder(CONFIG, jax.random.key(0))
    state, draw = optimizer.init(model), np.random.default_rng(0)
    for _ in range(STEPS):
        begins = draw.integers(0, len(ids) - T - 1, 8)
        model, state = step(model, state, jnp.asarray(np.stack([ids[begin : begin + T + 1] for begin in begins])))
    return model


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[str, str]:
    """The model's folder, and a file of text that it has not seen."""
    folder = tmp_path_factory.mktemp("learned")
    tokenizer = Tokenizer.load(tokenizer_folder(folder / "tokenizer"))
    text = "".join(
        path.read_text(encoding="utf-8") for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    )
    ids = np.array(tokenizer.encode(text), np.int32)
    cut = len(ids) * 4 // 5
    hf.save(train(ids[:cut]), folder / "hf", tokenizer_source=tokenizer)
    pieces = [tokenizer.decode(ids[begin : begin + 200].tolist()) for begin in range(cut, len(ids) - 200, 200)]
    records.write_jsonl(folder / "traces.jsonl", [{"model_response": piece} for piece in pieces])
    return str(folder / "hf"), str(folder / "traces.jsonl")


def test_int8_weights_and_cache_cost_little_on_text(learned):
    exact, eight = tool().compare(*learned, rows=8, length=160, ids=24, names=("float32", "int8 both"))
    assert exact["perplexity"] < 40  # of 264: it has learned something that could be lost
    assert 0 < abs(eight["perplexity_by_float32"]) < 0.01
    assert eight["same_next_id"] >= 0.95 and eight["next_ids"] >= 48
    assert eight["same_greedy_ids"] >= 0.7
