"""Answer extraction and equivalence over plain strings. Knows no model, no benchmark, no network; raises on no text.

The caller hands over the answer segment only (what follows the end of thinking). The answer is the last balanced
`\\boxed{}`, else the last "Answer:" line, else a segment that is nothing but the answer; otherwise there is none.
What cannot be settled by strings and rational numbers goes to math-verify, in the worker processes of `grade_pool.py`.
"""

import dataclasses
import re
from collections.abc import Callable

from s1jax.grading.equality import WORDS, integer, normalise, rational, same

Equal = Callable[[str, str], bool]

LONGEST = 1000  # characters; a longer "answer" is prose, and equal to no gold
_BRACE = re.compile(r"\\+boxed\s*\{|\\\\|\\[{}]|[{}]")
_ANSWER_LINE = re.compile(r"(?i)(?:\bthe[ \t]+)?(?:\bfinal[ \t]+)?\banswer\b[*_ \t]*:[*_ \t]*")
_PREFACE = re.compile(r"(?i)^(?:the\s+)?(?:(?:final|correct)\s+)?answer\s+is\s*:?\s*")
_HOPE = re.compile(r"(?i)\bI hope it is correct\b.*$")
_AND = re.compile(r"[\s$]*(?:,|\\text\s*\{\s*and\s*\}|\band\b|\\q?quad\b|\\[ ,;]|[\s$])+")
_SPECIAL = re.compile(r"<\|[a-z_]+\|>")
_ANSWER_IS = re.compile(
    r"(?i)\b(?:answer|(?:correct|right) (?:option|choice))\s+is\b\s*:?\s*|\b(?:corresponds to|is) (?:option|choice)\s+"
)
_NUMBER = r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:/\d+)?"
_ALONE = re.compile(rf"\$?\$?\\?\$?{_NUMBER}%?\$?\$?\.?")
_ANOTHER = re.compile(r"(?:,|and\b|or\b|&|/)\s*(?:and\s|or\s)?\s*\(?[A-J]\)?(?![\w-])")
_LETTER = re.compile(r"\(?\[?\{?([A-Za-z])(?:[)\]}.,:;]+|(?=\s)|(?=\*)|(?=\$)|$)")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found in an answer segment and whether it equals the gold. `extracted` None means `no_answer`."""

    extracted: str | None
    correct: bool

    @property
    def no_answer(self) -> bool:
        """No answer stood in the segment; counted as wrong and reported beside the accuracy."""
        return self.extracted is None


def boxed(text: str) -> str | None:
    """Content of the last balanced, non-empty `\\boxed{...}` (the innermost of nested ones), or None.

    An escaped brace (`\\{`) is text, not structure; a box that a cut left open is passed over.
    """
    boxes = _boxes(text)
    return boxes[-1][1] if boxes else None


def boxed_list(text: str) -> str | None:
    """As `boxed`, but boxes joined by nothing but commas, spaces or "and" up to the last one are one answer: `1, 2`."""
    boxes = _boxes(text)
    first = len(boxes) - 1
    while first > 0 and _AND.fullmatch(text[boxes[first - 1][2] : boxes[first][0]][:40]):
        first -= 1
    return ", ".join(content for _, content, _ in boxes[first:]) or None if boxes else None


def _boxes(text: str) -> list[tuple[int, str, int]]:
    """(start, content, end) of every balanced, non-empty box, by start; one pass over the text."""
    stack: list[tuple[bool, re.Match[str]]] = []
    boxes = []
    for token in _BRACE.finditer(text):
        if token[0].endswith("{") and not token[0].startswith("\\{"):
            stack.append((len(token[0]) > 1, token))
        elif token[0] == "}" and stack:
            is_box, opened = stack.pop()
            content = text[opened.end() : token.start()].strip()
            if is_box and content:
                boxes.append((opened.start(), content, token.end()))
    return sorted(boxes)


def answer_line(text: str) -> str | None:
    """What follows the last "Answer:" on its line (or on the next line that holds something), or None.

    Upstream takes everything from the first "Answer:" to the end (simplescaling/s1@77272c6 tasks/aime/utils.py:260).
    """
    end = len(text)
    for match in reversed(list(_ANSWER_LINE.finditer(text))):
        lines = [line.strip() for line in text[match.end() : end].split("\n")]
        line = next((line for line in lines if line), "")[:LONGEST]
        line = _HOPE.sub("", _PREFACE.sub("", line.strip("*_` \t"))).strip("*_` \t.")
        if line:
            return line
        end = match.start()
    return None


def _segment(text: str) -> str:
    return _SPECIAL.sub("\n", text)


def extract_math(text: str) -> str | None:
    """Boxes, else "Answer:" line, else a segment that is nothing but one number or one `$...$`."""
    text = _segment(text)
    found = boxed_list(text) or answer_line(text)
    if found is None:
        alone = text.strip()
        inner = re.fullmatch(r"\$([^$\n]+)\$\.?|\\\((.+?)\\\)\.?", alone)
        if inner:
            found = inner[1] or inner[2]
        elif _ALONE.fullmatch(alone):
            found = alone
    return found


def extract_number(text: str) -> str | None:
    """As `extract_math`; a line `#### 18` (the form of GSM8K's own solutions) stands before the "Answer:" line."""
    marked = re.findall(r"####\s*(\S.*)", _segment(text))
    return boxed(text) or (marked[-1].strip() if marked else extract_math(text))


def extract_exact(text: str) -> str | None:
    """Box, else "Answer:" line, else the segment itself where it is a single word."""
    text = _segment(text)
    alone = text.strip()
    return boxed(text) or answer_line(text) or (alone if alone and len(alone.split()) == 1 else None)


def extract_letter(text: str, letters: str = "ABCD") -> str | None:
    """One letter of `letters`, anchored: alone or first in the box, the "Answer:" line, an "answer is", the segment.

    `A proton` and `Boron` are no letters; a lower-case letter counts only where nothing else stands beside it.
    """
    text = _segment(text)
    ends = [match.end() for match in _ANSWER_IS.finditer(text)]
    places = [boxed(text), answer_line(text), *(text[end : end + 80].split("\n")[0] for end in reversed(ends))]
    if "\n" not in text.strip():
        places.append(text)
    return next((letter for place in places if place and (letter := _letter(place, letters))), None)


def _letter(text: str, letters: str) -> str | None:
    text = WORDS.sub(r"\1", text[:LONGEST]).strip(" \t\n$*_`")
    text = re.sub(r"(?i)^(?:option|choice)\s+", "", text)
    match = _LETTER.match(text)
    if match is None:
        return None
    letter, rest = match[1], text[match.end() :].strip(" \t$*_`")
    if letter.islower():
        letter = letter.upper() if not rest else ""
    elif letter == "A" and match[0] == "A" and re.match(r"(?!is\b|because\b|since\b|as\b)[a-z]", rest):
        letter = ""  # the article: "A proton is lost"
    elif _ANOTHER.match(match[0][-1:] + rest if match[0][-1:] == "," else rest):
        letter = ""  # "B and C", "B, C"
    return letter if letter and letter in letters else None


def _strings_only(gold: str, answer: str) -> bool:
    return False


def _math(text: str, gold: str, equal: Equal) -> Verdict:
    found = extract_math(text)
    if found is None or len(found) > LONGEST:
        return Verdict(found, False)
    verdict = same(gold, found)
    return Verdict(found, equal(gold, found) if verdict is None else verdict)


def _integer(text: str, gold: str, equal: Equal) -> Verdict:
    found = boxed(text) or extract_math(text)
    value = None if found is None or len(found) > LONGEST else integer(found)
    return Verdict(found, value is not None and value == integer(gold))


def _aime(text: str, gold: str, equal: Equal) -> Verdict:
    verdict = _integer(text, gold, equal)
    value = integer(verdict.extracted) if verdict.correct and verdict.extracted is not None else None
    return dataclasses.replace(verdict, correct=verdict.correct and value is not None and 0 <= value <= 999)


def _number(text: str, gold: str, equal: Equal) -> Verdict:
    found = extract_number(text)
    value = None if found is None or len(found) > LONGEST else rational(found)
    return Verdict(found, value is not None and value == rational(gold))


def _letters(text: str, gold: str, equal: Equal) -> Verdict:
    found = extract_letter(text, "ABCD" if gold in "ABCD" else "ABCDEFGHIJ")
    return Verdict(found, found == gold)


def _exact(text: str, gold: str, equal: Equal) -> Verdict:
    found = extract_exact(text)
    return Verdict(found, found is not None and _squeezed(found) == _squeezed(gold))


def _squeezed(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


KINDS: dict[str, Callable[[str, str, Equal], Verdict]] = {
    "math": _math,
    "aime": _aime,
    "integer": _integer,
    "number": _number,
    "letter": _letters,
    "exact": _exact,
}


def grade(text: str, gold: str, kind: str, equal: Equal = _strings_only) -> Verdict:
    """Grade one answer segment.

    Args:
      text: the answer segment (whatever follows the end of thinking; "" if thinking never ended).
      gold: the reference answer.
      kind: a key of `KINDS`: `math` (any expression), `aime` (integer 0 to 999), `integer`, `number` (exact rational),
        `letter` (multiple choice), `exact` (same words).
      equal: decides what strings and rationals leave open (kind `math` only); by default nothing more is equal.

    Returns: what was extracted and whether it is right. Never raises for any text.
    """
    verdict = KINDS[kind](text, gold, equal)
    if verdict.extracted is not None and len(verdict.extracted) > LONGEST:
        return Verdict(verdict.extracted[:LONGEST], False)
    return verdict


def vote_key(extracted: str, kind: str) -> str:
    """The spelling under which an answer votes: answers that strings and rationals know to be equal share it."""
    if kind in ("letter", "exact"):
        return _squeezed(extracted)
    extracted = extracted[:LONGEST]
    value = integer(extracted) if kind in ("aime", "integer") else rational(extracted)
    return normalise(extracted) if value is None else str(value)
