"""The quickstart's task: count the r in a spelled word, first by glancing at pairs of letters, then by checking them.

    question   How many r in 1r 2a 3s 4p 5b 6e 7r 8r 9y
    thinking   2:1 4:1 6:1 8:2 9:2
               Wait 2:2 4:2
               Wait 6:2 8:3
    answer     Final Answer: 3

`4:1` reads "up to letter 4 the estimate is 1". A glance at a pair adds at most one, so a pair `rr` is counted once: the
first pass is wrong for a reason that is a function of the question. Each `Wait` looks again at the next two pairs
and adds what the glance missed; it goes on from the estimate so far, so wherever a trace is cut its last number is the
best estimate yet. When every pair has been checked, a `Wait` repeats the last step.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from s1jax.records import Question, question_id

TARGET = "r"
OTHERS = "aspbeytw"  # with `r` the letters of raspberry and strawberry
ASK = f"How many {TARGET} in"
SOURCE = "quickstart"


@dataclasses.dataclass(frozen=True)
class Words:
    """How words are drawn.

    Attributes:
      shortest, longest: letters, drawn uniformly. Lengths differ so that first passes end at different budgets, which
        makes the accuracy rise with every token of the budget instead of at one; 14 letters are 7 pairs, four checks.
      doubled: weights of 0, 1, 2, 3 pairs `rr`. 45 % without one is what a first pass can answer.
      single: chance that another pair holds one `r`.
      most: more `r` than that and the word is drawn again, so that a number is one of seven.
    """

    shortest: int = 4
    longest: int = 14
    doubled: tuple[float, ...] = (0.45, 0.25, 0.18, 0.12)
    single: float = 0.25
    most: int = 6


@dataclasses.dataclass(frozen=True)
class Teacher:
    """How traces are written.

    Attributes:
      pairs: pairs that one `Wait` checks.
      stop_first: chance to stop after the first pass, right or wrong. Above one half: greedy decoding stops there.
      stop: the same after a `Wait` with pairs left to check; just above one half, since late checks must be seen too.
      stop_checked: the same after all pairs have been checked.
      most_waits: the longest word needs four; the fifth teaches to repeat the last step.
      hasty: share of traces that break off within the first pass. Their answer is the estimate so far, which is what
        a trace cut by a budget has to answer; without them the model guesses the count from the question.
    """

    pairs: int = 2
    stop_first: float = 0.58
    stop: float = 0.53
    stop_checked: float = 0.55
    most_waits: int = 5
    hasty: float = 0.1


@dataclasses.dataclass(frozen=True)
class Junk:
    """Rows for curation to remove, as shares of the pool.

    Attributes:
      near_duplicate: a held-out question in capitals, with commas, or with wide spaces (decontamination).
      duplicate: a question of the pool, asked again (deduplication).
      malformed: no trace, no answer, or a trace that spells out a thinking marker (quality).
      too_easy: words of 2 or 3 letters, which `solver` counts (difficulty).
    """

    near_duplicate: float = 0.02
    duplicate: float = 0.02
    malformed: float = 0.02
    too_easy: float = 0.03


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes of the run. `docs/decisions/quickstart_task.md` has the measurements behind them.

    Attributes:
      pool, pool_seed: rows before curation.
      held_out, held_out_seed: questions of the evaluation.
      row_length: ids of one training row; no row of the pool is longer.
      D, L, K, G, H, F, rope_theta: shape of the model, about 0.19M parameters. Two layers could do; the third learns
        the checks in fewer steps.
      batch, steps, learning_rate, warmup_steps, b2, weight_decay: AdamW with cosine to zero and clip 1. First
        passes are learned in 300 steps, the third and fourth check in 1000.
      norm: loss over tokens, not over sequences: the mean per sequence gives the rare long traces too little weight.
      budgets: thinking tokens; 1 is the newline after the header, so nothing is looked at; 10 is above the longest
        natural trace of 9.
      n_ignore: the longest word is wholly checked at four.
      votes, temperature: samples of the majority vote.
    """

    pool: int = 10_000
    pool_seed: int = 1
    held_out: int = 1_000
    held_out_seed: int = 2
    row_length: int = 66
    D: int = 64
    L: int = 3
    K: int = 2
    G: int = 2
    H: int = 16
    F: int = 192
    rope_theta: float = 1e4
    batch: int = 32
    steps: int = 1_200
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    b2: float = 0.98
    weight_decay: float = 0.0
    norm: Literal["token", "sequence"] = "token"
    budgets: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10)
    n_ignore: tuple[int, ...] = (0, 1, 2, 4)
    votes: tuple[int, ...] = (2, 4, 8)
    temperature: float = 0.8


