"""What the tests of training share: a tiny model, random examples, and comparisons."""

import dataclasses
from typing import Any

import jax
import numpy as np

from s1jax.models.decoder import Decoder, DecoderConfig, named
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.text.render import Row
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import Packed, fill, longest_first, loss_weights
from s1jax.train.step import Recipe

TINY = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=64, L=2, rope_theta=1e4, tied=True, qkv_bias=True)
WIDE = dataclasses.replace(TINY, D=64, K=8, G=2, tied=False)
ONE = MeshConfig(data=1, fsdp=1)
RECIPE = Recipe(OptimizerConfig(learning_rate=1e-2), LossConfig(chunk=0), 20, "float32", "none", "xla", 8, 32)


def one_device() -> Any:
    """A mesh of the first device."""
    return make_mesh(ONE, jax.devices()[:1])


def examples(count: int, seed: int = 0, longest: int = 30) -> list[Row]:
    """Random examples of 4 to `longest` ids, the prompt anywhere in them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, longest, count)
    ids = [tuple(rng.integers(0, TINY.V, n).tolist()) for n in sizes]
    return [Row(f"r{i}", row, int(rng.integers(1, len(row)))) for i, row in enumerate(ids)]


def rows(group: list[Row], count: int, length: int, norm: str = "example") -> Packed:
    """The examples packed into `count` rows of `length`."""
    lengths = [len(row.ids) - 1 for row in group]
    return fill(group, longest_first(lengths, count), length, loss_weights(group, norm))


def unpacked(group: list[Row], length: int, norm: str = "example") -> Packed:
    """One example a row."""
    return fill(group, [[i] for i in range(len(group))], length, loss_weights(group, norm))


def model(config: DecoderConfig = TINY, seed: int = 0) -> Decoder:
    """Random weights, biases and norms included (a fresh model's biases are zero, so they would not be seen).

    Norm weights lie around 0.4: at 1 the spacing of float32 is 0.1 % of what twenty updates at 1e-5 change.
    """
    fresh = jax.jit(lambda: Decoder(config, jax.random.key(seed)))()
    keys = jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(fresh)))
    leaves, tree = jax.tree.flatten(fresh)
    noisy = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    names = named(fresh)
    return jax.tree.unflatten(tree, [0.4 * x if "norm" in n else x for n, x in zip(names, noisy, strict=True)])


def assert_same_gradients(ours: Decoder, theirs: Decoder, tolerance: float = 1e-5) -> None:
    """Per parameter: norm of the difference at most `tolerance` of the norm, or of 1e-3 of the whole gradient's."""
    ours_by, theirs_by = ({k: np.asarray(v) for k, v in named(m).items()} for m in (ours, theirs))
    total = np.sqrt(sum(np.square(x).sum() for x in theirs_by.values()))
    for name, theirs_x in theirs_by.items():
        scale = max(np.linalg.norm(theirs_x), 1e-3 * total)
        assert np.linalg.norm(ours_by[name] - theirs_x) <= tolerance * scale, name
