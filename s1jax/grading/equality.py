"""Equality of two short answers by spelling and exact rationals: True, False, or None where that cannot tell."""

import re
from fractions import Fraction

_SPACE = re.compile(r"\\[!,;: ]|\\q?quad\b|\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|limits)(?![a-zA-Z])|~")
WORDS = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
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


def normalise(answer: str) -> str:
    """One spelling per answer: spaces, `$`, sizes, fonts, degree, percent and dollar signs, ordinals, `\\frac12`, `.5`,
    `1,000`, a left side that is one name (`x=`) and a final stop. Units of a number are dropped."""
    return _split_unit(_plain(answer))[0].replace(" ", "")


def _plain(answer: str) -> str:
    text = answer.strip().strip("$").strip()
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip())
    text = text.replace("\n", " ").replace("\u2212", "-").replace("$", "")
    text = re.sub(r"(?<=\d)\s*(?:\{,\s*\}|,\\!|,\s?\\!)\s*(?=\d{3})", "", text)
    text = _SPACE.sub(" ", text).replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = WORDS.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\?(?:circ|degree)\s*\}?|\u00b0|\\degree", "", text)
    text = re.sub(r"\\?%|\\\$", "", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\cfrac", "\\frac").replace("\\geq", "\\ge").replace("\\leq", "\\le").replace("\\neq", "\\ne")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".,;\\").strip()
    text = _LEFT_SIDE.sub("", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?\d+)\.0*$", r"\1", _ORDINAL.sub("", text))


def _split_unit(text: str) -> tuple[str, str | None]:
    """(`5 `, `cm`) of `5 cm`; the unit is None where there is none, and "" where it is only "units"."""
    match = _UNIT.search(text)
    if not match or not re.match(r"[-+]?[\d.\\({]", text):
        return text, None
    words = [word.rstrip("s") or "s" for word in re.sub(r"\^\{?\d\}?", "", match[1]).lower().replace(".", "").split()]
    if {"and", "or", "to"} & set(words):
        return text, None
    known = [_UNIT_OF[word] for word in words if word in _UNIT_OF]
    if not known and (len(match[1].strip()) < 3 or text[match.start(1) - 1] != " "):
        return text, None  # `2x`, `3ab`: a product of variables
    if known and len(match[1]) == 1 and text[match.start(1) - 1] != " ":
        return text, None  # `5m`: as likely a variable
    return text[: match.start()].strip(), known[0] if known else None


def rational(answer: str) -> Fraction | None:
    """The exact value of an integer, decimal, or fraction of integers (mixed numbers too); None for anything else."""
    text = normalise(answer)
    match = re.fullmatch(r"([-+]?)(\d*)\\frac\{([-+]?\d+)\}\{(\d+)\}", text)
    if match:
        sign, whole, top, bottom = match.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if re.fullmatch(r"[-+]?\d{1,400}(?:\.\d{1,400})?", text):
        return Fraction(text)
    return None


def same(gold: str, answer: str) -> bool | None:
    """Equality as far as strings and exact rationals can tell: True, False, or None (ask math-verify).

    False only for two different integers, two different known units, or two different number bases.
    """
    (gold_value, gold_unit), (value, unit) = _split_unit(_plain(gold)), _split_unit(_plain(answer))
    if gold_unit and unit and gold_unit != unit:
        return False
    gold_text, text = gold_value.replace(" ", ""), value.replace(" ", "")
    if not text or not gold_text:
        return gold_text == text
    if text == gold_text or (len(text) > 1 and text.isalpha() and text.lower() == gold_text.lower()):
        return True
    exact_gold, exact = rational(gold), rational(answer)
    if exact_gold is not None and exact is not None:
        if exact_gold == exact:
            return True
        return False if exact_gold.denominator == exact.denominator == 1 else None
    gold_base, base = re.search(r"_\{?(\d+)\}?$", gold_text), re.search(r"_\{?(\d+)\}?$", text)
    if gold_base and base and gold_base[1] != base[1]:
        return False
    return None


def integer(answer: str) -> int | None:
    """The integer that an answer states, alone or as the right side of an equation (`m+n=204`); `025` is 25."""
    text = normalise(answer)
    match = re.fullmatch(r"(?:[A-Za-z\\{}()+\-*_^\d]*[A-Za-z][A-Za-z\\{}()+\-*_^\d]*=)?([-+]?\d{1,400})", text)
    return int(match[1]) if match else None
