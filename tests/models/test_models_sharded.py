"""One model on eight devices, in Auto and in Explicit mode: the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from s1jax.models.decoder import Decoder, DecoderConfig, forward, letters, logits, named
from s1jax.parallel import mesh

CONFIG = DecoderConfig("qwen2", D=16, K=2, G=3, H=8, F=24, V=48, L=2, qkv_bias=True)
TIED = DecoderConfig("qwen3", D=16, K=2, G=2, H=8, F=24, V=48, L=2, qk_norm=True, tied=True)
SPLITS = [
    (CONFIG, (1, 2, 2, 2), False),
    (CONFIG, (1, 2, 2, 2), True),
    (TIED, (2, 1, 2, 2), False),
    (TIED, (1, 2, 4, 1), True),
]


@functools.cache
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 48, (8, 12))


def step(model, tokens_BT):
    """Logits and the gradient of their mean square."""
    positions_BT = jnp.broadcast_to(jnp.arange(12), (8, 12))

    def loss(model):
        x_BTD, _ = forward(model, tokens_BT, positions_BT, parity.attend_segments(jnp.ones((8, 12), int)))
        out_BTV = logits(model, x_BTD)
        return jnp.mean(out_BTV**2), out_BTV

    return jax.grad(loss, has_aux=True)(model)


@functools.cache
def alone(config: DecoderConfig):
    """The model, its gradient and logits on one device."""
    model = jax.jit(Decoder, static_argnums=0)(config, jax.random.key(0))
    return model, *jax.device_get(jax.jit(step, compiler_options=parity.FAST)(model, tokens()))


@pytest.mark.parametrize(("config", "sizes", "explicit"), SPLITS)
def test_eight_devices_compute_what_one_does(capfd, config, sizes, explicit):
    model, grad, out_BTV = alone(config)
    made = mesh.make_mesh(mesh.MeshConfig(*sizes), explicit=explicit)
    where = jax.tree.map(lambda text, x: mesh.param_sharding(text, x.shape, made), letters(model), model)
    placed = jax.device_put(model, where)
    jax.config.update("jax_enable_compilation_cache", False)  # XLA speaks only when it compiles
    try:
        with mesh.use(made):
            program = jax.jit(step, compiler_options=parity.FAST)
            new_grad, new_BTV = program(placed, mesh.shard_rows(tokens(), made))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    np.testing.assert_allclose(new_BTV, out_BTV, atol=1e-5)
    for name, value in named(new_grad).items():
        np.testing.assert_allclose(value, named(grad)[name], atol=1e-6, err_msg=name)
    assert "rematerialization" not in capfd.readouterr().err, "an activation is copied whole to every device"
