"""The verb `train`: a config and a data set become a fine-tuned model in `out/hf`.

out/config.yaml, run.json      what ran
out/metrics.jsonl              one line a step; validation.jsonl where there are held-out rows
out/tensorboard/               the same
out/checkpoints/00000100/      model, optimizer and step
out/hf/                        the model at the end
"""

import contextlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax import hosts
from s1jax.checkpoint import hf, store
from s1jax.mesh import make_mesh
from s1jax.models.decoder import Decoder, count
from s1jax.tokens import Tokenizer
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
)
from s1jax.train.step import (
    Recipe,
    TrainState,
    batch_sharding,
    initial_state,
    make_eval,
    make_step,
    state_shardings,
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
    plan = plan_run(config, examples, mesh)
    validation = plan_validation(config, tokenizer, plan, mesh)
    check_positions(model, examples)
    recipe = recipe_of(config, model, plan, validation, mesh)
    out = open_out(config, mesh)
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, offload=config.offload_optimizer)
    say(f"model of {count(shapes.model):,} parameters; {examples.describe()}")
    say(plan.describe())
    state, start = _state(config, out, recipe, shapes, shardings, mesh)
    log = open_log(config.log, out, step=start, steps=plan.steps, progress=progress, quiet=jax.process_index() != 0)
    checkpoints = store.Store(out / "checkpoints", config.save.keep)
    with contextlib.closing(log), contextlib.closing(checkpoints), listening() as stop:
        loop = Loop(
            model=model,
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
    return _export(config, out, state, shapes, shardings, tokenizer, is_new=start < plan.steps)


def _state(
    config: TrainRun, out: pathlib.Path, recipe: Recipe, shapes: TrainState, shardings: TrainState, mesh: Mesh
) -> tuple[TrainState, int]:
    """The newest intact checkpoint, or step 0, and the step it stands at."""
    found = store.newest_intact(out / "checkpoints", say)
    if found is not None:
        say(f"going on from the checkpoint of step {found.step}")
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
        best = min(measured, key=lambda found: (found.loss, found.step))
        say(f"exporting the checkpoint of step {best.step}, validation loss {best.loss:.4f}")
        state = _restore(best, shapes, shardings)
    hf.save(state.model, folder, dtype=jnp.dtype(config.save.dtype), tokenizer_source=tokenizer, replace=True)
    say(f"model written to {folder}")
    return folder
