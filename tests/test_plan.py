"""The verb `plan`: bytes against an independent count, the rule of what fits, errors, files."""

import dataclasses
import importlib.util
import json

import pytest

from s1jax import __main__ as cli
from s1jax.checkpoint.folder import read_config
from s1jax.config import BadInput
from s1jax.mesh import MeshConfig
from s1jax.models.decoder import DecoderConfig
from s1jax.plan import advice, run, sizes, topology
from s1jax.plan.memory import BESIDE, USABLE, Memory, judge
from s1jax.plan.run import PlanRun, make_plan
from s1jax.train.config import RandomModel

GIB = 2**30
TOY = DecoderConfig("qwen2", D=64, K=2, G=2, H=16, F=128, V=512, L=2, qkv_bias=True)
CONFIG = PlanRun(
    model=RandomModel(TOY), topology="cpu:8", rows=(4, 128), mesh=MeshConfig(fsdp=4, context=2), dtype="float32"
)


@pytest.fixture(scope="module")
def toy():
    """The toy's plan, its topology, and what is written of it."""
    plan, where = make_plan(CONFIG)
    return plan, where, run.describe(plan, where, CONFIG)


def parameters(c: DecoderConfig) -> dict[str, int]:
    """Parameters of Qwen2.5 by whether the rules shard them, counted from the published architecture."""
    heads = c.K * c.G
    matrices = c.D * heads * c.H * 2 + c.D * c.K * c.H * 2 + 3 * c.D * c.F
    vectors = heads * c.H + 2 * c.K * c.H
    embeddings = c.V * c.D * (1 if c.tied else 2)
    return {"sharded": c.L * matrices + embeddings, "whole": c.L * 2 * c.D + c.D, "by_head": c.L * vectors}


def test_parameters_and_moments_are_those_of_an_independent_count(toy):
    plan, _, record = toy
    count, ways = parameters(TOY), 8
    per_device = 4 * (count["sharded"] // ways + count["whole"] + count["by_head"])
    parts = record["bytes_per_device"]
    assert parts["parameters"] == per_device
    assert parts["gradients"] == per_device
    assert 2 * per_device <= parts["optimizer"] <= 2 * per_device + 16  # and counters
    assert parts["batch"] == 5 * 4 * 4 * 128 // ways
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")


def test_known_sizes_are_those_of_the_published_configs(shared, tmp_path):
    for name, config in sizes.KNOWN.items():
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        text = (shared / "configs" / f"{name.partition('/')[2].lower()}.json").read_text(encoding="utf-8")
        (folder / "config.json").write_text(text, encoding="utf-8")
        assert config == read_config(folder) == sizes.decoder_config(str(folder))
        assert config == sizes.decoder_config(name)
    count = parameters(sizes.KNOWN["Qwen/Qwen2.5-32B-Instruct"])
    assert sum(count.values()) == 32_763_876_352


def test_the_rule_of_what_fits_at_its_edges():
    limit = 80 * GIB
    assert judge(int(USABLE * limit) - BESIDE, limit) == "fits"
    assert judge(int(USABLE * limit) - BESIDE + 1, limit) == "tight"
    assert judge(limit - BESIDE, limit) == "tight"
    assert judge(limit - BESIDE + 1, limit) == "too large"
    over = Memory({"parameters": 60 * GIB, "activations": 20 * GIB}, 0, limit)
    assert over.over == 80 * GIB + BESIDE - int(USABLE * limit)
    assert Memory({"parameters": GIB}, 0, limit).over == 0


@pytest.mark.parametrize(
    "name, says",
    [
        ("x100:2x8", "write chip:shape"),
        ("h100", "write chip:shape"),
        ("cpu:9", "JAX shows 8 CPU devices"),
        ("cpu:2x2", "JAX shows 8 CPU devices"),
        ("h100:8", "hosts x GPUs"),
        ("h100:0x8", "hosts x GPUs"),
    ],
)
def test_topologies_that_are_none(name, says):
    with pytest.raises(BadInput, match=says):
        topology.find(name)


@pytest.mark.parametrize("name, extra", [("h100:1x8", "cuda"), ("v5p:2x2x1", "tpu")])
def test_a_missing_compiler_names_the_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(BadInput, match=rf"{name}.*not installed; pip install s1jax\[{extra}\]"):
        topology.find(name)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"rows": (3, 128)}, "takes 4 rows at once"),
        ({"rows": (4, 127)}, "cut into 2 parts"),
        ({"rows": (4, 65536)}, "made for 32768 positions"),
        ({"mesh": MeshConfig(fsdp=3)}, "there are 8"),
        ({"mfu": 1.5}, "mfu=1.5"),
        ({"examples": 0}, "examples=0"),
        ({"remat": "some"}, "remat='some' is not known"),
        ({"model": RandomModel(dataclasses.replace(TOY, family="gpt"))}, "family='gpt' is not known"),
        ({"model": "nobody/nothing"}, "neither a folder with a config.json nor a hub id"),
    ],
)
def test_what_cannot_be_planned_is_named(change, says):
    with pytest.raises(BadInput, match=says):
        make_plan(dataclasses.replace(CONFIG, **change))


def test_a_rejected_config_is_one_line_and_exit_code_2(capsys):
    assert cli.main(["plan", "model=nobody/nothing", "topology=moon:8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "moon:8" in error


def test_the_verb_leaves_plan_json_and_says_what_fits(tmp_path, capsys):
    sizes_of = ", ".join(f"{letter}: {getattr(TOY, letter)}" for letter in "DKGHFVL")
    recipe, out = tmp_path / "toy.yaml", tmp_path / "out"
    recipe.write_text(
        f"model: {{init: {{family: qwen2, qkv_bias: true, {sizes_of}}}}}\n"
        "data: {rows: nowhere, block: 128}\ndtype: float32\nmesh: {fsdp: 4, context: 2}\n",
        encoding="utf-8",
    )
    assert cli.main(["plan", str(recipe), "topology=cpu:8", f"out={out}"]) == 0
    shown = capsys.readouterr().out
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert plan["format"] == "s1jax.plan/1"
    assert (plan["topology"], plan["devices"], plan["fits"]) == ("cpu:8", 8, True)
    assert plan["moments"] == {"mu": "float32", "nu": "float32"}
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert plan["floor_seconds"] is None and plan["flops_per_step"] > 0
    assert "optimizer" in shown and ": fits" in shown
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["kind"] == "PlanRun"


def test_advice_names_what_saves_enough(toy):
    plan, where, _ = toy
    limit = int((plan.memory.total + BESIDE - 1000) / USABLE)
    full = dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, limit=limit))
    assert full.memory.verdict == "tight" and abs(full.memory.over - 1000) < 3
    saved = advice.options(full, where)
    assert saved["offload_optimizer=true"] == plan.memory.parts["optimizer"]
    assert saved["optimizer.mu=bfloat16"] == plan.memory.parts["parameters"] // 2
    assert "(enough)" in advice.line(full, where)