WORDS, TEACHER, JUNK, RECIPE = Words(), Teacher(), Junk(), Recipe()


def ask(word: str) -> str:
    """The question about a word: each letter with its place, so that a letter can be found by its number."""
    return f"{ASK} " + " ".join(f"{place}{letter}" for place, letter in enumerate(word, 1))


def word_of(text: str) -> str:
    """The word of a question that `ask` wrote."""
    return "".join(part.lstrip("0123456789") for part in text.removeprefix(ASK).split())


def is_held_out(text: str) -> bool:
    """Whether a question is kept from training: 1 in 10, by the SHA-256 of its text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") % 10 == 0


def questions(seed: int, count: int, *, held_out: bool = False, words: Words = WORDS) -> list[Question]:
    """`count` different questions of one side of the split; a function of the arguments alone.

    Two seeds may give the same question; the two sides never do. `answer` is the true count, `domain` the length.
    """
    rng = random.Random(f"questions {seed}")
    found: dict[str, Question] = {}
    while len(found) < count:
        word = _draw_word(rng, words)
        text = ask(word)
        if text not in found and is_held_out(text) == held_out:
            found[text] = _question(text, word, "words")
    return list(found.values())


def glance(word: str) -> list[int]:
    """Running estimate after each pair of the first pass: a pair adds at most one."""
    estimates, estimate = [], 0
    for pair in _pairs(word):
        estimate += TARGET in pair
        estimates.append(estimate)
    return estimates


def think(word: str, waits: int, teacher: Teacher = TEACHER) -> tuple[str, int]:
    """The trace with so many checks, and the count it ends on."""
    pairs = _pairs(word)
    ends = [min(2 * number, len(word)) for number in range(1, len(pairs) + 1)]
    estimates = glance(word)
    estimate = estimates[-1]
    lines = [" ".join(f"{end}:{value}" for end, value in zip(ends, estimates, strict=True))]
    for wait in range(waits):
        steps = []
        for number in range(wait * teacher.pairs, min((wait + 1) * teacher.pairs, len(pairs))):
            estimate += pairs[number] == 2 * TARGET
            steps.append(f"{ends[number]}:{estimate}")
        lines.append(" ".join(["Wait", *(steps or [f"{len(word)}:{estimate}"])]))
    return "\n".join(lines), estimate


def trace(question: Question, rng: random.Random, teacher: Teacher = TEACHER) -> tuple[str, str, bool]:
    """The teacher's (thinking, answer, whether the answer is right) for a question of `questions`."""
    word = word_of(question.text)
    if rng.random() < teacher.hasty:
        estimates = glance(word)
        looked = rng.randint(1, max(len(estimates) - 1, 1))
        thinking, count = " ".join(think(word, 0)[0].split()[:looked]), estimates[looked - 1]
    else:
        thinking, count = think(word, _waits(word, rng, teacher), teacher)
    return thinking, f"Final Answer: {count}", str(count) == question.answer


def pool(seed: int, count: int, held_out: Sequence[Question], junk: Junk = JUNK) -> list[dict[str, Any]]:
    """Raw rows for curation, shuffled: `id, question, thinking, answer, gold, domain, source, correct`.

    `source` names the kind: `quickstart/words`, or `quickstart/` and a field of `Junk`. `count` is their sum; each kind
    of junk has its share of it, rounded down. The near-duplicates are those of `held_out`.
    """
    rng = random.Random(f"pool {seed}")
    amounts = {kind: int(share * count) for kind, share in dataclasses.asdict(junk).items()}
    fresh = questions(seed, count - sum(amounts.values()) + amounts["malformed"])
    broken, plain = fresh[: amounts["malformed"]], fresh[amounts["malformed"] :]
    rows = [_row(question, rng) for question in plain]
    rows += [_respelled(held_out[i % len(held_out)], i, rng) for i in range(amounts["near_duplicate"])]
    rows += [
        {**_row(question, rng, "duplicate"), "id": f"duplicate-{i}"}
        for i, question in enumerate(rng.sample(plain, amounts["duplicate"]))
    ]
    rows += [_malformed(question, i, rng) for i, question in enumerate(broken)]
    rows += [_row(question, rng, "too_easy") for question in _easy(amounts["too_easy"], rng)]
    rng.shuffle(rows)
    return rows


