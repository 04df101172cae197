"""How often the intervals of a report cover the truth, and how often a report claims what is not there.

    .venv/bin/python tools/simulate_intervals.py [--seed 0] [--share 1.0] [--jobs 1]

Writes docs/intervals.md; `--share 0.05` runs a twentieth of the experiments. Intervals are those of
`s1jax.eval.stats.mean_limits`; reports are made of samples by `summary.summarise`, `summary.points`, `scaling.to_json`
and `findings.findings`, the road of the verb `report`. Whole, it takes about half an hour of one core.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.eval import scaling, stats, summary
from s1jax.eval.findings import findings
from s1jax.eval.summary import Score, Setting
from s1jax.methods.single import SingleConfig

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "intervals.md"
SAMPLES = (1, 8, 64)
RATES = (3, 3.5, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97)
LIKENESS = (0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1)
CLAIM = re.compile("raised|lowered|helped|hurt")
EFFECTS = ((3, 6), (3, 10), (10, 20), (50, 60), (90, 97), (0, 3), (0, 10), (30, 90), (97, 100))
KEPT = 0.7  # share of answers that the next setting keeps where settings go on from one another


@dataclasses.dataclass(frozen=True)
class Cell:
    """One kind of experiment.

    Attributes:
      samples: of each question.
      rate: share right of a question that is not dead, in percent.
      likeness: intraclass correlation: 0, all questions alike; 1, each wholly right or wholly wrong; beta between.
      dead: half of all questions are never right.
    """

    questions: int
    samples: int
    rate: float
    likeness: float
    dead: bool = False

    @property
    def truth(self) -> float:
        """Share right over all questions there could be."""
        return self.rate / 100 * (0.5 if self.dead else 1)

    def __str__(self) -> str:
        dead = ", half dead" if self.dead else ""
        return f"{self.rate:g} %, {self.samples} sample{'s' * (self.samples > 1)}, likeness {self.likeness:g}{dead}"


def cells(questions: int, rates: Sequence[float] = RATES, likeness: Sequence[float] = LIKENESS) -> list[Cell]:
    """The grid at a number of questions."""
    kinds = itertools.product(SAMPLES, rates, likeness, (False, True))
    return [Cell(questions, *kind) for kind in kinds]


def difficulties(cell: Cell, count: int, generator: np.random.Generator) -> np.ndarray:
    """Chance to be right of each question, [experiment, question]."""
    shape, rate = (count, cell.questions), cell.rate / 100
    if cell.likeness == 0 or rate in (0, 1):
        chance = np.full(shape, rate)
    elif cell.likeness == 1:
        chance = (generator.random(shape) < rate).astype(float)
    else:
        strength = 1 / cell.likeness - 1
        chance = generator.beta(rate * strength, (1 - rate) * strength, shape)
    return chance * (generator.random(shape) < 0.5) if cell.dead else chance


def measure(cell: Cell, count: int, generator: np.random.Generator) -> tuple[float, float, float, float]:
    """(coverage, mean width, coverage of the t interval, its mean width) of 95 % intervals in `count` experiments."""
    means = generator.binomial(cell.samples, difficulties(cell, count, generator)) / cell.samples
    low, high = stats.mean_limits(means)
    reach = -special.stdtrit(cell.questions - 1, 0.025) * means.std(axis=1, ddof=1) / cell.questions**0.5
    found = []
    for lower, upper in ((low, high), (means.mean(axis=1) - reach, means.mean(axis=1) + reach)):
        found += [np.mean((lower <= cell.truth) & (cell.truth <= upper)), np.mean(upper - lower)]
    return found[0], found[1], found[2], found[3]


def coverage_line(questions: int, count: int, again_count: int, generator: np.random.Generator) -> str:
    """A line of the table: the worst of the grid, found with `count` experiments a cell and measured anew."""
    grid = cells(questions)
    found = {cell: measure(cell, count, generator) for cell in grid}
    worst = sorted(grid, key=lambda cell: found[cell][0])[:12]
    again = {cell: measure(cell, again_count, generator)[0] for cell in worst}
    cell = min(worst, key=lambda cell: again[cell])
    middle = [found[cell] for cell in grid if cell.rate == 50 and not cell.dead]
    ratio = max(width / of_t for _, width, _, of_t in middle)
    width, of_t = np.mean([row[1] for row in middle]), np.mean([row[3] for row in middle])
    t = 100 * min(row[2] for row in found.values())
    seen = f"{count:,}, {again_count:,} | {100 * again[cell]:.1f} % | {cell}"
    return f"| {questions} | {seen} | {width:.3f} | {of_t:.3f} | {ratio:.2f} | {t:.1f} % |"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings that do not differ in accuracy.

    Attributes:
      settings: how many.
      sweep: `budgets` doubles the tokens, `close` gives all settings nearly the same, `ignores` ignores 0, 1, ... ends.
      continued: settings go on from one another and keep most answers, as budgets of one greedy row do.
      votes: majority votes stand beside them (at 50 % a vote gains nothing).
    """

    cell: Cell
    settings: int
    sweep: str
    continued: bool = False
    votes: bool = False


