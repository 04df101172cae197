"""Times of decoding, one JSON line each, on whatever device JAX has.

    python tools/bench_decode.py step   shape=0.5b rows=1,8,16,64 context=1024 [dtype= weights= cache= layers=]
    python tools/bench_decode.py budget shape=0.5b rows=16 context=512      budget forcing against free, share of a step
    python tools/bench_decode.py refill shape=least lengths=FILE rows=16         occupancy and share of the ideal gain
    python tools/bench_decode.py sweep  shape=tiny                          a sweep by forking against separate runs
    python tools/bench_decode.py rounds shape=tiny                          stop, append, prefill again; against one row
    python tools/bench_decode.py peer   shape=0.5b rows=1,8,16 [tunix=PYTHON]   beside transformers and Tunix, CPU only

Weights are random. A step's roofline is the bytes that it must move (weights once, each row's live keys and values)
over the bandwidth of a large read measured in the same process. On a machine that does other work only ratios mean
something.
"""

import sys
from collections.abc import Sequence

import bench_decode_runs
import bench_decode_steps


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names."""
    name, *pairs = arguments
    benches = {**bench_decode_steps.BENCHES, **bench_decode_runs.BENCHES}
    benches[name](dict(pair.split("=", 1) for pair in pairs))


if __name__ == "__main__":
    main(sys.argv[1:])
