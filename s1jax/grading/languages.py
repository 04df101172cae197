"""Statements in other languages than English: "Die Antwort ist 18.", "La respuesta es 18.", "答案是 18", "故选 B".

What negates, doubts or offers a choice is not known in every language, so a statement counts only where its sentence
holds nothing beside the usual words before it and one number, formula or run of letters behind it.
"""

import re

_BEFORE = (
    r"(?:^|(?<=[.!;\n]))[\s#>*_\"'(-]{0,20}"
    r"(?:(?:die|richtige|korrekte|endg\u00fcltige|also|somit|daher|folglich"
    r"|la|final|correcta|correcte|finale|bonne|por lo tanto"
    r"|as\u00ed que|entonces|donc|ainsi|alors|par cons\u00e9quent)\b,?\s+"
    r"|(?:\u6240\u4ee5|\u56e0\u6b64|\u6545|\u5219|\u7efc\u4e0a|\u6700\u7ec8|\u6700\u540e|\u6b63\u786e|\u7684),?\s*)*"
)
_STATES = re.compile(
    rf"(?i){_BEFORE}(?P<words>antwort\s+(?:ist|lautet)\b|respuesta\s+(?:final\s+|correcta\s+)?es\b"
    r"|r\u00e9ponse\s+(?:finale\s+|correcte\s+)?est\b|\u7b54\u6848(?:\u662f|\u4e3a)|(?P<choice>\u9009))[\s:*_]*"
)
_FORMULA = re.compile(r"\$[^$\n]+\$|\\\([^\n]+?\\\)|\\[A-Za-z]+")
_ONE = re.compile(r"[^\w?\uff1f]*(?:[-\d.,%/{}()\s]*\d[^\w?\uff1f]*|[A-J]{1,10}[^\w?\uff1f]*)")
_TAKEN_BACK = re.compile(
    r"(?i)\b(?:nein|nicht|falsch|warte|moment|espera|incorrect[ao]?|non|pas|attend(?:s|ez))\b"
    r"|\u4e0d\u5bf9|\u4e0d\u662f|\u7b49\u7b49|\u7b49\u4e00\u4e0b|\u9519"
)


def statements(text: str, *, of_letters: bool) -> list[tuple[int, int]]:
    """Where such statements begin, and where what they announce begins, in characters."""
    found = []
    for match in _STATES.finditer(text):
        rest = text[match.end() : match.end() + 400]
        sentence = re.split(r"(?<=[.!])(?!\d)|\n", rest, maxsplit=1)[0]
        is_one = _ONE.fullmatch(_FORMULA.sub("1", sentence))
        if is_one and (of_letters or not match["choice"]) and not _TAKEN_BACK.search(rest[len(sentence) :]):
            found.append((match.start("words"), match.end()))
    return found
