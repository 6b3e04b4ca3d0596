"""Tensors that are copied and not merged, because they hold integers or booleans: whether all models agree on them, found out
before any work; and tensors that can be neither merged nor copied.

Of large ones only some places are read, all over them: what differs elsewhere alone, the merge itself finds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import NamedTuple

from paramdelta_dist.checkpoint import alike
from paramdelta_dist.checkpoint.alike import Stretch, are_alike
from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.extras import is_the_bases
from paramdelta_dist.checkpoint.families import dtypes_of
from paramdelta_dist.checkpoint.header import Tensor, shown
from paramdelta_dist.checkpoint.homology import Mismatch
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.storage import StorageConfig, Store, open_store, redact
from paramdelta_dist.threads import Threads

MOST = 2048
"""Tensors that are looked at, of each model."""
_IN_FLIGHT = 16
_FEW, _MOST_GLOBS = 3, 64
"""Names that a message shows, and globs that it offers."""


class Agreement(NamedTuple):
    """The outcome of comparing the tensors that are copied."""

    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]


def treatment(kinds: Collection[Kind]) -> bool | str:
    """Whether tensors of these kinds are merged (True) or copied (False), or why neither is possible."""
    if Kind.QUANTIZED in kinds:
        return "is quantised; dequantise the checkpoint first (its codes mean nothing without their scales)"
    if Kind.COMPLEX in kinds:
        return "is complex; this cannot be merged: leave it out (`exclude`), which takes the base's"
    if len(kinds) > 1:
        return (
            "holds floating-point numbers in one model and integers in another; check that they are the same model, or leave it out "
            "(`exclude`), which takes the base's"
        )
    return Kind.FLOAT in kinds


def compare_exact(
    models: Sequence[Checkpoint], storage: StorageConfig, *, left_out: Callable[[str], bool], told: Collection[str], room: Room
) -> Agreement:
    """Compare what is copied of the models that are read, the base first; reads small tensors and some places of large ones.

    What is `left_out`, what some model lacks or has in another shape, and what was `told` of already is passed by. Raises
    OverBudget where there is no `room` for the few that are read at a time, and what the stores raise.
    """
    models = [model for model in models if not model.adapter]  # which have nothing that is copied
    base, *others = models
    common = [name for name in _not_plain(models) if name not in told and not left_out(name) and _in_all(name, base.tensors[name], others)]
    asked = [name for name in common if not is_the_bases(name, base.tensors[name])]
    mismatches = [*_unlike_kinds(asked, models)]
    exact = [name for name in asked if _is_exact(name, models)]
    looked, derived = exact[:MOST], [name for name in sorted(set(common).difference(asked)) if _is_exact(name, models)]
    derived = derived[: MOST - len(looked)]
    notes: list[str] = []
    with room.taken(_IN_FLIGHT * 2 * alike.SMALL if looked or derived else 0, "comparing integer tensors"):
        for model in {model.url: model for model in others}.values():
            if differing := _differing(looked, base, model, storage):
                mismatches.append(_disagreement(differing, base, model))
            if differing := _differing(derived, base, model, storage):
                names = ", ".join(map(shown, differing[:_FEW])) + (", …" if len(differing) > _FEW else "")
                notes.append(
                    f"{redact(model.url)}: {len(differing)} tensors of integers that count steps or follow from the config differ from "
                    f"the base's, which are written: {names}"
                )
    partly = [name for name in looked if _size(base.tensors[name]) > alike.SMALL] + exact[MOST:]
    if partly and not mismatches and others:
        notes.append(
            f"{len(partly)} tensors of integers, such as {shown(partly[0])}, are large: they were compared in places, and the merge "
            "compares all of them"
        )
    return Agreement(tuple(mismatches), tuple(notes))


def _not_plain(models: Sequence[Checkpoint]) -> list[str]:
    """The tensors of the base, in its order, that hold anything else than floating-point numbers in any of the models."""
    tables = {id(model.tensors): model.tensors for model in models}.values()
    plain = {name for name, dtype in DTYPES.items() if dtype.kind is Kind.FLOAT}
    unlike = [tensors for tensors in tables if not plain.issuperset(dtypes_of(tensors))]
    others = {name for tensors in unlike for name, tensor in tensors.items() if tensor.dtype not in plain}
    return [name for name in models[0].tensors if name in others] if others else []


def _is_exact(name: str, models: Sequence[Checkpoint]) -> bool:
    return all(DTYPES[model.tensors[name].dtype].kind is Kind.EXACT for model in models)


def _in_all(name: str, tensor: Tensor, others: Sequence[Checkpoint]) -> bool:
    held = [other.tensors.get(name) for other in others]
    return all(theirs is not None and theirs.shape == tensor.shape for theirs in held)


def _unlike_kinds(names: Sequence[str], models: Sequence[Checkpoint]) -> Iterator[Mismatch]:
    """Mismatches of tensors that can be neither merged nor copied; quantised ones are told elsewhere."""
    seen: dict[tuple[str, ...], str | None] = {}
    """The problem with tensors of these dtypes; None where there is none."""
    for name in names:
        dtypes = tuple([model.tensors[name].dtype for model in models])
        if dtypes not in seen:
            kinds = {DTYPES[dtype].kind for dtype in dtypes}
            problem = treatment(kinds) if Kind.QUANTIZED not in kinds else False
            seen[dtypes] = problem if isinstance(problem, str) else None
        if (found := seen[dtypes]) is not None:
            problem, _, remedy = found.partition("; ")
            way = f"{remedy}: {_exclusion([name], models[0].tensors)}"
            yield Mismatch(redact(models[0].url), "dtypes", f"{shown(name)} {problem}", way)


def _differing(names: Sequence[str], base: Checkpoint, other: Checkpoint, storage: StorageConfig) -> list[str]:
    """Those of the tensors that the other model has in another dtype or with other numbers, wherever that was looked at."""
    ours, theirs = open_store(base.url, storage), open_store(other.url, storage)

    def differs(name: str) -> bool:
        one, another = base.tensors[name], other.tensors[name]
        if one.dtype != another.dtype:
            return True
        if base.url == other.url and one == another:
            return False
        return not are_alike(_stretch(ours, base, one), _stretch(theirs, other, another))

    with Threads(_IN_FLIGHT) as pool:
        return [name for name, found in zip(names, pool.map(differs, names), strict=True) if found]


def _size(tensor: Tensor) -> int:
    return tensor.stop - tensor.start


def _stretch(store: Store, model: Checkpoint, tensor: Tensor) -> Stretch:
    file = model.files[tensor.file]
    return Stretch(store, file.name, file.identity, tensor.start, tensor.stop)


def _disagreement(names: Sequence[str], base: Checkpoint, other: Checkpoint) -> Mismatch:
    dtypes = {base.tensors[name].dtype for name in names} | {other.tensors[name].dtype for name in names}
    several = len(names) > 1
    return Mismatch(
        redact(other.url),
        "integers",
        f"{f'{len(names)} tensors' if several else shown(names[0])} of {' and '.join(sorted(dtypes))}, which {'are' if several else 'is'} "
        f"copied and not merged, {'differ' if several else 'differs'} from the base's"
        + (f", such as {', '.join(map(shown, names[:_FEW]))}" if several else ""),
        f"leave {'them' if several else 'it'} out, which takes the base's: {_exclusion(names, base.tensors)}",
    )


def _exclusion(names: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """A line of a recipe that leaves these tensors out, and none that is merged: by the ends of their names, where that is short
    and matches no others, else one by one."""
    ends = dict.fromkeys(escape(name) if "." not in name else f"*.{escape(name.rpartition('.')[2])}" for name in names)
    chosen = set(names)
    merged = [name for name, tensor in tensors.items() if DTYPES[tensor.dtype].kind is Kind.FLOAT and name not in chosen]
    safe = not any(fnmatchcase(name, end) for end in ends for name in merged)
    globs = [*ends] if safe else [*map(escape, names)]
    more = ", …" if len(globs) > _MOST_GLOBS else ""
    return "`exclude: [" + ", ".join("'" + glob.replace("'", "''") + "'" for glob in globs[:_MOST_GLOBS]) + more + "]`"
