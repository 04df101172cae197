"""Answers in the dresses that models give them: what the grading tests and `tools/check_answers.py` read."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator

from s1jax.benchmarks import BENCHMARKS
from s1jax.grading.equality import normalise, number
from s1jax.grading.pool import Grader

# An answer stands where `@` is. Each text holds other numbers than the answer, which must not be taken for it.
DRESSES = {
    "boxed": "Adding 17 and 4 we get $\\boxed{@}$.",
    "fbox": "The 3 cases give\n\n\\[ \\fbox{@} \\]",
    "box without braces": "All 12 of them: $\\boxed @$.",
    "answer line": "We have 5 of them.\n\nAnswer: @\n\nThis holds since 2 + 2 = 4.",
    "bold heading, next line": "So 8 remain.\n\n**Final Answer**\n\n@",
    "heading, display below": "### Step 2\nNow 6 is left.\n\n### Final Answer\n\n\\[\n@\n\\]",
    "bold answer line": "Of 100, 3 are left.\n**Answer: @**",
    "sentence in the line": "Final Answer: The largest value of $n$ is @.",
    "display in the line": "With 2 more:\nAnswer $$ @ $$",
    "quoted": 'We try 11 first.\n\nANSWER: "@"',
    "the answer is": "Since 7 is prime, the answer is @.",
    "the final answer is": "After 9 steps: therefore, the final answer is \\( @ \\). I hope it is correct.",
    "hashes": "He has 5 + 6 = 11 left.\n#### @",
    "alone": "@",
    "corrected": "Final Answer: 123456\n\nWait, no: that counts 3 of them twice. The answer is @.",
}
BARS = {"math500": 500, "aime24": 30, "aime25": 30, "gsm8k": 1319}


@dataclasses.dataclass(frozen=True)
class Gold:
    """A reference answer, its benchmark and kind, and three answers that are wrong for it."""

    benchmark: str
    kind: str
    answer: str
    wrong: tuple[str, ...]


def golds(folder: pathlib.Path, every: int = 1) -> list[Gold]:
    """The reference answers of all benchmarks (every so-many-th of them), with wrong ones beside them.

    Two wrong answers are those of other questions of the benchmark, one changes a digit (or is a third other one).
    """
    found = []
    for name in BARS:
        bench = BENCHMARKS[name]
        answers = [str(question.answer) for question in bench.load(str(folder / "benchmarks"))]
        for i in range(0, len(answers), every):
            others = dict.fromkeys(answers[i + 1 :] + answers[:i])
            distinct = list(itertools.islice((other for other in others if _differ(answers[i], other)), 3))
            found.append(Gold(name, bench.kind, answers[i], (*distinct[:2], _changed(answers[i]) or distinct[2])))
    return found


def _differ(gold: str, other: str) -> bool:
    """Written otherwise, of another value where both are numbers, and not the same letters or words in other dress."""
    if normalise(gold) == normalise(other):
        return False
    ours, theirs = number(gold), number(other)
    return ours is None or theirs is None or ours != theirs


def _changed(gold: str) -> str | None:
    """With another first digit, where that is the digit of a plain number; else None."""
    match = re.match(r"-?(?:\\\$)?([1-8])", gold)
    return None if match is None else gold[: match.start(1)] + str(int(match[1]) + 1) + gold[match.end(1) :]


def failures(grader: Grader, cases: list[Gold]) -> Iterator[tuple[str, str, list[Gold], list[tuple[Gold, str]]]]:
    """For each dress and benchmark: its name, the benchmark, right answers not credited, wrong answers credited."""
    for dress, text in DRESSES.items():
        items = [(text.replace("@", gold.answer), gold.answer, gold.kind) for gold in cases]
        wrong = [(gold, other) for gold in cases for other in gold.wrong]
        items += [(text.replace("@", other), gold.answer, gold.kind) for gold, other in wrong]
        verdicts = [verdict.correct for verdict in grader.map(items)]
        refused = [gold for gold, correct in zip(cases, verdicts, strict=False) if not correct]
        credited = [pair for pair, correct in zip(wrong, verdicts[len(cases) :], strict=True) if correct]
        for name in BARS:
            yield (
                dress,
                name,
                [g for g in refused if g.benchmark == name],
                [p for p in credited if p[0].benchmark == name],
            )
