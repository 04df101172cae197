"""Model families. A new family is one file and one line here; its tests come with the line."""

from s1jax.config import BadInput
from s1jax.models import llama, qwen2, qwen3
from s1jax.models.config import DecoderConfig
from s1jax.models.family import Family

FAMILIES: dict[str, Family] = {
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "llama": llama.FAMILY,
}


def config_from_hf(hf: dict) -> DecoderConfig:
    """The config of a checkpoint by the `model_type` of its `config.json`. Raises BadInput for an unknown family."""
    by_type = {family.model_type: family for family in FAMILIES.values()}
    model_type = hf.get("model_type")
    if model_type not in by_type:
        known = ", ".join(sorted(by_type))
        raise BadInput(f"config.json has model_type={model_type!r}; supported are {known}")
    return by_type[model_type].from_hf(hf)
