"""What the numbers say, in sentences: also when more thinking bought nothing. Plain data in, text out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.eval import stats
from s1jax.eval.scaling import Point


def findings(points: Sequence[Point], scaling: Mapping[str, Any]) -> list[str]:
    """One sentence each on the slope, the ignored ends, the vote at equal tokens, and the limits.

    Args:
      points: single runs and votes over the same questions.
      scaling: content of `scaling.json` made of them.
    """
    single = [point for point in points if point.votes == 1]
    said = [_slope(scaling["scaling"]), *_ignores(single), *_votes(single, [p for p in points if p.votes > 1])]
    control = scaling["control"]["value"]
    if control is not None and control < 1:
        said.append(f"{100 * (1 - control):.1f} % of the rows did not keep to the limits of their setting.")
    return said


def _slope(slope: Mapping[str, Any]) -> str:
    if slope["value"] is None:
        return f"No slope can be drawn: {slope['reason']}."
    shown = f"{slope['value']:+.1f} points per doubling (95 % interval {slope['low']:+.1f} to {slope['high']:+.1f})"
    if slope["low"] > 0:
        return f"More thinking raised accuracy: {shown}."
    if slope["high"] < 0:
        return f"More thinking lowered accuracy: {shown}."
    return f"More thinking did not change accuracy beyond chance: {shown}."


def _ignores(single: Sequence[Point]) -> list[str]:
    """The most ignored ends against none, under the same budget, question by question."""
    said = []
    for budget in dict.fromkeys(point.budget for point in single):
        mine = sorted((point for point in single if point.budget == budget), key=lambda point: point.n_ignore)
        if not mine or mine[0].n_ignore or not mine[-1].n_ignore:
            continue
        none, most = mine[0], mine[-1]
        gain = stats.paired_difference([[x] for x in none.accuracy], [[x] for x in most.accuracy])
        if gain.value is None or gain.low is None or gain.high is None:
            continue
        shown = f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        spent = f"{np.mean(none.thinking_tokens):,.1f} -> {np.mean(most.thinking_tokens):,.1f} ids of thinking"
        verdict = "helped" if gain.low > 0 else "hurt" if gain.high < 0 else "made no difference beyond chance"
        said.append(f"Ignoring {most.n_ignore} ends of thinking {verdict}: {shown}, {spent}.")
    return said


def _votes(single: Sequence[Point], votes: Sequence[Point]) -> list[str]:
    """Votes against single runs at the same total ids, read off the line through the single runs."""
    if not votes:
        return []
    spent, accuracy = _frontier(single)
    gains = []
    for vote in votes:
        tokens = float(np.mean(vote.total_tokens))
        if spent[0] <= tokens <= spent[-1]:
            at_equal = float(np.interp(math.log2(tokens), np.log2(spent), accuracy))
            gains.append((vote, tokens, float(np.mean(vote.accuracy)) - at_equal))
    if gains:
        vote, tokens, gain = max(gains, key=lambda item: item[1])
        side = "above" if gain > 0 else "below"
        return [
            f"At equal total ids ({tokens:,.0f} a question) a majority vote of {vote.votes} is "
            f"{abs(100 * gain):.1f} points {side} one answer with longer thinking."
        ]
    best = max(votes, key=lambda point: np.mean(point.accuracy))
    return [
        f"No vote spends as few ids as the single runs ({spent[0]:,.0f} to {spent[-1]:,.0f} a question): the best is "
        f"{100 * np.mean(best.accuracy):.1f} % with {best.votes} voters and {np.mean(best.total_tokens):,.0f} ids, "
        f"the best single run {100 * max(accuracy):.1f} %."
    ]


def _frontier(single: Sequence[Point]) -> tuple[list[float], list[float]]:
    """(total ids, accuracy) of the single runs, by ids, runs with the same ids averaged."""
    by_tokens: dict[float, list[float]] = {}
    for point in single:
        by_tokens.setdefault(float(np.mean(point.total_tokens)), []).append(float(np.mean(point.accuracy)))
    spent = sorted(by_tokens)
    return spent, [float(np.mean(by_tokens[tokens])) for tokens in spent]
