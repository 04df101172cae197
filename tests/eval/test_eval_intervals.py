"""Intervals and claims against exact binomials, enumeration, other implementations and simulation."""

import dataclasses
import importlib.util
import itertools
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats as peer

from s1jax.eval import page, scaling, stats
from s1jax.eval.findings import comparisons, findings
from s1jax.eval.scaling import Point

TOOL = pathlib.Path(__file__).parent.parent.parent / "tools" / "simulate_intervals.py"


@pytest.fixture(scope="module")
def simulate():
    """The tool that writes docs/intervals.md."""
    spec = importlib.util.spec_from_file_location("simulate_intervals", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def points_of(*accuracies, tokens=None, **fields):
    tokens = tokens or [100.0 * 2**i for i in range(len(accuracies))]
    return [
        Point(f"setting {i}", None, (float(t),) * len(a), (float(t),) * len(a), tuple(map(float, a)), **fields)
        for i, (t, a) in enumerate(zip(tokens, accuracies, strict=True))
    ]


@pytest.mark.parametrize("n", [1, 2, 10, 30, 500])
def test_one_sample_a_question_gives_the_exact_binomial_interval(n):
    for right in range(0, n + 1, max(1, n // 30)):
        interval = stats.clustered([[1]] * right + [[0]] * (n - right))
        exact = peer.binomtest(right, n).proportion_ci(0.95, "exact")
        assert (interval.value, interval.low, interval.high) == pytest.approx((right / n, exact.low, exact.high))


def test_intervals_cover_at_every_rate_and_are_not_wide(simulate):
    """The short form of docs/intervals.md: 30 questions. A t interval covers less than 75 % somewhere."""
    generator = np.random.default_rng(5)
    grid = simulate.cells(30, rates=(3, 3.5, 10, 50, 90, 97), likeness=(0, 0.1, 0.3, 0.7, 1))
    found = {cell: simulate.measure(cell, 1500, generator) for cell in grid}
    assert min(row[0] for row in found.values()) >= 0.935
    assert min(row[2] for row in found.values()) < 0.75
    middle = [row for cell, row in found.items() if cell.rate == 50 and not cell.dead]
    assert all(width <= 1.15 * of_t for _, width, _, of_t in middle)


def test_few_questions_that_agree_by_chance_are_no_certainty():
    for samples in ([[1, 0], [1, 0]], [[0.5]] * 4, [[1, 1]] * 30, [[0] * 64] * 30, [[1]]):
        interval = stats.clustered(samples)
        assert interval.high - interval.low > 0.1


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
def test_a_higher_level_gives_a_wider_interval_around_the_mean(level):
    samples = np.random.default_rng(1).binomial(8, np.random.default_rng(2).beta(1, 2, 30)) / 8
    inner, outer = stats.clustered(samples[:, None], level), stats.clustered(samples[:, None], level + 0.005)
    assert outer.low < inner.low < inner.value < inner.high < outer.high


def test_sign_flips_of_single_samples_are_mcnemars_exact_test():
    for better, worse in itertools.product(range(12), repeat=2):
        differences = [1] * better + [-1] * worse + [0] * 5
        exact = peer.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert stats.sign_flip_p(differences) == pytest.approx(exact)


@pytest.mark.parametrize("samples", [1, 3, 4, 7, 64])
def test_sign_flips_equal_enumeration(samples):
    generator = np.random.default_rng(samples)
    for _ in range(10):
        differences = generator.integers(-samples, samples + 1, 9) / samples
        # Sums are compared with a margin far below a step, as equal ones differ by rounding.
        peers = peer.permutation_test(
            (np.rint(differences * 960),), np.sum, permutation_type="samples", n_resamples=1000
        )
        assert stats.sign_flip_p(differences) == pytest.approx(min(1.0, peers.pvalue))


def test_holm_is_closed_testing_with_bonferroni():
    p_values = [0.01, 0.04, 0.03, 0.3, 0.012]
    everyone = range(len(p_values))
    subsets = [some for k in everyone for some in itertools.combinations(everyone, k + 1)]
    for i, adjusted in enumerate(stats.holm(p_values)):
        mine = [min(1.0, len(some) * min(p_values[j] for j in some)) for some in subsets if i in some]
        assert adjusted == pytest.approx(max(mine))
    assert stats.holm([]) == []


def test_effects_of_many_differing_questions_are_the_t_interval():
    values = np.random.default_rng(3).normal(0.02, 0.1, (20, 2000)).clip(-1, 1)
    low, high, p = stats.effect_limits(values, 1.0)
    theirs = peer.ttest_1samp(values, 0, axis=1)
    np.testing.assert_allclose(high - low, np.diff(theirs.confidence_interval(), axis=0)[0], rtol=0.03)
    assert np.all((p <= 0.05) == ((low > 0) | (high < 0)))


@pytest.mark.parametrize("questions", [10, 30])
def test_intervals_of_differences_cover(simulate, questions):
    generator = np.random.default_rng(9)
    found = [simulate.measure_difference(*pair, 1500, generator) for pair in simulate.differences(questions)]
    assert min(found) >= 0.925 and np.mean(found) >= 0.95


def test_no_difference_in_any_question_is_no_certainty():
    low, high, p = stats.effect_limits(np.zeros(30), 1.0)
    exact = peer.binomtest(0, 30).proportion_ci(0.95, "exact").high  # that many may differ unseen
    assert p == 1.0 and low == -high and exact <= high < 1.5 * exact


def test_four_better_and_none_worse_of_thirty_is_no_claim():
    none, most = points_of([0] * 30, [1] * 4 + [0] * 26)
    gain = stats.paired_difference(np.array([none.accuracy]).T, np.array([most.accuracy]).T)
    assert gain.p == 0.125 and gain.low < 0 < gain.high
    said = findings([none, dataclasses.replace(most, n_ignore=4)], scaling.to_json([none, most]))
    assert any("ignoring up to 4 ends of thinking" in one and "p = 0.125" in one for one in said)
    assert not any("helped" in one or "raised" in one for one in said)


def test_a_slope_has_the_standard_error_of_the_jackknife():
    """Tokens differ by question and setting, so the slope's doublings are uncertain too."""
    generator = np.random.default_rng(4)
    n, settings = 400, 4
    tokens = 300 * 2.0 ** np.arange(settings) * generator.lognormal(0, 1.0, (n, settings))
    accuracy = (generator.random((n, settings)) < [0.1, 0.3, 0.5, 0.9]).astype(float)
    points = [Point("", None, tuple(t), tuple(t), tuple(a)) for t, a in zip(tokens.T, accuracy.T, strict=True)]
    for linear, slope in ((False, scaling.log2_slope), (True, scaling.linear_slope)):
        found = scaling.scaling(points, linear=linear)
        whole = slope(tokens.mean(axis=0), accuracy.mean(axis=0))
        left_out = [
            slope(np.delete(tokens, q, axis=0).mean(axis=0), np.delete(accuracy, q, axis=0).mean(axis=0))
            for q in range(n)
        ]
        error = np.sqrt((n - 1) * np.var(left_out))
        assert found.value == pytest.approx(whole)
        assert found.high - found.value == pytest.approx(1.97 * error, rel=0.06)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_below_ten_questions_there_is_no_slope_and_no_claim(n):
    points = points_of([0.0] * n, [0.431] * n, [1.0] * n)
    points[2] = dataclasses.replace(points[2], n_ignore=2)
    data = scaling.to_json([*points, dataclasses.replace(points[0], votes=4, accuracy=(1.0,) * n)])
    for key in ("scaling", "scaling_unmerged", "scaling_per_1000"):
        assert data[key]["value"] is data[key]["low"] is data[key]["high"] is None
        assert f"{n} question" in data[key]["reason"] and "at least 10" in data[key]["reason"]
    (said,) = findings(points, data)
    assert said.startswith("No slope and no claim:") and "+" not in said
    assert scaling.scaling(points_of([0.0] * 10, [1.0] * 10)).value == pytest.approx(100.0)


def test_settings_that_all_agree_claim_nothing():
    """Questions' slopes are then 0 up to rounding, all with the same sign: a plain t is certain of that."""
    tokens = [1000.0, 1060.0, 1130.0, 1171.0, 1259.0]
    for accuracy in ([1.0] * 30, [1.0] * 10 + [0.0] * 20):
        points = points_of(*[accuracy] * 5, tokens=tokens)
        (slope,) = comparisons(points)
        assert slope.effect.p == pytest.approx(1.0) and slope.effect.low < -1 and slope.effect.high > 1


@pytest.mark.parametrize("questions, count", [(1, 20), (2, 20), (10, 60), (30, 40), (500, 4)])
def test_reports_of_equal_settings_claim_nothing(simulate, questions, count):
    """The short form of docs/intervals.md. Bootstrap intervals claimed in 77, 26, 8.5 % of reports on 1, 2, 30."""
    generator = np.random.default_rng(6)
    claimed = []
    for settings, kind in ((2, "ignores"), (5, "budgets"), (5, "close")):
        sweep = simulate.Sweep(simulate.Cell(questions, 1, 50, 0.3), settings, kind, continued=kind == "budgets")
        claimed.append(simulate.false_claims(sweep, count, generator))
    assert np.mean(claimed) <= (0.06 if questions >= 10 else 0)


def test_performance_of_everything_right_is_no_certainty():
    best = scaling.performance(points_of([1.0] * 30))
    assert (best.value, best.high) == (1.0, 1.0) and best.low == pytest.approx(0.025 ** (1 / 30))


def test_performance_covers_the_best_true_accuracy():
    """Five equal settings: the largest of five is too high, the interval still holds the truth."""
    generator = np.random.default_rng(7)
    covered, luck = [], []
    for _ in range(400):
        marks = generator.random((5, 30)) < 0.5
        best = scaling.performance(points_of(*marks))
        covered.append(best.low <= 0.5 <= best.high)
        luck.append(best.value - 0.5)
    assert np.mean(covered) >= 0.95 and np.mean(luck) > 0.05


def test_copies_of_a_sample_say_nothing_about_noise():
    """Two equal greedy samples plan what one sample plans: the most that the accuracy allows."""
    for marks in ([1, 0] * 10, [1] * 30, [0] * 30, [1]):
        once = stats.samples_needed([[mark] for mark in marks], 0.01)
        assert once.assumed and stats.samples_needed([[mark] * 2 for mark in marks], 0.01) == once
        assert once.total > 10_000
    textbook = 2 * 0.25 * ((1.959964 + 0.841621) / 0.01) ** 2
    assert stats.samples_needed([[1], [0]] * 10, 0.01).total == pytest.approx(textbook, abs=2)


@pytest.mark.parametrize("samples, rate, likeness", [(2, 50, 0.3), (2, 90, 0), (8, 10, 0.3), (16, 50, 0.3)])
def test_planned_samples_reach_the_power_that_was_planned(simulate, samples, rate, likeness):
    generator = np.random.default_rng(8)
    reached = []
    for chance in simulate.difficulties(simulate.Cell(30, samples, rate, likeness), 200, generator):
        plan = stats.samples_needed(generator.random((30, samples)) < chance[:, None], 0.05)
        error = np.sqrt(2 * np.mean(chance * (1 - chance)) / (30 * plan.per_question))
        reached.append(peer.norm.sf(1.96 - 0.05 / error))
    assert np.mean(np.array(reached) >= 0.8) >= 0.95 and np.median(reached) < 0.99


def test_page_says_whether_noise_was_seen():
    def report(samples):
        plans = [
            {"points": d, "samples": p.total, "samples_per_question": p.per_question, "noise_is_assumed": p.assumed}
            for d in (1, 5, 10)
            if (p := stats.samples_needed(samples, d / 100))
        ]
        return {"questions": len(samples), "samples_to_show": plans}

    greedy, drawn = report([[1, 1], [0, 0]] * 10), report([[1, 0], [0, 0]] * 10)
    assert "a difference of 1 point: 1,963; 5" in page._plan([greedy]) and "do not show it" in page._plan([greedy])
    assert "bounded by what these samples show" in page._plan([drawn])
    assert page._plan([greedy, drawn]) == page._plan([greedy])
