"""Files of a model or tokenizer: in a folder, or fetched from the Hugging Face hub by id."""

import os
import pathlib
from collections.abc import Sequence

from s1jax.config import BadInput


def fetch(source: str | os.PathLike, patterns: Sequence[str], key: str) -> pathlib.Path:
    """The folder `source`, or the folder into which the files of the hub id `source` are fetched.

    Args:
      patterns: which files of a hub id are wanted.
      key: of the config, named in errors.

    Raises:
      BadInput: `source` is a file, or neither a folder nor a hub id.
    """
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BadInput(f"{key}={source} is a file; give the folder that holds it")
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(os.fspath(source), allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{key}={source} is neither a folder nor a hub id that can be read ({reason})") from None
