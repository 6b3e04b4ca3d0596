"""Merge very large models as a stream over a cluster: ParamΔ without a machine that holds a whole model."""

from typing import TYPE_CHECKING, Any

from paramdelta_dist._version import __version__

if TYPE_CHECKING:
    from paramdelta_dist.api.analyze import analyze
    from paramdelta_dist.api.check import check
    from paramdelta_dist.api.clean import clean
    from paramdelta_dist.api.inspect import inspect
    from paramdelta_dist.api.jobs import follow, job_status, list_jobs, logs, stop, submit
    from paramdelta_dist.api.merge import merge
    from paramdelta_dist.api.plan import plan
    from paramdelta_dist.api.prune import prune
    from paramdelta_dist.api.recipes import load_recipe
    from paramdelta_dist.api.status import status
    from paramdelta_dist.api.verify import verify
    from paramdelta_dist.driver.result import MergeResult
    from paramdelta_dist.recipe.model import Recipe

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

    return getattr(import_module("paramdelta_dist.recipe.model" if name == "Recipe" else "paramdelta_dist.api"), name)
