"""The pre-norm decoder with grouped-query attention that Qwen2.5, Qwen3 and Llama 3 share.

A family file says what differs (biases, per-head norms, rope scaling, names in a checkpoint). Nothing here knows of
files, meshes, caches or losses: the caller passes `attend`, which alone sees keys and values.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from s1jax.models import layers
from s1jax.models.config import DecoderConfig
from s1jax.parallel.axes import Weight, constrain, einsum, take
from s1jax.parallel.mesh import LOOKUP

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""`attend(q_BTKGH, k_BTKH, v_BTKH, layer_state) -> (o_BTKGH, layer_state)`, called once a layer after the rotation."""


class Block(nnx.Module):
    """Parameters of one layer, in the letters of `axes`. Stacked blocks have a leading L."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        D, K, G, H, F = config.D, config.K, config.G, config.H, config.F
        inner, out = 1 / math.sqrt(D), 1 / math.sqrt(K * G * H * 2 * config.L)
        self.attn_norm = layers.param("D", (D,), rngs)
        self.q = layers.param("DKGH", (D, K, G, H), rngs, scale=inner)
        self.k = layers.param("DKH", (D, K, H), rngs, scale=inner)
        self.v = layers.param("DKH", (D, K, H), rngs, scale=inner)
        self.o = layers.param("KGHD", (K, G, H, D), rngs, scale=out)
        if config.qkv_bias:
            self.q_bias = layers.param("KGH", (K, G, H), rngs, scale=0.0)
            self.k_bias = layers.param("KH", (K, H), rngs, scale=0.0)
            self.v_bias = layers.param("KH", (K, H), rngs, scale=0.0)
        if config.qk_norm:
            self.q_norm = layers.param("H", (H,), rngs)
            self.k_norm = layers.param("H", (H,), rngs)
        self.mlp_norm = layers.param("D", (D,), rngs)
        self.gate = layers.param("DF", (D, F), rngs, scale=inner)
        self.up = layers.param("DF", (D, F), rngs, scale=inner)
        self.down = layers.param("FD", (F, D), rngs, scale=1 / math.sqrt(F * 2 * config.L))


class Decoder(nnx.Module):
    """Parameters of a whole model. `blocks` is one stacked `Block`, or an `nnx.List` of blocks after `unstack`."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        rngs = nnx.Rngs(jax.random.fold_in(key, 0))
        keys = jax.random.split(jax.random.fold_in(key, 1), config.L)
        self.config = config
        self.embed = layers.param("VD", (config.V, config.D), rngs, scale=1 / math.sqrt(config.D))
        self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key)))(keys)
        self.norm = layers.param("D", (config.D,), rngs)
        if not config.tied:
            self.head = layers.param("DV", (config.D, config.V), rngs, scale=1 / math.sqrt(config.D))


class Unstacked(nnx.Module):
    """A `Decoder` whose layers are separate: a scan would copy each layer out of the stack in every decode step."""

    def __init__(self, model: Decoder, blocks: list[Block]) -> None:
        self.config = model.config
        self.embed = model.embed
        self.blocks = nnx.List(blocks)
        self.norm = model.norm
        if not model.config.tied:
            self.head = model.head


Model = Decoder | Unstacked


def unstack(model: Decoder) -> Unstacked:
    """Per-layer parameters of a stacked model."""
    blocks = [jax.tree.map(lambda x, layer=layer: x[layer], model.blocks) for layer in range(model.config.L)]
    return Unstacked(model, blocks)


def letters(model: Model) -> Any:
    """The model's tree with each array replaced by its letters (a leading `L` where layers are stacked)."""

    def name(path: tuple, variable: nnx.Param) -> Any:
        stacked = "L" if any(getattr(key, "name", "") == "blocks" for key in path) and _is_stacked(model) else ""
        return variable.replace(stacked + variable.get_metadata("letters"))

    return jax.tree_util.tree_map_with_path(name, model, is_leaf=lambda node: isinstance(node, nnx.Param))


def named(model: Model) -> dict[str, Any]:
    """`{"embed": array, "blocks.q": array, ...}` in the order of the tree's leaves; `blocks.3.q` in an unstacked model.

    `jax.tree.unflatten(jax.tree.structure(model), named(model).values())` is the model again.
    """

    def name(key: Any) -> str:
        return str(getattr(key, "name", getattr(key, "idx", key)))

    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Param))[0]
    return {".".join(map(name, path)): variable.get_value() for path, variable in found}


def _is_stacked(model: Model) -> bool:
    return isinstance(model.blocks, Block)


