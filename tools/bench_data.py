"""How long a training loop waits for its data; one JSON line.

    python tools/bench_data.py [rows=1000] [mean=4700] [batch=16] [step=0.05]

Rows of random ids with lognormal lengths around `mean` are packed into four rows and prefetched as `s1jax train` does;
`step` is how many seconds the loop is busy between two batches.
"""

import json
import sys
import time

import numpy as np

from s1jax.text.render import Row
from s1jax.train.packing import PackingConfig
from s1jax.train.plan import make_plan, prefetched

DEFAULTS = {"rows": 1000, "mean": 4700, "batch": 16, "step": 0.05}


def main(argv: list[str]) -> None:
    """Plan, time batches back to back, then behind steps."""
    options = {**DEFAULTS, **{key: float(value) for key, _, value in (item.partition("=") for item in argv)}}
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(options["mean"]) - 0.03, 0.25, int(options["rows"])).astype(int).clip(300, 32000)
    rows = [Row(str(i), tuple(rng.integers(0, 152064, n + 1).tolist()), 120) for i, n in enumerate(lengths)]
    batch, shape = int(options["batch"]), {"row_multiple": 4, "length_multiple": 4, "block": 32768}
    plan = make_plan(rows, PackingConfig(), batch=batch, steps=200, seed=42, norm="example", **shape)
    batches = prefetched(plan, 0)
    next(batches)

    def waits(count: int, busy: float) -> list[float]:
        seconds = []
        for _ in range(count):
            time.sleep(busy)
            begun = time.perf_counter()
            next(batches)
            seconds.append(time.perf_counter() - begun)
        return seconds

    alone, behind = waits(100, 0.0), waits(60, options["step"])
    found = {"batch_seconds": float(np.mean(alone)), "wait_median": float(np.median(behind)), "wait_most": max(behind)}
    print(json.dumps({"bench": "data", **found, "plan": plan.describe(), "options": options}))


if __name__ == "__main__":
    main(sys.argv[1:])
