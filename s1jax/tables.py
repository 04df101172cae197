"""Rows of a data set, wherever it is: JSON, JSONL or Parquet, a folder of them, a saved `datasets` folder, the hub."""

import itertools
import json
import os
import pathlib
from typing import Any

from s1jax.config import BadInput
from s1jax.records import read_jsonl
from s1jax.runs.places import fetched

SUFFIXES = (".jsonl", ".json", ".parquet")
MOST_FILES = 20_000  # of a folder with a data set
NAMED = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def shared_data() -> pathlib.Path:
    """The folder of shared real data: `S1JAX_SHARED`, by default `../shared` beside the repository; its `data`."""
    beside = pathlib.Path(__file__).parent.parent.parent / "shared"
    return pathlib.Path(os.environ.get("S1JAX_SHARED", beside)) / "data"


def load_rows(source: str | os.PathLike, *, split: str = "train", subset: str | None = None) -> list[dict[str, Any]]:
    """All rows of a data set, in order.

    Args:
      source: a .jsonl, .json (a list of objects, or one a line) or .parquet file; a folder that
        `datasets.save_to_disk` wrote, or that holds such files (read in order of their paths; .json only where there
        are no others, since metadata is kept in such files); or a hub id.
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
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"{path} is not Parquet ({error}); write it again") from None
    raise BadInput(f"{path} ends in {path.suffix!r}; give a file that ends in {NAMED}")


def _read_json(path: pathlib.Path) -> list[dict[str, Any]]:
    """A list of objects, or one object a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text)
    except (ValueError, RecursionError):  # one object a line, or what that reader refuses by its line
        return read_jsonl(path)
    if "\\ud" in text.lower():  # half of a surrogate pair is no text: it could not be hashed or written again
        try:
            json.dumps(rows, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(f"{path} cannot be read ({error}); mend or remove that text") from None
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path} holds JSON that is no list of objects; give a list of rows, or one object a line")
    return rows


def _read_folder(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise BadInput(f"{folder} has the splits {', '.join(map(str, saved))}, not {split!r}; name one of them")
            saved = saved[split]
        return saved.to_list()
    found = list(itertools.islice(folder.rglob("*"), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise BadInput(f"{folder} holds more than {MOST_FILES:,} files; give the folder of one data set")
    files = sorted(path for path in found if path.suffix in SUFFIXES)
    files = [path for path in files if path.suffix != ".json"] or files
    if not files:
        raise BadInput(f"{folder} holds no file that ends in {NAMED}, nor a saved data set")
    return [row for path in files for row in _read_file(path)]


def _read_hub(source: str, split: str, subset: str | None) -> list[dict[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset(source, subset, split=split).to_list()
    except Exception as error:  # the hub client raises OSError, ValueError and its own kinds for what is not there
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{source} is neither a file, a folder nor a hub data set that can be read ({reason})") from None
