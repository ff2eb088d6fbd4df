"""What tables of names are made of: our name of a parameter, Hugging Face's, and how the array changes between them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """How an array changes on its way: `ours` turns a Hugging Face array into ours, `theirs` turns it back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Transform(ours=lambda x: x, theirs=lambda x: x)
LINEAR = Transform(ours=lambda x: x.T, theirs=lambda x: x.T)
"""`[outputs, inputs]` <-> `[inputs, outputs]`."""
CONV = Transform(ours=lambda x: x.transpose(2, 1, 0), theirs=lambda x: x.transpose(2, 1, 0))
"""`[outputs, inputs, width]` <-> `[width, inputs, outputs]`."""


@dataclass(frozen=True)
class Rule:
    """One line of a table: `{i}` stands for a convolution, `{layer}` for a Transformer layer (ours are stacked)."""

    ours: str
    theirs: str
    transform: Transform = SAME

    def below(self, ours: str, theirs: str) -> "Rule":
        """The same line where the part that it belongs to has these names."""
        return Rule(f"{ours}.{self.ours}", f"{theirs}.{self.theirs}", self.transform)


def linear(ours: str, theirs: str | None = None) -> tuple[Rule, Rule]:
    """Both lines of a linear map; without a name of theirs it is ours."""
    theirs = theirs or ours
    return Rule(f"{ours}.kernel", f"{theirs}.weight", LINEAR), Rule(f"{ours}.bias", f"{theirs}.bias")


def norm(ours: str, theirs: str | None = None) -> tuple[Rule, Rule]:
    """Both lines of a layer norm; without a name of theirs it is ours."""
    theirs = theirs or ours
    return Rule(f"{ours}.scale", f"{theirs}.weight"), Rule(f"{ours}.bias", f"{theirs}.bias")


def batch_norm(ours: str, theirs: str | None = None) -> tuple[Rule, ...]:
    """All lines of a batch norm but for the number of batches it has seen, which PyTorch keeps and nothing reads."""
    theirs = theirs or ours
    statistics = (Rule(f"{ours}.{name}", f"{theirs}.{name}") for name in ("running_mean", "running_var"))
    return (*norm(ours, theirs), *statistics)


def layers(*lines: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Lines of a part of each Transformer layer, named within the layer, as lines within the encoder."""
    return tuple(rule.below("layers", "layers.{layer}") for rules in lines for rule in rules)
