"""Texts found in a stream of ids: an automaton over bytes, tabulated over the vocabulary. Knows no control and no row.

`</think>` may arrive as one id, as `</` `think` `>`, or with the `\\n` that follows it inside the last id. So a
delimiter is matched as bytes. One Aho-Corasick automaton over all delimiters of a run reads the bytes of every id from
every state once, on the host; in the loop a step is two look-ups.

Beside the letters of `s1jax.parallel.axes`:

    J delimiter      M state of the automaton      C class of ids that act alike      E event
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.control.trail import ROOT
from s1jax.engine.protocol import Array

MISSED = np.iinfo(np.int32).min


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matching:
    """Tables of a set of delimiters over a vocabulary. All int32.

    An event is what an id completes when it is read in a state. Where several of the delimiters that a row looks for
    are completed inside one id, the one of greatest rank counts: the longest, and of that the first occurrence.

    Attributes:
      class_V: class of an id; ids of one class act alike in every state.
      length_V: bytes of an id.
      next_MC: state after an id of this class.
      event_MC: event, 0 where nothing is completed.
      rank_EJ: rank of delimiter j in an event, 0 if it is not completed.
      before_EJ: bytes of the occurrence that lie before the id.
      half_MJ: bytes of the longest proper prefix of delimiter j that the stream ends with.
    """

    class_V: Array
    length_V: Array
    next_MC: Array
    event_MC: Array
    rank_EJ: Array
    before_EJ: Array
    half_MJ: Array

    def read(self, state_B: Array, id_B: Array) -> tuple[Array, Array]:
        """State after the ids, and the event of each."""
        class_B = self.class_V[id_B]
        return self.next_MC[state_B, class_B], self.event_MC[state_B, class_B]

    def completed(self, event_B: Array, active_BJ: Array) -> tuple[Array, Array, Array]:
        """Of the active delimiters the one that counts: (is there one, its index, its bytes before the id)."""
        rank_BJ = jnp.where(active_BJ, self.rank_EJ[event_B], 0)
        delimiter_B = jnp.argmax(rank_BJ, axis=1)
        before_B = jnp.take_along_axis(self.before_EJ[event_B], delimiter_B[:, None], axis=1)[:, 0]
        return jnp.max(rank_BJ, axis=1) > 0, delimiter_B, before_B

    def half(self, state_B: Array, active_BJ: Array) -> Array:
        """Bytes at the end of the stream that may be the beginning of an active delimiter."""
        return jnp.max(jnp.where(active_BJ, self.half_MJ[state_B], 0), axis=1)

    def events(self, ids: Iterable[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """On the host: (index, rank_J, before_J) of each of `ids` that completes a delimiter."""
        tables = (self.class_V, self.next_MC, self.event_MC, self.rank_EJ, self.before_EJ)
        class_V, next_MC, event_MC, rank_EJ, before_EJ = (np.asarray(table) for table in tables)
        state = ROOT
        for index, id in enumerate(ids):
            event = event_MC[state, class_V[id]]
            if event:
                yield index, rank_EJ[event], before_EJ[event]
            state = next_MC[state, class_V[id]]


def tabulate(delimiters: Sequence[bytes], token_bytes: Sequence[bytes], vocab_size: int) -> Matching:
    """Tables (NumPy arrays) of `delimiters` over `token_bytes`; ids from `len(token_bytes)` to `vocab_size` are empty.

    The delimiters are distinct and not empty. The real 152k vocabulary and a few delimiters take about a second.
    """
    prefixes, goto_MY = automaton(delimiters)
    ends_MJ = np.array([[prefix.endswith(text) for text in delimiters] for prefix in prefixes], bool)
    half_MJ = np.array([[_half(prefix, text) for text in delimiters] for prefix in prefixes], np.int32)
    sizes_J = np.array([len(text) for text in delimiters], np.int32)
    length_V = np.zeros(vocab_size, np.int32)
    length_V[: len(token_bytes)] = [len(text) for text in token_bytes]
    next_VM, hits = _read_vocabulary(goto_MY, ends_MJ, token_bytes, length_V)
    event_VM, offset_EJ = _number_events(hits, sizes_J, next_VM.shape)
    columns = np.ascontiguousarray(np.concatenate([next_VM, event_VM], axis=1))
    keys = columns.view(np.dtype((np.void, columns.itemsize * columns.shape[1])))[:, 0]
    _, first_C, class_V = np.unique(keys, return_index=True, return_inverse=True)
    return Matching(
        class_V=class_V.astype(np.int32).reshape(vocab_size),
        length_V=length_V,
        next_MC=np.ascontiguousarray(next_VM[first_C].T.astype(np.int32)),
        event_MC=np.ascontiguousarray(event_VM[first_C].T.astype(np.int32)),
        rank_EJ=_rank(offset_EJ, sizes_J),
        before_EJ=np.maximum(offset_EJ, 0),
        half_MJ=half_MJ,
    )


def automaton(texts: Sequence[bytes]) -> tuple[list[bytes], np.ndarray]:
    """Aho-Corasick: the prefixes of `texts` (a state each, shortest first) and the state after each byte, `[M, 256]`.

    A state stands for the longest prefix of any text that the stream ends with.
    """
    prefixes = sorted({text[:end] for text in texts for end in range(len(text) + 1)} | {b""}, key=lambda p: (len(p), p))
    index = {prefix: state for state, prefix in enumerate(prefixes)}
    goto_MY = np.zeros((len(prefixes), 256), np.int32)
    for state, prefix in enumerate(prefixes):
        if prefix:
            shorter = next(index[prefix[start:]] for start in range(1, len(prefix) + 1) if prefix[start:] in index)
            goto_MY[state] = goto_MY[shorter]
        for byte in range(256):
            child = index.get(prefix + bytes([byte]))
            if child is not None:
                goto_MY[state, byte] = child
    return prefixes, goto_MY


def _half(stream: bytes, text: bytes) -> int:
    return max((size for size in range(1, len(text)) if stream.endswith(text[:size])), default=0)


def _read_vocabulary(
    goto_MY: np.ndarray, ends_MJ: np.ndarray, token_bytes: Sequence[bytes], length_V: np.ndarray
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]]:
    """State after every id from every state, `[V, M]`; and (ids, states before, delimiters, bytes read) of all ends.

    All ids advance together, byte by byte; they are sorted by length, so those with bytes left are a leading slice.
    """
    order = np.argsort(-length_V, kind="stable").astype(np.int64)
    text = np.frombuffer(b"".join(token_bytes), np.uint8)
    start_V = np.cumsum(length_V) - length_V
    n_states = len(goto_MY)
    state_VM = np.tile(np.arange(n_states, dtype=np.int32), (len(length_V), 1))
    flat = goto_MY.reshape(-1)
    ending_M = np.any(ends_MJ, axis=1)
    hits = []
    for position in range(int(length_V.max(initial=0))):
        n_left = int(np.count_nonzero(length_V > position))
        byte = text[start_V[order[:n_left]] + position].astype(np.int32)
        state_VM[:n_left] = flat.take(state_VM[:n_left] * 256 + byte[:, None])
        row, before = np.nonzero(ending_M[state_VM[:n_left]])
        pair, delimiter = np.nonzero(ends_MJ[state_VM[row, before]])
        hits.append((order[row[pair]], before[pair], delimiter, position + 1))
    next_VM = np.empty_like(state_VM)
    next_VM[order] = state_VM
    return next_VM, hits


def _number_events(
    hits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, int]], sizes_J: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Equal sets of completed delimiters share an event: its number `[V, M]`, and per event where each began `[E, J]`.

    Where: bytes of the first occurrence before the id, negative when it began inside the id, MISSED when there is none.
    """
    none = np.full((1, len(sizes_J)), MISSED, np.int32)
    event_VM = np.zeros(shape, np.int32)
    pairs = [ids * shape[1] + states for ids, states, _, _ in hits]
    if not sum(map(len, pairs)):
        return event_VM, none
    key, row = np.unique(np.concatenate(pairs), return_inverse=True)
    offset = np.full((len(key), len(sizes_J)), MISSED, np.int32)
    rows = np.split(row.reshape(-1), np.cumsum([len(pair) for pair in pairs])[:-1])
    # From the last byte to the first, so that what stands at the end is the first occurrence.
    for at, (_, _, delimiter, read) in reversed(list(zip(rows, hits, strict=True))):
        offset[at, delimiter] = sizes_J[delimiter] - read
    distinct, event = np.unique(offset, axis=0, return_inverse=True)
    event_VM.reshape(-1)[key] = event.reshape(-1) + 1
    return event_VM, np.concatenate([none, distinct])


def _rank(offset_EJ: np.ndarray, sizes_J: np.ndarray) -> np.ndarray:
    """1 for the least of the completed delimiters in an event: by length, then by how early the occurrence ends."""
    rank_EJ = np.zeros(offset_EJ.shape, np.int32)
    for rank_J, offset_J in zip(rank_EJ, offset_EJ, strict=True):
        done = [j for j in range(len(sizes_J)) if offset_J[j] != MISSED]
        for rank, j in enumerate(sorted(done, key=lambda j: (sizes_J[j], offset_J[j])), 1):
            rank_J[j] = rank
    return rank_EJ
