"""From a mergekit config to a recipe: what maps is mapped, each known difference in behaviour is told, and the rest is refused.

The schema is that of mergekit 0.1.5. Nothing is guessed: whatever has no equal here is a problem, and all problems come in one error.
What mergekit reads and passes over, such as keys it does not know, is passed over here as well, and told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.methods import METHODS
from paramdelta_dist.recipe.fields import FLOATS
from paramdelta_dist.recipe.mergekit_layers import BEFORE, BEHIND, INSIDE, as_rules, layer_span
from paramdelta_dist.recipe.mergekit_methods import KNOWN, Change, Known
from paramdelta_dist.recipe.yaml_text import MAX_RECIPE, parse_recipe

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")

_KEYS = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template",
    "modules", "name",
}  # fmt: skip

_WAYS = ("models", "slices", "modules")

_NAME = re.compile(r"\w[\w.-]*")

_MOST_VALUES = 100_000


@dataclass(frozen=True)
class Imported:
    """A recipe and what its user has to know."""

    text: str
    """The recipe, as YAML."""
    notes: tuple[str, ...]
    """In what the merge will differ from mergekit's."""
    name: str = ""
    """Of a file of several configs: which of them this is."""


def import_mergekit(text: str, *, where: str, output: str) -> tuple[Imported, ...]:
    """The recipe that a mergekit config means, writing to `output`; `where` names the config's file in messages.

    Of a file of several configs, as mergekit-multimerge takes them, the recipes, those first that others build on: each writes to the
    folder of its `name` (its number, if it has none) below `output`. References to models are kept as they are where such a path
    exists; `name/model[@revision]` is otherwise a repository of the Hugging Face hub, `hf://name/model`.
    Raises RecipeError listing everything that cannot be mapped.
    """
    if len(text) > MAX_RECIPE:
        raise RecipeError(f"{where}: {len(text)} characters; a config has at most {MAX_RECIPE}")
    try:
        configs = [config for config in yaml.safe_load_all(text) if config is not None]
        repeated = tuple(note for root in yaml.compose_all(text, Loader=yaml.SafeLoader) for note in _repeated(root))
    except (yaml.YAMLError, RecursionError, ValueError, ArithmeticError) as error:
        raise RecipeError(f"{where}: not valid YAML: {str(error)[:300]}") from None
    if not configs or not all(isinstance(config, dict) for config in configs):
        raise RecipeError(f"{where}: not a mergekit config, which is lines of `key: value`, `merge_method:` among them")
    if _values(configs, _MOST_VALUES) <= 0:
        raise RecipeError(f"{where}: not a mergekit config: written out it has more than {_MOST_VALUES} values")
    if len(configs) == 1:
        made, _ = _imported(configs[0], where, output, {})
        return (replace(made, notes=(*repeated, *made.notes)),)
    names = [str(config.get("name") or number) for number, config in enumerate(configs, 1)]
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name) or name in names[:number]:
            raise RecipeError(f"{where}: name {name!r} should be that of one config alone and of a folder: letters, digits, - _ and .")
    outputs = {name: f"{output.rstrip('/')}/{name}" for name in names}
    pairs = {
        name: _imported(config, f"{where}, config {name}", outputs[name], outputs) for name, config in zip(names, configs, strict=True)
    }
    try:
        order = list(TopologicalSorter({name: sorted(uses) for name, (_, uses) in pairs.items()}).static_order())
    except CycleError as error:
        raise RecipeError(f"{where}: the configs {' and '.join(error.args[1][:-1])} are made of one another") from None
    return tuple(replace(pairs[name][0], name=name, notes=(*repeated, *pairs[name][0].notes)) for name in order)


def _imported(config: dict[str, Any], where: str, output: str, outputs: Mapping[str, str]) -> tuple[Imported, set[str]]:
    """One config's recipe, and which of `outputs`, by the name of their config, it reads."""
    importer = _Importer(config, outputs)
    document = importer.document(output)
    if importer.problems:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(importer.problems))
        raise RecipeError(f"{where}: this cannot be mapped to a recipe:{lines}")
    made = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    try:
        parse_recipe(made, where=where)
    except RecipeError as error:
        raise RecipeError(_of_config(str(error), document)) from None
    return Imported(made, tuple(dict.fromkeys(importer.notes))), importer.used


