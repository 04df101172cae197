"""One tensor of a checkpoint, and a checkpoint as a set of them. Types only: no files, no families."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from s1jax.models.config import DecoderConfig

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and the parameter that it is, or is a layer of.

    Attributes:
      path: the parameter in a model without layers' numbers, such as `blocks.q`.
      layer: which layer, None outside the blocks.
      name: the tensor in a Hugging Face checkpoint.
      groups: letters of each axis of the tensor, such as `("KGH", "D")`.
      letters: the parameter's letters, such as `DKGH`.
      sizes: length of each letter.
    """

    path: str
    layer: int | None
    name: str
    groups: tuple[str, ...]
    letters: str
    sizes: Mapping[str, int]

    @property
    def key(self) -> str:
        """The parameter in an unstacked model, such as `blocks.3.q`."""
        return self.path if self.layer is None else self.path.replace("blocks.", f"blocks.{self.layer}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter (of one layer)."""
        return tuple(self.sizes[letter] for letter in self.letters)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in self.groups)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose every tensor has been found and has the right shape.

    Attributes:
      folder: where it lies.
      config: the model it holds.
      entries: its tensors, as `layout.entries` has them.
      dtypes: the stored type of each entry, by `Entry.key`.
      read: a part of one entry in the model's layout, by its slices.
      copies: tensors of the original that repeat another one: name -> name.
    """

    folder: pathlib.Path
    config: DecoderConfig
    entries: Sequence[Entry]
    dtypes: Mapping[str, np.dtype]
    read: Callable[[Entry, Slices], np.ndarray]
    copies: Mapping[str, str]
