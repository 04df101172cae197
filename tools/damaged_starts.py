"""What `tools/fuzz_starts.py` starts: a small world of inputs, valid starts of every verb, and what is done to them."""

import contextlib
import dataclasses
import io
import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import yaml

from s1jax import __main__ as cli
from s1jax import help, records
from s1jax.checkpoint import hf
from s1jax.models.decoder import Decoder, DecoderConfig
from s1jax.text.tokens import byte_tokenizer

MODEL = DecoderConfig("qwen2", D=16, K=2, G=2, H=8, F=24, V=264, L=2, max_position=512, tied=True, qkv_bias=True)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STARTS: dict[str, list[str]] = {
    "train": [
        "model={w}/hf",
        "data.rows={w}/rows.jsonl",
        "steps=2",
        "global_batch=8",
        "packing.rows=8",
        "chat_template={w}/t.jinja",
    ],
    "curate": ["sources=[{{kind: rows, path: {w}/pool.jsonl}}]", "stages=[deduplicate, quality]"],
    "convert": ["source={w}/hf", "to=orbax"],
    "generate": ["model={w}/hf", "prompts={w}/prompts.jsonl", "chat_template={w}/t.jinja"],
    "eval": ["model={w}/hf", "benchmark={w}/questions.jsonl", "grader=integer", "chat_template={w}/t.jinja"],
    "report": ["reports=[{w}/swept]"],
    "grade": ["completions={w}/completions.jsonl", "kind=integer"],
    "plan": ["model={w}/hf", "topology=cpu:1", "mesh.fsdp=1"],
    "quickstart": ["steps=1"],
}
VALUES: tuple[Any, ...] = (
    *("-1", "0", "1e400", "-.inf", ".nan", "''", "null", "[]", "{}", "true", "x", "1.5", "[1, 2]", "{a: 1}", "[[]]"),
    *("9" * 400, "x" * 100_000, "a\0b", "\x1b[31mred", "é", "\ud800", "2026-01-01", "0x10", "1_000", "!!python/none 1"),
    *("&a [*a]", "[" * 3000, "{" * 50, "*nothing", "a: b: c", "- 1", "#", "train", "eval", "/proc/x", "/dev/null", "/"),
    *("{w}/t.jinja/sub", "{w}", "gs:/x", "az://c/x", "~nobody/x", "../../..", "nobody/nothing", "n" * 300, " ", "\n"),
    *("2147483648", "-9223372036854775809", "1e-320", "[a, 1, {}]", "{kind: vote}", "{kind: free}", "budget", "int8"),
)
LEAVES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**9,
    10**40,
    1.5,
    float("nan"),
    "",
    "x",
    "\0",
    "\ud800",
    [],
    {},
    [[1]],
    {"a": {}},
)


@dataclasses.dataclass(frozen=True)
class Start:
    """One start: arguments, and what is done to the files of its world before."""

    arguments: tuple[str, ...]
    damages: tuple[tuple[str, Callable[[pathlib.Path], None]], ...]
    told: str


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Nothing reaches the terminal; what would have gone to standard error."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        yield errors


def make_world(folder: pathlib.Path) -> None:
    """A model, its tokenizer, and inputs of every verb, all tiny; `done` holds finished runs."""
    weights = jax.jit(lambda key: Decoder(MODEL, key))(jax.random.key(0))
    hf.save(weights, folder / "hf", tokenizer_source=byte_tokenizer())
    (folder / "t.jinja").write_text(TEMPLATE)
    rows = [{"question": f"{i}+1?", "thinking": "count " * i, "answer": str(i + 1)} for i in range(1, 5)]
    records.write_jsonl(folder / "rows.jsonl", rows)
    records.write_jsonl(folder / "pool.jsonl", rows)
    records.write_jsonl(folder / "prompts.jsonl", [{"id": f"p{i}", "question": f"{i}?"} for i in range(3)])
    records.write_jsonl(folder / "questions.jsonl", [{"id": f"q{i}", "question": "?", "answer": i} for i in range(3)])
    answers = [{"id": f"c{i}", "text": f"</think>The answer is {i}.", "gold": str(i % 2)} for i in range(4)]
    records.write_jsonl(folder / "completions.jsonl", answers)
    for verb in STARTS:
        recipe = configured(verb, [argument.format(w=folder) for argument in STARTS[verb]])
        (folder / f"{verb}.yaml").write_text(yaml.safe_dump(recipe))
    with quiet():
        for verb in ("grade", "curate"):
            assert cli.main([verb, *(a.format(w=folder) for a in STARTS[verb]), f"out={folder / 'done' / verb}"]) == 0
        evaluated = [
            *STARTS["eval"],
            "budgets=[0,8]",
            "engine.slots=2",
            "engine.max_length=128",
            f"out={folder / 'swept'}",
        ]
        assert cli.main(["eval", *(argument.format(w=folder) for argument in evaluated)]) == 0


def plain(verb: str, out: str) -> list[str]:
    """A valid start of a verb that writes to `out`; `{w}` stands for its world."""
    given = [argument.replace("{{", "{").replace("}}", "}") for argument in STARTS[verb]]
    return [*given, f"{'target' if verb == 'convert' else 'out'}={out}"]


