"""The numbers of `plan` by hand: chips, bytes, seconds, MFU, verdicts, and the estimate that orders a search."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError
from plan_cases import CONFIG, MATRICES, TOY, answer_all

from s1jax.config import BadInput
from s1jax.models.lora import LoraConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.plan import advice, memory, result, run, topology, train
from s1jax.plan.run import make_plan
from s1jax.train import flops
from s1jax.train.optimizer import OptimizerConfig

GIB = 2**30


def devices(kind: str, count: int, hosts: int, chip: str) -> topology.Topology:
    """A topology whose devices have a kind and nothing else."""
    one = types.SimpleNamespace(device_kind=kind)
    return topology.Topology(f"{chip}:{hosts}x{count // hosts}", topology.CHIPS[chip], (one,) * count, hosts)


H100 = devices("NVIDIA H100 80GB HBM3", 16, 2, "h100")


@pytest.fixture
def unbuilt(monkeypatch):
    """Nothing is compiled: the compiler is said to have answered 40 MB of a device and 3 of its host."""
    answer_all(monkeypatch, memory.Compiled(40_000_000, 3_000_000))
    monkeypatch.setitem(flops.PEAK_FLOPS, "cpu", 1e12)


def test_chips_are_those_of_the_data_sheets():
    """Platform, GiB, TB/s of memory, GB/s to near and far devices and to the host."""
    expected = {
        "h100": ("gpu", 79.11, 3.35, 450, 50, 50),
        "h200": ("gpu", 139.8, 4.8, 450, 50, 50),
        "v5p": ("tpu", 95.74, 2.765, 600, 600, 16),
        "v5e": ("tpu", 15.75, 0.819, 200, 200, 16),
        "v6e": ("tpu", 31.25, 1.64, 400, 400, 16),
        "cpu": ("cpu", 0.0, 0.02, 20, 1, 20),
    }
    found = {
        name: (
            c.platform,
            round(c.memory / GIB, 2),
            c.bandwidth / 1e12,
            c.ici_bandwidth / 1e9,
            c.dcn_bandwidth / 1e9,
            c.host / 1e9,
        )
        for name, c in topology.CHIPS.items()
    }
    assert found == expected
    assert (topology.CHIPS["h100"].name, topology.CHIPS["h200"].name) == ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
    peaks = {"NVIDIA H100 PCIe": 989, "NVIDIA H200": 989, "NVIDIA A100-SXM4": 312, "TPU v4": 275, "TPU v5 lite": 197}
    peaks |= {"TPU v5e": 197, "TPU v5p": 459, "TPU v5": 459, "TPU v6 lite": 918}
    for kind, expected_peak in peaks.items():
        assert flops.peak_flops([types.SimpleNamespace(device_kind=kind)] * 2) == 2e12 * expected_peak
    assert flops.peak_flops([types.SimpleNamespace(device_kind=kind) for kind in ("TPU v4", "abacus")]) is None


def test_topologies_ask_the_compiler_for_what_their_name_says(monkeypatch):
    asked = []

    def description(**arguments):
        asked.append(arguments)
        return types.SimpleNamespace(devices=[types.SimpleNamespace(device_kind="it")] * 16)

    monkeypatch.setattr(topology.topologies, "get_topology_desc", description)
    monkeypatch.setattr(topology, "_is_installed", lambda module: module in ("jax_plugins.xla_cuda13", "libtpu"))
    gpus, tpus = topology.find("h100:2x8"), topology.find("v5p:2x2x4")
    assert (gpus.hosts, len(gpus.devices), gpus.memory) == (2, 16, 84942979072)
    assert (tpus.hosts, len(tpus.devices), tpus.chip) == (1, 16, topology.CHIPS["v5p"])
    assert asked[0]["platform"] == "cuda" and asked[0]["topology"] == "1x2x8"
    text = asked[0]["target_config"].split("\n")
    for line in (
        "core_count: 132",
        "memory_bandwidth: 3350000000000",
        "device_memory_size: 84942979072",
        'name: "NVIDIA H100 80GB HBM3"',
        "shared_memory_per_block_optin: 232448",
        "l2_cache_size: 52428800",
        "cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }",
        "dnn_version_info { major: 9 minor: 10 patch: 0 }",
    ):
        assert line in text
    assert asked[1] == {"platform": "tpu", "topology_name": "v5p:2x2x4"}
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(topology.os, "sysconf", pages.get)
    assert topology.find("cpu:4").memory == 1_024_000, "its share of the machine"
    assert topology.find("cpu:1").devices == tuple(jax.devices("cpu")[:1])


def test_attention_is_lowered_as_on_the_gpus_of_the_topology_and_only_then():
    import jax._src.cudnn.fused_attention_stablehlo as module

    before = module.check_cudnn_version
    with topology.assumed(H100):
        assert module.check_cudnn_version() == 91000
        assert [module.check_compute_capability(least) for least in ("8.0", "9.0", "10.0")] == [True, True, False]
        assert [module.is_cuda_compute_capability_equal(one) for one in ("9.0", "10.0")] == [True, False]
    assert module.check_cudnn_version is before
    with topology.assumed(topology.find("cpu:1")):
        assert module.check_cudnn_version is before


class Lowered:
    """Stands for a lowered program: remembers its options and answers as XLA does."""

    def __init__(self, error: str = "", **stats: int) -> None:
        self.error, self.stats, self.options = error, stats, None

    def compile(self, options):
        self.options = options
        assert jax.config.jax_persistent_cache_min_compile_time_secs == float("inf"), "it would go to the cache"
        if self.error:
            raise JaxRuntimeError(self.error)
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(**self.stats)


def test_bytes_of_a_program_are_what_comes_in_and_out_and_between():
    of = {"argument": 1000, "temp": 200, "output": 500, "alias": 300}
    stats = {f"{name}_size_in_bytes": size for name, size in of.items()}
    stats |= {f"host_{name}_size_in_bytes": 10 * size + 1 for name, size in of.items()}
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    lowered = Lowered(**stats)
    assert memory.measure(lowered, H100, triton=True) == memory.Compiled(1000 + 200 + 500 - 300, 14_002)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before
    options = {"xla_gpu_autotune_level": 0, "xla_gpu_shard_autotuning": False, "xla_gpu_enable_triton_gemm": True}
    assert lowered.options == options
    memory.measure(lowered, H100, triton=False)
    assert lowered.options == {**options, "xla_gpu_enable_triton_gemm": False}
    memory.measure(lowered, topology.find("cpu:1"), triton=True)
    assert lowered.options == {}


@pytest.mark.parametrize(
    "size, expected", [("17.5G", 17.5 * GIB), ("2.0K", 2048), ("3.5M", 3.5 * 2**20), ("1T", 2**40)]
)
def test_what_a_tpu_refuses_says_how_large_it_is(size, expected):
    said = f"RESOURCE_EXHAUSTED: Ran out of memory. Used {size} of 15.75G hbm. Exceeded by 1G."
    found = memory.measure(Lowered(said), H100, triton=False)
    assert found == memory.Compiled(int(expected), 0)
    with pytest.raises(JaxRuntimeError, match="something else"):
        memory.measure(Lowered("something else"), H100, triton=False)


def array(shape: tuple[int, ...], dtype, *, ways: int = 1, kind: str = "device"):
    sharding = types.SimpleNamespace(memory_kind=kind, shard_shape=lambda shape: (shape[0] // ways, *shape[1:]))
    return types.SimpleNamespace(shape=shape, dtype=jnp.dtype(dtype), sharding=sharding)


def test_bytes_of_shards_are_counted_where_they_lie():
    tree = [
        array((8, 4), "float32", ways=4),
        array((6,), "bfloat16"),
        array((10, 3), "int8", ways=2, kind="pinned_host"),
    ]
    assert memory.shard_bytes(tree) == (2 * 4 * 4 + 6 * 2, 5 * 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tokens:
    tokens: types.SimpleNamespace


def test_gradients_of_several_micro_batches_are_one_tree():
    model, moments = [array((100,), "float32")], [array((200,), "float32")]
    state = types.SimpleNamespace(model=model, optimizer=moments, base=None)
    for micro_batches in (1, 5):
        batch = Tokens(array((micro_batches, 2, 8), "int32"))
        known = train.known_parts(state, batch)  # type: ignore[arg-type]
        assert known == {"parameters": 400, "optimizer": 800, "gradients": 400, "batch": micro_batches * 64}
    adapted = types.SimpleNamespace(model=model, optimizer=moments, base=[array((900,), "bfloat16")])
    assert train.known_parts(adapted, batch)["base"] == 1800  # type: ignore[arg-type]


def test_verdict_record_and_line_agree():
    for planned, verdict in ((70, "fits"), (75, "tight"), (79, "too large")):
        held = memory.Memory({"parameters": 40 * GIB, "activations": (planned - 40) * GIB}, 2 * GIB, 80 * GIB)
        record = run.memory_record(held)
        assert record["verdict"] == held.verdict == verdict and record["fits"] is (verdict == "fits")
        assert record["bytes_per_device"]["total"] == planned * GIB and record["memory"] == 80 * GIB
        assert record["host_bytes_per_device"] == 2 * GIB
        assert run.memory_line(held) == (
            f"GiB per device: parameters 40.00 + activations {planned - 40}.00 = {planned}.00, 2.0 on the host for "
            f"each: {verdict} (with 1.5 for collectives and kernels of 92% of 80.0)"
        )
    assert memory.BESIDE == 1.5 * GIB and memory.USABLE == 0.92


def test_a_step_and_a_run_of_the_toy(unbuilt):
    """Six operations a matrix parameter and token, attention halved; 8 devices of 1 TFLOP/s; 5 epochs of 63 steps."""
    config = dataclasses.replace(CONFIG, examples=1000, mfu=0.25, topology="cpu:8")
    plan, where = make_plan(config)
    step = 6 * MATRICES * 4 * 128 + 6 * 2 * 2 * 2 * 16 * 4 * 128**2
    assert plan.update.flops == step and plan.floor_seconds == step / 8e12
    assert (plan.update.rows, plan.length, plan.update.micro_batches) == (4, 128, 1)
    assert plan.memory.total == 40_000_000 and plan.memory.host == 3_000_000
    assert plan.memory.limit == where.memory
    record = run.describe(plan, where, config)
    assert record["run"]["steps"] == 5 * 63 and record["run"]["flops"] == 315 * step
    assert record["run"]["minutes"] == pytest.approx(315 * step / 8e12 / 0.25 / 60)
    assert record["rows"] == [4, 128] and record["mesh"] == {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    assert (record["fill"], record["tokens_per_step"], record["lengths"]) == (1.0, 512, [128])
    shown = run.lines(plan, where, record)
    assert f"the run of 315 steps, {315 * step:.3g} FLOPs: {record['run']['minutes']:.1f} min at 25% MFU" in shown
    assert "step: 4 rows of 128 tokens in 1 micro-batches, 100.0% full; remat" in shown
    assert "moments float32 and float32" in shown


def test_a_search_plans_each_way_as_it_would_be_run(unbuilt, monkeypatch):
    """Of the toy nothing fits but the moved moments; what is planned is the candidate, all of it."""
    asked = []

    plan_train = run.plan_train

    def noted(config, *arguments, **options):
        asked.append((config.mesh, config.remat, config.offload_optimizer, options.get("longest_only", False)))
        return plan_train(config, *arguments, **options)

    answer_all(monkeypatch, memory.Compiled(10**18, 0))
    monkeypatch.setattr(run, "plan_train", noted)
    monkeypatch.setattr(run.search, "COMPILED", 3)
    ways = [
        run.search.MeshCandidate(MeshConfig(fsdp=4, context=2), "none", True, 1.0),
        run.search.MeshCandidate(MeshConfig(fsdp=8), "full", False, 2.0),
        run.search.MeshCandidate(MeshConfig(data=2, fsdp=4), "dots", True, 3.0),
    ]
    monkeypatch.setattr(run.search, "candidates", lambda *_, **__: ways)
    make_plan(dataclasses.replace(CONFIG, mesh="search", rows=(8, 128)))
    tried = [(way.mesh, way.remat, way.offload_optimizer, True) for way in ways]
    assert asked == [*tried, (*tried[0][:3], False)], "the longest rows of each, then all of what was chosen"


def test_rows_of_a_step_as_given(unbuilt):
    plan, _ = make_plan(dataclasses.replace(CONFIG, rows=(12, 130)))
    assert (plan.update.rows, plan.length, plan.update.micro_batches) == (12, 130, 3)
    assert plan.memory.parts["gradients"] == plan.memory.parts["parameters"]
    assert plan.memory.parts["batch"] == 5 * 4 * 12 * 130 // 8
    with pytest.raises(BadInput, match="give a multiple of 4 rows"):
        make_plan(dataclasses.replace(CONFIG, rows=(0, 128)))
    plan, _ = make_plan(dataclasses.replace(CONFIG, rows=(4, 32768)))
    assert plan.length == 32768, "the model's last position"


def test_the_parts_sum_to_what_the_compiler_says(unbuilt, monkeypatch):
    plan, _ = make_plan(CONFIG)
    known = {name: size for name, size in plan.memory.parts.items() if name != "activations"}
    assert plan.memory.parts["activations"] == 40_000_000 - sum(known.values()) > 0
    small = sum(known.values()) - 1000
    answer_all(monkeypatch, memory.Compiled(small, 0))
    parts = make_plan(CONFIG)[0].memory.parts
    assert (
        parts["activations"] == 0 and parts["gradients"] == known["gradients"] - 1000 and sum(parts.values()) == small
    )
    moved, _ = make_plan(dataclasses.replace(CONFIG, offload_optimizer=True))
    assert moved.memory.host == pytest.approx(known["optimizer"], abs=16), "the moments lie on the host"
    assert moved.memory.parts["optimizer"] <= 16


def test_what_the_forward_pass_leaves():
    """Bytes in bfloat16 of 100 ids: inputs of D, q k v of H (2 G + ...), what enters the last product, and so on."""
    D, heads, qkv, F = 64, 4 * 16, 2 * 16 * 4, 128
    of_layer = {"none": 3 * D + qkv + heads + 3 * F, "dots": 3 * D + qkv + 2 * F, "attention": D + heads, "full": D}
    for remat, each in {**of_layer, "offload": 0}.items():
        assert result.kept_bytes(TOY, 100, remat) == 2 * 2 * each * 100


def test_what_a_device_holds_at_least():
    config = dataclasses.replace(CONFIG, remat="full", micro_batch=3)
    mesh, kept = MeshConfig(data=2, fsdp=2, context=4, tensor=1), 2 * 2 * 64 * (3 * 1024 // 4)
    assert result.least_bytes(config, TOY, 80_000, mesh, 1024) == 16 * 80_000 // 8 + kept
    narrow = dataclasses.replace(config, optimizer=OptimizerConfig(mu="bfloat16"))
    assert result.least_bytes(narrow, TOY, 80_000, mesh, 1024) == 14 * 80_000 // 8 + kept
    moved = dataclasses.replace(config, offload_optimizer=True)
    assert result.least_bytes(moved, TOY, 80_000, mesh, 1024) == 8 * 80_000 // 8 + kept
    adapters = dataclasses.replace(config, lora=LoraConfig(), dtype="bfloat16")
    assert result.least_bytes(adapters, TOY, 80_000, mesh, 1024) == 2 * 80_000 // 8 + kept
    tensor = MeshConfig(data=1, fsdp=2, context=4, tensor=2)
    assert result.least_bytes(config, TOY, 80_000, tensor, 1024) == 16 * 80_000 // 16 + kept


def test_advice_is_arithmetic(unbuilt):
    base, where = make_plan(dataclasses.replace(CONFIG, remat="full"))
    parts = {"parameters": 1000, "optimizer": 2000, "gradients": 900, "activations": 50_000, "batch": 10}
    plan = dataclasses.replace(base, memory=memory.Memory(parts, 0, 1))
    kept = 2 * 2 * 64 * 128 // 2  # of 64 ids, layers and bfloat16
    assert advice.options(plan, where) == {
        "optimizer.mu=bfloat16": 500,
        "optimizer.nu=bfloat16": 500,
        "remat=offload": kept,
        "offload_optimizer=true": 2000,
        "twice the devices (16)": (1000 + 2000 + 900) // 2,
    }
    heads = dataclasses.replace(
        plan, model=dataclasses.replace(TOY, K=4), config=dataclasses.replace(plan.config, remat="none")
    )
    found = advice.options(heads, where)
    assert found["mesh.fsdp=2 mesh.context=4"] == kept // 2 and found["remat=full"] == 50_000 - 2 * kept
    small = dataclasses.replace(heads, memory=memory.Memory({**parts, "activations": 2 * kept}, 0, 1))
    assert "remat=full" not in advice.options(small, where), "what saves nothing is not named"
    moved = dataclasses.replace(plan, config=dataclasses.replace(plan.config, offload_optimizer=True))
    assert set(advice.options(moved, where)) == {"remat=offload", "twice the devices (16)"}
    over = dataclasses.replace(
        plan, memory=memory.Memory(parts, 0, int((53_910 + memory.BESIDE - 1500) / memory.USABLE))
    )
    said = advice.line(over, where)
    assert said.startswith("over by 0.00 GiB. To make it fit: optimizer.mu=bfloat16 saves about 0.0; ")
    assert "offload_optimizer=true saves about 0.0 (enough)" in said and said.endswith("; or let mesh=search look")


@pytest.mark.parametrize("change", [{"mfu": 0.0}, {"mfu": 1.01}, {"examples": 0}, {"mean_tokens": 0}])
def test_limits_of_what_is_asked(change, unbuilt):
    with pytest.raises(BadInput, match="give mfu above 0 and up to 1"):
        make_plan(dataclasses.replace(CONFIG, **change))
    make_plan(dataclasses.replace(CONFIG, mfu=1.0, examples=1, mean_tokens=1))


def test_versions_are_of_the_compilers():
    import importlib.metadata

    versions = run._versions()
    assert versions["jax"] == jax.__version__ and versions["jaxlib"] == importlib.metadata.version("jaxlib")
    assert set(versions) <= {"jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt"}
