"""The verb `generate`: prompts -> `completions.jsonl`, or one prompt to the terminal as it is written."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from s1jax import records
from s1jax.config import BadInput
from s1jax.grading import grade
from s1jax.methods import METHODS, vote
from s1jax.methods.asks import Ask
from s1jax.methods.parts import Parts, run_folder
from s1jax.methods.progress import Progress
from s1jax.methods.prompts import override, prompt_of, read_prompts
from s1jax.methods.session import ModelRun, Session, answer_text
from s1jax.methods.stored import stored
from s1jax.methods.stream import Stream
from s1jax.records import Completion, Prompt, write_json

COMPLETIONS, VOTES, SETTINGS = "completions.jsonl", "votes.jsonl", "settings.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRun(ModelRun):
    """Prompts and how they are completed.

    Attributes:
      prompts: a JSONL file; see `s1jax.methods.prompts`.
      prompt: one question instead, whose completion is shown while it is written.
      answers: how answers vote (`method.kind=vote`): a key of `s1jax.grading.grade.KINDS`.
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
    session = session or Session(config)
    asks = [ask for prompt in prompts for ask in _asks(prompt, config, session, n)]
    session.check(asks)
    with run_folder(config) as out:
        is_whole = _complete(config, session, asks, out)
        if is_whole and METHODS[config.method.kind].joint:
            _count(config, session, asks, out)
    return out


def _complete(config: GenerateRun, session: Session, asks: Sequence[Ask], out: pathlib.Path) -> bool:
    """Write what is missing. Returns whether this process goes on with the whole file (see `Parts.merge`)."""
    share = session.share
    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(Parts(out / COMPLETIONS, share))
        stream = Stream(session.tokenizer, config.control) if config.prompt is not None and len(asks) == 1 else None
        done = set()
        for completion in _finished(out, asks, is_writer=share.first == 0):
            done.add((completion.id, completion.sample))
            if stream is not None:
                stream.finish(completion)
        mine = [ask for ask in asks if share.engine_of(ask.id) is not None]
        missing = [ask for ask in mine if (ask.id, ask.sample) not in done]
        progress = None if stream else stack.enter_context(Progress(len(mine), len(mine) - len(missing), "generate"))

        def on_done(ask: Ask, completion: Completion) -> None:
            parts.write(completion)
            if stream is not None:
                stream.finish(completion)
            elif progress is not None:
                progress.advance(len(completion.token_ids))

        session.complete(missing, on_done, None if stream is None else stream.show)
        return parts.merge([(ask.id, ask.sample) for ask in asks])


def _finished(out: pathlib.Path, asks: Sequence[Ask], *, is_writer: bool) -> Iterator[Completion]:
    """What a former start has finished. `settings.json` remembers under which settings: they may differ row by row.

    Raises:
      BadInput: a finished row was completed under other settings or from another prompt.
    """
    path = out / SETTINGS
    now = {ask.id: _settings(ask) for ask in asks}
    before = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else {}
    for completion in stored(out / COMPLETIONS, Completion, {(ask.id, ask.sample): ask.prompt_ids for ask in asks}):
        if before.get(completion.id) != now[completion.id]:
            raise BadInput(
                f"{out / COMPLETIONS}: prompt {completion.id!r} was completed under control, sampling or seed "
                f"{before.get(completion.id)}, now {now[completion.id]} (hashes); set them back or give a new folder"
            )
        yield completion
    if is_writer:
        write_json(path, {"format": "s1jax.settings/1", "settings": {**before, **now}})


def _settings(ask: Ask) -> str:
    sampling = dataclasses.replace(ask.sampling, n=1)
    text = json.dumps([dataclasses.asdict(ask.control), dataclasses.asdict(sampling), ask.seed])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _asks(prompt: Prompt, config: GenerateRun, session: Session, n: int) -> list[Ask]:
    where = f"prompt {prompt.id!r}"
    control = override(config.control, prompt.control, where)
    sampling = override(config.sampling, prompt.sampling, where)
    if prompt.sampling:
        n = METHODS[config.method.kind].samples(config.method, sampling)
    seed = config.seed if prompt.seed is None else prompt.seed
    ids = session.prompt_ids(prompt.messages, control)
    return [Ask("", prompt.id, sample, seed, ids, control, sampling) for sample in range(n)]


def _count(config: GenerateRun, session: Session, asks: Sequence[Ask], out: pathlib.Path) -> None:
    """Write the votes of all prompts, in their order."""
    by_key = {(ask.id, ask.sample): ask for ask in asks}
    tally = Tally(session, config.answers)
    for completion in stored(out / COMPLETIONS, Completion, {key: ask.prompt_ids for key, ask in by_key.items()}):
        tally.add(by_key[completion.id, completion.sample], completion)
    tally.write(out / VOTES, list(dict.fromkeys(ask.id for ask in asks)))


class Tally:
    """Votes of all samples of each prompt."""

    def __init__(self, session: Session, kind: str) -> None:
        self._session, self._kind = session, kind
        self._votes: dict[str, dict[int, str | None]] = {}
        self._spent: dict[str, list[int]] = {}

    def add(self, ask: Ask, completion: Completion) -> None:
        """Count one sample."""
        text = answer_text(completion, self._session.tokenizer, ask.control, ask.sampling.stop)
        found = grade.grade(text, "", self._kind).extracted
        vote_of = None if found is None else grade.vote_key(found, self._kind)
        self._votes.setdefault(ask.id, {})[ask.sample] = vote_of
        spent = self._spent.setdefault(ask.id, [0, 0])
        spent[0] += completion.thinking_tokens
        spent[1] += len(completion.token_ids)

    def write(self, path: pathlib.Path, ids: Sequence[str]) -> None:
        """One row a prompt: the answer of most samples (null when tied or absent), all votes, and what they cost."""
        rows = []
        for id in ids:
            votes = [self._votes[id][sample] for sample in sorted(self._votes[id])]
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
        records.write_jsonl(path, rows)
