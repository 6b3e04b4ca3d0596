"""The card of a method: recipe, planner and workers serve it by its card, without knowing the arithmetic.

A method is either a sum of weighted deltas (`weights`: the fast path, fused on a GPU) or a function of blocks:

    1. zero or more *reductions* over the elements of a tensor (or, scope MODEL, of all tensors), each of which makes a small
       statistic: `map(block)` → partial, partials → `combine` in the order of the elements, total → `finalize`;
    2. one *apply*: `apply(block)` puts the result for a block into `block.acc`, given what the reductions found.

BlockShape are [k·c, (k+1)·c) of a tensor, with a c that only the shape of the tensor decides; so a statistic is the same to the
last bit whatever the tile size, the threads, the workers, the engine and the device, as long as `map` and `apply` are
functions of the block alone and use operations whose results do not depend on the device (kernels/ has them).
A tensor that fits a tile is read once for all of this, a larger one once more for each reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block, TensorInfo

Parameters = Mapping[str, Any]
"""Parameters by name."""


class Scope(Enum):
    """How much of a model decides about one element of the result, at most."""

    ELEMENT = "element"
    """The same element of every input."""
    ROW = "row"
    """Its row: the last dimension."""
    TENSOR = "tensor"
    """Its tensor, through what reductions find."""
    MODEL = "model"
    """All tensors: a pass of its own finds what is needed before the first byte is made."""


class BlockShape(Enum):
    """What the blocks are that a method's functions are given."""

    ANY = "any"
    """Any elements: small tensors that lie side by side come as one. The functions look at neither name, shape nor place."""
    TENSOR = "tensor"
    """Elements of one tensor."""
    ROWS = "rows"
    """Whole rows of one tensor."""
    JOINED, PLACED = ANY, TENSOR
    """As they were called up to version 0.1."""


class Roles(Enum):
    """What a recipe gives a method to work on."""

    DELTAS = "base and deltas"
    """`base:`, which receives, and `deltas:`, each a `post` and the `base` it grew from. `block.base` is there, every term has a base."""
    MODELS = "models"
    """`models:` as they are. There is no `block.base` and no term has one; with `base:`, where the card allows it (`accepts_base`),
    they are deltas from it instead, as in DELTAS."""
    PAIR = "two models"
    """Two models as they are: `base:` and one entry in `models:`, or two entries. Terms are these two, in this order; where
    the card allows it (`accepts_base`), `base:` and two entries are deltas, as in DELTAS."""


T = TypeVar("T")


def _also_called(**old: str) -> Callable[[type[T]], type[T]]:
    """Lets a card be written with the names that its fields had up to version 0.1, `new="old"`; they go with version 0.3."""

    def accept(cls: type[T]) -> type[T]:
        init, renamed = cls.__init__, {before: now for now, before in old.items()}

        @wraps(init)
        def init_with_old_names(self: T, *arguments: Any, **fields: Any) -> None:
            init(self, *arguments, **{renamed.get(name, name): value for name, value in fields.items()})

        cls.__init__ = init_with_old_names  # type: ignore[assignment]
        return cls

    return accept


@_also_called(minimum="least", maximum="most", exclusive_minimum="open", per_model="each")
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
    minimum: float = -math.inf
    maximum: float = math.inf
    exclusive_minimum: bool = False
    """Whether `minimum` itself is too little."""
    choices: tuple[str, ...] = ()
    """Of a str."""
    per_model: bool = False
    """Whether each delta or model may have its own, besides one for all under `parameters:`."""

    def check(self, value: Any) -> float | int | bool | str:
        """The value as the method will see it. Raises ValueError saying what it should be."""
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is str and isinstance(value, str) and value in self.choices:
            return value
        if self.kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            above = value > self.minimum if self.exclusive_minimum else value >= self.minimum
            whole = self.kind is float or isinstance(value, int)
            if whole and above and value <= self.maximum and (isinstance(value, int) or math.isfinite(value)):
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
        least, most = (f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.minimum, self.maximum))
        low = f"{'above' if self.exclusive_minimum else 'from'} {least}" if self.minimum > -math.inf else ""
        high = f"{'and at most' if self.exclusive_minimum else 'to'} {most}" if self.maximum < math.inf else ""
        if low and not high and not self.exclusive_minimum:
            low = f"of at least {least}"
        if high and not low:
            high = f"of at most {most}"
        return " ".join(part for part in (noun, low, high) if part)


WEIGHT = Parameter("weight", "factor of this delta or model", default=1.0, per_model=True)
"""What most methods have."""
LAMBDA = Parameter("lambda", "factor of what is added to the base", default=1.0)
"""What methods have that add something to the base."""


