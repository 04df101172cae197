"""Values inside sentences: where a number or formula begins and ends, and when words after it change its meaning.

A value is read where it is stated: at the beginning of what follows "Answer:", or right after a verb ("n is 34.").
Whatever else a sentence holds is never an answer; in doubt there is none.
"""

import re
from collections.abc import Iterator

from s1jax.grading.spelling import LONGEST, unmarked

_UNIT_NAMES = (
    "square|cubic|sq|units?|degrees?|percent|per cent|cents?|dollars?|euros?|pounds?|meters?|metres?|centimeters?"
    "|centimetres?|millimeters?|kilometers?|inch(?:es)?|feet|foot|yards?|miles?|seconds?|minutes?|hours?|days?|weeks?"
    "|months?|years?|grams?|kilograms?|liters?|litres?|mph|km|cm|mm|kg|ft|yd|min|hr"
)
UNIT = rf"(?:{_UNIT_NAMES})\b(?:\s*\^\s*\{{?[23]\}}?)?"
_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|det|mod)\b)[A-Za-z]{3,}")
_GROUPS = re.compile(r"\\[A-Za-z]+\s*\{[^{}]*\}|\\[A-Za-z]+")
_ATOM = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|operatorname)\s*\{[^{}]*\}"
    r"|\\begin\{(\w+)\*?\}(?s:.*?)\\end\{\1\*?\}"
    r"|\\[A-Za-z]+\*?|\\[^A-Za-z\s]|\{,\}(?=\s?\d)"
    r"|\\?\$[ \t]?(?=\.?\d)|[\u20ac\u00a3\u00a5][ \t]?(?=\d)|\d+(?:st|nd|rd|th)?(?![A-Za-z]{4})"
    r"|[.,;:](?=\s?[-\d\\($xyzn])|(?<=\d)[.,](?=\d)|[-+*/^=<>\u2264\u2265\u2260\u00b1\u00d7\u00b7\u00f7\u221a\u221e"
    r"\u222a\u2229\u2208\u00b0'!|_{}()\[\]%\u2248~&\u03c0\u00bd\u00bc\u00be\u00b2\u00b3]"
    r"|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])|(?:log|ln|sqrt|exp|pi|infinity|inf|gcd|lcm|det|mod)(?![A-Za-z])"
    rf"|(?<=[\d)}}\]])[ \t]?{UNIT}|(?<=[ \t]){UNIT}(?=\s*(?:[.,;!?)$]|$))"
    r"|(?<=[\d)}])[a-zA-Z]{1,3}(?![A-Za-z])|[A-Za-z](?![A-Za-z'])"
    r"|\s*,?\s*\b(?:and|or)\b\s+(?=[-+]?[\d.$\\(]|(?![aAI]\s)[A-Za-z][ ,.=<>])|[ \t]+|\n(?=[^\n]*\\(?:end|\]))",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\\(?:boldsymbol|bm|pmb|mathbf|textbf)\s*\{(.*)\}[.,;]?")