def solver(batch: Sequence[Question]) -> list[Mapping[str, float]]:
    """A weak solver for curation's difficulty stage: right about words of at most three letters."""
    return [{"one look": float(len(word_of(question.text)) <= 3)} for question in batch]


def corpus(seed: int, count: int) -> Iterator[str]:
    """Texts to train the tokenizer on: questions, then the longest traces and the answers about them."""
    rng = random.Random(f"corpus {seed}")
    for question in questions(seed, count):
        word = word_of(question.text)
        thinking, _, _ = trace(question, rng)
        yield f"user\n{question.text}"
        yield f"assistant\nthink\n{thinking}\n"
        yield f"think\n{think(word, TEACHER.most_waits)[0]}\n"
        yield f"answer\nFinal Answer: {question.answer}"


def _pairs(word: str) -> list[str]:
    return [word[start : start + 2] for start in range(0, len(word), 2)]


def _draw_word(rng: random.Random, words: Words) -> str:
    while True:
        length = rng.randint(words.shortest, words.longest)
        doubled = rng.choices(range(len(words.doubled)), words.doubled)[0]
        places = set(rng.sample(range(length // 2), min(doubled, length // 2)))
        word = "".join(
            2 * TARGET if place in places else _plain_pair(rng, min(2, length - 2 * place), words.single)
            for place in range((length + 1) // 2)
        )
        if word.count(TARGET) <= words.most:
            return word


def _plain_pair(rng: random.Random, size: int, single: float) -> str:
    letters = rng.choices(OTHERS, k=size)
    if rng.random() < single:
        letters[rng.randrange(size)] = TARGET
    return "".join(letters)


def _waits(word: str, rng: random.Random, teacher: Teacher) -> int:
    waits, stop = 0, teacher.stop_first
    while waits < teacher.most_waits and rng.random() >= stop:
        waits += 1
        stop = teacher.stop_checked if waits * teacher.pairs >= len(_pairs(word)) else teacher.stop
    return waits


def _question(text: str, word: str, kind: str) -> Question:
    return Question(
        id=question_id(text),
        text=text,
        answer=str(word.count(TARGET)),
        source=f"{SOURCE}/{kind}",
        domain=f"{len(word)} letters",
    )


def _row(question: Question, rng: random.Random, kind: str = "words") -> dict[str, Any]:
    thinking, answer, correct = trace(question, rng)
    return {
        "id": question.id,
        "question": question.text,
        "thinking": thinking,
        "answer": answer,
        "gold": question.answer,
        "domain": question.domain,
        "source": f"{SOURCE}/{kind}",
        "correct": correct,
    }


def _respelled(question: Question, number: int, rng: random.Random) -> dict[str, Any]:
    text = question.text
    respelled = (text.upper(), text.replace(" ", ", "), text.replace(" ", "  "))[number % 3]
    row = _row(question, rng, "near_duplicate")
    return {**row, "question": respelled, "id": question_id(respelled)}


def _malformed(question: Question, number: int, rng: random.Random) -> dict[str, Any]:
    row = _row(question, rng, "malformed")
    broken = ({"thinking": ""}, {"answer": ""}, {"thinking": row["thinking"] + "\n<|im_start|>answer"})
    return {**row, **broken[number % 3]}


def _easy(count: int, rng: random.Random) -> list[Question]:
    letters = TARGET + OTHERS
    words = [a + b + c for a in letters for b in letters for c in ("", *letters)]
    texts = [(ask(word), word) for word in words if not is_held_out(ask(word))]
    return [_question(text, word, "too_easy") for text, word in rng.sample(texts, count)]