def sweeps(questions: int) -> list[Sweep]:
    """The grid at a number of questions."""
    found = []
    for settings, sweep, continued in itertools.product((2, 3, 5, 8), ("budgets", "close", "ignores"), (False, True)):
        for rate, likeness, samples in ((5, 0.3, 1), (20, 0, 1), (50, 0.3, 1), (50, 0, 4), (90, 0.5, 4)):
            found.append(Sweep(Cell(questions, samples, rate, likeness), settings, sweep, continued))
    for settings in (2, 8):
        found.append(Sweep(Cell(questions, 4, 50, 0), settings, "budgets", votes=True))
    return found


def marks_of(sweep: Sweep, generator: np.random.Generator) -> np.ndarray:
    """Which samples are right, [setting, question, sample]."""
    chance = difficulties(sweep.cell, 1, generator)[0][:, None]
    fresh = generator.random((sweep.settings, sweep.cell.questions, sweep.cell.samples)) < chance
    if sweep.continued:
        for i in range(1, sweep.settings):
            is_kept = generator.random(fresh[i].shape) < KEPT
            fresh[i] = np.where(is_kept, fresh[i - 1], fresh[i])
    return fresh


def sentences(sweep: Sweep, generator: np.random.Generator) -> list[str]:
    """What the report of a sweep without effect says. Wrong samples think longer."""
    reports, marks = [], marks_of(sweep, generator)
    for i in range(sweep.settings):
        control = BudgetConfig(thinking_token_budget=100_000 + i)
        size = {"budgets": 200 * 2**i, "close": 1000 + 30 * i, "ignores": 1000 + 300 * i}[sweep.sweep]
        if sweep.sweep == "ignores":
            control = BudgetConfig(thinking_n_ignore=i)
        tokens = (size * generator.lognormal(0, 0.4, marks[i].shape) * np.where(marks[i], 1, 1.3)).astype(int)
        setting = Setting("", control, SamplingConfig(n=sweep.cell.samples, temperature=1.0), SingleConfig())
        scores = [
            Score(str(q), s, bool(right), "right" if right else "wrong", bool(right), n, n + 50, 0, "stop", "natural")
            for q, row in enumerate(marks[i])
            for s, (right, n) in enumerate(zip(row, map(int, tokens[q]), strict=True))
        ]
        reports.append(summary.summarise(scores, setting, "exact", benchmark="none", model="none"))
    points = [point for point in summary.points(reports) if sweep.votes or point.votes == 1]
    return findings(points, scaling.to_json(points))


def false_claims(sweep: Sweep, count: int, generator: np.random.Generator) -> float:
    """Share of `count` reports that claim an effect."""
    return float(np.mean([any(map(CLAIM.search, sentences(sweep, generator))) for _ in range(count)]))


def claims_line(questions: int, count: int, again_count: int, generator: np.random.Generator) -> str:
    """A line of the table: the worst of the grid, found with `count` reports each and measured anew."""
    grid = sweeps(questions)
    found = {sweep: false_claims(sweep, count, generator) for sweep in grid}
    sweep = max(grid, key=lambda sweep: found[sweep])
    again = false_claims(sweep, again_count, generator)
    kind = f"{sweep.settings} {sweep.sweep}{', continued' * sweep.continued}{', votes' * sweep.votes}, {sweep.cell}"
    mean = 100 * np.mean(list(found.values()))
    return f"| {questions} | {count:,}, {again_count:,} | {mean:.1f} % | {100 * again:.1f} % | {kind} |"


def power_line(cell: Cell, points: int, count: int, generator: np.random.Generator) -> str:
    """A line of the table: how the power of plans made from `count` pilots comes out, by the true noise."""
    reached = []
    for chance in difficulties(cell, count, generator):
        pilot = generator.random((cell.questions, cell.samples)) < chance[:, None]
        plan = stats.samples_needed(pilot, points / 100)
        error = np.sqrt(2 * np.mean(chance * (1 - chance)) / (plan.per_question * cell.questions))
        reached.append(special.ndtr(points / 100 / error - special.ndtri(0.975)) if error > 0 else 1.0)
    enough = 100 * np.mean(np.array(reached) >= 0.8)
    return f"| {cell.questions} | {cell} | {points} | {enough:.1f} % | {100 * np.median(reached):.0f} % |"


def measure_difference(first: Cell, second: Cell, count: int, generator: np.random.Generator) -> float:
    """Coverage of the 95 % interval of second - first over the same questions, in `count` experiments."""
    means = [
        generator.binomial(cell.samples, difficulties(cell, count, generator)) / cell.samples
        for cell in (first, second)
    ]
    low, high, _ = stats.effect_limits(means[1] - means[0], 1.0)
    truth = second.truth - first.truth
    return float(np.mean((low <= truth) & (truth <= high)))


