"""The verb `eval`: a benchmark under one or several settings -> `samples.jsonl` and `report.json`.

All settings run as rows of one engine. A finished sample is graded and on disk before the next is looked at, so a
killed run goes on where it was.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.benchmarks import BENCHMARKS, benchmark
from s1jax.benchmarks.benchmark import Benchmark
from s1jax.config import Amount, BadInput, Count, Positive, by_content
from s1jax.eval import reading, summary, terminal
from s1jax.eval.summary import REPORT, SAMPLES, Setting
from s1jax.grading.grade import KINDS
from s1jax.grading.pool import Grader
from s1jax.methods.config import ModelRun
from s1jax.methods.engines import build_engines, check_model
from s1jax.methods.parts import Parts, run_folder
from s1jax.methods.progress import ProgressBar
from s1jax.methods.router import answer_text
from s1jax.methods.session import Session
from s1jax.methods.stored import by_job, prompts_of, stored
from s1jax.methods.task import Ask, Job
from s1jax.methods.vote import VoteConfig
from s1jax.records import Completion, Question, Sample, write_json
from s1jax.runs import places
from s1jax.runs.fingerprint import Content, of_value
from s1jax.runs.folder import contents_of


@dataclasses.dataclass(frozen=True)
class VoteSweep:
    """Majority votes beside a sweep, at equal total tokens.

    Attributes:
      n: voters; votes of 2, 4, ... n come out of the same samples.
      temperature: of their sampling.
      thinking_token_budget: of each voter; None: the control's.
    """

    n: Positive = 16
    temperature: Amount = 0.8
    thinking_token_budget: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(ModelRun):
    """A benchmark and how it is answered.

    Attributes:
      benchmark: a key of `BENCHMARKS`, or a file of one's own (JSONL, Parquet).
      benchmark_source: a file, a folder or a hub id with the questions of a registered benchmark.
      grader: how answers are graded, a key of `KINDS`; None: the benchmark's.
      limit: the first so many questions only.
      instruction: put after the question and an empty line; upstream has none.
      budgets: a sweep: one setting for each thinking budget.
      ignores: a sweep: one setting for each number of ignored ends, at the control's own budget.
      votes: majority votes beside the sweep.
    """

    benchmark: str = by_content()
    benchmark_source: str | None = by_content(None)
    grader: str | None = None
    limit: Positive | None = None
    instruction: str | None = None
    budgets: tuple[Count, ...] = ()
    ignores: tuple[Count, ...] = ()
    votes: VoteSweep | None = None


def run(config: EvalRun, session: Session | None = None) -> pathlib.Path:
    """Evaluate; `session` stands in for the one that reads the model. Returns the folder.

    Raises:
      BadInput: questions, settings or a former run that do not fit, before any work.
    """
    bench = find_benchmark(config.benchmark, config.grader)
    if config.limit is not None and config.limit < 1:
        raise BadInput(f"limit={config.limit} leaves no question; give at least 1")
    questions = bench.load(config.benchmark_source)[: config.limit]
    settings = settings_of(config)
    reads_model = session is None
    session = session or Session(config, build_engines)
    jobs = [
        job
        for setting in settings
        for job in _jobs(bench, questions, setting, session, config.seed, config.instruction)
    ]
    session.check(jobs)
    if reads_model:
        check_model(config)
    described: dict[str, Any] = {
        "benchmark": bench.name,
        "official_size": bench.size,
        "private": bench.private,
        "model": config.model,
        "tokenizer": config.tokenizer or config.model,
        "dtype": config.dtype,
        "instruction": config.instruction,
    }
    asked = of_value([bench.name, bench.kind, [dataclasses.asdict(question) for question in questions]])
    read = {"benchmark": Content(config.benchmark_source or config.benchmark, {"the content": asked})}
    with run_folder(config, lambda: read) as out:
        if evaluate(bench, questions, settings, jobs, session, out):
            described["fingerprints"] = {key: content.digest for key, content in contents_of(out).items()}
            reports = report_all(bench, settings, jobs, session, out, seed=config.seed, described=described)
            terminal.show(reports)
            print(reading.line(reports))
    return places.place(config.out)


def find_benchmark(name: str, grader: str | None = None) -> Benchmark:
    """A benchmark of the registry, or of a file. Raises BadInput for a name that is neither, or an unfit grader."""
    if grader is not None and grader not in KINDS:
        raise BadInput(f"grader={grader!r} is not known; use one of {', '.join(KINDS)}")
    if name in BENCHMARKS:
        bench = BENCHMARKS[name]
        if bench.private and grader not in (None, bench.kind):
            raise BadInput(f"grader={grader!r} would write texts of {name}, whose authors ask for none; leave it out")
        return dataclasses.replace(bench, kind=grader or bench.kind)
    if not places.fetched(name).exists():
        raise BadInput(f"benchmark={name!r} is neither a file nor one of {', '.join(BENCHMARKS)}")
    return benchmark.local(name, grader)


def settings_of(config: EvalRun) -> list[Setting]:
    """The settings of a run: each budget, each number of ignored ends, the vote; without a sweep the control itself.

    Raises:
      BadInput: two settings are the same, or one contradicts itself.
    """
    control, sampling, method = config.control, config.sampling, config.method
    settings = []
    for budget in config.budgets:
        of_one = _with(control, "thinking_token_budget", budget, "budgets")
        settings.append(Setting(f"budget-{budget}", of_one, sampling, method))
    for n in config.ignores:
        of_one = _with(control, "thinking_n_ignore", n, "ignores")
        settings.append(Setting(f"ignore-{n}", of_one, sampling, method))
    if not settings:
        settings.append(Setting("" if config.votes is None else "single", control, sampling, method))
    if config.votes is not None:
        budget = config.votes.thinking_token_budget
        name = "votes.thinking_token_budget"
        of_one = control if budget is None else _with(control, "thinking_token_budget", budget, name)
        drawn = dataclasses.replace(sampling, temperature=config.votes.temperature, n=1)
        settings.append(Setting("vote", of_one, drawn, VoteConfig(n=config.votes.n)))
    names = [setting.name for setting in settings]
    if len(set(names)) < len(names):
        raise BadInput(f"the sweep has {', '.join(names)}; every setting must be there once")
    for setting in settings:
        _ = setting.n_samples
    return settings


def _with(control: Any, field: str, value: Any, asked_by: str) -> Any:
    if field not in {each.name for each in dataclasses.fields(control)}:
        raise BadInput(f"{asked_by} sets control.{field}, which control.kind={control.kind} lacks; leave it out")
    return dataclasses.replace(control, **{field: value})


def evaluate(
    bench: Benchmark,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    jobs: Sequence[Job],
    session: Session,
    out: pathlib.Path,
) -> bool:
    """Complete, grade and write what is missing of this process's share.

    `out/NAME/` holds the files of a named setting, `out/` those of a setting without a name.

    Returns: whether this process goes on with the whole files (see `Parts.merge`).
    """
    by_id = {question.id: question for question in questions}
    keys = {setting.name: prompts_of(job for job in jobs if job.setting == setting.name) for setting in settings}
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(Parts(out / name / SAMPLES, session.share)) for name in keys}
        done, n_done = {}, 0
        for name in keys:
            n_samples = {job.id: job.n_samples for job in jobs if job.setting == name}
            found, count = by_job(stored(out / name / SAMPLES, Sample, keys[name]), name, n_samples)
            done, n_done = {**done, **found}, n_done + count
        n_mine = sum(job.n_samples for job in jobs if session.is_mine(job.id))
        grader = stack.enter_context(Grader())
        progress = stack.enter_context(ProgressBar(n_mine, n_done, bench.name))

        def on_done(job: Job, ask: Ask, completion: Completion) -> None:
            parts[job.setting].write(graded(completion, ask, by_id[job.id], bench, session, grader))
            progress.advance(len(completion.token_ids))

        session.run(jobs, on_done, stored=done)
        return all([parts[name].merge(list(keys[name])) for name in keys])


def report_all(
    bench: Benchmark,
    settings: Sequence[Setting],
    jobs: Sequence[Job],
    session: Session,
    out: pathlib.Path,
    *,
    seed: int,
    described: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Write and return the report of every setting, from its whole file of samples."""
    reports = []
    with Grader() as grader:
        for setting in settings:
            prompts = prompts_of(j for j in jobs if j.setting == setting.name)
            samples = stored(out / setting.name / SAMPLES, Sample, prompts)
            scores = [summary.score(sample, bench.kind, session.tokenizer.decode) for sample in samples]
            scores = summary.with_votes(scores, bench.kind, grader)
            report = summary.summarise(scores, setting, bench.kind, **described, seed=seed, seeds=[seed])
            write_json(out / setting.name / REPORT, report)
            reports.append(report)
    return reports


