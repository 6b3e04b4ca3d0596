"""From a mergekit config to a recipe: what maps is mapped, each known difference in behaviour is told, and the rest is refused.

The schema is that of mergekit 0.1.5. Nothing is guessed: whatever has no equal here is a problem, and all problems come in one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.methods import METHODS
from paramdelta_dist.recipe import MAX_RECIPE, parse_recipe

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
_KEYS = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template",
    "modules", "name",
}  # fmt: skip

Change = Callable[[Any], Any]
"""What one of mergekit's values is here. Raises ValueError where nothing is."""


@dataclass(frozen=True)
class Imported:
    """A recipe and what its user has to know."""

    text: str
    """The recipe, as YAML."""
    notes: tuple[str, ...]
    """In what the merge will differ from mergekit's."""


@dataclass(frozen=True)
class _Known:
    """One of mergekit's methods and what it is here."""

    method: str
    takes: str
    """deltas, models, or pair: what the recipe lists; with `over` models are listed beside a base."""
    each: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    """Parameters that each model may have: our name, and what values become."""
    shared: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """mergekit's defaults that are not ours, under our names."""
    needed: tuple[str, ...] = ()
    """Parameters without which mergekit refuses a model."""
    notes: tuple[str, ...] = ()


def _same(value: Any) -> Any:
    return value


def _only(expected: Any, why: str) -> Change:
    def change(value: Any) -> Any:
        if value != expected:
            raise ValueError(f"{str(value).lower()} has no equal here: {why}")
        return None

    return change


def _choice(yes: str, no: str) -> Change:
    def change(value: Any) -> Any:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} should be true or false")
        return yes if value else no

    return change


_WEIGHT = {"weight": ("weight", _same)}
_DENSITY = {**_WEIGHT, "density": ("density", _same)}
_LAMBDA = {"lambda": ("lambda", _same)}
_NORMALIZE = {"normalize": ("normalize", _choice("weight", "none"))}
_RESCALE = {"rescale": ("rescale", _choice("l1", "none"))}
_NO_NORMALIZE = {"normalize": ("", _only(False, "divide the weights by their sum instead"))}
_NO_RESCALE = {"rescale": ("", _only(False, "this method does not rescale what it keeps"))}
_RANDOM = (
    "which elements are dropped: mergekit draws from one stream of random numbers, in the order and on the device it happens to work; "
    "here they depend on `seed`, tensor and element alone, so the same recipe drops the same elements everywhere"
)
_SMALL = "of a tensor so small that density keeps no element, mergekit keeps the largest; here none of it is kept"
_EQUAL = "of elements of equal magnitude at a cut mergekit keeps any; here those with the lower index are the larger ones"
_ROUGH = "mergekit's divergences are sums in float32 of terms that cancel; of models that hardly differ it takes over other elements"
_CANCEL = "where directions cancel, as in a tensor that no model changed, mergekit stops; here the result is the weighted mean"
_ZERO = "where one of two tensors is all zeros the way is straight here; mergekit takes the angle between them to be a right one"
_TIES = "where the weighted sum at a position is exactly 0 its sign counts as +, as in mergekit"

