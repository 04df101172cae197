"""Letters to placement, and the products that know letters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from s1jax.parallel import axes, mesh

SIZES = {"B": 4, "T": 6, "D": 8, "K": 2, "G": 3, "H": 4, "F": 10, "V": 12}
EQUATIONS = ["BTD,DKGH->BTKGH", "BTD,DKH->BTKH", "BTKGH,KGHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD", "BTD,DV->BTV"]
EQUATIONS += ["BTD,VD->BTV"]


def array(letters: str, seed: int = 0) -> jax.Array:
    shape = tuple(SIZES[letter] for letter in letters)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def quantized(weight: jax.Array, letters: str, kept: str) -> axes.Quantized:
    """Per output channel, straight from the definition."""
    contracted = tuple(i for i, letter in enumerate(letters) if letter not in kept)
    scale = jnp.max(jnp.abs(weight), axis=contracted, keepdims=True) / 127
    return axes.Quantized(jnp.round(weight / scale).astype(jnp.int8), scale)


def test_spec_follows_the_rules():
    assert axes.spec("LDKGH", mesh.PARAM) == P(None, ("fsdp", "context"), "tensor", None, None)
    assert axes.spec("BTV", mesh.ACTIVATION) == P(("data", "fsdp"), "context", "tensor")
    assert axes.spec("", mesh.PARAM) == P()


def test_a_mesh_axis_used_twice_is_refused():
    with pytest.raises(ValueError, match="shard two dimensions of 'DF' over one mesh axis"):
        axes.spec("DF", {"D": "fsdp", "F": ("fsdp", "tensor")})
    with pytest.raises(ValueError, match="shard two dimensions of 'DD'"):
        axes.spec("DD", {"D": "fsdp"})


def test_rules_speak_of_letters_and_mesh_axes_only():
    for rules in (mesh.PARAM, mesh.PARAM_FD, mesh.ACTIVATION, mesh.LOSS, *mesh.LOOKUP):
        assert set(rules) <= set(axes.ALPHABET)
        for entry in rules.values():
            assert set((entry,) if isinstance(entry, str) else entry) <= set(mesh.AXES)


def test_nothing_happens_without_a_placement():
    x_BTD = array("BTD")
    assert axes.constrain(x_BTD, "BTD") is x_BTD


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_in_the_activations_type(equation):
    left, _, right = equation.partition("->")[0].partition(",")
    x, weight = array(left), array(right, 1)
    expected = np.einsum(equation, np.asarray(x, np.float64), np.asarray(weight, np.float64))
    np.testing.assert_allclose(axes.einsum(equation, x, weight), expected, atol=1e-5)
    narrow = axes.einsum(equation, x.astype(jnp.bfloat16), weight)
    assert narrow.dtype == jnp.bfloat16
    wide = axes.einsum(equation, x.astype(jnp.bfloat16), weight, accumulate=jnp.float32)
    assert wide.dtype == jnp.float32
    rounded = np.einsum(equation, *(np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, weight)))
    np.testing.assert_allclose(wide, rounded, atol=1e-5)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_quantized_weight_is_its_values_times_its_scale(equation):
    inputs, _, out = equation.partition("->")
    left, _, right = inputs.partition(",")
    x, weight = array(left), quantized(array(right, 1), right, out)
    expected = jnp.einsum(equation, x, weight.values * weight.scale)
    np.testing.assert_allclose(axes.einsum(equation, x, weight), expected, atol=1e-4)
    assert axes.einsum(equation, x.astype(jnp.bfloat16), weight, accumulate=jnp.float32).dtype == jnp.float32


def test_take_reads_rows_of_plain_and_quantized_tables():
    table_VD, ids_BT = array("VD"), jnp.array([[0, 11, 3], [3, 1, 2]])
    np.testing.assert_array_equal(axes.take(table_VD, ids_BT, "BTD"), np.asarray(table_VD)[np.asarray(ids_BT)])
    packed = quantized(table_VD, "VD", "V")
    expected = (packed.values * packed.scale)[ids_BT]
    np.testing.assert_allclose(axes.take(packed, ids_BT, "BTD"), expected, atol=1e-6)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_results_lie_where_the_rules_say(explicit):
    placed = mesh.make_mesh(mesh.MeshConfig(data=1, fsdp=2, context=2, tensor=2), explicit=explicit)
    x_BTD, weight, table_VD, ids_BT = array("BTD"), array("DKGH"), array("VD"), jnp.zeros((4, 6), int)
    packed = quantized(table_VD, "VD", "V")
    with mesh.use(placed):

        @jax.jit
        def both(x_BTD, weight, table_VD, packed, ids_BT):
            x_BTD = axes.constrain(x_BTD, "BTD")
            product = axes.constrain(axes.einsum("BTD,DKGH->BTKGH", x_BTD, weight), "BTKGH")
            logits = axes.einsum("BTD,VD->BTV", x_BTD, packed)
            return product, axes.take(table_VD, ids_BT, "BTD"), axes.constrain(logits, "BTV")

        results = both(x_BTD, weight, table_VD, packed, ids_BT)
    for result, letters in zip(results, ("BTKGH", "BTD", "BTV"), strict=True):
        assert result.sharding.is_equivalent_to(
            jax.sharding.NamedSharding(placed, axes.spec(letters, mesh.ACTIVATION)), result.ndim
        )
    np.testing.assert_allclose(results[0], jnp.einsum("BTD,DKGH->BTKGH", x_BTD, weight), atol=1e-5)
