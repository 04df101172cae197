"""Rows that a former start of a run has left, read one at a time: a file of long traces may be larger than memory."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from s1jax.config import BadInput
from s1jax.methods.parts import files_of
from s1jax.records import Completion, to_completion

C = TypeVar("C", bound=Completion)


def stored(path: pathlib.Path, cls: type[C], prompts: Mapping[tuple[str, int], tuple[int, ...]]) -> Iterator[C]:
    """The finished rows of a file and its parts (`s1jax.methods.parts`) that are still wanted, in order.

    A row that a killed merge has left in the file and in a part is given once. A line without its newline was cut off
    by a crash, and does not count.

    Args:
      path: of JSONL; a file that is not there has no rows.
      prompts: prompt ids of each (id, sample) that is wanted.

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


def _rows(
    path: pathlib.Path, cls: type[C], prompts: Mapping[tuple[str, int], tuple[int, ...]]
) -> Iterator[tuple[tuple[str, int], C]]:
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
            if key in prompts and completion.prompt_ids != prompts[key]:
                raise BadInput(
                    f"{where}: sample {key[1]} of {key[0]!r} completes another prompt (of {len(completion.prompt_ids)} "
                    f"ids, now of {len(prompts[key])}); questions or tokenizer changed: give another out folder"
                )
            if key in prompts:
                yield key, completion
