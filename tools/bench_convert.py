"""Conversion of a synthetic checkpoint both ways, beside a plain copy on the same disk in the same run.

    .venv/bin/python tools/bench_convert.py [--folder DIR] [--layers 36] [--repeat 1]

By default the shape of Qwen2.5-3B in bfloat16: 6.2 GB in five files, its largest tensor 622 MB. Needs four times that
on the disk. Each phase starts without the page cache of its input and ends when its output is on the disk. Prints one
JSON line per repetition: seconds and MB/s of each phase, the share of the plain copy's speed, and the peak of the
process's own memory beside twice the largest tensor + 1 GiB. Fails if a tensor's name, type or bytes differ.
"""

import argparse
import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import ml_dtypes
import numpy as np
import safetensors

from s1jax.checkpoint import files, layout
from s1jax.checkpoint.entry import Entry
from s1jax.models import FAMILIES
from s1jax.models.config import DecoderConfig

CHILD = "import sys; from s1jax.checkpoint.convert import *; run(ConvertRun(*sys.argv[1:3], to=sys.argv[3]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="a folder on the disk to be measured (default: a temporary one)")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = pathlib.Path(name)
        largest = synthesize(root / "source", arguments.layers)
        for _ in range(arguments.repeat):
            print(json.dumps(measure(root, largest)), flush=True)


def synthesize(folder: pathlib.Path, layers: int) -> int:
    """A checkpoint of random bytes; returns the size of its largest tensor in bytes."""
    config = DecoderConfig("qwen2", D=2048, K=2, G=8, H=128, F=11008, V=151936, L=layers, tied=True, qkv_bias=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(FAMILIES["qwen2"].to_hf(config)))
    block = np.random.default_rng(0).integers(0, 2**16, 8_000_009, np.uint16)

    def tensor(entry: Entry) -> files.Pending:
        dtype = np.dtype(ml_dtypes.bfloat16)
        return files.Pending(
            entry.name, entry.file_shape, dtype, lambda: [np.resize(block, entry.file_shape).view(dtype)]
        )

    pending = [tensor(entry) for entry in layout.entries(config)]
    files.write(folder, pending, file_bytes=1_500_000_000)
    return max(item.nbytes for item in pending)


def measure(root: pathlib.Path, largest: int) -> dict:
    source, copy, orbax, back = (root / name for name in ("source", "copy", "orbax", "back"))
    for folder in (copy, orbax, back):
        shutil.rmtree(folder, ignore_errors=True)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    limit = 2 * largest + 2**30
    record: dict = {"gigabytes": round(size / 1e9, 2), "largest_tensor_mb": round(largest / 1e6)}
    record |= {"cores": os.cpu_count(), "load_average_at_start": round(os.getloadavg()[0], 1)}
    forget(source)
    seconds = plain_copy(source, copy)
    record |= {"copy_seconds": round(seconds, 1), "copy_mb_per_s": round(size / 1e6 / seconds)}
    shutil.rmtree(copy)
    for name, given, made, to in (("in", source, orbax, "orbax"), ("out", orbax, back, "hf")):
        forget(given)
        taken, own, usage = convert(given, made, to)
        record |= {
            f"{name}_seconds": round(taken, 1),
            f"{name}_mb_per_s": round(size / 1e6 / taken),
            f"{name}_share_of_copy": round(seconds / taken, 2),
            f"{name}_peak_mb": round(own / 1e6),
            f"{name}_peak_with_mapped_files_mb": round(usage.ru_maxrss * 1024 / 1e6),
            f"{name}_cpu_seconds": {"user": round(usage.ru_utime, 1), "system": round(usage.ru_stime, 1)},
        }
    record |= {"peak_limit_mb": round(limit / 1e6), "is_equal": fingerprint(source) == fingerprint(back)}
    if not record["is_equal"]:
        sys.exit(f"the checkpoint that came back differs: {record}")
    return record


def forget(folder: pathlib.Path) -> None:
    """Have the kernel drop the pages of a folder's files, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_copy(source: pathlib.Path, target: pathlib.Path) -> float:
    """Seconds to copy every file and have it on the disk."""
    target.mkdir()
    start = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def convert(source: pathlib.Path, target: pathlib.Path, to: str) -> tuple[float, int, resource.struct_rusage]:
    """Seconds from start to exit of a process that converts, its peak own memory in bytes, and what it used."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(target), to])
    own = [0]
    watcher = threading.Thread(target=watch, args=(child, own))
    watcher.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    watcher.join()
    if child.returncode:
        sys.exit(f"converting {source} to {to} failed")
    return seconds, own[0], usage


def watch(child: subprocess.Popen, own: list[int]) -> None:
    """The largest anonymous memory of a process, looked at every 5 ms."""
    while child.returncode is None:
        try:
            status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            return
        found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        own[0] = max([own[0], *(int(kilobytes) * 1024 for kilobytes in found)])
        time.sleep(0.005)


def fingerprint(folder: pathlib.Path) -> dict[str, tuple]:
    """Name -> type, shape and hash of the bytes of every tensor, as the safetensors library reads them."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():
                value = file.get_tensor(name)
                data = value.reshape(-1).view(np.uint8).data
                found[name] = (str(value.dtype), value.shape, hashlib.blake2b(data, digest_size=16).hexdigest())
    return found


if __name__ == "__main__":
    main()