def configured(verb: str, arguments: list[str]) -> dict[str, Any]:
    """Overrides as a nested mapping."""
    found: dict[str, Any] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        *parents, last = key.split(".")
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = yaml.safe_load(value)
    return found


def keys_of(verb: str) -> list[str]:
    """All dotted keys of a verb, as help lists them."""
    import importlib

    cls = getattr(importlib.import_module(cli.VERBS[verb].module), cli.VERBS[verb].config)
    return [key.name.replace("[]", "") for section in help.sections(cls) for key in section.keys]


# ------------------------------------------------------------------------------------------------ what is done to files


def cut(draw: random.Random) -> Callable[[pathlib.Path], None]:
    share = draw.random()
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(draw: random.Random) -> Callable[[pathlib.Path], None]:
    share, bits = draw.random(), draw.randrange(1, 256)

    def change(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[int(share * len(content))] ^= bits
        path.write_bytes(content)

    return change


def replace(draw: random.Random) -> Callable[[pathlib.Path], None]:
    content = draw.choice(
        [b"", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"null", b"1", b'{"a": 1}\n{', b"\n\n", b"\xef\xbb\xbf{}"]
    )
    return lambda path: path.write_bytes(content)


def remove(draw: random.Random) -> Callable[[pathlib.Path], None]:
    return lambda path: path.unlink()


def folder(draw: random.Random) -> Callable[[pathlib.Path], None]:
    def change(path: pathlib.Path) -> None:
        path.unlink()
        path.mkdir()

    return change


def leaf(draw: random.Random) -> Callable[[pathlib.Path], None]:
    """One value of a JSON or JSONL file is another, is missing, or stands under another name."""
    seed = draw.random()

    def change(path: pathlib.Path) -> None:
        inner = random.Random(seed)
        with contextlib.suppress(ValueError):
            if path.suffix == ".jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                row = inner.randrange(len(lines))
                lines[row] = changed(lines[row], inner)
                path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            else:
                path.write_text(json.dumps(changed(json.loads(path.read_text()), inner)))

    return change


def changed(value: Any, draw: random.Random) -> Any:
    """`value` with one node of it replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.2:
            return {name: item for name, item in value.items() if name != key}
        if draw.random() < 0.1:
            return {**value, key + "_": value[key]}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        i = draw.randrange(len(value))
        return [*value[:i], changed(value[i], draw), *value[i + 1 :]]
    return draw.choice(LEAVES)


DAMAGES = {"cut": cut, "flip": flip, "replace": replace, "remove": remove, "folder": folder, "leaf": leaf}
FILES = {
    "train": ("hf/config.json", "hf/tokenizer.json", "hf/tokenizer_config.json", "rows.jsonl", "t.jinja"),
    "curate": ("pool.jsonl", "done/curate/run.json"),
    "convert": ("hf/config.json", "hf/model.safetensors", "hf/generation_config.json"),
    "generate": ("hf/config.json", "hf/tokenizer.json", "prompts.jsonl", "t.jinja"),
    "eval": ("hf/config.json", "hf/tokenizer_config.json", "questions.jsonl", "t.jinja"),
    "report": ("swept/budget-8/report.json", "swept/budget-0/samples.jsonl", "swept/budget-0/report.json"),
    "grade": ("completions.jsonl", "done/grade/run.json", "done/grade/samples.jsonl", "done/grade/config.yaml"),
    "plan": ("hf/config.json",),
    "quickstart": ("quickstart.yaml",),
}


def draw_start(draw: random.Random) -> Start:
    """A valid start with one to three changes."""
    verb = draw.choice(list(STARTS))
    recipe = draw.random() < 0.3
    place = draw.choice(["{w}/new", f"{{w}}/done/{verb}" if verb in ("grade", "curate") else "{w}/new"])
    given = plain(verb, place)[-1:] if recipe else plain(verb, place)
    damages, told = [], [verb, *(["from a recipe"] if recipe else [])]
    for _ in range(draw.choice([1, 1, 2, 3])):
        if draw.random() < 0.3:
            name = draw.choice([*FILES[verb], *([f"{verb}.yaml"] * recipe)])
            how = draw.choice(list(DAMAGES))
            damages.append((name, DAMAGES[how](draw)))
            told.append(f"{how} {name}")
        else:
            i = draw.randrange(len(given))
            value, key = draw.choice(VALUES), draw.choice(keys_of(verb))
            way = draw.random()
            if way < 0.2:
                given[i] = f"{given[i].partition('=')[0]}={value}"
            elif way < 0.25:
                del given[i]
            elif way < 0.3:
                given.append(draw.choice(["=", "noequals", "=1", "a..b=1", "..=1", "seed", f"{key}.x=1", "--help="]))
            else:
                given.append(f"{key}={value}")
            told.append(f"{key}={value[:40]!r}")
            given = given or ["x=1"]
    first = [f"{{w}}/{verb}.yaml"] if recipe else []
    return Start((verb, *first, *given), tuple(damages), "; ".join(told))
