"""Rows of a data set, wherever it is."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from s1jax import tables
from s1jax.config import BadInput
from s1jax.tables import load_rows, shared_data

ROWS = [{"id": "a", "n": 1}, {"id": "b", "n": 2}]


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_files(tmp_path, name):
    write(tmp_path / name, ROWS)
    assert load_rows(tmp_path / name) == ROWS
    (tmp_path / "notes.txt").write_text("not rows")
    assert load_rows(tmp_path) == ROWS


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for number, name in enumerate(("b/1.parquet", "a/2.jsonl", "a/1.jsonl", "c.jsonl")):
        write(tmp_path / name, [{"id": name, "n": number}])
    assert [row["id"] for row in load_rows(tmp_path)] == ["a/1.jsonl", "a/2.jsonl", "b/1.parquet", "c.jsonl"]


def test_a_saved_data_set_and_its_splits(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    assert load_rows(tmp_path / "one", split="whatever") == ROWS
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert load_rows(tmp_path / "two") == ROWS and load_rows(tmp_path / "two", split="test") == ROWS[1:]
    with pytest.raises(BadInput, match="has the splits train, test, not 'dev'; name one of them"):
        load_rows(tmp_path / "two", split="dev")


def test_a_hub_data_set_is_asked_for_by_split_and_subset(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("some/where", split="test", subset="diamond") == ROWS
    assert asked == [(("some/where", "diamond"), {"split": "test"})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([]))
    with pytest.raises(BadInput, match="some/where holds no rows; give a data set with at least one"):
        load_rows("some/where")


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(BadInput, match="is neither a file, a folder nor a hub data set that can be read"):
        load_rows("nobody/nothing")
    with pytest.raises(BadInput, match="holds no file that ends in .jsonl, .json or .parquet, nor a saved data set"):
        load_rows(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(BadInput, match="ends in '.csv'; give a file that ends in .jsonl, .json or .parquet"):
        load_rows(tmp_path / "rows.csv")
    (tmp_path / "bad.parquet").write_text("nonsense")
    with pytest.raises(BadInput, match="bad.parquet is not Parquet"):
        load_rows(tmp_path / "bad.parquet")


def test_a_long_reason_is_cut(monkeypatch):
    def load_dataset(*_, **__):
        raise ValueError("x\n" * 300)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput) as error:
        load_rows("some/where")
    assert f"({('x ' * 300)[:200]})" in str(error.value)


def test_shared_data_is_beside_the_repository_or_where_it_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("S1JAX_SHARED", str(tmp_path))
    assert shared_data() == tmp_path / "data"
    monkeypatch.delenv("S1JAX_SHARED")
    repository = tables.pathlib.Path(tables.__file__).parent.parent
    assert shared_data() == repository.parent / "shared" / "data"
