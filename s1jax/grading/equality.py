"""Equality of two short answers by spelling and exact rationals: True, False, or None where that cannot tell."""

import re
from fractions import Fraction

from s1jax.grading.spelling import WORDS, plain

_SPACE = re.compile(r"\\[!,;: ]|\\q?quad\b|\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|limits)(?![a-zA-Z])|~")
_LEFT_SIDE = re.compile(r"^\\?[A-Za-z]+(?:_(?:\w|\{[^{}=]*\}))?(?:\(\w\))?\s*(?:=|\\in\b)\s*(?=\S)(?!.*=)")
_ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?$")
_UNIT = re.compile(r"(?<=[\d})])\s*([A-Za-z]{1,}[A-Za-z. ]*(?:\^\{?[23]\}?)?)$")
_UNITS = {
    "m": "m meter metre", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
    "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week", "month": "month",
    "year": "year", "g": "g gram", "kg": "kg kilogram", "cent": "cent", "dollar": "dollar", "n": "n newton",
    "mph": "mph", "degree": "degree", "percent": "percent", "": "unit",
}  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3, "cu": 3}
_LENGTHS = frozenset({"m", "cm", "mm", "km", "in", "ft", "yd", "mi", ""})
_ANGLE = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREE = re.compile(r"\^\s*\{?\s*\\?(?:circ|degree)\s*\}?|\u00b0|\\degree")
_PERCENT = re.compile(r"(?:\\?%|\bper\s?cent)\s*[$.]*\s*$")
_LISTED = re.compile(r"-?\d[\d.]*(?:,\s+-?\d[\d.]*)+")
_AMBIGUOUS = re.compile(r"[1-9]\d{2}(?:,[1-9]\d{2})+")
_SCIENTIFIC = re.compile(
    r"([-+]?\d{1,400}(?:\.\d{1,400})?)(?:[eE]|(?:\\times|\\cdot|\*|\u00d7|\u00b7)10\^)\{?([-+]?\d{1,3})\}?"
)
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne|lt|gt|in|leq|geq|neq|approx)(?![a-z])|[\u2264\u2265\u2260\u2208]")
_ARITHMETIC = re.compile(r"[-+*/^]|\\(?:cdot|times|div|[dt]?frac|sqrt|pm)(?![a-z])|\d\s*(?=[A-Za-z\\(])")
_LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")


def normalise(answer: str) -> str:
    """One spelling per answer: spaces, `$`, sizes, fonts, degree, percent and dollar signs, ordinals, `\\frac12`, `.5`,
    `1,000`, `3 1/2`, a left side that is one name (`x=`) and a final stop. Units of a number are dropped."""
    return _split_unit(_plain(answer))[0].replace(" ", "")


