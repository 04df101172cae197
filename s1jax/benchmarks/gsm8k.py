"""GSM8K test: 1,319 grade-school word problems, answers a number."""

from collections.abc import Mapping
from typing import Any

from s1jax.benchmarks.benchmark import Benchmark, first_field, question_only, row_id
from s1jax.records import Question


def read(row: Mapping[str, Any]) -> Question:
    """The gold follows `####` in the data set's own solution."""
    text, solution = str(first_field(row, "question")), str(first_field(row, "answer"))
    return Question(row_id(row, text), text, solution.rpartition("####")[2].strip(), None, solution, "gsm8k")


BENCHMARK = Benchmark(
    "gsm8k", "number", 1319, ("openai/gsm8k", "main", "test"), "gsm8k_test.jsonl", read, question_only
)
