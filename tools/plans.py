"""Plan the shipped recipes and record what they take: docs/plans.json and docs/plans.md (`make plans`).

    python tools/plans.py [NAME ...]      only those whose inputs changed, or the ones named

The compilers are those of the extras `cuda` and `tpu`. A GPU's plan takes seconds, a TPU's minutes.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
RECORD, PAGE = ROOT / "docs" / "plans.json", ROOT / "docs" / "plans.md"
GIB = 2**30

S1, S1_1, S1_7B = "configs/s1_32b.yaml", "configs/s1_1_32b.yaml", "configs/s1_7b.yaml"
ON_16, ON_8 = ["mesh.fsdp=4", "mesh.context=4"], ["mesh.fsdp=1", "mesh.context=8"]
FOUR = ["mesh.fsdp=4", "mesh.context=2"]
LORA = ["lora.rank=16", "remat=offload", "rows=[1,9216]"]
PLANS: dict[str, list[str]] = {
    "s1, 16 H100": [S1, "topology=h100:2x8", *ON_16],
    "s1, 16 H100, bf16 mu": [S1, "topology=h100:2x8", *ON_16, "optimizer.mu=bfloat16"],
    "s1, 8 H100": [S1, "topology=h100:1x8", *ON_8],
    "s1, 8 H100, bf16 mu": [S1, "topology=h100:1x8", *ON_8, "optimizer.mu=bfloat16"],
    "s1, 8 H100, bf16 mu, offload": [S1, "topology=h100:1x8", *FOUR, "optimizer.mu=bfloat16", "remat=offload"],
    "s1 as packed, 8 H100, bf16 mu": [S1, "topology=h100:1x8", "rows=[8,12288]", "optimizer.mu=bfloat16"],
    "s1, 8 H200": [S1, "topology=h200:1x8", "mesh.fsdp=2", "mesh.context=4"],
    "s1, 32 v5p": [S1, "topology=v5p:2x4x4", "mesh.fsdp=8", "mesh.context=4"],
    "s1, 64 v6e": [S1, "topology=v6e:8x8", "mesh.fsdp=16", "mesh.context=4"],
    "s1.1, 16 H100": [S1_1, "topology=h100:2x8", *ON_16],
    "s1.1, 8 H100": [S1_1, "topology=h100:1x8", *ON_8],
    "s1.1, 32 v5p": [S1_1, "topology=v5p:2x4x4", "mesh.fsdp=8", "mesh.context=4"],
    "s1.1, 64 v6e": [S1_1, "topology=v6e:8x8", "mesh.fsdp=16", "mesh.context=4"],
    "s1 7B, 8 H100": [S1_7B, "topology=h100:1x8", "mesh.fsdp=2", "mesh.context=4"],
    "s1 LoRA, 1 H100": [S1, "topology=h100:1x1", *LORA],
    "32B decode, int8, 1 H100": [
        S1, "topology=h100:1x1", "engine.weights=int8", "engine.cache=int8", "engine.max_length=16384"
    ],
    "32B decode, bf16, 8 H100": [S1, "topology=h100:1x8", "mesh.tensor=8", "engine.max_length=32768"],
}  # fmt: skip

PAGE_HEAD = """# Plans of the shipped recipes

Compiled for devices that were not there (`s1jax plan`, redone by `make plans`; arguments, parts and versions are in
[plans.json](plans.json)); none of these was run. GiB are the compiler's: arguments, results, temporaries of one device.
A plan fits when it leaves 1.5 GiB for collectives and kernels within 92 % of the memory, and is tight within all of it.
Seconds are the arithmetic floor: of a train step of full rows of one example each, recomputation not counted, or of a
decode step that reads weights and a full cache once.

| recipe | topology | mesh | rows | remat or types | moments | GiB | of | verdict | floor, s |
|---|---|---|---|---|---|---|---|---|---|
"""


def inputs(arguments: list[str]) -> str:
    """Hash of what a plan is asked: the resolved config, whatever the recipe's comments and the order of its keys."""
    from s1jax import __main__ as cli
    from s1jax.config import to_dict
    from s1jax.plan.sizes import decoder_config

    config = cli.load_config("plan", str(ROOT / arguments[0]), arguments[1:])
    asked: dict[str, Any] = {key: value for key, value in to_dict(config).items() if key not in ("out", "log", "save")}
    text = json.dumps([asked, vars(decoder_config(config.model))], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def plan(arguments: list[str]) -> dict[str, Any]:
    """The content of `plan.json` for these arguments, by the verb in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "s1jax", "plan", *arguments, f"out={folder}/plan"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads((pathlib.Path(folder) / "plan" / "plan.json").read_text(encoding="utf-8"))


def table(record: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for name, entry in record["plans"].items():
        made, parts = entry["plan"], entry["plan"]["bytes_per_device"]
        mesh = " x ".join(f"{axis} {n}" for axis, n in made["mesh"].items() if n > 1) or "one device"
        how = f"{made['weights']}, cache {made['cache']}" if made["step"] == "decode" else made["remat"]
        moments = "" if made["moments"] is None else f"{made['moments']['mu']}, {made['moments']['nu']}"
        shape = made.get("rows") or made["classes"]
        rows.append(
            f"| {name} | {made['topology']} | {mesh} | {shape} | {how} | {moments} | {parts['total'] / GIB:.2f} | "
            f"{made['memory'] / GIB:.1f} | {made['verdict']} | {made['floor_seconds']:.3g} |"
        )
    return PAGE_HEAD + "\n".join(rows) + "\n"


def main(names: list[str]) -> int:
    """Plan what changed, or what is named, and write both files."""
    sys.path.insert(0, str(ROOT))
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"plans": {}}
    done = {name: entry for name, entry in record["plans"].items() if name in PLANS}
    for name, arguments in PLANS.items():
        asked = inputs(arguments)
        if name not in names and (names or done.get(name, {}).get("inputs") == asked):
            continue
        print(f"--- {name}", flush=True)
        done[name] = {"arguments": arguments, "inputs": asked, "plan": plan(arguments)}
        whole = {"format": "s1jax.plans/1", "plans": {name: done[name] for name in PLANS if name in done}}
        RECORD.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(table(whole), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
