"""The engines of one process: each a copy of the model on its own devices."""

import sys
from collections.abc import Sequence
from typing import Any

import jax

from s1jax import control as controls
from s1jax.checkpoint import folder, hf
from s1jax.engine.engine import Engine
from s1jax.methods.config import ModelRun
from s1jax.methods.parts import share_of
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.text.tokens import Tokenizer


def check_model(config: ModelRun) -> None:
    """Look at the model's files without reading a tensor. Raises BadInput for a checkpoint that cannot be loaded."""
    hf.open_source(folder.fetch(config.model))


def build_engines(config: ModelRun, tokenizer: Tokenizer, asked: Sequence[Any], most_rows: int) -> list[Engine]:
    """This process's engines, of `mesh.tensor` devices each, every one with its own copy of the model.

    Args:
      asked: configs of all controls.
      most_rows: rows that are asked for in all, on every engine.
    """
    devices, ways = jax.local_devices(), config.mesh.tensor
    engines = []
    for copy in range(share_of(config.mesh).count):
        own = devices[copy * ways : (copy + 1) * ways]
        mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=ways), own)
        model: Any = hf.load(config.model, mesh=mesh, dtype=config.dtype, stacked=False)
        automata = controls.automata(tokenizer, model.config.V, asked)
        engines.append(
            Engine(
                model,
                tokenizer,
                config.engine,
                automata,
                dtype=config.dtype,
                mesh=mesh,
                notify=say,
                most_rows=most_rows,
            )
        )
    return engines


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)
