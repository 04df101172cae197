"""Which answer a segment gives, and which rule found it: a cascade from explicit forms to running text.

    boxed       the last `\\boxed{}`, `\\fbox{}`, `\\boxed 25`; boxes joined by "and", "or" are one answer
    hash        a last line `#### 18` (the form of GSM8K's own solutions)
    line        the last answer line: `**Final Answer**`, "Answer: (C)", a formula below it, `<answer>`
    sentence *  an answer line that holds a sentence: "Final Answer: The largest $n$ is 34."
    statement * "the answer is 34", "34 is the answer", "the correct option is C"
    correction* "wait, no: 35" right behind an answer, at the end of the segment
    alone       a segment that is nothing but the answer

Rules with a star read running text; reports show their share. An answer behind one that words like "wait, no" take back
replaces it. Where no rule finds an answer there is none: numbers elsewhere in the text are never answers.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

from s1jax.grading import letters, lines, values
from s1jax.grading.boxes import boxed_list
from s1jax.grading.lines import Place
from s1jax.grading.spelling import plain, unmarked

RULES = ("boxed", "hash", "line", "sentence", "statement", "correction", "alone")
FALLBACKS = frozenset({"sentence", "statement", "correction"})
_HASH = re.compile(r"(?m)^[ \t]*####[ \t]*(\S.*)$")
_HOPE = re.compile(r"(?i)\bI hope (?:it|this) is correct\b.*$")
_BEFORE = re.compile(
    r"(?:^|[\s,:*_(\"])(\$(?:\\\$|[^$\n])+\$|\\\([^\n]+?\\\)|-?\$?\d[\d,]*(?:\.\d+|/\d+)?%?|-?\\[dt]?frac\{[^{}]*\}\{[^{}]*\}|[A-Z]|[(\[][A-J][)\]])"
    r"[*_\"')]*[ ,]*$"
)
_NO_WORDS = re.compile(
    r"(?i)^(?:correct|right|wrong|incorrect|reasonable|clear|unique|simple|simply|as|the|not|yes|unknown|unclear|follows|found|given"
    r"|obvious|below|above|here|this|that|it|what|now|indeed|valid|true|likely|possible|in|an|a|to|we|of|well|one|also|ready)$"
)


@dataclasses.dataclass(frozen=True)
class Found:
    """An answer as it stands in the segment, and the rule of `RULES` that found it."""

    answer: str
    rule: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the answers of a kind are read.

    Attributes:
      box: the content of a box -> the answer, or None.
      line: what follows "Answer:" -> (answer, rule), or None.
      statement: what follows "the answer is" -> the answer, or None.
      before: the text before "is the answer" -> the answer, or None.
      alone: a whole segment -> the answer, or None.
      listed: the lines below "The correct options are:" -> the answer; None: not of this kind.
    """

    box: Callable[[str], str | None]
    line: Callable[[str], tuple[str, str] | None]
    statement: Callable[[str], str | None]
    before: Callable[[str], str | None]
    alone: Callable[[str], str | None]
    listed: Callable[[str], str | None] | None = None


def find(text: str, kind: str, *, allowed: str = "ABCD") -> Found | None:
    """The answer of a segment, or None (`no_answer`).

    Args:
      text: the answer segment.
      kind: a key of `s1jax.grading.grade.KINDS`.
      allowed: the letters that are choices (kinds `letter` and `letters`).
    """
    text = plain(text)
    reader = _choices(allowed, several=kind == "letters") if kind in ("letter", "letters") else READERS[kind]
    box = _box(text, reader)
    told = _told(text, reader)
    if box and told and told[1].start >= box[1] and lines.is_correction(text[box[1] : told[1].end]):
        box = None
    if box:
        found, end = box
    elif reader.listed is None and (marked := _hash(text)):
        found, end = marked, len(text)
    elif told:
        found, end = told[0], told[1].end
    else:
        alone = None if lines.withdrawal(text.strip()) else reader.alone(text.strip())
        return Found(alone, "alone") if alone else None
    return _corrected(text, found, end, reader)


def _box(text: str, reader: Reader) -> tuple[Found, int] | None:
    box = boxed_list(text)
    answer = reader.box(box[0]) if box else None
    return (Found(answer, "boxed"), box[1]) if box and answer else None


def _told(text: str, reader: Reader) -> tuple[Found, Place] | None:
    """The last answer line; a statement where there is none, or where it takes the line's answer back."""
    places = lines.places(text, of_letters=reader.listed is not None)
    line = _last(text, (place for place in reversed(places) if place.rule != "statement"), reader)
    after = line[1].end if line else 0
    statement = _last(text, (p for p in reversed(places) if p.rule == "statement" and p.start >= after), reader)
    if line and statement and not lines.is_correction(text[after : statement[1].start]):
        return line
    return statement or line


def _last(text: str, places: Iterable[Place], reader: Reader) -> tuple[Found, Place] | None:
    for place in places:
        if found := _read(text, place, reader):
            return found, place
    return None


