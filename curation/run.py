"""The `curate` verb: sources -> stages -> rows.jsonl, and a receipt that says what became of every row of the pool."""

import collections
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from curation import STAGES
from curation.decontaminate import Against, DecontaminateConfig
from curation.deduplicate import DeduplicateConfig
from curation.difficulty import DifficultyConfig
from curation.diversity import DiversityConfig
from curation.quality import QualityConfig
from curation.sources import SourceConfig, load
from curation.stage import Candidate, Dropped, SayLine, Solver, Teacher, Tools
from curation.traces import TracesConfig
from s1jax.config import BadInput, Seed
from s1jax.records import write_json, write_jsonl
from s1jax.runs import places
from s1jax.runs.folder import entered

FORMAT = "s1jax.curate/1"


@dataclasses.dataclass(frozen=True)
class CurateRun:
    """A pool of questions and the stages that select from it.

    Attributes:
      sources: where the pool comes from, in order; earlier ones win over duplicates.
      stages: keys of `STAGES`, in order; one may stand twice. After `decontaminate` only `diversity` may follow.
      deduplicate: the same question from two sources.
      traces: where reasoning traces come from.
      quality: questions and traces that are broken.
      difficulty: questions that are too easy.
      decontaminate: questions that stand in a benchmark.
      diversity: the draw of the final rows over domains.
      seed: of the draw.
      out: folder of the run; by default `runs/` and the name of the recipe.
    """

    sources: tuple[SourceConfig, ...]
    stages: tuple[str, ...] = ("deduplicate", "traces", "quality", "difficulty", "decontaminate", "diversity")
    deduplicate: DeduplicateConfig = DeduplicateConfig()
    traces: TracesConfig = TracesConfig()
    quality: QualityConfig = QualityConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    diversity: DiversityConfig = DiversityConfig()
    seed: Seed = 0
    out: str = ""


def run(
    config: CurateRun,
    *,
    teacher: Teacher | None = None,
    solver: Solver | None = None,
    progress: SayLine | None = None,
) -> pathlib.Path:
    """Curate; a second start in the same folder asks teacher and solver only for what is not on disk yet.

    Args:
      teacher: writes the trace of a question that has none, or None.
      solver: gives, for each of a batch of questions, solver name -> share of right attempts.
      progress: takes one line at a time; by default they go to stderr.

    Returns: the folder with `rows.jsonl` (`id, question, thinking, answer, gold, domain, source, correct,
      thinking_length`) and `receipt.json`.

    Raises:
      BadInput: an unknown or misplaced stage, unreadable sources, a pool that has changed since the folder was begun,
        or no row left.
    """
    _check_stages(config.stages)
    pool, passed_over, sources = _pool(config.sources)
    # Each stage sees its config once on nothing, so that what is wrong with it is said before a folder is begun.
    _select((), config, Tools(config.seed, pathlib.Path(), progress=lambda line: None))
    with entered(config, device="cpu") as folder:
        tools = Tools(config.seed, folder, teacher, solver, progress or _to_stderr)
        _curate(config, tools, folder, pool, passed_over, sources)
    return places.place(config.out)


def _curate(
    config: CurateRun,
    tools: Tools,
    folder: pathlib.Path,
    pool: list[Candidate],
    passed_over: list[Dropped],
    sources: list[dict[str, Any]],
) -> None:
    fingerprint = _remember_pool(folder, pool)
    tools.progress(f"pool: {len(pool)} candidates from {len(config.sources)} sources")
    kept, steps, dropped = _select(pool, config, tools)
    drops = [{"stage": "sources", **dataclasses.asdict(drop)} for drop in passed_over] + dropped
    total = len(pool) + len(passed_over)
    assert len(kept) + len(drops) == total, "a stage lost or doubled a candidate"
    receipt = {
        "format": FORMAT,
        "seed": config.seed,
        "pool": total,
        "kept": len(kept),
        "dropped": len(drops),
        "pool_sha256": fingerprint,
        "length_unit": "tokens" if config.traces.tokenizer else "words",
        "decontaminated_against": [against.name for against in _benchmarks(config)],
        "sources": sources,
        "stages": steps,
        "kept_by_source": _counts(candidate.question.source for candidate in kept),
        "kept_by_domain": _counts(candidate.question.domain for candidate in kept),
        "kept_by_correct": _counts(candidate.correct for candidate in kept),
        "drops": drops,
    }
    write_json(folder / "receipt.json", receipt)
    _check_result(kept, folder)
    write_jsonl(folder / "rows.jsonl", (_row(candidate) for candidate in kept))
    tools.progress(f"kept {len(kept)} of {total}: {folder / 'rows.jsonl'}")