def differences(questions: int) -> list[tuple[Cell, Cell]]:
    """The grid of pairs at a number of questions."""
    kinds = itertools.product(SAMPLES, EFFECTS, (0, 0.3, 0.8))
    return [
        (Cell(questions, samples, first, likeness), Cell(questions, samples, second, likeness))
        for samples, (first, second), likeness in kinds
    ]


def difference_line(questions: int, count: int, generator: np.random.Generator) -> str:
    """A line of the table: the worst of the grid, found with `count` experiments a pair and measured anew with more."""
    found = {pair: measure_difference(*pair, count, generator) for pair in differences(questions)}
    worst = sorted(found, key=lambda pair: found[pair])[:5]
    again = {pair: measure_difference(*pair, 5 * count, generator) for pair in worst}
    first, second = min(worst, key=lambda pair: again[pair])
    return f"| {questions} | {100 * again[first, second]:.1f} % | {first.rate:g} % -> {second} |"


COVERAGE_COUNTS = ((30, 3000), (50, 2000), (100, 1000), (200, 500), (500, 300))
AGAIN = 600_000  # questions simulated for each of the worst cells
CLAIM_COUNTS = ((1, 10, 200), (2, 10, 200), (10, 30, 1500), (30, 20, 1000), (500, 2, 300))
PILOTS = ((1, 50, 0.3), (2, 50, 0.3), (2, 90, 0), (2, 50, 1), (8, 10, 0.3), (64, 50, 0.3))


def tables(share: float) -> list[list[tuple[Any, ...]]]:
    """The tables, each line as a function and its arguments but the generator."""
    few, many = (lambda count, least=least: max(least, int(share * count)) for least in (1, 20))
    return [
        [(coverage_line, questions, many(count), AGAIN // questions) for questions, count in COVERAGE_COUNTS],
        [(claims_line, questions, few(count), many(again)) for questions, count, again in CLAIM_COUNTS],
        [(power_line, Cell(30, *pilot), 5, many(2000)) for pilot in PILOTS],
        [(difference_line, questions, many(200_000 // questions)) for questions in (10, 30, 100, 500)],
    ]


def line(job: tuple[Any, ...], seed: Sequence[int]) -> str:
    """A line of a table; the generator is its own, so that lines may be made side by side."""
    make, *arguments = job
    return make(*arguments, np.random.default_rng(seed))


INTRODUCTION = """# How often the intervals cover, and how often a report claims what is not there

Simulated by `{command}`, which writes this page; `tests/eval/test_eval_intervals.py` runs a short form.

## Intervals of an accuracy

95 % intervals, simulated over 1, 8 and 64 samples a question, 22 rates from 3 to 97 %, questions that are all alike
(likeness 0), differ as a beta distribution (intraclass correlation 0.01 to 0.9) or are wholly right or wrong (1), with
and without one half of all questions dead (never right). The twelve worst of the 1,320 cells were measured anew: the
counts are experiments in each cell before and after. Widths are means over samples and likeness at 50 %; "widest" is
the largest ratio of the two in any of these cells.

| questions | experiments | worst coverage | where | width | width of t | widest, of t | worst coverage of t |
|---|---|---|---|---|---|---|---|"""
CLAIMS = """
## Reports of settings that do not differ

Whole reports, made of samples, of 2, 3, 5 and 8 settings that are equally accurate: budgets that double the tokens,
settings of nearly the same tokens, ignored ends; independent or continued (each setting keeps 70 % of the answers of
the one before); 5 to 90 % right; wrong answers think longer. The worst of the 122 kinds was measured anew: the counts
are reports of each kind before and after.

| questions | reports | that claim an effect, mean | worst | where |
|---|---|---|---|---|"""
POWER = """
## Planned samples

The power that a plan for a difference of so many points (80 % wanted) has by the true noise within a question.

| questions | pilot | points | plans that reach 80 % | median power |
|---|---|---|---|---|"""
DIFFERENCES = """
## Intervals of a difference

95 % intervals of the difference between two settings that do differ, over the same questions: 1, 8 and 64 samples, nine
pairs of rates from 0 to 100 %, likeness 0, 0.3 and 0.8. The five worst of the 81 pairs were measured anew with five
times the experiments.

| questions | worst coverage | where |
|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=pathlib.Path, default=PAGE)
    arguments = parser.parse_args()
    few = f" --share {arguments.share:g}" if arguments.share < 1 else ""
    heads = (
        INTRODUCTION.format(command=f"tools/simulate_intervals.py --seed {arguments.seed}{few}"),
        CLAIMS,
        POWER,
        DIFFERENCES,
    )
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        made = [
            [pool.submit(line, job, (arguments.seed, table, number)) for number, job in enumerate(jobs)]
            for table, jobs in enumerate(tables(arguments.share))
        ]
        text = "".join(
            "\n".join([head, *(row.result() for row in rows), ""]) for head, rows in zip(heads, made, strict=True)
        )
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
