"""The decode step of an engine, compiled for a topology: weights, cache, work, and the floor of a step."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.config import BadInput
from s1jax.control.budget.admission import admit
from s1jax.control.budget.automaton import build
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine import decode, prefill
from s1jax.engine.cache import Size
from s1jax.engine.config import EngineConfig
from s1jax.engine.memory import MOST_SLOTS, fit
from s1jax.engine.outline import outline
from s1jax.engine.slots import Buckets
from s1jax.engine.state import Shape
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel import mesh as meshes
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.plan import memory
from s1jax.plan.memory import Memory
from s1jax.plan.topology import Topology
from s1jax.text.tokens import byte_tokenizer
from s1jax.train.flops import matmul_parameters, peak_flops

# Layers that are compiled: a step has them one after another, so its program takes minutes to compile for 64, and they
# use one work space in turn. Weights and cache are counted for all.
COMPILED = 4


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """One engine on the first devices of a topology.

    Attributes:
      classes: rows and length of each class.
      tensor: devices of the engine.
      weights, cache: their types.
      memory: parts `weights`, `cache`, `work`.
      flops: operations of one step of all rows, each at its class's length.
      floor_seconds: of that step: weights and live cache read once, or the operations at the peak, whichever is longer.
    """

    classes: tuple[tuple[int, int], ...]
    tensor: int
    weights: str
    cache: str
    memory: Memory
    flops: float
    floor_seconds: float


def plan_decode(
    config: EngineConfig,
    model: DecoderConfig,
    topology: Topology,
    *,
    tensor: int,
    dtype: Literal["float32", "bfloat16"],
) -> DecodePlan:
    """Compile a window and the largest prefill of an engine.

    Args:
      tensor: devices of one engine; -1 for all. The other devices hold engines of their own.

    Raises:
      BadInput: devices that do not divide the kv heads, or an engine of which not one slot fits.
    """
    count = len(topology.devices) if tensor == -1 else tensor
    if not 1 <= count <= len(topology.devices) or model.K % count:
        raise BadInput(
            f"mesh.tensor={tensor} on {topology.name}: an engine lies on devices that divide the {model.K} kv heads, "
            f"of {len(topology.devices)}; give such a number"
        )
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=count), topology.devices[:count])
    weights, cache = config.weights or dtype, config.cache or dtype
    size = Size(model.L, model.K, model.H, cache)
    buckets = Buckets(config.prefill_smallest, config.prefill_rows, config.prefill_ids)
    limit = topology.memory if config.memory_gib is None else int(config.memory_gib * memory.GIB)
    asked = BudgetConfig(thinking_n_ignore=1)
    tokenizer = byte_tokenizer()  # tables are as large as the model's vocabulary, whatever makes them
    control = build(tokenizer, model.V, [asked])
    row = admit(asked, tokenizer, prompt_length=3, max_length=1024, max_new_tokens=1024)

    def arguments(model: DecoderConfig, classes: tuple[tuple[int, int], ...]) -> tuple:
        shape = Shape(classes, config.window, dtype)
        return shape, outline(model, shape, control, row, mesh, weights=weights, cache=cache)

    def bytes_of(given: tuple) -> tuple[int, int]:
        return memory.shard_bytes(given[0])[0], memory.shard_bytes(given[2].cache)[0]

    held, _ = bytes_of(arguments(model, ((1, 2),))[1])
    classes = fit(
        config, model, size, weights=held, ways=count, limit=limit, most=MOST_SLOTS, prefill_ids=buckets.ids
    ).classes
    held, kept = bytes_of(arguments(model, classes)[1])
    few = dataclasses.replace(model, L=min(model.L, COMPILED))
    shape, given = arguments(few, classes)
    some_held, some_kept = bytes_of(given)
    bucket = buckets.length_of(shape.max_length, shape.max_length)
    tokens = jax.ShapeDtypeStruct((buckets.rows_of(bucket), bucket), jnp.int32, sharding=NamedSharding(mesh, P()))
    with meshes.use(mesh):
        window = memory.lower(decode.decode_window, topology, *given, shape=shape)
        first = memory.lower(prefill.prefill, topology, given[0], tokens, dtype=dtype, cache_dtype=cache)
    # A prefill also makes the cached positions of the other layers.
    made = (
        math.prod(tokens.shape) * (size.bytes_per_token - dataclasses.replace(size, L=few.L).bytes_per_token) // count
    )
    work = max(
        memory.measure(window, topology, triton=True).total - some_held - some_kept,
        memory.measure(first, topology, triton=True).total - some_held + made,
    )
    flops = _flops(model, classes)
    peak = (peak_flops(topology.devices[:count]) or float("inf")) / count
    return DecodePlan(
        classes=classes,
        tensor=count,
        weights=weights,
        cache=cache,
        memory=Memory({"weights": held, "cache": kept, "work": work}, 0, limit),
        flops=flops,
        floor_seconds=max((held + kept) / topology.chip.bandwidth, flops / count / peak),
    )


def _flops(model: DecoderConfig, classes: tuple[tuple[int, int], ...]) -> float:
    rows = sum(rows for rows, _ in classes)
    positions = sum(rows * length for rows, length in classes)
    return float(2 * matmul_parameters(model) * rows + 4 * model.L * model.K * model.G * model.H * positions)
