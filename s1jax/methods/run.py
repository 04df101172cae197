"""The verb `generate`: prompts -> `completions.jsonl`, or one prompt to the terminal as it is written."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

from s1jax import grade, records
from s1jax.config import BadInput, open_run
from s1jax.methods import METHODS, vote
from s1jax.methods.progress import Progress
from s1jax.methods.prompts import override, prompt_of, read_prompts
from s1jax.methods.session import Ask, ModelRun, Session, answer_text, device_name
from s1jax.methods.stream import Stream
from s1jax.records import Completion, JsonlWriter, Prompt

COMPLETIONS, VOTES = "completions.jsonl", "votes.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRun(ModelRun):
    """Prompts and how they are completed.

    Attributes:
      prompts: a JSONL file; see `s1jax.methods.prompts`.
      prompt: one question instead, whose completion is shown while it is written.
      answers: how answers vote (`method.kind=vote`): a key of `s1jax.grade.KINDS`.
    """

    prompts: str | None = None
    prompt: str | None = None
    answers: str = "math"


def run(config: GenerateRun, session: Session | None = None) -> pathlib.Path:
    """Complete what is missing; `session` stands in for the one that reads the model. Returns the folder.

    Raises:
      BadInput: prompts, settings or a former run that do not fit, before any work.
    """
    if (config.prompts is None) == (config.prompt is None):
        raise BadInput("give prompts=FILE.jsonl or prompt='one question', one of the two")
    if config.answers not in grade.KINDS:
        raise BadInput(f"answers={config.answers!r} is not known; use one of {', '.join(grade.KINDS)}")
    if config.prompts is not None:
        prompts = read_prompts(config.prompts, config.system)
    else:
        prompts = [prompt_of({"question": config.prompt}, "prompt", config.system)]
    n = METHODS[config.method.kind].samples(config.method, config.sampling)
    out = open_run(config, device=device_name())
    session = session or Session(config)
    asks = [ask for prompt in prompts for ask in _asks(prompt, config, session, n)]
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(JsonlWriter(out / COMPLETIONS))
        done = _finished(out / COMPLETIONS, asks)
        missing = [ask for ask in asks if (ask.id, ask.sample) not in done]
        stream = Stream(session.tokenizer, config.control) if config.prompt is not None and len(asks) == 1 else None
        progress = None if stream else stack.enter_context(Progress(len(asks), len(asks) - len(missing), "generate"))

        def on_done(ask: Ask, completion: Completion) -> None:
            writer.write(completion)
            done[ask.id, ask.sample] = completion
            if stream is not None:
                stream.finish(completion)
            elif progress is not None:
                progress.advance(len(completion.token_ids))

        session.complete(missing, on_done, None if stream is None else stream.show)
    if METHODS[config.method.kind].joint:
        _write_votes(out / VOTES, asks, done, session, config.answers)
    return out


def _asks(prompt: Prompt, config: GenerateRun, session: Session, n: int) -> list[Ask]:
    where = f"prompt {prompt.id!r}"
    control = override(config.control, prompt.control, where)
    sampling = override(config.sampling, prompt.sampling, where)
    if "n" in prompt.sampling:
        n = METHODS[config.method.kind].samples(config.method, sampling)
    seed = config.seed if prompt.seed is None else prompt.seed
    ids = session.prompt_ids(prompt.messages, control)
    return [Ask("", prompt.id, sample, seed, ids, control, sampling) for sample in range(n)]


def _finished(path: pathlib.Path, asks: Sequence[Ask]) -> dict[tuple[str, int], Completion]:
    """Completions of a former start. Raises BadInput for one that is there twice or answers another prompt."""
    by_key = {(ask.id, ask.sample): ask for ask in asks}
    found = {}
    for number, row in enumerate(records.read_jsonl(path, allow_empty=True), 1):
        completion = records.to_completion(row, Completion, f"{path}:{number} ")
        key = (completion.id, completion.sample)
        if key in found:
            raise BadInput(f"{path}:{number}: sample {key[1]} of {key[0]!r} is there twice; remove one line")
        if key in by_key and by_key[key].prompt_ids != completion.prompt_ids:
            raise BadInput(f"{path}:{number}: {key[0]!r} is now another prompt; give another id or another out folder")
        found[key] = completion
    return found


def _write_votes(
    path: pathlib.Path, asks: Sequence[Ask], done: dict[tuple[str, int], Completion], session: Session, kind: str
) -> None:
    """One row a prompt: the answer of most samples (null when tied or absent), all votes, and what they cost."""
    rows = []
    for id in dict.fromkeys(ask.id for ask in asks):
        mine = [ask for ask in asks if ask.id == id]
        completions = [done[id, ask.sample] for ask in mine]
        votes = []
        for ask, completion in zip(mine, completions, strict=True):
            text = answer_text(completion, session.tokenizer, ask.control, ask.sampling.stop)
            found = grade.grade(text, "", kind).extracted
            votes.append(None if found is None else grade.vote_key(found, kind))
        won = vote.winners(votes)
        rows.append(
            {
                "format": "s1jax.votes/1",
                "id": id,
                "answer": won[0] if len(won) == 1 else None,
                "tied": list(won) if len(won) > 1 else [],
                "votes": votes,
                "thinking_tokens": sum(completion.thinking_tokens for completion in completions),
                "total_tokens": sum(len(completion.token_ids) for completion in completions),
            }
        )
    records.write_jsonl(path, rows)
