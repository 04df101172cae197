"""Plain searches for delimiters, loops and stop strings: the part of the budget oracle that reads bytes.

Nothing is remembered between calls: the bytes of the ids are joined and searched again every time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

EOS = -1  # stands where the index of a delimiter would


def find_end(
    token_bytes: Sequence[bytes],
    eos_ids: Collection[int],
    delimiters: Sequence[bytes],
    before: Sequence[int],
    drawn: int,
) -> tuple[int, int] | None:
    """The delimiter (its index, or EOS) that `drawn` completes after `before`, and how many ids of `before` it holds.

    The longest delimiter counts; of equally long ones the one that is complete first.
    """
    if drawn in eos_ids:
        return EOS, 0
    text = b"".join(token_bytes[token] for token in before)
    joined = text + token_bytes[drawn]
    found = []
    for index, delimiter in enumerate(delimiters):
        for start in range(len(joined) - len(delimiter) + 1):
            end = start + len(delimiter)
            if joined[start:end] == delimiter and end > len(text):
                found.append((-len(delimiter), end, index, start))
    if not found:
        return None
    _, _, index, start = min(found)
    return index, _ids_from_byte(token_bytes, before, start)


def half_delimiter(token_bytes: Sequence[bytes], delimiters: Sequence[bytes], before: Sequence[int]) -> int:
    """How many of the last ids hold a byte of an unfinished delimiter (the longest one counts)."""
    text = b"".join(token_bytes[token] for token in before)
    longest = 0
    for delimiter in delimiters:
        for length in range(1, len(delimiter)):
            if text.endswith(delimiter[:length]):
                longest = max(longest, length)
    return _ids_from_byte(token_bytes, before, len(text) - longest) if longest else 0


def _ids_from_byte(token_bytes: Sequence[bytes], ids: Sequence[int], start: int) -> int:
    """How many ids there are from the one that holds byte `start` to the last."""
    position = 0
    for place, token in enumerate(ids):
        position += len(token_bytes[token])
        if position > start:
            return len(ids) - place
    return 0


def usual_ends(
    token_bytes: Sequence[bytes],
    eos_ids: Collection[int],
    delimiters: Sequence[bytes],
    delimiter_first_ids: Collection[int],
) -> frozenset[int]:
    """What the first draw after an ignored end must not be: an end by itself, or the usual first id of one."""
    whole = {token for token, text in enumerate(token_bytes) if any(delimiter in text for delimiter in delimiters)}
    return frozenset(eos_ids) | frozenset(delimiter_first_ids) | whole


def beginnings(token_bytes: Sequence[bytes], delimiters: Sequence[bytes]) -> frozenset[int]:
    """The ids whose last bytes are the beginning of a delimiter."""
    parts = {delimiter[:length] for delimiter in delimiters for length in range(1, len(delimiter))}
    return frozenset(token for token, text in enumerate(token_bytes) if any(text.endswith(part) for part in parts))


def repeats(ids: Sequence[int], repetition: tuple[int, int, int] | None) -> bool:
    """Whether the last ids are one pattern, repeated often enough: (largest size, smallest size, count)."""
    if repetition is None:
        return False
    largest, smallest, count = repetition
    for size in range(smallest, largest + 1):
        tail = list(ids[-size * count :])
        if len(tail) == size * count and tail == tail[-size:] * count:
            return True
    return False


def cut_at_stop(
    token_bytes: Sequence[bytes], token_ids: Sequence[int], answer_offset: int, stops: Sequence[bytes]
) -> tuple[tuple[int, ...], bytes] | None:
    """The ids up to the one that completes a stop string in the answer, and the answer's bytes before the match."""
    for end in range(answer_offset + 1, len(token_ids) + 1):
        text = b"".join(token_bytes[token] for token in token_ids[answer_offset:end])
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            return tuple(token_ids[:end]), text[: min(starts)]
    return None


def reopened(
    token_bytes: Sequence[bytes], token_ids: Sequence[int], answer_offset: int, marks: Sequence[bytes]
) -> bool:
    """Whether the drawn answer holds a delimiter or a think header (`marks`) again."""
    text = b"".join(token_bytes[token] for token in token_ids[answer_offset:])
    return any(mark in text for mark in marks)
