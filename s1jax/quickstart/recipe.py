"""Every number of the quickstart, each with its reason. `docs/decisions/quickstart_task.md` has the measurements."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Words:
    """How words are drawn.

    Attributes:
      shortest, longest: letters, drawn uniformly. Lengths differ so that first passes end at different budgets, which
        makes the accuracy rise with every token of the budget instead of at one; 12 letters are 6 pairs, three checks.
      doubled: weights of 0, 1, 2, 3 pairs `rr`. 45 % without one is what a first pass can answer. A
        later pair is doubled more often, so that the third check, the rarest, has something to find.
      single: chance that another pair holds one `r`.
      most: more `r` than that and the word is drawn again, so that a number is one of seven.
    """

    shortest: int = 5
    longest: int = 12
    doubled: tuple[float, ...] = (0.45, 0.25, 0.18, 0.12)
    single: float = 0.25
    most: int = 6


@dataclasses.dataclass(frozen=True)
class TeacherHabits:
    """How traces are written.

    Attributes:
      pairs: pairs that one `Wait` checks.
      stop: chance to stop, right or wrong, after the first pass and after each check while pairs are left. Well above
        one half, so that greedy decoding stops there (0.52 did not hold for every seed); the last is lower, since third
        checks are rare and must be seen.
      stop_checked: the same after all pairs have been checked.
      most_waits: the longest word needs three; the fourth teaches that nothing is left to check.
      hasty: share of traces that break off within the first pass. Their answer is the estimate so far, which is what
        a trace cut by a budget has to answer; without them the model guesses the count from the question.
    """

    pairs: int = 2
    stop: tuple[float, ...] = (0.58, 0.57, 0.54)
    stop_checked: float = 0.65
    most_waits: int = 4
    hasty: float = 0.1


@dataclasses.dataclass(frozen=True)
class Junk:
    """Rows for curation to remove, as shares of the pool.

    Attributes:
      near_duplicate: a held-out question in capitals, with commas, or with wide spaces (decontamination).
      duplicate: a question of the pool, asked again (deduplication).
      malformed: no trace, no answer, or a trace that spells out a thinking marker (quality).
      too_easy: words of 2 or 3 letters, which `solver` counts (difficulty).
    """

    near_duplicate: float = 0.02
    duplicate: float = 0.02
    malformed: float = 0.02
    too_easy: float = 0.03


@dataclasses.dataclass(frozen=True)
class QuickstartSizes:
    """Sizes of the run.

    Attributes:
      words, teacher, junk: what the pool is made of.
      pool, pool_seed: rows before curation.
      held_out, held_out_seed: questions of the evaluation.
      row_length: ids of one training row; no row of the pool is longer.
      D, L, K, G, H, F, rope_theta: shape of the model, 0.18M parameters with 520 ids. Smaller was not tried.
      batch, steps, learning_rate, warmup_steps, b2, weight_decay: AdamW with cosine to zero and clip 1. First
        passes are learned in 400 steps, third checks in 2,000, better with decay than without.
      norm: loss over tokens, so that a token of the rare long traces counts as much as any other.
      budgets: thinking tokens; 1 is the newline after the header, so nothing is looked at; 8 is the longest natural
        trace.
      n_ignore: the longest word is wholly checked at three.
      votes, temperature: samples of the majority vote.
    """

    words: Words = Words()
    teacher: TeacherHabits = TeacherHabits()
    junk: Junk = Junk()
    pool: int = 12_000
    pool_seed: int = 1
    held_out: int = 1_000
    held_out_seed: int = 2
    row_length: int = 57
    D: int = 64
    L: int = 3
    K: int = 2
    G: int = 2
    H: int = 16
    F: int = 192
    rope_theta: float = 1e4
    batch: int = 32
    steps: int = 2_000
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    b2: float = 0.98
    weight_decay: float = 0.1
    norm: Literal["token", "sequence"] = "token"
    budgets: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    n_ignore: tuple[int, ...] = (0, 1, 2, 4)
    votes: tuple[int, ...] = (2, 4, 8)
    temperature: float = 0.8


RECIPE = QuickstartSizes()
