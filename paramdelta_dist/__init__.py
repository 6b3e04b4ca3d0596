"""Merge very large models as a stream over a cluster: ParamΔ without a machine that holds a whole model."""

from typing import TYPE_CHECKING, Any

from paramdelta_dist._version import __version__

if TYPE_CHECKING:
    from paramdelta_dist.api import (
        MergeResult,
        analyze,
        check,
        clean,
        follow,
        inspect,
        job_status,
        list_jobs,
        load_recipe,
        logs,
        merge,
        plan,
        prune,
        status,
        stop,
        submit,
        verify,
    )
    from paramdelta_dist.recipe import Recipe

__all__ = [
    "MergeResult",
    "Recipe",
    "__version__",
    "analyze",
    "check",
    "clean",
    "follow",
    "inspect",
    "job_status",
    "list_jobs",
    "load_recipe",
    "logs",
    "merge",
    "plan",
    "prune",
    "status",
    "stop",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Names load when first used, so that `import paramdelta_dist` stays instant."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("paramdelta_dist.recipe" if name == "Recipe" else "paramdelta_dist.api"), name)
