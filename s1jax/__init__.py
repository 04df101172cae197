"""Test-time scaling in JAX: fine-tune on a thousand reasoning traces, then set how long the model thinks.

    import s1jax

    model = s1jax.load("Qwen/Qwen2.5-0.5B-Instruct")
    [short] = model.generate("How many primes are below 100?", thinking_token_budget=256)
    print(short.thinking_tokens, model.answer(short))
    for piece in model.stream("And below 200?", thinking_n_ignore=1):
        print(piece.text, end="")

Nothing heavy is imported before it is used: `import s1jax` loads no JAX.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s1jax.api import LoadedModel, convert, curate, evaluate, load, plan, train

__all__ = ["LoadedModel", "convert", "curate", "evaluate", "load", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"s1jax has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module("s1jax.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _CallablePackage(types.ModuleType):
    """A package whose name is also a function of the API: `s1jax.train(config)` and `s1jax.train.run` both work."""

    def __call__(self, config: Any) -> Any:
        return getattr(importlib.import_module("s1jax.api"), self.__name__.rpartition(".")[2])(config)


class _Package(types.ModuleType):
    """Importing `s1jax.train` sets the attribute `train` of this package, which has to stay callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and type(value) is types.ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
