"""The verb `eval` from the command line over a real engine: a sweep equals separate runs, a vote draws differently."""

import json
import os
import shutil

import jax
import pytest
from eval_cases import tokenizer_folder

from s1jax import __main__ as cli
from s1jax import records
from s1jax.checkpoint import hf
from s1jax.models.decoder import Decoder
from s1jax.models.family import DecoderConfig
from s1jax.text.tokens import Tokenizer

CONFIG = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=264, L=1, max_position=160, tied=True, qkv_bias=True)
ENGINE = ("engine.slots=6", "engine.window=8", "engine.max_length=96", "engine.prefill_smallest=96")
# A random model ends its thinking by a byte now and then.
MARKERS = (
    "control.thinking_end=[<|im_start|>,e,t,a,o,n,i]",
    "control.answer_token_budget=6",
    "control.thinking_n_ignore=1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.load(tokenizer_folder(folder / "tokenizer"))
    weights = jax.jit(lambda key: jax.tree.map(lambda x: x * 2.0, Decoder(CONFIG, key)))(jax.random.key(5))
    hf.save(weights, folder / "hf", tokenizer_source=tokenizer)
    records.write_jsonl(
        folder / "questions.jsonl", [{"id": f"q{i}", "question": f"{i}?", "answer": i} for i in range(6)]
    )
    return folder


def evaluate(model, out, *overrides):
    fields = [f"model={model / 'hf'}", f"benchmark={model / 'questions.jsonl'}", "grader=integer", f"out={out}"]
    assert cli.main(["eval", *fields, "dtype=float32", "sampling.temperature=1.0", *ENGINE, *MARKERS, *overrides]) == 0


def rows(folder):
    return {(row["id"], row["sample"]): row for row in records.read_jsonl(folder / "samples.jsonl")}


def test_a_sweep_is_the_separate_runs_id_by_id(model, tmp_path, capsys):
    evaluate(model, tmp_path / "sweep", "budgets=[0,5,20]", "votes.n=3", "votes.temperature=1.0")
    evaluate(model, tmp_path / "five", "control.thinking_token_budget=5")
    assert rows(tmp_path / "five") == rows(tmp_path / "sweep/budget-5")
    twenty = rows(tmp_path / "sweep/budget-20").values()
    assert {row["thinking_finish_reason"] for row in twenty} == {"natural", "budget"}
    assert any(row["n_ignored"] for row in twenty)
    assert all(row["thinking_tokens"] == 0 for row in rows(tmp_path / "sweep/budget-0").values())
    votes = rows(tmp_path / "sweep/vote")
    assert len(votes) == 18 and votes["q1", 0]["token_ids"] != votes["q1", 1]["token_ids"]
    assert cli.main(["report", f"reports=[{tmp_path / 'sweep'}]", f"out={tmp_path / 'page'}"]) == 0
    data = json.loads((tmp_path / "page/scaling.json").read_text())
    assert data["control"]["value"] == 1.0 and [vote["votes"] for vote in data["votes"]] == [2, 3]
    assert "budget 20" in capsys.readouterr().out


def test_generate_mixes_controls_row_by_row(model, tmp_path):
    prompts = [
        {"id": "a", "question": "1?"},
        {
            "id": "b",
            "question": "1?",
            "kind": "free",
            "max_new_tokens": 9,
            "answer_token_budget": None,
        },
        {"id": "c", "question": "1?", "thinking": False, "thinking_n_ignore": 0, "n": 2, "seed": 4},
        {"id": "d", "messages": [{"role": "user", "content": "1?"}], "thinking_token_budget": 3, "stop": ["zz"]},
    ]
    records.write_jsonl(tmp_path / "prompts.jsonl", prompts)
    fields = [f"model={model / 'hf'}", f"prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'out'}"]
    assert cli.main(["generate", *fields, "dtype=float32", "sampling.temperature=1.0", *ENGINE, *MARKERS]) == 0
    found = {
        (row["id"], row["sample"]): records.to_completion(row)
        for row in records.read_jsonl(tmp_path / "out/completions.jsonl")
    }
    assert sorted(found) == [("a", 0), ("b", 0), ("c", 0), ("c", 1), ("d", 0)]
    assert len(found["b", 0].token_ids) <= 9 and found["b", 0].forced.count(True) == 0
    assert found["c", 0].thinking_finish_reason is None and found["c", 0].answer_tokens <= 6
    assert found["c", 0].token_ids != found["c", 1].token_ids and found["c", 0].seed == 4
    assert found["d", 0].thinking_tokens <= 3 and found["a", 0].prompt_ids == found["d", 0].prompt_ids
    wrong = [f"model={model / 'hf'}", f"prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'no'}"]
    assert cli.main(["generate", *wrong, *ENGINE, "control.thinking_token_budget=500"]) == 2


def test_results_of_a_model_that_was_replaced_in_place_are_never_reported(model, tmp_path, capsys):
    """Weights, tokenizer, questions: changed under the same names they are refused, and moved they are the same run."""
    own = tmp_path / "own"
    shutil.copytree(model, own)
    limits = ("control.thinking_token_budget=5",)
    evaluate(own, tmp_path / "out", *limits)
    prompts = tmp_path / "prompts.jsonl"
    records.write_jsonl(prompts, [{"id": "a", "question": "1?"}])
    arguments = ["dtype=float32", f"prompts={prompts}", f"out={tmp_path / 'texts'}", *ENGINE, *MARKERS, *limits]
    assert cli.main(["generate", f"model={own / 'hf'}", *arguments]) == 0
    written = [path for name in ("out", "texts") for path in (tmp_path / name).glob("*.json*")]
    results = {path: path.read_bytes() for path in written if path.name != "run.json"}
    assert {path.name for path in results} >= {"samples.jsonl", "report.json", "completions.jsonl"}

    def again(place) -> tuple[int, str]:
        fields = [f"model={place / 'hf'}", f"benchmark={place / 'questions.jsonl'}", "grader=integer", "dtype=float32"]
        evaluated = [*fields, f"out={tmp_path / 'out'}", "sampling.temperature=1.0", *ENGINE, *MARKERS, *limits]
        capsys.readouterr()
        code = cli.main(["eval", *evaluated])
        return code, capsys.readouterr().err

    def generated(place) -> tuple[int, str]:
        capsys.readouterr()
        return cli.main(["generate", f"model={place / 'hf'}", *arguments]), capsys.readouterr().err

    assert again(own)[0] == generated(own)[0] == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["fingerprints"]) == {"model", "tokenizer", "benchmark"}
    moved = own.rename(tmp_path / "moved")
    assert again(moved)[0] == generated(moved)[0] == 0
    weights = moved / "hf" / "model.safetensors"
    content = weights.read_bytes()
    times = weights.stat()
    other = jax.jit(lambda key: jax.tree.map(lambda x: x * 2.0, Decoder(CONFIG, key)))(jax.random.key(6))
    hf.save(other, tmp_path / "new", tokenizer_source=Tokenizer.load(moved / "hf"))
    weights.write_bytes((tmp_path / "new" / "model.safetensors").read_bytes())
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    for code, said in (again(moved), generated(moved)):
        assert code == 2 and len(said.splitlines()) == 1
        assert f"model={moved / 'hf'}: model.safetensors has changed (SHA-256 was " in said
    weights.write_bytes(content)
    assert again(moved)[0] == 0
    vocabulary = moved / "hf" / "tokenizer.json"
    text = vocabulary.read_text()
    vocabulary.write_text(text + "\n")
    for code, said in (again(moved), generated(moved)):
        assert code == 2 and f"tokenizer={moved / 'hf'}: tokenizer.json has changed" in said
    vocabulary.write_text(text)
    rows_ = records.read_jsonl(moved / "questions.jsonl")
    records.write_jsonl(moved / "questions.jsonl", [{**row, "answer": 7} for row in rows_])
    code, said = again(moved)
    assert code == 2 and f"benchmark={moved / 'questions.jsonl'}: the content has changed" in said
    now = {path: path.read_bytes() for path in results}
    changed = [path.name for path in results if now[path] != results[path]]
    assert changed == ["report.json"]  # which names the model where it lies now
    last = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {key for key in last if last[key] != report[key]} == {"model", "tokenizer"}
