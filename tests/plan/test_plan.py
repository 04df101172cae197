"""The verb `plan`: bytes against an independent count, the rule of what fits, errors, files."""

import dataclasses
import importlib.util
import json
import math
import pathlib

import pytest
from jax.sharding import AbstractMesh

from s1jax import __main__ as cli
from s1jax.checkpoint.folder import read_config
from s1jax.config import BadInput
from s1jax.engine.config import EngineConfig
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import AXES, MeshConfig
from s1jax.plan import advice, lengths, run, search, sizes, topology
from s1jax.plan.decode import plan_decode
from s1jax.plan.memory import BESIDE, USABLE, Memory, judge
from s1jax.plan.run import PlanRun, make_plan
from s1jax.plan.update import update_of
from s1jax.train.config import RandomModel
from s1jax.train.data import DataConfig

ROOT = pathlib.Path(__file__).parent.parent.parent
GIB = 2**30
GOLDEN = 66_429_952  # bytes of a device: jax 0.10.2, libtpu 0.0.42.1
TOY = DecoderConfig("qwen2", D=64, K=2, G=2, H=16, F=128, V=512, L=2, qkv_bias=True)
MODEL_32B = "Qwen/Qwen2.5-32B-Instruct"
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


def test_known_sizes_are_those_of_the_published_configs(config_files, tmp_path):
    for name, config in sizes.KNOWN.items():
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        text = (config_files / f"{name.partition('/')[2].lower()}.json").read_text(encoding="utf-8")
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
        ({"rows": None, "lengths": "s2k"}, "lengths='s2k' is not known; use auto, rows or one of s1k, s1k_deepseek"),
        ({"rows": (4, 127)}, "cut into 2 parts"),
        ({"rows": (4, 65536)}, "made for 32768 positions"),
        ({"mesh": MeshConfig(fsdp=3)}, "there are 8"),
        ({"mfu": 1.5}, "mfu=1.5"),
        ({"examples": 0}, "examples=0"),
        ({"remat": "some"}, "remat='some' is not known"),
        ({"model": RandomModel(dataclasses.replace(TOY, family="gpt"))}, "family='gpt' is not known"),
        ({"model": "nobody/nothing"}, "neither a folder nor a hub id"),
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
        "data: {rows: nowhere, block: 512}\ndtype: float32\nmesh: {fsdp: 4, context: 2}\n",
        encoding="utf-8",
    )
    assert cli.main(["plan", str(recipe), "topology=cpu:8", "mean_tokens=98", f"out={out}"]) == 0
    shown = capsys.readouterr().out
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert plan["format"] == "s1jax.plan/1"
    assert (plan["topology"], plan["devices"], plan["fits"]) == ("cpu:8", 8, True)
    assert plan["moments"] == {"mu": "float32", "nu": "float32"}
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert plan["floor_seconds"] is None and plan["flops_per_step"] > 0
    assert plan["tokens_per_step"] == pytest.approx(16 * 97) and 0.75 < plan["fill"] <= 1
    assert plan["rows"][1] == max(plan["lengths"]) and set(plan["bytes_by_length"]) == set(map(str, plan["lengths"]))
    assert plan["bytes_per_device"]["total"] == max(plan["bytes_by_length"].values())
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


def test_a_search_takes_the_fastest_that_fits():
    """Toy: four ways in the order of their time; two are too large by arithmetic, one as compiled, the fourth fits."""
    ways = [search.MeshCandidate(MeshConfig(fsdp=n), "full", False, seconds=float(n)) for n in (1, 2, 4, 8)]
    size = {1: 90, 2: 80, 4: 70, 8: 40}
    asked = []

    def compile(candidate):
        asked.append(candidate.mesh.fsdp)
        return ("fits" if size[candidate.mesh.fsdp] <= 60 else "too large"), size[candidate.mesh.fsdp]

    chosen, compiled = search.search(ways, lambda candidate: size[candidate.mesh.fsdp], 75, compile)
    assert (chosen.mesh.fsdp, compiled, asked) == (8, 2, [4, 8])
    chosen, _ = search.search(ways[:3], lambda candidate: 0, 75, compile)
    assert chosen.mesh.fsdp == 4, "where none fits, the smallest"
    assert search.search(ways, lambda candidate: 100 - candidate.mesh.fsdp, 10, compile) == (ways[3], 0)


