"""Qwen2 and Qwen2.5 (0.5B to 72B): biases on q, k and v; a sliding window in the config is never in use."""

from collections.abc import Mapping
from typing import Any

from s1jax.models import family
from s1jax.models.config import DecoderConfig
from s1jax.models.family import Family


def from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """The config of a `Qwen2ForCausalLM` checkpoint. Raises BadInput for fields that would change the mathematics."""
    family.refuse(hf)
    return family.base_config("qwen2", hf, qkv_bias=True)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` from which transformers builds the same model."""
    return {
        **family.base_hf(config),
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.L,
    }


FAMILY = Family(
    name="qwen2",
    model_type="qwen2",
    from_hf=from_hf,
    to_hf=to_hf,
    layout={
        **family.LAYOUT,
        "blocks.q_bias": ("model.layers.{L}.self_attn.q_proj.bias", "(K G H) -> K G H"),
        "blocks.k_bias": ("model.layers.{L}.self_attn.k_proj.bias", "(K H) -> K H"),
        "blocks.v_bias": ("model.layers.{L}.self_attn.v_proj.bias", "(K H) -> K H"),
    },
)
