"""The fit of an adapter and the model it grew from: which tensor each product is added to and how it lies there, and all that has
no place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.adapter_config import AdapterConfig
from paramdelta_dist.checkpoint.adapter_keys import Factors, Held, Place, rows
from paramdelta_dist.checkpoint.adapter_names import InFused, Names, Split, is_part_of, parameters_in_order
from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.header import Encoded, Stacked, StoredArray, Tensor, shown
from paramdelta_dist.kernels.encodings import LowRank

_IN_FIRST = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
"""Model types whose experts are stored [experts, in, out], and known as that to peft."""
_TURNED = ("qwen3_vl_moe", "qwen3_vl_moe_text")
"""Those whose files have the experts of the model in memory transposed."""
_INTERLEAVED = ("gpt_oss",)
"""Those whose fused tensors have the rows of gate and up in turns."""
_SWAPPED_SINCE = (0, 19)
"""The peft that takes the last dimension of experts for the inputs; those before take the second for that."""
_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


class _Product(NamedTuple):
    """A product and the tensor that it is added to: one of the model's, or one that lies apart there."""

    path: str
    """That patterns of the config are matched with."""
    target: str | Split
    shape: tuple[int, ...]
    factors: Factors
    is_parameter: bool
    """Or the weight of a module."""

    @property
    def matrices(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1


@dataclass
class Fitted:
    """The tensors of an adapter under the names of the model's, and what has no place."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    """Of each tensor that a product is added to: the path that the config has for it."""


def fit(held: Held, config: AdapterConfig, base: Checkpoint) -> Fitted:
    """Tensors of the model it grew from, in the order of that, made of what an adapter holds; and every problem there is."""
    return _Fitting(held, config, base).fitted()


class _Fitting:
    """Fits the products and tensors of one adapter, and collects what is wrong."""

    def __init__(self, held: Held, config: AdapterConfig, base: Checkpoint) -> None:
        self._held, self._config, self._base = held, config, base
        self._names = Names(base.tensors)
        self._types = _model_types(base.config)
        self._found = Fitted(problems=list(held.problems))
        self._pieces: dict[str, dict[tuple[int, int], tuple[str, Factors]]] = {}
        """Of fused tensors: the products of each expert and part, with their paths."""

    def fitted(self) -> Fitted:
        products = list(self._products())
        modules = self._turns([product for product in products if not product.is_parameter])
        parameters = self._turns([product for product in products if product.is_parameter])
        for product in products:
            self._add(product, parameters if product.is_parameter else modules)
        for name, pieces in self._pieces.items():
            self._stack(name, pieces)
        self._add_whole()
        self._look_for_others()
        order = {name: number for number, name in enumerate(self._base.tensors)}
        self._found.tensors = dict(sorted(self._found.tensors.items(), key=lambda item: order[item[0]]))
        return self._found

    def _problem(self, key: str, what: str) -> None:
        self._found.problems.append(f"{shown(key)}: {what}")

    def _products(self) -> Iterator[_Product]:
        """Each product with its target; those of experts that lie together in the model are put by."""
        nested: dict[str, dict[int, Factors]] = {}
        for place, factors in self._held.products.items():
            name = self._names.find(f"{place.path}.weight") if place.depth == 0 else None
            if name is not None:
                is_parameter = self._config.adapts_parameter(f"{place.path}.weight")
                path = f"{place.path}.weight" if is_parameter else place.path
                yield _Product(path, name, self._base.tensors[name].shape, factors, is_parameter)
            elif place.depth == 0 and (inside := self._names.in_fused(place.path)):
                self._put_by(place, inside, factors)
            else:
                nested.setdefault(place.path, {})[place.depth] = factors
        for module, wrapped in nested.items():
            yield from self._of_parameters(module, wrapped)

    def _put_by(self, place: Place, inside: InFused, factors: Factors) -> None:
        self._pieces.setdefault(inside.name, {})[inside.expert, inside.part] = place.path, factors

    def _of_parameters(self, module: str, wrapped: Mapping[int, Factors]) -> Iterator[_Product]:
        """Products of the parameters of a module, of which each is wrapped around those before it."""
        ends = dict.fromkeys(name.rpartition(".")[2] for name in self._config.parameters)
        asked = [end for end in ends if self._config.adapts_parameter(f"{module}.{end}")]
        targets = {end: self._target(module, end) for end in asked}
        if not asked or any(target is None for target in targets.values()):
            for factors in wrapped.values():
                self._problem(factors.a.name, self._no_target(module, asked))
            return
        order = parameters_in_order(asked)
        if order is None or sorted(wrapped) != list(range(len(order))):
            names = ", ".join(asked)
            self._problem(module, f"{len(wrapped)} products are there for the parameters {names}, and which is whose is not known")
            return
        for number, parameter in enumerate(order):
            target = targets[parameter]
            if target is not None:
                shape = target.shape if isinstance(target, Split) else self._base.tensors[target].shape
                yield _Product(f"{module}.{parameter}", target, shape, wrapped[len(order) - 1 - number], True)

    def _target(self, module: str, parameter: str) -> str | Split | None:
        return self._names.find(f"{module}.{parameter}") or self._names.split(module, parameter)

    def _no_target(self, path: str, parameters: list[str]) -> str:
        name = f"{path}.{parameters[0]}" if parameters else f"{path}.weight"
        if self._names.is_ambiguous(name):
            return f"several tensors of the model could be {shown(name)}"
        if path.endswith("lm_head") and self._base.tied_embeddings:
            return (
                "the model has no output head of its own, but its embeddings; store it as lm_head.weight in the base and set "
                "`tie_word_embeddings: false` there"
            )
        return f"the model has no tensor {shown(name)}"

    def _turns(self, products: list[_Product]) -> set[bool]:
        """Whether products lie transposed in the tensors, told by those whose shape says so."""
        found = set()
        for product in products:
            if not product.factors.embedding and len(ways := _ways(product)) == 1:
                found |= ways
        return found

    def _add(self, product: _Product, told: set[bool]) -> None:
        factors, ways = product.factors, _ways(product)
        key, rank = factors.a.name, self._config.rank_of(product.path)
        if len(product.shape) not in (2, 3) or not ways:
            a, b = list(factors.a.tensor.shape), list(factors.b.tensor.shape)
            self._problem(key, f"factors of shapes {a} and {b} make no {list(product.shape)}, the shape of {_named(product.target)}")
            return
        if factors.a.tensor.shape[0] != rank * product.matrices:
            have = f"{factors.a.tensor.shape[0]} rows" + (f" for {product.matrices} matrices" if product.matrices > 1 else "")
            self._problem(key, f"{have}, and the config gives it rank {rank} (`r`, `rank_pattern`)")
            return
        turned = next(iter(ways)) if len(ways) == 1 else self._turned(product, told)
        if turned is None:
            self._problem(key, f"nothing tells whether its product lies transposed in {_named(product.target)} {list(product.shape)}")
        elif isinstance(product.target, Split):
            self._apart(product, product.target, rank, turned)
        else:
            encoding = LowRank(rank, self._config.scaling_of(product.path), factors.stored, turned, product.matrices)
            self._take(product.target, product.path, self._tensor(product.target, encoding, factors.a, factors.b))

    def _turned(self, product: _Product, told: set[bool]) -> bool | None:
        """Whether a product of square matrices lies transposed; None where that is not known."""
        if not product.is_parameter:
            return self._config.transposed if self._config.transposed in told or not told else None
        if len(product.shape) == 2:
            return False
        if told:
            return next(iter(told)) if len(told) == 1 else None
        stored_anew = not isinstance(product.target, Split) and self._base.tensors[product.target].encoded is not None
        if self._config.version is None or stored_anew or self._types & {*_TURNED}:
            return None
        return bool(self._types & {*_IN_FIRST}) or self._config.version < _SWAPPED_SINCE

    def _apart(self, product: _Product, split: Split, rank: int, turned: bool) -> None:
        """A product of fused tensors that lie apart in the model."""
        factors, parts = product.factors, len(split.names[0])
        if turned and parts > 1:
            self._problem(
                factors.a.name,
                "it was saved by a peft before 0.19, and gate and up lie apart in the model: save the base with fused experts "
                "(save_pretrained(…, save_original_format=False)) and name that",
            )
            return
        scaling, height = self._config.scaling_of(product.path), split.shape[1] // parts
        for expert, names in enumerate(split.names):
            encoding = LowRank(rank, scaling, factors.stored, turned, product.matrices, expert)
            a = rows(factors.a, expert * rank, (expert + 1) * rank)
            for part, name in enumerate(names):
                b = factors.b if turned else rows(factors.b, part * height, (part + 1) * height)
                self._take(name, product.path, self._tensor(name, encoding, a, b))

    def _stack(self, name: str, pieces: Mapping[tuple[int, int], tuple[str, Factors]]) -> None:
        """Products of single experts, added to the tensor that has all of them; zeros where there is none."""
        whole = self._base.tensors[name]
        first = next(iter(pieces.values()))[1].a
        inside = self._names.in_fused(next(iter(pieces.values()))[0])
        parts = inside.parts if inside else 1
        shape = (whole.shape[1] // parts, whole.shape[2])
        if parts > 1 and self._types & {*_INTERLEAVED}:
            self._problem(first.name, f"rows of gate and up lie in turns in {shown(name)}, and the adapter's apart")
            return
        arrays = []
        for expert in range(whole.shape[0]):
            for part in range(parts):
                path, factors = pieces.get((expert, part), ("", None))
                if factors is None:
                    encoding, a, b = LowRank(0, 0.0, first.tensor.dtype), _none(first), _none(first)
                elif (factors.b.tensor.shape[0], factors.a.tensor.shape[1]) != shape:
                    found = [factors.b.tensor.shape[0], factors.a.tensor.shape[1]]
                    self._problem(factors.a.name, f"a product {found} is none of the matrices {list(shape)} of {shown(name)}")
                    return
                else:
                    encoding = LowRank(self._config.rank_of(path), self._config.scaling_of(path), factors.stored)
                    a, b = factors.a, factors.b
                    if a.tensor.shape[0] != encoding.rank:
                        self._problem(a.name, f"{a.tensor.shape[0]} rows, and the config gives it rank {encoding.rank}")
                        return
                tensor = Tensor(whole.dtype, shape, 0, a.tensor.start, a.tensor.stop, Encoded(encoding, (a, b)))
                arrays.append(StoredArray(f"{name}[{expert}]", tensor))
        if beyond := [each for each in pieces if each[0] >= whole.shape[0]]:
            self._problem(pieces[beyond[0]][1].a.name, f"{shown(name)} has {whole.shape[0]} experts")
            return
        self._take(name, next(iter(pieces.values()))[0], Tensor(whole.dtype, whole.shape, 0, *_extent(arrays[0]), Stacked(tuple(arrays))))

    def _tensor(self, name: str, encoding: LowRank, a: StoredArray, b: StoredArray) -> Tensor:
        whole = self._base.tensors[name]
        return Tensor(whole.dtype, whole.shape, 0, a.tensor.start, a.tensor.stop, Encoded(encoding, (a, b)))

    def _take(self, name: str, path: str, tensor: Tensor) -> None:
        if name in self._found.tensors:
            self._problem(name, "two parts of the adapter are added to it")
        self._found.tensors[name] = tensor
        self._found.paths[name] = path

    def _add_whole(self) -> None:
        """Tensors that take the place of the model's, and copies of the model's own."""
        for name, array in self._held.whole.items():
            target = self._names.find(name)
            if target is None:
                self._problem(array.name, self._no_target(*_module_and_end(name)))
            elif self._fits(array, target):
                if target in self._found.tensors:
                    self._problem(array.name, "it is whole in the adapter, which has factors for it as well")
                self._found.tensors[target] = array.tensor
        for name, array in self._held.copies.items():
            if (target := self._names.find(name)) is not None:
                self._fits(array, target)

    def _fits(self, array: StoredArray, target: str) -> bool:
        ours, theirs = self._base.tensors[target].shape, array.tensor.shape
        if ours != theirs:
            self._problem(
                array.name,
                f"it is {list(theirs)} and {shown(target)} of the model {list(ours)}; where tokens were added, name the model with "
                "these as the delta's `base`",
            )
        return ours == theirs

    def _look_for_others(self) -> None:
        """Problems of modules that the config names and the adapter has nothing of."""
        self._found.problems += [
            f"modules_to_save: the config names {shown(end)}, and the file holds nothing of it"
            for end in self._config.saved
            if not any(f".{end}." in f".{name}" for name in self._held.whole)
        ]
        lacking = list(self._lacking_in_families())
        if lacking:
            examples = ", ".join(map(shown, lacking[:3])) + (", …" if len(lacking) > 3 else "")
            self._found.problems.append(f"the config names {len(lacking)} modules that the file has no factors of: {examples}")
        self._found.problems += self._lacking_ends()

    def _lacking_in_families(self) -> Iterator[str]:
        """Modules that differ in the numbers in their names alone from some that are adapted, and are not."""
        adapted = self._found.paths
        families: dict[str, tuple[str, str]] = {}
        for name, path in adapted.items():
            families.setdefault(_NUMBER.sub(".0", name), (name, path))
        for name in self._base.tensors:
            found = families.get(_NUMBER.sub(".0", name)) if name not in adapted else None
            if found is None or self._is_beyond(name):
                continue
            path = _renumbered(found[1], name)
            if self._config.adapts_parameter(path) or self._config.adapts(path):
                yield path

    def _is_beyond(self, name: str) -> bool:
        """Whether a tensor is of a layer that the config does not count, as those that predict further tokens."""
        config = self._base.config or {}
        text = config.get("text_config")
        layers = config.get("num_hidden_layers", text.get("num_hidden_layers") if isinstance(text, dict) else None)
        found = re.search(r"\.layers\.(\d+)\.", name)
        return isinstance(layers, int) and found is not None and int(found[1]) >= layers

    def _lacking_ends(self) -> Iterator[str]:
        """A problem for each name of modules in the config that the model has modules of and the adapter no factors."""
        ends = self._config.modules if isinstance(self._config.modules, tuple) else ()
        paths = [f".{path}" for path in self._found.paths.values()]
        for end in ends:
            if any(path.endswith(f".{end}") for path in paths) or any(is_part_of(end, path.rpartition(".")[2]) for path in paths):
                continue
            if any(f".{place.path}".endswith(f".{end}") for place in self._held.products):
                continue  # told above
            has = next((name for name in self._base.tensors if f".{name}".endswith(f".{end}.weight") and not self._is_beyond(name)), None)
            if has is not None and len(self._base.tensors[has].shape) > 1 and self._config.adapts(has.removesuffix(".weight")):
                yield f"target_modules: the config names {shown(end)}, the model has {shown(has)}, and the file no factors of it"
        for end in self._config.parameters:
            if not any(path.endswith(f".{end}") for path in paths) and not self._found.problems:
                yield f"target_parameters: the config names {shown(end)}, and the file holds no factors of it"


def _ways(product: _Product) -> set[bool]:
    """Whether the product may lie in the tensor as it is (False) and transposed (True), by the shapes."""
    rows_, columns = product.factors.b.tensor.shape[0], product.factors.a.tensor.shape[1]
    found = {False} if (rows_, columns) == product.shape[-2:] else set()
    if (columns, rows_) == product.shape[-2:]:
        found.add(True)
    return found & {True} if product.factors.embedding else found


def _renumbered(path: str, name: str) -> str:
    """A path with the numbers that a name has, one after the other."""
    numbers = iter(_NUMBER.findall(name))
    return _NUMBER.sub(lambda match: f".{next(numbers, match[1])}", path)


def _named(target: str | Split) -> str:
    return shown(target.names[0][0] if isinstance(target, Split) else target)


def _model_types(config: Mapping[str, Any] | None) -> set[str]:
    tables = [config or {}, (config or {}).get("text_config")]
    return {str(table.get("model_type")) for table in tables if isinstance(table, Mapping)}


def _module_and_end(name: str) -> tuple[str, list[str]]:
    module, _, end = name.rpartition(".")
    return module, [end]


def _none(array: StoredArray) -> StoredArray:
    """No row of a matrix."""
    return rows(array, 0, 0)


def _extent(array: StoredArray) -> tuple[int, int]:
    return array.tensor.start, array.tensor.stop