KNOWN: dict[str, _Known] = {
    "linear": _Known("linear", "models", _WEIGHT, {"normalize": ("normalize", _same)}, needed=("weight",)),
    "task_arithmetic": _Known(
        "task_arithmetic", "deltas", {**_WEIGHT, "density": ("", _same)}, {**_LAMBDA, **_NO_NORMALIZE, **_NO_RESCALE}, needed=("weight",)
    ),
    "ties": _Known(
        "ties", "deltas", _DENSITY, {**_LAMBDA, **_NORMALIZE, **_NO_RESCALE}, {"normalize": "weight"}, ("weight",), (_SMALL, _EQUAL, _TIES)
    ),
    "dare_linear": _Known(
        "dare_linear", "deltas", _DENSITY, {**_LAMBDA, **_RESCALE, **_NO_NORMALIZE}, {"rescale": "l1"}, ("weight",), (_RANDOM,)
    ),
    "dare_ties": _Known(
        "dare_ties", "deltas", _DENSITY, {**_LAMBDA, **_RESCALE, **_NORMALIZE}, {"rescale": "l1", "normalize": "none"}, ("weight",),
        (_RANDOM, _TIES),
    ),
    "della": _Known(
        "della", "deltas", {**_DENSITY, "epsilon": ("epsilon", _same)}, {**_LAMBDA, **_RESCALE, **_NORMALIZE},
        {"rescale": "l1", "normalize": "weight"}, ("weight",), (_RANDOM, _TIES),
    ),
    "della_linear": _Known(
        "della_linear", "deltas", {**_DENSITY, "epsilon": ("epsilon", _same)}, {**_LAMBDA, **_RESCALE, **_NO_NORMALIZE}, {"rescale": "l1"},
        ("weight",), (_RANDOM,),
    ),
    "breadcrumbs": _Known(
        "breadcrumbs", "deltas", {**_DENSITY, "gamma": ("gamma", _same)}, {**_LAMBDA, **_NO_NORMALIZE, **_NO_RESCALE}, {}, ("weight",),
        (_EQUAL,),
    ),
    "breadcrumbs_ties": _Known(
        "breadcrumbs_ties", "deltas", {**_DENSITY, "gamma": ("gamma", _same)}, {**_LAMBDA, **_NORMALIZE, **_NO_RESCALE},
        {"normalize": "none"}, ("weight",), (_EQUAL, _TIES),
    ),
    "model_stock": _Known("model_stock", "deltas", {}, {"filter_wise": ("filter_wise", _same)}),
    "sce": _Known("sce", "deltas", {}, {"select_topk": ("select_topk", _same)}),
    "ram": _Known("ram", "deltas", {}, {"epsilon": ("epsilon", _same)}),
    "ramplus_tl": _Known(
        "ramplus_tl", "deltas", {}, {"epsilon": ("epsilon", _same), "r": ("r", _same), "alpha": ("alpha", _same)}
    ),
    "slerp": _Known("slerp", "pair", {}, {"t": ("t", _same)}, notes=(_ZERO,)),
    "nearswap": _Known("nearswap", "pair", {}, {"t": ("t", _same)}),
    "arcee_fusion": _Known(
        "arcee_fusion", "pair",
        notes=("of large tensors mergekit takes quantiles of a random million elements; here they are exact", _ROUGH),
    ),
    "nuslerp": _Known(
        "nuslerp", "two", _WEIGHT, {"nuslerp_flatten": ("nuslerp_flatten", _same), "nuslerp_row_wise": ("nuslerp_row_wise", _same)},
        needed=("weight",), notes=(_ZERO,),
    ),
    "multislerp": _Known(
        "multislerp", "over", _WEIGHT,
        {"normalize_weights": ("normalize_weights", _same), "eps": ("", _only(1e-8, "1e-8 is fixed"))}, needed=("weight",),
        notes=(_CANCEL,),
    ),
    "karcher": _Known("karcher", "models", {}, {"max_iter": ("max_iter", _same), "tol": ("tol", _same)}),
}  # fmt: skip


