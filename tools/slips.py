"""Slips as people make them, found in a source file: which bytes of it would stand differently."""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARED |= {"in": "not in", "not in": "in", "is": "is not", "is not": "is"}
NAMES = {"min": "max", "any": "all", "minimum": "maximum", "argmax": "argmin", "logical_and": "logical_or"}
NAMES |= {"floor": "ceil", "startswith": "endswith", "append": "extend", "isdecimal": "isalpha"}
NAMES |= {new: old for old, new in NAMES.items()}
NAMES |= {"float32": "bfloat16", "sorted": "list", "reversed": "list", "abs": "float", "cumsum": "asarray"}
OPERATORS = {ast.Add: ("-", "+"), ast.Sub: ("+", "-"), ast.Mult: ("//", "*"), ast.Div: ("*", "/")}
OPERATORS |= {ast.FloorDiv: ("*", "//"), ast.Mod: ("//", "%")}
ALIKE = {"strict", "encoding"}  # arguments without which nothing is different where the tests run
QUIET = {"print", "warn", "write_line", "perf_counter", "monotonic"}  # what is said, and clocks: no result


@dataclasses.dataclass(frozen=True)
class Slip:
    """Bytes `start:end` of the file at `path` become `text`; `kind` names the slip, `before` what stood there."""

    path: str
    line: int
    start: int
    end: int
    text: str
    kind: str
    before: str

    def __str__(self) -> str:
        old, new = (" ".join(part.split())[:70] or "(nothing)" for part in (self.before, self.text))
        return f"{self.path}:{self.line} {self.kind}: {old} -> {new}"

    def plant(self, source: bytes) -> bytes:
        """The source with the slip in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def swaps_of_fields(paths: list[pathlib.Path]) -> dict[str, dict[str, str]]:
    """Class -> field name -> another of its fields with the same annotation: what one mixes up."""
    swaps: dict[str, dict[str, str]] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            groups: dict[str, list[str]] = {}
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    groups.setdefault(ast.unparse(field.annotation), []).append(field.target.id)
            for names in groups.values():
                if len(names) > 1:
                    swaps.setdefault(node.name, {}).update(zip(names, names[1:] + names[:1], strict=True))
    return swaps


class Finder:
    """Finds all slips that could be made in one file; fields are mixed up of the classes that it names."""

    def __init__(self, root: pathlib.Path, path: pathlib.Path, swaps: dict[str, dict[str, str]]) -> None:
        self.path = str(path.relative_to(root))
        self.source = path.read_bytes()
        named = set(re.findall(r"\w+", self.source.decode()))
        self.fields = {old: new for name in sorted(named & swaps.keys()) for old, new in swaps[name].items()}
        self._starts, self._called, self._modules = [0], set(), set()
        for line in self.source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def find(self) -> list[Slip]:
        """All slips, in the order of the tree."""
        tree = ast.parse(self.source)
        # What is called is a method; that a field of the same name exists somewhere makes no slip of it.
        self._called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
        self._modules = {(name.asname or name.name).partition(".")[0] for node in imports for name in node.names}
        return [slip for node in _walk(tree) for slip in self._of(node)]

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _slip(self, node: ast.AST, text: str, kind: str) -> Slip:
        start, end = self._span(node)
        before = self.source[start:end].decode()
        line = self.source.count(b"\n", 0, start) + 1
        return Slip(self.path, line, start, end, text, kind, before)

    def _between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> Iterator[Slip]:
        """An operator has no place of its own in the tree: it stands between its operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        between = self.source[start:end].decode()
        if between.count(old) == 1:
            at = start + between.index(old)
            line = self.source.count(b"\n", 0, at) + 1
            around = self.source[self._span(left)[0] : self._span(right)[1]].decode()
            yield Slip(self.path, line, at, at + len(old), new, f"{kind} in {' '.join(around.split())[:60]}", old)

    def _of(self, node: ast.AST) -> Iterator[Slip]:
        match node:
            case ast.Compare(ops=[_], comparators=[right]):
                yield from self._compare(node, right)
            case ast.BinOp() if type(node.op) in OPERATORS and not _is_text(node.left) and not _is_text(node.right):
                new, old = OPERATORS[type(node.op)]
                yield from self._between(node.left, node.right, old, new, "operator")
                if isinstance(node.op, ast.FloorDiv):
                    yield self._slip(node, f"-(-({self._text(node.left)}) // ({self._text(node.right)}))", "rounding")
            case ast.BoolOp(values=[left, right]):
                old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                yield from self._between(left, right, old, new, "and/or")
                yield self._slip(node, self._text(left), "half a condition")
                yield self._slip(node, self._text(right), "half a condition")
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield self._slip(node, f"({self._text(node.operand)})", "sign or `not` dropped")
            case ast.If() | ast.While() | ast.IfExp():
                if not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
                    yield self._slip(node.test, f"not ({self._text(node.test)})", "condition negated")
                if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
                    yield self._slip(node.test, "False", "guard dropped")
            case ast.comprehension(ifs=[test, *_]):
                yield self._slip(test, "True", "filter dropped")
            case ast.Constant():
                yield from self._constant(node)
            case ast.Expr(value=ast.Call()) if _name(node.value.func) not in QUIET:
                yield self._slip(node, "pass", "call dropped")
            case ast.AugAssign(op=ast.Add() | ast.Sub()):
                old, new = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
                yield from self._between(node.target, node.value, old, new, "operator")
            case ast.Slice(lower=ast.expr() as bound) | ast.Slice(upper=ast.expr() as bound):
                yield self._slip(bound, "", "bound dropped")
            case ast.Break():
                yield self._slip(node, "continue", "break")
            case ast.Continue():
                yield self._slip(node, "break", "continue")
            case ast.Call():
                yield from self._call(node)
            case ast.Attribute(attr=name) if self._is_field(node, name):
                yield self._slip(node, f"{self._text(node.value)}.{self.fields[name]}", "wrong field")
            case ast.Attribute(attr=name) | ast.Name(id=name) if name in NAMES:
                owner = f"{self._text(node.value)}." if isinstance(node, ast.Attribute) else ""
                yield self._slip(node, owner + NAMES[name], "wrong name")
            case _:
                pass

    def _is_field(self, node: ast.Attribute, name: str) -> bool:
        is_of_module = isinstance(node.value, ast.Name) and node.value.id in self._modules
        is_read = isinstance(node.ctx, ast.Load) and id(node) not in self._called
        return name in self.fields and is_read and not is_of_module

    def _compare(self, node: ast.Compare, right: ast.expr) -> Iterator[Slip]:
        start, end = self._span(node.left)[1], self._span(right)[0]
        old = " ".join(self.source[start:end].decode().replace("(", "").replace(")", "").split())
        if old in COMPARED:
            yield from self._between(node.left, right, old, COMPARED[old], "comparison")
        if old in ("<", "<=", ">", ">="):
            turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}[old]
            yield from self._between(node.left, right, old, turned, "comparison")

    def _constant(self, node: ast.Constant) -> Iterator[Slip]:
        if isinstance(node.value, bool):
            yield self._slip(node, str(not node.value), "constant")
        elif isinstance(node.value, int):
            yield self._slip(node, f"({node.value + 1})" if node.value < 64 else f"({node.value - 1})", "constant")
        elif isinstance(node.value, float):
            yield self._slip(node, repr(node.value * 2 or 1.0), "constant")

    def _call(self, node: ast.Call) -> Iterator[Slip]:
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("astype", "copy", "strip", "lower"):
            yield self._slip(node, self._text(node.func.value), f"{node.func.attr} dropped")
        if len(node.args) == 2 and all(isinstance(arg, (ast.Name, ast.Attribute)) for arg in node.args):
            first, second = node.args
            start, end = self._span(first)[0], self._span(second)[1]
            text, before = f"{self._text(second)}, {self._text(first)}", self.source[start:end].decode()
            line = self.source.count(b"\n", 0, start) + 1
            yield Slip(self.path, line, start, end, text, "arguments swapped", before)
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in ALIKE:
                others = [arg for arg in [*node.args, *node.keywords] if arg is not keyword]
                text = f"{self._text(node.func)}({', '.join(map(self._text, others))})"
                yield self._slip(node, text, f"{keyword.arg}= dropped")


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no annotation, docstring, text of an error or of a format, decorator or import."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params") or isinstance(node, ast.Raise):
            continue
        if isinstance(node, ast.Assert) and name == "msg":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.FormattedValue, ast.JoinedStr, ast.Import)):
                yield from _walk(child)
