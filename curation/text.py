"""How questions are compared: normal forms and n-grams."""

import re
from collections.abc import Hashable

_WORD = re.compile(r"[^\W\d_]+|\d+")
_SIGN = re.compile(r"[^\W_]")


def normalise(text: str) -> str:
    """Lower case, whitespace runs as one space (s1@77272c6 data/decontaminate_util.py:6), nothing else."""
    return " ".join(text.lower().split())


def squeeze(text: str) -> str:
    """Only the letters and digits, in lower case: other spaces, `$` or braces make no difference."""
    return "".join(_SIGN.findall(text.lower()))


def word_ngrams(text: str, n: int) -> set[Hashable]:
    """n consecutive words, punctuation and LaTeX kept (data/decontaminate_util.py:14). Shorter texts have none."""
    return _ngrams(normalise(text).split(), n)


def symbol_ngrams(text: str, n: int) -> set[Hashable]:
    """n consecutive runs of letters or of digits: blind to spaces, punctuation and LaTeX signs."""
    return _ngrams(_WORD.findall(text.lower()), n)


def _ngrams(items: list[str], n: int) -> set[Hashable]:
    return {tuple(items[i : i + n]) for i in range(len(items) - n + 1)}
