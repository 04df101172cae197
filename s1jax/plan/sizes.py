"""The sizes of the model to plan for; weights and tokenizer are not needed."""

import pathlib

from s1jax.checkpoint.folder import read_config
from s1jax.config import BadInput
from s1jax.hub import fetch
from s1jax.models import FAMILIES
from s1jax.models.decoder import DecoderConfig
from s1jax.train.config import RandomModel

_QWEN25 = {"family": "qwen2", "H": 128, "V": 152064, "qkv_bias": True}
# The models that the shipped recipes name, so that these can be planned without a network.
KNOWN = {
    "Qwen/Qwen2.5-7B-Instruct": DecoderConfig(**_QWEN25, D=3584, K=4, G=7, F=18944, L=28),
    "Qwen/Qwen2.5-14B-Instruct": DecoderConfig(**_QWEN25, D=5120, K=8, G=5, F=13824, L=48),
    "Qwen/Qwen2.5-32B-Instruct": DecoderConfig(**_QWEN25, D=5120, K=8, G=5, F=27648, L=64),
}


def decoder_config(model: str | RandomModel) -> DecoderConfig:
    """Sizes of a model in a folder with a `config.json`, of a hub id (of which that file is fetched), or as given.

    Raises:
      BadInput: none of these, or a model that this project does not know.
    """
    if isinstance(model, RandomModel):
        if model.init.family not in FAMILIES:
            raise BadInput(f"model.init.family={model.init.family!r} is not known; use one of {', '.join(FAMILIES)}")
        return model.init
    if model in KNOWN and not pathlib.Path(model).is_dir():
        return KNOWN[model]
    return read_config(fetch(model, ["config.json"], "model"))
