"""Made-up candidates for the tests of curation."""

import random

from curation.stage import Candidate
from s1jax.records import Question, question_id

AIME, GPQA, MATH = "qq8933/AIME_1983_2024", "Idavidrein/gpqa", "simplescaling/openaimath/Algebra"


def quiet(line: str) -> None:
    assert line


def candidate(text: str, *, id=None, domain="d", source="s", gold=None, solution=None, **fields) -> Candidate:
    question = Question(id or question_id(text), text, gold, None, solution, source, domain)
    return Candidate(question, **fields)


def candidates(n: int, seed: int = 0) -> list[Candidate]:
    rng = random.Random(seed)
    return [
        candidate(
            f"question {i} {rng.random()}",
            domain=rng.choice("abcde"),
            source=rng.choice([AIME, GPQA, MATH, "other"]),
            thinking="t " * rng.randrange(1, 30),
            answer="Answer: 1",
            thinking_length=rng.choice([5, 6000, rng.randrange(9000)]),
            correct=rng.random() < 0.4,
        )
        for i in range(n)
    ]