def test_the_order_of_a_search(monkeypatch):
    chip = topology.CHIPS["h100"]
    kind = type("Device", (), {"device_kind": "NVIDIA H100 80GB HBM3"})()
    hosts = topology.Topology("h100:2x8", chip, (kind,) * 16, 2)
    asked, refused = dataclasses.replace(CONFIG, rows=None, model=MODEL_32B, data=DataConfig(rows="")), []
    model, (examples, _) = sizes.decoder_config(MODEL_32B), lengths.examples_of(asked, "s1k", 1000, None)

    def update(mesh):
        sizes_of = tuple(getattr(mesh, axis) for axis in AXES)
        return update_of(asked, model, AbstractMesh(sizes_of, AXES), examples, None)

    options = {"batch": 16, "micro_batch": 1, "refused": refused.append}
    ordered = search.candidates(model, hosts, update, **options)
    seconds = {(c.mesh.fsdp, c.mesh.context, c.mesh.data, c.remat, c.offload_optimizer): c.seconds for c in ordered}
    assert ordered == sorted(ordered, key=lambda candidate: candidate.seconds)
    assert {c.mesh.context * c.mesh.tensor for c in ordered} == {2, 4, 8}, "within a host, and the kv heads divide"
    plain = seconds[4, 4, 1, "full", False]
    assert seconds[4, 4, 1, "none", False] < plain, "nothing computed twice"
    assert seconds[4, 4, 1, "full", True] > plain, "moments moved"
    assert {c.mesh.data * c.mesh.fsdp for c in ordered} == {2, 4, 8}
    assert len(refused) == 1 and "16 rows of a step would be 69% tokens and else padding, 8 rows 93%" in refused[0]
    monkeypatch.setattr(topology, "CHIPS", {})
    with pytest.raises(BadInput, match="mesh=search: no mesh of 16 devices"):
        search.candidates(model, hosts, update, **{**options, "batch": 1, "micro_batch": 2})


def test_a_search_by_the_verb_plans_what_it_chose():
    plan, _ = make_plan(dataclasses.replace(CONFIG, mesh="search"))
    assert plan.memory.verdict == "fits" and plan.recipe.remat == "none" and not plan.recipe.offload_optimizer
    assert math.prod(plan.mesh.shape.values()) == 8


def test_the_decode_step_of_an_engine(tmp_path):
    engine = EngineConfig(slots=3, max_length=256, prefill_ids=64, window=2)
    plan = plan_decode(engine, TOY, topology.find("cpu:2"), tensor=2, dtype="float32")
    count = parameters(TOY)
    cut, by_head = count["sharded"] // 2, count["by_head"] // 2
    assert plan.memory.parts["weights"] == 4 * (cut + by_head + count["whole"])
    assert plan.memory.parts["cache"] == 3 * 256 * 2 * TOY.L * TOY.K * TOY.H * 4 // 2
    assert plan.classes == ((3, 256),) and plan.memory.parts["work"] > 0
    live = 4 * TOY.L * TOY.K * TOY.G * TOY.H * 3 * 256
    matrices = count["sharded"] - TOY.V * TOY.D
    assert plan.flops == 2 * matrices * 3 + live
    with pytest.raises(BadInput, match="divide the 2 kv heads"):
        plan_decode(engine, TOY, topology.find("cpu:8"), tensor=8, dtype="float32")


def test_a_tpu_plan_is_what_it_was():
    """Golden: four layers on v5e:2x2, splash attention, fsdp x context. A change of 2 % is a change of the step."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no compiler for TPUs: libtpu is not installed (extra `tpu`)")
    model = DecoderConfig("qwen2", D=512, K=2, G=2, H=128, F=1024, V=8192, L=4, qkv_bias=True)
    config = PlanRun(model=RandomModel(model), topology="v5e:2x2", rows=(2, 1024), mesh=MeshConfig(fsdp=2, context=2))
    plan, where = make_plan(config)
    assert plan.recipe.attention == "splash" and where.devices[0].platform == "tpu"
    assert plan.memory.total == pytest.approx(GOLDEN, rel=0.02)
    assert plan.floor_seconds == pytest.approx(plan.update.flops / (4 * 197e12))


def test_recorded_plans_are_of_these_recipes_and_of_the_locked_versions():
    path = ROOT / "tools" / "plans.py"
    spec = importlib.util.spec_from_file_location("plans", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    recorded = json.loads((ROOT / "docs" / "plans.json").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    missing = [name for name in tool.PLANS if name not in recorded["plans"]]
    assert set(missing) <= set(tool.TPUS), "only a TPU's plans, which take minutes, may be due; the page names them"
    assert list(recorded["plans"]) == [name for name in tool.PLANS if name not in missing]
    for name, entry in recorded["plans"].items():
        assert entry["inputs"] == tool.inputs(entry["arguments"]), f"{name} was planned from other inputs: make plans"
        assert f"jax=={entry['plan']['versions']['jax']} " in lock, f"{name} was planned with another jax: make plans"
    assert (ROOT / "docs" / "plans.md").read_text(encoding="utf-8") == tool.table(recorded)


def test_the_recorded_update_of_s1_fits_eight_gpus():
    """Golden, in GiB of one of 8 H100, the whole update, no offload; four micro-batches beside one."""
    recorded = json.loads((ROOT / "docs" / "plans.json").read_text(encoding="utf-8"))["plans"]
    totals = {name: entry["plan"]["bytes_per_device"]["total"] / GIB for name, entry in recorded.items()}
    for name, expected, bar in (("s1, 8 H100, bf16 mu", 59.98, 61), ("s1, 8 H100", 66.79, 67)):
        plan = recorded[name]["plan"]
        assert totals[name] == pytest.approx(expected, rel=0.005) and totals[name] <= bar
        assert plan["fits"] and not plan["offload_optimizer"] and plan["micro_batches"] == 3 and plan["fill"] > 0.9
    assert totals["four micro-batches"] <= 1.03 * totals["one micro-batch"]
    assert recorded["four micro-batches"]["plan"]["micro_batches"] == 4
