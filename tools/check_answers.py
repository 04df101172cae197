"""How answers are read and compared, on every reference answer and every case of other graders: docs/grading.md.

    .venv/bin/python tools/check_answers.py [--shared ../shared/data] [--every 1] [--write docs/grading.md]

Each answer of MATH500, AIME24, AIME25 and GSM8K is put into each dress and has to be read right; three wrong answers
are put there and have to be refused. Each case of `data/graders` is decided alike, or a reason stands for it. Exit
code 1 where one of these fails. Some minutes on two cores.
"""

import argparse
import collections
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import grader_opinions  # noqa: E402  (the cases are those of the tests)
import grading_cases  # noqa: E402

from s1jax.grading.extract import FALLBACKS, find  # noqa: E402
from s1jax.grading.pool import Grader  # noqa: E402

HEAD = """# How answers are read: the record

Written by `tools/check_answers.py`. The rules are in `s1jax/grading/extract.py`, why they are so in
`decisions/evaluation.md`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--every", type=int, default=1, help="every so-many-th reference answer only")
    parser.add_argument("--write", type=pathlib.Path, help="the file to write; by default it is printed")
    arguments = parser.parse_args()
    with Grader(processes=2) as grader:
        dresses, n_failed = dress_table(grading_cases.golds(arguments.shared, arguments.every), grader)
        opinions, n_open = opinion_table(list(grader_opinions.opinions(arguments.shared, grader)))
    text = "\n".join([HEAD, *dresses, "", *opinions, ""])
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    print(f"{n_failed} dressed answers failed, {n_open} disagreements without a reason", file=sys.stderr)
    return int(n_failed + n_open > 0)


def dress_table(cases: list[grading_cases.Gold], grader: Grader) -> tuple[list[str], int]:
    """Lines of Markdown: for each dress its rule, and of each benchmark what was read right and refused; failures."""
    count = collections.Counter(gold.benchmark for gold in cases)
    names = list(count)
    rows: dict[str, list[str]] = {}
    failed = 0
    for dress, name, refused, credited in grading_cases.failures(grader, cases):
        n_wrong = sum(len(gold.wrong) for gold in cases if gold.benchmark == name)
        cell = f"{count[name] - len(refused)} of {count[name]}, {n_wrong - len(credited)} of {n_wrong}"
        rows.setdefault(dress, []).append(cell)
        failed += len(refused) + len(credited)
    lines = ["## Reference answers in dresses", ""]
    lines += ["Read right, of all; wrong answers refused, of all. A star marks rules that read running text.", ""]
    lines += [f"| dress | rule | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for dress, cells in rows.items():
        found = find(grading_cases.DRESSES[dress].replace("@", "25"), "math")
        rule = "" if found is None else found.rule + ("*" if found.rule in FALLBACKS else "")
        lines.append(f"| {dress} | {rule} | {' | '.join(cells)} |")
    return lines, failed


def opinion_table(found: list[grader_opinions.Opinion]) -> tuple[list[str], int]:
    """Lines of Markdown: agreement by source and each disagreement with its reason; disagreements without one."""
    cases = collections.Counter(opinion.source for opinion in found)
    alike = collections.Counter(opinion.source for opinion in found if opinion.is_alike)
    lines = ["## Cases of other graders' own tests", "", "| source | cases | alike | otherwise, with a reason |"]
    lines += ["|---|---|---|---|"]
    others = [opinion for opinion in found if not opinion.is_alike]
    reasoned = collections.Counter(opinion.source for opinion in others if opinion.reason)
    lines += [f"| {source} | {cases[source]} | {alike[source]} | {reasoned[source]} |" for source in cases]
    lines += ["", "| source, line | they say | here | gold / read, or metric | reason |", "|---|---|---|---|---|"]
    for one in others:
        shown = one.shown.replace("|", "\\|")
        lines.append(f"| {one.source} {one.line} | {one.expected} | {one.ours} | `{shown}` | {one.reason} |")
    return lines, sum(opinion.reason is None for opinion in others)


if __name__ == "__main__":
    sys.exit(main())
