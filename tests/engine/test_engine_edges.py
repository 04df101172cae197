"""Edges of the engine: cuts within cuts, lengths that divide nothing, int8's range, rows that are stopped, types."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import CONFIG, FREE, MAX_LENGTH, engine, facts, kinds, make_model, plain, request, tokenizer
from program_types import WIDE, equations, is_narrow, narrow

from s1jax.control import CONTROLS
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.weights import prepare
from s1jax.models import layers
from s1jax.models.decoder import forward, logits, named
from s1jax.parallel.axes import Quantized
from s1jax.plan import decode, memory, topology


def test_top_p_is_a_share_of_what_top_k_leaves():
    """At a temperature of 5 ten tokens hold little of all, so half of all would be all ten of them."""
    engine_ = engine()
    rows = [request(f"row {i}", n=12, temperature=5.0, top_k=10, top_p=0.5) for i in range(6)]
    for row in rows:
        engine_.submit(row)
    found = {done.id: facts(done) for done in engine_.run()}
    assert found == {row.id: facts(plain(row)) for row in rows}


@pytest.mark.parametrize("prompt", [600, 513, 256, 511])
def test_prompts_of_a_length_that_divides_nothing(prompt):
    """An engine for 1,000 tokens: the first drawn one is that of a full forward pass over the whole prompt."""
    config = dataclasses.replace(CONFIG, max_position=1024)
    model = make_model(config)
    made = Engine(model, tokenizer(), EngineConfig(slots=1, max_length=1000, window=4), kinds())
    ids = tuple(np.random.default_rng(prompt).integers(97, 123, prompt).tolist())
    row = CONTROLS[FREE.kind].admit(FREE, tokenizer(), prompt_length=prompt, max_length=1000, max_new_tokens=3)
    made.submit(Request("long", 0, 0, ids, row, SamplingConfig(logprobs=True)))
    [done] = made.run()
    whole = [*ids, *done.token_ids]
    at_T = jnp.arange(len(whole))

    def attend(q_BTKGH, k_BTKH, v_BTKH, _):
        return layers.attention(q_BTKGH, k_BTKH, v_BTKH, (at_T[None] <= at_T[:, None])[None]), None

    x_BTD, _ = forward(model, jnp.asarray(whole)[None], at_T[None], attend)
    scores_TV = np.array(logits(model, x_BTD)[0])
    scores_TV[:, tokenizer().size :] = -np.inf
    expected = scores_TV[prompt - 1 : len(whole) - 1].argmax(1).tolist()
    assert list(done.token_ids) == expected[: len(done.token_ids)] and len(done.token_ids) >= 1
    scores_TV = np.asarray(jax.nn.log_softmax(logits(model, x_BTD)[0]))[prompt - 1 :]
    chosen = [scores_TV[i, token] for i, token in enumerate(done.token_ids)]
    np.testing.assert_allclose(done.logprobs, chosen, atol=1e-4)  # type: ignore[arg-type]


def test_int8_uses_its_whole_range_and_no_more():
    """The largest weight of a channel is 127, in its sign; none is off by more than half a step."""
    made = prepare(make_model(CONFIG), "int8", None)
    wide = prepare(make_model(CONFIG), "float32", None)
    found = 0
    leaves = jax.tree.leaves(made, is_leaf=lambda node: isinstance(node, Quantized))
    exact = {value.shape: [] for value in named(wide).values()}
    for value in named(wide).values():
        exact[value.shape].append(np.asarray(value))
    for leaf in leaves:
        if not isinstance(leaf, Quantized):
            continue
        found += 1
        values, scale = np.asarray(leaf.values, np.int32), np.asarray(leaf.scale)
        assert leaf.values.dtype == jnp.int8 and scale.dtype == np.float32
        summed = tuple(axis for axis, n in enumerate(scale.shape) if n == 1)
        assert (np.abs(values).max(axis=summed) == 127).all() and values.min() >= -127
        error = min(np.abs(values * scale - one).max(initial=0) / scale.max() for one in exact[values.shape])
        assert error <= 0.5 + 1e-4
    assert found >= 7 * CONFIG.L


def test_a_row_that_is_stopped_costs_no_more_steps():
    """Its text ends at a stop; the other row of the engine goes on alone."""
    engine_ = engine(window=4, classes=((2, MAX_LENGTH),))  # in a class of its own it could run on to the end
    whole = plain(request("to be stopped", n=60, temperature=1.0))
    text = tokenizer().decode(whole.token_ids)
    stop = text[4:6]
    long = request("a long one", n=60, temperature=1.0)
    steps = len(plain(long).token_ids)
    engine_.submit(long)
    engine_.submit(request("to be stopped", n=60, temperature=1.0, stop=(stop,)))
    before = engine_.stats.row_steps
    done = {row.id: row for row in engine_.run()}
    assert len(done["a long one"].token_ids) == steps
    cut = len(done["to be stopped"].token_ids)
    assert cut < 20 < len(whole.token_ids) - cut - 5 * 4
    assert engine_.stats.row_steps - before <= steps + cut + 5 * 4, "two windows under way at most"


@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
def test_types_of_the_compiled_programs(kept, monkeypatch):
    """Norms, softmax, logits, draws and scales are float32 where the compute type is bfloat16, in every program that an
    engine is planned with: its window of steps and its prefill."""
    programs = []

    def lower(function, where, *arguments, **static):
        programs.append(function.trace(*arguments, **static).jaxpr.jaxpr)

    monkeypatch.setattr(memory, "lower", lower)
    monkeypatch.setattr(memory, "measure", lambda *_, **__: memory.Compiled(10**9, 0))
    config = dataclasses.replace(CONFIG, V=311, max_position=256)
    wanted = EngineConfig(slots=2, max_length=256, weights=kept, cache=kept)
    decode.plan_decode(wanted, config, topology.find("cpu:1"), tensor=1, dtype="bfloat16")
    assert len(programs) >= 2
    for program in programs:
        found = equations(program)
        assert narrow(found, (*WIDE, "reduce_sum", "cumsum")) == []
        assert any(e.primitive.name == "rsqrt" for e in found) and any(e.primitive.name == "exp" for e in found)
        assert any(is_narrow(v) for e in found for v in e.outvars), "the model itself computes in bfloat16"
        over_ids = [e for e in found for v in e.outvars if getattr(v.aval, "shape", ())[-1:] == (config.V,)]
        floats = [e for e in over_ids if jnp.issubdtype(e.outvars[0].aval.dtype, jnp.floating)]
        assert [str(e)[:200] for e in floats if is_narrow(e.outvars[0])] == [], "logits and what is made of them"
    assert any(v.aval.shape[-1:] == (config.V,) for e in equations(programs[0]) for v in e.outvars if v.aval.shape)
    if kept == "int8":
        for program in programs:
            held = [v.aval for v in program.invars if v.aval.dtype == jnp.int8]
            assert held and not any(v.aval.dtype == jnp.bfloat16 and v.aval.ndim > 2 for v in program.invars)
