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
from collections.abc import Callable

import jax
import jax.numpy as jnp

from s1jax.checkpoint import hf, lora, store
from s1jax.models.decoder import Decoder, count
from s1jax.parallel import hosts
from s1jax.parallel.mesh import make_mesh
from s1jax.text.tokens import Tokenizer
from s1jax.train import data
from s1jax.train.config import RandomModel as RandomModel
from s1jax.train.config import SaveConfig as SaveConfig
from s1jax.train.config import TrainRun
from s1jax.train.flops import peak_flops
from s1jax.train.log import Record, open_log
from s1jax.train.loop import Loop, Pace, train
from s1jax.train.setup import (
    check_config,
    check_positions,
    load_tokenizer,
    model_config,
    open_out,
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
    hosts.start()
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
    out = open_out(config, mesh, examples, held_out)
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    of_adapters = "" if shapes.base is None else f", of which adapters of {count(shapes.model):,} are trained"
    say(f"model of {count(shapes.base or shapes.model):,} parameters{of_adapters}; {examples.describe()}")
    say(plan.describe())
    state, start = _state(config, out, recipe, shapes, shardings)
    log = open_log(config.log, out, step=start, steps=plan.steps, progress=progress, quiet=jax.process_index() != 0)
    checkpoints = store.Store(out / "checkpoints", config.save.keep)
    with contextlib.closing(log), contextlib.closing(checkpoints), listening() as stop, hosts.leaving_at_once():
        loop = Loop(
            model=model,
            lora=config.lora,
            plan=plan,
            step=make_step(recipe, mesh, shardings),
            evaluate=make_eval(recipe, mesh, shardings),
            rows_at_once=rows_at_once(config, mesh),
            sharding=batch_sharding(mesh),
            validation=validation,
            store=checkpoints,
            log=log,
            stop=stop,
            pace=Pace(config.save.every, config.eval_every if validation else None, config.profile_steps),
            out=out,
            peak=peak_flops(mesh.devices.flat),
            say=say,
        )
        state = train(loop, state, start)
    folder = out / "hf"
    if start < plan.steps or not folder.exists():
        _export(config, _exported(config, out, state, shapes, shardings), recipe, tokenizer)
    return folder


def _state(
    config: TrainRun, out: pathlib.Path, recipe: Recipe, shapes: TrainState, shardings: TrainState
) -> tuple[TrainState, int]:
    """The newest intact checkpoint, or step 0, and the step it stands at."""
    found = store.newest_intact(out / "checkpoints", say)
    if found is not None:
        say(f"going on from the checkpoint of step {found.step}")
        if config.lora is None:
            return _restore(found, shapes, shardings), found.step
    start = _first(config, recipe, shardings)
    return (start, 0) if found is None else (_restore(found, shapes, shardings, start.base), found.step)


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


def _restore(found: store.Saved, shapes: TrainState, shardings: TrainState, base: Decoder | None = None) -> TrainState:
    """The state of a checkpoint; `base` is not in it."""
    shapes, shardings = (dataclasses.replace(tree, base=None) for tree in (shapes, shardings))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return dataclasses.replace(store.restore(found, abstract), base=base)


def _exported(
    config: TrainRun, out: pathlib.Path, state: TrainState, shapes: TrainState, shardings: TrainState
) -> TrainState:
    """The state that `save.export` asks for."""
    if config.save.export == "last":
        return state
    measured = [found for found in store.saved(out / "checkpoints") if found.loss is not None]
    best = min(measured, key=lambda found: (found.loss, found.step))
    say(f"exporting the checkpoint of step {best.step}, validation loss {best.loss:.4f}")
    return _restore(best, shapes, shardings, state.base)


def _export(config: TrainRun, state: TrainState, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Write `hf/`, and `adapter/` where adapters were trained."""
    out = pathlib.Path(config.out)
    if recipe.lora is not None and state.base is not None:
        base = config.model if isinstance(config.model, str) else ""
        lora.save(state.model, state.base.config, recipe.lora, out / "adapter", base=base, replace=True)  # pyright: ignore
        say(f"adapters written to {out / 'adapter'}")
    model = jax.jit(functools.partial(whole_model, recipe=recipe), donate_argnums=0)(state)
    hf.save(model, out / "hf", dtype=jnp.dtype(config.save.dtype), tokenizer_source=tokenizer, replace=True)
    say(f"model written to {out / 'hf'}")
