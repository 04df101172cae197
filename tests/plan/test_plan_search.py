"""The estimate that orders a search, by hand, and which ways it goes over."""

import dataclasses
import types

import pytest

from s1jax.config import BadInput
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.plan import search, sizes, topology
from s1jax.plan.result import Update

TOY = DecoderConfig("qwen2", D=64, K=2, G=2, H=16, F=128, V=512, L=2, qkv_bias=True)
# Multiplied with every token: q and o of 4 heads, k and v of 2, three matrices of F, the head.
MATRICES = 2 * (64 * 16 * 2 * (4 + 2) + 3 * 64 * 128) + 64 * 512
B32 = sizes.KNOWN["Qwen/Qwen2.5-32B-Instruct"]
MATRICES_OF = {TOY: MATRICES, B32: 64 * (2 * 5120 * 40 * 128 + 2 * 5120 * 8 * 128 + 3 * 5120 * 27648) + 5120 * 152064}


def devices(kind: str, count: int, hosts: int, chip: str) -> topology.Topology:
    """A topology whose devices have a kind and nothing else."""
    one = types.SimpleNamespace(device_kind=kind)
    return topology.Topology(f"{chip}:{hosts}x{count // hosts}", topology.CHIPS[chip], (one,) * count, hosts)


H100 = devices("NVIDIA H100 80GB HBM3", 16, 2, "h100")


def update(rows, length, micro_batches=1, *, model=TOY, tokens=None):
    """Full rows of one example each, of whose positions so many hold tokens."""
    tokens = rows * length if tokens is None else tokens
    flops = 6 * MATRICES_OF[model] * tokens + 6 * model.L * model.K * model.G * model.H * rows * length**2
    return Update(315, rows, micro_batches, (length,), (None,), tokens, rows * length, flops, 16, length)


def test_what_remat_computes_twice():
    whole = 6 * MATRICES * 512 + 6 * 2 * 2 * 2 * 16 * 512**2
    attention = 6 * 2 * 2 * 2 * 16 * 512**2 / whole
    expected = {"none": 0, "dots": attention / 3, "attention": (1 - attention) / 3, "full": 1 / 3, "offload": 1 / 3}
    for remat, share in expected.items():
        assert search.recomputed(TOY, update(1, 512), remat) == pytest.approx(share)


@pytest.mark.parametrize(
    "mesh, remat, offload",
    [
        (MeshConfig(1, 16, 1, 1), "full", False),
        (MeshConfig(1, 4, 4, 1), "none", True),
        (MeshConfig(2, 2, 2, 2), "offload", False),
        (MeshConfig(2, 4, 2, 1), "attention", False),
        (MeshConfig(1, 1, 1, 8), "full", True),
    ],
)
def test_the_estimate_of_a_candidate(mesh, remat, offload):
    """Qwen2.5-32B by hand: 31.2e9 matrix parameters, a batch in 16 rows of 9,000 of which 120,000 positions are tokens,
    on 16 H100 of two hosts."""
    D, K, G, H, F, V, L, n = 5120, 8, 5, 128, 27648, 152064, 64, 16
    T, rows, tokens = 9000, 16, 120_000
    micro = rows // (mesh.data * mesh.fsdp)
    matrices = L * (2 * D * K * G * H + 2 * D * K * H + 3 * D * F) + D * V
    given = update(rows, T, micro, model=B32, tokens=tokens)
    step = 6 * matrices * T * rows + 6 * L * K * G * H * T**2 * rows
    assert given.flops == step - 6 * matrices * (T * rows - tokens)
    products = step * (1 + search.recomputed(B32, given, remat)) / (0.6 * n * 989e12)
    weights, cut = matrices + V * D, mesh.fsdp * mesh.context
    link = 450e9 if cut * mesh.tensor <= 8 else 50e9 * min(8, cut)
    moved = 8 * weights / mesh.tensor * (1 - 1 / cut) / link
    if mesh.data > 1:
        moved += 8 * weights / cut / mesh.tensor / 50e9
    own = micro * T / mesh.context
    out = L * 4 * own * D / 50e9 if remat == "offload" else 0
    heads = 8 * own * H * K * (2 * G + 2) / mesh.tensor * (1 - 1 / mesh.context)
    sums = 24 * own * D * (1 - 1 / mesh.tensor)
    moments = 16 * weights / cut / mesh.tensor / 50e9 if offload else 0
    spent = max(products, micro * moved + out) + L * (heads + sums) / 450e9 + moments
    estimate = search.seconds(B32, H100, mesh, given, remat=remat, offload_optimizer=offload)
    assert estimate == pytest.approx(spent, rel=1e-12)


def test_meshes_of_a_topology():
    """TOY on 8 devices of 2 hosts: 2 kv heads, so tensor x context is 1 or 2; 4 rows at most."""
    where = devices("NVIDIA H100", 8, 2, "h100")
    found = {(m.data, m.fsdp, m.context, m.tensor) for m in search.meshes(TOY, where, 4, 1)}
    assert found == {
        (d, f, c, t)
        for d in (1, 2, 4, 8)
        for f in (1, 2, 4, 8)
        for c in (1, 2)
        for t in (1, 2)
        if d * f * c * t == 8 and c * t <= 2 and d * f <= 4
    }
    assert not list(search.meshes(TOY, where, 4, 2)), "micro-batches of two would make eight rows"
    narrow = dataclasses.replace(TOY, K=8, D=60)
    assert {m.fsdp * m.context for m in search.meshes(narrow, where, 8, 1)} <= {1, 2, 4}, "60 is not cut into 8"
    assert all(m.tensor * m.context <= 4 for m in search.meshes(narrow, where, 8, 1)), "within a host"


def test_candidates_are_those_that_can_make_the_batch():
    where, refused = devices("NVIDIA H100", 8, 2, "h100"), []

    def made(mesh):
        if mesh.context > 1:
            raise BadInput("129 is not cut into 2")
        return update(4, 129, 4 // (mesh.data * mesh.fsdp))

    options = {"batch": 4, "micro_batch": 1, "refused": refused.append}
    cut = search.candidates(TOY, where, made, **options)
    assert {(c.mesh.context, c.mesh.tensor) for c in cut} == {(1, 2)}
    assert len(cut) == 3 * 5 * 2, "meshes, remats, offload or not"
    assert refused == ["mesh=search leaves out: 129 is not cut into 2"], "a reason is said once"

    def nothing(mesh):
        raise BadInput("never")

    with pytest.raises(BadInput, match="no mesh of 8 devices"):
        search.candidates(TOY, where, nothing, **options)


def test_a_search_compiles_twelve_at_most():
    ways = [search.MeshCandidate(MeshConfig(fsdp=n), "full", False, float(n)) for n in range(1, 20)]
    asked = []

    def compile(candidate):
        asked.append(candidate)
        return "tight", 100 - len(asked)

    chosen, compiled = search.search(ways, lambda candidate: 5, 5, compile)
    assert (chosen, compiled, asked) == (ways[11], 12, ways[:12]), (
        "what needs just the room is compiled; tight is not fits"
    )
