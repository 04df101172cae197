"""Limits at their edges: rows of a block, positions of a model, what hosts must have alike, what is logged again."""

import dataclasses
import json
import sys
import tracemalloc
import types

import jax
import numpy as np
import pytest
from train_cases import RECIPE, TINY

from s1jax.config import BadInput
from s1jax.parallel import folder
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.text.render import Row
from s1jax.train import log as logs
from s1jax.train import setup
from s1jax.train.config import RandomModel, SaveConfig, TrainRun
from s1jax.train.data import DataConfig, Examples, within_block
from s1jax.train.log import Callback, Display, Log, LogConfig, MetricsFile, TensorBoard, line, rewind

CONFIG = TrainRun(model=RandomModel(TINY), data=DataConfig(rows="x"), out="o")


def row(name: str, length: int, prompt: int = 1) -> Row:
    return Row(name, tuple(range(length)), prompt)


# ---- rows and blocks


def test_a_row_as_long_as_the_block_fits():
    rows = [row("a", 10), row("b", 7)]
    assert within_block(rows, 10, "error") == Examples(tuple(rows), 0, 0)
    with pytest.raises(BadInput) as error:
        within_block([*rows, row("c", 12), row("d", 11), row("e", 30), row("f", 11)], 10, "error")
    assert "4 of 6 rows are longer than data.block=10 tokens: c (12), d (11), e (30); set data.block=30" in str(
        error.value
    )


def test_longer_rows_are_dropped_or_cut_and_counted():
    rows = [row("a", 10), row("b", 11), row("c", 12)]
    assert within_block(rows, 10, "drop") == Examples((rows[0],), 2, 0)
    cut = within_block(rows, 10, "keep")
    assert [len(kept.ids) for kept in cut.rows] == [10, 10, 10] and (cut.dropped, cut.cut) == (0, 2)
    assert cut.rows[1].ids == tuple(range(10)), "its beginning"
    with pytest.raises(BadInput, match="no row is left: all 2 are longer than data.block=9 tokens; set a longer block"):
        within_block(rows[1:], 9, "drop")


@pytest.mark.parametrize(("prompt", "fits"), [(0, False), (1, True), (9, True), (10, False), (11, False)])
def test_a_row_needs_a_token_in_the_loss(prompt, fits):
    rows = [row("a", 12, prompt)]
    if fits:
        assert within_block(rows, 10, "keep").rows[0].prompt_length == prompt
    else:
        with pytest.raises(BadInput, match=f"row 'a' has no loss token: its prompt takes {prompt} of 10 tokens"):
            within_block(rows, 10, "keep")


def test_examples_in_words():
    examples = Examples((row("a", 1000, 200), row("b", 500, 100)), 2, 0)
    assert (
        examples.describe() == "2 rows, 1,500 tokens (1,200 in the loss), the longest 1,000; over the block: 2 dropped"
    )
    assert dataclasses.replace(examples, dropped=1, cut=3).describe().endswith("over the block: 1 dropped, 3 cut")
    assert dataclasses.replace(examples, dropped=0).describe().endswith("the longest 1,000")


def test_the_longest_row_may_take_every_position_of_the_model():
    model = dataclasses.replace(TINY, max_position=10)
    setup.check_positions(model, Examples((row("a", 10), row("b", 3)), 0, 0))
    with pytest.raises(
        BadInput, match="longest row has 11 tokens, the model is made for 10 positions; set data.block=10"
    ):
        setup.check_positions(model, Examples((row("a", 3), row("b", 11)), 0, 0))


# ---- configs


@pytest.mark.parametrize("name", ["global_batch", "micro_batch", "epochs", "steps", "eval_every"])
def test_counts_are_at_least_one(name):
    measured = dataclasses.replace(CONFIG, eval_rows="y")
    setup.check_config(dataclasses.replace(measured, **{name: 1}))
    with pytest.raises(BadInput, match=f"{name}=0; it must be at least 1"):
        setup.check_config(dataclasses.replace(measured, **{name: 0}))


