"""The arguments of a decode window as shapes: what is needed to compile it where no device and no weights are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.engine import cache as kv
from s1jax.engine import decode, sampling
from s1jax.engine.protocol import Automaton
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.state import EngineState, Shape
from s1jax.engine.weights import typed
from s1jax.models.decoder import DecoderConfig, Unstacked, abstract, letters, unstack
from s1jax.parallel import axes
from s1jax.parallel.mesh import ACTIVATION, param_sharding


def outline(
    config: DecoderConfig, shape: Shape, control: Automaton, settings: Any, mesh: Mesh, *, weights: str, cache: str
) -> tuple[Unstacked, Automaton, EngineState]:
    """Shapes and shardings of `decode.decode_window`'s arguments.

    Args:
      config: sizes of the model.
      shape: classes, window and compute type.
      control, settings: the automaton, and those of any row.
      mesh: of `tensor` devices, which need not be there.
      weights, cache: types in memory.
    """
    everywhere = NamedSharding(mesh, P())

    def on(x: Any, sharding: NamedSharding = everywhere) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=sharding)

    given = jax.eval_shape(unstack, abstract(config))
    names = letters(given)
    model = jax.eval_shape(lambda model: typed(model, names, weights), given)

    def weight(name: str, part: Any) -> Any:
        # A scale has size 1 where it sums: replicated there, which is all that the rules would say of it too.
        return jax.tree.map(
            lambda x: on(x, param_sharding(name, x.shape, mesh) if 1 not in x.shape else everywhere), part
        )

    model = jax.tree.map(weight, names, model)
    state_row = control.rows([settings])
    draw = sampling.rows([SamplingConfig()], [sampling.row_key(0, "", 0)])
    start = functools.partial(decode.start, kv.Size(config.L, config.K, config.H, cache), shape)
    state = jax.eval_shape(start, state_row, draw)
    by_head = tuple(
        jax.tree.map(lambda x: on(x, NamedSharding(mesh, axes.spec("BKSH"[: x.ndim], ACTIVATION))), layer)
        for layer in state.cache
    )
    return model, jax.tree.map(on, control), EngineState(by_head, jax.tree.map(on, state.row))
