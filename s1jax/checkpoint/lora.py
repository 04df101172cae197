"""Adapters as PEFT stores them: `adapter_model.safetensors` and `adapter_config.json`."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.experimental import multihost_utils

from s1jax.checkpoint import layout
from s1jax.checkpoint.entry import Entry
from s1jax.checkpoint.folder import close_partial, open_partial
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.models.lora import Adapter, Adapters, LoraConfig, check, letters
from s1jax.records import write_json
from s1jax.text import token_backend

MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _entries(config: DecoderConfig, lora: LoraConfig) -> list[tuple[str, int, Entry, str]]:
    """Target, layer, entry and the module's name without `.weight`, of every adapted matrix."""
    found = []
    for entry in layout.entries(config):
        target = entry.path.removeprefix("blocks.")
        if entry.layer is not None and target in lora.targets:
            found.append((target, entry.layer, entry, entry.name.removesuffix(".weight")))
    return found


def save(
    adapters: Adapters,
    config: DecoderConfig,
    lora: LoraConfig,
    folder: pathlib.Path,
    *,
    base: str,
    replace: bool = False,
) -> None:
    """Write adapters for `peft.PeftModel.from_pretrained`; every process calls it, the first one writes.

    Args:
      base: folder or hub id of the model they belong to.
      replace: remove what stands in `folder`, when the new files are complete.

    Raises:
      BadInput: `folder` holds something.
    """
    from safetensors.numpy import save_file

    host = multihost_utils.process_allgather(adapters, tiled=True) if jax.process_count() > 1 else adapters
    if jax.process_index() != 0:
        return
    host = jax.device_get(host)
    tensors, modules = {}, set()
    for target, layer, _, name in _entries(config, lora):
        down, up = host[target].down[layer], host[target].up[layer]
        modules.add(name.rpartition(".")[2])
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(down.reshape(-1, lora.rank).T)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(up.reshape(lora.rank, -1).T)
    partial = open_partial(pathlib.Path(folder), replace=replace)
    save_file(tensors, partial / MODEL, metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    fields |= {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none"}
    write_json(partial / CONFIG, {**fields, "target_modules": sorted(modules), "fan_in_fan_out": False})
    close_partial(partial, pathlib.Path(folder))


def load(folder: pathlib.Path, config: DecoderConfig) -> tuple[Adapters, LoraConfig]:
    """Adapters that `save` or PEFT wrote for this model, in float32.

    Raises:
      BadInput: files are missing or damaged, adapters of another kind, or of another model.
    """
    folder = pathlib.Path(folder)
    fields = token_backend.read_object(folder / CONFIG)
    lora = _lora_config(folder, fields, config)
    try:
        with safetensors.safe_open(folder / MODEL, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{folder / MODEL} is missing, cut off or not a safetensors file ({error})") from None
    parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {name: ([], []) for name in lora.targets}
    for target, _, entry, name in _entries(config, lora):
        for side, letter in enumerate("AB"):
            shape = _leaf_shape(lora, target, side, entry)
            key = f"base_model.model.{name}.lora_{letter}.weight"
            value = tensors.pop(key, None)
            expected = (lora.rank, int(np.prod(shape[:-1]))) if side == 0 else (int(np.prod(shape[1:])), lora.rank)
            if value is None or value.shape != expected:
                what = "is missing" if value is None else f"has shape {value.shape}, not {expected}"
                raise BadInput(f"tensor {key!r} in {folder / MODEL} {what}; the adapter is of another model")
            parts[target][side].append(value.astype(np.float32).T.reshape(shape))
    if tensors:
        raise BadInput(f"{folder / MODEL} holds tensor {min(tensors)!r}, which has no place in this model")
    stacked = {name: Adapter(*(jnp.asarray(np.stack(side)) for side in sides)) for name, sides in parts.items()}
    return stacked, lora


def _leaf_shape(lora: LoraConfig, target: str, side: int, entry: Entry) -> tuple[int, ...]:
    text = letters(lora)[target]
    sizes = {**entry.sizes, "R": lora.rank}
    return tuple(sizes[letter] for letter in str((text.down, text.up)[side])[1:])


def _lora_config(folder: pathlib.Path, fields: dict[str, Any], config: DecoderConfig) -> LoraConfig:
    plain = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
    if "r" not in fields or "lora_alpha" not in fields or not isinstance(fields.get("target_modules"), list):
        raise BadInput(f"{folder / CONFIG} is missing or names no r, lora_alpha and list of target_modules")
    for key, value in plain.items():
        if fields.get(key, value) != value:
            raise BadInput(f"{folder / CONFIG} has {key}={fields[key]!r}, supported is {value!r}")
    if fields.get("rank_pattern") or fields.get("alpha_pattern"):
        raise BadInput(f"{folder / CONFIG} has ranks or alphas that differ by layer; they must be the same in all")
    every = LoraConfig()
    modules = {name.rpartition(".")[2]: target for target, _, _, name in _entries(config, every)}
    unknown = [module for module in fields["target_modules"] if module not in modules]
    if unknown:
        raise BadInput(f"{folder / CONFIG} adapts {unknown[0]!r}; supported are {', '.join(modules)}")
    targets = tuple(target for module, target in modules.items() if module in fields["target_modules"])
    lora = LoraConfig(rank=fields["r"], alpha=float(fields["lora_alpha"]), targets=targets)
    check(lora)
    return lora