def _plain(answer: str) -> str:
    text = plain(answer).strip().strip("$").strip()
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip())
    text = text.replace("\n", " ").replace("\\$", "").replace("$", "")
    text = re.sub(r"(?<=\d)\s*(?:\{,\s*\}|,\\!|,\s?\\!)\s*(?=\d{3})", "", text)
    text = _SPACE.sub(" ", text).replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = WORDS.sub(r" \1 ", text)
    text = text if _ANGLE.search(text) else _DEGREE.sub("", text)  # the sine of 60 degrees is not that of 60
    text = re.sub(r"\\?%", "", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\cfrac", "\\frac").replace("\\geq", "\\ge").replace("\\leq", "\\le").replace("\\neq", "\\ne")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"\s+", " ", text).rstrip(".,;\\ ").lstrip()
    text = _LEFT_SIDE.sub("", text)
    text = re.sub(r"^(-?)(\d+) ?/ ?(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"^(-?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?\d+)\.0*$", r"\1", _ORDINAL.sub("", text))


def _split_unit(text: str) -> tuple[str, tuple[str, int] | None]:
    """(`5 `, (`cm`, 2)) of `5 cm^2`; the unit is None where there is none, and has no name where it is only "units"."""
    match = _UNIT.search(text)
    if not match or not re.match(r"[-+]?[\d.\\({]", text):
        return text, None
    power = int(match[1].rstrip("}")[-1]) if match[1].rstrip("}")[-1] in "23" else 1
    words = [word.rstrip("s") or "s" for word in re.sub(r"\^\{?\d\}?", "", match[1]).lower().replace(".", "").split()]
    if {"and", "or", "to"} & set(words):
        return text, None
    power = next((_POWERS[word] for word in words if word in _POWERS), power)
    known = [_UNIT_OF[word] for word in words if word in _UNIT_OF]
    if not known and (len(match[1].strip()) < 3 or text[match.start(1) - 1] != " "):
        return text, None  # `2x`, `3ab`: a product of variables
    if known and len(match[1]) == 1 and text[match.start(1) - 1] != " ":
        return text, None  # `5m`: as likely a variable
    return text[: match.start()].strip(), (known[0], power if known[0] in _LENGTHS else 1) if known else None


def rational(answer: str) -> Fraction | None:
    """The exact value of an integer, decimal, `1.2e3` or fraction of integers (mixed numbers too); else None."""
    text = normalise(answer)
    match = re.fullmatch(r"([-+]?)(\d*)\\frac\{([-+]?\d+)\}\{(\d+)\}", text)
    if match:
        sign, whole, top, bottom = match.groups()
        if len(text) > 1000 or int(bottom) == 0:
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if re.fullmatch(r"[-+]?\d{1,400}(?:\.\d{1,400})?", text):
        return Fraction(text)
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def number(answer: str) -> Fraction | None:
    """As `rational`, for what can only be one number: thousands and decimals as in German and French count too."""
    answer = _last_of_chain(answer)
    value = rational(answer)
    if value is not None:
        return value
    text = re.sub(r"[\u20ac\u00a3\u00a5]|\b(?:EUR|USD|US)\b", "", plain(answer).replace("'", " ")).strip(" $\\.")
    text = _split_unit(re.sub(r"(?<=\d)\s*[A-Za-z]{0,4}/[A-Za-z]*$", "", text))[0].strip()
    if re.fullmatch(r"-?\d{1,3}(?:\.\d{3}){2,}|-?\d{1,3}(?:\.\d{3})+,\d{1,2}", text):
        return Fraction(text.replace(".", "").replace(",", "."))
    if re.fullmatch(r"-?\d{1,3}(?: \d{3})*,\d{1,2}|-?\d+,\d{1,2}", text):
        return Fraction(text.replace(" ", "").replace(",", "."))
    return rational(text)


def same(gold: str, answer: str) -> bool | None:
    """Equality as far as strings and exact rationals can tell: True, False, or None (ask math-verify).

    False only for two different integers, units or number bases, for a list against a number, a percentage against a
    number that is not its value, letters of another case, and an equation between expressions against a value.
    """
    (gold_value, gold_unit), (value, unit) = _split_unit(_plain(gold)), _split_unit(_plain(answer))
    if gold_unit and unit and gold_unit != unit and gold_unit[0] and unit[0]:
        return False
    gold_text, text = gold_value.replace(" ", ""), value.replace(" ", "")
    if not text or not gold_text:
        return gold_text == text
    exact_gold, exact = rational(gold), rational(answer)
    if _PERCENT.search(answer) and not _PERCENT.search(gold):
        return exact is not None and exact_gold is not None and exact / 100 == exact_gold
    if _is_list_against_number(gold, answer):
        return False
    if (
        _squeezed(gold) == _squeezed(answer)
        or text == gold_text
        or (len(text) > 1 and text.isalpha() and text.lower() == gold_text.lower())
    ):
        return True
    if exact_gold is not None and exact is not None:
        if exact_gold == exact:
            return True
        return False if exact_gold.denominator == exact.denominator == 1 else None
    gold_base, base = re.search(r"_\{?(\d+)\}?$", gold_text), re.search(r"_\{?(\d+)\}?$", text)
    if gold_base and base and gold_base[1] != base[1]:
        return False
    return False if _has_other_case(gold_text, text) or _is_equation(gold_text, text) else None


def _is_list_against_number(gold: str, answer: str) -> bool:
    """A list against one number: `100, 200`, and `100,200` as a gold, which might be either, against `100200`."""
    ours, theirs = _bare(gold), _bare(answer)
    if re.fullmatch(r"-?\d+", theirs) and (_AMBIGUOUS.fullmatch(ours) or _LISTED.fullmatch(ours)):
        return True
    return bool(_LISTED.fullmatch(theirs) and re.fullmatch(r"-?\d+|-?\d{1,2}(?:,\d{3})+", ours))


def _bare(answer: str) -> str:
    return re.sub(r"\{,\}|,\\!\s*", "", plain(answer).strip().strip("$.").strip())


def _squeezed(answer: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", _bare(answer))


def _has_other_case(gold: str, answer: str) -> bool:
    """Single letters that differ in nothing but their case: `X` is not `x`; the choice `(c)` is `(C)`."""
    if re.fullmatch(r"\([A-J]\)", gold):
        return False
    ours, theirs = ({run for run in _LETTER.findall(text) if len(run) == 1} for text in (gold, answer))
    return ours != theirs and {letter.lower() for letter in ours} == {letter.lower() for letter in theirs}


def _is_equation(gold: str, answer: str) -> bool:
    """An equation whose left side computes with variables, where a value is asked: `x+y=3`, `x^2-4=0`.

    `x=3`, `f(2)=3`, `AB=3` and `2+1=3` state the value 3.
    """
    if "=" not in answer or _RELATION.search(gold):
        return False
    left = answer.partition("=")[0]
    name = re.sub(r"_(?:\{[^{}]*\}|\w)|(?<=[A-Za-z}'])\([^()]*\)|\^\{?\\circ\}?", "", left)
    if re.fullmatch(r"\([^()]*\)", name) and not re.search(r"[-+*/^]", name):
        return False  # the point (x,y)
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", name)) and _ARITHMETIC.search(name))


def _last_of_chain(answer: str) -> str:
    """`34` of `17 * 2 = 34`: a computation with numbers alone states what it comes to."""
    computed, _, last = answer.rpartition("=")
    return last if re.fullmatch(r"(?:\\(?:times|cdot|div)|[-+*/\d.,\s$()x\u00d7\u00b7\u00f7=])+", computed) else answer


def integer(answer: str) -> int | None:
    """The integer that an answer states, alone or as `n=204`; `025` is 25. None for a percentage."""
    text = normalise(_last_of_chain(answer))
    return int(text) if re.fullmatch(r"[-+]?\d{1,400}", text) and not _PERCENT.search(answer) else None


def integer_of_sum(answer: str) -> int | None:
    """As `integer`, or the right side of an equation (`m+n=204`), which is what AIME asks for."""
    text = normalise(answer)
    match = re.fullmatch(r"(?:[A-Za-z\\{}()+\-*_^\d]*[A-Za-z][A-Za-z\\{}()+\-*_^\d]*=)([-+]?\d{1,400})", text)
    return int(match[1]) if match else integer(answer)
