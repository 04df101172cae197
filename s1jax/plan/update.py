"""One update of a recipe on a mesh: its rows, as `train` packs them, their lengths, and the operations."""

import math

from jax.sharding import AbstractMesh, Mesh

from s1jax.config import BadInput
from s1jax.models.decoder import DecoderConfig
from s1jax.plan.result import Update
from s1jax.train.config import TrainRun
from s1jax.train.data import Examples
from s1jax.train.flops import train_flops
from s1jax.train.setup import check_positions, plan_run, rows_at_once


def update_of(
    config: TrainRun, model: DecoderConfig, mesh: Mesh | AbstractMesh, examples: Examples, rows: tuple[int, int] | None
) -> Update:
    """The update that `train` would make of these examples on this mesh; of `rows` of one full length where given.

    Raises:
      BadInput: a batch that the mesh cannot make or fill, rows that it cannot cut, a model that is made for less.
    """
    at_once, ways = rows_at_once(config, mesh), mesh.shape["context"]
    if rows is not None:
        return _of_full_rows(config, model, rows, at_once, ways, len(examples.rows))
    check_positions(model, examples)
    plan = plan_run(config, examples, mesh)
    sizes = [len(row.ids) - 1 for row in examples.rows]
    share = config.global_batch / len(sizes)
    return Update(
        steps=plan.steps,
        rows=plan.rows,
        micro_batches=plan.rows // at_once,
        lengths=plan.lengths,
        kept=plan.kept,
        tokens=share * sum(sizes),
        positions=share * sum(sizes) / plan.fill,
        flops=share * train_flops(model, sizes, config.lora),
        max_segments=plan.max_segments,
        max_segment_length=plan.max_segment_length,
    )


def _of_full_rows(
    config: TrainRun, model: DecoderConfig, rows: tuple[int, int], at_once: int, ways: int, examples: int
) -> Update:
    count, length = rows
    if count % at_once or count < 1 or length % ways:
        raise BadInput(
            f"rows=[{count},{length}]: the mesh takes {at_once} rows at once, cut into {ways} parts; give a multiple "
            f"of {at_once} rows, of a length that is a multiple of {ways}"
        )
    if length > model.max_position:
        raise BadInput(
            f"rows of {length} tokens; the model is made for {model.max_position} positions; give shorter rows"
        )
    steps = config.epochs * math.ceil(examples / config.global_batch) if config.steps is None else config.steps
    return Update(
        steps=steps,
        rows=count,
        micro_batches=count // at_once,
        lengths=(length,),
        kept=(None,),
        tokens=count * length,
        positions=count * length,
        flops=train_flops(model, [length] * count, config.lora),
        max_segments=config.global_batch,
        max_segment_length=length,
    )
