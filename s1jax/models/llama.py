"""Llama 3, 3.1 and 3.2 (text): no biases; from 3.1 on, long wavelengths of the rotary embedding are stretched."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from s1jax.config import BadInput, from_dict
from s1jax.models import family
from s1jax.models.config import DecoderConfig, RopeScaling
from s1jax.models.family import Family


def from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """The config of a `LlamaForCausalLM` checkpoint. Raises BadInput for fields that would change the mathematics."""
    family.refuse(hf, rope_types=("default", "llama3"), attention_bias=(False,), mlp_bias=(False,))
    return family.base_config("llama", hf, rope_scaling=_scaling(family.rope_parameters(hf)))


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope["rope_type"] == "default":
        return None
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [key for key in needed if key not in rope]:
        raise BadInput(f"config.json has rope_type='llama3' without {missing[0]}; mend the config")
    names = {field.name: field.name for field in dataclasses.fields(RopeScaling)}
    names["original_max_position"] = "original_max_position_embeddings"
    return from_dict(RopeScaling, {field: rope[key] for field, key in names.items()}, "config.json rope_scaling.")


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` from which transformers builds the same model."""
    scaling = config.rope_scaling
    return {
        **family.base_hf(config),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
    }


FAMILY = Family(name="llama", model_type="llama", from_hf=from_hf, to_hf=to_hf, layout=family.LAYOUT)
