"""Reading the types off a program: every equation of it, those of inner programs included."""

import collections

import jax.numpy as jnp
from jax.extend import core

WIDE = ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "cos", "sin", "reduce_max", "argmax")


def equations(program) -> list:
    """All equations, those of inner programs (scans, checkpoints, branches) included."""
    found = []
    for equation in program.eqns:
        found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(inner, core.ClosedJaxpr):
                    found += equations(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    found += equations(inner)
    return found


def is_narrow(variable) -> bool:
    return getattr(variable.aval, "dtype", None) == jnp.bfloat16


def narrow(found: list, names: tuple[str, ...]) -> list[str]:
    """Equations of these names that compute in bfloat16."""
    return [str(e) for e in found if e.primitive.name in names and any(map(is_narrow, (*e.invars, *e.outvars)))]


def products(found: list) -> list:
    return [e for e in found if e.primitive.name == "dot_general"]


def count(found: list) -> collections.Counter:
    return collections.Counter(e.primitive.name for e in found)
