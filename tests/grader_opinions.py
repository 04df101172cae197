"""Cases of other graders' own tests, and why this grader decides some of them otherwise.

A case is named by its file and its line, from 1; a reason stands for each one that is decided otherwise.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from s1jax.eval import stats
from s1jax.grading import equality, extract, letters
from s1jax.grading.pool import Grader

PROSE = "free prose: neither a box, an answer line nor a statement of the answer"
WORDS = "a statement in French or Chinese, or one that holds two numbers"
CASE = "a lower-case letter: alone it is a choice here, as upstream; as a formula it is another variable"
OPTION = "an option of theirs that equality here does not have (strictness, relations against intervals)"
TOLERANCE = "a tolerance or rounding of theirs; equality is exact here"
PERCENT = "a percentage is not its number of hundredths: 10 % is not 10"
COMMA = "a decimal comma: in formulas a comma separates a list (the kind `number` reads 1000,99)"
PARSER = "formulas that the parser of math-verify does not read alike (subscripts, `!=`, `;`, `\\odot`)"
ORDER = "the order of a list counts there"
WRONG = "they are wrong"
UNDECIDED = "undecided: the comparison does not end"
LAST_BOX = 'a box and a later "Final Answer:" disagree: the box stands first here'
TIE = "ties: there the first answer wins, here tied answers share the win"
METRIC = "g-pass@k is no metric of this project: nothing to compare"
REASONS: dict[str, dict[str, tuple[int, ...]]] = {
    "hendrycks_is_equiv": {ORDER: (2, 6), PERCENT: (7,)},
    "lighteval_extractive_match": {
        PROSE: (6, 91, 92, 93, 107, 121),
        WORDS: (8, 9, 10, 14, 17, 18, 19),
        COMMA: (29,),
        OPTION: (47,),
        PARSER: (82, 151),
        TOLERANCE: (101, 105),
        PERCENT: (117,),
        LAST_BOX: (130,),
    },
    "math_verify": {
        COMMA: (4,),
        OPTION: (23, 128, 170),
        PARSER: (63,),
        PROSE: (78, 79, 80, 94, 110),
        TOLERANCE: (88, 92),
        PERCENT: (104,),
        LAST_BOX: (119,),
        WRONG: (178,),
    },
    "nemo_math_equal": {PERCENT: (10, 11)},
    "olympiadbench_scoring": {PARSER: (4, 13), TOLERANCE: (17, 19, 21, 22), UNDECIDED: (23,)},
    "skythought_math_equal": {TOLERANCE: (5, 7, 8), CASE: (15,)},
    "skythought_extraction": {PROSE: (13, 19)},
    "lighteval_metric_cases": {CASE: (8, 19), TIE: (27,), METRIC: tuple(range(33, 53))},
}


@dataclasses.dataclass(frozen=True)
class Opinion:
    """One case: who says so, in which line, what it says, and what this grader says (None: nothing to compare)."""

    source: str
    line: int
    expected: Any
    ours: Any
    shown: str

    @property
    def is_alike(self) -> bool:
        return self.ours == self.expected

    @property
    def reason(self) -> str | None:
        """Why it is decided otherwise; None where nobody has said why."""
        found = [reason for reason, lines in REASONS.get(self.source, {}).items() if self.line in lines]
        return found[0] if found else None


def opinions(folder: pathlib.Path, grader: Grader) -> Iterator[Opinion]:
    """Every case of `data/graders`, decided."""
    for name in ("hendrycks_is_equiv", "lighteval_extractive_match", "math_verify", "nemo_math_equal",
                 "olympiadbench_scoring", "skythought_math_equal"):  # fmt: skip
        yield from _pairs(name, _rows(folder, name), grader)
    for line, case in enumerate(_rows(folder, "skythought_extraction"), 1):
        yield Opinion("skythought_extraction", line, True, _extraction(case), f"{case['function']}: {case['expected']}")
    for line, case in enumerate(_rows(folder, "lighteval_metric_cases"), 1):
        expected = list(case["expected_output"].values())[0]
        ours = _metric(case, grader)
        shown = f"{case['metric_class']}: {list(case['expected_output'])[0]}"
        alike = ours is not None and abs(float(ours) - float(expected)) < 1e-6
        yield Opinion("lighteval_metric_cases", line, True, alike, shown)


def _rows(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "graders" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def _pairs(name: str, cases: list[dict[str, Any]], grader: Grader) -> Iterator[Opinion]:
    pairs = [_read(case) for case in cases]
    are_letters = ["NativeLetters" in str(case["options"]) for case in cases]
    verdicts = grader.equivalent([pair for pair, is_letter in zip(pairs, are_letters, strict=True) if not is_letter])
    rest = iter(verdicts)
    for line, (case, pair, is_letter) in enumerate(zip(cases, pairs, are_letters, strict=True), 1):
        ours = pair[0] == pair[1] if is_letter else next(rest)
        yield Opinion(name, line, case["expected"], ours, f"{_short(pair[0])} / {_short(pair[1])}")


def _read(case: dict[str, Any]) -> tuple[str, str]:
    gold, text = str(case["gold"]), str(case["prediction"])
    if "NativeLetters" in str(case["options"]):
        named = letters.read(gold, letters.LETTERS) or gold
        found = extract.find(text, "letter", allowed=letters.LETTERS)
        return named, found.answer if found else ""
    return _answer(gold), _answer(text)


def _answer(text: str) -> str:
    found = extract.find(text, "math")
    return found.answer if found else text.strip()


def _short(text: str) -> str:
    """What was read, as far as it is an answer: prose is not repeated."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"({len(text)} characters)"


def _extraction(case: dict[str, Any]) -> bool:
    text, expected = case["input"], case["expected"]
    if case["function"] == "strip_answer_string":
        return bool(equality.same(expected, text))
    kind = "math" if case["function"] == "extract_answer" else "letter"
    found = extract.find(text, kind)
    return (found.answer if found else "") == expected or bool(found and equality.same(expected, found.answer))


def _metric(case: dict[str, Any], grader: Grader) -> float | None:
    """pass@k, maj@k, avg@k or exact match from our verdicts; None for a metric that is not ours."""
    texts, choices, index = case["model_response"]["text"], case["doc"]["choices"], case["doc"]["gold_index"]
    index = index[0] if isinstance(index, list) else index
    name = case["file"]
    gold = letters.LETTERS[index] if name.endswith("letters") else choices[index]
    if name.startswith("g_pass"):
        return None
    if name.startswith("gpqa") or name.endswith("letters"):
        marks = [grader.grade(text, gold, "letter").correct for text in texts]
    elif name.endswith("math"):
        marks = [bool(verdict) for verdict in grader.equivalent([(gold, text) for text in texts])]
    else:
        marks = [text == gold for text in texts]
    n, k = case["metric_params"].get("n", len(texts)), case["metric_params"].get("k", 1)
    if name.startswith("maj"):
        return stats.majority_at_k(texts[:k], [float(mark) for mark in marks[:k]], k)
    if name.startswith("avg"):
        return sum(marks[:k]) / k
    return stats.pass_at_k(n, sum(marks[:n]), k)
