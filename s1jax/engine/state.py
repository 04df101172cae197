"""What decoding holds: the arrays of rows and cache, and what the host reads of a window. Data only.

Letters here: B row of the engine, S position, T position counted from the lowest one that a window changed in the row.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from s1jax.engine import cache as kv
from s1jax.engine.sampling import SamplingParams

MAX_KEPT = 4  # prefilled batches that are kept because requests with their prompts still wait

CachedPrompt = tuple[tuple[kv.Slots, ...], int]
"""Cached positions, per layer, and which row of them."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a compiled window is made for.

    Attributes:
      classes: `(rows, length)` of each length class, shortest first.
      window: steps.
      dtype: type of the forward pass.
    """

    classes: tuple[tuple[int, int], ...]
    window: int
    dtype: str

    @property
    def rows(self) -> int:
        """Rows of all classes."""
        return sum(rows for rows, _ in self.classes)

    @property
    def max_length(self) -> int:
        """Length of the largest class."""
        return self.classes[-1][1]

    @property
    def capacity_B(self) -> np.ndarray:
        """Length of each row's class."""
        return np.repeat([length for _, length in self.classes], [rows for rows, _ in self.classes]).astype(np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceRows:
    """What the engine knows of rows beside the cache; leading axis B.

    Attributes:
      tokens_BS: int32 ids by position, prompt included. forced_BS: bool, put there by the control.
      logprob_BS: float32 log-softmax of the raw logits; NaN where ids were taken back under the id, so that the logits
        at hand were those of another position; 0 where nobody asked.
      length_B: int32 number of ids.
      status_B: int32 RUN, PAUSE or DONE (also: empty).
      control: state of the control.
      draw: sampling parameters.
    """

    tokens_BS: jax.Array
    forced_BS: jax.Array
    logprob_BS: jax.Array
    length_B: jax.Array
    status_B: jax.Array
    control: Any
    draw: SamplingParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EngineState:
    """All that a window changes; donated to it."""

    cache: kv.Cache
    row: DeviceRows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """What the host reads of a window; its own arrays, since the state goes on into the next window at once.

    Attributes:
      low_B: lowest position that can have changed; the row's length at the end is at most T above it.
      tokens_BT, forced_BT, logprob_BT: from position `low` on.
      length_B, status_B: at the window's end.
      control: states at the window's end.
      n_steps: int32, steps that rows ran, summed over rows.
    """

    low_B: jax.Array
    tokens_BT: jax.Array
    forced_BT: jax.Array
    logprob_BT: jax.Array
    length_B: jax.Array
    status_B: jax.Array
    control: Any
    n_steps: jax.Array
