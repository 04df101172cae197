"""One of several processes that save, for `test_saves.py`: `python save_worker.py FOLDER WHAT_HAPPENS`."""

import errno
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.checkpoint import saved, store
from s1jax.parallel import hosts
from s1jax.parallel.folder import _check_shared
from s1jax.parallel.mesh import MeshConfig, make_mesh

LEAVE_SECONDS = 3
digest = store.hash_file


def slowly(path):
    """Hashing beyond the limit of the barrier at the end."""
    if jax.process_index() == 0 and "00000003" in str(path) and path.name == "_METADATA":
        time.sleep(3 * LEAVE_SECONDS)
    return digest(path)


def without_room(path):
    """A disk that is full where the last process hashes, from the second save on."""
    if jax.process_index() == jax.process_count() - 1 and "00000002" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return digest(path)


def state_of(step, mesh):
    value = np.random.default_rng(step).random(2**16, np.float32)
    sharding = NamedSharding(mesh, P("fsdp"))
    return {"x": jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])}


def main(root, what):
    hosts.start(hosts.HostsConfig(leave_seconds=LEAVE_SECONDS))
    mesh = make_mesh(MeshConfig(fsdp=8))
    with hosts.leaving_at_once():
        if what == "apart":
            _check_shared(root / str(min(jax.process_index(), 1)))
        store.hash_file = {"slow": slowly, "full": without_room, "goes on": without_room}.get(what, digest)
        with store.Store(
            root, keep=5, goes_on=what == "goes on", wait_seconds=60, say=lambda line: print(line)
        ) as writer:
            for step in (1, 2, 3):
                writer.save(step, state_of(step, mesh))
                for _ in range(20 * (what == "full" and step == 2)):  # a run looks once a step
                    writer.check()
                    time.sleep(0.1)
            writer.wait()
            found = saved.saved(root)
            print(json.dumps({"saved": [checkpoint.step for checkpoint in found]}), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