def _read(text: str, place: Place, reader: Reader) -> Found | None:
    if place.value_before:
        answer = reader.before(text[max(0, place.start - 200) : place.start].rpartition("\n")[2])
        return Found(answer, "statement") if answer else None
    content = _HOPE.sub("", lines.announced(text, place))
    if not content.strip():
        return None
    if reader.listed and letters.n_listed(rest := text[place.end : place.end + 2000].lstrip(" :*_\n")) > 1:
        answer = reader.listed(rest)
        return Found(answer, place.rule) if answer else None
    if place.rule == "statement":
        answer = reader.statement(content)
        return Found(answer, "statement") if answer else None
    if place.rule == "bare":
        answer = reader.alone(content)
        return Found(answer, "line") if answer else None
    found = reader.line(content)
    return Found(*found) if found else None


def _hash(text: str) -> Found | None:
    marks = list(_HASH.finditer(text))
    if not marks:
        return None
    content = unmarked(marks[-1][1])
    if lines.withdrawal(content) is not None:
        return None
    is_last = not text[marks[-1].end() :].strip()
    answer = values.is_whole(content) or (
        values.stated(content) if is_last and not re.search(r"\.\s", content) else None
    )
    return Found(answer, "hash") if answer and not re.fullmatch(r"[A-Za-z]+", answer) else None


def _corrected(text: str, found: Found, end: int, reader: Reader) -> Found | None:
    """What the end of the segment says of the answer: another one, none, or nothing."""
    tail = text[end:]
    line = "" if found.rule == "boxed" else found.answer
    tail = tail[tail.find(line) + len(line) :] if line and line in tail else tail
    is_withdrawn = lines.withdrawal(tail) is not None
    if not is_withdrawn and (len(tail) > 600 or not lines.is_correction(tail)):
        return found
    for start in lines.corrections(text, len(text) - len(tail)):
        rest = text[start:].strip()
        answer = None if "\n\n" in rest else reader.alone(rest)
        if answer and (reader.listed or not answer.isalpha()):
            return Found(answer, "correction")
    return None if is_withdrawn or lines.is_retracted(tail) else found


def _value_of_line(content: str) -> tuple[str, str] | None:
    if whole := values.is_whole(content):
        return whole, "line"
    content = unmarked(content)
    if value := values.stated(content):
        return value, "line"
    parts = [part for part in values.sentences(content) if part.strip()]
    first = parts[0].strip(" .*_\"'")
    if len(first.split()) <= 4 and re.fullmatch(r"[A-Za-z' -]+", first) and not _NO_WORDS.match(first):
        return first, "line"
    for part in dict.fromkeys((parts[0], parts[-1])):
        if value := values.stated_inside(part) or _last_word(part):
            return value, "sentence"
    return None


def _last_word(sentence: str) -> str | None:
    """`Evelyn` of "The fastest student is Evelyn."."""
    match = re.search(r"\b(?:is|was|are)\s+(?:\\text\{)?([A-Za-z]{2,20})\}?[.!*_\"]*\s*$", sentence)
    return match[1] if match and not _NO_WORDS.match(match[1]) else None


def _value_of_statement(content: str) -> str | None:
    content = unmarked(content)
    value = values.stated(content)
    if value:
        return value
    first = next(values.sentences(content), "")
    if first.rstrip().endswith("?"):
        return None
    word = re.fullmatch(r"[\s\"']*([A-Za-z]{2,20})[.!\"']*\s*", first)
    if word:
        return None if _NO_WORDS.match(word[1]) else word[1]
    verb = re.search(r"\b(?:which|namely|i\.e\.)\s+(?:is|equals|are)\s+", first)
    return values.stated(first[verb.end() :]) if verb else None


def _value_before(clause: str) -> str | None:
    match = _BEFORE.search(clause)
    return values.is_whole(match[1]) if match and not lines.is_correction(clause) else None


def _box_content(content: str) -> str | None:
    return content


def _line_text(content: str) -> tuple[str, str] | None:
    text = re.sub(r"(?i)^(?:the\s+)?(?:(?:final|correct)\s+)?answer\s+is\s*:?\s*", "", unmarked(content))
    text = _HOPE.sub("", text).strip("*_` \t.")
    return (text, "line") if text else None


def _statement_text(content: str) -> str | None:
    return next(values.sentences(unmarked(content)), "").strip("*_` \t.\"'") or None


def _word_alone(text: str) -> str | None:
    return text if text and len(text.split()) == 1 else None


def _choices(allowed: str, *, several: bool) -> Reader:
    def one(answer: str | None) -> str | None:
        return answer if answer and (several or len(answer) == 1) else None

    def read(content: str) -> str | None:
        return one(letters.read(content, allowed))

    def line(content: str) -> tuple[str, str] | None:
        answer = read(content)
        return (answer, "line") if answer else None

    def before(clause: str) -> str | None:
        match = _BEFORE.search(clause)
        return read(match[1]) if match and not lines.is_correction(clause) else None

    def alone(text: str) -> str | None:
        if "\n" not in text.strip():
            if answer := read(text):
                return answer
        return None

    return Reader(read, line, read, before, alone, lambda text: one(letters.listed(text, allowed)))


_VALUE = Reader(_box_content, _value_of_line, _value_of_statement, _value_before, lambda text: _whole(text))
_TEXT = Reader(_box_content, _line_text, _statement_text, lambda clause: None, _word_alone)
READERS = {"math": _VALUE, "aime": _VALUE, "integer": _VALUE, "number": _VALUE, "exact": _TEXT}


def _whole(text: str) -> str | None:
    return values.is_whole(text) if len(text) <= 500 else None
