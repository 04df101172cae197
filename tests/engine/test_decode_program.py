"""The decode window compiled for GPUs and TPUs that are not here: nothing as large as cache or weights is made anew."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).parent.parent.parent / "tools" / "check_decode_program.py"
PLUGINS = {"h100": "jax_plugins.xla_cuda12", "v5p": "libtpu"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("topology=h100:1x1", "weights=bfloat16", "cache=bfloat16"),
        ("topology=h100:1x2", "weights=int8", "cache=int8"),
        ("topology=v5p:2x2x1", "weights=int8", "cache=int8", "rows=32", "context=32768", "layers=1"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_window_copies_neither_cache_nor_weights(arguments):
    plugin = PLUGINS[arguments[0].removeprefix("topology=").partition(":")[0]]
    try:
        found = importlib.util.find_spec(plugin)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"no compiler for it: {plugin} is not installed (extras `cuda` and `tpu`)")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, str(TOOL), *arguments], env=environment, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr[-3000:]
    assert done.returncode == 0, result
    assert result["aliased_bytes"] >= result["cache_bytes"] > 4 * result["temporary_bytes"], result
