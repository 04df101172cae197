"""Answers of segments against reference answers, over plain strings. Knows no model, no benchmark, no network.

The caller hands over the answer segment only (what follows the end of thinking); `extract` reads its answer.
What cannot be settled by strings and rational numbers goes to math-verify, in the worker processes of `pool`.
"""

import dataclasses
from collections.abc import Callable, Sequence

from s1jax.grading import letters
from s1jax.grading.boxes import boxed
from s1jax.grading.equality import integer, integer_of_sum, normalise, number, rational, same
from s1jax.grading.extract import FALLBACKS, RULES, find
from s1jax.grading.spelling import LONGEST

__all__ = ["FALLBACKS", "KINDS", "LONGEST", "RULES", "Equal", "Verdict", "boxed", "grade", "group", "vote_key"]

Equal = Callable[[str, str], bool | None]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found in an answer segment and whether it equals the gold.

    Attributes:
      extracted: the answer as it stands there; None means `no_answer`.
      correct: it equals the gold.
      rule: which of `RULES` found it; those of `FALLBACKS` read running text.
      undecided: no comparison came to an end (time or memory); counted as wrong and reported.
    """

    extracted: str | None
    correct: bool
    rule: str | None = None
    undecided: bool = False

    @property
    def no_answer(self) -> bool:
        """No answer stood in the segment; counted as wrong and reported beside the accuracy."""
        return self.extracted is None


def _math(gold: str, found: str, equal: Equal) -> bool | None:
    verdict = same(gold, found)
    return equal(gold, found) if verdict is None else verdict


def _integer(gold: str, found: str, equal: Equal) -> bool:
    return (value := integer(found)) is not None and value == integer(gold)


def _aime(gold: str, found: str, equal: Equal) -> bool:
    value = integer_of_sum(found)
    return value is not None and 0 <= value <= 999 and value == integer(gold)


def _number(gold: str, found: str, equal: Equal) -> bool:
    return (value := number(found)) is not None and value == number(gold)


def _letters(gold: str, found: str, equal: Equal) -> bool:
    return found == letters.of_gold(gold)


def _exact(gold: str, found: str, equal: Equal) -> bool:
    return _squeezed(found) == _squeezed(gold)


def _squeezed(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


KINDS: dict[str, Callable[[str, str, Equal], bool | None]] = {
    "math": _math,
    "aime": _aime,
    "integer": _integer,
    "number": _number,
    "letter": _letters,
    "letters": _letters,
    "exact": _exact,
}


def _strings_only(gold: str, answer: str) -> bool:
    return False


def grade(text: str, gold: str, kind: str, equal: Equal = _strings_only) -> Verdict:
    """Grade one answer segment.

    Args:
      text: the answer segment (whatever follows the end of thinking; "" if thinking never ended).
      gold: the reference answer.
      kind: a key of `KINDS`: `math` (any expression), `aime` (integer 0 to 999), `integer`, `number` (exact rational),
        `letter` (one choice), `letters` (a set of choices), `exact` (same words).
      equal: decides what strings and rationals leave open (kind `math` only), None where it cannot; by default nothing
        more is equal.

    Returns: what was extracted, by which rule, and whether it is right. Never raises for any text.
    """
    named = letters.of_gold(gold) if kind in ("letter", "letters") else ""
    found = find(text, kind, allowed="ABCD" if set(named) <= set("ABCD") else letters.LETTERS)
    if found is None:
        return Verdict(None, False)
    if len(found.answer) > LONGEST:
        return Verdict(found.answer[:LONGEST], False, found.rule)
    verdict = KINDS[kind](gold, found.answer, equal)
    return Verdict(found.answer, verdict is True, found.rule, undecided=verdict is None)


def vote_key(extracted: str, kind: str) -> str:
    """One spelling of an answer: answers that strings and rationals know to be equal share it."""
    if kind in ("letter", "letters", "exact"):
        return _squeezed(extracted)
    extracted = extracted[:LONGEST]
    value = {"aime": integer_of_sum, "integer": integer, "number": number}.get(kind, rational)(extracted)
    if value is not None:
        return str(value)
    return normalise(extracted) + "%" * ("%" in extracted)  # the percentage of a number is another number


def group(answers: Sequence[str | None], kind: str, equal: Equal = _strings_only) -> list[int | None]:
    """Groups of equal answers of one question, for votes: the number of the first answer of its group, for each.

    Equality is made transitive: an answer equal to members of two groups joins them. Both directions have to hold,
    since a gold is compared more leniently (with a unit or without) than one answer should be with another.

    Args:
      answers: by sample; None votes for nothing.
      kind: a key of `KINDS`.
      equal: as in `grade`; what it cannot decide stays apart.
    """
    firsts: dict[str, int] = {}
    keys = [None if answer is None else vote_key(answer, kind) for answer in answers]
    for number_, key in enumerate(keys):
        if key is not None:
            firsts.setdefault(key, number_)
    leaders = dict.fromkeys(firsts.values())
    parent = {number_: number_ for number_ in leaders}

    def leader(number_: int) -> int:
        return number_ if parent[number_] == number_ else leader(parent[number_])

    for later in leaders if kind == "math" else ():
        for earlier in leaders:
            if earlier < later and leader(earlier) != leader(later):
                one, other = (str(answers[i])[:LONGEST] for i in (earlier, later))
                if _math(one, other, equal) and _math(other, one, equal):
                    low, high = sorted((leader(earlier), leader(later)))
                    parent[high] = low
    return [None if key is None else leader(firsts[key]) for key in keys]