def import_mergekit(text: str, *, where: str, output: str) -> Imported:
    """The recipe that a mergekit config means, writing to `output`; `where` names the config's file in messages.

    References to models are kept as they are where such a path exists; `name/model[@revision]` is otherwise a repository of the
    Hugging Face hub, `hf://name/model`. Raises RecipeError listing everything that cannot be mapped.
    """
    if len(text) > MAX_RECIPE:
        raise RecipeError(f"{where}: {len(text)} characters; a config has at most {MAX_RECIPE}")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{where}: not valid YAML: {str(error)[:300]}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"{where}: not a mergekit config, which is lines of `key: value`, `merge_method:` among them")
    importer = _Importer(config)
    document = importer.document(output)
    if importer.problems:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(importer.problems))
        raise RecipeError(f"{where}: this cannot be mapped to a recipe:{lines}")
    made = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    parse_recipe(made, where=f"the recipe made of {where}")
    return Imported(made, tuple(dict.fromkeys(importer.notes)))


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

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.problems: list[str] = []
        self.notes: list[str] = []

    def document(self, output: str) -> dict[str, Any]:
        """The recipe as plain values; it means something only where there are no problems."""
        config = self.config
        self.problems += [f"unknown key {key!r}" for key in config if key not in _KEYS]
        name = config.get("merge_method")
        known = KNOWN.get(name) if isinstance(name, str) else None
        if known is None:
            self.problems.append(self._unknown_method(name))
            known = _Known("", "models")
        elif known.method not in {method.name for method in METHODS}:
            self.problems.append(f"merge_method {name}: there is no such method here yet")
        if config.get("modules"):
            self.problems.append("modules: models of several modules (such as vision and text) cannot be mapped")
        models, slices = self._inputs()
        base = self._reference(config["base_model"], "base_model") if config.get("base_model") is not None else None
        document: dict[str, Any] = {"method": known.method}
        parameters = self._parameters(known, slices)
        if parameters:
            document["parameters"] = parameters
        document |= self._entries(known, models, base, slices)
        document["output"] = output
        if dtype := config.get("out_dtype") or config.get("dtype"):
            document["dtype"] = dtype
        document |= self._tokenizer(models, base)
        self._tell(known)
        return document

    def _unknown_method(self, name: Any) -> str:
        if name is None:
            return "merge_method is missing"
        if name == "passthrough":
            return "merge_method passthrough stacks layers of models; a recipe merges whole models of one shape"
        return f"merge_method {name!r} is not known; known are {', '.join(KNOWN)}"

    def _inputs(self) -> tuple[list[str], list[_Slice]]:
        """The models, in order, and the slices."""
        config = self.config
        if config.get("slices"):
            return self._slices(config["slices"])
        given = config.get("models")
        if not isinstance(given, list) or not given:
            self.problems.append("models: should be a list of one or more models")
            return [], []
        models, own = [], {}
        for number, entry in enumerate(given):
            if not isinstance(entry, dict) or "model" not in entry:
                self.problems.append(f"models.{number}: should have `model:`")
                continue
            model = self._reference(entry["model"], f"models.{number}")
            self.problems += [f"models.{number}: unknown key {key!r}" for key in entry if key not in ("model", "parameters")]
            if model in models:
                self.problems.append(f"models.{number}: {model} is listed twice")
            models.append(model)
            own[model] = entry.get("parameters") or {}
        return models, [_Slice(None, None, own, {})]

    def _slices(self, given: Any) -> tuple[list[str], list[_Slice]]:
        models: list[str] = []
        slices: list[_Slice] = []
        following = 0
        for number, entry in enumerate(given if isinstance(given, list) else []):
            sources = entry.get("sources") if isinstance(entry, dict) else None
            if (
                not isinstance(sources, list)
                or not sources
                or not all(isinstance(source, dict) and "model" in source for source in sources)
            ):
                self.problems.append(f"slices.{number}: should have `sources:`, each with `model:` and `layer_range:`")
                continue
            self.problems += [
                f"slices.{number}: {key} cannot be mapped"
                for key in entry
                if key not in ("sources", "parameters") and entry[key] is not None
            ]
            own = {self._reference(source["model"], f"slices.{number}"): source.get("parameters") or {} for source in sources}
            spans = {tuple(source.get("layer_range") or ()) for source in sources}
            if len(own) < len(sources) or len(spans) > 1:
                self.problems.append(
                    f"slices.{number}: puts together layers of different numbers; a recipe merges layers of the same number"
                )
                continue
            (span,) = spans
            if len(span) != 2 or not all(type(end) is int for end in span) or span[0] != following or span[1] <= span[0]:
                self.problems.append(
                    f"slices.{number}: layer_range {list(span)} does not go on at layer {following}: layers are left out, repeated or "
                    "moved, and a recipe merges whole models"
                )
                continue
            if models and list(own) != models:
                self.problems.append(
                    f"slices.{number}: has other models than the slices before it; a recipe merges the same ones everywhere"
                )
                continue
            models, following = list(own), span[1]
            slices.append(_Slice(span[0], span[1] - 1, own, entry.get("parameters") or {}))
        if slices:
            self.notes.append(
                f"layer_range: the models are taken to have exactly {following} layers; mergekit would cut deeper ones off there, here "
                "layers beyond are merged as well"
            )
        if len(slices) == 1:
            slices = [_Slice(None, None, slices[0].own, slices[0].shared)]
        return models, slices

    def _reference(self, given: Any, where: str) -> str:
        """The URL of a model."""
        if isinstance(given, dict):
            inner = given.get("model", given)
            inner = inner if isinstance(inner, dict) else {"path": inner}
            if given.get("lora") or given.get("override_architecture"):
                self.problems.append(
                    f"{where}: a LoRA or another architecture; merge the LoRA into its model first (peft: merge_and_unload)"
                )
            given = f"{inner.get('path')}@{inner['revision']}" if inner.get("revision") else inner.get("path")
        if not isinstance(given, str) or not given:
            self.problems.append(f"{where}: should name a model")
            return "?"
        if "://" in given or Path(given).expanduser().exists():
            return given
        path, _, lora = given.partition("+")
        if lora:
            self.problems.append(
                f"{where}: {given} is a model with a LoRA; merge the LoRA into it first (peft: merge_and_unload), and name the result"
            )
            return path
        if _HUB.match(given):
            self.notes.append(
                f"{given} is no folder here and so is hf://{given} of the Hugging Face hub; mergekit downloads it, here it is streamed"
            )
            return f"hf://{given}"
        return given

    def _parameters(self, known: _Known, slices: Sequence[_Slice]) -> dict[str, Any]:
        """What stands under `parameters:`."""
        general = self.config.get("parameters") or {}
        if not isinstance(general, dict):
            self.problems.append("parameters: should be lines of `name: value`")
            general = {}
        scopes = [("parameters", general), *((f"slices.{n}.parameters", part.shared) for n, part in enumerate(slices))]
        for where, scope in scopes:
            for name in scope:
                if name == "int8_mask":
                    self.notes.append("int8_mask: saves memory in mergekit and changes no result; left out")
                elif name not in known.shared and name not in known.each and known.method:
                    self.problems.append(
                        f"{where}.{name}: mergekit's {self.config.get('merge_method')} has no such parameter that is known here"
                    )
        made = dict(known.given)
        for theirs, (ours, change) in known.shared.items():
            if any(theirs in scope for _, scope in scopes):
                value = self._value(
                    [[part.shared.get(theirs), general.get(theirs)] for part in slices], slices, change, f"parameters.{theirs}"
                )
                if ours and value is not None:
                    made[ours] = value
        if len(slices) == 1:  # what each model has for itself comes before
            for theirs, (ours, change) in known.each.items():
                if any(theirs in scope for _, scope in scopes):
                    value = self._value([[slices[0].shared.get(theirs), general.get(theirs)]], slices, change, f"parameters.{theirs}")
                    if ours and value is not None:
                        made[ours] = value
        return made

    def _entries(self, known: _Known, models: Sequence[str], base: str | None, slices: Sequence[_Slice]) -> dict[str, Any]:
        """`base:`, `deltas:` and `models:`."""
        merged = [model for model in models if model != base]
        method = self.config.get("merge_method")
        if known.takes in ("deltas", "pair") and base is None:
            self.problems.append(f"base_model is missing, which {method} needs")
        if known.takes == "pair" and len(merged) != 1:
            self.problems.append(f"{method} merges two models, of which base_model is one; {len(merged)} others are listed")
        if known.takes == "models" and base is not None:
            if base not in models:
                self.problems.append(
                    f"base_model {base} is not among the models; mergekit's {method} would merge it as well, without parameters"
                )
            merged = [base, *merged] if base in models else merged
        if known.takes in ("two", "over") and base is not None and base in models:
            self.notes.append(f"{base} is base_model, so {method} merges what the others add to it; its own entry is left out")
        if known.takes == "two" and len(merged) != 2:
            self.problems.append(f"{method} merges two models beside base_model; {len(merged)} are listed")
        key = "post" if known.takes == "deltas" else "model"
        entries = [{key: model, **self._own(known, model, slices)} for model in merged]
        section = "deltas" if known.takes == "deltas" else "models"
        based = {"base": base} if base is not None and known.takes != "models" else {}
        if known.takes == "models" and base is None:
            self.notes.append(
                f"without base_model mergekit takes config and tokenizer from any of its models; here they are those of {merged[:1] or '?'}"
            )
        return {**based, section: entries}

    def _own(self, known: _Known, model: str, slices: Sequence[_Slice]) -> dict[str, Any]:
        """The parameters of one model."""
        general = self.config.get("parameters") or {}
        general = general if isinstance(general, dict) else {}
        made: dict[str, Any] = {}
        own = [part.own.get(model) or {} for part in slices]
        for name in {name: None for scope in own for name in scope}:
            if name not in known.each and known.method:
                self.notes.append(f"{model}: parameter {name} has no effect in mergekit's {self.config.get('merge_method')}; left out")
        for theirs, (ours, change) in known.each.items():
            given = any(theirs in scope for scope in own)
            inherited = theirs in general or any(theirs in part.shared for part in slices)
            if theirs in known.needed and not given and not inherited:
                self.problems.append(f"{model}: {theirs} is missing, which mergekit needs as well")
            if not given and (len(slices) == 1 or not inherited):
                continue
            levels = [[scope.get(theirs)] if len(slices) == 1 else [scope.get(theirs), part.shared.get(theirs), general.get(theirs)]
                      for scope, part in zip(own, slices, strict=True)]  # fmt: skip
            value = self._value(levels, slices, change, f"{model}: {theirs}")
            if ours and value is not None:
                made[ours] = value
        return made

    def _value(self, levels: Sequence[Sequence[Any]], slices: Sequence[_Slice], change: Change, where: str) -> Any:
        """A value, a gradient or rules, from what each slice says, the strongest first."""
        try:
            if len(slices) == 1:
                rules = list(_rules(levels[0], change, {}))
            else:
                rules = []
                for part, settings in zip(slices, levels, strict=True):
                    rules += _rules(settings, change, {"layers": f"{part.first}-{part.last}"}, names=_INSIDE)
                rules += _rules(levels[0], change, {"component": "embedding"}, names=_BEFORE, outside=True)
                rules += _rules(levels[-1], change, {}, names=_BEHIND, outside=True)
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
        if isinstance(section, dict):
            source = section.get("source", "union")
            self.problems += [f"tokenizer.{key} cannot be mapped" for key in section if key != "source" and section[key]]
        template = config.get("chat_template")
        if template == "auto":
            self.notes.append("chat_template: auto: mergekit picks the most common one of the models; here it comes with the tokenizer")
        elif template is not None:
            self.problems.append(
                "chat_template: a template of one's own cannot be mapped; put it into the folder that tokenizer_from names"
            )
        if source == "union":
            self.problems.append(
                "tokenizer_source union: no tokenizer is put together here; make one, save it in a folder, name that as tokenizer_source"
            )
            return made
        donor = base if base is not None else (models[0] if models else None)
        if source is not None and source != "base":
            donor = self._reference(source, "tokenizer_source")
        first = [model for model in models if model != base][:1]
        if base is not None and donor == base:
            made["tokenizer_from"] = "base"
        elif donor is not None and [donor] != first:
            made["tokenizer_from"] = donor
        if source is not None:
            made["vocab"] = "by-token"
            self.notes.append(
                "rows by token: a row that some models lack is, in mergekit, filled from the base or averaged, and padding is the mean of "
                "all rows; here see `vocab: by-token`: zero deltas, whole rows, padding as it is"
            )
        else:
            self.notes.append(
                "vocabularies: mergekit cuts embeddings of different sizes to the common part; here they are refused (see `vocab`)"
            )
        return made

    def _tell(self, known: _Known) -> None:
        dtype = self.config.get("dtype")
        if dtype in (None, "float32"):
            how = "in the dtype of each base tensor" if dtype is None else "in float32"
        else:
            how = f"in {dtype}, rounding in between"
        self.notes.append(f"arithmetic: mergekit computes {how}; here in float32 (float64 for wider tensors), rounded once")
        self.notes.append("tensors that not all models have are passed over by mergekit; here they are an error")
        self.notes.append("generation_config.json and chat template are copied with the tokenizer")
        self.notes += known.notes