def forward(
    model: Model,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    attend: Attend,
    state: Any = None,
    *,
    dtype: jnp.dtype | type = jnp.float32,
    remat: Callable[[Callable], Callable] | None = None,
    scan: Callable[..., tuple[jax.Array, Any]] = jax.lax.scan,
) -> tuple[jax.Array, Any]:
    """Hidden states `[B, T, D]` after the final norm, and the new attention state.

    Profiles and HLO name its parts `embed`, `attention`, `mlp`, `norm` and, of `logits`, `head`.

    Args:
      model: stacked (layers run in a scan) or unstacked (layers run one after another).
      tokens_BT, positions_BT: tokens and their positions in their own sequences.
      attend: reads and writes the state of one layer.
      state: a pytree with leading L for a stacked model, a sequence of L states for an unstacked one, or None.
      dtype: compute type; parameters are cast where they are used.
      remat: wraps the function of one layer, such as `jax.checkpoint` with a policy.
      scan: runs stacked layers, as `jax.lax.scan` does.
    """
    config = model.config
    with jax.named_scope("embed"):
        x_BTD = take(model.embed.get_value(), tokens_BT, "BTD", LOOKUP).astype(dtype)
    angles = layers.rotary_angles(positions_BT, config.inverse_frequencies)

    def layer(x_BTD: jax.Array, block_and_state: tuple[Block, Any]) -> tuple[jax.Array, Any]:
        return _layer(config, x_BTD, *block_and_state, angles, attend)

    layer = layer if remat is None else remat(layer)
    if isinstance(model.blocks, Block):
        x_BTD, state = scan(layer, x_BTD, (model.blocks, state))
    else:
        states = []
        for block, inner in zip(model.blocks, state or [None] * config.L, strict=True):
            x_BTD, inner = layer(x_BTD, (block, inner))
            states.append(inner)
        state = tuple(states)
    return layers.rms_norm(x_BTD, model.norm, config.norm_eps), state


def _layer(
    config: DecoderConfig,
    x_BTD: jax.Array,
    block: Block,
    state: Any,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> tuple[jax.Array, Any]:
    with jax.named_scope("attention"):
        h_BTD = layers.rms_norm(x_BTD, block.attn_norm, config.norm_eps)
        q_BTKGH, k_BTKH, v_BTKH = _project(config, h_BTD, block)
        q_BTKGH = constrain(layers.rotate(q_BTKGH, *angles), "BTKGH")
        k_BTKH = constrain(layers.rotate(k_BTKH, *angles), "BTKH")
        o_BTKGH, state = attend(q_BTKGH, k_BTKH, constrain(v_BTKH, "BTKH"), state)
        x_BTD = constrain(x_BTD + einsum("BTKGH,KGHD->BTD", o_BTKGH, block.o.get_value()), "BTD")
    with jax.named_scope("mlp"):
        h_BTD = layers.rms_norm(x_BTD, block.mlp_norm, config.norm_eps)
        gate, up, down = block.gate.get_value(), block.up.get_value(), block.down.get_value()
        return constrain(x_BTD + layers.swiglu(h_BTD, gate, up, down, constrain), "BTD"), state


def _project(config: DecoderConfig, h_BTD: jax.Array, block: Block) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values before the rotation."""
    q_BTKGH = einsum("BTD,DKGH->BTKGH", h_BTD, block.q.get_value())
    k_BTKH = einsum("BTD,DKH->BTKH", h_BTD, block.k.get_value())
    v_BTKH = einsum("BTD,DKH->BTKH", h_BTD, block.v.get_value())
    if config.qkv_bias:
        q_BTKGH = q_BTKGH + block.q_bias.get_value().astype(q_BTKGH.dtype)
        k_BTKH = k_BTKH + block.k_bias.get_value().astype(k_BTKH.dtype)
        v_BTKH = v_BTKH + block.v_bias.get_value().astype(v_BTKH.dtype)
    if config.qk_norm:
        q_BTKGH = layers.rms_norm(q_BTKGH, block.q_norm, config.norm_eps)
        k_BTKH = layers.rms_norm(k_BTKH, block.k_norm, config.norm_eps)
    return q_BTKGH, k_BTKH, v_BTKH


def head(model: Model) -> tuple[str, Weight]:
    """The letters and the weight of the product that makes logits; tied, the embedding."""
    return ("VD", model.embed.get_value()) if model.config.tied else ("DV", model.head.get_value())  # pyright: ignore


@jax.named_scope("head")
def logits(model: Model, x_BTD: jax.Array) -> jax.Array:
    """Float32 logits `[B, T, V]`; accumulated in float32, because bf16 logits tie and then the order of ids decides."""
    letters, weight = head(model)
    return einsum(f"BTD,{letters}->BTV", x_BTD, weight, accumulate=jnp.float32)


def count(model: Model) -> int:
    """Number of parameters, from shapes alone (works on `jax.eval_shape` of a constructor)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def abstract(config: DecoderConfig) -> Decoder:
    """The model's tree with shapes in place of arrays; nothing is allocated."""
    return jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
