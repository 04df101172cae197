"""One of several processes, for `test_train_hosts.py`: `python host_worker.py FOLDER`. Leaves FOLDER/PROCESS.json."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
from train_cases import RECIPE, TINY, examples

from s1jax.checkpoint import saved, store
from s1jax.config import BadInput
from s1jax.models.decoder import Decoder
from s1jax.parallel import hosts
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train.packing import PackingConfig
from s1jax.train.plan import make_plan
from s1jax.train.step import batch_sharding, initial_state, own_rows, place_batch, state_shardings

PLANNED = {"batch": 8, "steps": 6, "seed": 0, "norm": "example", "row_multiple": 4, "length_multiple": 2, "block": 128}


class Watched:
    """An example that notes when its ids are read, not only counted."""

    def __init__(self, row, read):
        self.id, self.prompt_length, self._row, self._read = row.id, row.prompt_length, row, read
        self.masked, self.loss_tokens = row.masked, row.loss_tokens

    def __len__(self):
        return len(self._row.ids)

    @property
    def ids(self):
        return self

    def __array__(self, dtype=None, copy=None):
        self._read.add(self.id)
        return np.asarray(self._row.ids, dtype)


def read_rows(mesh):
    """Which examples this process reads in each step, and whether its shards are those of the whole batch."""
    plain = examples(24, seed=2)
    plan = make_plan(plain, PackingConfig(rows=8, shapes=1, multiple=32), **PLANNED)
    sharding = batch_sharding(mesh)
    own = own_rows(plan.rows, 2, sharding)
    steps = []
    for step in range(plan.steps):
        read: set[str] = set()
        watched = dataclasses.replace(plan, examples=tuple(Watched(row, read) for row in plain))
        batch = place_batch(watched.at(step, own).arrays, 2, sharding)
        whole = plan.at(step).arrays
        for name in ("tokens", "targets", "positions", "segments", "weights"):
            expected = getattr(whole, name).reshape(2, 4, -1)
            for shard in getattr(batch, name).addressable_shards:
                np.testing.assert_array_equal(shard.data, expected[shard.index])
        steps.append(sorted(read))
    return {"own": sorted(own), "read": steps}


def save_again(folder, mesh):
    """What another number of processes saved, restored and saved by these."""
    shapes = jax.eval_shape(lambda: initial_state(Decoder(TINY, jax.random.key(0)), RECIPE))
    shardings = state_shardings(shapes, mesh, RECIPE)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    found = saved.resume(folder / "one", lambda checkpoint: abstract, print)
    assert found is not None
    writer = store.Store(folder / "several", keep=1)
    writer.save(found[0].step, found[1])
    writer.close()


def main(folder):
    hosts.start()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    hosts.agree({"seed": 1, "rows": "all"})
    try:
        hosts.agree({"seed": int(jax.process_index() == 2), "rows": "all"})
        said = "nothing"
    except BadInput as error:
        said = str(error)
    save_again(folder, mesh)
    report = {"said": said, **read_rows(mesh)}
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