_HANGING = re.compile(r"(?:\\[\\,;: ]|\s*\b(?:and|or)$|[.,;:=<>~&|*_\u2248\s]|(?<=\s)-|(?<=\s)!)+$")
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_REFUSED = re.compile(
    r"(?i)^[\s,*_\"']*(?:or|nor|if|when|unless|otherwise|mod(?:ulo)?|more|less|fewer|greater|times|plus|minus|divided"
    r"|multiplied|over|squared?|cubed|percent|out|of|to|and|hundred|thousand|million|billion|point|tenths?|dozen|hal(?:f|ves)|thirds?|quarters?|k|than|factorial"
    r"|th|nd|rd|st|is|are|was|would|does|not|maybe|perhaps)\b(?!\s*(?:the|its)\s+(?:final|correct)?\s*answer)"
)
_ENDS = re.compile(r"(?<!\\)[.!?](?=[\s\"'*)]|$)|\n")
_VERB = re.compile(
    r"(?i)\b(?:is|are|was|were|equals?|be|becomes?|has|have|gives?|yields?|gets?|takes?|needs?|makes?"
    r"|made|left with)\b"
    r"|[=:](?=\s)"
)
_ADVERBS = re.compile(
    r"(?i)^(?:[\s,:*_\"'>]|\b(?:therefore|thus|hence|then|so|indeed|simply|just|exactly|precisely|clearly|definitely"
    r"|actually|now|also|still|again|approximately|approx\.|about|roughly|only|for sure|surely|certainly|given by"
    r"|equal to|going to be|found to be|in fact|of course|probably|most likely|likely|a total of|the number|the value"
    r"|(?:the )?(?:final |correct )?answer is)\b)+"
)
_NEGATED = re.compile(
    r"(?i)\b(?:not|never|no|cannot|none|neither|without|at least|at most|between|less than|more than|greater than|if"
    r"|suppose|assume|assuming|wrong|incorrect|except)\b|n't\b"
)
_POINTER = re.compile(
    r"(?i)(?:\b(?:eq|equation|step|part|case|question|problem|figure|theorem|lemma|section|page|line|table|method|chapter|item"
    r"|exercise|example|no|number|see)\b\.?|#)\s*\(?\s*$"
)
_NUMBER = re.compile(r"(?<![\w.\\])-?\$?\d[\d,]*(?:\.\d+)?(?![\w^_])")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a line; a full stop inside a number or a formula ends none."""
    masked = _SPAN.sub(lambda match: "x" * len(match[0]), text)
    start = 0
    for end in _ENDS.finditer(masked):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def leading(text: str) -> tuple[str, str] | None:
    """The number or formula that the text begins with, and what follows it; None where it begins with prose."""
    text = text[:LONGEST]
    end = safe = depth = 0
    while end < len(text):
        span = _SPAN.match(text, end) if text[end] in "$\\" else None
        if span and _is_formula(next(filter(None, span.groups()))):
            end = span.end()
        else:
            atom = _ATOM.match(text, end)
            if atom is None or not atom[0] or _is_article(text, atom):
                break
            depth += (atom[0] in _OPEN) - (atom[0] in _CLOSE)
            if depth < 0:
                break
            end = atom.end()
        if depth == 0:
            safe = end
    value = _trimmed(text[:safe])
    if not re.search(r"[A-Za-z\d\u03c0\u221e]", value) or re.search(r"\\(?:boxed|fbox)(?![A-Za-z])", value):
        return None
    return value, text[safe:]


def _is_formula(content: str) -> bool:
    """`$18 a day, he has $` is no formula."""
    return not _PROSE.search(_GROUPS.sub(" ", content)) and not re.match(r"\d[\d.,]*\s+(?:a|per|to|in|of)\b", content)


def _is_article(text: str, atom: re.Match[str]) -> bool:
    """The words "a" and "I", and the letter that begins a sentence of prose."""
    follows = text[atom.end() :]
    return atom[0] in "aAI" and atom[0] != "" and bool(re.match(r"[ \t]+[A-Za-z]{2,}|'", follows))


def _trimmed(value: str) -> str:
    """Without delimiters, and without punctuation, relations and conjunctions left hanging at the end."""
    value = _SPAN.sub(lambda match: f" {next(filter(None, match.groups()))} ", value) if _SPAN.search(value) else value
    value = re.sub(r"[ \t\n]+", " ", value).strip()
    if (bold := _BOLD.fullmatch(value)) and bold[1].count("{") == bold[1].count("}"):
        value = bold[1].strip()
    return _HANGING.sub("", value).strip()


def stated(text: str) -> str | None:
    """The value that a sentence begins with, where nothing after it changes its meaning.

    `34 apples`, `34, since 2*17 = 34` and `34 (see above)` state 34; `3 more than 5`, `3 if n is odd` and
    `3 apples and 5 pears` state nothing. Two values joined by "or" are one answer of two.
    """
    text = re.sub(_ADVERBS, "", text)
    found = leading(text)
    if found is None:
        return None
    value, rest = found
    sentence = next(sentences(rest), "")
    if sentence.rstrip().endswith("?"):
        return None
    if not sentence.strip() or re.match(
        r"\s*(?:[.!;:\n)(\u2014\u2013\"\]]|(?:because|since|as)\b|-\s|,(?!\s*(?:or|and)\b))", sentence
    ):
        return value
    noun, _, more = (re.split(r"([,;:(])", sentence, maxsplit=1) + ["", ""])[:3]
    if _REFUSED.match(sentence) or re.search(r"[\d$\\]", noun) or re.match(r"\s*(?:and |or )?[$\\]?\d", more):
        return None
    return value


def stated_inside(sentence: str) -> str | None:
    """The value of a sentence that states one: after its last verb, else its only number.

    `The largest $n$ is 34.`; `Tom has 34 apples.`; but nothing of `There are 34 of 50.` or `It is not 34.`
    """
    if sentence.rstrip().endswith("?") or _NEGATED.search(sentence):
        return None
    masked = _SPAN.sub(lambda match: "x" * len(match[0]), sentence)
    told = [value for verb in _VERB.finditer(masked) if (value := stated(sentence[verb.end() :]))]
    for value in told:
        if not re.search(r"[\d\\$]", sentence.rpartition(value)[2].replace("\\)", "").replace("$", "")):
            return value  # it is the last one that the sentence holds
    if told:
        return told[0] if len(set(told)) == 1 else None
    numbers = list(_NUMBER.finditer(sentence))
    if len(numbers) != 1 or re.search(r"[\\^_]|\d\s*[-+*/=]", sentence):
        return None
    before, number, after = sentence[: numbers[0].start()], numbers[0][0], sentence[numbers[0].end() :]
    return None if _POINTER.search(before) or _REFUSED.match(after) else number.strip(",")


def is_whole(text: str) -> str | None:
    """The value, where a text is nothing else: `**34**.`, `\\[ 9 \\]`, `x = 5`, `Evelyn`."""
    text = unmarked(text)
    if re.fullmatch(r"[A-Za-z]{2,30}\.?", text):
        return text.rstrip(".")
    found = leading(text)
    return found[0] if found and not found[1].strip(" .!\n*_\"'") else None
