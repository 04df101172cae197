"""The verb `train`: a config and a data set become a fine-tuned model in `out/hf`.

out/config.yaml, run.json      what ran
out/metrics.jsonl              one line a step; validation.jsonl where there are held-out rows
out/tensorboard/               the same
out/checkpoints/00000100/      model, optimizer and step
out/hf/                        the model at the end, adapters merged into it
out/adapter/                   the adapters alone, as PEFT has them
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from s1jax.checkpoint import hf, lora, saved, store
from s1jax.config import BadInput
from s1jax.models.decoder import Decoder, count
from s1jax.parallel import hosts
from s1jax.parallel.folder import opened
from s1jax.parallel.mesh import make_mesh
from s1jax.runs import places
from s1jax.text.tokens import Tokenizer
from s1jax.train import data
from s1jax.train.config import RandomModel as RandomModel
from s1jax.train.config import SaveConfig as SaveConfig
from s1jax.train.config import TrainRun
from s1jax.train.flops import peak_flops
from s1jax.train.log import Record, open_log
from s1jax.train.loop import Loop, Pace, train
from s1jax.train.programs import compile_all, shapes_of_batches, shapes_of_steps
from s1jax.train.setup import (
    check_config,
    check_positions,
    contents_of,
    describe_devices,
    load_tokenizer,
    model_config,
    plan_run,
    plan_validation,
    recipe_of,
    rows_at_once,
    say,
    shared_facts,
)
from s1jax.train.step import (
    Recipe,
    TrainState,
    batch_sharding,
    initial_state,
    make_eval,
    make_step,
    state_shardings,
    whole_model,
)
from s1jax.train.stop import listening


def run(config: TrainRun, *, progress: Callable[[Record], None] | None = None) -> pathlib.Path:
    """Train, or go on with the run in `config.out`.

    Args:
      progress: called with the record of each step (metrics, and `seconds_left`) in place of the display.

    Returns: the folder with the exported model, `out/hf`.

    Raises:
      BadInput: anything wrong with config, data or checkpoints, before any step.
      FloatingPointError: loss or gradient became infinite or NaN.
    """
    check_config(config)
    hosts.start(config.hosts)
    with hosts.leaving_at_once(), contextlib.ExitStack() as stack:
        return _train(config, progress, stack)


def _train(config: TrainRun, progress: Callable[[Record], None] | None, stack: contextlib.ExitStack) -> pathlib.Path:
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config)
    model = model_config(config, tokenizer)
    examples = data.load_examples(config.data, tokenizer)
    held_out = data.load_examples(config.data, tokenizer, config.eval_rows) if config.eval_rows else None
    hosts.agree(shared_facts(config, examples))
    plan = plan_run(config, examples, mesh)
    validation = plan_validation(config, held_out, plan, mesh)
    check_positions(model, examples)
    recipe = recipe_of(config, model, plan, validation, mesh)
    device = describe_devices(mesh)
    out = stack.enter_context(opened(config, device=device, contents=lambda: contents_of(config, examples, held_out)))
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    of_adapters = "" if shapes.base is None else f", of which adapters of {count(shapes.model):,} are trained"
    say(f"model of {count(shapes.base or shapes.model):,} parameters{of_adapters}; {examples.describe()}")
    say(plan.describe())
    state, start = _state(config, recipe, shapes, shardings)
    log = open_log(config.log, out, step=start, steps=plan.steps, progress=progress, quiet=jax.process_index() != 0)
    checkpoints = _store(config)
    with contextlib.closing(log), checkpoints, listening() as stop, hosts.leaving_at_once():
        at_once, sharding = rows_at_once(config, mesh), batch_sharding(mesh)
        is_over = start >= plan.steps
        steps = [] if is_over else shapes_of_steps(plan, at_once)
        validations = [] if is_over else shapes_of_batches(validation, at_once)
        asked = [(make_step(recipe, mesh, shardings), steps), (make_eval(recipe, mesh, shardings), validations)]
        step, evaluate = compile_all(asked, state, sharding, say)
        loop = Loop(
            model=model,
            lora=config.lora,
            plan=plan,
            step=step,
            evaluate=evaluate,
            rows_at_once=at_once,
            sharding=sharding,
            validation=validation,
            store=checkpoints,
            log=log,
            stop=stop,
            pace=_pace(config, has_validation=bool(validation)),
            out=out,
            peak=peak_flops(mesh.devices.flat),
            say=say,
        )
        state = train(loop, state, start)
    folder = out / "hf"
    if start < plan.steps or not _is_exported(folder):
        state = dataclasses.replace(state, optimizer=None)
        if config.save.export == "best":
            state = dataclasses.replace(state, model=None)  # what is restored takes its place
            state = _best(config, shapes, shardings, state.base)
        _export(config, out, state, recipe, tokenizer)
    return places.place(config.out) / "hf"


def _is_exported(folder: pathlib.Path) -> bool:
    """Whether the model is there, as the first process sees it: of an object store the others have no copy."""
    return hosts.of_first(folder.exists)


def _store(config: TrainRun) -> store.Store:
    save = config.save
    return store.Store(
        places.place(config.out) / "checkpoints",
        save.keep,
        wait_seconds=save.wait_seconds,
        goes_on=save.full_disk == "go_on",
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _pace(config: TrainRun, *, has_validation: bool) -> Pace:
    validate = config.eval_every if has_validation else None
    return Pace(config.save.every, validate, config.profile_steps, config.save.final_moments)


def _state(config: TrainRun, recipe: Recipe, shapes: TrainState, shardings: TrainState) -> tuple[TrainState, int]:
    """The newest intact checkpoint, or step 0, and the step it stands at."""
    found = saved.resume(places.place(config.out) / "checkpoints", functools.partial(_abstract, shapes, shardings), say)
    if found is None:
        return _first(config, recipe, shardings), 0
    checkpoint, state = found
    say(f"going on from the checkpoint of step {checkpoint.step}")
    base = None if config.lora is None else _first(config, recipe, shardings).base
    return dataclasses.replace(state, base=base), checkpoint.step


def _first(config: TrainRun, recipe: Recipe, shardings: TrainState) -> TrainState:
    """Step 0."""
    if isinstance(config.model, RandomModel):
        sizes = config.model.init
        draw = jax.jit(lambda key: initial_state(Decoder(sizes, key), recipe, config.seed), out_shardings=shardings)
        return draw(jax.random.key(config.seed))
    held = jnp.float32 if config.lora is None else jnp.dtype(config.dtype)
    model = hf.load(config.model, mesh=shardings.step.mesh, dtype=held)  # pyright: ignore
    begin = jax.jit(lambda model: initial_state(model, recipe, config.seed), out_shardings=shardings, donate_argnums=0)
    return begin(model)


def _abstract(shapes: TrainState, shardings: TrainState, checkpoint: saved.Saved) -> TrainState:
    """What is to be restored: never the base of adapters, and the moments only where the checkpoint has them."""
    has_moments = not checkpoint.arrays or any(name.startswith("optimizer/") for name in checkpoint.arrays)
    without: dict[str, None] = {"base": None} if has_moments else {"base": None, "optimizer": None}
    shapes, shardings = (dataclasses.replace(tree, **without) for tree in (shapes, shardings))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _best(config: TrainRun, shapes: TrainState, shardings: TrainState, base: Decoder | None) -> TrainState:
    """The model of the checkpoint with the lowest validation loss.

    Raises:
      BadInput: it is damaged.
    """
    measured = [found for found in saved.saved(places.place(config.out) / "checkpoints") if found.loss is not None]
    best = min(measured, key=lambda found: (found.loss, found.step))
    say(f"exporting the checkpoint of step {best.step}, validation loss {best.loss:.4f}")
    try:
        parts = _abstract(shapes, shardings, best)
        state = saved.restore(best, {"step": parts.step, "model": parts.model}, in_part=True)
    except saved.Damaged as wrong:
        raise BadInput(f"{best.folder}, the best by validation, is damaged ({wrong}); set save.export=last") from None
    return TrainState(state["step"], state["model"], None, base)


def _export(config: TrainRun, out: pathlib.Path, state: TrainState, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Write `hf/`, and `adapter/` where adapters were trained."""
    if recipe.lora is not None and state.base is not None:
        base = config.model if isinstance(config.model, str) else ""
        lora.save(state.model, state.base.config, recipe.lora, out / "adapter", base=base, replace=True)  # pyright: ignore
        say(f"adapters written to {out / 'adapter'}")
    model = jax.jit(functools.partial(whole_model, recipe=recipe), donate_argnums=0)(state)
    hf.save(model, out / "hf", dtype=jnp.dtype(config.save.dtype), tokenizer_source=tokenizer, replace=True)
    say(f"model written to {out / 'hf'}")
