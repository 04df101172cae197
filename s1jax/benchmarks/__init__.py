"""Benchmarks: readers of questions and their reference answers. One file and one line each."""

from s1jax.benchmarks import aime24, aime25, gpqa_diamond, gsm8k, math500
from s1jax.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "aime24": aime24.BENCHMARK,
    "aime25": aime25.BENCHMARK,
    "math500": math500.BENCHMARK,
    "gpqa_diamond": gpqa_diamond.BENCHMARK,
    "gsm8k": gsm8k.BENCHMARK,
}
