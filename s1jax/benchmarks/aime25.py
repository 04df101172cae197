"""AIME 2025, both parts: thirty problems, integer answers 0 to 999."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from s1jax.benchmarks import aime24
from s1jax.benchmarks.benchmark import Benchmark, question_only
from s1jax.records import Question


def read(row: Mapping[str, Any]) -> Question:
    """The same fields as AIME 2024."""
    return dataclasses.replace(aime24.read(row), source="aime25")


BENCHMARK = Benchmark("aime25", "aime", 30, ("TIGER-Lab/AIME25", None, "train"), "aime25.jsonl", read, question_only)
