"""Rows of a data set, wherever it is: JSONL or Parquet, a folder of them, a saved `datasets` folder, the hub."""

import os
import pathlib
from typing import Any

from s1jax.config import BadInput
from s1jax.records import read_jsonl
from s1jax.runs.places import fetched

SUFFIXES = (".jsonl", ".parquet")


def shared_data() -> pathlib.Path:
    """The folder of shared real data: `S1JAX_SHARED`, by default `../shared` beside the repository; its `data`."""
    beside = pathlib.Path(__file__).parent.parent.parent / "shared"
    return pathlib.Path(os.environ.get("S1JAX_SHARED", beside)) / "data"


def load_rows(source: str | os.PathLike, *, split: str = "train", subset: str | None = None) -> list[dict[str, Any]]:
    """All rows of a data set, in order.

    Args:
      source: a .jsonl or .parquet file; a folder that `datasets.save_to_disk` wrote, or that holds .jsonl or .parquet
        files (read in order of their paths); or a hub id.
      split: which split of a hub data set or a saved `DatasetDict`.
      subset: which configuration of a hub data set (`gpqa_diamond`), where it has several.

    Raises:
      BadInput: nothing of that kind is there, or it is empty or unreadable.
    """
    path = fetched(source).expanduser()
    if path.is_file():
        rows = _read_file(path)
    elif path.is_dir():
        rows = _read_folder(path, split)
    else:
        rows = _read_hub(os.fspath(source), split, subset)
    if not rows:
        raise BadInput(f"{source} holds no rows; give a data set with at least one")
    return rows


def _read_file(path: pathlib.Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"{path} is not Parquet ({error}); write it again") from None
    raise BadInput(f"{path} ends in {path.suffix!r}; give a file that ends in {' or '.join(SUFFIXES)}")


def _read_folder(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise BadInput(f"{folder} has the splits {', '.join(map(str, saved))}, not {split!r}; name one of them")
            saved = saved[split]
        return saved.to_list()
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise BadInput(f"{folder} holds no file that ends in {' or '.join(SUFFIXES)}, nor a saved data set")
    return [row for path in files for row in _read_file(path)]


def _read_hub(source: str, split: str, subset: str | None) -> list[dict[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset(source, subset, split=split).to_list()
    except Exception as error:  # the hub client raises OSError, ValueError and its own kinds for what is not there
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{source} is neither a file, a folder nor a hub data set that can be read ({reason})") from None
