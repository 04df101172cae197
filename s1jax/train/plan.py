"""Which examples each step has and in what shape: a pure function of (seed, step), read and prefetched by grain.

Nothing about the position in the data is saved but the step, so a run goes on with any number of hosts.
"""

import dataclasses
import functools
from collections.abc import Container, Iterator, Sequence

import grain
import numpy as np

from s1jax.config import BadInput
from s1jax.text.render import Row
from s1jax.train.packing import (
    Packed,
    PackingConfig,
    choose_lengths,
    choose_rows,
    fill,
    longest_first,
    loss_weights,
)

PLANNED = 512  # steps that the number of rows is chosen by; all of them for the usual fine-tuning


def steps_per_epoch(rows: int, batch: int) -> int:
    """Steps of an epoch; the last one is completed by wrapping round (1,000 rows in batches of 16: 63)."""
    return -(-rows // batch)


def indices_at(step: int, rows: int, batch: int, seed: int) -> np.ndarray:
    """The examples of a step: batches of the epoch's order, the last of them wrapped round to its beginning.

    The order is that of the random bits of Philox with key (seed, epoch): its stream is the same in every version of
    NumPy, which shuffles are not.
    """
    epoch, batch_in_epoch = divmod(step, steps_per_epoch(rows, batch))
    order = _order(seed, epoch, rows)
    return order[(batch_in_epoch * batch + np.arange(batch)) % rows]


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(rows)
    return np.argsort(bits, kind="stable")


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """What a step needs from the host.

    Attributes:
      arrays: rows `[N, T]`.
      ids: of its examples.
      tokens: loss tokens.
      lengths: positions that each example takes.
    """

    arrays: Packed
    ids: tuple[str, ...]
    tokens: int
    lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shape of every step of a run, known before the first.

    Attributes:
      examples: all rows.
      batch, steps, seed: examples a step, number of steps, seed of the order.
      norm: of the loss, `example` or `token`.
      rows: rows of a step.
      lengths: row lengths in use, ascending.
      kept: for each of them how many positions reach the head, None for all: masked ones are dropped before it.
      is_packed: several examples a row.
      fill: share of all positions that hold an example.
      max_segments: examples in a row at most.
      max_segment_length: positions of the longest example.
    """

    examples: tuple[Row, ...]
    batch: int
    steps: int
    seed: int
    norm: str
    rows: int
    lengths: tuple[int, ...]
    kept: tuple[int | None, ...]
    is_packed: bool
    fill: float
    max_segments: int
    max_segment_length: int

    def at(self, step: int, own: Container[int] | None = None) -> HostBatch:
        """The batch of a step, of which only the rows `own` are filled. A pure function of plan, step and `own`."""
        indices = indices_at(step, len(self.examples), self.batch, self.seed)
        examples = [self.examples[index] for index in indices]
        lengths = [len(row.ids) - 1 for row in examples]
        packed = _deal(lengths, self.rows, self.is_packed)
        fitted = int(np.searchsorted(self.lengths, _longest(lengths, packed)))
        weights = loss_weights(examples, self.norm)
        arrays = fill(examples, packed, self.lengths[fitted], weights, own, self.kept[fitted])
        tokens = sum(row.loss_tokens for row in examples)
        return HostBatch(arrays, tuple(row.id for row in examples), tokens, tuple(lengths))

    def describe(self) -> str:
        """One line: steps, rows, row lengths and how full they are."""
        what = "packed rows" if self.is_packed else "rows of one example"
        lengths = ", ".join(f"{length:,}" for length in self.lengths)
        size = f"{self.steps:,} steps of {self.batch} examples in {self.rows} {what}"
        return f"{size} of {lengths} tokens, {self.fill:.1%} full"


def make_plan(
    examples: Sequence[Row],
    packing: PackingConfig,
    *,
    batch: int,
    steps: int,
    seed: int,
    norm: str,
    row_multiple: int,
    length_multiple: int,
    block: int,
) -> Plan:
    """Fit rows and row lengths to all steps of a run.

    Args:
      row_multiple: rows that the mesh takes at once: `data * fsdp * micro_batch`.
      length_multiple: ways that a row is cut by the mesh (`context`).
      block: no row may be longer, but for rounding up to the multiple, where `packing.longest` says nothing.

    Raises:
      BadInput: the mesh cannot make this batch; the message names the numbers that work.
    """
    block = packing.longest or block
    packing = dataclasses.replace(packing, multiple=int(np.lcm(packing.multiple, length_multiple)))
    lengths = np.array([len(row.ids) - 1 for row in examples])
    of = [lengths[indices_at(step, len(examples), batch, seed)].tolist() for step in range(steps)]
    rows = _rows(of[:PLANNED], packing, batch, row_multiple, block)
    packings = [_deal(step, rows, packing.enabled) for step in of]
    needed = [_longest(step, packed) for step, packed in zip(of, packings, strict=True)]
    if max(needed) > block:
        raise BadInput(
            f"packing.rows={rows}: the fullest row of a step takes {max(needed)} tokens, a row may have {block}; "
            f"use more rows (a multiple of {row_multiple}) or longer ones (packing.longest, by default data.block)"
        )
    fitted = choose_lengths(needed, packing)
    chosen = np.searchsorted(fitted, needed)
    positions = rows * np.asarray(fitted)[chosen].sum()
    in_loss = np.array([row.loss_tokens for row in examples])
    weighed = [
        _longest(in_loss[indices_at(step, len(examples), batch, seed)].tolist(), packed)
        for step, packed in enumerate(packings)
    ]
    most_weighed = [max(n for n, at in zip(weighed, chosen, strict=True) if at == i) for i in range(len(fitted))]
    return Plan(
        examples=tuple(examples),
        batch=batch,
        steps=steps,
        seed=seed,
        norm=norm,
        rows=rows,
        lengths=fitted,
        kept=tuple(_kept(*pair, packing.multiple, length_multiple) for pair in zip(most_weighed, fitted, strict=True)),
        is_packed=packing.enabled,
        fill=float(sum(map(sum, of)) / positions),
        max_segments=max(len(row) for packed in packings for row in packed),
        max_segment_length=int(lengths.max()),
    )


def _kept(weighed: int, length: int, multiple: int, ways: int) -> int | None:
    """Positions to keep before the head, where that drops a tenth of them or more.

    Not where a row is cut over `ways` devices: a device whose part has no prompt could drop nothing.
    """
    kept = -(-weighed // multiple) * multiple
    return kept if ways == 1 and kept <= 0.9 * length else None


def _deal(lengths: Sequence[int], rows: int, is_packed: bool) -> list[list[int]]:
    """The examples of each row, by their index."""
    return longest_first(lengths, rows) if is_packed else [[index] for index in range(rows)]


def _longest(lengths: Sequence[int], packed: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[index] for index in row) for row in packed)


def in_order(
    examples: Sequence[Row],
    plan: Plan,
    *,
    row_multiple: int,
    length_multiple: int,
    own: Container[int] | None = None,
) -> list[HostBatch]:
    """All of `examples`, each once, in batches of the plan's kind and of one shape, weighted to a loss over all."""
    weights = loss_weights(examples, plan.norm)
    rows = -(-plan.rows // row_multiple) * row_multiple
    groups = [range(start, min(start + plan.batch, len(examples))) for start in range(0, len(examples), plan.batch)]
    lengths = [len(row.ids) - 1 for row in examples]

    def pack(group: range) -> list[list[int]]:
        if plan.is_packed:
            return [[group[i] for i in row] for row in longest_first([lengths[i] for i in group], rows)]
        return [[index] for index in group] + [[]] * (rows - len(group))

    packings = [pack(group) for group in groups]
    longest = max(sum(lengths[index] for index in row) for packed in packings for row in packed)
    length = -(-longest // length_multiple) * length_multiple
    return [
        HostBatch(
            fill(examples, packed, length, weights, own),
            tuple(examples[index].id for index in group),
            sum(examples[index].loss_tokens for index in group),
            tuple(lengths[index] for index in group),
        )
        for packed, group in zip(packings, groups, strict=True)
    ]


def _rows(steps: Sequence[Sequence[int]], packing: PackingConfig, batch: int, row_multiple: int, block: int) -> int:
    if packing.enabled and packing.rows is None:
        return choose_rows(steps, row_multiple, block)
    rows, name = (packing.rows or 0, "packing.rows") if packing.enabled else (batch, "global_batch")
    if rows % row_multiple or rows < 1:
        raise BadInput(
            f"{name}={rows} is not a multiple of the {row_multiple} rows that the mesh takes at once (data x fsdp x "
            f"micro_batch); use {_near(rows, row_multiple)}, another mesh or micro_batch"
            + ("" if packing.enabled else ", or packing")
        )
    return rows


def _near(value: int, multiple: int) -> str:
    below = value // multiple * multiple
    return " or ".join(str(n) for n in (below, below + multiple) if n > 0)


def prefetched(plan: Plan, start: int, own: Container[int] | None = None) -> Iterator[HostBatch]:
    """The batches of steps `start`, `start + 1`, ... to the end, made ahead by grain in threads; `own` as in `at`."""
    steps = grain.MapDataset.range(start, plan.steps).map(functools.partial(plan.at, own=own))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
