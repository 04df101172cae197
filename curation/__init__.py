"""Curation of reasoning traces: sources to supervised fine-tuning rows. No JAX here; a solver is passed in.

A new filter is one file with a config and a `STAGE`, one line here and one in `CurateRun`.
"""

from curation import decontaminate, deduplicate, difficulty, diversity, quality, traces
from curation.stage import Stage

STAGES: dict[str, Stage] = {
    "deduplicate": deduplicate.STAGE,
    "traces": traces.STAGE,
    "quality": quality.STAGE,
    "difficulty": difficulty.STAGE,
    "decontaminate": decontaminate.STAGE,
    "diversity": diversity.STAGE,
}
