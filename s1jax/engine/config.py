"""How an engine is asked for: its slots, length classes and types."""

import dataclasses
from typing import Literal

from s1jax.config import BadInput, Positive, PositiveNumber
from s1jax.models.decoder import DecoderConfig

Type = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How an engine uses its device. Nothing here changes what a row computes, but at near ties.

    Attributes:
      slots: rows at the same time; `auto`: as many as the device's memory holds.
      classes: `(rows, length)` of each length class; None: from `slots` and `max_length`.
      window: steps between two looks of the host.
      max_length: most tokens of prompt and completion; None: the model's.
      weights, cache: types in memory; None: the compute type. int8 weights have a scale per output channel, an int8
        cache one per position and head.
      ahead: dispatch the next window before the last one's report is read. Hides the host; a freed slot waits a window.
      prefill_rows, prefill_smallest, prefill_ids: rows of a prefill program, length of the shortest, and tokens of the
        longest: a longer prompt goes through it in pieces.
      memory_gib: device memory to plan with; None: what the device says that it has.
    """

    slots: Positive | Literal["auto"] = "auto"
    classes: tuple[tuple[int, int], ...] | None = None
    window: Positive = 32
    max_length: Positive | None = None
    weights: Type | None = None
    cache: Type | None = None
    ahead: bool = True
    prefill_rows: Positive = 8
    prefill_smallest: Positive = 64
    prefill_ids: Positive = 2048
    memory_gib: PositiveNumber | None = None


def resolve_classes(config: EngineConfig, model: DecoderConfig, slots: int) -> tuple[tuple[int, int], ...]:
    """The length classes of an engine: those given, or made from the number of slots and the longest row.

    Made ones follow long-tailed traces: of 50 slots 32 hold an eighth of `max_length`, 12 a quarter, 4 a half, 2 all.
    Short engines (up to 1,024 ids) and those of few slots have one class.

    Raises:
      BadInput: no slots, a length above the model's positions, or classes that are not ascending.
    """
    longest = model.max_position if config.max_length is None else config.max_length
    if not 2 <= longest <= model.max_position:
        raise BadInput(
            f"engine.max_length is {longest}; give 2 to {model.max_position}, the positions that the model was made for"
        )
    for name in ("window", "prefill_rows", "prefill_smallest", "prefill_ids"):
        if getattr(config, name) < 1:
            raise BadInput(f"engine.{name} is {getattr(config, name)}; give at least 1")
    if config.classes is None:
        return _spread(slots, longest)
    lengths = [length for _, length in config.classes]
    if not lengths or lengths != sorted(set(lengths)) or min(rows for rows, _ in config.classes) < 1 or lengths[0] < 2:
        raise BadInput(
            f"engine.classes is {[list(c) for c in config.classes]}; give [rows, length] pairs of ascending lengths, "
            "each with at least one row"
        )
    if lengths[-1] != longest and (config.max_length is not None or lengths[-1] > longest):
        raise BadInput(
            f"engine.classes ends at length {lengths[-1]} and engine.max_length is {longest}; make the two equal"
        )
    return config.classes


def _spread(slots: int, longest: int) -> tuple[tuple[int, int], ...]:
    if slots < 1:
        raise BadInput(f"engine.slots is {slots}; give at least 1, or auto")
    if longest <= 1024 or slots < 4:
        return ((slots, longest),)
    sizes = {2: max(1, slots * 4 // 50), 1: max(1, slots * 12 // 50), 3: max(1, slots * 2 // 50)}
    sizes[0] = slots - sum(sizes.values())
    return tuple((sizes[i], -(-longest // 2 ** (3 - i))) for i in range(4))