@_also_called(map="collect", finalize="finish")
@dataclass(frozen=True, slots=True)
class Reduction:
    """One look at all elements, for a statistic that apply or the next reduction needs.

    Partials and results are numbers, torch tensors on the CPU, None, or tuples, lists and dicts of these.
    """

    map: Callable[[Block], Any]
    """The partial of one block. `block.statistics` holds what earlier reductions found."""
    combine: Callable[[Any, Any], Any]
    """`combine(total, next)`: two neighbouring stretches as one, the earlier first; may change and return `total`."""
    finalize: Callable[[Any, TensorInfo], Any] = field(default=lambda total, _: total)
    """What the total means, computed once; for scope MODEL `info` has no name and the shape (elements of all tensors,)."""
    scope: Scope = Scope.TENSOR
    """TENSOR or MODEL. Those of scope MODEL come first."""
    exact: bool = False
    """Whether `combine` gives the same bits however the stretches are grouped, as counting does: saves memory."""
    partial_bytes: Callable[[int, tuple[int, ...]], int] = field(default=lambda terms, _: 64 * terms * terms)
    """`(terms, shape)` → bytes of one partial, for the memory plan."""


@_also_called(
    min_models="least", max_models="most", accepts_base="over_base", skip_zero_weight="weightless", reductions="sweeps",
    scratch_blocks="scratch", temporary_blocks="temporary", compute_float64="wide", identity_at="neutral", homogeneous="scales",
    symmetric="permutes",
)  # fmt: skip
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
    min_models: int = 1
    """Fewest deltas or models."""
    max_models: int | None = None
    """Most deltas or models."""
    accepts_base: bool = False
    """Whether models may be taken as deltas from `base:`; see Roles."""
    skip_zero_weight: bool = True
    """Whether a delta or model of weight 0 is as good as absent, and need not be read."""
    notes: str = ""
    """Where it differs from other implementations, in a sentence or two."""

    weights: Callable[[Parameters, Sequence[Parameters]], Sequence[float]] | None = None
    """`(parameters, terms)` → the factor of each delta, for a method that is base + Σ factor · delta and nothing else. It
    has no other functions."""
    apply: Callable[[Block], None] | None = None
    """Puts the result for a block into `block.acc`. Where an input is NaN or infinite, so must be the result, or unaffected by it."""
    reductions: Callable[[Parameters, Sequence[Parameters]], tuple[Reduction, ...]] = field(default=lambda parameters, terms: ())
    """`(parameters, terms)` → what has to be found out before `apply`."""
    check: Callable[[Parameters, Sequence[Parameters]], str | None] = field(default=lambda parameters, terms: None)
    """`(parameters, terms)` → what is wrong with them together, in words for people; None where nothing is."""
    blocks: BlockShape = BlockShape.TENSOR
    scratch_blocks: int = 3
    """BlockShape in the compute dtype that its functions are handed besides `acc`."""
    temporary_blocks: int = 0
    """BlockShape in the compute dtype that torch makes for them at most, besides these. A test measures it."""
    compute_float64: bool = False
    """Whether to compute in float64 even where inputs and output have 16 bits."""

    identity_at: Parameters | None = None
    """Parameters with which one delta of weight 1 gives exactly its post (roles DELTAS, the base its own), and equal models that model."""
    homogeneous: bool = False
    """Whether f(b, b + cδ) − b = c · (f(b, b + δ) − b) for c > 0."""
    symmetric: bool = False
    """Whether a permutation of the deltas or models, with their parameters, changes nothing but roundings."""
    version: int = 1
    """Part of an output's fingerprint: raised when the bytes of an equal recipe change."""

    @property
    def spans_tensors(self) -> bool:
        """Whether its blocks may span tensors."""
        return self.weights is not None or self.blocks is BlockShape.ANY

    @property
    def takes(self) -> str:
        """What a recipe gives it, in words."""
        if self.roles is Roles.PAIR:
            over = "; or `base:` and two of `models:`, to merge what they add to it" if self.accepts_base else ""
            return f"two models: `base:` and one of `models:`, or two of `models:`{over}"
        section = "deltas" if self.roles is Roles.DELTAS else "models"
        count = {(1, None): "one or more", (1, 1): "one", (2, 2): "two", (2, None): "two or more"}.get(
            (self.min_models, self.max_models), f"{self.min_models} or more"
        )
        base = "`base:` and " if self.roles is Roles.DELTAS else ""
        over = "; with `base:`, what they add to it" if self.accepts_base and not base else ""
        return f"{base}{count} of `{section}:`{over}"

    @property
    def for_each(self) -> tuple[Parameter, ...]:
        """What may stand in a delta or model."""
        return tuple(parameter for parameter in self.parameters if parameter.per_model)
