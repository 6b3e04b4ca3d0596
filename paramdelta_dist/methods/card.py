"""What a method says about itself, so that recipe, planner and workers can serve it without knowing what it computes.

A method is either a sum of weighted deltas (`weights`: the fast path, fused on a GPU) or a function of blocks:

    1. zero or more *sweeps* over the elements of a tensor (or, scope MODEL, of all tensors), each of which makes a small
       statistic: `collect(block)` → partial, partials → `combine` in the order of the elements, total → `finish`;
    2. one *apply*: `apply(block)` puts the result for a block into `block.acc`, given what the sweeps found.

Blocks are [k·c, (k+1)·c) of a tensor, with a c that only the shape of the tensor decides; so a statistic is the same to the
last bit whatever the tile size, the threads, the workers, the engine and the device, as long as `collect` and `apply` are
functions of the block alone and use operations whose results do not depend on the device (kernels/ has them).
A tensor that fits a tile is read once for all of this, a larger one once more for each sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block, Subject

Values = Mapping[str, Any]
"""Parameters by name."""


class Scope(Enum):
    """How much of a model decides about one element of the result, at most."""

    ELEMENT = "element"
    """The same element of every input."""
    ROW = "row"
    """Its row: the last dimension."""
    TENSOR = "tensor"
    """Its tensor, through what sweeps find."""
    MODEL = "model"
    """All tensors: a pass of its own finds what is needed before the first byte is made."""


class Blocks(Enum):
    """What the blocks are that a method's functions are given."""

    JOINED = "joined"
    """Any elements: small tensors that lie side by side come as one. The functions look at neither name, shape nor place."""
    PLACED = "placed"
    """Elements of one tensor."""
    ROWS = "rows"
    """Whole rows of one tensor."""


