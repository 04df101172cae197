"""The folder of a run that several processes share."""

import contextlib
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.runs import places
from s1jax.runs.fingerprint import Content
from s1jax.runs.folder import entered

SEEN_SECONDS = 10.0  # a network file system may show a new file a few seconds late
POLL_SECONDS = 0.1


@contextlib.contextmanager
def opened(config: Any, *, device: str, contents: Callable[[], Mapping[str, Content]] = dict) -> Iterator[Any]:
    """The run's folder, locked and opened by the first process, and seen by all of them.

    Of one in an object store it is a local copy, which the first process alone writes to.

    Raises:
      BadInput: in every process, when it is in use or belongs to another run, or when one of them does not see it.
    """
    out = places.place(config.out)
    with contextlib.ExitStack() as stack:
        local = hosts.of_first(lambda: str(stack.enter_context(entered(config, device=device, contents=contents))))
        _check_shared(out)
        yield pathlib.Path(local) if places.is_remote(out) else out


def _check_shared(out: Any) -> None:
    """Whether every process sees a file that the first one has just written."""
    if jax.process_count() == 1:
        return
    name = hosts.of_first(lambda: _leave_token(out))
    end = time.monotonic() + SEEN_SECONDS
    while not (is_seen := (out / name).is_file()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    blind = [process for process, other in enumerate(hosts.gather(is_seen)) if not other]
    if jax.process_index() == 0:
        places.remove(out / name)
    if blind:
        raise hosts.agreed(
            BadInput(
                f"out={out} is not the same folder in all processes: process {blind[0]} does not see what process 0 "
                "wrote there; give a folder on a file system that all hosts share, or gs://"
            )
        )


def _leave_token(out: Any) -> str:
    name = f".seen.{secrets.token_hex(8)}"
    places.write_bytes(out / name, b"")
    return name