_BEFORE = ("model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight", "gpt_neox.embed_in.weight")
_BEHIND = ("model.norm.weight", "lm_head.weight", "transformer.ln_f.bias", "model.final_layernorm.weight", "embed_out.weight")
_INSIDE = (
    *(
        f"model.layers.0.self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "q_norm", "k_norm", "dense")
    ),
    *(
        f"model.layers.0.mlp.{name}.bias"
        for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "experts.0.up_proj")
    ),
    *(f"model.layers.0.{name}_layernorm.weight" for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
    *(f"model.layers.0.block_sparse_moe.{name}.weight" for name in ("gate", "experts.0.w1", "experts.0.w2", "experts.0.w3")),
    *(f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")),
)
"""Names of tensors before, behind and inside the layers, of usual architectures."""


def _rules(
    settings: Sequence[Any], change: Change, where: Mapping[str, str], *, names: Sequence[str] = (), outside: bool = False
) -> Iterator[dict[str, Any]]:
    """Rules for the tensors that `where` selects, from settings of which the strongest comes first. Filters that mean other tensors than
    any of `names` are left out; `outside` the layers gradients have their first number. Raises ValueError."""
    others = {*_BEFORE, *_BEHIND, *_INSIDE} - set(names)
    for setting in settings:
        if setting is None:
            continue
        for entry in setting if _is_conditional(setting) else [setting if isinstance(setting, dict) else {"value": setting}]:
            if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"value", "filter"}:
                raise ValueError("should be a value, a gradient, or a list of `{filter, value}`")
            pattern = entry.get("filter")
            general = pattern in (None, "*")
            if not general and names and not _means(str(pattern), names, others, outside=outside):
                continue
            found = {} if general else {"match": "*" + re.sub(r"([*?[])", r"[\1]", str(pattern)) + "*"}
            yield {**found, **where, "value": _changed(entry["value"], change, outside=outside)}
            if general:
                return


def _means(pattern: str, names: Sequence[str], others: Iterable[str], *, outside: bool) -> bool:
    """Whether a filter may mean one of `names`: of a name that is not known anywhere, it is thought to stand inside the layers."""
    if any(pattern in name for name in names):
        return True
    return not outside and not any(pattern in name for name in others)


def _is_conditional(setting: Any) -> bool:
    return isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting)


def _changed(value: Any, change: Change, *, outside: bool) -> Any:
    """A value or gradient in our words."""
    if not isinstance(value, list):
        return change(_number(value))
    values = [_number(entry) for entry in value]
    if not values or not all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in values):
        raise ValueError("a gradient of anything but numbers cannot be mapped")
    return change(values[0]) if outside or len(values) == 1 else [change(float(entry)) for entry in values]


def _number(value: Any) -> Any:
    """Numbers as YAML 1.1 does not read them: 1e-4 is text to it."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
        return float(value)
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{str(value)[:60]!r} is not a value")
    return value
