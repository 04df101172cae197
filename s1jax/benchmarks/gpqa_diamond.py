"""GPQA Diamond: 198 questions with four choices. Its authors ask that no text of it is put into the open.

So nothing of it is in this repository, and questions, choices and model texts stay out of every file that is written;
the choices' order is a hash of the question (upstream's comes from a global generator and changes with the run).
"""

from collections.abc import Mapping
from typing import Any

from s1jax.benchmarks.benchmark import Benchmark, first_field, lettered, shuffled
from s1jax.records import Question, question_id

FIELDS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read(row: Mapping[str, Any]) -> Question:
    """A row of `gpqa_diamond.csv` or of the hub's (gated) set. The id is the hash of the question."""
    text = str(first_field(row, "Question")).strip()
    choices, letter = shuffled(text, [str(first_field(row, field)).strip() for field in FIELDS], correct=0)
    return Question(
        question_id(text), text, letter, choices, source="gpqa_diamond", domain=row.get("High-level domain")
    )


BENCHMARK = Benchmark(
    "gpqa_diamond",
    "letter",
    198,
    ("Idavidrein/gpqa", "gpqa_diamond", "train"),
    "gpqa_diamond.csv",
    read,
    lettered,
    private=True,
)
