"""The mesh, its refusals, where parameters lie, and host rows as global arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.config import BadInput
from s1jax.models import decoder
from s1jax.parallel import axes, mesh
from s1jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1, 1)),
        (MeshConfig(data=1, fsdp=2, context=2, tensor=2), (1, 2, 2, 2)),
    ],
)
def test_one_size_may_be_what_the_others_leave(config, sizes):
    made = make_mesh(config)
    assert made.axis_names == mesh.AXES and made.devices.shape == sizes


def test_axis_types_are_written_out():
    assert set(make_mesh(MeshConfig()).axis_types) == {AxisType.Auto}
    assert set(make_mesh(MeshConfig(), explicit=True).axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), "needs 3 devices, there are 8; set mesh sizes whose product is 8"),
        (MeshConfig(data=3, fsdp=-1), "needs a multiple of 3 devices, there are 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one of them -1"),
        (MeshConfig(tensor=0), "every size must be at least 1"),
        (MeshConfig(tensor=-2), "every size must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, words):
    with pytest.raises(BadInput) as raised:
        make_mesh(config)
    assert words in str(raised.value) and str(raised.value).startswith("mesh data=")


def test_a_mesh_of_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:3]).devices.size == 3


def test_parameters_lie_by_their_letters():
    made = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    where = {
        ("LDKGH", (3, 8, 2, 3, 4)): P(None, ("fsdp", "context"), "tensor", None, None),
        ("VD", (6, 8)): P("tensor", ("fsdp", "context")),
        ("LFD", (3, 8, 7)): P(None, ("tensor", "fsdp", "context"), None),
        ("KGH", (2, 3, 4)): P("tensor", None, None),
        ("LD", (3, 7)): P(),
        ("D", (7,)): P(),
    }
    for (letters, shape), partition in where.items():
        sharding = mesh.param_sharding(letters, shape, made)
        assert sharding.is_equivalent_to(NamedSharding(made, partition), len(shape)), letters


def test_an_indivisible_dimension_is_refused_by_name():
    made = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    with pytest.raises(BadInput, match=r"\(4 ways\) do not divide the 6 of dimension D \(model\) of a parameter DF"):
        mesh.param_sharding("DF", (6, 8), made)
    with pytest.raises(BadInput, match=r"do not divide the 3 of dimension K \(kv head\)"):
        mesh.param_sharding("DKH", (8, 3, 4), made)


def test_rows_of_the_host_become_global_arrays():
    made = make_mesh(MeshConfig(data=2, fsdp=2, context=2, tensor=1))
    rows = {"tokens_BT": np.arange(32).reshape(8, 4), "length_B": np.arange(8)}
    placed = mesh.shard_rows(rows, made)
    for name, letters in (("tokens_BT", "BT"), ("length_B", "B")):
        np.testing.assert_array_equal(placed[name], rows[name])
        expected = NamedSharding(made, axes.spec(letters, mesh.ACTIVATION))
        assert placed[name].sharding.is_equivalent_to(expected, placed[name].ndim)
    assert placed["tokens_BT"].addressable_shards[0].data.shape == (2, 2)


def test_use_ends_with_its_block_even_after_an_error():
    made, x_BT = make_mesh(MeshConfig()), jnp.ones((8, 2))
    with pytest.raises(RuntimeError, match="stop"), mesh.use(made):
        assert axes.constrain(x_BT, "BT").sharding.mesh.shape["fsdp"] == 8
        raise RuntimeError("stop")
    assert axes.constrain(x_BT, "BT") is x_BT


@pytest.mark.parametrize("sizes", [(1, 16, 1, 1), (1, 4, 4, 1), (2, 2, 2, 2)], ids=str)
def test_nothing_above_a_megabyte_is_replicated(sizes):
    """The real 32B: of a layer's tensors, all that are larger lie in as many parts as fsdp x context has devices."""
    config = decoder.DecoderConfig(
        "qwen2", D=5120, K=8, G=5, H=128, F=27648, V=152064, L=64, rope_theta=1e6, qkv_bias=True
    )
    made = jax.sharding.AbstractMesh(sizes, mesh.AXES, axis_types=(AxisType.Auto,) * 4)
    model = decoder.abstract(config)
    small, large = set(), set()
    for (name, x), text in zip(decoder.named(model).items(), jax.tree.leaves(decoder.letters(model)), strict=True):
        shard = mesh.param_sharding(text, x.shape, made).shard_shape(x.shape)  # pyright: ignore
        layers = x.shape[0] if text.startswith("L") else 1
        if 4 * np.prod(x.shape) / layers > 2**20:
            assert np.prod(x.shape) // np.prod(shard) >= sizes[1] * sizes[2], name
            large.add(name)
        else:
            small.add(name)
    assert len(large) == 9 and len(small) == 6, "seven matrices, embedding and head; norms and biases"
