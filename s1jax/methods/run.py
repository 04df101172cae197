"""The verb `generate`: prompts -> `completions.jsonl`; one prompt, or a chat, to the terminal as it is written."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax import records
from s1jax.config import BadInput, by_content
from s1jax.grading import grade
from s1jax.grading.pool import Grader
from s1jax.methods import METHODS, chat, vote
from s1jax.methods.config import ModelRun
from s1jax.methods.engines import build_engines, check_model
from s1jax.methods.parts import Parts, run_folder
from s1jax.methods.progress import ProgressBar
from s1jax.methods.prompts import override, override_control, prompt_of, read_prompts
from s1jax.methods.router import answer_text
from s1jax.methods.session import Session
from s1jax.methods.stored import by_job, prompts_of, stored
from s1jax.methods.stream import Shown
from s1jax.methods.task import Ask, Job
from s1jax.records import Completion, Prompt
from s1jax.runs import places
from s1jax.runs.fingerprint import Content, of_value

COMPLETIONS, VOTES = "completions.jsonl", "votes.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRun(ModelRun):
    """Prompts and how they are completed; without any, a chat in the terminal.

    Attributes:
      prompts: a file, a folder or a hub id; `docs/formats.md` says what a row may be.
      prompt: one question instead, whose completions are shown while they are written.
      answers: how answers vote (`method.kind=vote`): a key of `s1jax.grading.grade.KINDS`.
      out: where everything is written; a single prompt and a chat are written nowhere unless it is given.
    """

    prompts: str | None = by_content(None)
    prompt: str | None = None
    answers: str = "math"

    @property
    def needs_out(self) -> bool:
        """It writes a file also where no `out` is given."""
        return self.prompts is not None


def run(config: GenerateRun, session: Session | None = None) -> pathlib.Path | None:
    """Complete what is missing; `session` stands in for the one that reads the model.

    Returns: the folder; None where nothing is written.

    Raises:
      BadInput: prompts, settings or a former run that do not fit, before any work.
    """
    if config.prompts is not None and config.prompt is not None:
        raise BadInput("give prompts=FILE or prompt='one question', one of the two")
    if config.answers not in grade.KINDS:
        raise BadInput(f"answers={config.answers!r} is not known; use one of {', '.join(grade.KINDS)}")
    if config.prompts is None and config.prompt is None:
        if not chat.is_possible():
            raise BadInput("give prompts=FILE or prompt='one question', one of the two; a chat needs a terminal")
        return chat.run(config, session or Session(config, build_engines))
    if config.prompts is not None:
        prompts = read_prompts(config.prompts, config.system)
    else:
        prompts = [prompt_of({"question": config.prompt}, "prompt", config.system)]
    reads_model = session is None
    session = session or Session(config, build_engines)
    jobs = [_job(prompt, config, session) for prompt in prompts]
    session.check(jobs)
    if reads_model:
        check_model(config)
    if config.prompt is not None and not config.out:
        return _show(config, session, jobs[0])
    with run_folder(config, lambda: _asked(config, prompts)) as out:
        is_whole = _complete(config, session, jobs, out)
        if is_whole and METHODS[config.method.kind].joint:
            _count(config, session, jobs, out)
    out = places.place(config.out)
    if is_whole and config.prompts is not None:
        print(f"wrote {out / COMPLETIONS}", file=sys.stderr)
    return out


def _show(config: GenerateRun, session: Session, job: Job) -> None:
    """Complete one prompt for the terminal alone."""
    shown = Shown(session.tokenizer, job.control, job.n_samples)
    tally = Tally(session, config.answers)

    def on_done(job: Job, _: Ask, completion: Completion) -> None:
        tally.add(job, completion)
        shown.finish(completion)

    session.run([job], on_done, on_progress=shown.show)
    if METHODS[config.method.kind].joint and session.is_mine(job.id):
        print(vote_line(tally.rows([job.id])[0]))


def _asked(config: GenerateRun, prompts: Sequence[Prompt]) -> dict[str, Content]:
    """The prompts of a file; a single one is a key of the config."""
    rows = [dataclasses.asdict(prompt) for prompt in prompts]
    return {} if config.prompts is None else {"prompts": Content(config.prompts, {"the content": of_value(rows)})}


def _complete(config: GenerateRun, session: Session, jobs: Sequence[Job], out: pathlib.Path) -> bool:
    """Write what is missing. Returns whether this process goes on with the whole file (see `Parts.merge`)."""
    share = session.share
    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(Parts(out / COMPLETIONS, share))
        is_shown = config.prompt is not None
        shown = Shown(session.tokenizer, jobs[0].control, jobs[0].n_samples) if is_shown else None
        n_samples = {job.id: job.n_samples for job in jobs}
        former = stored(out / COMPLETIONS, Completion, prompts_of(jobs))
        finished, n_finished = by_job(former, "", n_samples, keeps_all=len(jobs) == 1)
        n_mine = sum(job.n_samples for job in jobs if session.is_mine(job.id))
        progress = None if shown else stack.enter_context(ProgressBar(n_mine, n_finished, "generate"))
        if shown is not None:
            for completion in finished.get(("", jobs[0].id), {}).values():
                shown.finish(completion)

        def on_done(job: Job, ask: Ask, completion: Completion) -> None:
            parts.write(dataclasses.replace(completion, question=job.question))
            if shown is not None:
                shown.finish(completion)
            elif progress is not None:
                progress.advance(len(completion.token_ids))

        session.run(jobs, on_done, stored=finished, on_progress=None if shown is None else shown.show)
        return parts.merge([key for job in jobs for key in job.keys])


def _job(prompt: Prompt, config: GenerateRun, session: Session) -> Job:
    where = f"prompt {prompt.id!r}"
    control = override_control(config.control, prompt.control, where)
    sampling = override(config.sampling, prompt.sampling, where)
    return session.job(prompt.id, prompt.messages, control, sampling, config.method, seed=prompt.seed)


def _count(config: GenerateRun, session: Session, jobs: Sequence[Job], out: pathlib.Path) -> None:
    """Write the votes of all prompts, in their order; that of a single one is shown."""
    by_id = {job.id: job for job in jobs}
    tally = Tally(session, config.answers)
    for completion in stored(out / COMPLETIONS, Completion, prompts_of(jobs)):
        tally.add(by_id[completion.id], completion)
    rows = tally.rows(list(by_id))
    records.write_jsonl(out / VOTES, rows)
    if config.prompt is not None:
        print(vote_line(rows[0]))


def vote_line(row: Mapping[str, Any]) -> str:
    """What the samples of a prompt agree on, in words."""
    votes = [vote for vote in row["votes"] if vote is not None]
    if row["tied"]:
        return f"tied between {', '.join(row['tied'])} ({votes.count(row['tied'][0])} of {len(row['votes'])} each)"
    if row["answer"] is None:
        return f"none of {len(row['votes'])} gives an answer"
    return f"the answer of {votes.count(row['answer'])} of {len(row['votes'])}: {row['answer']}"


class Tally:
    """Votes of all samples of each prompt."""

    def __init__(self, session: Session, kind: str) -> None:
        self._session, self._kind = session, kind
        self._votes: dict[str, dict[int, str | None]] = {}
        self._spent: dict[str, list[int]] = {}

    def add(self, job: Job, completion: Completion) -> None:
        """Count one sample."""
        text = answer_text(completion, self._session.tokenizer, job.control, job.sampling.stop)
        self._votes.setdefault(job.id, {})[completion.sample] = grade.grade(text, "", self._kind).extracted
        spent = self._spent.setdefault(job.id, [0, 0])
        spent[0] += completion.thinking_tokens
        spent[1] += len(completion.token_ids)

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """One row a prompt: the answer of most samples (null when tied or absent), all votes, and what they cost."""
        rows = []
        answers = {id: [self._votes[id][sample] for sample in sorted(self._votes[id])] for id in ids}
        with Grader() as grader:
            groups = {id: grader.group(of_one, self._kind) for id, of_one in answers.items()}
        for id in ids:
            votes = [None if first is None else answers[id][first] for first in groups[id]]
            won = vote.winners(votes)
            rows.append(
                {
                    "format": "s1jax.votes/1",
                    "id": id,
                    "answer": won[0] if len(won) == 1 else None,
                    "tied": list(won) if len(won) > 1 else [],
                    "votes": votes,
                    "thinking_tokens": self._spent[id][0],
                    "total_tokens": self._spent[id][1],
                }
            )
        return rows
