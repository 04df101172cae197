"""What the compiled decode window copies, for devices that need not be there.

    python tools/check_decode_program.py topology=h100:1x1 shape=32b rows=16 context=8192 [weights=int8 cache=int8]

Topologies are those of `s1jax plan` (`cpu:1`, `h100:1x1`, `v5e:2x2`; all devices are one mesh of `tensor`). One JSON
line: what the program makes anew that is as large as a layer's cache of a class or as the smallest weight matrix, by
operation, in every step and once a window; bytes of temporaries; bytes of the cache that are written in place.
Exit code 1 when anything is made anew, or the cache is not written in place.
"""

import collections
import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax

from s1jax.control.budget.admission import admit
from s1jax.control.budget.automaton import build
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine import decode
from s1jax.engine.outline import outline
from s1jax.engine.state import Shape
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel import mesh as meshes
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.plan import memory, topology
from s1jax.text.tokens import byte_tokenizer

# Results that are no array of their own: names for others, and what is written into an operand.
IN_PLACE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "scatter"}
IN_PLACE |= {"dynamic-update-slice", "optimization-barrier", "get-dimension-size", "copy-done", "async-done"}
RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(?[\w\[\],{}:()*/ #=-]+?\)?) ([\w-]+)\((.*)$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Result:
    """One instruction of a compiled program; the arrays it makes as (type, dimensions, layout), and its operands."""

    name: str
    operation: str
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    rest: str


def computations(text: str) -> dict[str, list[tuple[bool, Result]]]:
    """The instructions of each computation of an optimised program, and which of them is its root."""
    found: dict[str, list[tuple[bool, Result]]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and "->" in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            found[name] = []
        elif name and (match := RESULT.match(line)):
            arrays = tuple(
                (kind, tuple(int(n) for n in dims.split(",") if n), layout)
                for kind, dims, layout in ARRAY.findall(match[2])
            )
            found[name].append((line.lstrip().startswith("ROOT"), Result(match[1], match[3], arrays, match[4])))
    return found


def copied(text: str, least: int) -> dict[str, collections.Counter[str]]:
    """Arrays of at least so many elements that a program makes anew in the device's memory, by operation and shape.

    Those made in every step (within a loop), and those made once a window. A
    fusion counts as the operation at its root. Results in a fast memory of the chip (`S(1)`) are reads, not copies.
    """
    program = computations(text)
    fused = set(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", text))
    looped = _within_loops(program)
    counts = {"step": collections.Counter(), "window": collections.Counter()}
    for name in program.keys() - fused:
        for _, result in program[name]:
            operation = _operation(result, program)
            # What is started gives names of its source beside what is made.
            made = {"copy-start": result.arrays[:1], "slice-start": result.arrays[1:2]}.get(operation, result.arrays)
            for kind, dims, layout in made:
                if math.prod(dims) >= least and "S(1)" not in layout and operation not in IN_PLACE:
                    shape = f"{operation} {kind}[{','.join(map(str, dims))}]"
                    counts["step" if name in looped else "window"][shape] += 1
    return counts


def _within_loops(program: dict[str, list[tuple[bool, Result]]]) -> set[str]:
    """Names of the computations that run in every turn of a loop."""
    called = {
        name: {other for _, result in results for other in re.findall(r"%([\w.-]+)", result.rest) if other in program}
        for name, results in program.items()
    }
    open_ = {
        body
        for results in program.values()
        for _, result in results
        if result.operation == "while"
        for body in re.findall(r"body=%?([\w.-]+)", result.rest)
    }
    found: set[str] = set()
    while open_:
        name = open_.pop()
        found.add(name)
        open_ |= called[name] - found
    return found


def _operation(result: Result, program: dict[str, list[tuple[bool, Result]]]) -> str:
    body = re.search(r"calls=%?([\w.-]+)", result.rest)
    if result.operation != "fusion" or body is None:
        return result.operation
    inner = {found.name: found for _, found in program[body[1]]}
    root = next(found for is_root, found in program[body[1]] if is_root)
    while root.operation == "bitcast" and (operand := re.match(r"%?([\w.-]+)", root.rest)) and operand[1] in inner:
        root = inner[operand[1]]
    return root.operation


def compile_window(
    config: DecoderConfig, where: topology.Topology, classes: Sequence[tuple[int, int]], *, weights: str, cache: str
) -> Any:
    """The compiled window for rows under budget forcing; a mesh of `tensor` devices over the whole topology."""
    tokenizer, asked = byte_tokenizer(), BudgetConfig(thinking_n_ignore=2, thinking_end=("<|im_start|>", "</t>"))
    row = admit(asked, tokenizer, prompt_length=3, max_length=1024, max_new_tokens=1024)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=len(where.devices)), where.devices)
    dtype = "float32" if weights == "float32" else "bfloat16"
    shape = Shape(tuple(classes), 8, dtype)
    control = build(tokenizer, config.V, [asked])
    model, control, state = outline(config, shape, control, row, mesh, weights=weights, cache=cache)
    # One device is placed as the engine places it: no rules.
    if mesh.size == 1:
        lowered = memory.lower(decode.decode_window, where, model, control, state, shape=shape)
    else:
        with meshes.use(mesh):
            lowered = memory.lower(decode.decode_window, where, model, control, state, shape=shape)
    return memory.compile(lowered, where, triton=True), model, state


def main(arguments: Sequence[str]) -> int:
    """Compile, look, and print one line."""
    from bench_decode_steps import shape_of

    options = dict(argument.split("=", 1) for argument in arguments)
    config = shape_of({"layers": "2", "shape": "32b", **options})
    rows, context = int(options.get("rows", 16)), int(options.get("context", 8192))
    classes = ((rows, context // 2), (max(1, rows // 4), context))
    where = topology.find(options.get("topology", "h100:1x1"))
    weights, cache = options.get("weights", "bfloat16"), options.get("cache", "bfloat16")
    compiled, model, state = compile_window(config, where, classes, weights=weights, cache=cache)
    ways = len(where.devices)
    caches = [math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.cache) if x.ndim == 4]
    least = min(*caches, config.D * config.K * config.H // ways)
    found = copied(compiled.as_text(), least)
    stats = compiled.memory_analysis()
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    print(
        json.dumps(
            {
                "check": "decode window", "topology": where.name, "shape": options.get("shape", "32b"),
                "layers": config.L, "classes": classes, "weights": weights, "cache": cache, "tensor": ways,
                "least_elements": least,
                "made_in_every_step": found["step"], "made_once_a_window": found["window"],
                "temporary_bytes": stats.temp_size_in_bytes, "cache_bytes": held,
                "aliased_bytes": stats.alias_size_in_bytes,
            }
        )
    )  # fmt: skip
    return int(any(found.values()) or stats.alias_size_in_bytes < held)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