def _of_config(message: str, document: Mapping[str, Any]) -> str:
    """What is wrong with a recipe, as said of the config it was made of: by the name of the model, not by our lines and lists."""
    message = re.sub(r"\bline \d+: ", "", message)
    for section, key in (("deltas", "post"), ("models", "model")):
        for number, entry in enumerate(document.get(section, ())):
            name = entry.get(key) or entry["adapter"]
            message = re.sub(rf"\b{section}\.{number}\.({key}|adapter)\b", f"model {name}", message)
            message = re.sub(rf"\b{section}\.{number}\b\.?", f"model {name}: ", message)
    return re.sub(r"\bdeltas\b", "models", re.sub(r"(?m)(^|: |\s)base: ", r"\1base_model: ", message))


def _repeated(root: yaml.Node | None) -> Iterator[str]:
    """A note for each key that a mapping has twice."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            waiting += [value for _, value in node.value]
            for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
                yield f"line {node.start_mark.line + 1}: {key} stands there {keys.count(key)} times; the last counts, as in mergekit"


def _values(value: Any, left: int) -> int:
    """`left` without the number of values in `value`, aliases written out; 0 or less where there are as many or more."""
    left -= 1
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if left <= 0:
            break
        left = _values(part, left)
    return left


@dataclass(frozen=True)
class _Slice:
    """A part of the layers, and the parameters that hold there; `first` is None where it is the whole model."""

    first: int | None
    last: int | None
    own: Mapping[str, Mapping[str, Any]]
    """Parameters of each model."""
    shared: Mapping[str, Any]


class _Importer:
    """Reads a config key by key; collects what is wrong and what has to be told."""

    def __init__(self, config: dict[str, Any], outputs: Mapping[str, str]) -> None:
        self.config = config
        self.outputs = outputs
        self.used: set[str] = set()
        """Which of `outputs` are inputs here."""
        self.tuned: dict[str, tuple[str, str]] = {}
        """Models with a LoRA, by what they are called: the model and the LoRA."""
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.general: list[dict[str, Any]] = []
        """Parameters that hold everywhere, the strongest first."""

    def document(self, output: str) -> dict[str, Any]:
        """The recipe as plain values; it means something only where there are no problems."""
        config = self.config
        self._passed_over(config, _KEYS, "")
        name = config.get("merge_method")
        known = KNOWN.get(name) if isinstance(name, str) else None
        if known is None:
            self.problems.append(self._unknown_method(name))
            known = Known("", "models")
        elif known.method not in {method.name for method in METHODS}:
            self.problems.append(f"merge_method {name}: there is no such method here yet")
        body = self._body()
        models, slices = self._inputs(body)
        base = self._base(body)
        if name == "passthrough" and (len(models) != 1 or base not in (None, *models)):
            self.problems.append("merge_method passthrough stacks layers of models; a recipe merges whole models of one shape")
        document: dict[str, Any] = {"method": known.method}
        parameters = self._parameters(known, slices)
        if parameters:
            document["parameters"] = parameters
        document |= self._entries(known, models, base, slices, sliced=bool(body.get("slices")))
        document["output"] = output
        if dtype := self._dtype():
            document["dtype"] = dtype
        document |= self._tokenizer(models, base)
        self._tell(known)
        self.notes += [f"{name} is made by another config of this file: merge that one first" for name in sorted(self.used)]
        return document

    def _unknown_method(self, name: Any) -> str:
        if name is None:
            return "merge_method is missing"
        return f"merge_method {str(name)[:60]!r} is not known; known are {', '.join(KNOWN)}"

    def _passed_over(self, given: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
        for key in given:
            if key not in keys:
                self.notes.append(f"{where}{key}: mergekit 0.1.5 has no such key there and passes over it; left out")

    def _settings(self, given: Any, where: str) -> dict[str, Any]:
        """What stands under a `parameters:`."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            self.problems.append(f"{where}: should be lines of `name: value`")
            return {}
        return given

    def _body(self) -> Mapping[str, Any]:
        """Where `models` or `slices` stand: the config, or its module."""
        config = self.config
        own = self._settings(config.get("parameters"), "parameters")
        self.general = [own]
        ways = [way for way in _WAYS if config.get(way)]
        if len(ways) != 1:
            self.problems.append(
                f"there should be one of models, slices and modules; there {'are ' + ' and '.join(ways) if ways else 'is none'}"
            )
        if ways != ["modules"]:
            return config
        modules = config["modules"]
        if not isinstance(modules, dict) or not all(isinstance(module, dict) for module in modules.values()):
            self.problems.append("modules: should be lines of `name:`, with models or slices below each")
            return {}
        body: dict[str, Any]
        body, *others = modules.values()
        if any(other != body for other in others):
            self.problems.append(
                f"modules: {', '.join(map(str, modules))} are merged in different ways, and a recipe has one list of models; write it by "
                "hand, with rules that have `match` or `component`"
            )
        name = next(iter(modules))
        if list(modules) != ["default"]:
            self.notes.append(f"modules: {', '.join(map(str, modules))} is taken to be all of the model; here every tensor is merged")
        if len([way for way in _WAYS[:2] if body.get(way)]) != 1:
            self.problems.append(f"modules.{name}: there should be one of models and slices")
        self._passed_over(body, ("models", "slices", "parameters"), f"modules.{name}.")
        self.general = [self._settings(body.get("parameters"), f"modules.{name}.parameters"), own]
        return body

    def _base(self, body: Mapping[str, Any]) -> str | None:
        """The base, which slices may name each for itself."""
        own = self.config.get("base_model")
        slices = body.get("slices")
        slices = [part for part in slices if isinstance(part, dict)] if isinstance(slices, list) else []
        named = [self._reference(given, "base_model") for given in [part.get("base_model") or own for part in slices] or [own] if given]
        if len(set(named)) > 1 or (slices and 0 < len(named) < len(slices)):
            self.problems.append("slices have different base_models; a recipe has one base")
        if slices and own and not named:
            return self._reference(own, "base_model")
        return named[0] if named else None

    def _dtype(self) -> str | None:
        made = [str(given).removeprefix("torch.") for given in (self.config.get("out_dtype"), self.config.get("dtype")) if given]
        if made and made[0] not in FLOATS:
            self.problems.append(f"dtype {made[0][:60]!r} cannot be written; use bfloat16, float16, float32 or float64")
            return None
        return made[0] if made else None

    def _inputs(self, body: Mapping[str, Any]) -> tuple[list[str], list[_Slice]]:
        """The models, in order, and the slices."""
        if body.get("slices"):
            return self._slices(body["slices"])
        given = body.get("models")
        if not isinstance(given, list) or not given:
            self.problems.append("models: should be a list of one or more models")
            return [], [_Slice(None, None, {}, {})]
        models, own = [], {}
        for number, entry in enumerate(given):
            if not isinstance(entry, dict) or "model" not in entry:
                self.problems.append(f"models.{number}: should have `model:`")
                continue
            model = self._reference(entry["model"], f"models.{number}")
            self._passed_over(entry, ("model", "parameters"), f"models.{number}.")
            if model in models:
                self.problems.append(f"models.{number}: {model} is listed twice; list it once, with the sum of the weights")
            models.append(model)
            own[model] = self._settings(entry.get("parameters"), f"models.{number}.parameters")
        return models, [_Slice(None, None, own, {})]

    def _slices(self, given: Any) -> tuple[list[str], list[_Slice]]:
        models: list[str] = []
        slices: list[_Slice] = []
        following: int | None = 0
        if not isinstance(given, list):
            self.problems.append("slices: should be a list, each entry with `sources:`")
        for number, entry in enumerate(given if isinstance(given, list) else []):
            sources = entry.get("sources") if isinstance(entry, dict) else None
            if (
                not isinstance(sources, list)
                or not sources
                or not all(isinstance(source, dict) and "model" in source for source in sources)
            ):
                self.problems.append(f"slices.{number}: should have `sources:`, each with `model:` and `layer_range:`")
                continue
            where = f"slices.{number}"
            self._passed_over(entry, ("sources", "parameters", "base_model"), f"{where}.")
            for source in sources:
                self._passed_over(source, ("model", "layer_range", "parameters"), f"{where}.sources.")
            own = {
                self._reference(source["model"], where): self._settings(source.get("parameters"), f"{where}.sources.parameters")
                for source in sources
            }
            spans = {layer_span(source.get("layer_range")) for source in sources}
            if None in spans:
                self.problems.append(f"{where}: layer_range should be two whole numbers, such as [0, 32]")
                continue
            if len(own) < len(sources) or len(spans) > 1:
                self.problems.append(f"{where}: puts together layers of different numbers; a recipe merges layers of the same number")
                continue
            (span,) = spans
            if span is None or (span == () and len(given) > 1):
                self.problems.append(f"{where}: layer_range is missing")
                continue
            if span and (span[0] != following or span[1] <= span[0]):
                self.problems.append(
                    f"{where}: layer_range {list(span)} does not go on at layer {following}: layers are left out, repeated or moved, and "
                    "a recipe merges whole models"
                )
                continue
            if models and set(own) != set(models):
                self.problems.append(f"{where}: has other models than the slices before it; a recipe merges the same ones everywhere")
                continue
            models, following = models or list(own), span[1] if span else None
            slices.append(
                _Slice(span[0] if span else None, span[1] - 1 if span else None, own, self._settings(entry.get("parameters"), where))
            )
        if slices and following is not None:
            self.notes.append(
                f"layer_range: the models are taken to have exactly {following} layers; mergekit would cut deeper ones off there, here "
                "layers beyond are merged as well"
            )
        if len(slices) == 1 or not slices:
            slices = [_Slice(None, None, slices[0].own, slices[0].shared) if slices else _Slice(None, None, {}, {})]
        return models, slices

    def _with_lora(self, model: Any, lora: Any, where: str) -> str:
        """A model with a LoRA: its name, which no folder has."""
        pair = self._reference(model, where), self._reference(lora, where)
        name = "+".join(pair)
        self.tuned[name] = pair
        return name

    def _refuse_lora(self, name: str) -> None:
        self.problems.append(
            f"{name} is a model with a LoRA, and no delta of base_model alone; merge the LoRA into it first (peft: merge_and_unload), and "
            "name the result"
        )

    def _reference(self, given: Any, where: str) -> str:
        """The URL of a model, or the name of one with a LoRA."""
        if isinstance(given, dict):
            if given.get("override_architecture"):
                self.problems.append(
                    f"{where}: override_architecture has no equal here; write that architecture into the model's own config.json"
                )
            if given.get("lora"):
                return self._with_lora(given.get("model"), given["lora"], where)
            inner = given.get("model", given)
            inner = inner if isinstance(inner, dict) else {"path": inner}
            given = f"{inner.get('path')}@{inner['revision']}" if inner.get("revision") else inner.get("path")
        if not isinstance(given, str) or not given:
            self.problems.append(f"{where}: should name a model")
            return "?"
        if given in self.outputs:
            self.used.add(given)
            return self.outputs[given]
        if "://" in given or Path(given).expanduser().exists():
            return given
        path, _, lora = given.partition("+")
        if lora:
            return self._with_lora(path, lora, where)
        if _HUB.match(given):
            self.notes.append(
                f"{given} is no folder here and so is hf://{given} of the Hugging Face hub; mergekit downloads it, here it is streamed"
            )
            return f"hf://{given}"
        if re.fullmatch(r"\w[\w.-]*", given):
            self.notes.append(
                f"{given} is no folder here; of a model of the Hugging Face hub give the owner as well, as hf://owner/{given}"
            )
        return given

    def _parameters(self, known: Known, slices: Sequence[_Slice]) -> dict[str, Any]:
        """What stands under `parameters:`."""
        scopes = [*self.general, *(part.shared for part in slices)]
        for name in dict.fromkeys(name for scope in scopes for name in scope):
            if name == "int8_mask":
                self.notes.append("int8_mask: saves memory in mergekit and changes no result; left out")
            elif name not in known.shared and name not in known.each and known.method:
                self.notes.append(f"parameter {name} has no effect in mergekit's {self.config.get('merge_method')}; left out")
        made = dict(known.given)
        for theirs, (ours, change) in known.shared.items():
            if any(theirs in scope for scope in scopes):
                value = self._value(
                    [[part.shared.get(theirs), *self._generally(theirs)] for part in slices], slices, change, f"parameters.{theirs}"
                )
                if ours and value is not None:
                    made[ours] = value
        if len(slices) == 1:  # what each model has for itself comes before
            for theirs, (ours, change) in known.each.items():
                if any(theirs in scope for scope in scopes):
                    value = self._value([[slices[0].shared.get(theirs), *self._generally(theirs)]], slices, change, f"parameters.{theirs}")
                    if ours and value is not None:
                        made[ours] = value
        return made

    def _generally(self, name: str) -> list[Any]:
        return [scope.get(name) for scope in self.general]

    def _entries(self, known: Known, models: Sequence[str], base: str | None, slices: Sequence[_Slice], *, sliced: bool) -> dict[str, Any]:
        """`base:`, `deltas:` and `models:`."""
        merged = [model for model in models if model != base]
        method = self.config.get("merge_method")
        if known.takes in ("deltas", "pair") and base is None:
            self.problems.append(f"base_model is missing, which {method} needs")
        if known.takes == "pair" and len(merged) != 1:
            self.problems.append(f"{method} merges two models, of which base_model is one; {len(merged)} others are listed")
        if known.takes == "models" and base is not None:
            if base not in models and sliced:
                self.problems.append(
                    f"base_model {base} is not among the slices' models; mergekit's {method} would take config and tokenizer from it"
                )
            elif base not in models:
                self.notes.append(f"base_model {base} is not among the models; it is merged as one of them, as mergekit's {method} does")
            merged = [base, *merged]
        if known.takes in ("two", "over") and base is not None and base in models:
            self.notes.append(f"{base} is base_model, so {method} merges what the others add to it; its own entry is left out")
        if known.takes == "two" and len(merged) != 2:
            self.problems.append(f"{method} merges two models beside base_model; {len(merged)} are listed")
        entries = [{**self._named(known, model, base), **self._own(known, model, slices)} for model in merged]
        section = "deltas" if known.takes == "deltas" else "models"
        based = {"base": base} if base is not None and known.takes != "models" else {}
        if known.takes == "models" and base is None:
            self.notes.append(
                f"without base_model mergekit takes config and tokenizer from any of its models; here they are those of {merged[:1] or '?'}"
            )
        return {**based, section: entries}

    def _named(self, known: Known, model: str, base: str | None) -> dict[str, Any]:
        """The model of an entry; the LoRA alone where it is one of the base, and what it adds to that is asked for."""
        if model not in self.tuned:
            return {"post" if known.takes == "deltas" else "model": model}
        own, lora = self.tuned[model]
        if known.takes != "deltas" or own != base:
            self._refuse_lora(model)
        self.notes.append(f"{model}: mergekit rounds the model with its LoRA and subtracts the base; here the LoRA's product is the delta")
        return {"adapter": lora}

    def _own(self, known: Known, model: str, slices: Sequence[_Slice]) -> dict[str, Any]:
        """The parameters of one model."""
        made: dict[str, Any] = {}
        own = [part.own.get(model) or {} for part in slices]
        for name in {name: None for scope in own for name in scope}:
            if name not in known.each and known.method:
                self.notes.append(f"{model}: parameter {name} has no effect in mergekit's {self.config.get('merge_method')}; left out")
        for theirs, (ours, change) in known.each.items():
            given = any(theirs in scope for scope in own)
            inherited = any(theirs in scope for scope in self.general) or any(theirs in part.shared for part in slices)
            if theirs in known.needed and not given and not inherited:
                self.problems.append(f"{model}: {theirs} is missing, which mergekit needs as well")
            if not given and (len(slices) == 1 or not inherited):
                continue
            levels = [[scope.get(theirs)] if len(slices) == 1 else [scope.get(theirs), part.shared.get(theirs), *self._generally(theirs)]
                      for scope, part in zip(own, slices, strict=True)]  # fmt: skip
            value = self._value(levels, slices, change, f"{model}: {theirs}")
            if ours and value is not None:
                made[ours] = value
        return made

    def _value(self, levels: Sequence[Sequence[Any]], slices: Sequence[_Slice], change: Change, where: str) -> Any:
        """A value, a gradient or rules, from what each slice says, the strongest first."""
        try:
            if len(slices) == 1:
                rules = list(as_rules(levels[0], change, {}))
            else:
                rules = []
                for part, settings in zip(slices, levels, strict=True):
                    rules += as_rules(settings, change, {"layers": f"{part.first}-{part.last}"}, names=INSIDE)
                rules += as_rules(levels[0], change, {"component": "embedding"}, names=BEFORE, outside=True)
                rules += as_rules(levels[-1], change, {}, names=BEHIND, outside=True)
                if any("match" in rule for rule in rules):
                    self.notes.append(
                        f"{where}: filters in slices are taken to mean tensors in or out of the layers as in Llama, Mistral, Qwen and GPT; "
                        "look at `plan --tensors`"
                    )
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
            return None
        if any("match" in rule for rule in rules):
            self.notes.append("filters: one that decides about no tensor is an error here, and is passed over by mergekit")
        values = [rule.get("value") for rule in rules]
        if not rules or all(value is None for value in values):
            return None
        return rules[0]["value"] if len(rules) == 1 and set(rules[0]) == {"value"} else rules

    def _tokenizer(self, models: Sequence[str], base: str | None) -> dict[str, Any]:
        """`tokenizer_from` and `vocab`."""
        config = self.config
        made: dict[str, Any] = {}
        source, section = config.get("tokenizer_source"), config.get("tokenizer")
        if section is not None and not isinstance(section, dict):
            self.problems.append("tokenizer: should be lines of `key: value`, `source:` among them")
        if source and section is not None:
            self.problems.append("tokenizer and tokenizer_source stand both there, which mergekit refuses as well")
        if isinstance(section, dict):
            source = section.get("source", "union")
            self.problems += [
                f"tokenizer.{key} cannot be mapped; leave it out, or make that tokenizer, save it in a folder and name that as its source"
                for key in ("tokens", "pad_to_multiple_of")
                if section.get(key)
            ]
            self._passed_over(section, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
        template = config.get("chat_template")
        if template == "auto":
            self.notes.append("chat_template: auto: mergekit picks the most common one of the models; here it comes with the tokenizer")
        elif template is not None:
            self.problems.append(
                "chat_template: a template of one's own cannot be mapped; put it into the folder that tokenizer_from names"
            )
        if source == "union":
            self.problems.append(
                "tokenizer_source union: no tokenizer is put together here; write `base` where all models have the same, else make one, "
                "save it in a folder, and name that as tokenizer_source"
            )
            return made
        donor = base if base is not None else (models[0] if models else None)
        if source is not None and source != "base":
            donor = self._reference(source.removeprefix("model:") if isinstance(source, str) else source, "tokenizer_source")
        first = [model for model in models if model != base][:1]
        if base is not None and donor == base:
            made["tokenizer_from"] = "base"
        elif donor is not None and [donor] != first:
            made["tokenizer_from"] = donor
        if donor in self.tuned:
            self._refuse_lora(str(donor))
        if source is not None:
            made["vocab"] = "by-token"
            self.notes.append(
                "rows by token: a row that some models lack is, in mergekit, filled from the base or averaged, and padding is the mean of "
                "all rows; here see `vocab: by-token`: zero deltas, whole rows, padding as it is"
            )
        else:
            self.notes.append(
                "vocabularies of different sizes are refused, as by mergekit; its --unsafe-truncate-embeddings has no equal (see `vocab`)"
            )
        return made

    def _tell(self, known: Known) -> None:
        dtype = self.config.get("dtype")
        if dtype in (None, "float32"):
            how = "in the widest dtype that the models have a tensor in" if dtype is None else "in float32"
        elif self.config.get("merge_method") in _SUMMED_WIDE:
            how = f"of numbers rounded to {dtype} first, in float32"
        else:
            how = f"in {dtype}, rounding in between"
        self.notes.append(f"arithmetic: mergekit computes {how}; here in float32 (float64 for wider tensors), rounded once")
        self.notes.append(
            "tensors that not all models have are taken from one or left out where mergekit calls them optional; here an error"
        )
        self.notes.append("generation_config.json and chat template are copied with the tokenizer")
        self.notes += known.notes


_SUMMED_WIDE = ("linear", "slerp", "karcher", "passthrough")
"""Methods of which mergekit's arithmetic is in float32 at least."""
