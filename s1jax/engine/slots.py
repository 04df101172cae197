"""The device side of an engine: model, control tables, state, and which slots are free. Knows nothing of requests.

Every program has fixed shapes; `SlotTable.programs` names those that were needed so far, a bounded number whatever the
lengths of prompts and rows.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.config import BadInput
from s1jax.engine import cache as kv
from s1jax.engine import decode, prefill
from s1jax.engine.protocol import PAUSE, RUN, Automaton
from s1jax.engine.requests import SlotIndex
from s1jax.engine.state import CachedPrompt, DeviceRows, EngineState, Report, Shape
from s1jax.models.decoder import Unstacked
from s1jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Programs that work on many ids at once.

    Attributes:
      smallest: length of the shortest.
      rows: rows of a short one; long ones have fewer, such that rows times length stays within `ids`.
      ids: length of the longest; a longer text goes through it in pieces.
    """

    smallest: int = 64
    rows: int = 8
    ids: int = 2048

    def length_of(self, length: int, max_length: int) -> int:
        """Length of the program for a text of `length` ids, or for its pieces; a function of that length alone."""
        return prefill.bucket_of(length, min(self.ids, max_length), self.smallest)

    def rows_of(self, bucket: int) -> int:
        """Rows of the program of this length."""
        return max(1, min(self.rows, self.ids // bucket))


CachedRow = tuple[kv.Slots, ...]


class SlotTable:
    """Rows on the device, by place.

    Attributes:
      shape: classes and window.
      model: the weights.
      programs: names and static arguments of the programs used so far.
    """

    def __init__(
        self,
        model: Unstacked,
        control: Automaton,
        *,
        shape: Shape,
        size: kv.Size,
        buckets: Buckets,
        mesh: jax.sharding.Mesh | None,
        notify: Callable[[str], None],
    ) -> None:
        """Nothing is allocated before the first row enters: its fields say what a row's state looks like."""
        self.shape, self.buckets = shape, buckets
        self.programs: set[tuple] = set()
        self.model = model
        self._size = size
        # A mesh of one device is that device: placing by rules would only make every dispatch slower.
        self._device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._notify = notify
        self._free = [list(range(rows))[::-1] for rows, _ in shape.classes]
        self._control = jax.device_put(control, self._device if self._mesh is None else NamedSharding(self._mesh, P()))
        self._state: EngineState | None = None

    @contextlib.contextmanager
    def _program(self, *name: Any) -> Iterator[None]:
        if not self.programs:
            self._notify("compiling, usually 90 s for a large model; later starts read it from the compilation cache")
        self.programs.add(name)
        with jax.default_device(self._device) if self._mesh is None else meshes.use(self._mesh):
            yield

    def class_of(self, length: int) -> int:
        """The smallest class in which a row of `length` ids can run."""
        return next(i for i, (_, most) in enumerate(self.shape.classes) if length <= most)

    def n_free(self, of_class: int) -> int:
        """Free slots of a class."""
        return len(self._free[of_class])

    def index(self, place: SlotIndex) -> int:
        """The row of a place in a window's arrays."""
        return sum(rows for rows, _ in self.shape.classes[: place.of_class]) + place.slot

    def enter(self, source: CachedPrompt, row: DeviceRows, of_class: int) -> SlotIndex:
        """Put a row into a free slot of the class."""
        place = SlotIndex(of_class, self._free[of_class][-1])
        if self._state is None:
            with self._program("start"):
                self._state = decode.start(self._size, self.shape, row.control, row.draw)
        cache, source_row = source
        with self._program("insert", of_class, cache[0].k_BKSH.shape):
            self._state = decode.insert(
                self._state,
                cache,
                np.int32(source_row),
                row,
                np.int32(place.slot),
                of_class=of_class,
                shape=self.shape,
            )
        self._free[of_class].pop()
        return place

    def leave(self, place: SlotIndex) -> None:
        """Call a slot free; the row in it must have ended, or be halted, or be overwritten before the next window."""
        self._free[place.of_class].append(place.slot)

    def is_free(self, place: SlotIndex) -> bool:
        """Nobody has the slot."""
        return place.slot in self._free[place.of_class]

    def read(self, place: SlotIndex) -> tuple[CachedRow, DeviceRows]:
        """A copy of a row, on the device."""
        with self._program("extract", place.of_class):
            return decode.extract(self._state, np.int32(place.slot), of_class=place.of_class, shape=self.shape)

    def move(self, place: SlotIndex, of_class: int) -> SlotIndex:
        """Move a row into a free slot of another class."""
        cache, row = self.read(place)
        moved = self.enter((cache, 0), row, of_class)
        self.leave(place)
        return moved

    def set_status(self, places: Sequence[SlotIndex], status: int) -> None:
        """Give rows a status: RUN to those that are paused, any other to those that run; the rest stay as they are."""
        chosen_B = np.zeros(self.shape.rows, bool)
        chosen_B[[self.index(place) for place in places]] = True
        before = PAUSE if status == RUN else RUN
        with self._program("set_status"):
            self._state = decode.set_status(self._state, chosen_B, np.int32(before), np.int32(status))

    def control_state(self, place: SlotIndex) -> Any:
        """The control's state of a row as it is now, on the host, without the axis B."""
        assert self._state is not None
        control = jax.device_get(self._state.row.control)
        return jax.tree.map(lambda x: x[self.index(place)], control)

    def replace_model(self, model: Unstacked) -> None:
        """Go on with other weights. Raises BadInput unless they have the shapes and types of those before."""
        old, new = jax.tree.flatten(self.model), jax.tree.flatten(model)
        if old[1] != new[1]:
            raise BadInput("the new weights are of another kind of model; make a new engine")
        for a, b in zip(old[0], new[0], strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise BadInput(
                    f"a weight has shape {a.shape} and type {a.dtype}, the new one {b.shape} and {b.dtype}; make a new "
                    "engine"
                )
        self.model = model

    def window(self) -> Report:
        """Dispatch one window; the arrays returned can be waited for later."""
        with self._program("window", self.shape.window):
            self._state, report = decode.decode_window(self.model, self._control, self._state, shape=self.shape)
        return report

    def bucket_of(self, prompt_length: int) -> tuple[int, int]:
        """Rows and length of the prefill program for a prompt."""
        bucket = self.buckets.length_of(prompt_length - 1, self.shape.max_length)
        return self.buckets.rows_of(bucket), bucket

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[CachedPrompt]:
        """Cached positions of prompts that share a bucket (at most its rows); of each all ids but the last.

        A prompt that is longer than its bucket comes alone and goes through it in pieces.
        """
        rows, length = self.bucket_of(len(prompts[0]))
        if len(prompts[0]) - 1 > length:
            [prompt] = prompts
            cache, _ = self._pieces(None, 0, prompt, self.class_of(len(prompt) + 1), has_scores=False)
            return [(cache, 0)]
        tokens_BT = np.zeros((rows, length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt) - 1] = prompt[:-1]
        with self._program("prefill", rows, length):
            cache = prefill.prefill(self.model, tokens_BT, dtype=self.shape.dtype, cache_dtype=self._size.dtype)
        return [(cache, row) for row in range(len(prompts))]

    def extend(self, cache: CachedRow, start: int, ids: Sequence[int], of_class: int) -> CachedRow:
        """Cached positions of one row with those of all `ids` but the last from `start` on, as long as its class."""
        return self._pieces(cache, start, ids, of_class, has_scores=False)[0]

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Log-softmax of the raw logits at each id given those before it, float32; 0 at the first."""
        _, scores = self._pieces(None, 0, ids, self.class_of(len(ids)), has_scores=True)
        return np.concatenate([np.zeros(1, np.float32), *scores])

    def _pieces(
        self, cache: CachedRow | None, start: int, ids: Sequence[int], of_class: int, *, has_scores: bool
    ) -> tuple[CachedRow, list[np.ndarray]]:
        """Write all `ids` but the last from position `start` on; with the scores of all but the first."""
        length, scores = self.shape.classes[of_class][1], []
        bucket = self.buckets.length_of(len(ids) - 1, self.shape.max_length)
        for begin in range(0, max(len(ids) - 1, 1), bucket):
            part = list(ids[begin : begin + bucket + 1])
            tokens_BT = np.zeros((2, 1, bucket), np.int32)
            tokens_BT[0, 0, : len(part) - 1], tokens_BT[1, 0, : len(part) - 1] = part[:-1], part[1:]
            before = None if cache is None else cache[0].k_BKSH.shape[2]
            with self._program("extend", before, length, bucket, has_scores):
                cache, logprob_BT = prefill.extend(
                    self.model,
                    cache,
                    *tokens_BT,
                    np.int32(start + begin),
                    np.int32(len(part) - 1),
                    size=self._size,
                    length=length,
                    dtype=self.shape.dtype,
                    has_scores=has_scores,
                )
            if logprob_BT is not None:
                scores.append(np.asarray(logprob_BT)[0, : len(part) - 1])
        assert cache is not None
        return cache, scores
