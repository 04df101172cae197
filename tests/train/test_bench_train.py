"""The benchmark of the train step: runs where data and evaluation packages are not installed, and sums up rightly."""

import json
import pathlib
import subprocess
import sys

TOOLS = pathlib.Path(__file__).parent.parent.parent / "tools"
ABSENT = ["grain", "datasets", "math_verify", "transformers", "torch", "orbax", "tensorboardX", "matplotlib"]
SCRIPT = f"""
import json, sys
for name in {ABSENT}:
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, {str(TOOLS)!r})
import bench_train
argv = "--shape tiny --rows 2 --length 64 --examples 2 --micro-batches 2 --remat full --chunk 16".split()
options = bench_train.arguments(argv)
facts, updates = bench_train.our_updates(options)
class Here:
    first = {{"versions": facts, "first_seconds": 1.0, "loss": updates(1)}}
    def __init__(self, command): pass
    def updates(self, count): updates(count); return {{"seconds": 2.0 * count}}
    def close(self): pass
bench_train.Worker = Here
print(json.dumps(bench_train.compare(options, argv)))
"""


def test_it_runs_alone_and_counts_tokens_and_operations():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    ours = found["s1jax"]
    assert ours["tokens_per_second"] == 2 * 64 / 2.0 and abs(ours["first_loss"] - 6.2) < 1.0  # log of 512 ids
    matrices = 2 * (64 * 2 * 16 * 6 + 3 * 64 * 128) + 64 * 512
    attention = 6 * 2 * 2 * 2 * 16 * 4 * 32 * 32  # four examples of 32 ids, not two rows of 64
    assert found["flops_per_step"] == 6 * matrices * 128 + attention
    assert ours["mfu"] == found["flops_per_step"] / 2.0 / found["peak_flops"] and ours["versions"]["attention"] == "xla"
