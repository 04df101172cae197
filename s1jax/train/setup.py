"""From a config to what a run works with: tokenizer, sizes, plan of the batches, compiled recipe. No device is touched
but to ask what it is, so everything that is wrong with the input is found before any work.
"""

import importlib.metadata
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from s1jax.checkpoint import contents
from s1jax.checkpoint.folder import fetch, read_config
from s1jax.config import BadInput, to_dict
from s1jax.models import FAMILIES, attention, lora
from s1jax.models.decoder import DecoderConfig
from s1jax.runs.fingerprint import Content
from s1jax.text.chat import read_template
from s1jax.text.tokens import Tokenizer
from s1jax.train import log
from s1jax.train.config import RandomModel, TrainRun
from s1jax.train.data import Examples
from s1jax.train.optimizer import warmup_steps
from s1jax.train.plan import HostBatch, Plan, in_order, make_plan, steps_per_epoch
from s1jax.train.remat import REMAT
from s1jax.train.step import Recipe, batch_sharding, own_rows


def check_config(config: TrainRun) -> None:
    """What is wrong with the config alone. Raises BadInput."""
    counts = {name: getattr(config, name) for name in ("global_batch", "micro_batch", "epochs", "steps", "eval_every")}
    for name, value in {**counts, "save.every": config.save.every, "data.block": config.data.block}.items():
        if value is not None and value < 1:
            raise BadInput(f"{name}={value}; it must be at least 1")
    if config.remat not in REMAT:
        raise BadInput(f"remat={config.remat!r} is not known; use one of {', '.join(REMAT)}")
    if config.eval_every is not None and not config.eval_rows:
        raise BadInput(f"eval_every={config.eval_every} has nothing to measure; give eval_rows, or leave it out")
    if config.save.export == "best" and not config.eval_rows:
        raise BadInput("save.export=best needs eval_rows, by whose loss the best is known; set one of the two")
    if config.lora is not None:
        lora.check(config.lora)
    log.check(config.log)


def load_tokenizer(config: TrainRun) -> Tokenizer:
    source = config.tokenizer or (config.model if isinstance(config.model, str) else "")
    if not source:
        raise BadInput("a model of random weights has no tokenizer; set tokenizer=DIR")
    template = read_template(config.chat_template) if config.chat_template else None
    return Tokenizer.load(source, chat_template=template, key="tokenizer" if config.tokenizer else "model")


def model_config(config: TrainRun, tokenizer: Tokenizer) -> DecoderConfig:
    model = config.model.init if isinstance(config.model, RandomModel) else read_config(fetch(config.model))
    if model.family not in FAMILIES:
        raise BadInput(f"model.init.family={model.family!r} is not known; use one of {', '.join(FAMILIES)}")
    if model.V < tokenizer.size:
        raise BadInput(f"the model has {model.V} tokens, its tokenizer {tokenizer.size}; use the model's own tokenizer")
    return model


def rows_at_once(config: TrainRun, mesh: Mesh | AbstractMesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"] * config.micro_batch


def plan_run(config: TrainRun, examples: Examples, mesh: Mesh | AbstractMesh) -> Plan:
    per_epoch = steps_per_epoch(len(examples.rows), config.global_batch)
    steps = config.epochs * per_epoch if config.steps is None else config.steps
    warmup_steps(config.optimizer, steps)
    return make_plan(
        examples.rows,
        config.packing,
        batch=config.global_batch,
        steps=steps,
        seed=config.seed,
        norm=config.loss.norm,
        row_multiple=rows_at_once(config, mesh),
        length_multiple=mesh.shape["context"],
        block=config.data.block,
    )


def plan_validation(config: TrainRun, examples: Examples | None, plan: Plan, mesh: Mesh) -> list[HostBatch]:
    if examples is None:
        return []
    say(f"validation: {examples.describe()}")
    multiple = math.lcm(config.packing.multiple, mesh.shape["context"])
    at_once = rows_at_once(config, mesh)
    own = own_rows(plan.rows, plan.rows // at_once, batch_sharding(mesh))
    return in_order(examples.rows, plan, row_multiple=at_once, length_multiple=multiple, own=own)


def recipe_of(
    config: TrainRun, model: DecoderConfig, plan: Plan, validation: Sequence[HostBatch], mesh: Mesh
) -> Recipe:
    most = max([plan.max_segments, *(int(batch.arrays.segments.max()) for batch in validation)])
    length = max([plan.max_segment_length, *(max(batch.lengths) for batch in validation)])
    recipe = recipe_for(config, model, mesh, steps=plan.steps, max_segments=most, max_segment_length=length)
    say(f"attention: {recipe.attention}")
    return recipe


def recipe_for(
    config: TrainRun, model: DecoderConfig, mesh: Mesh, *, steps: int, max_segments: int, max_segment_length: int
) -> Recipe:
    """What the step is compiled for. Raises BadInput for an attention that the mesh or the model cannot have."""
    return Recipe(
        optimizer=config.optimizer,
        loss=config.loss,
        steps=steps,
        dtype=config.dtype,
        remat=config.remat,
        attention=attention.choose(config.attention, model, mesh, dtype=config.dtype, is_packed=config.packing.enabled),
        offload_optimizer=config.offload_optimizer,
        lora=config.lora,
        max_segments=max_segments,
        max_segment_length=max_segment_length,
    )


def check_positions(model: DecoderConfig, examples: Examples) -> None:
    longest = max(len(row.ids) for row in examples.rows)
    if longest > model.max_position:
        raise BadInput(
            f"the longest row has {longest} tokens, the model is made for {model.max_position} positions; set "
            f"data.block={model.max_position}"
        )


def shared_facts(config: TrainRun, examples: Examples) -> dict[str, Any]:
    """What every process of a run must have alike: all of its config, versions, and the rows as tokens."""
    versions = {name: importlib.metadata.version(name) for name in ("s1jax", "jax")}
    return {**to_dict(config), **versions, "rows": examples.digest}


def contents_of(config: TrainRun, examples: Examples, held_out: Examples | None) -> dict[str, Content]:
    """What the run reads, by key: tokens of the rows, and files."""
    model = config.model if isinstance(config.model, str) else ""
    found = contents.of_texts(model, config.tokenizer, config.chat_template)
    if model:
        found["model"] = contents.of_model(model)
    rows = {"data.rows": (config.data.rows, examples), "eval_rows": (config.eval_rows, held_out)}
    for key, (source, read) in rows.items():
        if read is not None:
            named = source if isinstance(source, str) else ", ".join(source)
            found[key] = Content(named, {"the content": read.digest})
    return found


def describe_devices(mesh: Mesh) -> str:
    """`8 x TPU v5p (data=1 x fsdp=8 x ...)`."""
    sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind} ({sizes})"


def say(text: str) -> None:
    """A line on standard error, from the first host."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
