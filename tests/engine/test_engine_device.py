"""Where the engine's arrays lie: kv heads over eight devices, what the compiled step copies, what the memory holds."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
from engine_cases import CONFIG, FREE, S1, engine, kinds, make_model, model, request, tokenizer

from s1jax.config import BadInput
from s1jax.control.free import FreeConfig
from s1jax.engine import decode
from s1jax.engine.cache import Size
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.memory import GIB
from s1jax.engine.requests import Request
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.records import Completion

WIDE = dataclasses.replace(CONFIG, K=8, G=1, H=4, F=64, L=1)


def rows() -> list[Request]:
    config = dataclasses.replace(S1, thinking_token_budget=20, thinking_n_ignore=2)
    return [request("x" * i, c, n=30, logprobs=True) for i, c in ((1, FREE), (9, config), (17, config), (30, FREE))]


def run(devices: int, **fields) -> list[Completion]:
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=devices), jax.devices()[-devices:])
    config = EngineConfig(classes=((4, 64),), max_length=64, window=8, **fields)
    engine_ = Engine(make_model(WIDE), tokenizer(), config, kinds(), mesh=mesh)
    for row in rows():
        engine_.submit(row)
    found = engine_.run()
    [k_BKSH, *_] = jax.tree.leaves(engine_._slots._state.cache)
    assert k_BKSH.devices() == set(jax.devices()[-devices:])
    assert k_BKSH.addressable_shards[0].data.shape == (4, 8 // devices, 64, 4)
    before = len(engine_.programs)
    engine_.submit(rows()[2])
    assert engine_.run() == found[2:3]
    assert len(engine_.programs) == before
    return found


def test_a_mesh_of_other_axes_is_refused():
    with pytest.raises(BadInput, match="`tensor` devices alone"):
        engine(mesh=make_mesh(MeshConfig(data=2, fsdp=1, context=1, tensor=1), jax.devices()[:2]))


@pytest.mark.parametrize("fields", [{}, {"weights": "int8", "cache": "int8"}])
def test_eight_devices_give_the_ids_of_one(fields):
    """Sums are split over the devices, so last bits differ; a greedy id may differ only where two nearly tie."""
    parted = 0
    for one, eight in zip(run(1, **fields), run(8, **fields), strict=True):
        n = next((i for i, (a, b) in enumerate(zip(one.token_ids, eight.token_ids, strict=False)) if a != b), None)
        parted += n is not None
        np.testing.assert_allclose(one.logprobs[: n and n + 1], eight.logprobs[: n and n + 1], atol=1e-3)
    assert parted <= 1


# ------------------------------------------------------------------------------------------------ what a step copies


def copies(text: str) -> collections.Counter:
    """Shapes (dimensions sorted) that a compiled program copies, transposes, converts or joins, with the type made."""
    found = re.findall(r"= (\w+)\[([\d,]+)\]\S* (copy|transpose|concatenate|pad|convert)\(", text)
    return collections.Counter((type_, op, tuple(sorted(map(int, dims.split(","))))) for type_, dims, op in found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_copies_neither_cache_nor_weights(dtype):
    """In float32 nothing of their shapes is copied. A CPU multiplies bfloat16 in float32: it may widen, not narrow."""
    engine_ = engine(classes=((5, 40), (1, 96)), dtype=dtype)
    engine_.submit(request("a", n=5))
    engine_.run()
    slots = engine_._slots
    lowered = decode.decode_window.lower(slots.model, slots._control, slots._state, shape=slots.shape)
    compiled = lowered.compile()
    found = copies(compiled.as_text())
    large = {tuple(sorted(x.shape)) for x in jax.tree.leaves((slots.model, slots._state.cache)) if x.size >= 1024}
    assert len(large) >= 5
    mine = {key: n for key, n in found.items() if key[2] in large}
    allowed = {("f32", "convert", shape) for shape in large} if dtype == "bfloat16" else set()
    assert not {key: n for key, n in mine.items() if key not in allowed}
    memory = compiled.memory_analysis()
    cache = sum(x.nbytes for x in jax.tree.leaves(slots._state.cache))
    assert memory.alias_size_in_bytes >= cache  # the donated cache is written in place


# ------------------------------------------------------------------------------------------------------------- memory


def test_auto_takes_the_slots_that_memory_holds():
    """The memory that n slots take, and the part that is left free, gives n; a little less gives one slot less."""
    size, lines = Size(CONFIG.L, CONFIG.K, CONFIG.H, "float32"), []
    three = engine(slots=3, classes=None).memory
    total = three.weights + three.cache + three.work
    for gib, n in ((total / 0.92 / GIB * 1.0001, 3), (total / 0.92 / GIB * 0.9999, 2)):
        memory = engine(slots="auto", classes=None, memory_gib=gib, notify=lines.append).memory
        assert memory.classes == ((n, 96),)
        assert memory.cache == n * 96 * size.bytes_per_token
        assert memory.weights == sum(x.nbytes for x in jax.tree.leaves(model()))
    assert re.fullmatch(r"weights \S+ \+ cache \S+ \+ work \S+ of \S+ GiB, 3 slots \(3 x 96\)", lines[0])
    assert engine(weights="int8").memory.weights < three.weights / 3


def test_auto_refuses_where_nothing_fits():
    with pytest.raises(BadInput, match="not one slot fits"):
        engine(slots="auto", classes=None, memory_gib=0.001)


def test_out_of_memory_names_the_knobs(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 123 bytes")

    engine_ = engine()
    engine_.submit(request("a"))
    monkeypatch.setattr(decode, "start", fail)
    with pytest.raises(BadInput, match=r"out of device memory with weights.*engine\.slots"):
        engine_.run()


def test_another_failure_of_the_device_is_not_called_bad_input(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    engine_ = engine()
    engine_.submit(request("a", FreeConfig()))
    monkeypatch.setattr(decode, "start", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        engine_.run()
