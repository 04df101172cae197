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
H100_16 = ["topology=h100:2x8", "mesh.fsdp=4", "mesh.context=4"]
ON_8 = "topology=h100:1x8"
H100_8 = [ON_8, "mesh.fsdp=1", "mesh.context=8"]
BF16_MU = "optimizer.mu=bfloat16"
# A TPU's compiler takes minutes for a row length: these recipes are planned with one, the longest.
V5P = ["topology=v5p:2x4x4", "mesh.fsdp=8", "mesh.context=4", "packing.shapes=1"]
V6E = ["topology=v6e:8x8", "mesh.fsdp=8", "mesh.context=8", "packing.shapes=1"]
TPUS = {
    "s1, 32 v5p": [S1, *V5P],
    "s1, 64 v6e": [S1, *V6E],
    "s1.1, 32 v5p": [S1_1, *V5P],
    "s1.1, 64 v6e": [S1_1, *V6E],
}
FASTEST = ["s1, 8 H100, the fastest", "s1, 8 H100, bf16 mu, the fastest"]
ONE, FOUR = "one micro-batch", "four micro-batches"
PLANS: dict[str, list[str]] = {
    "s1, 16 H100": [S1, *H100_16],
    "s1, 16 H100, bf16 mu": [S1, *H100_16, BF16_MU],
    "s1, 8 H100": [S1, *H100_8],
    "s1, 8 H100, bf16 mu": [S1, *H100_8, BF16_MU],
    FASTEST[0]: [S1, ON_8, "mesh=search"],
    FASTEST[1]: [S1, ON_8, "mesh=search", BF16_MU],
    "s1, 8 H100, examples of 5,740 tokens": [S1, *H100_8, "mean_tokens=5740"],
    ONE: [S1, *H100_8, BF16_MU, "rows=[1,22912]"],
    FOUR: [S1, *H100_8, BF16_MU, "rows=[4,22912]"],
    "s1, 8 H200": [S1, "topology=h200:1x8", "mesh.fsdp=2", "mesh.context=4"],
    "s1.1, 16 H100": [S1_1, *H100_16],
    "s1.1, 8 H100": [S1_1, *H100_8],
    "s1 7B, 8 H100": [S1_7B, ON_8, "mesh.fsdp=2", "mesh.context=4"],
    "s1 LoRA, 1 H100": [S1, "topology=h100:1x1", "lora.rank=16", "remat=offload", "packing.rows=8"],
    **TPUS,
    "32B decode, int8, 1 H100": [
        S1, "topology=h100:1x1", "engine.weights=int8", "engine.cache=int8", "engine.max_length=16384"
    ],
    "32B decode, bf16, 8 H100": [S1, ON_8, "mesh.tensor=8", "engine.max_length=32768"],
}  # fmt: skip

PAGE_HEAD = """# Plans of the shipped recipes

Compiled for devices that were not there (`s1jax plan`, redone by `make plans`; arguments, parts and versions are in
[plans.json](plans.json)); none of these was run. GiB are the compiler's: arguments, results, temporaries of one device.
A plan fits when it leaves 1.5 GiB for collectives and kernels within 92 % of the memory, and is tight within all of it.

A train step is the whole update of the recipe: its `global_batch` of examples, packed as `train` packs them, all
micro-batches. Lengths are those of the traces of s1K (4.7K tokens in the mean; s1.1: of r1's traces); whole rows,
question and answer included, are about a fifth longer (the line with 5,740). Every row length of the run is compiled,
GiB are those of the largest program; the longest rows are given, and the share of all positions that holds tokens.
Seconds are the arithmetic floor: of a mean update, recomputation and padding not counted, or of a decode step that
reads weights and a full cache once; minutes are those of the run at 40 % of the peak.

| recipe | topology | mesh | rows | micro-batches | full | remat or types | moments | GiB | of | verdict | s | min |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


# Keys of a recipe that no plan reads.
UNREAD = ("out", "log", "save", "hosts", "tokenizer", "chat_template", "eval_rows", "eval_every", "profile_steps")


def inputs(arguments: list[str]) -> str:
    """Hash of the keys that a plan reads, whatever the recipe's comments and the order of its keys."""
    from s1jax import __main__ as cli
    from s1jax.config import to_dict
    from s1jax.plan.sizes import decoder_config

    config = cli.load_config("plan", str(ROOT / arguments[0]), arguments[1:])
    asked: dict[str, Any] = {key: value for key, value in to_dict(config).items() if key not in UNREAD}
    asked["data"] = {"block": config.data.block}
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
        moments = "" if made["moments"] is None else f"{made['moments']['mu']}, {made['moments']['nu']}"
        if made["step"] == "decode":
            cells = [made["classes"], "", "", f"{made['weights']}, cache {made['cache']}"]
            minutes = ""
        else:
            where = " + moments offloaded" if made["offload_optimizer"] else ""
            count, length = made["rows"]
            cells = [f"{count} x {length:,}", made["micro_batches"], f"{made['fill']:.0%}", made["remat"] + where]
            minutes = f"{made['run']['minutes']:.1f}"
        first = " | ".join(map(str, [name, made["topology"], mesh, *cells, moments]))
        rows.append(
            f"| {first} | {parts['total'] / GIB:.2f} | {made['memory'] / GIB:.1f} | {made['verdict']} | "
            f"{made['floor_seconds']:.3g} | {minutes} |"
        )
    return PAGE_HEAD + "\n".join(rows) + "\n" + "".join(_remarks(record["plans"]))


def _remarks(plans: dict[str, Any]) -> list[str]:
    """The fastest plans for 8 H100, what micro-batches take, and what is not recorded."""
    text = []
    if all(name in plans for name in FASTEST):
        made = [plans[name]["plan"] for name in FASTEST]
        said = [
            f"with {plan['moments']['mu']} first moment "
            + " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
            + f", remat {plan['remat']}{', moments offloaded' if plan['offload_optimizer'] else ''}, "
            f"{plan['bytes_per_device']['total'] / GIB:.2f} GiB"
            for plan in made
        ]
        text.append(f"\n**The fastest for 8 H100** that fits, by the estimate of `mesh=search`: {'; '.join(said)}.\n")
    if ONE in plans and FOUR in plans:
        one, four = (plans[name]["plan"]["bytes_per_device"]["total"] for name in (ONE, FOUR))
        text.append(
            f"\nFour micro-batches take {four / one:.3f} times the memory of one: they add to one tree of gradients.\n"
        )
    if missing := [name for name in TPUS if name not in plans]:
        text.append(f"\nNot compiled since the step changed (`make plans` does): {'; '.join(missing)}.\n")
    return text


def main(names: list[str]) -> int:
    """Plan what changed, or what is named, and write both files."""
    sys.path.insert(0, str(ROOT))
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"plans": {}}
    asked = {name: inputs(arguments) for name, arguments in PLANS.items()}
    done = {name: entry for name, entry in record["plans"].items() if entry["inputs"] == asked.get(name)}
    for name, arguments in PLANS.items():
        if name not in names and (names or name in done):
            continue
        print(f"--- {name}", flush=True)
        done[name] = {"arguments": arguments, "inputs": asked[name], "plan": plan(arguments)}
        whole = {"format": "s1jax.plans/1", "plans": {name: done[name] for name in PLANS if name in done}}
        RECORD.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(table(whole), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
