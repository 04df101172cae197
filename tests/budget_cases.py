"""Random requests for budget forcing, and table models that answer them: what the automaton and its oracle both run."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from oracle_budget import OracleRow

from s1jax.config import BadInput
from s1jax.control.budget.admission import admit
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.settings import BudgetSettings, RepetitionDetection

N_BUCKETS, N_KINDS = 11, 8


class ByteTokenizer:
    """A vocabulary of byte strings, encoded greedily by the longest match."""

    def __init__(self, vocabulary: Sequence[bytes], eos_ids: Sequence[int]) -> None:
        self.vocabulary = list(vocabulary)
        self.size = len(self.vocabulary)
        self.eos_ids = frozenset(eos_ids)
        written = [id for id in range(self.size) if self.vocabulary[id]]
        self._by_length = sorted(written, key=lambda id: (-len(self.vocabulary[id]), id))

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            id = next(id for id in self._by_length if data.startswith(self.vocabulary[id]))
            ids.append(id)
            data = data[len(self.vocabulary[id]) :]
        return ids

    encode_markup = encode

    def token_bytes(self) -> list[bytes]:
        return self.vocabulary

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self.vocabulary[id] for id in ids).decode()


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that share a vocabulary: the tokenizer and the texts their requests choose from."""

    tokenizer: ByteTokenizer
    delimiters: tuple[str, ...]
    answer_starts: tuple[str, ...]
    forced_ends: tuple[str, ...]


# Think tags in several spellings, and an s1-like header that is one id.
TAGS = [b"a", b"b", b"<", b"/", b"t", b">", b"\n", b"</", b"</t>", b">\n", b"t>", b".<", b".</", b"W", b"ait", b"Wait"]
TAGS += [b"<S>", b"S", b"ans", b"a\n", b"t>x", b" ", b"x", b".", b"i", b"n", b"s", b"E", b"F"]


def groups(rng: random.Random, n_random: int) -> list[Group]:
    """Two realistic vocabularies, and random ones over few letters, in which everything overlaps."""
    tags = ByteTokenizer(TAGS, [TAGS.index(b"E"), TAGS.index(b"F")])
    parts = [token for token in TAGS if token not in (b"</t>", b"<S>", b"F")]
    spelled = ByteTokenizer(parts, [parts.index(b"E")])
    starts, ends = ("<S>ans", "\n</t>\n\n", "</t>", "ab"), ("<S>ans\n", "</t>\n\n", "a a", "\n")
    realistic = [
        Group(tags, ("</t>", "<S>", "a", ">\n"), starts, ends),
        Group(spelled, ("</t>", "<S>", "t>", "</"), starts, ends),
    ]
    return realistic + [_random_group(rng) for _ in range(n_random)]


def _random_group(rng: random.Random) -> Group:
    letters = "ab<\n"
    words = {letter.encode() for letter in letters}
    while len(words) < rng.randint(8, 24):
        words.add("".join(rng.choices(letters, (4, 3, 2, 1), k=rng.randint(1, 4))).encode())
    vocabulary = [*sorted(words), b"E", b"F"]
    tokenizer = ByteTokenizer(vocabulary, [len(vocabulary) - 2, len(vocabulary) - 1][: rng.randint(1, 2)])

    def text(longest: int) -> str:
        return "".join(rng.choices("ab<", k=rng.randint(1, longest)))

    def distinct(*texts: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(texts))

    delimiters = distinct(text(6), text(6), text(6), text(2))
    starts = distinct(
        delimiters[0] + "\n" * rng.randint(0, 1), delimiters[-1], text(3), "\n" + delimiters[1 % len(delimiters)]
    )
    return Group(tokenizer, delimiters, starts, distinct(text(4), "\n" + text(3), "b\n"))


@dataclasses.dataclass(frozen=True)
class Case:
    """One request and the model that answers it."""

    group: Group
    config: BudgetConfig
    lengths: dict[str, int]
    kind: int
    seed: int

    def admitted(self) -> BudgetSettings | None:
        try:
            return admit(self.config, self.group.tokenizer, **self.lengths)  # type: ignore[arg-type]
        except BadInput:
            return None

    def oracle_row(self) -> OracleRow:
        config, tokenizer, markers = self.config, self.group.tokenizer, self.config.markers
        asked = config.repetition_detection
        return OracleRow(
            **self.lengths,  # type: ignore[arg-type]
            token_bytes=tuple(tokenizer.vocabulary),
            eos_ids=tokenizer.eos_ids,
            delimiters=tuple(text.encode() for text in markers.thinking_end),
            delimiter_first_ids=tuple(tokenizer.encode(text)[0] for text in markers.thinking_end),
            kept_delimiter=tuple(not markers.answer_start.startswith(text) for text in markers.thinking_end),
            answer_start=tuple(tokenizer.encode(markers.answer_start)),
            forced_end=tuple(tokenizer.encode(markers.forced_end)),
            newline=tuple(tokenizer.encode("\n")),
            thinking=config.thinking,
            budget=config.thinking_token_budget,
            minimum=config.min_thinking_tokens,
            n_ignore=config.thinking_n_ignore,
            strings=tuple(tuple(tokenizer.encode(text)) for text in config.strings),
            answer_budget=config.answer_token_budget,
            repetition=asked and (asked.max_pattern_size, asked.min_pattern_size, asked.min_count),
            loop_action=config.loop_action,
            mode=config.algorithm,
        )


