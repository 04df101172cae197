"""The Python API: what the package's front page shows, the same tokens as the command line, refusals as exceptions."""

import asyncio
import dataclasses
import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from engine_cases import CONFIG, S1, make_model, tokenizer

import s1jax
import s1jax.api
from s1jax import __main__ as cli
from s1jax import records
from s1jax.checkpoint import hf
from s1jax.config import BadInput
from s1jax.eval.run import EvalRun
from s1jax.methods.task import RowError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)
TEXTS = {name: getattr(S1, name) for name in ("thinking_start", "thinking_end", "answer_start", "forced_end")}
WARM = {"temperature": 1.0, "max_new_tokens": 40, **TEXTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    config = dataclasses.replace(CONFIG, max_position=512)
    hf.save(jax.device_put(make_model(config)), path / "hf", tokenizer_source=tokenizer())
    (path / "template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(folder):
    loaded = s1jax.load(str(folder / "hf"), dtype="float32", chat_template=str(folder / "template.jinja"))
    yield loaded
    loaded.close()


def test_generate_gives_the_rows_of_the_command_line(model, folder, tmp_path):
    questions = ["one?", {"question": "two?", "thinking_token_budget": 6}, "three?"]
    found = model.generate(questions, thinking_token_budget=9, n=2, seed=5, **WARM)
    assert [(c.sample, c.thinking_tokens <= 9) for c in found] == [(0, True), (1, True)] * 3
    assert all(c.thinking_tokens <= 6 for c in found[2:4]) and found[0].n_ignored == 0
    rows = [{"question": q} if isinstance(q, str) else q for q in questions]
    records.write_jsonl(tmp_path / "prompts.jsonl", rows)
    control = [f"control.{name}={json.dumps(value)}" for name, value in TEXTS.items()]
    arguments = ["control.thinking_token_budget=9", "sampling.n=2", "sampling.temperature=1", "seed=5", *control]
    arguments += ["sampling.max_new_tokens=40", "dtype=float32", f"chat_template={folder / 'template.jinja'}"]
    arguments += [f"engine.max_length={model._engine.max_length}", f"engine.slots={model._engine.n_slots}"]
    out = tmp_path / "out"
    assert (
        cli.main(
            ["generate", f"model={folder / 'hf'}", f"prompts={tmp_path / 'prompts.jsonl'}", f"out={out}", *arguments]
        )
        == 0
    )
    written = [records.to_completion(row) for row in records.read_jsonl(out / "completions.jsonl")]
    assert [c.token_ids for c in found] == [c.token_ids for c in written]


def test_equal_questions_are_rows_of_their_own_and_one_question_is_enough(model):
    twice = model.generate(["same?", "same?"], **WARM)
    assert len(twice) == 2 and twice[0] == twice[1]
    [one] = model.generate("same?", **WARM)
    assert one == twice[0]


def test_stream_is_the_text_of_generate_and_says_what_thinks_and_what_was_put(model):
    asked = {**WARM, "thinking_token_budget": 7, "min_thinking_tokens": 7}
    [whole] = model.generate("stream?", **asked)
    pieces = list(model.stream("stream?", **asked))
    assert "".join(piece.text for piece in pieces) == whole.text
    kinds = [(piece.is_thinking, piece.is_forced) for piece in pieces]
    assert kinds[0] == (True, False) and (False, True) in kinds
    thought = "".join(piece.text for piece in pieces if piece.is_thinking)
    assert thought == model.tokenizer.decode(whole.token_ids[: whole.thinking_tokens])
    assert model.answer(whole, **TEXTS).endswith(whole.text[-1:])


def test_a_stream_that_nobody_reads_is_cancelled(model):
    stream = model.stream("long?", temperature=1.0, max_new_tokens=400, **TEXTS)
    next(stream)
    stream.close()
    [after] = model.generate("same?", **WARM)
    model._engine.call(lambda: None)
    assert after == model.generate("same?", **WARM)[0]
    assert model._engine._loop.scheduler.tickets == []


def test_rows_that_another_thread_cancels_are_errors_of_the_run_that_waits_for_them(model):
    """Not rows that are waited for for ever; the next run is as if nothing had been."""
    model.generate("first?", **WARM)  # there is an engine
    seen = threading.Event()
    errors = []

    def wait() -> None:
        try:
            model.generate(["long?"] * 3, temperature=1.0, max_new_tokens=400, **TEXTS)
        except RowError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while waiting.is_alive() and not seen.wait(0.001):
        if model._engine._loop.scheduler.tickets:
            seen.set()
    model._engine.cancel_all()
    waiting.join()
    assert len(errors) == 1 and "cancelled" in errors[0]
    assert model.generate("same?", **WARM) == model.generate("same?", **WARM)


def test_a_row_of_its_own_seed_keeps_it(model):
    """Before the call's, which comes before the model's."""
    with_own, without = model.generate([{"question": "one?", "seed": 3}, "one?"], seed=9, **WARM)
    assert (with_own.seed, without.seed) == (3, 9) and with_own.token_ids != without.token_ids
    assert model.generate("one?", seed=3, **WARM)[0].token_ids == with_own.token_ids


def test_the_engine_is_as_large_as_what_is_asked(folder, model):
    own = s1jax.load(str(folder / "hf"), dtype="float32", chat_template=str(folder / "template.jinja"), seed=7)
    [first] = own.generate("one?", **WARM)
    assert first == model.generate("one?", seed=7, **WARM)[0] != model.generate("one?", **WARM)[0]
    assert (own._engine.n_slots, own._engine.max_length) == (1, 128)
    first = own._engine
    own.generate("two?", **WARM)
    assert own._engine is first
    own.generate([f"{i}?" for i in range(5)], **WARM)
    assert own._engine.n_slots == 8
    own.generate("free?", control={"kind": "free"}, temperature=1.0, max_new_tokens=200)
    assert own._engine.max_length == 256 and own._engine.n_slots == 8
    own.generate([f"{i}?" for i in range(9)], **WARM)
    assert (own._engine.n_slots, own._engine.max_length) == (16, 256), "it never shrinks"
    own.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        own.generate("again?", **WARM)


def test_scores_are_the_log_probabilities_that_generate_reports(model):
    [done] = model.generate("score?", logprobs=True, **WARM)
    scored = model.score([*done.prompt_ids, *done.token_ids])[len(done.prompt_ids) :]
    np.testing.assert_allclose(done.logprobs, scored, atol=1e-4)


def test_threads_may_ask_at_once(model):
    alone = {text: model.generate(text, **WARM)[0] for text in ("a?", "b?", "c?", "d?")}
    found: dict = {}
    threads = [
        threading.Thread(target=lambda text=text: found.update({text: model.generate(text, **WARM)[0]}))
        for text in alone
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@pytest.mark.parametrize(
    ("question", "fields", "message"),
    [
        (
            "a",
            {"thinking_budget": 5},
            "thinking_budget=5 is no field .*; the nearest known one is",
        ),
        (
            "a",
            {"control": {"kind": "free"}, "thinking_token_budget": 5},
            "control.thinking_token_budget is for control",
        ),
        ("a", {"temperature": -1.0}, "sampling.temperature is -1.0"),
        ("a", {"thinking_token_budget": 10**6}, "leaves .* tokens of thinking, but thinking_token_budget is 1000000"),
        ("  ", {}, "question 1: question is '  '; give a text"),
        ({"ask": "a"}, {}, "question 1 has the field 'ask'"),
        ("a", {"n": 2}, "2 samples at sampling.temperature=0 are 2 copies"),
    ],
)
def test_what_cannot_run_is_refused_as_an_exception(model, question, fields, message):
    with pytest.raises(BadInput, match=message):
        model.generate(question, **{**TEXTS, "max_new_tokens": 40, **fields})


def test_models_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInput):
        s1jax.load(str(tmp_path))
    with pytest.raises(AttributeError, match="s1jax has no 'lode'; it has LoadedModel, convert"):
        _ = s1jax.lode
    assert issubclass(RowError, RuntimeError) and "load" in dir(s1jax)


def test_verbs_are_functions_of_dicts(folder, tmp_path):
    target = s1jax.convert({"source": str(folder / "hf"), "target": str(tmp_path / "orbax"), "to": "orbax"})
    assert target == tmp_path / "orbax" and target.is_dir()
    with pytest.raises(BadInput, match="unknown key 'sauce'"):
        s1jax.convert({"sauce": "x"})
    records.write_jsonl(
        tmp_path / "sums.jsonl", [{"id": f"q{i}", "question": f"{i}?", "answer": str(i)} for i in range(3)]
    )
    fields = {"model": str(folder / "hf"), "benchmark": str(tmp_path / "sums.jsonl"), "grader": "integer"}
    control = {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in TEXTS.items()},
        "thinking_token_budget": 8,
    }
    common = {"dtype": "float32", "chat_template": str(folder / "template.jinja"), "out": str(tmp_path / "eval")}
    sampling = {"max_new_tokens": 30}
    [report] = s1jax.evaluate(
        {**fields, **common, "control": control, "sampling": sampling, "engine": {"max_length": 128}}
    )
    assert report["questions"] == 3 and report["mean_thinking_tokens"] <= 8
    with pytest.raises(BadInput, match="benchmark='nowhere.jsonl' is neither"):
        s1jax.evaluate({**fields, **common, "benchmark": "nowhere.jsonl", "out": str(tmp_path / "b")})


def test_it_runs_inside_an_event_loop_as_in_a_notebook(model):
    async def cell():
        return model.generate("same?", **WARM)

    assert asyncio.run(cell()) == model.generate("same?", **WARM)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(5), "questions is 5 .int.; give a text"),
        (lambda model: model.generate([5]), "question 1 is 5 .int.; give a text or an object"),
        (lambda model: model.generate("\ud800", **WARM), "half a character"),
        (lambda model: model.generate("a", seed=1.5, **WARM), "seed is 1.5 .float.; give a whole number"),
        (lambda model: model.score("text"), "score takes tokens, not a text"),
        (lambda model: s1jax.load("x", dtype="float16"), "dtype='float16'; give float32 or bfloat16"),
        (lambda model: model.stream("a", n=2, temperature=1.0), "sampling.n=2: one completion is streamed"),
    ],
)
def test_arguments_of_wrong_types_are_refused(model, call, message):
    with pytest.raises(BadInput, match=message):
        call(model)
    assert model.generate("same?", seed=np.int64(0), **WARM) == model.generate("same?", seed=0, **WARM)


