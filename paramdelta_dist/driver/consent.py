"""Whether `--overwrite` may delete what is not ours: the caller is asked, once, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paramdelta_dist.errors import OutputOccupied
from paramdelta_dist.output.replace import Replacement, look_over
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.storage import open_store
from paramdelta_dist.threads import Threads

Confirm = Callable[[Mapping[str, Sequence[str]]], bool]
"""Told, by output folder, which files that no merge of ours has made would be deleted; says whether they may be."""
SHOWN = 20
"""Files named in a question or a refusal."""


def replacements(plans: Sequence[MergePlan], confirm: Confirm | None) -> list[Replacement]:
    """The files that overwriting the outputs of these plans takes away, with the caller's consent where it takes what is not ours.

    Deletes nothing. Raises OutputOccupied where there is nobody to ask, or the answer is no.
    """
    with Threads(max(1, len(plans))) as pool:
        found = list(pool.map(_of, plans))
    foreign = {replacement.output: replacement.foreign for replacement in found if replacement.foreign}
    if foreign and not (confirm is not None and confirm(foreign)):
        raise OutputOccupied(
            f"--overwrite would delete what no merge of ours has made:\n{listing(foreign)}\nNothing was deleted. "
            "Choose another output; or give --yes as well, if these files may go"
        )
    return found


def listing(foreign: Mapping[str, Sequence[str]]) -> str:
    """The files, a line each, as far as there are not too many."""
    lines = [f"  {output.rstrip('/')}/{name}" for output, names in foreign.items() for name in names]
    return "\n".join(lines[:SHOWN] + ([f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))


def _of(plan: MergePlan) -> Replacement:
    return look_over(open_store(plan.recipe.output, plan.recipe.storage_config), plan)
