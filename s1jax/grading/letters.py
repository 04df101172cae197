"""Letters of choices: one (`letter`) or several (`letters`), as models name them. Plain strings.

A letter counts where it is marked as a choice: alone, in brackets, after "option", first in its place. `A proton` and
`Boron` name none, nor does a sentence that denies or leaves open what it names.
"""

import re

from s1jax.grading.spelling import LONGEST, WORDS, unmarked

LETTERS = "ABCDEFGHIJ"
_KIND = r"(?:option|choice|statement|answer|alternative|letter|item)s?"
_MARKED = r"[(\[{]\s*(?:\\?\s)*([A-J])\s*[)\]}]"
_AND = r"(?:\s|,|;|&|\+|/|\band\b|\\&)*"
_RUN = re.compile(rf"{_MARKED}(?:{_AND}(?:{_KIND}\s+)?{_MARKED})*|[(\[{{]\s*[A-J](?:\s*(?:,|and|&)\s*[A-J])+\s*[)\]}}]")
_BARE_RUN = re.compile(
    rf"(?:{_KIND}\s+)?\b([A-J])\b[).:]?(?:\s*(?:,\s*and\b|,|;|&|\+|/|\band\b|\s)\s*(?:{_KIND}\s+)?([A-J])\b(?![a-z'-]))*"
)
_CODE = re.compile(r"([A-J]{2,10})(?![A-Za-z])")
_PREFACE = re.compile(
    rf"(?i)^(?:[\s,:*_\"'>-]|\b(?:the|only|both|all|of|these|therefore|thus|so|hence|clearly|definitely|for sure|surely"
    rf"|indeed|probably|likely|most|simply|just|correct|true|right|best|final|is|are|be|would|should|{_KIND})\b)+(?![\w'-])"
)
_DENIES = re.compile(
    r"(?i)\b(?:not|cannot|incorrect|false|wrong|except|neither|nor|none|inconclusive|unless|whether|if|eliminated?|excluded?"
    r"|ruled? out|inconsistent)\b|n't\b"
)
_OR = re.compile(
    rf"(?i)^[\s,)\]}}.*]*(?:\bor\b|/)\s*(?:possibly |maybe |perhaps )?(?:{_KIND}\s+)?[(\[]?[A-J](?![\w'-])"
)
_ARTICLE = re.compile(r"^A\s+(?!is\b|because\b|since\b|as\b|and\b|or\b|are\b)[a-z]")
_FINE = re.compile(
    r"^\s*(?:$|[.,;:!)\]}(*\"$\u2014\u2013-]|\\|is\b|are\b|as\b|because\b|since\b|for\b|which\b|with\b|[A-Z])"
)
_QUOTED = re.compile(r"(?<![\w'])'\s*(\(?[A-J]\)?\.?)\s*'(?!\w)")
_LISTED = re.compile(rf"(?m)^\s*[-*\u2022]?\s*{_MARKED}")


def of_gold(gold: str) -> str:
    """The set that a reference answer names, as its letters in order: `BC` for `BC`, `C, B`, `(B) and (C)`."""
    return "".join(sorted(set(re.findall(r"(?<![a-z])[A-J](?![a-z])", gold.strip()))))


def read(place: str, allowed: str) -> str | None:
    """The choices that a place names, as their letters in order, or None.

    Args:
      place: what stands in a box, or follows "Answer:" or "the answer is".
      allowed: letters that are choices; another one is no answer.
    """
    text = re.sub(r"\\(?:left|right|quad|,|;|!)|\$|\\[()\[\]]", " ", WORDS.sub(r" \1 ", place[:LONGEST]))
    text = _QUOTED.sub(r"\1", unmarked(text))
    first = re.split(r"(?<=[a-z)\]}])\.\s+(?=[A-Z])", text, maxsplit=1)[0]
    found = _first(text) or _only_run(first)
    if not found or not set(found) <= set(allowed):
        return None
    return "".join(sorted(set(found)))


def _first(text: str) -> str | None:
    """Letters that a place begins with, after "the correct options are"."""
    body = text[match.end() :].lstrip() if (match := _PREFACE.match(text)) else text
    if re.fullmatch(r"[(\[{]?[a-j][)\]}.]?", body):
        return body.strip("()[]{}.").upper()
    code = _CODE.match(body)
    if code and list(code[1]) == sorted(set(code[1])) and _FINE.match(body[code.end() :]):
        return code[1]
    run = _RUN.match(body) or _BARE_RUN.match(body)
    if run is None:
        return None
    rest = body[run.end() :]
    letters = _letters_in(run[0])
    is_bare = not body.startswith(("(", "[", "{")) and not run[0].endswith((")", ":"))
    if is_bare and (_ARTICLE.match(body) or rest[:1] in tuple("'-_^=+<>") or not _FINE.match(rest)):
        return None
    clause = re.match(r"[^,.;:\n]*", rest)
    return None if _OR.match(rest) or (clause and _DENIES.search(clause[0])) else letters


def _only_run(sentence: str) -> str | None:
    """Letters of a sentence that names choices in one place only and denies nothing."""
    if _DENIES.search(sentence) or sentence.rstrip().endswith("?"):
        return None
    runs = [match for match in _RUN.finditer(sentence)]
    named = list(re.finditer(rf"(?i:\b{_KIND})\s+([A-J])(?![\w'-])", sentence)) if not runs else []
    found = runs or named
    if len(found) != 1 or _OR.match(sentence[found[0].end() :]):
        return None
    return _letters_in(found[0][0]) if runs else found[0][1]


def _letters_in(run: str) -> str:
    return "".join(re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", run))


def n_listed(text: str) -> int:
    """How many lines from the first on begin with a choice."""
    return len(_listed_lines(text))


def listed(text: str, allowed: str) -> str | None:
    """Letters of lines that each begin with a choice, as below "The correct options are:"; not of those denied."""
    letters = [letter for letter, line in _listed_lines(text) if not _DENIES.search(line)]
    return "".join(sorted(set(letters))) if letters and set(letters) <= set(allowed) else None


def _listed_lines(text: str) -> list[tuple[str, str]]:
    lines = []
    for line in text.strip().split("\n"):
        match = _LISTED.match(line)
        if line.strip() and match is None:
            break
        if match:
            lines.append((match[1], line))
    return lines
