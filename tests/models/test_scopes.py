"""Profiles and HLO name the parts of a step: read from the names of the lowered program."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from train_cases import RECIPE, TINY, examples, one_device, rows

from s1jax.models import decoder, layers
from s1jax.train.loss import LossConfig
from s1jax.train.step import Batch, initial_state, make_step, state_shardings


def names_in(lowered) -> str:
    """The names of all operations, one a line; inside a function that is called, a scan's, from its beginning."""
    return "\n".join(re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True)))


def test_parts_of_a_model_are_named():
    def attend(q, k, v, state):
        return layers.attention(q, k, v, jnp.ones((1, 8, 8), bool)), state

    def run(model, tokens_BT):
        return decoder.logits(model, decoder.forward(model, tokens_BT, tokens_BT, attend)[0])

    names = names_in(jax.jit(run).lower(decoder.abstract(TINY), jax.ShapeDtypeStruct((1, 8), jnp.int32)))
    for part in ("embed", "attention", "attention/norm", "mlp", "mlp/norm", "norm", "head"):
        assert re.search(rf"^(jit\(run\)/)?{part}/", names, re.MULTILINE), part
    # The products stand in their parts.
    for product in ("attention/BKGTS,BKSH->BKGTH", "mlp/dot_general", "head/dot_general"):
        assert re.search(rf"^(jit\(run\)/)?{product}", names, re.MULTILINE), product


def test_parts_of_a_train_step_are_named():
    """Forward parts as `jvp(loss)`, backward ones as `transpose(jvp(loss))`; the optimizer by itself."""
    recipe = dataclasses.replace(RECIPE, loss=LossConfig(chunk=8), remat="full")
    mesh, packed = one_device(), rows(examples(8), 2, 64)
    state = jax.eval_shape(lambda: initial_state(decoder.Decoder(TINY, jax.random.key(0)), recipe))
    fields = {field.name: getattr(packed, field.name) for field in dataclasses.fields(packed)}
    batch = Batch(
        **{name: x if x is None else jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in fields.items()}
    )
    names = names_in(make_step(recipe, mesh, state_shardings(state, mesh, recipe)).lower(state, batch))
    for part in ("embed", "loss", "norm"):
        assert f"/jvp({part})/" in names and f"/transpose(jvp({part}))/" in names, part
    for part in ("checkpoint/attention", "rematted_computation/attention", "checkpoint/mlp", "optimizer"):
        assert f"{part}/" in names, part
    assert not re.search(r"optimizer/.*(attention|mlp|loss)", names)
