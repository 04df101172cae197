"""What a family is: how its `config.json` reads, and how its checkpoint names and lays out each parameter."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from s1jax.config import BadInput, convert
from s1jax.models.config import DecoderConfig

Layout = Mapping[str, tuple[str, str]]
"""Parameter path -> (name in the checkpoint, `{L}` for the layer; `"checkpoint axes -> our axes"`)."""

LAYOUT: Layout = {
    "embed": ("model.embed_tokens.weight", "V D -> V D"),
    "norm": ("model.norm.weight", "D -> D"),
    "head": ("lm_head.weight", "V D -> D V"),
    "blocks.attn_norm": ("model.layers.{L}.input_layernorm.weight", "D -> D"),
    "blocks.q": ("model.layers.{L}.self_attn.q_proj.weight", "(K G H) D -> D K G H"),
    "blocks.k": ("model.layers.{L}.self_attn.k_proj.weight", "(K H) D -> D K H"),
    "blocks.v": ("model.layers.{L}.self_attn.v_proj.weight", "(K H) D -> D K H"),
    "blocks.o": ("model.layers.{L}.self_attn.o_proj.weight", "D (K G H) -> K G H D"),
    "blocks.mlp_norm": ("model.layers.{L}.post_attention_layernorm.weight", "D -> D"),
    "blocks.gate": ("model.layers.{L}.mlp.gate_proj.weight", "F D -> D F"),
    "blocks.up": ("model.layers.{L}.mlp.up_proj.weight", "F D -> D F"),
    "blocks.down": ("model.layers.{L}.mlp.down_proj.weight", "D F -> F D"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One line of `FAMILIES`.

    Attributes:
      name: its key.
      model_type: the `model_type` in a checkpoint's `config.json`.
      from_hf, to_hf: `config.json` to `DecoderConfig` and back.
      layout: every parameter the family may have; `head` is absent from tied checkpoints.
    """

    name: str
    model_type: str
    from_hf: Callable[[Mapping[str, Any]], DecoderConfig]
    to_hf: Callable[[DecoderConfig], dict[str, Any]]
    layout: Layout


COMMON = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, 0.0),
    "use_sliding_window": (False, None),
    "num_experts": (None,),
    "num_local_experts": (None,),
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
}


# Field of a `config.json` -> the letter or field that it is, and what stands for it where it is missing or null.
NAMED: dict[str, tuple[str, Any]] = {
    "hidden_size": ("D", None),
    "intermediate_size": ("F", None),
    "vocab_size": ("V", None),
    "num_hidden_layers": ("L", None),
    "rope_theta": ("rope_theta", 10000.0),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "max_position_embeddings": ("max_position", 32768),
    "tie_word_embeddings": ("tied", False),
}


def refuse(hf: Mapping[str, Any], *, rope_types: tuple[str, ...] = ("default",), **supported: tuple[Any, ...]) -> None:
    """Raise BadInput for a field of a `config.json` whose value would change the mathematics; absent fields pass.

    Args:
      rope_types: the kinds of rotary embedding that the family has.
      supported: the values that may stand in a field, beside those that hold for every family.
    """
    for name, values in {**COMMON, **supported}.items():
        if name in hf and hf[name] not in values:
            shown = " or ".join(repr(value) for value in values if value is not None) or "its absence"
            raise BadInput(f"config.json has {name}={hf[name]!r}, supported is {shown}; this checkpoint cannot be used")
    kinds = set(hf.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise BadInput(
            f"config.json has layer_types with {sorted(kinds)[0]!r}, supported is 'full_attention'; "
            "this checkpoint cannot be used"
        )
    rope = rope_parameters(hf)
    if rope["rope_type"] not in rope_types:
        raise BadInput(
            f"config.json has rope_type={rope['rope_type']!r}, supported is {' or '.join(map(repr, rope_types))}; "
            "this checkpoint cannot be used"
        )


def base_config(name: str, hf: Mapping[str, Any], *, head_dim: int | None = None, **switches: Any) -> DecoderConfig:
    """The fields that all families share.

    Args:
      head_dim: head width where the file names none; None for hidden size / heads.

    Raises:
      BadInput: a field is missing or not a number, or sizes do not divide.
    """
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    for key in (*needed, "num_key_value_heads"):
        if key not in hf:
            raise BadInput(f"config.json lacks {key}; it is not the config of a {name} checkpoint")
        if isinstance(hf[key], bool) or not isinstance(hf[key], int) or hf[key] < 1:
            raise BadInput(f"config.json has {key}={hf[key]!r}, it must be a whole number above 0; mend the config")
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    if heads % kv_heads:
        raise BadInput(f"config.json: {heads} query heads are not a multiple of {kv_heads} kv heads; mend the config")
    found = {**NAMED, "head_dim": ("H", head_dim or hf["hidden_size"] // heads)}
    given = {**hf, **{key: value for key, value in rope_parameters(hf).items() if key == "rope_theta"}}
    hints = typing.get_type_hints(DecoderConfig, include_extras=True)
    sizes = {
        field: convert(hints[field], default if given.get(key) is None else given[key], f"config.json {key}")
        for key, (field, default) in found.items()
    }
    return DecoderConfig(family=name, K=kv_heads, G=heads // kv_heads, **sizes, **switches)


def rope_parameters(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rope fields, which older files keep at the top and newer ones under `rope_parameters`."""
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    rope.setdefault("rope_theta", hf.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def base_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a `config.json` that all families share."""
    return {
        "hidden_size": config.D,
        "num_attention_heads": config.K * config.G,
        "num_key_value_heads": config.K,
        "head_dim": config.H,
        "intermediate_size": config.F,
        "vocab_size": config.V,
        "num_hidden_layers": config.L,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
