"""Places where a segment states its answer: answer lines in any dress, and "the answer is". Plain strings.

What stands at such a place is read by `values` or `letters`; here it is only found.
"""

import dataclasses
import re

from s1jax.grading import languages

_NAME = r"(?:answers?|ans|antwort|r\u00e9ponse|respuesta|risposta|resposta|\u043e\u0442\u0432\u0435\u0442)"
_WORD = re.compile(rf"(?i)(?<![A-Za-z]){_NAME}(?![A-Za-z])|\u7b54\u6848|\u7b54")
_OPTION = re.compile(
    r"(?i)\b(?:correct|right|best|true|appropriate|only)\s+(?:true\s+|correct\s+)?(?:option|choice|statement|alternative)s?"
    r"(?:\s+(?:about|related|regarding|that|for)\b[^.\n:]{0,60}?)?\s*(?P<verb>\b(?:is|are)\b\s*:?|:)"
    r"|\b(?:corresponds? to|which is|is|matches|match(?:es)? with)\s+(?P<to>(?:with\s+)?(?:option|choice)s?\b)"
    r"|\((?P<in>(?:option|choice)\s+\(?[A-J]\)?\s*\))"
)
_COLON = re.compile(
    r"(?:[ \t]+(?:to|for)[ \t]+[^.:\n]{1,40})?[\s*_\"'`)\]]*"
    r"(?:\([^()\n]{0,60}\)[*_ \t]*)?"
    r"(?:\s*is\b(?:,?\s*(?:therefore|thus|then|hence|simply|as follows|given by)\b,?)?\s*)?[*_ \t]*:(?!=)[*_` \t]*"
)
_DASH = re.compile(r"[*_\"'` \t]*(?:=|-{1,2}>?|\u2013|\u2014|\u2192|\\rightarrow|$)?[*_ \t]*(?=\S)")
_ALONE_AFTER = re.compile(r"[*_#:` \t]*(?:\([^()\n]{0,40}\))?[*_#: \t]*(?:\n|$)")
_ADJECTIVES = r"(?:(?:the|my|our|final|correct|best|overall|numerical|short|exact|right|complete)\s+)*"
_BEGINS = re.compile(rf"(?i)^[\s#>*_\-\u2022\"'`(\[{{|\d.]*{_ADJECTIVES}[*_]*$")
_IS = re.compile(
    r"(?i)[\"'*_)]*"
    r"(?!\s*(?:choices|options|key|sheet|format|type)\b)"
    r"(?:,?[ \t]*\b(?:therefore|thus|then|hence|in fact|of course)\b,?)?"
    r"[^.\n:;!?$=\d,\\]{0,60}?\s*(?:\b(?:is|are|was|would be|should be|must be|will be|has to be|equals?"
    r"|comes out (?:to be|to|as|at)|becomes|turns out to be)\b(?!\s*not\b)|=)\s*[:*_]*"
)
_DOUBT = re.compile(r"(?i)\b(?:might|could|may|can|cannot|not|never|isn't|whether|choices|options|need|wrong)\b")
_BEFORE_IS = re.compile(
    r"(?i)\b(?:if|suppose|assume|assuming|whether|unless|wrong|incorrect|previous|initial|another|possible|intermediate|their"
    r"|his|her|student's|partial|not|isn't|what|think|thought|claim(?:s|ed)?)\b"
)
_DENIED = re.compile(r"(?i)\b(?:not|no|cannot|can't|wrong|incorrect|unable|never|without|previous|if|suppose)\b|n't\b")
_CASE = re.compile(r"(?i)^\W*(?:for|when|in (?:the|this|that) (?:first|case|second))\b")
_SO = re.compile(
    r"(?i)\b(?:so|thus|hence|therefore|finally|consequently|conclusion|conclude|summary|i think|i believe)\b"
)
_IS_ANSWER = re.compile(
    rf"(?i)[*_\"']*,?\s*(?:is|as|being)\s+(?:therefore\s+|thus\s+)?(?:the|our|my)\s+{_ADJECTIVES}answer\b"
)
_CORRECTION = re.compile(
    r"(?i)\b(?:wait|hold on|no|hmm|wrong|incorrect|"
    r"actually|correction|sorry|oops|mistake|instead|rather|scratch that|re-?check(?:ing)?"
    r"|on second thought)\b"
)
_RETRACTED = re.compile(
    r"(?i)\b(?:wait|no|hmm|actually|oops|sorry|but|hold on)\b[^.\n]{0,30}"
    r"\b(?:that|this|it)(?:'s| is| was| must be| seems| can't be| cannot be)"
    r"\s+(?:also\s+)?(?:not\s+(?:right|correct|possible)|wrong|incorrect|a mistake|impossible)\b"
)
_NEW_VALUE = re.compile(
    r"(?i)\b(?:wait|no|actually|correction|sorry|oops|rather|i mean|instead)\b"
    r"(?:[^.\n\d$\\]|[.\u2026!]+(?=\s+(?:it|that|this)\b)){0,40}?"
    r"(?:[:,\u2014-]|(?<=wait)[.\u2026!]+|\b(?:is|it's|be|to|make that)\b(?:\s+(?:actually|really|in fact)\b)?)\s*"
    r"(?=[-*\"(]*(?-i:[$\\\d(A-Z]))(?!(?:it|that|this|i|so|wait)\b)"
)
_WITHDRAWN = re.compile(
    r"(?i)(?:^|[^\w\s]|\d|\n)\s*(?:\b(?:oh|oops|hmm+|uh|but|so)\b[,.\u2026]*\s*)?(?<![A-Za-z])"
    r"(?P<words>no[,.\u2026]*\s+wait\b|wait[,.\u2026]*\s+no(?=\s*(?:[,.:;!\u2026\u2014-]|$)|\s+(?:it|that|this|i)\b)"
    r"|scratch that\b)"
)
MOST = 200  # places that are looked at, from the end


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an answer is stated.

    Attributes:
      start: of the words that announce it, in characters.
      end: where what they announce begins.
      rule: `line`, `bare` (a line without a colon) or `statement`.
      value_before: "34 is the answer": the value stands before `start`.
    """

    start: int
    end: int
    rule: str
    value_before: bool = False


def places(text: str, *, of_letters: bool) -> list[Place]:
    """All places, by their start; "option C" and the like only where choices are asked for."""
    found = [place for match in list(_WORD.finditer(text))[-MOST:] if (place := _place(text, match))]
    if of_letters:
        for match in list(_OPTION.finditer(text))[-MOST:]:
            end = match.end() if match["verb"] else match.start("to" if match["to"] else "in")
            if not _is_doubtful(text, match.start()):
                found.append(Place(match.start(), end, "statement"))
    found += [Place(*at, "statement") for at in languages.statements(text, of_letters=of_letters)[-MOST:]]
    return sorted(found, key=lambda place: place.start)


def _place(text: str, word: re.Match[str]) -> Place | None:
    line_start = text.rfind("\n", 0, word.start()) + 1
    before, after = text[line_start : word.start()], text[word.end() : word.end() + 400]
    begins = bool(_BEGINS.match(before))
    if before.endswith("<") and after.startswith(">"):
        return Place(word.start(), word.end() + 1, "line")
    colon = _COLON.match(after)
    if colon and (begins or word[0].lower() != "answers"):
        return (
            None
            if _DENIED.search(re.split(r"[.!?:]\s", before)[-1])
            else Place(word.start(), word.end() + colon.end(), "line")
        )
    if begins and (alone := _ALONE_AFTER.match(after)):
        return Place(line_start, word.end() + alone.end(), "line")
    if _is_doubtful(text, word.start()):
        return None
    behind = _IS_ANSWER.search(text[max(0, word.start() - 80) : word.end()])
    if behind and behind.end() == len(text[max(0, word.start() - 80) : word.end()]):
        return Place(max(0, word.start() - 80) + behind.start(), word.end(), "statement", value_before=True)
    verb = _IS.match(after)
    if verb and not _DOUBT.search(verb[0]):
        return Place(word.start(), word.end() + verb.end(), "statement")
    dash = _DASH.match(after)
    return Place(line_start, word.end() + dash.end(), "bare") if begins and dash else None


def _is_doubtful(text: str, at: int) -> bool:
    """A condition, a wrong answer or a question stands before, in the same sentence."""
    ends = ((text.rfind(mark, 0, at), len(mark)) for mark in ("\n", ". ", "? ", "! ", ": "))
    start = max(found + length if found >= 0 else 0 for found, length in ends)
    clause = text[max(start, at - 200) : at]
    return bool(_BEFORE_IS.search(clause) or _CASE.match(clause)) and not _SO.search(clause)


def announced(text: str, place: Place) -> str:
    """What a place announces: the rest of its line or, where that is empty, the next line or the next formula."""
    rest = text[place.end : place.end + 2000]
    stripped = rest.lstrip(" \t\n*_#>:`")
    line = stripped.partition("</answer>")[0]
    if line.startswith("| "):  # a row of a table
        line = line[2:].partition("|")[0]
    if line.startswith(("$$", "\\[", "\\begin")) or line.partition("\n")[0].strip() in ("\\(", "$"):
        return line
    line = line.partition("\n")[0]
    return line[: withdrawal(line)]


def is_correction(between: str) -> bool:
    """Words between two answers that take the first one back."""
    return bool(_CORRECTION.search(between))


def corrections(text: str, after: int) -> list[int]:
    """Where "wait, no: 35" and the like state another value, behind the last answer; nearest to the end first."""
    return [match.end() for match in _NEW_VALUE.finditer(text, after)][::-1][:20]


def withdrawal(text: str) -> int | None:
    """Where "no, wait" and the like take back what stands before, in the same paragraph; None: nowhere."""
    lead = len(text) - len(text.lstrip(" .,;:*_$)]}\n"))
    found = _WITHDRAWN.search(text.partition("\n\n")[0])
    if found is None and "\n\n" in text[:lead]:
        found = _WITHDRAWN.match(text, lead - 1)
    return found.start("words") if found else None


def is_retracted(tail: str) -> bool:
    """The last sentence takes back what was answered, and gives nothing in its place."""
    ends = [match.end() for match in _RETRACTED.finditer(tail)]
    return bool(ends) and len(tail[ends[-1] :].strip()) < 120
