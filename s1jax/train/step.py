"""The train step: one pure function, jitted with explicit shardings and a donated state."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.models import attention, lora
from s1jax.models.decoder import Decoder, forward, letters
from s1jax.models.lora import Adapters, LoraConfig
from s1jax.parallel import axes
from s1jax.parallel import mesh as placement
from s1jax.train import optimizer
from s1jax.train.accumulate import add_gradients
from s1jax.train.loss import LossConfig, weighted_loss
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import Packed
from s1jax.train.remat import REMAT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on.

    Attributes:
      step: the number of updates made.
      model: what is trained: the whole `Decoder`, or the `Adapters` of `base`.
      optimizer: the optimizer's state.
      base: the model that adapters belong to, in the compute type. It never changes, so checkpoints do not hold it.
    """

    step: jax.Array
    model: Any
    optimizer: Any
    base: Decoder | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of a step as `[A, B, T]`: A micro-batches, one after another. Fields as in `packing.Packed`."""

    tokens: jax.Array
    targets: jax.Array
    positions: jax.Array
    segments: jax.Array
    weights: jax.Array
    kept: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Scalars of a step: loss before the update, global norm of the gradient before clipping, learning rate used."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the compiled step depends on.

    Attributes:
      optimizer, loss: their configs.
      steps: length of the schedule.
      dtype: compute type.
      remat: key of `remat.REMAT`.
      attention: key of `attention.BACKENDS`.
      max_segments, max_segment_length: bounds on the examples of a row and on an example's length.
      offload_optimizer: the moments lie in the host's memory between updates.
      lora: adapters to be trained in place of the model.
    """

    optimizer: OptimizerConfig
    loss: LossConfig
    steps: int
    dtype: str
    remat: str
    attention: str = "xla"
    max_segments: int = 1
    max_segment_length: int = 0
    offload_optimizer: bool = False
    lora: LoraConfig | None = None


HOST = "pinned_host"
UNROLLED = 8  # layers that are compiled one after another; a scan over fewer copies more than its program saves


def loss_of(
    trained: Decoder | Adapters, batch: Batch, recipe: Recipe, mesh: Mesh | None = None, base: Decoder | None = None
) -> jax.Array:
    """The weighted loss of rows `[B, T]`, by what is trained and the base of adapters."""
    model: Any = trained if recipe.lora is None else lora.apply(base, trained, recipe.lora)  # pyright: ignore
    scan = functools.partial(jax.lax.scan, unroll=_is_unrolled(model, recipe))
    return _loss_by(scan, model, batch, recipe, mesh)[0]


def _is_unrolled(model: Decoder, recipe: Recipe) -> bool:
    return model.config.L <= UNROLLED and REMAT[recipe.remat] is None


def _loss_by(scan: Callable, model: Decoder, batch: Batch, recipe: Recipe, mesh: Mesh | None) -> tuple[jax.Array, Any]:
    """The weighted loss of rows `[B, T]`, and the second result of `scan`, which runs the layers."""
    stripes = attention.stripes(recipe.attention, model.config.K, batch.tokens.shape[1], mesh)
    if mesh is not None and stripes > 1:
        batch = jax.tree.map(lambda x: attention.in_stripes(x, stripes, mesh), batch)
    rows = attention.Segments(batch.segments, batch.positions, recipe.max_segments, recipe.max_segment_length, stripes)
    attend = attention.segmented(recipe.attention, rows, mesh)
    options = {"dtype": jnp.dtype(recipe.dtype), "remat": REMAT[recipe.remat], "scan": scan}
    hidden, out = forward(model, batch.tokens, batch.positions, attend, **options)
    targets, weights = batch.targets, batch.weights
    if batch.kept is not None:
        hidden = jnp.take_along_axis(hidden, batch.kept[..., None], axis=1)
        targets, weights = (jnp.take_along_axis(x, batch.kept, axis=1) for x in (targets, weights))
    return weighted_loss(model, hidden, targets, weights, chunk=recipe.loss.chunk, mesh=mesh), out


def gradients(
    trained: Any, batch: Batch, recipe: Recipe, mesh: Mesh | None = None, base: Decoder | None = None
) -> tuple[jax.Array, Any]:
    """Loss of all micro-batches `[A, B, T]`, and its gradient by what is trained.

    Both are sums over the micro-batches, since the weights are of the whole step. In profiles and HLO the backward pass
    of a part is what JAX calls `transpose(jvp(part))`.
    """
    if batch.tokens.shape[0] == 1:
        rows = jax.tree.map(lambda x: x[0], batch)
        return jax.value_and_grad(loss_of)(trained, rows, recipe, mesh, base)
    names = _letters(trained, recipe)
    of_layer = jax.tree.structure(trained.blocks if recipe.lora is None else trained)

    def layer_of(block: Any, own: list[jax.Array]) -> Any:
        tree = of_layer.unflatten(own)
        return tree if recipe.lora is None else lora.apply(block, tree, recipe.lora)

    def add(total: tuple[jax.Array, Any], rows: Batch) -> tuple[tuple[jax.Array, Any], None]:
        def loss(trained: Any, scan: Callable) -> tuple[jax.Array, Any]:
            return _loss_by(scan, trained if base is None else base, rows, recipe, mesh)

        unroll = _is_unrolled(trained if base is None else base, recipe)
        more, sums = add_gradients(loss, trained, total[1], names, layer_of=layer_of, unroll=unroll)
        return (total[0] + more, sums), None

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.scan(add, zero, batch)[0]


