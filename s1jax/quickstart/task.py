"""The quickstart's task: count the r in a spelled word, first by glancing at pairs of letters, then by checking them.

    question   How many r in 1r 2a 3s 4p 5b 6e 7r 8r 9y
    thinking   2:1 4:1 6:1 8:2 9:2
               Wait 2:2 4:2
               Wait 6:2 8:3
    answer     Final Answer: 3

`4:1` reads "up to letter 4 the estimate is 1". A glance at a pair adds at most one, so a pair `rr` is counted once: the
first pass is wrong for a reason that is a function of the question. Each `Wait` looks again at the next two
pairs and adds what the glance missed. It goes on from the estimate so far: wherever a trace is cut, its last number is
the best estimate yet. When every pair has been checked, a `Wait` only says so: `all:3`.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.quickstart.recipe import RECIPE, Junk, TeacherHabits, Words
from s1jax.records import Question, question_id

TARGET = "r"
OTHERS = "aspbeytw"  # with `r` the letters of raspberry and strawberry
ASK = f"How many {TARGET} in"
MISSES = 10_000  # draws in a row without a new question, after which there are none


def ask(word: str) -> str:
    """The question about a word: each letter with its place, so that a letter can be found by its number."""
    return f"{ASK} " + " ".join(f"{place}{letter}" for place, letter in enumerate(word, 1))


def word_of(text: str) -> str:
    """The word of a question that `ask` wrote."""
    return "".join(part.lstrip("0123456789") for part in text.removeprefix(ASK).split())


def is_held_out(text: str) -> bool:
    """Whether a question is kept from training: 1 in 10, by the SHA-256 of its text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") % 10 == 0


def questions(seed: int, count: int, *, held_out: bool = False, words: Words = RECIPE.words) -> list[Question]:
    """`count` different questions of one side of the split; a function of the arguments alone.

    Two seeds may give the same question; the two sides never do. `answer` is the true count, `domain` the length.

    Raises:
      BadInput: there are not so many.
    """
    rng = random.Random(f"questions {seed}")
    found: dict[str, Question] = {}
    misses = 0
    while len(found) < count:
        word = _draw_word(rng, words)
        text = ask(word)
        is_new = text not in found and is_held_out(text) == held_out
        misses = 0 if is_new else misses + 1
        if is_new:
            found[text] = question_about(word)
        elif misses > MISSES:
            raise BadInput(f"of {count} questions asked for, only {len(found)} can be found; ask for fewer")
    return list(found.values())


def question_about(word: str) -> Question:
    """The question about a word, with the true count and, as its domain, the length of the word."""
    text = ask(word)
    return Question(
        id=question_id(text),
        text=text,
        answer=str(word.count(TARGET)),
        source="quickstart/words",
        domain=f"{len(word)} letters",
    )


def glance(word: str) -> list[int]:
    """Running estimate after each pair of the first pass: a pair adds at most one."""
    estimates, estimate = [], 0
    for pair in _pairs(word):
        estimate += TARGET in pair
        estimates.append(estimate)
    return estimates


def think(word: str, waits: int, teacher: TeacherHabits = RECIPE.teacher) -> tuple[str, int]:
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
        lines.append(" ".join(["Wait", *(steps or [f"all:{estimate}"])]))
    return "\n".join(lines), estimate


def trace(question: Question, rng: random.Random, teacher: TeacherHabits = RECIPE.teacher) -> tuple[str, str, bool]:
    """The teacher's (thinking, answer, whether the answer is right) for a question of `questions`."""
    word = word_of(question.text)
    if rng.random() < teacher.hasty:
        estimates = glance(word)
        looked = rng.randint(1, max(len(estimates) - 1, 1))
        thinking, count = " ".join(think(word, 0)[0].split()[:looked]), estimates[looked - 1]
    else:
        thinking, count = think(word, _waits(word, rng, teacher), teacher)
    return thinking, f"Final Answer: {count}", str(count) == question.answer


def pool(seed: int, count: int, held_out: Sequence[Question], junk: Junk = RECIPE.junk) -> list[dict[str, Any]]:
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


def corpus(seed: int, count: int, words: Words = RECIPE.words) -> Iterator[str]:
    """Texts to train the tokenizer on: each word of the task once, then rows without their special tokens.

    A rare step such as `12:6` may be in no trace of a small pool; listed, it becomes one id all the same.
    """
    places = range(1, words.longest + 1)
    yield " ".join(f"{place}{letter}" for place in places for letter in sorted(TARGET + OTHERS))
    yield " ".join(f"{place}:{count}" for place in places for count in range(words.most + 1))
    yield "\n".join(f"{place}:{count}" for place in (1, 2) for count in (0, 1))  # no space before the first of a trace
    yield " ".join(f"all:{count} {count}" for count in range(words.most + 1))
    rng = random.Random(f"corpus {seed}")
    for question in questions(seed, count, words=words):
        thinking, answer, _ = trace(question, rng)
        yield f"user\n{question.text}\nassistant\nthink\n{thinking}\nWait\nanswer\n{answer}\n"


def _pairs(word: str) -> list[str]:
    return [word[start : start + 2] for start in range(0, len(word), 2)]


def _draw_word(rng: random.Random, words: Words) -> str:
    while True:
        length = rng.randint(words.shortest, words.longest)
        doubled = rng.choices(range(len(words.doubled)), words.doubled)[0]
        places = _places(rng, length // 2, doubled)
        word = "".join(
            2 * TARGET if place in places else _plain_pair(rng, min(2, length - 2 * place), words.single)
            for place in range((length + 1) // 2)
        )
        if word.count(TARGET) <= words.most:
            return word


def _places(rng: random.Random, pairs: int, count: int) -> set[int]:
    """`count` different pairs, or all; the k-th is k times as likely as the first."""
    weights = list(range(1, pairs + 1))
    places: set[int] = set()
    while len(places) < min(count, pairs):
        places.add(rng.choices(range(pairs), weights)[0])
    return places


def _plain_pair(rng: random.Random, size: int, single: float) -> str:
    letters = rng.choices(OTHERS, k=size)
    if rng.random() < single:
        letters[rng.randrange(size)] = TARGET
    return "".join(letters)


def _waits(word: str, rng: random.Random, teacher: TeacherHabits) -> int:
    for waits in range(teacher.most_waits):
        all_checked = waits * teacher.pairs >= len(_pairs(word))
        if rng.random() < (teacher.stop_checked if all_checked else teacher.stop[waits]):
            return waits
    return teacher.most_waits


def _row(question: Question, rng: random.Random, kind: str = "words") -> dict[str, Any]:
    thinking, answer, correct = trace(question, rng)
    return {
        "id": question.id,
        "question": question.text,
        "thinking": thinking,
        "answer": answer,
        "gold": question.answer,
        "domain": question.domain,
        "source": f"quickstart/{kind}",
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
    asked = [question for question in map(question_about, words) if not is_held_out(question.text)]
    return rng.sample(asked, count)
