"""Step-exact packing: the examples of one optimizer step, and no others, in a fixed number of rows. NumPy only.

Packing across steps, as generic packers do it, changes which examples share an update; here only the shape changes.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Container, Sequence

import numpy as np

from s1jax.config import BadInput, Positive
from s1jax.text.render import Row

# Of the positions of a step: a mesh whose rows hold fewer tokens is refused where fewer rows would fill.
LEAST_FILL = 0.75


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """How the examples of a step become rows.

    Attributes:
      enabled: several examples a row; otherwise one.
      rows: rows of a step; None takes the most rows (so the shortest) that waste at most 3 %.
      longest: most positions of a row; None for `data.block`. Longer rows hold more short examples beside a long one.
      shapes: row lengths that may be compiled; twice as many are used where that saves more than 3 % of the positions.
      multiple: row lengths are multiples of it.
    """

    enabled: bool = True
    rows: Positive | None = None
    longest: Positive | None = None
    shapes: Positive = 4
    multiple: Positive = 128


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of equal length T as arrays `[B, T]`.

    Attributes:
      tokens, targets: int32; `targets` is the next id of the same example.
      positions: int32, from 0 in each example.
      segments: int32, 1, 2, ... for the examples of a row, 0 where there is none.
      weights: float32, the weight of a target in the loss; 0 on prompts and padding.
      kept: int32 `[B, M]`, the positions that reach the head, all that have a weight among them; None for all of T.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    kept: np.ndarray | None = None


def longest_first(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Indices of `lengths` dealt to rows: the longest first, each to the row that is shortest so far (LPT)."""
    heap = [(0, row) for row in range(rows)]
    packed: list[list[int]] = [[] for _ in range(rows)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length, row = heapq.heappop(heap)
        packed[row].append(index)
        heapq.heappush(heap, (length + lengths[index], row))
    return packed


def longest_row(lengths: Sequence[int], rows: int) -> int:
    """Length of the longest row that `longest_first` makes."""
    return max(sum(lengths[i] for i in row) for row in longest_first(lengths, rows))


def fit_lengths(needed: Sequence[int], count: int, multiple: int) -> tuple[int, ...]:
    """At most `count` row lengths, multiples of `multiple`, of least sum when each step takes the next length up.

    Exact, by dynamic programming over the distinct lengths: cost O(count * distinct^2).
    """
    rounded = [math.ceil(length / multiple) * multiple for length in needed]
    values, frequency = np.unique(rounded, return_counts=True)
    steps_up_to = np.concatenate([[0], np.cumsum(frequency)])
    n = len(values)
    best = np.where(np.arange(n + 1) == 0, 0.0, np.inf)  # cost of the i shortest with the lengths so far
    choices = []
    for _ in range(min(count, n)):
        # cost[i, j]: values j..i-1 all padded to values[i-1]
        cost = best[None, :] + np.concatenate([[0], values])[:, None] * (steps_up_to[:, None] - steps_up_to[None, :])
        cost[np.triu_indices(n + 1)] = np.inf
        cost[0, 0] = 0.0
        choices.append(cost.argmin(axis=1))
        best = cost.min(axis=1)
    lengths, end = [], n
    for choice in reversed(choices):
        if end:
            lengths.append(int(values[end - 1]))
            end = int(choice[end])
    return tuple(sorted(lengths))


def choose_lengths(needed: Sequence[int], config: PackingConfig) -> tuple[int, ...]:
    """The fewest lengths within 1 % of what `config.shapes` reach; twice `config.shapes` where they save over 3 %."""

    def total(lengths: tuple[int, ...]) -> int:
        return int(np.asarray(lengths)[np.searchsorted(lengths, needed)].sum())

    usual = fit_lengths(needed, config.shapes, config.multiple)
    more = fit_lengths(needed, 2 * config.shapes, config.multiple)
    if config.shapes > 1 and total(more) < 0.97 * total(usual):
        return more
    fewer = (fit_lengths(needed, count, config.multiple) for count in range(1, config.shapes))
    return next((lengths for lengths in fewer if total(lengths) <= 1.01 * total(usual)), usual)


def choose_rows(steps: Sequence[Sequence[int]], multiple: int, block: int) -> int:
    """Rows of a step: the most, in multiples of `multiple`, that fill 97 % of their positions; else the fullest.

    Args:
      steps: lengths of the examples of each step (of some steps, where there are many).
      multiple: the mesh's rows: `data * fsdp * micro_batch`.
      block: no row may be longer.

    Raises:
      BadInput: no number of rows fits, or so many rows that less than `LEAST_FILL` of them are tokens, where fewer
        rows would fill; both shares are named.
    """
    most = max(len(lengths) for lengths in steps)
    filled = functools.partial(_filled, steps, block)
    fills = {rows: filled(rows) for rows in range(multiple, max(most, multiple) + 1, multiple)}
    if not any(fills.values()):
        raise BadInput(
            f"the {most} examples of a step do not fit into any multiple of {multiple} rows up to {most} of "
            f"{block} tokens; use longer rows (packing.longest, by default data.block), a smaller global_batch or a "
            "mesh with fewer data x fsdp rows"
        )
    full = [rows for rows, fill in fills.items() if fill >= 0.97]
    chosen = max(full) if full else max(fills, key=lambda rows: (fills[rows], -rows))
    fewer = {rows: filled(rows) for rows in range(1, multiple) if multiple % rows == 0}
    if fills[chosen] < LEAST_FILL <= max(fewer.values(), default=0.0):
        better = max(rows for rows, fill in fewer.items() if fill >= LEAST_FILL)
        raise BadInput(
            f"the mesh takes {multiple} rows at once (data x fsdp x micro_batch): {chosen} rows of a step would be "
            f"{fills[chosen]:.0%} tokens and else padding, {better} rows {fewer[better]:.0%}; use a mesh that takes "
            f"{better} at once (more context), a larger global_batch, or packing.rows={chosen} to have it so"
        )
    return chosen


def _filled(steps: Sequence[Sequence[int]], block: int, rows: int) -> float:
    """Share of tokens in so many rows, in each step as long as its longest; 0 where that is over `block`."""
    longest = [longest_row(lengths, rows) for lengths in steps]
    return sum(map(sum, steps)) / (rows * sum(longest)) if max(longest) <= block else 0.0


def fill(
    examples: Sequence[Row],
    packed: Sequence[Sequence[int]],
    length: int,
    weights: Sequence[float],
    own: Container[int] | None = None,
    kept: int | None = None,
) -> Packed:
    """The arrays of rows of `length` positions; an example of n ids takes n - 1 (its last id has no target).

    Args:
      examples: what is packed.
      packed: for each row, the indices of its examples.
      weights: for each example, the weight of one of its loss tokens.
      own: rows to fill; the ids of others are not read and their arrays stay zero. None for all.
      kept: how many positions of a row reach the head, at least those that have a weight; None for all.
    """
    shape = (len(packed), length)
    tokens, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
    weight = np.zeros(shape, np.float32)
    for row, indices in enumerate(packed):
        if own is not None and row not in own:
            continue
        start = 0
        for segment, index in enumerate(indices, 1):
            example = examples[index]
            n = len(example.ids) - 1
            at = slice(start, start + n)
            ids = np.asarray(example.ids, np.int32)
            tokens[row, at], targets[row, at] = ids[:-1], ids[1:]
            positions[row, at] = np.arange(n)
            segments[row, at] = segment
            weight[row, start + example.prompt_length - 1 : start + n] = weights[index]
            for begin, end in example.masked:
                weight[row, start + begin - 1 : start + end - 1] = 0.0
            start += n
    order = None if kept is None else np.argsort(weight == 0, axis=1, kind="stable")[:, :kept].astype(np.int32)
    return Packed(tokens, targets, positions, segments, weight, order)


def loss_weights(examples: Sequence[Row], norm: str) -> list[float]:
    """The weight of one loss token of each example, such that the weighted sum over the step is the mean loss.

    `example`: mean over examples of the mean over their tokens (upstream with one sequence a device); `token`: mean
    over all loss tokens. Weights, not shapes, decide what counts, so packing, accumulation and sharding do not.
    """
    counts = [example.loss_tokens for example in examples]
    if norm == "token":
        return [1.0 / sum(counts)] * len(counts)
    return [1.0 / (len(counts) * count) for count in counts]