def _letters(trained: Any, recipe: Recipe) -> Any:
    return letters(trained) if recipe.lora is None else lora.letters(recipe.lora)


def train_step(state: TrainState, batch: Batch, recipe: Recipe, mesh: Mesh | None = None) -> tuple[TrainState, Metrics]:
    """One update."""
    loss, grads = gradients(state.model, batch, recipe, mesh, state.base)
    with jax.named_scope("optimizer"):
        model, moments = optimizer.update(recipe.optimizer, recipe.steps, grads, state.optimizer, state.model)
        rate = optimizer.learning_rate(recipe.optimizer, recipe.steps, state.step)
    return TrainState(state.step + 1, model, moments, state.base), Metrics(loss, optax.tree.norm(grads), rate)


def placed(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    """Activations placed by the rules; on one device there is nothing to place."""
    return axes.placed(mesh, placement.ACTIVATION) if mesh.size > 1 else contextlib.nullcontext()


def state_shardings(state: TrainState, mesh: Mesh, recipe: Recipe) -> TrainState:
    """Where each array of an (abstract) state lies: moments with their parameters, counters on every device.

    Raises:
      BadInput: the mesh does not divide a parameter.
    """

    def place(names: Any, arrays: Any) -> Any:
        return jax.tree.map(lambda name, x: placement.param_sharding(name, x.shape, mesh), names, arrays)

    everywhere = NamedSharding(mesh, P())
    base = None if state.base is None else place(letters(state.base), state.base)
    model = place(_letters(state.model, recipe), state.model)
    moments = jax.tree.map(lambda s: s.with_memory_kind(HOST), model) if recipe.offload_optimizer else model
    tree = jax.tree.structure(state.model)

    def is_moments(node: Any) -> bool:
        return jax.tree.structure(node) == tree

    optimizer_state = jax.tree.map(
        lambda node: moments if is_moments(node) else everywhere, state.optimizer, is_leaf=is_moments
    )
    return dataclasses.replace(state, step=everywhere, model=model, optimizer=optimizer_state, base=base)


def initial_state(model: Decoder, recipe: Recipe, seed: int = 0) -> TrainState:
    """Step 0 with a given model; with `recipe.lora`, it becomes the base of new adapters drawn from `seed`."""
    trained: Any = model
    if recipe.lora is not None:
        trained = lora.new(model.config, recipe.lora, jax.random.key(seed))
    base = None if recipe.lora is None else jax.tree.map(lambda x: x.astype(recipe.dtype), model)
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(recipe.optimizer, recipe.steps, trained), base)


def whole_model(state: TrainState, recipe: Recipe) -> Decoder:
    """The trained model; adapters are added into their base."""
    if recipe.lora is None:
        return state.model
    return lora.merge(state.base, state.model, recipe.lora)  # pyright: ignore


def make_step(recipe: Recipe, mesh: Mesh, shardings: TrainState) -> Callable[[TrainState, Batch], tuple]:
    """The jitted step on a mesh. The state is donated: the caller must not use it again."""
    everywhere = NamedSharding(mesh, P())
    rows = batch_sharding(mesh)
    on_device = jax.tree.map(lambda s: s.with_memory_kind("device"), shardings.optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with placed(mesh):
            moments = jax.device_put(state.optimizer, on_device) if recipe.offload_optimizer else state.optimizer
            return train_step(dataclasses.replace(state, optimizer=moments), batch, recipe, mesh)

    return jax.jit(
        step,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def make_eval(recipe: Recipe, mesh: Mesh, shardings: TrainState) -> Callable[[TrainState, Batch], jax.Array]:
    """The jitted loss of a batch `[A, B, T]`, without an update."""

    def loss(state: TrainState, batch: Batch) -> jax.Array:
        with placed(mesh):
            return jnp.sum(jax.lax.map(lambda rows: loss_of(state.model, rows, recipe, mesh, state.base), batch))

    return jax.jit(loss, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=NamedSharding(mesh, P()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where the arrays `[A, B, T]` of a batch lie."""
    return NamedSharding(mesh, P(None, *axes.spec("BT", placement.ACTIVATION)))


def own_rows(rows: int, micro_batches: int, sharding: NamedSharding) -> frozenset[int]:
    """Which of `rows` the devices of this process hold, wholly or in part; other hosts need not make the rest."""
    shape = (micro_batches, rows // micro_batches, sharding.mesh.shape["context"])
    number = np.arange(rows).reshape(shape[:2])
    indices = sharding.addressable_devices_indices_map(shape).values()
    return frozenset(int(row) for index in indices if index is not None for row in number[index[:2]].flat)


def place_batch(rows: Packed, micro_batches: int, sharding: NamedSharding) -> Batch:
    """Rows `[N, T]` as a global `Batch`. A process needs only its `own_rows` filled; each device takes its part."""

    def place(array: np.ndarray | None) -> Any:
        if array is None:
            return None
        array = array.reshape(micro_batches, -1, array.shape[-1])
        if jax.process_count() == 1:
            return array
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    batch = Batch(**{field.name: place(getattr(rows, field.name)) for field in dataclasses.fields(rows)})
    return jax.device_put(batch, sharding) if jax.process_count() == 1 else batch
