"""Measuring, on a sample, whether rounding to the base's quantised scheme leaves anything of the deltas of a plan."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.planning import MergePlan


def rounding_document(merge_plan: MergePlan) -> dict[str, Any]:
    """For each component that is written quantised, the rms of the deltas and of the scheme's steps, and notes where rounding decides.

    Reads some bands of rows of each component. Raises what the stores raise.
    """
    with gc_paused():
        from paramdelta_dist.analysis.rounding import measure_rounding, rounding_notes
    measured = measure_rounding(merge_plan)
    return {"rounding": [each.as_document() for each in measured], "rounding_notes": list(rounding_notes(measured))}
