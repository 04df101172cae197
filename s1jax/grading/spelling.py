"""The text of a segment before it is read: one spelling of spaces, signs, quotes and emphasis. Plain strings."""

import re

LONGEST = 1000  # characters; a longer "answer" is prose, and equal to no gold
WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}"
)
_SPECIAL = re.compile(r"<\|[a-z_]+\|>")
_SPACES = "\u00a0\u1680\u2007\u2008\u2009\u200a\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x2007)))
_SIGNS = {
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), ""),
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2018\u2019"), "'"),
    0xFF1A: ":",
    0xFF0C: ",",
    0x3002: ".",
    0xFF08: "(",
    0xFF09: ")",
}
_BOLD = re.compile(r"(?<![\w)}\]])(?:\*\*|__)(?=\S)|(?<=\S)(?:\*\*|__)(?![\w({\\])|\*\*(?=[:.]?\s*$)", re.MULTILINE)


def plain(text: str) -> str:
    """A segment as it is read: special tokens end a line; spaces, minus signs, quotes and line ends have one form."""
    text = _SPECIAL.sub("\n", text).translate(_SIGNS).replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"(?<![\w)}\].])\u2013(?=\s?[\d.\\])", "-", text)


def unmarked(text: str) -> str:
    """Without Markdown's emphasis, code and quotes around it; `x**2` stays."""
    text = _BOLD.sub("", text.replace("`", ""))
    return text.strip().strip('"*_> \t').strip()