def test_counts_of_parts_are_at_least_one():
    setup.check_config(dataclasses.replace(CONFIG, save=SaveConfig(every=1), data=DataConfig(rows="x", block=1)))
    setup.check_config(dataclasses.replace(CONFIG, save=SaveConfig(every=None, export="best"), eval_rows="y"))
    with pytest.raises(BadInput, match="data.block=0"):
        setup.check_config(dataclasses.replace(CONFIG, data=DataConfig(rows="x", block=0)))


def test_rows_at_once_and_devices_in_words():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    assert setup.rows_at_once(dataclasses.replace(CONFIG, micro_batch=3), mesh) == 12
    kind = jax.devices()[0].device_kind
    assert setup.describe_devices(mesh) == f"8 x {kind} (data=2 x fsdp=2 x context=2 x tensor=1)"


def test_a_recipe_bounds_training_and_validation_rows():
    mesh = make_mesh(MeshConfig())
    config = dataclasses.replace(CONFIG, seed=3, dtype="float32", remat="none")

    def validation(segments, lengths):
        return types.SimpleNamespace(arrays=types.SimpleNamespace(segments=np.array(segments)), lengths=lengths)

    plan = types.SimpleNamespace(max_segments=4, max_segment_length=50, steps=9)
    held_out = [validation([[1, 5, 0]], (3, 60)), validation([[2]], (70, 1))]
    recipe = setup.recipe_of(config, TINY, plan, held_out, mesh)  # type: ignore[arg-type]
    assert (recipe.max_segments, recipe.max_segment_length, recipe.steps) == (5, 70, 9)
    recipe = setup.recipe_of(config, TINY, plan, [], mesh)  # type: ignore[arg-type]
    assert (recipe.max_segments, recipe.max_segment_length) == (4, 50)
    assert (recipe.dtype, recipe.remat, recipe.attention, recipe.lora) == ("float32", "none", "xla", None)
    assert dataclasses.replace(recipe, max_segments=8, steps=20).loss == RECIPE.loss.__class__()


def test_hosts_must_have_config_versions_and_rows_alike():
    examples = Examples((row("a", 5), row("b", 6)), 0, 0)
    facts = setup.shared_facts(CONFIG, examples)
    assert facts == setup.shared_facts(CONFIG, examples)
    assert facts["jax"] == jax.__version__ and facts["seed"] == 42 and "s1jax" in facts
    for other in (
        (row("a", 5), row("c", 6)),
        (row("a", 5), row("b", 7)),
        (row("a", 5), row("b", 6, 2)),
        (row("a", 5),),
    ):
        assert setup.shared_facts(CONFIG, Examples(other, 0, 0))["rows"] != facts["rows"]
    assert setup.shared_facts(dataclasses.replace(CONFIG, micro_batch=2), examples) != facts


def test_the_first_host_opens_the_folder_and_the_others_wait(monkeypatch, tmp_path):
    """They enter when it has opened the folder, or has said why not, and it holds the lock until it leaves."""
    config = dataclasses.replace(CONFIG, out=str(tmp_path / "o"))
    with folder.opened(config, device="two") as out:
        assert out == tmp_path / "o" and (out / ".lock").is_file() and (out / "run.json").is_file()
    assert not (out / ".lock").exists()
    monkeypatch.setattr(folder.hosts, "of_first", lambda make: str(tmp_path / "theirs"))
    monkeypatch.setattr(folder, "_check_shared", lambda out: None)
    with folder.opened(dataclasses.replace(CONFIG, out=str(tmp_path / "theirs")), device="two") as out:
        assert out == tmp_path / "theirs" and not out.exists()


def test_the_first_host_speaks(monkeypatch, capsys):
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        setup.say(f"host {index}")
    assert capsys.readouterr().err == "host 0\n"


# ---- logs