def _jobs(
    bench: Benchmark, questions: Sequence[Question], setting: Setting, session: Session, seed: int, tail: str | None
) -> list[Job]:
    jobs = []
    for question in questions:
        messages = session.question(bench.prompt(question) + ("" if tail is None else f"\n\n{tail}"))
        job = session.job(
            question.id, messages, setting.control, setting.sampling, setting.method, setting=setting.name, seed=seed
        )
        jobs.append(job)
    return jobs


def graded(
    completion: Completion, ask: Ask, question: Question, bench: Benchmark, session: Session, grader: Grader
) -> Sample:
    """A completion with its grade; texts of a private benchmark are left out."""
    gold = question.answer or ""
    text = answer_text(completion, session.tokenizer, ask.control, ask.sampling.stop)
    verdict = grader.grade(text, gold, bench.kind)
    fields: dict[str, Any] = {field.name: getattr(completion, field.name) for field in dataclasses.fields(Completion)}
    del fields["format"]  # a sample has its own
    fields["question"] = question.text
    if bench.private:
        fields |= {"text": "", "question": ""}
    return Sample(
        **fields,
        extracted=verdict.extracted,
        gold=gold,
        correct=verdict.correct,
        no_answer=verdict.no_answer,
        rule=verdict.rule,
        undecided=verdict.undecided,
    )
