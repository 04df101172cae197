"""The comparisons that need size: bf16, true widths, 32,768 cached positions."""

import functools
import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from parity import FAR, FAST, T, attend_segments, decode_step, our_logits, ours, peer

from s1jax.checkpoint import hf as checkpoint
from s1jax.checkpoint import layout
from s1jax.checkpoint.entry import Entry
from s1jax.engine import cache
from s1jax.models import config_from_hf
from s1jax.models.decoder import Decoder, abstract, forward, logits, named, unstack


def bfloat16_ratio(hf: dict[str, Any], length: int = 128, vocabulary: int = 512) -> tuple[float, int]:
    """RMS error of bf16 logits against fp32 ones with the same weights, ours over the peer's; and how many logits."""
    tokens_BT = np.random.default_rng(3).integers(0, vocabulary, (2, length))
    with tempfile.TemporaryDirectory() as folder:
        # Through files: a cast of the peer in memory would round its rotary frequencies too.
        peer({**hf, "vocab_size": vocabulary}).to(torch.bfloat16).save_pretrained(folder)
        model = checkpoint.load(folder)
        read = transformers.AutoModelForCausalLM.from_pretrained
        others = [read(folder, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    with torch.no_grad():
        theirs, exact = (other(torch.tensor(tokens_BT)).logits.float().numpy() for other in others)
    mine = np.asarray(_bfloat16_logits(model, tokens_BT))
    rms = [float(np.sqrt(np.mean((x - exact) ** 2))) for x in (mine, theirs)]
    return rms[0] / rms[1], exact.size


@functools.partial(jax.jit, compiler_options=FAST)
def _bfloat16_logits(model: Any, tokens_BT: jax.Array) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    attend = attend_segments(jnp.ones(tokens_BT.shape, jnp.int32))
    x_BTD, _ = forward(model, tokens_BT, positions_BT, attend, dtype=jnp.bfloat16)
    return logits(model, x_BTD)


def noise(count: int) -> np.ndarray:
    """`count` normal numbers of deviation 1/64, aligned so that both frameworks can read them in place."""
    block = np.random.default_rng(4).standard_normal(1_000_003, np.float32) / 64
    raw = np.empty(count + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    out = raw[start : start + count]
    for begin in range(0, count, len(block)):
        out[begin : begin + len(block)] = block[: count - begin]
    return out


def wide_error(hf: dict[str, Any], numbers: np.ndarray) -> float:
    """Largest difference of logits of one layer at its true width, with a vocabulary of 64, at far positions.

    The matrices are consecutive parts of `numbers`, which neither framework copies: the checkpoint's layout is a
    transposed view of ours.
    """
    hf = {**hf, "num_hidden_layers": 1, "vocab_size": 64, "bos_token_id": None, "eos_token_id": None}
    config = config_from_hf(hf)
    with torch.device("meta"):
        other = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**hf)).eval()
    shape = abstract(config)
    leaves, tensors, used = {}, {}, 0
    for entry in layout.entries(config):
        size = math.prod(entry.shape)
        value = numbers[used : used + size].reshape(entry.shape)
        if len(entry.file_shape) == 1:
            value = 1 + 16 * value
        used += -(-size // 16) * 16
        tensors[entry.name] = torch.from_numpy(_view(entry, value))
        leaves[entry.path] = value if entry.layer is None else value[None]
    other.load_state_dict(tensors, assign=True, strict=False)
    other.tie_weights()
    other.model.rotary_emb = type(other.model.rotary_emb)(other.config)
    model = jax.tree.unflatten(jax.tree.structure(shape), [jnp.from_dlpack(leaves[name]) for name in named(shape)])
    tokens_BT = np.random.default_rng(5).integers(0, 64, (1, T))
    positions_BT = np.arange(FAR - T, FAR)[None]
    mine = our_logits(model, tokens_BT, positions_BT, np.ones((1, T), np.int32))
    with torch.no_grad():
        theirs = other(torch.tensor(tokens_BT), position_ids=torch.tensor(positions_BT)).logits.numpy()
    return float(np.abs(np.asarray(mine) - theirs).max())


def _view(entry: Entry, value: np.ndarray) -> np.ndarray:
    if entry.letters == "".join(entry.groups):
        return value.reshape(entry.file_shape)
    return value.reshape(entry.file_shape[::-1]).T


def _attention_of_last(count: int) -> str:
    """Registers a peer's attention that answers the last `count` queries, zero elsewhere: 32,768 keys cost no T^2."""

    def last(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[Any, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        total = key.shape[2]
        seen = torch.arange(total)[None] <= torch.arange(total - count, total)[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(query[:, :, -count:], key, value, attn_mask=seen)
        zeros = query.new_zeros(*query.shape[:2], query.shape[2] - count, query.shape[3])
        return torch.cat([zeros, out], 2).transpose(1, 2), None

    transformers.AttentionInterface.register("last_queries", last)
    transformers.AttentionMaskInterface.register("last_queries", lambda *args, **kwargs: None)
    return "last_queries"


def far_cached_error(hf: dict[str, Any], last: int = 16) -> float:
    """Largest difference of the logits at positions 32,752 to 32,767 of one row of 32,768 ids, one layer, cached.

    The layer's keys of all positions come from a whole row; the last ids are then decoded one by one against them.
    """
    hf = {**hf, "num_hidden_layers": 1}
    other = peer(hf)
    model = ours(other)
    tokens_T = np.random.default_rng(6).integers(0, model.config.V, FAR)
    other.set_attn_implementation(_attention_of_last(last))
    with torch.no_grad():
        theirs = other(torch.tensor(tokens_T[None]), logits_to_keep=last).logits[0].numpy()
    mine = np.asarray(_decode_last(model, jnp.asarray(tokens_T), last))
    return float(np.abs(mine - theirs).max())


@functools.partial(jax.jit, static_argnums=2, compiler_options=FAST)
def _decode_last(model: Decoder, tokens_T: jax.Array, last: int) -> jax.Array:
    flat = unstack(model)
    length = tokens_T.shape[0]

    def fill(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        slots = cache.from_prompt(k_BTKH, v_BTKH, jnp.float32)
        # What will be decoded is cleared, so that a step which does not write its own key shows.
        return q_BTKGH, (jax.tree.map(lambda x: x.at[:, :, length - last :].set(0), slots),)

    _, state = forward(flat, tokens_T[None], jnp.arange(length)[None], fill)

    def step(state: cache.Cache, position: jax.Array) -> tuple[cache.Cache, jax.Array]:
        out_BV, state = decode_step(flat, tokens_T[position][None], position[None], state)
        return state, out_BV[0]

    return jax.lax.scan(step, state, jnp.arange(length - last, length))[1]
