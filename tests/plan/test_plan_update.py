"""The update that is planned: examples of recorded or own lengths, packed as `train` packs them, every row length."""

import dataclasses

import numpy as np
import pytest
from plan_cases import CONFIG, MATRICES, answer_all

from s1jax.config import BadInput
from s1jax.parallel.mesh import MeshConfig
from s1jax.plan import lengths, memory, run
from s1jax.plan.run import make_plan
from s1jax.train.data import DataConfig
from s1jax.train.packing import PackingConfig
from s1jax.train.plan import make_plan as packing_of_train


@pytest.fixture
def unbuilt(monkeypatch):
    """Nothing is compiled."""
    answer_all(monkeypatch, memory.Compiled(40_000_000, 3_000_000))


def test_an_update_is_packed_as_train_packs_it(unbuilt):
    """Rows, lengths and operations are those that the packing of `train` makes of the same examples."""
    given = {"rows": None, "mean_tokens": 200, "data": DataConfig(rows="", block=4096), "global_batch": 12}
    config = dataclasses.replace(CONFIG, **given, mesh=MeshConfig(fsdp=2, context=2, tensor=2), examples=300)
    plan, where = make_plan(config)
    examples, _ = lengths.examples_of(config, "s1k", 300, 200)
    sizes = [len(row.ids) - 1 for row in examples.rows]
    assert sum(sizes) / 300 == pytest.approx(199, abs=0.1)
    options = {"batch": 12, "steps": 5 * 25, "seed": config.seed, "norm": "example", "block": 4096}
    packed = packing_of_train(examples.rows, config.packing, **options, row_multiple=2, length_multiple=2)
    update = plan.update
    assert (update.rows, update.lengths, update.steps) == (packed.rows, packed.lengths, 125)
    assert update.micro_batches == packed.rows // 2 and update.fill == pytest.approx(packed.fill)
    assert (update.max_segments, update.max_segment_length) == (packed.max_segments, max(sizes))
    products, pairs = 6 * MATRICES * sum(sizes), 6 * 2 * 2 * 2 * 16 * sum(n**2 for n in sizes)
    assert update.flops == pytest.approx(12 / 300 * (products + pairs))
    assert update.tokens == pytest.approx(12 * sum(sizes) / 300)
    assert set(plan.bytes_by_length) == set(packed.lengths), "every row length is compiled"
    record = run.describe(plan, where, config)
    assert record["lengths"] == list(packed.lengths) and record["fill"] == update.fill
    several = dataclasses.replace(config, packing=PackingConfig(rows=6))
    assert make_plan(several)[0].update.micro_batches == 3


def test_a_batch_that_does_not_fill_the_mesh_is_refused(unbuilt):
    config = dataclasses.replace(CONFIG, rows=None, mesh=MeshConfig(data=8, fsdp=1), global_batch=4)
    with pytest.raises(BadInput, match=r"takes 8 rows at once .* 8 rows of a step would be \d\d% tokens"):
        make_plan(config)
    with pytest.raises(BadInput, match="no mesh of 8 devices"):
        make_plan(dataclasses.replace(config, mesh="search", micro_batch=5))


def test_the_program_that_takes_most_is_the_plan(unbuilt, monkeypatch):
    """Every row length is compiled; bytes are those of the largest program, whichever it is."""
    totals = [41_000_000, 43_000_000, 42_000_000]

    def answer(lowered, *_, **__):
        assert len(lowered) == 3
        return [memory.Compiled(total, 0) for total in totals]

    monkeypatch.setattr(memory, "measure_all", answer)
    given = {"rows": None, "mean_tokens": 200, "data": DataConfig(rows="", block=4096), "examples": 300}
    config = dataclasses.replace(CONFIG, **given, packing=PackingConfig(rows=4, shapes=3))
    plan, _ = make_plan(config)
    assert plan.length == plan.update.lengths[1] and plan.memory.total == 43_000_000
    assert list(plan.bytes_by_length.values()) == totals


def test_lengths_are_those_of_the_recorded_traces():
    """1,000 traces each; Gemini's 4.7K tokens in the mean, as s1 states it; r1's up to 26,238."""
    for name, mean, longest in (("s1k", 4699, 8121), ("s1k_deepseek", 9285, 26238)):
        histogram = lengths.LENGTHS[name]
        assert sum(histogram.counts) == 1000
        sizes = histogram.quantiles(1000)
        assert sizes.mean() == pytest.approx(mean, abs=1) and 356 <= sizes.min() < sizes.max() <= longest
        edges = [histogram.first + i * histogram.width for i in range(len(histogram.counts) + 1)]
        assert tuple(np.histogram(sizes, edges)[0]) == histogram.counts


def test_own_rows_are_planned_for_where_they_are_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "load_tokenizer", lambda config: "tokenizer")
    monkeypatch.setattr(lengths, "load_examples", lambda data, tokenizer: (data.rows, tokenizer))
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    here = dataclasses.replace(CONFIG, data=DataConfig(rows=str(tmp_path / "rows.jsonl")), tokenizer=str(tmp_path))
    assert lengths.examples_of(here, "auto", 9, None)[0] == (here.data.rows, "tokenizer")
    assert lengths.examples_of(CONFIG, "rows", 9, None)[0] == ("", "tokenizer"), "asked for: what is wrong is said"
    assert len(lengths.examples_of(here, "auto", 9, 100)[0].rows) == 9, "another mean is asked for"
    elsewhere = dataclasses.replace(here, data=DataConfig(rows="simplescaling/s1K"))
    assert "as long as those of s1k, 4,699" in lengths.examples_of(elsewhere, "auto", 1000, None)[1]
    r1 = dataclasses.replace(here, data=DataConfig(rows="x", teacher="deepseek", block=20000, over_length="drop"))
    said = lengths.examples_of(r1, "auto", 1000, None)[1]
    assert said.startswith("993 examples as long as those of s1k_deepseek") and said.endswith(
        "(7 over data.block dropped)"
    )
    with pytest.raises(BadInput, match="7 of 1000 rows are longer than data.block=20000"):
        lengths.examples_of(dataclasses.replace(r1, data=DataConfig(rows="x", block=20000)), "s1k_deepseek", 1000, None)


def test_steps_of_a_run(unbuilt):
    for change, steps in (({}, 5 * 63), ({"epochs": 2, "examples": 32}, 4), ({"steps": 7}, 7)):
        assert make_plan(dataclasses.replace(CONFIG, **change))[0].update.steps == steps
