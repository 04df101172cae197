"""How long the examples of a recipe are: its own rows where they are at hand, else a recorded distribution."""

import dataclasses
import pathlib

import numpy as np

from s1jax.config import BadInput
from s1jax.text.render import Row
from s1jax.train.config import TrainRun
from s1jax.train.data import Examples, load_examples, within_block
from s1jax.train.setup import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of examples by length, in tokens of Qwen2.5.

    Attributes:
      source: where it was read.
      first, width: tokens at which the first bin begins, and of each bin.
      counts: examples of each bin.
    """

    source: str
    first: float
    width: float
    counts: tuple[int, ...]

    def quantiles(self, count: int) -> np.ndarray:
        """Lengths of so many examples, at the middles of equal shares, the examples of a bin spread evenly over it."""
        edges = self.first + self.width * np.arange(len(self.counts) + 1)
        below = np.concatenate([[0], np.cumsum(self.counts)]) / sum(self.counts)
        return np.interp((np.arange(count) + 0.5) / count, below, edges)


_TRACES = "histogram of the 1,000 traces in simplescaling/s1@77272c6 visuals/s11/traces.pdf, read from its coordinates"
_WIDTH = (26238 - 356) / 50
LENGTHS = {
    "s1k": Histogram(_TRACES, 356, _WIDTH, (14, 42, 23, 20, 16, 34, 72, 136, 159, 197, 167, 53, 49, 14, 4)),
    "s1k_deepseek": Histogram(
        _TRACES,
        356,
        _WIDTH,
        (1, 14, 9, 21, 20, 29, 41, 30, 41, 30, 46, 38, 31, 46, 40, 44, 39, 48, 24, 30, 48, 22, 28, 34, 27)
        + (23, 20, 37, 28, 21, 32, 26, 7, 5, 6, 3, 3, 1, 0, 2, 1, 0, 1, 1, 0, 0, 0, 0, 0, 2),
    ),
}
"""Traces alone: their mean is the 4.7K tokens that s1 states for a row of s1K. Question and answer come on top: 742 to
1,783 tokens in the seven whole rows that are public (1,038 in the mean); `mean_tokens` counts them in."""


def examples_of(config: TrainRun, lengths: str, count: int, mean_tokens: int | None) -> tuple[Examples, str]:
    """The examples to plan for, and in words where their lengths are from.

    Args:
      lengths: `rows`, the recipe's own; a key of `LENGTHS`; `auto`: own rows that are local, with a local tokenizer,
        else s1K's by `data.teacher`.
      count: examples of a recorded distribution.
      mean_tokens: scales a recorded distribution to this mean; None leaves it.

    Raises:
      BadInput: `lengths` is none of these, or what reading the rows finds wrong.
    """
    if lengths == "rows" or (lengths == "auto" and mean_tokens is None and _are_at_hand(config)):
        return load_examples(config.data, load_tokenizer(config)), "the recipe's own rows"
    if lengths == "auto":
        lengths = "s1k_deepseek" if config.data.teacher == "deepseek" else "s1k"
    if lengths not in LENGTHS:
        raise BadInput(f"lengths={lengths!r} is not known; use auto, rows or one of {', '.join(LENGTHS)}")
    sizes = LENGTHS[lengths].quantiles(count)
    if mean_tokens is not None:
        sizes *= mean_tokens / sizes.mean()
    # All but the first token weigh in the loss: of prompts nothing is known, and they are a small part of these rows.
    rows = [Row(str(i), (0,) * max(2, round(size)), 1) for i, size in enumerate(sizes)]
    examples = within_block(rows, config.data.block, config.data.over_length)
    tokens = sum(len(row.ids) for row in examples.rows)
    said = (
        f"{len(examples.rows):,} examples as long as those of {lengths}, {tokens / len(examples.rows):,.0f} tokens each"
    )
    return examples, said + (f" ({examples.dropped:,} over data.block dropped)" if examples.dropped else "")


def _are_at_hand(config: TrainRun) -> bool:
    sources = (config.data.rows,) if isinstance(config.data.rows, str) else config.data.rows
    tokenizer = config.tokenizer or (config.model if isinstance(config.model, str) else "")
    return all(source and pathlib.Path(source).exists() for source in sources) and pathlib.Path(tokenizer).is_dir()
