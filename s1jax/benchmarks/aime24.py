"""AIME 2024: thirty problems, integer answers 0 to 999; results are reported on upstream's `nofigures` set."""

from collections.abc import Mapping
from typing import Any

from s1jax.benchmarks.benchmark import Benchmark, first_field, question_only, row_id
from s1jax.records import Question


def read(row: Mapping[str, Any]) -> Question:
    """Rows of the hub's AIME sets and of NeMo-Skills' files."""
    text = str(first_field(row, "problem", "question"))
    solution = row.get("solution", row.get("reference_solution"))
    answer = str(first_field(row, "answer", "expected_answer"))
    return Question(row_id(row, text), text, answer, None, None if solution is None else str(solution), "aime24")


BENCHMARK = Benchmark(
    "aime24", "aime", 30, ("simplescaling/aime24_nofigures", None, "train"), "aime24.jsonl", read, question_only
)
