"""How answers were read: counts for reports, and one line for the terminal. No JAX."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.grading.extract import FALLBACKS, RULES


def counts(verdicts: Sequence[tuple[str | None, bool]]) -> dict[str, Any]:
    """Parts of a report, from (rule, undecided) of every sample.

    `rules` counts the answers that each rule found, `fallback_share` is the share of all answers that were read out of
    running text (null without answers), `undecided` counts comparisons that did not come to an end.
    """
    found = collections.Counter(rule for rule, _ in verdicts if rule is not None)
    total = found.total()
    return {
        "undecided": sum(undecided for _, undecided in verdicts),
        "rules": {rule: found[rule] for rule in RULES if found[rule]},
        "fallback_share": sum(found[rule] for rule in FALLBACKS) / total if total else None,
    }


def line(reports: Sequence[Mapping[str, Any]]) -> str:
    """How the answers of all these reports were found, in words."""
    found: collections.Counter[str] = collections.Counter()
    for report in reports:
        found.update(report["rules"])
    rules = ", ".join(f"{rule}{'*' if rule in FALLBACKS else ''} {found[rule]}" for rule in RULES if found[rule])
    share = sum(found[rule] for rule in FALLBACKS) / (found.total() or 1)
    undecided, rows = (sum(report[name] for report in reports) for name in ("undecided", "rows"))
    return (
        f"answers read: {rules or 'none'}; * from running text: {100 * share:.1f} %; "
        f"undecided comparisons: {undecided} of {rows}"
    )
