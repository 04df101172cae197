"""Delimiters in a stream of ids: the tables against a search in the joined bytes, real vocabulary and small ones."""

import random
from collections.abc import Iterable

import numpy as np
import pytest
from oracle_matching import EOS, beginnings, find_end, half_delimiter, usual_ends

from s1jax.control.budget import automaton as budget
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.matching import ROOT, automaton, tabulate
from s1jax.text.tokens import Tokenizer

DELIMITERS = ["</think>", "<|im_start|>", "\n\nFinal", "</th", "hink> "]
VOCAB_SIZE = 152064


@pytest.fixture(scope="module")
def tokenizer(qwen_files) -> Tokenizer:
    return Tokenizer.load(qwen_files)


@pytest.fixture(scope="module")
def control(tokenizer) -> budget.BudgetForcing:
    return budget.build(tokenizer, VOCAB_SIZE, [BudgetConfig(thinking_end=tuple(DELIMITERS))])


def columns(texts: tuple[bytes, ...], chosen: list[str]) -> np.ndarray:
    return np.array([[text.decode() in chosen for text in texts]])


def random_stream(rng: random.Random, tokenizer: Tokenizer, table: list[bytes]) -> list[int]:
    """Ids that spell delimiters in many ways: cut at random places, with ids that hold a piece and something else."""
    pieces = {text[a:b].encode() for text in DELIMITERS for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
    near = [id for id, text in enumerate(table) if text in pieces]
    near += [id for id, text in enumerate(table) if text[:2] in (b"> ", b">\n") or text[-2:] in (b".<", b"</", b"\n\n")]
    ids = [rng.choice(near) if rng.random() < 0.7 else rng.randrange(tokenizer.size) for _ in range(60)]
    for text in rng.choices(DELIMITERS, k=16):
        cuts = sorted(rng.choices(range(len(text) + 1), k=2))
        spelled = [id for part in np.split(list(text), cuts) for id in tokenizer.encode_markup("".join(part))]
        at = rng.randrange(len(ids))
        ids[at:at] = spelled
    return ids


def test_the_tables_find_what_a_search_finds(tokenizer, control):
    n_ends = [count_ends(tokenizer, control, random.Random(seed)) for seed in range(12)]
    assert sum(n_ends) >= 100


def count_ends(tokenizer: Tokenizer, control: budget.BudgetForcing, rng: random.Random) -> int:
    """Reads one stream both ways, restarting after every end, and counts the ends."""
    table, matching = tokenizer.token_bytes(), control.matching
    chosen = rng.sample(DELIMITERS, rng.randint(1, len(DELIMITERS)))
    active_BJ = columns(control.texts, chosen)
    wanted = [text for text in control.texts if text.decode() in chosen]
    state, seen = np.array([ROOT]), []
    n_ends = 0
    for id in random_stream(rng, tokenizer, table):
        half = int(matching.half(state, active_BJ)[0])
        after, event = matching.read(state, np.array([id]))
        is_found, delimiter, before = (x[0] for x in matching.completed(event, active_BJ))
        found = find_end(table, (), wanted, seen, id)
        assert bool(is_found) == (found is not None), (seen, id)
        assert ids_of_bytes(table, seen, half) == half_delimiter(table, wanted, seen)
        if found is None:
            state, seen = after, [*seen, id]
            continue
        n_ends += 1
        assert control.texts[delimiter] == wanted[found[0]]
        assert ids_of_bytes(table, seen, int(before)) == found[1]
        state, seen = np.array([ROOT]), []
    return n_ends


def ids_of_bytes(table: list[bytes], ids: list[int], n_bytes: int) -> int:
    n_ids = 0
    while n_bytes > 0:
        n_ids += 1
        n_bytes -= len(table[ids[-n_ids]])
    return n_ids


def test_marks_of_the_real_vocabulary(tokenizer, control):
    table = tokenizer.token_bytes()
    texts = [text.encode() for text in DELIMITERS]
    bits = sum(budget.DELIMITER << control.texts.index(text) for text in texts)
    firsts = [tokenizer.encode_markup(text)[0] for text in DELIMITERS]
    ends = usual_ends(table, tokenizer.eos_ids, texts, firsts)
    newlines = [id for id, text in enumerate(table) if text.endswith(b"\n")]
    assert is_marked(control.marks_V & (bits | budget.EOS), ends)
    assert is_marked(control.begins_V & bits, beginnings(table, texts))
    assert is_marked(control.marks_V & budget.NEWLINE, newlines)
    assert tokenizer.size == 151665
    assert is_marked(control.marks_V & budget.ABSENT, range(tokenizer.size, VOCAB_SIZE))


def is_marked(marks_V: np.ndarray, ids: Iterable[int]) -> bool:
    """Exactly these ids, as one value: a failing comparison of 150,000 ids would be explained for minutes."""
    return np.array_equal(np.flatnonzero(marks_V), sorted(ids))


def test_the_tables_stay_small(control):
    """Ids that act alike share a column, so the tables do not grow with the vocabulary."""
    n_states, n_classes = control.matching.next_MC.shape
    assert n_states <= 1 + sum(map(len, control.texts))
    assert n_classes < 1000


@pytest.mark.parametrize("seed", range(4))
def test_every_state_and_every_id_of_small_vocabularies(seed):
    rng = random.Random(seed)
    texts = list({bytes(rng.choices(b"ab", k=rng.randint(1, 5))) for _ in range(4)})
    table = sorted({bytes(rng.choices(b"abc", k=rng.randint(1, 6))) for _ in range(40)})
    matching, (prefixes, _) = tabulate(texts, table, len(table) + 2), automaton(texts)
    pairs = [(state, id) for state in range(len(prefixes)) for id in range(len(table))]
    after_B, event_B = matching.read(*np.array(pairs).T)
    streams = [(prefixes[state], table[id]) for state, id in pairs]
    for (prefix, text), after in zip(streams, after_B, strict=True):
        assert prefixes[after] == max((p for p in prefixes if (prefix + text).endswith(p)), key=len)
    for j, wanted in enumerate(texts):
        active_BJ = np.tile(np.arange(len(texts)) == j, (len(pairs), 1))
        is_found_B, _, before_B = map(np.asarray, matching.completed(event_B, active_BJ))
        for (prefix, text), is_found, before in zip(streams, is_found_B, before_B, strict=True):
            ends = [end for end in range(1, len(text) + 1) if (prefix + text[:end]).endswith(wanted)]
            assert is_found == bool(ends)
            assert not ends or before == max(0, len(wanted) - ends[0])


def test_of_the_active_delimiters_the_longest_counts_and_of_one_the_first():
    matching = tabulate([b"b", b"ab", b"cab"], [b"c", b"a", b"b", b"xbb"], 4)

    def completed(ids: list[int], active: list[bool]) -> tuple[bool, int, int]:
        state = np.array([ROOT])
        for id in ids[:-1]:
            state, _ = matching.read(state, np.array([id]))
        _, event = matching.read(state, np.array(ids[-1:]))
        return tuple(x[0].item() for x in matching.completed(event, np.array([active])))  # type: ignore[return-value]

    assert completed([0, 1, 2], [True, True, True]) == (True, 2, 2)
    assert completed([0, 1, 2], [True, True, False]) == (True, 1, 1)
    assert completed([0, 1, 2], [True, False, False]) == (True, 0, 0)
    assert completed([0, 1, 2], [False, False, False])[0] is False
    assert completed([0, 3], [True, False, False]) == (True, 0, 0)


def test_an_eos_is_looked_at_before_delimiters():
    assert find_end([b"<e>", b"e"], {0}, [b"<e>"], [], 0) == (EOS, 0)
