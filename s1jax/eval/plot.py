"""The picture of `scaling.json`: what thinking buys, and what a majority vote buys for the same tokens."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK, PALE = "#333333", "#d9d9d9"
BUDGET, IGNORE, VOTE = "#1f6f9f", "#c4622d", "#7a7a7a"


def draw(scaling: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write the picture as PNG.

    Args:
      scaling: content of `scaling.json`.
    """
    has_votes = bool(scaling["votes"])
    figure = Figure(figsize=(10.5 if has_votes else 6.2, 4.3), dpi=160, layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2 if has_votes else 1, sharey=True, squeeze=False)[0]
    _thinking(panels[0], scaling)
    if has_votes:
        _equal_tokens(panels[1], scaling)
    figure.suptitle(_title(scaling), x=0.01, ha="left", fontsize=11, color=INK)
    FigureCanvasAgg(figure).print_figure(path, format="png")


def _title(scaling: Mapping[str, Any]) -> str:
    name = f"{scaling['benchmark']}, {scaling['questions']} questions"
    slope = scaling["scaling"]
    if slope["value"] is None:
        return f"{name}: {slope['reason']}"
    limits = f"95 % interval {slope['low']:+.1f} to {slope['high']:+.1f}"
    return f"{name}: {slope['value']:+.1f} points per doubling of thinking ({limits})"


def _thinking(axes: Axes, scaling: Mapping[str, Any]) -> None:
    points = scaling["points"]
    budgets = [point for point in points if not point["n_ignore"]]
    ignores = [point for point in points if point["n_ignore"]]
    _series(axes, budgets, "thinking_tokens", BUDGET, "thinking budgets", marker="o", line="-")
    _series(axes, ignores, "thinking_tokens", IGNORE, "ends of thinking ignored", marker="D", line="none")
    for point in ignores:
        _note(axes, point["thinking_tokens"], point["accuracy"], f"{point['n_ignore']}x", IGNORE)
    _dress(axes, [point["thinking_tokens"] for point in points], "tokens of thinking a question (log scale)")
    axes.set_ylabel("accuracy (%)", color=INK)
    if ignores:
        axes.legend(frameon=False, fontsize=8.5, loc="best", labelcolor=INK)


def _equal_tokens(axes: Axes, scaling: Mapping[str, Any]) -> None:
    single = sorted(scaling["points"], key=lambda point: point["total_tokens"])
    _series(axes, single, "total_tokens", BUDGET, "one answer, longer thinking", marker="o", line="-")
    votes = scaling["votes"]
    for number, name in enumerate(dict.fromkeys(_of_vote(point) for point in votes)):
        mine = sorted((point for point in votes if _of_vote(point) == name), key=lambda point: point["votes"])
        _series(axes, mine, "total_tokens", VOTE, "majority vote" if number == 0 else "_", marker="s", line="--")
        for point in mine:
            _note(axes, point["total_tokens"], point["accuracy"], f"of {point['votes']}", VOTE)
    _dress(axes, [p["total_tokens"] for p in (*single, *votes)], "all tokens spent a question (log scale)")
    axes.legend(frameon=False, fontsize=8.5, loc="best", labelcolor=INK)


def _of_vote(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What votes of the same samples have in common."""
    return point["budget"], point["n_ignore"]


def _series(
    axes: Axes, points: Sequence[Mapping[str, Any]], x: str, color: str, label: str, *, marker: str, line: str
) -> None:
    if not points:
        return
    points = sorted(points, key=lambda point: point[x])
    xs, ys = [point[x] for point in points], [100 * point["accuracy"] for point in points]
    low = [100 * (point["accuracy"] - point["interval"]["low"]) for point in points]
    high = [100 * (point["interval"]["high"] - point["accuracy"]) for point in points]
    axes.errorbar(xs, ys, [low, high], fmt="none", ecolor=color, elinewidth=1.1, capsize=0, alpha=0.35, zorder=2)
    axes.plot(xs, ys, color=color, linestyle=line, linewidth=1.5, marker=marker, markersize=5, label=label, zorder=3)


def _note(axes: Axes, x: float, accuracy: float, text: str, color: str) -> None:
    axes.annotate(
        text, (x, 100 * accuracy), (0, -13), textcoords="offset points", ha="center", fontsize=7.5, color=color
    )


def _dress(axes: Axes, xs: Sequence[float], label: str) -> None:
    """Powers of two on the axis, few lines, room around the points. Points below one token stand left of 1."""
    least, most = min(xs), max(max(xs), 1)
    if least < 1:
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        left = -0.35
    else:
        axes.set_xscale("log", base=2)
        left = least / 1.35
    axes.set_xlim(left, most * 1.45)
    first, last = math.floor(math.log2(max(least, 1))), math.ceil(math.log2(most))
    step = max(1, math.ceil((last - first) / 7))
    ticks = [2.0**i for i in range(first, last + 1, step)]
    axes.xaxis.set_major_locator(FixedLocator([0.0, *ticks] if least < 1 else ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(label, color=INK)
    axes.set_ylim(0, 105)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3, width=0.6, labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
