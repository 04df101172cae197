"""A method of three rounds that the package does not know: one line, one model, no slot idle, goes on when killed."""

import dataclasses
import json
from typing import Any, Literal

import pytest
from engine_cases import CONFIG, S1, engine_of, make_model, tokenizer

from s1jax import records
from s1jax.config import BadInput
from s1jax.control.free import FreeConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods import METHODS
from s1jax.methods import run as generate
from s1jax.methods.method import Method, refuse_copies
from s1jax.methods.parts import Share
from s1jax.methods.router import request_of
from s1jax.methods.run import GenerateRun
from s1jax.methods.session import Session
from s1jax.methods.single import SingleConfig, outcome
from s1jax.methods.task import Ask, RowError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
WARM = SamplingConfig(temperature=1.0, max_new_tokens=24)


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Answer, criticise, answer again.

    Attributes:
      kind: `rounds`.
    """

    kind: Literal["rounds"] = "rounds"


async def rounds(task: Any) -> None:
    """Each round continues the chat with what the last one said."""
    first = await task.complete(0)
    chat = [*task.job.messages, {"role": "a", "content": said(task, first)}, {"role": "u", "content": "why?"}]
    second = await task.complete(1, messages=chat)
    chat = [*chat, {"role": "a", "content": said(task, second)}, {"role": "u", "content": "so?"}]
    await task.complete(2, messages=chat)


def said(task: Any, completion: Any) -> str:
    return task.answer_text(completion)[:6]


ROUNDS = Method(
    RoundsConfig, lambda config, sampling: 3, rounds, lambda marks: outcome(marks[-1:]), joint=True, is_one_round=False
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setitem(METHODS, "rounds", ROUNDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save(path)
    (path / "template.jinja").write_text(TEMPLATE)
    return path


def session(folder, out, slots: int = 6, **fields) -> tuple[Session, list, GenerateRun]:
    """A session over the small model, and the engines that it makes."""
    made: list = []
    config = GenerateRun(
        model=str(folder),
        chat_template=str(folder / "template.jinja"),
        out=str(out),
        dtype="float32",
        sampling=WARM,
        **{"prompt": "x", **fields},
    )

    def make(config, tok, asked, most_rows):
        made.append(engine_of(make_model(CONFIG), asked, slots=slots, max_length=96, window=4))
        return made

    return Session(config, make, Share()), made, config


def prompts(tmp_path, n: int) -> str:
    records.write_jsonl(tmp_path / "prompts.jsonl", [{"id": f"q{i}", "question": f"{i}?"} for i in range(n)])
    return str(tmp_path / "prompts.jsonl")


def config_fields(tmp_path, n: int, **fields) -> dict:
    return {"prompt": None, "prompts": prompts(tmp_path, n), "control": FreeConfig(), **fields}


def test_rounds_follow_from_each_other_and_load_the_model_once(folder, tmp_path):
    own, made, config = session(folder, tmp_path / "out", **config_fields(tmp_path, 40, method=RoundsConfig()))
    generate.run(config, own)
    rows = [records.to_completion(row) for row in records.read_jsonl(tmp_path / "out/completions.jsonl")]
    assert [(row.id, row.sample) for row in rows] == [(f"q{i}", s) for i in range(40) for s in range(3)]
    assert len(made) == 1
    for first, second, third in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert "why?" in tokenizer().decode(second.prompt_ids) and "so?" in tokenizer().decode(third.prompt_ids)
        chat = tokenizer().decode(third.prompt_ids)
        assert chat.index("why?") < chat.index("so?") and len(first.prompt_ids) < len(second.prompt_ids)


def test_rounds_keep_the_slots_as_busy_as_plain_requests(folder, tmp_path):
    """At least 0.95 of the occupancy of the same rows asked for at once."""
    own, made, config = session(folder, tmp_path / "out", **config_fields(tmp_path, 60, method=RoundsConfig()))
    generate.run(config, own)
    stats = made[0].stats
    in_rounds = stats.row_steps / stats.slot_steps
    rows = [records.to_completion(row) for row in records.read_jsonl(tmp_path / "out/completions.jsonl")]
    plain = engine_of(make_model(CONFIG), [config.control], slots=6, max_length=96, window=4)
    for row in rows:
        ask = Ask("", row.id, row.sample, row.seed, row.prompt_ids, config.control, WARM)
        plain.submit(request_of(ask, tokenizer(), 96))
    again = plain.run()
    assert {(d.id, d.sample): d.token_ids for d in again} == {(r.id, r.sample): r.token_ids for r in rows}
    assert in_rounds >= 0.95 * plain.stats.row_steps / plain.stats.slot_steps


def test_rounds_go_on_where_a_former_start_stopped(folder, tmp_path):
    """Finished rounds are given back to the method, which decides the same again; nothing is computed twice."""
    fields = config_fields(tmp_path, 8, method=RoundsConfig())
    own, _, config = session(folder, tmp_path / "whole", **fields)
    generate.run(config, own)
    whole = (tmp_path / "whole/completions.jsonl").read_bytes()
    own, made, config = session(folder, tmp_path / "out", **fields)
    generate.run(config, own)
    file = tmp_path / "out/completions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:7]))  # q0 and q1 whole, of q2 the first round
    own, made, config = session(folder, tmp_path / "out", **fields)
    generate.run(config, own)
    assert file.read_bytes() == whole
    fewer = made[0].stats.prefills
    assert 0 < fewer
    broken = json.loads(lines[6])
    broken["prompt_ids"] = broken["prompt_ids"][:-1]
    file.write_text("".join([*lines[:6], json.dumps(broken) + "\n"]))
    own, _, config = session(folder, tmp_path / "out", **fields)
    with pytest.raises(BadInput, match="sample 0 of 'q2' completes another prompt"):
        generate.run(config, own)


def test_engines_live_as_long_as_their_session_and_learn_new_controls(folder, tmp_path):
    own, made, config = session(folder, tmp_path / "out")
    done: list = []

    def run(control) -> None:
        job = own.job("q", own.question("a?"), control, WARM, SingleConfig())
        own.run([job], lambda *what: done.append(what[2]))

    run(FreeConfig())
    run(dataclasses.replace(S1, thinking_token_budget=5))
    run(FreeConfig())
    assert len(made) == 1 and done[0] == done[2] and done[1].thinking_tokens <= 5


@dataclasses.dataclass(frozen=True)
class GreedyConfig:
    """Asks for more than it has said.

    Attributes:
      kind: `greedy`.
    """

    kind: Literal["greedy"] = "greedy"


def test_a_method_that_asks_for_more_than_it_said_is_refused(folder, tmp_path, monkeypatch):
    async def greedy(task: Any) -> None:
        await task.complete(0)
        await task.complete(1)

    method = Method(GreedyConfig, lambda config, sampling: refuse_copies(1, sampling), greedy, outcome, joint=False)
    monkeypatch.setitem(METHODS, "greedy", method)
    own, made, _ = session(folder, tmp_path / "out")
    job = own.job("q", own.question("a?"), config_fields(tmp_path, 1)["control"], WARM, GreedyConfig())
    done: list = []
    with pytest.raises(BadInput, match="asks for sample 1 of 'q'; it has said that there are 1, each once"):
        own.run([job], lambda *what: done.append(what[2]))
    assert len(done) == 1
    again = own.job("q", own.question("a?"), job.control, WARM, SingleConfig())
    own.run([again], lambda *what: done.append(what[2]))  # the engine is as good as before
    assert done[0].token_ids == done[1].token_ids


def test_rows_can_be_driven_by_hand(folder, tmp_path, monkeypatch):
    """Pause, look, fork, extend, score, cancel, from a method; the same tokens as without all that."""
    seen: dict[str, Any] = {}

    async def by_hand(task: Any) -> None:
        ask = task.ask(0, control=dataclasses.replace(task.job.control, pause_at=(9,)))
        row = task.start(ask)
        assert await row.event() is None
        seen["ids"] = await row.ids()
        seen["scores"] = await task.score(seen["ids"])
        other = await row.fork(dataclasses.replace(row.request, sample=7))
        await other.cancel()
        seen["cancelled"] = await other.event()
        snapshot = await row.snapshot()
        assert snapshot.token_ids == tuple(seen["ids"])
        await row.resume()
        completion = await row.event()
        task.keep(ask, completion)

    method = Method(GreedyConfig, lambda config, sampling: 1, by_hand, outcome, joint=False)
    monkeypatch.setitem(METHODS, "greedy", method)
    own, _, _ = session(folder, tmp_path / "out")
    done: list = []
    control = dataclasses.replace(S1, thinking_n_ignore=3)
    for method_config in (GreedyConfig(), SingleConfig()):
        job = own.job("q", own.question("a?"), control, WARM, method_config)
        own.run([job], lambda *what: done.append(what[2]))
    assert done[0].token_ids == done[1].token_ids and seen["cancelled"].finish_reason in ("cancelled", "stop", "length")
    kept = len(seen["ids"]) - 3  # half a delimiter may have been taken back
    assert tuple(seen["ids"][:kept]) == (*done[0].prompt_ids, *done[0].token_ids)[:kept]
    assert len(seen["scores"]) == len(seen["ids"])


def test_rows_that_end_with_errors_are_said_and_the_others_written(folder, tmp_path, monkeypatch):
    fields = config_fields(tmp_path, 6)
    own, made, config = session(folder, tmp_path / "out", **fields)
    make = own._make

    def faulty(*arguments):
        [engine] = make(*arguments)

        class Faulty:
            def __getattr__(self, name):
                return getattr(engine._automaton, name)

            def account(self, state_row, token_ids, forced):
                if sum(token_ids) % 2:
                    raise RuntimeError("odd")
                return engine._automaton.account(state_row, token_ids, forced)

        engine._loop._automaton = Faulty()
        return [engine]

    own._make = faulty
    with pytest.raises(RowError, match="rows ended with errors, the others are finished; the first: .*odd"):
        generate.run(config, own)
    file = tmp_path / "out/completions.jsonl"
    before = file.read_text().splitlines() if file.is_file() else []
    own, _, config = session(folder, tmp_path / "out", **fields)
    generate.run(config, own)
    assert len(file.read_text().splitlines()) == 6 and set(before) <= set(file.read_text().splitlines())


def test_a_method_that_raises_leaves_no_rows_behind(folder, tmp_path, monkeypatch):
    async def raising(task: Any) -> None:
        task.start(task.ask(0))
        raise ValueError("my own fault")

    method = Method(GreedyConfig, lambda config, sampling: 1, raising, outcome, joint=False)
    monkeypatch.setitem(METHODS, "greedy", method)
    own, made, _ = session(folder, tmp_path / "out")
    job = own.job("q", own.question("a?"), FreeConfig(), WARM, GreedyConfig())
    with pytest.raises(ValueError, match="my own fault"):
        own.run([job], lambda *_: None)
    done: list = []
    other = own.job("q", own.question("a?"), dataclasses.replace(S1, thinking_token_budget=5), WARM, SingleConfig())
    own.run([other], lambda *what: done.append(what[2]))
    assert len(done) == 1 and made[0]._loop.scheduler.tickets == []


def test_a_bad_ask_fails_its_own_method_alone(folder, tmp_path, monkeypatch):
    async def careful(task: Any) -> None:
        wrong = dataclasses.replace(task.job.control, pause_at=(3,))
        if task.job.id == "bad":
            with pytest.raises(BadInput, match="control.pause_at=.3. is for programs"):
                await task.complete(0, control=wrong)
        await task.complete(1)

    method = Method(GreedyConfig, lambda config, sampling: 2, careful, outcome, joint=False)
    monkeypatch.setitem(METHODS, "greedy", method)
    own, _, _ = session(folder, tmp_path / "out")
    control = dataclasses.replace(S1, thinking_token_budget=5)
    jobs = [own.job(id, own.question("a?"), control, WARM, GreedyConfig()) for id in ("a", "bad", "b")]
    done: list = []
    own.run(jobs, lambda *what: done.append(what[2].id))
    assert sorted(done) == ["a", "b", "bad"]


def test_a_method_may_call_the_engine_and_wait(folder, tmp_path, monkeypatch):
    """The engine serves calls while it waits for a completion to be kept."""

    async def calling(task: Any) -> None:
        await task.complete(0)
        engine = task._broker.engine(task.job.id)
        for _ in range(20):
            engine.call(lambda: None)

    method = Method(GreedyConfig, lambda config, sampling: 1, calling, outcome, joint=False)
    monkeypatch.setitem(METHODS, "greedy", method)
    own, _, _ = session(folder, tmp_path / "out")
    jobs = [own.job(f"{i}", own.question(f"{i}?"), FreeConfig(), WARM, GreedyConfig()) for i in range(8)]
    done: list = []
    own.run(jobs, lambda *what: done.append(what[2].id))
    assert len(done) == 8