class Roles(Enum):
    """What a recipe gives a method to work on."""

    DELTAS = "base and deltas"
    """`base:`, which receives, and `deltas:`, each a `post` and the `base` it grew from. `block.base` is there, every term has a base."""
    MODELS = "models"
    """`models:` as they are. There is no `block.base` and no term has one; with `base:`, where the card allows it (`over_base`),
    they are deltas from it instead, as in DELTAS."""
    PAIR = "two models"
    """Two models as they are: `base:` and one entry in `models:`, or two entries. Terms are these two, in this order; where
    the card allows it (`over_base`), `base:` and two entries are deltas, as in DELTAS."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method."""

    name: str
    meaning: str
    """One line."""
    default: float | int | bool | str | None = None
    """None: has to be given."""
    kind: type = float
    """float, int, bool or str."""
    least: float = -math.inf
    most: float = math.inf
    open: bool = False
    """Whether `least` itself is too little."""
    choices: tuple[str, ...] = ()
    """Of a str."""
    each: bool = False
    """Whether each delta or model may have its own, besides one for all under `parameters:`."""

    def check(self, value: Any) -> float | int | bool | str:
        """The value as the method will see it. Raises ValueError saying what it should be."""
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is str and isinstance(value, str) and value in self.choices:
            return value
        if self.kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            above = value > self.least if self.open else value >= self.least
            whole = self.kind is float or isinstance(value, int)
            if whole and above and value <= self.most and (isinstance(value, int) or math.isfinite(value)):
                return self.kind(value)
        raise ValueError(f"should be {self.range}")

    @property
    def range(self) -> str:
        """The values it may have, in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return " or ".join((", ".join(self.choices[:-1]), self.choices[-1])) if len(self.choices) > 1 else self.choices[0]
        noun = "a whole number" if self.kind is int else "a finite number"
        least, most = (f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most))
        low = f"{'above' if self.open else 'from'} {least}" if self.least > -math.inf else ""
        high = f"{'and at most' if self.open else 'to'} {most}" if self.most < math.inf else ""
        if low and not high and not self.open:
            low = f"of at least {least}"
        if high and not low:
            high = f"of at most {most}"
        return " ".join(part for part in (noun, low, high) if part)


WEIGHT = Parameter("weight", "factor of this delta or model", default=1.0, each=True)
"""What most methods have."""
LAMBDA = Parameter("lambda", "factor of what is added to the base", default=1.0)
"""What methods have that add something to the base."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One look at all elements, for a statistic that apply or the next sweep needs.

    Partials and results are numbers, torch tensors on the CPU, None, or tuples, lists and dicts of these.
    """

    collect: Callable[[Block], Any]
    """The partial of one block. `block.statistics` holds what earlier sweeps found."""
    combine: Callable[[Any, Any], Any]
    """`combine(total, next)`: two neighbouring stretches as one, the earlier first; may change and return `total`."""
    finish: Callable[[Any, Subject], Any] = field(default=lambda total, _: total)
    """What the total means, computed once; for scope MODEL `subject` has no name and the shape (elements of all tensors,)."""
    scope: Scope = Scope.TENSOR
    """TENSOR or MODEL. Those of scope MODEL come first."""
    exact: bool = False
    """Whether `combine` gives the same bits however the stretches are grouped, as counting does: saves memory."""
    partial_bytes: Callable[[int, tuple[int, ...]], int] = field(default=lambda terms, _: 64 * terms * terms)
    """`(terms, shape)` → bytes of one partial, for the memory plan."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method: what people want to know of it, what a recipe may say to it, and how it is computed."""

    name: str
    title: str
    family: str
    """Name of the group it is listed in."""
    formula: str
    paper: str
    scope: Scope
    """The widest it may have, whatever its parameters."""
    roles: Roles
    parameters: tuple[Parameter, ...]
    example: str
    """A recipe in YAML that uses it."""
    least: int = 1
    """Fewest deltas or models."""
    most: int | None = None
    """Most deltas or models."""
    over_base: bool = False
    """Whether models may be taken as deltas from `base:`; see Roles."""
    weightless: bool = True
    """Whether a delta or model of weight 0 is as good as absent, and need not be read."""
    notes: str = ""
    """Where it differs from other implementations, in a sentence or two."""

    weights: Callable[[Values, Sequence[Values]], Sequence[float]] | None = None
    """`(parameters, terms)` → the factor of each delta, for a method that is base + Σ factor · delta and nothing else. It
    has no other functions."""
    apply: Callable[[Block], None] | None = None
    """Puts the result for a block into `block.acc`. Where an input is NaN or infinite, so must be the result, or unaffected by it."""
    sweeps: Callable[[Values, Sequence[Values]], tuple[Sweep, ...]] = field(default=lambda parameters, terms: ())
    """`(parameters, terms)` → what has to be found out before `apply`."""
    check: Callable[[Values, Sequence[Values]], str | None] = field(default=lambda parameters, terms: None)
    """`(parameters, terms)` → what is wrong with them together, in words for people; None where nothing is."""
    blocks: Blocks = Blocks.PLACED
    scratch: int = 3
    """Blocks in the compute dtype that its functions are handed besides `acc`."""
    temporary: int = 0
    """Blocks in the compute dtype that torch makes for them at most, besides these. A test measures it."""
    wide: bool = False
    """Whether to compute in float64 even where inputs and output have 16 bits."""

    neutral: Values | None = None
    """Parameters with which one delta of weight 1 gives exactly its post (roles DELTAS, the base its own), and equal models that model."""
    scales: bool = False
    """Whether f(b, b + cδ) − b = c · (f(b, b + δ) − b) for c > 0."""
    permutes: bool = False
    """Whether a permutation of the deltas or models, with their parameters, changes nothing but roundings."""
    version: int = 1
    """Part of an output's fingerprint: raised when the bytes of an equal recipe change."""

    def __reduce__(self) -> tuple[Any, ...]:
        from paramdelta_dist.methods import find_method

        return find_method, (self.name,)

    @property
    def joined(self) -> bool:
        """Whether its blocks may span tensors."""
        return self.weights is not None or self.blocks is Blocks.JOINED

    @property
    def takes(self) -> str:
        """What a recipe gives it, in words."""
        if self.roles is Roles.PAIR:
            over = "; or `base:` and two of `models:`, to merge what they add to it" if self.over_base else ""
            return f"two models: `base:` and one of `models:`, or two of `models:`{over}"
        section = "deltas" if self.roles is Roles.DELTAS else "models"
        count = {(1, None): "one or more", (1, 1): "one", (2, 2): "two", (2, None): "two or more"}.get(
            (self.least, self.most), f"{self.least} or more"
        )
        base = "`base:` and " if self.roles is Roles.DELTAS else ""
        over = "; with `base:`, what they add to it" if self.over_base and not base else ""
        return f"{base}{count} of `{section}:`{over}"

    @property
    def for_each(self) -> tuple[Parameter, ...]:
        """What may stand in a delta or model."""
        return tuple(parameter for parameter in self.parameters if parameter.each)
