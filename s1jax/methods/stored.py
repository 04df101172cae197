"""Rows that a former start of a run has left, read one at a time: a file of long traces may be larger than memory."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from s1jax.config import BadInput
from s1jax.methods import METHODS
from s1jax.methods.parts import files_of
from s1jax.methods.task import Job
from s1jax.records import Completion, to_completion

C = TypeVar("C", bound=Completion)
Prompts = Mapping[tuple[str, int], tuple[int, ...] | None]


def stored(path: pathlib.Path, cls: type[C], prompts: Prompts) -> Iterator[C]:
    """The finished rows of a file and its parts (`s1jax.methods.parts`) that are still wanted, in order.

    A row that a killed merge has left in the file and in a part is given once. A line without its newline was cut off
    by a crash, and does not count.

    Args:
      path: of JSONL; a file that is not there has no rows.
      prompts: prompt tokens of each (id, sample) that is wanted; None where they are not known.

    Raises:
      BadInput: a line is no row, a row is twice in one file, or it completes another prompt.
    """
    given: set[tuple[str, int]] = set()
    for part in files_of(path):
        new = set()
        for key, completion in _rows(part, cls, prompts):
            if key not in given:
                new.add(key)
                yield completion
        given |= new


def _rows(path: pathlib.Path, cls: type[C], prompts: Prompts) -> Iterator[tuple[tuple[str, int], C]]:
    seen = set()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise BadInput(f"{where} is not JSON; remove that line, its row is then completed anew") from None
            completion = to_completion(row, cls, f"{where} ")
            key = (completion.id, completion.sample)
            if key in seen:
                raise BadInput(f"{where}: sample {key[1]} of {key[0]!r} is there twice; remove one line")
            seen.add(key)
            prompt = prompts.get(key)
            if prompt is not None and completion.prompt_ids != prompt:
                raise BadInput(
                    f"{where}: sample {key[1]} of {key[0]!r} completes another prompt (of {len(completion.prompt_ids)} "
                    f"tokens, now of {len(prompt)}); questions or tokenizer changed: give another out folder"
                )
            if key in prompts:
                yield key, completion


def prompts_of(jobs: Iterable[Job]) -> dict[tuple[str, int], tuple[int, ...] | None]:
    """Prompt tokens of each (id, sample), in the order asked for; None where they follow from earlier samples."""
    return {
        (id, sample): job.prompt_ids if sample == 0 or METHODS[job.method.kind].is_one_round else None
        for job in jobs
        for id, sample in job.keys
    }


def by_job(
    rows: Iterable[C], setting: str, n_samples: Mapping[str, int], *, keeps_all: bool = False
) -> tuple[dict[tuple[str, str], dict[int, C]], int]:
    """Finished samples of each (setting, id), and how many there are in all.

    Of a job that has all its samples only their numbers are kept (with None), since nothing will ask for them.

    Args:
      n_samples: of each id.
      keeps_all: keep them too.
    """
    found: dict[tuple[str, str], dict[int, Any]] = {}
    count = 0
    for row in rows:
        samples = found.setdefault((setting, row.id), {})
        samples[row.sample] = row
        count += 1
        if len(samples) == n_samples[row.id] and not keeps_all:
            samples.update(dict.fromkeys(samples))
    return found, count
