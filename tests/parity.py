"""The peer that models are compared with: transformers, with random weights, on reduced copies of real configs."""

import dataclasses
import functools
import json
import math
import pathlib
import tempfile
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from s1jax.checkpoint import hf as checkpoint
from s1jax.checkpoint import layout
from s1jax.engine import cache
from s1jax.models import layers
from s1jax.models.decoder import (
    Decoder,
    Unstacked,
    forward,
    logits,
    named,
    unstack,
)
from s1jax.parallel.axes import constrain

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # its threads spin while they wait, beside those of XLA

T = 24
FAR = 32768
GREEDY = 64
PROMPT = 6
FAST = {"xla_backend_optimization_level": 0}  # half the time to compile; the products run in libraries either way


@dataclasses.dataclass(frozen=True)
class Case:
    """A reduced model: the real config it comes from, and its fields."""

    name: str
    hf: dict[str, Any]


def real_configs(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Every shipped `config.json`, by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def cases(folder: pathlib.Path) -> list[Case]:
    """Reduced copies of the shipped configs that differ in family, ties, head ratio or width; a ratio of 1 for each."""
    found: dict[tuple, Case] = {}
    for name, hf in real_configs(folder).items():
        small = reduced(hf)
        key = tuple(small[k] for k in ("model_type", "tie_word_embeddings", "num_attention_heads", "hidden_size"))
        found.setdefault(key, Case(name, small))
        single = {**small, "num_attention_heads": small["num_key_value_heads"]}
        found.setdefault((hf["model_type"], "single"), Case(f"{hf['model_type']}-mha", single))
    return list(found.values())


def reduced(hf: dict[str, Any]) -> dict[str, Any]:
    """The config at a width of some dozens, two layers, two kv heads: same ratios, ties, biases, norms and rope."""
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    width = hf.get("head_dim") or hf["hidden_size"] // heads
    ratio, small = heads // kv_heads, 16
    return {
        **hf,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_attention_heads": 2 * ratio,
        "head_dim": small,
        "hidden_size": 2 * ratio * small * hf["hidden_size"] // (heads * width),
        "intermediate_size": 72,
        "vocab_size": 120,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def peer(hf: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model with random parameters, norms and biases too, scaled so that logits are of order 1."""
    config = transformers.AutoConfig.for_model(**hf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise if parameter.mean() == 1 else 0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
    return model


def ours(model: Any, dtype: Any = None) -> Decoder:
    """The same model, through files: what transformers saved is what is read."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = checkpoint.load(folder, dtype=dtype)
    assert isinstance(loaded, Decoder)
    return loaded


def attend_segments(segments_BT: np.ndarray) -> Any:
    """Causal attention within segments; 0 is padding. Order in the row is order in time."""

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
        causal_TS = jnp.tril(jnp.ones(same_BTS.shape[1:], bool))
        k_BTKH, v_BTKH = constrain(k_BTKH, "BSKH"), constrain(v_BTKH, "BSKH")
        return layers.attention(q_BTKGH, k_BTKH, v_BTKH, same_BTS & causal_TS & (segments_BT > 0)[:, None, :]), state

    return attend


@dataclasses.dataclass(frozen=True)
class Rows:
    """Five rows `[5, T]` that one program computes: whole, left-padded, right-padded, packed, and far out."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray


def rows(vocabulary: int, seed: int = 0) -> Rows:
    """Random ids in each of the five arrangements."""
    ids_BT = np.random.default_rng(seed).integers(0, vocabulary, (5, T))
    documents = [[(0, T)], [(7, T)], [(0, T - 9)], [(0, 5), (5, 16), (16, T)], [(0, T)]]
    positions_BT, segments_BT = np.zeros((5, T), np.int32), np.zeros((5, T), np.int32)
    for row, spans in enumerate(documents):
        for number, (begin, end) in enumerate(spans, 1):
            segments_BT[row, begin:end] = number
            positions_BT[row, begin:end] = np.arange(end - begin) + (FAR - T if row == 4 else 0)
    return Rows(ids_BT, positions_BT, segments_BT)


def peer_rows(model: Any, given: Rows) -> np.ndarray:
    """The peer's logits `[5, T, V]`, each document run by itself; the padded rows with the peer's own padding."""
    out_BTV = np.zeros((*given.tokens_BT.shape, model.config.vocab_size), np.float32)
    for row in range(5):
        segment_T = given.segments_BT[row]
        padded = row in (1, 2)
        for number in [1] if padded else range(1, segment_T.max() + 1):
            at = slice(None) if padded else segment_T == number
            extra = {"attention_mask": torch.tensor(segment_T[None] > 0).long()} if padded else {}
            with torch.no_grad():
                result = model(
                    torch.tensor(given.tokens_BT[row][None, at]),
                    position_ids=torch.tensor(given.positions_BT[row][None, at]).long(),
                    **extra,
                )
            out_BTV[row, at] = result.logits[0].numpy()
    return out_BTV


@functools.partial(jax.jit, compiler_options=FAST)
def our_logits(model: Decoder, tokens_BT: Any, positions_BT: Any, segments_BT: Any) -> jax.Array:
    """Logits `[B, T, V]` of whole rows."""
    x_BTD, _ = forward(model, tokens_BT, positions_BT, attend_segments(segments_BT))
    return logits(model, x_BTD)


def error_by_row(model: Decoder, other: Any) -> dict[str, float]:
    """Largest difference of logits over real positions, for each arrangement."""
    given = rows(model.config.V)
    mine_BTV = np.asarray(our_logits(model, given.tokens_BT, given.positions_BT, given.segments_BT))
    gap_BT = np.abs(mine_BTV - peer_rows(other, given)).max(-1)
    names = ("full", "left", "right", "packed", "far")
    return {name: float(gap_BT[row][given.segments_BT[row] > 0].max()) for row, name in enumerate(names)}


@functools.partial(jax.jit, compiler_options=FAST)
def greedy(model: Decoder, prompt_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy ids `[P + GREEDY, B]`, one at a time with a cache, and the logits `[P + GREEDY - 1, B, V]` behind them."""
    flat = unstack(model)
    batch, length = prompt_BT.shape
    config = model.config
    state = cache.empty(cache.Size(config.L, config.K, config.H, "float32"), ((batch, length + GREEDY),))

    def step(carry: tuple, position: jax.Array) -> tuple:
        ids_B, state = carry
        position_B = jnp.full(batch, position)
        out_BV, state = decode_step(flat, ids_B, position_B, state)
        known_B = prompt_BT[:, jnp.minimum(position + 1, length - 1)]
        ids_B = jnp.where(position + 1 < length, known_B, jnp.argmax(out_BV, -1))
        return (ids_B, state), (ids_B, out_BV)

    _, (ids_TB, out_TBV) = jax.lax.scan(step, (prompt_BT[:, 0], state), jnp.arange(length + GREEDY - 1))
    return jnp.concatenate([prompt_BT[None, :, 0], ids_TB]), out_TBV


def decode_step(model: Unstacked, ids_B: Any, position_B: Any, state: cache.Cache) -> tuple[jax.Array, cache.Cache]:
    """Logits `[B, V]` of one id a row against the cache."""

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, layer: cache.Layer) -> tuple:
        layer = cache.write(layer, k_BTKH[:, 0], v_BTKH[:, 0], position_B, jnp.ones(position_B.shape, bool))
        return cache.attend(layer, q_BTKGH[:, 0], position_B)[:, None], layer

    x_BTD, state = forward(model, ids_B[:, None], position_B[:, None], attend, state)
    return logits(model, x_BTD)[:, 0], state


def cached(model: Decoder, other: Any, batch: int = 2) -> tuple[float, bool]:
    """Largest difference of logits under a cache over a prompt and 64 greedy ids, and whether all ids are equal."""
    prompt_BT = np.random.default_rng(1).integers(0, model.config.V, (batch, PROMPT))
    ids_TB, out_TBV = jax.device_get(greedy(model, jnp.asarray(prompt_BT)))
    theirs = other.generate(
        torch.tensor(prompt_BT),
        attention_mask=torch.ones(batch, PROMPT, dtype=torch.long),
        max_new_tokens=GREEDY,
        do_sample=False,
        repetition_penalty=1.0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    their_TBV = torch.stack(theirs.logits).numpy()
    is_equal = bool((theirs.sequences.numpy().T == ids_TB).all())
    return float(np.abs(out_TBV[PROMPT - 1 :] - their_TBV).max()), is_equal


def gradient_errors(model: Decoder, other: Any) -> dict[str, float]:
    """Per tensor, |ours - theirs| / |theirs| of the gradient of the fine-tuning loss.

    The loss is the mean over rows of the mean over the ids after the prompt. A tensor whose gradient is below 1e-6 of
    the whole is measured against the whole (the key biases' true gradient is nearly zero).
    """
    tokens_BT = np.random.default_rng(2).integers(0, model.config.V, (3, T))
    weight_BT = np.zeros((3, T), np.float32)
    for row, (begin, end) in enumerate(((6, T), (10, T - 4), (3, 12))):
        weight_BT[row, begin:end] = 1 / (end - begin) / 3
    mine = jax.device_get(named(_gradients(model, tokens_BT, weight_BT)))
    table = {entry.name: entry for entry in layout.entries(model.config)}
    other.zero_grad()
    out = torch.log_softmax(other(torch.tensor(tokens_BT)).logits[:, :-1], -1)
    picked = torch.gather(out, -1, torch.tensor(tokens_BT)[:, 1:, None])[..., 0]
    (-(picked * torch.tensor(weight_BT)[:, 1:]).sum()).backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in other.named_parameters()}
    whole = math.sqrt(sum(float((g**2).sum()) for g in theirs.values()))
    errors = {}
    for name, grad in theirs.items():
        entry = table[name]
        value = mine[entry.path] if entry.layer is None else mine[entry.path][entry.layer]
        size = float(np.linalg.norm(grad))
        blocks = [block.copy() for block in layout.to_file(entry, value, value.dtype)]
        gap = float(np.linalg.norm(np.concatenate(blocks) - grad))
        errors[name] = gap / (size if size > 1e-6 * whole else whole)
    return errors


@functools.partial(jax.jit, compiler_options=FAST)
def _gradients(model: Decoder, tokens_BT: jax.Array, weight_BT: jax.Array) -> Decoder:
    batch, length = tokens_BT.shape

    def loss(model: Decoder) -> jax.Array:
        positions_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
        x_BTD, _ = forward(model, tokens_BT, positions_BT, attend_segments(jnp.ones((batch, length), jnp.int32)))
        out_BTV = jax.nn.log_softmax(logits(model, x_BTD[:, :-1]))
        picked_BT = jnp.take_along_axis(out_BTV, tokens_BT[:, 1:, None], -1)[..., 0]
        return -jnp.sum(picked_BT * weight_BT[:, 1:])

    return jax.grad(loss)(model)


def rotary_embedding(config: Any) -> Any:
    """The peer's rotary embedding for a config, without its weights."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(
            type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "layer_types": None})
        )
    return type(model.rotary_emb)(config)
