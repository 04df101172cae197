"""What the tests of plans share: a toy on eight CPU devices, and a compiler that is only said to have answered."""

from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.plan import memory
from s1jax.plan.run import PlanRun
from s1jax.train.config import RandomModel

TOY = DecoderConfig("qwen2", D=64, K=2, G=2, H=16, F=128, V=512, L=2, qkv_bias=True)
# Multiplied with every token: q and o of 4 heads, k and v of 2, three matrices of F, the head.
MATRICES = 2 * (64 * 16 * 2 * (4 + 2) + 3 * 64 * 128) + 64 * 512
CONFIG = PlanRun(
    model=RandomModel(TOY), topology="cpu:8", rows=(4, 128), mesh=MeshConfig(fsdp=4, context=2), dtype="float32"
)


def answer_all(monkeypatch, compiled: memory.Compiled) -> None:
    """The compiler is said to answer this for every program."""
    monkeypatch.setattr(memory, "measure_all", lambda lowered, *_, **__: [compiled] * len(lowered))
