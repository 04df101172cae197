"""Drop questions that solvers answer already: what is too easy teaches little.

Upstream drops a question that Qwen2.5-7B or 32B Instruct answers right in one attempt (data/filter.ipynb, cell 9).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from curation.stage import Candidate, Selection, Stage, Tools, split
from s1jax.config import BadInput, Fraction, Positive
from s1jax.records import JsonlWriter, read_jsonl


@dataclasses.dataclass(frozen=True)
class DifficultyConfig:
    """Which questions are too easy, by the verdicts of solvers.

    Attributes:
      solvers: whose verdicts count; none named: all.
      max_pass_rate: a question is too easy if any of them is right in more than this share of its attempts.
      unjudged: what happens to a question without a verdict (upstream: drop).
      batch: questions that a solver gets at once; its verdicts are on disk before it gets the next.
    """

    solvers: tuple[str, ...] = ()
    max_pass_rate: Fraction = 0.0
    unjudged: Literal["keep", "drop"] = "keep"
    batch: Positive = 256


def select(candidates: Sequence[Candidate], config: DifficultyConfig, tools: Tools) -> Selection:
    """Ask the solver, if there is one, for the questions that have no verdict; then drop what is too easy.

    Raises BadInput: a limit outside 0 to 1, no batch, or a solver that does not answer for each question.
    """
    if not 0 <= config.max_pass_rate <= 1 or config.batch < 1:
        raise BadInput(
            f"difficulty.max_pass_rate={config.max_pass_rate} must lie in 0 to 1, batch={config.batch} be above 0"
        )
    return split(_judged(candidates, config, tools), lambda candidate: _judge(candidate, config))


def _judge(candidate: Candidate, config: DifficultyConfig) -> tuple[str, str] | None:
    verdicts = _counting(candidate, config)
    if not verdicts:
        return ("unjudged", "no solver's verdict") if config.unjudged == "drop" else None
    solver, rate = max(verdicts.items(), key=lambda item: (item[1], item[0]))
    return ("too easy", f"{solver} is right in {rate:.0%} of its attempts") if rate > config.max_pass_rate else None


def _counting(candidate: Candidate, config: DifficultyConfig) -> dict[str, float]:
    return {name: rate for name, rate in candidate.verdicts.items() if not config.solvers or name in config.solvers}


def _judged(candidates: Sequence[Candidate], config: DifficultyConfig, tools: Tools) -> list[Candidate]:
    """The candidates with the solver's verdicts, those of an earlier start read back from `verdicts.jsonl`."""
    if tools.solver is None:
        return list(candidates)
    path = tools.folder / "verdicts.jsonl"
    with JsonlWriter(path) as writer:  # opened first: it drops a line that a crash cut off
        known = {row["id"]: row["verdicts"] for row in read_jsonl(path, allow_empty=True)}
        open_ = [c for c in candidates if c.id not in known and not _counting(c, config)]
        for start in range(0, len(open_), config.batch):
            batch = open_[start : start + config.batch]
            verdicts = tools.solver([candidate.question for candidate in batch])
            if len(verdicts) != len(batch):
                raise BadInput(
                    f"the solver gave {len(verdicts)} verdicts for {len(batch)} questions; it must give one each"
                )
            for candidate, verdict in zip(batch, verdicts, strict=True):
                known[candidate.id] = {name: float(rate) for name, rate in verdict.items()}
                writer.write({"id": candidate.id, "verdicts": known[candidate.id]})
            tools.progress(f"difficulty: {start + len(batch)} of {len(open_)} questions judged")
    return [dataclasses.replace(c, verdicts={**known.get(c.id, {}), **c.verdicts}) for c in candidates]


STAGE = Stage(select)
