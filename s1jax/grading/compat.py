"""Upstream's grading rules, without its network judge, for numbers that stand beside the default grader's.

simplescaling/s1@77272c6 tasks/aime/utils.py:222-344 and tasks/gpqa/openai/utils.py:150-205. Where upstream crashes
(`\\fbox{...}`, `\\boxed5`, digits that `int` refuses) the content stands as it is.
"""

import re

from s1jax.grading.grade import Verdict

_ANSWER = re.compile(r"(?i)Answer\s*:\s*(.*)", re.DOTALL)
_HEADERS = ("<|im_start|>answer\n", "<|im_start|>")


def grade(text: str, gold: str, kind: str) -> Verdict:
    """Grade a whole response, thinking included, as upstream does.

    Exact strings, but integers without leading zeros. A multiple-choice response without a letter counts as `A`.
    """
    found = extract(text)
    if kind == "letter":
        found = found.upper() if found in tuple("abcd") else found
        found = found if found in tuple("ABCD") else "A"
    if gold.isdecimal() and found.isdecimal() and len(found) < 4000:
        return Verdict(found, int(found) == int(gold))
    return Verdict(found, found == gold)


def extract(text: str) -> str:
    """The candidate answer; the whole text after the last header where there is neither a box nor "Answer:"."""
    for header in _HEADERS:
        if header in text:
            text = text.rpartition(header)[2]
            if header == _HEADERS[1] and "\n" in text:
                text = text.partition("\n")[2]
            break
    box = _last_box(text)
    if box is not None:
        return box
    match = _ANSWER.search(text)
    return match[1] if match else text


def _last_box(text: str) -> str | None:
    """Content of the last `\\boxed`; of `\\boxed 5` up to the next `$`, which wins over any braces."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    start = text.rfind("\\boxed")
    start = text.rfind("\\fbox") if start < 0 else start
    if start < 0:
        return None
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if text[i] == "}" and depth == 0:
            box = text[start : i + 1]
            return box[box.index("{") + 1 : -1] if "{" in box else box
    return None
