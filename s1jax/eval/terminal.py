"""Reports as a table on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """One row a setting: accuracy with its interval, tokens, and what went wrong."""
    first = reports[0]
    shown = Table(title=f"{first['benchmark']}: {describe(first)}", title_justify="left")
    shown.add_column("setting")
    for name in (
        "samples",
        "accuracy",
        "95 % interval",
        "thinking tokens",
        "all tokens",
        "within limits",
        "no answer",
        "cut",
    ):
        shown.add_column(name, justify="right")
    for report in reports:
        interval, within = report["interval"], report["within_budget"]
        shown.add_row(
            report["label"],
            str(report["samples_per_question"]),
            f"{100 * report['accuracy']:.1f} %",
            f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}",
            f"{report['mean_thinking_tokens']:,.1f}",
            f"{report['mean_total_tokens']:,.1f}",
            "" if within is None else f"{100 * within:.1f} %",
            f"{report['no_answer']} of {report['rows']}",
            f"{report['truncated']}",
        )
    return shown


def describe(report: Mapping[str, Any]) -> str:
    """How many questions, and of how many where that is not all."""
    of = report.get("official_size")
    return f"{report['questions']} questions" + (f" of {of}" if of and of != report["questions"] else "")


def show(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, as wide as it is where the output is no terminal."""
    Console(width=None if sys.stdout.isatty() else 140).print(table(reports))
