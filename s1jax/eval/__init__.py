"""Benchmarks, statistics, the three figures of test-time scaling, and their report."""

from s1jax.eval import aime24, aime25, gpqa_diamond, gsm8k, math500
from s1jax.eval.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "aime24": aime24.BENCHMARK,
    "aime25": aime25.BENCHMARK,
    "math500": math500.BENCHMARK,
    "gpqa_diamond": gpqa_diamond.BENCHMARK,
    "gsm8k": gsm8k.BENCHMARK,
}
