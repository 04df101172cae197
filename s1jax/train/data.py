"""From data sets to the batches of each step, a pure function of (seed, step); read and prefetched by grain.

Nothing about the position in the data is saved but the step, so a run goes on with any number of hosts.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import grain
import numpy as np

from s1jax.config import BadInput
from s1jax.render import Row, render_row
from s1jax.tables import load_rows
from s1jax.tokens import PRESETS, Markers, Tokenizer
from s1jax.train.packing import (
    Packed,
    PackingConfig,
    choose_lengths,
    choose_rows,
    fill,
    longest_first,
    longest_row,
    loss_weights,
)

PLANNED = 512  # steps that the number of rows is chosen by; all of them for the usual fine-tuning


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows, and how they are rendered.

    Attributes:
      rows: data sets (file, folder or hub id), one after another.
      split: of a hub data set.
      preset: thinking markers, a key of `tokens.PRESETS`.
      markers: four texts of one's own instead of a preset.
      teacher: which trace where a row has several (`deepseek`, `gemini`).
      system: a system turn; None for what the chat template puts by itself.
      answer_prefix: put before an answer that lacks it; None for none.
      block: most ids of an example (upstream's block size).
      over_length: what happens to longer ones. `keep` cuts them, and then their answer is lost.
    """

    rows: str | tuple[str, ...]
    split: str = "train"
    preset: str = "s1"
    markers: Markers | None = None
    teacher: str = ""
    system: str | None = None
    answer_prefix: str | None = "Answer: "
    block: int = 32768
    over_length: Literal["error", "drop", "keep"] = "error"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rendered rows, and what became of those over the block."""

    rows: tuple[Row, ...]
    dropped: int
    cut: int

    def describe(self) -> str:
        """One line: rows, ids, the share in the loss, the longest, and what was dropped or cut."""
        lengths = [len(row.ids) for row in self.rows]
        loss = sum(len(row.ids) - row.prompt_length for row in self.rows)
        text = f"{len(lengths):,} rows, {sum(lengths):,} ids ({loss:,} in the loss), the longest {max(lengths):,}"
        lost = [f"{n:,} {what}" for n, what in ((self.dropped, "dropped"), (self.cut, "cut")) if n]
        return text + (f"; over the block: {', '.join(lost)}" if lost else "")


def load_examples(config: DataConfig, tokenizer: Tokenizer, rows: str | tuple[str, ...] | None = None) -> Examples:
    """Render every row of `config.rows` (or of `rows`, with the same settings).

    Raises:
      BadInput: no such data or preset; a row without question, trace or answer; a row over the block under the policy
        `error`; a row that has no loss token left. Rows are named.
    """
    if config.preset not in PRESETS:
        raise BadInput(f"data.preset={config.preset!r} is not known; use one of {', '.join(PRESETS)}")
    markers = config.markers or PRESETS[config.preset]
    sources = config.rows if rows is None else rows
    rendered = []
    for source in (sources,) if isinstance(sources, str) else sources:
        for number, row in enumerate(load_rows(source, split=config.split), 1):
            rendered.append(
                render_row(
                    row,
                    tokenizer,
                    markers,
                    where=f"{source} row {number}",
                    teacher=config.teacher,
                    system=config.system,
                    answer_prefix=config.answer_prefix,
                )
            )
    return within_block(rendered, config.block, config.over_length)


def within_block(rows: Sequence[Row], block: int, policy: str) -> Examples:
    """Apply the policy for rows of more than `block` ids. Raises BadInput as `load_examples`."""
    long = [row for row in rows if len(row.ids) > block]
    if long and policy == "error":
        longest = max(len(row.ids) for row in long)
        named = ", ".join(f"{row.id} ({len(row.ids)})" for row in long[:3])
        raise BadInput(
            f"{len(long)} of {len(rows)} rows are longer than data.block={block} ids: {named}; set data.block="
            f"{longest}, or data.over_length=drop, or =keep (it cuts them, and what is trained on cut answers does not "
            "learn to stop)"
        )
    kept = [row for row in rows if len(row.ids) <= block or policy == "keep"]
    cut = [dataclasses.replace(row, ids=row.ids[:block]) if len(row.ids) > block else row for row in kept]
    if not cut:
        raise BadInput(f"no row is left: all {len(rows)} are longer than data.block={block} ids; set a longer block")
    for row in cut:
        if not 0 < row.prompt_length < len(row.ids):
            raise BadInput(
                f"row {row.id!r} has no loss token: its prompt takes {row.prompt_length} of {len(row.ids)} ids "
                f"(data.block={block}); drop the row or set a longer block"
            )
    return Examples(tuple(cut), len(rows) - len(kept), len(long) if policy == "keep" else 0)


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
      is_packed: several examples a row.
      fill: share of all positions that hold an example.
    """

    examples: tuple[Row, ...]
    batch: int
    steps: int
    seed: int
    norm: str
    rows: int
    lengths: tuple[int, ...]
    is_packed: bool
    fill: float

    def at(self, step: int) -> HostBatch:
        """The batch of a step. A pure function of the plan and the step."""
        indices = indices_at(step, len(self.examples), self.batch, self.seed)
        examples = [self.examples[index] for index in indices]
        lengths = [len(row.ids) - 1 for row in examples]
        packed = longest_first(lengths, self.rows) if self.is_packed else [[index] for index in range(self.rows)]
        needed = max(sum(lengths[index] for index in row) for row in packed)
        length = self.lengths[int(np.searchsorted(self.lengths, needed))]
        arrays = fill(examples, packed, length, loss_weights(examples, self.norm))
        tokens = sum(len(row.ids) - row.prompt_length for row in examples)
        return HostBatch(arrays, tuple(row.id for row in examples), tokens, tuple(lengths))

    def describe(self) -> str:
        """One line: steps, rows, row lengths and how full they are."""
        what = "packed rows" if self.is_packed else "rows of one example"
        lengths = ", ".join(f"{length:,}" for length in self.lengths)
        size = f"{self.steps:,} steps of {self.batch} examples in {self.rows} {what}"
        return f"{size} of {lengths} ids, {self.fill:.1%} full"


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
      block: no row may be longer, but for rounding up to the multiple.

    Raises:
      BadInput: the mesh cannot make this batch; the message names the numbers that work.
    """
    multiple = int(np.lcm(packing.multiple, length_multiple))
    packing = dataclasses.replace(packing, multiple=multiple)
    lengths = np.array([len(row.ids) - 1 for row in examples])

    def of(step: int) -> list[int]:
        return lengths[indices_at(step, len(examples), batch, seed)].tolist()

    if packing.enabled:
        rows = _packed_rows([of(step) for step in range(min(steps, PLANNED))], packing, batch, row_multiple, block)
        needed = [longest_row(of(step), rows) for step in range(steps)]
        if max(needed) > block:
            raise BadInput(
                f"packing.rows={rows}: the fullest row of a step takes {max(needed)} ids, data.block is {block}; use "
                f"more rows (a multiple of {row_multiple}) or a longer block"
            )
    else:
        rows = batch
        if batch % row_multiple:
            raise BadInput(
                f"global_batch={batch} is not a multiple of the {row_multiple} rows that the mesh takes at once (data "
                f"x fsdp x micro_batch); use {_near(batch, row_multiple)}, another mesh or micro_batch, or packing"
            )
        needed = [max(of(step)) for step in range(steps)]
    fitted = choose_lengths(needed, packing)
    positions = rows * np.asarray(fitted)[np.searchsorted(fitted, needed)].sum()
    held = sum(int(sum(of(step))) for step in range(steps))
    return Plan(tuple(examples), batch, steps, seed, norm, rows, fitted, packing.enabled, float(held / positions))


def in_order(examples: Sequence[Row], plan: Plan, *, row_multiple: int, length_multiple: int) -> list[HostBatch]:
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
            fill(examples, packed, length, weights),
            tuple(examples[index].id for index in group),
            sum(len(examples[index].ids) - examples[index].prompt_length for index in group),
            tuple(lengths[index] for index in group),
        )
        for packed, group in zip(packings, groups, strict=True)
    ]


def _packed_rows(
    steps: Sequence[Sequence[int]], packing: PackingConfig, batch: int, row_multiple: int, block: int
) -> int:
    if packing.rows is None:
        return choose_rows(steps, row_multiple, block)
    if packing.rows % row_multiple or packing.rows < 1:
        raise BadInput(
            f"packing.rows={packing.rows} is not a multiple of the {row_multiple} rows that the mesh takes at once "
            f"(data x fsdp x micro_batch); use {_near(packing.rows, row_multiple)}, or leave it out"
        )
    return packing.rows


def _near(value: int, multiple: int) -> str:
    below = value // multiple * multiple
    return " or ".join(str(n) for n in (below, below + multiple) if n > 0)


def prefetched(plan: Plan, start: int) -> Iterator[HostBatch]:
    """The batches of steps `start`, `start + 1`, ... to the end, made ahead by grain in threads."""
    steps = grain.MapDataset.range(start, plan.steps).map(plan.at)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
