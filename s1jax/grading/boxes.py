"""What stands in boxes: `\\boxed{25}`, `\\fbox{25}`, `\\boxed 25`. Plain strings; linear in the text's length."""

import re

from s1jax.grading.spelling import WORDS

_BRACE = re.compile(r"\\+(?:boxed|fbox|framebox)\s*\{|\\\\|\\[{}]|[{}]")
_UNBRACED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*(?=[^\s{$]|\\\$)")
_MATH_ENDS = re.compile(r"(?<!\\)\$|\\\)|\\\]|\n")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
# Between two boxes of one answer: punctuation, and words that end in a conjunction; no sentence ends there.
_TOGETHER = re.compile(
    r"(?:\\(?:text|mbox|mathrm)\s*\{|\\q?quad\b|\\[ ,;()\]\[]|[\s$,;&/{}()*]"
    r"|\b(?:and|or|also|both|either|plus|maybe|perhaps|possibly|alternatively|as\swell\sas)\b)*"
)
_WITH_WORDS = re.compile(r"[^.!?\n=\\\d]{0,40}\b(?:and|or)\b[\s$}]*", re.IGNORECASE)
_TURNED = re.compile(r"(?i)\b(?:not|no|but|wait|then|instead|first|from|is|was|wrong|so|thus|hence|gives|becomes)\b")


def boxes(text: str) -> list[tuple[int, str, int]]:
    """(start, content, end) of every balanced, non-empty box, by start; an escaped brace (`\\{`) is text."""
    stack: list[tuple[bool, re.Match[str]]] = []
    found = []
    for token in _BRACE.finditer(text):
        if token[0].endswith("{") and not token[0].startswith("\\{"):
            stack.append((len(token[0]) > 1, token))
        elif token[0] == "}" and stack:
            is_box, opened = stack.pop()
            content = text[opened.end() : token.start()].strip()
            if is_box and content:
                found.append((opened.start(), content, token.end()))
    for match in list(_UNBRACED.finditer(text))[-50:]:
        content = _unbraced(text[match.end() : match.end() + 1000])
        if content:
            found.append((match.start(), content, match.end() + len(content)))
    return sorted(found)


def _unbraced(rest: str) -> str:
    """Of `\\boxed 25$`, up to the end of the formula; of `\\boxed 25 apples`, up to the first space."""
    ends = _MATH_ENDS.search(rest)
    formula = rest[: ends.start()] if ends else rest
    is_formula = ends is not None and ends[0] != "\n" and not _PROSE.search(WORDS.sub(" ", formula))
    return (formula if is_formula else formula.split(maxsplit=1)[0] if formula.split() else "").strip().rstrip(".,;:")


def boxed(text: str) -> str | None:
    """Content of the last balanced, non-empty box (the innermost of nested ones), or None.

    A box that a cut left open is passed over.
    """
    found = boxes(text)
    return found[-1][1] if found else None


def boxed_list(text: str) -> tuple[str, int] | None:
    """The last box with those joined to it by commas, "and" or "or" (one answer: `1, 2`), and where it ends."""
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first > 0 and _are_joined(text[found[first - 1][2] : found[first][0]]):
        first -= 1
    contents = list(dict.fromkeys(content for _, content, _ in found[first:]))
    return ", ".join(contents), found[-1][2]


def _are_joined(between: str) -> bool:
    if len(between) > 80 or "\n\n" in between:
        return False
    words = re.sub(r"\\text\s*\{([^{}]*)\}|\\q?quad\b|\\[()\[\] ,;]", r" \1 ", between).replace("$", " ")
    if _TOGETHER.fullmatch(between):
        return True
    return bool(_WITH_WORDS.fullmatch(words)) and not _TURNED.search(words)
