"""Stop texts in a row that grows, and is sometimes cut: every byte is read once."""

import bisect
from collections.abc import Sequence


class StopFinder:
    """Looks for texts in the bytes of a row's tokens after the prompt."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str]) -> None:
        """`token_bytes`: of every token of the vocabulary. `stops`: the texts, none of them empty."""
        self._token_bytes = token_bytes
        self._stops = [stop.encode() for stop in stops]
        self._text = bytearray()
        self._ends: list[int] = []  # bytes up to the end of each token
        self._matches: list[tuple[int, int]] = []  # (tokens that complete it, first byte), in order

    def update(self, low: int, token_ids: Sequence[int]) -> None:
        """From index `low` on the row's tokens are now these."""
        cut = self._ends[low - 1] if low else 0
        del self._text[cut:], self._ends[low:]
        self._matches = [match for match in self._matches if match[0] <= low]
        for token in token_ids:
            self._text += self._token_bytes[token]
            self._ends.append(len(self._text))
        found = []
        for stop in self._stops:
            begin = self._text.find(stop, max(cut - len(stop) + 1, 0))
            while begin >= 0:
                found.append((bisect.bisect_left(self._ends, begin + len(stop)) + 1, begin))
                begin = self._text.find(stop, begin + 1)
        self._matches += sorted(found)

    @property
    def has_match(self) -> bool:
        """Some text has been found that `first` has not passed over yet."""
        return bool(self._matches)

    def first(self, offset: int) -> tuple[int, int] | None:
        """The text completed first of those that begin at token `offset` or later; earlier ones are passed over.

        Returns: how many tokens complete it, and the byte where it begins, both counted from the prompt's end; of
          several completed by the same token the one that begins first.
        """
        base = self._ends[offset - 1] if offset else 0
        self._matches = [match for match in self._matches if match[1] >= base]
        return self._matches[0] if self._matches else None

    def n_safe(self) -> int:
        """Tokens that can be shown: none of a text that was found, nor of what may be the beginning of one."""
        end = len(self._text)
        for stop in self._stops:
            sizes = range(1, min(len(stop), len(self._text) + 1))
            end = min([end, *(len(self._text) - size for size in sizes if self._text.endswith(stop[:size]))])
        if self._matches:
            end = min(end, self._matches[0][1])
        return bisect.bisect_right(self._ends, end)

    def text_before(self, byte: int) -> bytes:
        """The row's text up to a byte."""
        return bytes(self._text[:byte])
