"""The verb `train`: a config and a data set become a fine-tuned model in `out/hf`.

out/config.yaml, run.json      what ran
out/metrics.jsonl              one line a step; validation.jsonl where there are held-out rows
out/tensorboard/               the same
out/checkpoints/00000100/      model, optimizer and step
out/hf/                        the model at the end
"""

import contextlib
import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.checkpoint import hf, store
from s1jax.checkpoint.folder import fetch, read_config
from s1jax.config import BadInput, free, open_run
from s1jax.mesh import MeshConfig, make_mesh
from s1jax.models import FAMILIES, attention
from s1jax.models.decoder import Decoder, DecoderConfig, count
from s1jax.tokens import Tokenizer
from s1jax.train import data
from s1jax.train.flops import peak_flops
from s1jax.train.log import LogConfig, Record, open_log, rewind
from s1jax.train.loop import Loop, Pace, train
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig, warmup_steps
from s1jax.train.packing import PackingConfig
from s1jax.train.plan import HostBatch, Plan, in_order, make_plan, steps_per_epoch
from s1jax.train.step import (
    REMAT,
    Recipe,
    TrainState,
    batch_sharding,
    initial_state,
    make_eval,
    make_step,
    state_shardings,
)
from s1jax.train.stop import listening


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A model of these sizes with random weights drawn from the run's seed."""

    init: DecoderConfig


@dataclasses.dataclass(frozen=True)
class SaveConfig:
    """Checkpoints.

    Attributes:
      every: steps between two; None for one at the end only.
      keep: how many of the newest stay. The best by validation loss stays too.
      export: which model goes to `hf/`: that of the last step, or the best by validation loss.
      dtype: type of the tensors in `hf/`.
    """

    every: int | None = 100
    keep: int = 2
    export: Literal["last", "best"] = "last"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


@dataclasses.dataclass(frozen=True)
class TrainRun:
    """A fine-tuning run. The defaults are upstream's recipe (simplescaling/s1@77272c6 train/sft.sh).

    Attributes:
      model: folder or hub id of a checkpoint, or `{init: {family: qwen2, D: 64, ...}}` for random weights.
      data: which rows, and how they are rendered.
      tokenizer: folder or hub id; by default the model's.
      chat_template: file with a Jinja template in place of the tokenizer's.
      eval_rows: held-out data sets, rendered like the training rows, for the validation loss.
      epochs, steps: length of the run; `steps` decides where it is given.
      global_batch: examples of an update.
      micro_batch: rows that a device takes at once; accumulation follows from it and the mesh.
      packing, loss, optimizer: see there.
      dtype: compute type; parameters and their gradients are float32.
      remat: what the backward pass recomputes, a key of `step.REMAT`.
      attention: `auto`, or a key of `attention.BACKENDS`.
      seed: of the order of examples, and of random weights.
      eval_every: steps between two validations; one is made before each save in any case.
      profile_steps: first step to trace and how many.
      out: folder of the run.
    """

    model: str | RandomModel
    data: data.DataConfig
    tokenizer: str = ""
    chat_template: str = ""
    eval_rows: str | tuple[str, ...] = ()
    epochs: int = 5
    steps: int | None = None
    global_batch: int = 16
    micro_batch: int = free(1)
    packing: PackingConfig = PackingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: str = free("full")
    attention: str = free("auto")
    seed: int = 42
    mesh: MeshConfig = free(MeshConfig())
    save: SaveConfig = free(SaveConfig())
    log: LogConfig = free(LogConfig())
    eval_every: int | None = free(None)
    profile_steps: tuple[int, int] | None = free(None)
    out: str = ""


def run(config: TrainRun, *, progress: Callable[[Record], None] | None = None) -> pathlib.Path:
    """Train, or go on with the run in `config.out`.

    Args:
      progress: called with the record of each step (metrics, and `seconds_left`) in place of the display.

    Returns: the folder with the exported model, `out/hf`.

    Raises:
      BadInput: anything wrong with config, data or checkpoints, before any step.
      FloatingPointError: loss or gradient became infinite or NaN.
    """
    mesh = make_mesh(config.mesh)
    tokenizer = _tokenizer(config)
    model = _model_config(config, tokenizer)
    examples = data.load_examples(config.data, tokenizer)
    plan = _plan(config, examples, mesh)
    validation = _validation(config, tokenizer, plan, mesh)
    _check_positions(model, examples)
    recipe = _recipe(config, model, plan, validation, mesh)
    out = open_run(config, device=_describe_devices(mesh))
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh)
    _say(f"model of {count(shapes.model):,} parameters; {examples.describe()}")
    _say(plan.describe())
    state, start = _state(config, out, recipe, shapes, shardings, mesh)
    rewind(out / "validation.jsonl", start)
    log = open_log(config.log, out, step=start, steps=plan.steps, progress=progress, quiet=jax.process_index() != 0)
    checkpoints = store.Store(out / "checkpoints", config.save.keep)
    with contextlib.closing(log), contextlib.closing(checkpoints), listening() as stop:
        loop = Loop(
            model=model,
            plan=plan,
            step=make_step(recipe, mesh, shardings),
            evaluate=make_eval(recipe, mesh, shardings),
            rows_at_once=_rows_at_once(config, mesh),
            sharding=batch_sharding(mesh),
            validation=validation,
            store=checkpoints,
            log=log,
            stop=stop,
            pace=Pace(config.save.every, config.eval_every if validation else None, config.profile_steps),
            out=out,
            peak=peak_flops(mesh.devices.flat),
            say=_say,
        )
        state = train(loop, state, start)
    return _export(config, out, state, shapes, shardings, tokenizer, is_new=start < plan.steps)


