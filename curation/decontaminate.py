"""Drop questions of benchmarks, however they are spelled.

Upstream's rule: a question is dropped if it shares at least one 8-gram of words with a test question
(simplescaling/s1@77272c6 data/decontaminate_util.py:6-57, collect_data.py:387-396). It cannot see questions under 8
words and misses other spacings of the same LaTeX; the other two rules see those. A paraphrase passes all three.
"""

import dataclasses
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from curation.stage import Candidate, Selection, Stage, Tools, split
from curation.text import squeeze, symbol_ngrams, word_ngrams
from s1jax.config import BadInput, Positive
from s1jax.tables import load_rows, shared_data

QUESTION_COLUMNS = ("question", "problem", "Question", "Problem", "text", "prompt")
ID_COLUMNS = ("id", "unique_id", "ID", "Record ID")


@dataclasses.dataclass(frozen=True)
class Against:
    """A benchmark whose questions must not be trained on.

    Attributes:
      name: of the benchmark.
      path: file, folder or hub id; by default `<name>.jsonl` of the shared data.
      split: of a hub data set.
      subset: configuration of a hub data set that has several.
    """

    name: str
    path: str = ""
    split: str = "test"
    subset: str | None = None


@dataclasses.dataclass(frozen=True)
class DecontaminateConfig:
    """When a question counts as one of a benchmark.

    Attributes:
      against: the benchmarks.
      words: it shares so many consecutive words with one (upstream's rule); None for no such rule.
      letters: it has the same letters and digits in the same order (upstream: off).
      symbols: it shares so many consecutive runs of letters or digits, blind to punctuation; None (upstream): no rule.
    """

    against: tuple[Against, ...] = (Against("math500"), Against("aime24"), Against("aime25"))
    words: Positive | None = 8
    letters: bool = True
    symbols: Positive | None = 13


Rule = Callable[[str], set[Hashable]]


def select(candidates: Sequence[Candidate], config: DecontaminateConfig, tools: Tools) -> Selection:
    """Raises BadInput: no rule, a rule without words, or a benchmark that cannot be read."""
    rules = _rules(config)
    index: dict[str, dict[Hashable, str]] = {name: {} for name in rules}
    for benchmark in config.against:
        for item, text in _questions(benchmark):
            for name, rule in rules.items():
                for gram in rule(text):
                    index[name].setdefault(gram, item)

    def judge(candidate: Candidate) -> tuple[str, str] | None:
        for name, rule in rules.items():
            hits = {index[name][gram] for gram in rule(candidate.question.text) if gram in index[name]}
            if hits:
                return name, f"{name} shared with {min(hits)}"
        return None

    return split(candidates, judge)


def _rules(config: DecontaminateConfig) -> dict[str, Rule]:
    for name, n in (("words", config.words), ("symbols", config.symbols)):
        if n is not None and n < 1:
            raise BadInput(f"decontaminate.{name}={n} must be at least 1; null turns the rule off")
    rules: dict[str, Rule] = {}
    if config.words is not None:
        rules[f"{config.words}-gram"] = lambda text, n=config.words: word_ngrams(text, n)
    if config.letters:
        rules["letters"] = lambda text: {squeezed} if (squeezed := squeeze(text)) else set()
    if config.symbols is not None:
        rules[f"{config.symbols}-symbols"] = lambda text, n=config.symbols: symbol_ngrams(text, n)
    if not rules:
        raise BadInput(
            "decontaminate has no rule left: words, letters and symbols are off; leave the stage out instead"
        )
    return rules


def _questions(benchmark: Against) -> list[tuple[str, str]]:
    """(name of the item, question) of a benchmark."""
    path = benchmark.path or str(shared_data() / "benchmarks" / f"{benchmark.name}.jsonl")
    if not benchmark.path and not os.path.isfile(path):
        raise BadInput(
            f"benchmark {benchmark.name!r} has no file {path}; give its path or hub id: "
            f"decontaminate.against=[{{name: {benchmark.name}, path: ...}}], or set S1JAX_SHARED"
        )
    rows = load_rows(path, split=benchmark.split, subset=benchmark.subset)
    return [(f"{benchmark.name} {_item(row, i)}", _text(row, f"{path}, row {i + 1}")) for i, row in enumerate(rows)]


def _item(row: Mapping[str, Any], i: int) -> str:
    return str(next((row[column] for column in ID_COLUMNS if row.get(column) is not None), i))


def _text(row: Mapping[str, Any], where: str) -> str:
    for column in QUESTION_COLUMNS:
        if isinstance(row.get(column), str) and row[column].strip():
            return row[column]
    raise BadInput(f"{where} has no question in {', '.join(QUESTION_COLUMNS)}; rename its column")


STAGE = Stage(select)