def test_closing_ends_what_runs(folder):
    own = s1jax.load(str(folder / "hf"), dtype="float32", chat_template=str(folder / "template.jinja"))
    stream = own.stream("long?", temperature=1.0, max_new_tokens=400, **TEXTS)
    next(stream)
    thread = own._engine._thread
    own.close()
    list(stream)
    thread.join(60)
    assert not thread.is_alive()


def test_a_config_object_without_out_has_the_folder_that_its_fields_have(monkeypatch):
    """Not the working directory."""
    seen = []
    monkeypatch.setattr(s1jax.api.command_line, "run_verb", lambda verb, config: seen.append(config.out) or config.out)
    fields = {"model": "nobody/nothing", "benchmark": "aime24"}
    assert s1jax.api._run("eval", fields) == s1jax.api._run("eval", EvalRun(**fields))
    assert seen == ["runs/eval"] * 2


def test_functions_of_the_api_stay_functions_when_their_packages_are_imported(tmp_path):
    """`s1jax.train` and `s1jax.plan` are packages too, which their first call imports."""
    code = (
        "import inspect, s1jax\n"
        "for name in ('train', 'plan', 'train', 'plan', 'convert', 'train'):\n"
        "    try:\n"
        "        getattr(s1jax, name)({'nothing': 1})\n"
        "    except s1jax.config.BadInput as error:\n"
        "        print(name, 'unknown key' in str(error), list(inspect.signature(getattr(s1jax, name)).parameters))\n"
        "import s1jax.train.run as run\n"
        "from s1jax.plan import search\n"
        "print(run.run.__module__, s1jax.train.run is run, search.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", "import s1jax.config\n" + code], capture_output=True, text=True)
    names = ["train", "plan", "train", "plan", "convert", "train"]
    expected = [*(f"{name} True ['config']" for name in names), "s1jax.train.run True s1jax.plan.search"]
    assert done.stdout.splitlines() == expected, done.stderr
