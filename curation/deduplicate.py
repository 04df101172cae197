"""Drop questions that stand in the pool already.

Upstream hides a second rule in its decontamination: a question that shares an 8-gram with one kept from an earlier
source is dropped, so their order decides (simplescaling/s1@77272c6 data/collect_data.py:475). Here it is explicit.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Literal

from curation.stage import Candidate, Selection, Stage, Tools, split
from curation.text import squeeze, word_ngrams
from s1jax.config import BadInput, Positive


@dataclasses.dataclass(frozen=True)
class DeduplicateConfig:
    """When two questions are the same.

    Attributes:
      match: `text` (upstream: the same string) or `letters` (the same letters and digits); the first of the pool stays.
      ngram: also drop a question that shares so many consecutive words with one of an earlier source (upstream: 8).
    """

    match: Literal["text", "letters"] = "letters"
    ngram: Positive | None = None


def select(candidates: Sequence[Candidate], config: DeduplicateConfig, tools: Tools) -> Selection:
    """First come, first kept. Raises BadInput for an n-gram of less than one word."""
    if config.ngram is not None and config.ngram < 1:
        raise BadInput(f"deduplicate.ngram={config.ngram} must be at least 1; leave it out for no such rule")
    seen: dict[str, str] = {}
    ids: dict[str, str] = {}
    grams: dict[Hashable, Candidate] = {}

    def judge(candidate: Candidate) -> tuple[str, str] | None:
        text = candidate.question.text
        form = squeeze(text) if config.match == "letters" and squeeze(text) else text
        if form in seen:
            return "duplicate", f"same question as {seen[form]}"
        if candidate.id in ids:
            return "duplicate id", f"id {candidate.id} belongs to another question of {ids[candidate.id]}"
        own = word_ngrams(text, config.ngram) if config.ngram else set()
        near = next((grams[g] for g in own if g in grams and grams[g].origin != candidate.origin), None)
        if near is not None:
            return "near-duplicate", f"{config.ngram}-gram shared with {near.id} of {near.origin}"
        seen[form] = candidate.id
        ids[candidate.id] = candidate.origin
        grams.update((gram, candidate) for gram in own if gram not in grams)
        return None

    return split(candidates, judge)


STAGE = Stage(select)