def _tokenizer(config: TrainRun) -> Tokenizer:
    source = config.tokenizer or (config.model if isinstance(config.model, str) else "")
    if not source:
        raise BadInput("a model of random weights has no tokenizer; set tokenizer=DIR")
    template = None
    if config.chat_template:
        path = pathlib.Path(config.chat_template)
        if not path.is_file():
            raise BadInput(f"chat_template={path} does not exist; give a file with a Jinja template")
        template = path.read_text(encoding="utf-8")
    return Tokenizer.load(source, chat_template=template)


def _model_config(config: TrainRun, tokenizer: Tokenizer) -> DecoderConfig:
    model = config.model.init if isinstance(config.model, RandomModel) else read_config(fetch(config.model))
    if model.family not in FAMILIES:
        raise BadInput(f"model.init.family={model.family!r} is not known; use one of {', '.join(FAMILIES)}")
    if model.V < tokenizer.size:
        raise BadInput(f"the model has {model.V} ids, its tokenizer {tokenizer.size}; use the model's own tokenizer")
    if config.remat not in REMAT:
        raise BadInput(f"remat={config.remat!r} is not known; use one of {', '.join(REMAT)}")
    return model


def _rows_at_once(config: TrainRun, mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"] * config.micro_batch


def _plan(config: TrainRun, examples: data.Examples, mesh: Mesh) -> Plan:
    for name in ("global_batch", "micro_batch", "epochs"):
        if getattr(config, name) < 1:
            raise BadInput(f"{name}={getattr(config, name)}; it must be at least 1")
    per_epoch = steps_per_epoch(len(examples.rows), config.global_batch)
    steps = config.epochs * per_epoch if config.steps is None else config.steps
    if steps < 1:
        raise BadInput(f"steps={steps}; it must be at least 1")
    warmup_steps(config.optimizer, steps)
    return make_plan(
        examples.rows,
        config.packing,
        batch=config.global_batch,
        steps=steps,
        seed=config.seed,
        norm=config.loss.norm,
        row_multiple=_rows_at_once(config, mesh),
        length_multiple=mesh.shape["context"],
        block=config.data.block,
    )


def _validation(config: TrainRun, tokenizer: Tokenizer, plan: Plan, mesh: Mesh) -> list[HostBatch]:
    if not config.eval_rows:
        return []
    examples = data.load_examples(config.data, tokenizer, config.eval_rows)
    _say(f"validation: {examples.describe()}")
    multiple = math.lcm(config.packing.multiple, mesh.shape["context"])
    return in_order(examples.rows, plan, row_multiple=_rows_at_once(config, mesh), length_multiple=multiple)


def _recipe(config: TrainRun, model: DecoderConfig, plan: Plan, validation: Sequence[HostBatch], mesh: Mesh) -> Recipe:
    backend = attention.choose(config.attention, model, mesh, dtype=config.dtype, is_packed=config.packing.enabled)
    _say(f"attention: {backend}")
    return Recipe(
        optimizer=config.optimizer,
        loss=config.loss,
        steps=plan.steps,
        dtype=config.dtype,
        remat=config.remat,
        attention=backend,
        most=max([plan.most, *(int(batch.arrays.segments.max()) for batch in validation)]),
        longest=max([plan.longest, *(max(batch.lengths) for batch in validation)]),
    )


def _check_positions(model: DecoderConfig, examples: data.Examples) -> None:
    longest = max(len(row.ids) for row in examples.rows)
    if longest > model.max_position:
        raise BadInput(
            f"the longest row has {longest} ids, the model is made for {model.max_position} positions; set data.block="
            f"{model.max_position}"
        )


def _state(
    config: TrainRun, out: pathlib.Path, recipe: Recipe, shapes: TrainState, shardings: TrainState, mesh: Mesh
) -> tuple[TrainState, int]:
    """The newest intact checkpoint, or step 0, and the step it stands at."""
    found = store.newest_intact(out / "checkpoints", _say)
    if found is not None:
        _say(f"going on from the checkpoint of step {found.step}")
        return _restore(found, shapes, shardings), found.step
    key = jax.random.key(config.seed)
    if isinstance(config.model, RandomModel):
        sizes = config.model.init
        start = jax.jit(lambda key: initial_state(Decoder(sizes, key), recipe), out_shardings=shardings)
        return start(key), 0
    model = hf.load(config.model, mesh=mesh, dtype=jnp.float32)
    start = jax.jit(lambda model: initial_state(model, recipe), out_shardings=shardings, donate_argnums=0)
    return start(model), 0


def _restore(found: store.Saved, shapes: TrainState, shardings: TrainState) -> TrainState:
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return store.restore(found, abstract)


def _export(
    config: TrainRun,
    out: pathlib.Path,
    state: TrainState,
    shapes: TrainState,
    shardings: TrainState,
    tokenizer: Tokenizer,
    *,
    is_new: bool,
) -> pathlib.Path:
    """Write `hf/`, unless the run had been finished and exported before."""
    folder = out / "hf"
    if folder.exists() and not is_new:
        return folder
    if config.save.export == "best":
        measured = [found for found in store.saved(out / "checkpoints") if found.loss is not None]
        if not measured:
            raise BadInput("save.export=best needs eval_rows, by whose loss the best is known; set one of the two")
        best = min(measured, key=lambda found: (found.loss, found.step))
        _say(f"exporting the checkpoint of step {best.step}, validation loss {best.loss:.4f}")
        state = _restore(best, shapes, shardings)
    hf.save(state.model, folder, dtype=jnp.dtype(config.save.dtype), tokenizer_source=tokenizer, replace=True)
    _say(f"model written to {folder}")
    return folder


def _describe_devices(mesh: Mesh) -> str:
    sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind} ({sizes})"


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
