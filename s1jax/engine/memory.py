"""How many slots a device's memory holds, and a line that says where the memory goes."""

import dataclasses
import os
from typing import Any

import jax

from s1jax.config import BadInput
from s1jax.engine.cache import Size
from s1jax.engine.config import EngineConfig, resolve_classes
from s1jax.engine.prefill import CHUNK
from s1jax.engine.state import MAX_KEPT
from s1jax.models.decoder import DecoderConfig, Unstacked

GIB = 2**30
# Above this the products are bound by arithmetic: more rows at once make each slower. A CPU is there much sooner.
MOST_SLOTS, MOST_SLOTS_CPU = 256, 16
# Part of the memory that is planned with; the rest is the allocator's, the runtime's and cuDNN's.
USABLE = 0.92


@dataclasses.dataclass(frozen=True)
class EngineMemory:
    """Bytes on one device.

    Attributes:
      weights, cache, work: what they take; `work` is an estimate: logits, the largest prefill, one row on its way.
      limit: what there is.
      classes: length classes.
      most_slots: slots that fit, or 0 where their number was given.
    """

    weights: int
    cache: int
    work: int
    limit: int
    classes: tuple[tuple[int, int], ...]
    most_slots: int = 0

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {getattr(self, name) / GIB:.3g}" for name in ("weights", "cache", "work"))
        shown = ", ".join(f"{rows} x {length}" for rows, length in self.classes)
        return f"{parts} of {self.limit / GIB:.3g} GiB, {sum(rows for rows, _ in self.classes)} slots ({shown})"


def plan(
    config: EngineConfig, model: Unstacked, size: Size, *, prefill_ids: int, most_rows: int | None = None
) -> EngineMemory:
    """Memory of an engine; with `slots: auto` of the largest that fits.

    Args:
      model: with its weights in place.
      prefill_ids: tokens of the largest prefill program.
      most_rows: no more slots than this; None: as many as fit.

    Raises:
      BadInput: not even one slot fits, or not as many as are asked for.
    """
    leaves = jax.tree.leaves(model)
    device = leaves[0].addressable_shards[0].device
    cap = MOST_SLOTS_CPU if device.platform == "cpu" else MOST_SLOTS
    asked = min(cap, max(most_rows or cap, 1))
    found = fit(
        config,
        model.config,
        size,
        weights=sum(x.addressable_shards[0].data.nbytes for x in leaves),
        ways=len(leaves[0].devices()),
        limit=device_memory(device) if config.memory_gib is None else int(config.memory_gib * GIB),
        most=asked,
        prefill_ids=prefill_ids,
    )
    slots = sum(rows for rows, _ in found.classes)
    is_given = config.slots != "auto" or config.classes is not None
    return dataclasses.replace(found, most_slots=0 if is_given else cap if slots == asked else slots)


def fit(
    config: EngineConfig,
    model: DecoderConfig,
    size: Size,
    *,
    weights: int,
    ways: int,
    limit: int,
    most: int,
    prefill_ids: int,
) -> EngineMemory:
    """`plan` by numbers alone: bytes of weights on each of `ways` devices, of a device, and the most slots."""

    def of(slots: int) -> EngineMemory:
        classes = resolve_classes(config, model, slots)
        rows = sum(rows for rows, _ in classes)
        cache = sum(rows * length for rows, length in classes) * size.bytes_per_token // ways
        # Rows move up a class by way of two copies; forks copy a row once; a single row does neither.
        n_copies = int(rows > 1) if len(classes) == 1 else 2
        work = _work(model, size, rows, classes[-1][1], prefill_ids, ways, n_copies)
        return EngineMemory(weights, cache, work, limit, classes)

    if config.slots != "auto" or config.classes is not None:
        asked = of(1 if config.slots == "auto" else config.slots)
        if _total(asked) > limit:
            raise BadInput(
                f"the slots asked for do not fit: {asked}; lower engine.slots or engine.max_length, or set it to auto"
            )
        return asked
    fitting = [memory for memory in map(of, range(1, most + 1)) if _total(memory) <= USABLE * limit]
    if not fitting:
        raise BadInput(
            f"engine.slots=auto: not one slot fits ({of(1)}); lower engine.max_length, or set engine.weights or "
            "engine.cache to int8, or mesh.tensor to more devices"
        )
    return fitting[-1]


def _total(memory: EngineMemory) -> int:
    return memory.weights + memory.cache + memory.work


def _work(model: DecoderConfig, size: Size, rows: int, longest: int, prefill_ids: int, ways: int, n_copies: int) -> int:
    """Three arrays of float32 logits; activations and scores of one layer; kept prefills; copies of a longest row."""
    logits = 3 * 4 * max(rows, CHUNK) * model.V // ways
    activations = 4 * prefill_ids * (4 * model.D + (3 * model.F + 4 * model.K * model.G * model.H) // ways)
    scores = 2 * 4 * CHUNK * longest * model.K * model.G // ways
    kept = (MAX_KEPT + 1) * prefill_ids + n_copies * longest
    return logits + activations + scores + kept * size.bytes_per_token // ways


def device_memory(device: Any) -> int:
    """Bytes that a device gives to programs; for a CPU half of the machine's memory."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