def random_case(rng: random.Random, group: Group, seed: int) -> Case:
    """A request of any kind; about one in three cannot be admitted."""
    algorithm = rng.choices(("s1jax", "harness", "readme"), (8, 1, 1))[0]
    thinking = rng.random() > 0.06
    n_delimiters = rng.randint(0 if rng.random() < 0.05 else 1, min(3, len(group.delimiters)))
    fields: dict[str, Any] = {}
    if thinking:
        fields["algorithm"] = algorithm
        fields["thinking_token_budget"] = rng.choice((None, None, -1, *range(13), 20, 40, rng.randint(0, 60)))
        fields["thinking_n_ignore"] = rng.choice((0, 0, 1, 1, 2, 3, 8))
        fields["min_thinking_tokens"] = rng.choice((0, 0, 0, 1, 3, 7, 15)) if algorithm == "s1jax" else 0
    if (not thinking or algorithm == "s1jax") and rng.random() < 0.4:
        least = rng.choice((1, 1, 2))
        sizes = {"max_pattern_size": rng.randint(least, 6), "min_pattern_size": least, "min_count": rng.randint(2, 4)}
        fields["repetition_detection"] = RepetitionDetection(**sizes)
        fields["loop_action"] = rng.choice(("end_thinking", "stop", "report"))
    config = BudgetConfig(
        thinking=thinking,
        thinking_start="<",
        thinking_end=tuple(rng.sample(group.delimiters, n_delimiters)),
        answer_start=rng.choice(group.answer_starts),
        forced_end=rng.choice(group.forced_ends),
        thinking_n_ignore_str=_random_strings(rng, group.tokenizer),
        answer_token_budget=rng.choice((None, None, 1, 2, 5)),
        **fields,
    )
    lengths = {
        "prompt_length": rng.randint(0, 6),
        "max_length": rng.choice((rng.randint(8, 40), 60, 80)),
        "max_new_tokens": rng.choice((rng.randint(1, 40), 60, 80)),
    }
    return Case(group, config, lengths, kind=rng.randrange(N_KINDS), seed=seed)


def _random_strings(rng: random.Random, tokenizer: ByteTokenizer) -> Any:
    ids = [id for id in range(tokenizer.size) if id not in tokenizer.eos_ids]

    def text() -> str:
        return tokenizer.text(rng.choices(ids, k=rng.choice((0, 1, 1, 2, 3, 12))))

    return rng.choice((None, text(), text(), (text(), text()), (text(), "", text())))


def random_orders(rng: random.Random, group: Group) -> np.ndarray:
    """Eight table models: by kind, last id and bucket of the prefix, all ids in the order in which they are preferred.

    0 anything; 1 never ends by itself; 2 ends at once; 3 and 4 spell delimiters, 4 whatever came before; 5 ends often;
    6 loops: the last id alone decides; 7 one id again and again, and delimiters in parts between.
    """
    tokenizer = group.tokenizer
    ends = {tokenizer.encode(text)[-1] for text in group.delimiters} | tokenizer.eos_ids
    parts = {id for id in range(tokenizer.size) if any(_is_part(tokenizer.vocabulary[id], t) for t in group.delimiters)}
    favourite = tokenizer.encode("a")[0]
    orders = np.zeros((N_KINDS, tokenizer.size + 1, N_BUCKETS, tokenizer.size), np.int32)
    for kind, last, bucket in np.ndindex(orders.shape[:3]):
        order = rng.sample(range(tokenizer.size), tokenizer.size)
        if kind == 1:
            order.sort(key=lambda id: id in ends)
        elif kind == 2 or (kind == 5 and rng.random() < 0.4):
            order.sort(key=lambda id: id not in ends)
        elif kind == 4 or (kind == 3 and rng.random() < 0.7):
            order.sort(key=lambda id: id not in parts)
        elif kind == 6 and bucket:
            order = list(orders[6, last, 0])
        elif kind == 7:
            is_spelling = rng.random() < 0.4
            order.sort(key=lambda id: (id != favourite) + 2 * (is_spelling and id not in parts))
        orders[kind, last, bucket] = order
    return orders


def _is_part(token: bytes, text: str) -> bool:
    data = text.encode()
    return token in data or any(token.endswith(data[:n]) or token.startswith(data[-n:]) for n in range(1, len(data)))


def bucket_of(seed: Any, length: Any, previous: Any) -> Any:
    """Bucket of a prefix by its length and its last id but one (the vocabulary's size before there are two)."""
    return (seed * 131 + length * 37 + previous * 17) % N_BUCKETS


class TableModel:
    """A case's model in plain Python, as the oracle asks it."""

    def __init__(self, case: Case, orders: np.ndarray) -> None:
        self.case, self.orders, self.size = case, orders, case.group.tokenizer.size

    def __call__(self, kept: tuple[int, ...], forbidden: frozenset[int]) -> int:
        last = kept[-1] if kept else self.size
        previous = kept[-2] if len(kept) > 1 else self.size
        order = self.orders[self.case.kind, last, bucket_of(self.case.seed, len(kept), previous)]
        return next(int(id) for id in order if id not in forbidden)