def _check_stages(stages: Sequence[str]) -> None:
    for name in stages:
        if name not in STAGES:
            raise BadInput(f"stages: {name!r} is not known; the stages are {', '.join(STAGES)}")
    if "decontaminate" in stages:
        late = set(stages[len(stages) - stages[::-1].index("decontaminate") :]) - {"diversity"}
        if late:
            raise BadInput(
                f"stages: {', '.join(sorted(late))} after decontaminate; it must see all, put it behind them"
            )


def _pool(sources: Sequence[SourceConfig]) -> tuple[list[Candidate], list[Dropped], list[dict[str, Any]]]:
    if not sources:
        raise BadInput("sources is empty; name at least one, for example sources=[{kind: rows, path: pool.jsonl}]")
    loaded = [load(source) for source in sources]
    counts = [
        {"kind": s.kind, "path": s.path, "rows": len(x.kept) + len(x.dropped), "candidates": len(x.kept)}
        for s, x in zip(sources, loaded, strict=True)
    ]
    return [c for x in loaded for c in x.kept], [d for x in loaded for d in x.dropped], counts


def _remember_pool(folder: pathlib.Path, pool: Sequence[Candidate]) -> str:
    """SHA-256 over the pool; a folder that was begun with another pool is refused, since its traces would be mixed."""
    digest = hashlib.sha256()
    for candidate in pool:
        digest.update(json.dumps(dataclasses.asdict(candidate), sort_keys=True).encode("utf-8"))
    now, path = digest.hexdigest(), folder / "pool.json"
    before = json.loads(path.read_text(encoding="utf-8"))["sha256"] if path.is_file() else now
    if before != now:
        raise BadInput(
            f"{folder} was begun with another pool (sha256 {before[:12]}, now {now[:12]}); give a new out folder"
        )
    write_json(path, {"format": "s1jax.pool/1", "sha256": now, "candidates": len(pool)})
    return now


def _select(
    pool: Sequence[Candidate], config: CurateRun, tools: Tools
) -> tuple[tuple[Candidate, ...], list[dict[str, Any]], list[dict[str, Any]]]:
    configs = {
        "deduplicate": config.deduplicate,
        "traces": config.traces,
        "quality": config.quality,
        "difficulty": config.difficulty,
        "decontaminate": config.decontaminate,
        "diversity": config.diversity,
    }
    candidates, steps, drops = tuple(pool), [], []
    for name in config.stages:
        selection = STAGES[name].select(candidates, configs[name], tools)
        before = collections.Counter(candidate.id for candidate in candidates)
        after = collections.Counter(item.id for item in (*selection.kept, *selection.dropped))
        assert before == after, (
            f"stage {name} lost, doubled or added candidates: {dict((before - after) + (after - before))}"
        )
        rules = _counts(drop.rule for drop in selection.dropped)
        counts = {"before": len(candidates), "kept": len(selection.kept), "dropped": len(selection.dropped)}
        steps.append({"stage": name, **counts, "rules": rules})
        drops += [{"stage": name, **dataclasses.asdict(drop)} for drop in selection.dropped]
        tools.progress(f"{name}: {len(selection.kept)} of {len(candidates)} kept")
        candidates = selection.kept
    return candidates, steps, drops


def _check_result(kept: Sequence[Candidate], folder: pathlib.Path) -> None:
    if not kept:
        raise BadInput(f"no row is left; {folder / 'receipt.json'} says which stage dropped them")
    twice = [id for id, count in collections.Counter(candidate.id for candidate in kept).items() if count > 1]
    if twice:
        raise BadInput(f"{len(twice)} ids stand more than once (the first is {twice[0]}); add the stage deduplicate")
    without = [candidate.id for candidate in kept if candidate.thinking is None or candidate.answer is None]
    if without:
        raise BadInput(
            f"{len(without)} rows have no trace (the first is {without[0]}); add the stage traces or quality"
        )


def _benchmarks(config: CurateRun) -> Sequence[Against]:
    return config.decontaminate.against if "decontaminate" in config.stages else ()


def _row(candidate: Candidate) -> dict[str, Any]:
    question = candidate.question
    return {
        "id": candidate.id,
        "question": question.text,
        "thinking": candidate.thinking,
        "answer": candidate.answer,
        "gold": question.answer,
        "domain": question.domain,
        "source": question.source,
        "correct": candidate.correct,
        "thinking_length": candidate.thinking_length,
    }


def _counts(values: Iterable[object]) -> dict[str, int]:
    return dict(sorted(collections.Counter(str(value) for value in values).items()))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