def test_a_log_is_rewound_to_a_step_and_otherwise_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    rewind(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    number = path.stat().st_ino
    rewind(path, 2)
    assert path.stat().st_ino == number, "it is not written again"
    file = MetricsFile(path, 1)
    file.write({"step": 2, "again": True})
    file.close()
    assert [json.loads(text) for text in path.read_text().splitlines()] == [{"step": 1}, {"step": 2, "again": True}]
    MetricsFile(tmp_path / "deep" / "new.jsonl", 0).close()
    assert (tmp_path / "deep" / "new.jsonl").read_text() == ""


def test_tensorboard_forgets_the_steps_that_are_made_again(tmp_path):
    from tensorboardX.proto import event_pb2

    TensorBoard(tmp_path, 6).close()
    data, at, starts = next(tmp_path.iterdir()).read_bytes(), 0, []
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        starts += [event.step] if event.HasField("session_log") else []
        at += 16 + size
    assert starts == [7], "from the first step after the one it stands at"


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    display = Display(7, 0, 3)
    for step in range(1, 8):
        display.write({"step": step, "loss": 1.0})
    display.close()
    assert capsys.readouterr().err.splitlines() == [f"step {step}/7  loss 1.0000" for step in (3, 6, 7)]
    assert line({"step": 1, "loss": 1.0, "seconds_left": 59.7}, 2).endswith("1:00 left")
    assert line({"step": 1, "loss": 1.0, "seconds_left": 3605}, 2).endswith("60:05 left")


def test_a_bar_where_there_is_one(monkeypatch):
    calls = []

    class Bar:
        def add_task(self, name, **options):
            calls.append(("add", name, options))
            return 5

        def update(self, task, **options):
            calls.append(("update", task, options))

        def start(self):
            calls.append("start")

        def stop(self):
            calls.append("stop")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(logs, "_bar", Bar)
    display = Display(7, 2, 1)
    display.write({"step": 3, "loss": 1.0})
    display.close()
    shown = {"completed": 3, "description": "step 3/7  loss 1.0000"}
    assert calls == [("add", "train", {"total": 7, "completed": 2}), "start", ("update", 5, shown), "stop"]


def test_all_sinks_get_every_record_and_are_closed_even_when_one_fails():
    class Sink:
        def __init__(self, fails=False):
            self.rows, self.closed, self.fails = [], 0, fails

        def write(self, record):
            self.rows.append(record)

        def sync(self):
            self.rows.append("sync")

        def close(self):
            self.closed += 1
            if self.fails:
                raise OSError("full")

    metrics, sink, shown = Sink(), Sink(fails=True), []
    log = Log(metrics, [sink], Callback(shown.append))  # type: ignore[arg-type]
    log.write({"step": 1}, seconds_left=4.0)
    log.sync()
    assert metrics.rows == [{"step": 1}, "sync"] and sink.rows == [{"step": 1}]
    assert shown == [{"step": 1, "seconds_left": 4.0}]
    with pytest.raises(OSError, match="full"):
        log.close()
    assert metrics.closed == sink.closed == 1
    quiet = Log(None, [], None)
    quiet.write({"step": 1}, seconds_left=None)
    quiet.sync()
    quiet.close()


def test_sinks_of_a_run(tmp_path):
    (tmp_path / "validation.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    log = logs.open_log(LogConfig(tensorboard=False), tmp_path, step=3, steps=9, progress=None, quiet=False)
    log.close()
    assert (tmp_path / "validation.jsonl").read_text() == '{"step": 2}\n' and not (tmp_path / "tensorboard").exists()
    with pytest.raises(BadInput, match="log.every=0; it must be at least 1"):
        logs.check(LogConfig(every=0))
    logs.check(LogConfig(every=1))


def test_rows_are_told_apart_without_a_text_of_all_of_them():
    """A million rows would be tens of gigabytes of text; every token, id and mask counts, and so does the order."""
    rows = tuple(Row(str(i), tuple(range(20_000)), 5, ((7, 9),)) for i in range(20))
    tracemalloc.start()
    first = Examples(rows, 0, 0).digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(repr(rows)) / 4
    others = [
        dataclasses.replace(rows[3], **change) for change in (dict(id="x"), dict(prompt_length=6), dict(masked=()))
    ]
    others.append(dataclasses.replace(rows[3], ids=(1, *rows[3].ids[1:])))
    digests = {Examples((*rows[:3], other, *rows[4:]), 0, 0).digest for other in others} | {first}
    assert len(digests | {Examples(rows[::-1], 0, 0).digest}) == 6 and Examples(rows, 1, 2).digest == first
