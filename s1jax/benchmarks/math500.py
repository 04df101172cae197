"""MATH500: five hundred problems of MATH's test set (openai/prm800k), answers any expression."""

from collections.abc import Mapping
from typing import Any

from s1jax.benchmarks.benchmark import Benchmark, first_field, question_only, row_id
from s1jax.records import Question


def read(row: Mapping[str, Any]) -> Question:
    """`answer` is the boxed expression of `solution`, as the data set has it."""
    text = str(first_field(row, "problem", "question"))
    domain = row.get("subject")
    return Question(
        row_id(row, text),
        text,
        str(first_field(row, "answer")),
        solution=row.get("solution"),
        source="math500",
        domain=None if domain is None else str(domain),
    )


BENCHMARK = Benchmark(
    "math500", "math", 500, ("simplescaling/openaimath", None, "test"), "math500.jsonl", read, question_only
)
