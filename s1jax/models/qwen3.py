"""Qwen3, dense (0.6B to 32B): RMS norm per head on q and k, no biases, head width named by the config."""

from collections.abc import Mapping
from typing import Any

from s1jax.models import family
from s1jax.models.config import DecoderConfig
from s1jax.models.family import Family

HEAD_WIDTH = 128  # what transformers takes where the file names none, whatever the hidden size


def from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """The config of a `Qwen3ForCausalLM` checkpoint. Raises BadInput for fields that would change the mathematics."""
    family.refuse(hf, attention_bias=(False,))
    return family.base_config("qwen3", hf, head_dim=HEAD_WIDTH, qk_norm=True)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` from which transformers builds the same model."""
    return {
        **family.base_hf(config),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.L,
    }


FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    from_hf=from_hf,
    to_hf=to_hf,
    layout={
        **family.LAYOUT,
        "blocks.q_norm": ("model.layers.{L}.self_attn.q_norm.weight", "H -> H"),
        "blocks.k_norm": ("model.layers.{L}.self_attn.k_norm.weight", "H -> H"),
    },
)
