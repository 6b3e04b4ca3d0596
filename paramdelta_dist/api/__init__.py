"""The verbs: what `import paramdelta_dist` offers and each command of the same name calls. Knows no terminal."""

from paramdelta_dist.api.analyze import analyze
from paramdelta_dist.api.check import check
from paramdelta_dist.api.clean import clean
from paramdelta_dist.api.inspect import inspect
from paramdelta_dist.api.jobs import Task, follow, job_status, list_jobs, logs, stop, submit
from paramdelta_dist.api.merge import merge
from paramdelta_dist.api.methods import method, methods
from paramdelta_dist.api.plan import plan, plan_document, plan_sweep, tensor_documents
from paramdelta_dist.api.prune import prune
from paramdelta_dist.api.recipes import import_mergekit, load_recipe, schema
from paramdelta_dist.api.rounding import rounding_document
from paramdelta_dist.api.status import status
from paramdelta_dist.api.verify import verify
from paramdelta_dist.driver.executors import Device, Engine
from paramdelta_dist.driver.observer import Observer
from paramdelta_dist.driver.open_inputs import open_models
from paramdelta_dist.driver.result import MergeResult, State
from paramdelta_dist.driver.sizing import plan_workers

__all__ = [
    "Device",
    "Engine",
    "MergeResult",
    "Observer",
    "State",
    "Task",
    "analyze",
    "check",
    "clean",
    "follow",
    "import_mergekit",
    "inspect",
    "job_status",
    "list_jobs",
    "load_recipe",
    "logs",
    "merge",
    "method",
    "methods",
    "open_models",
    "plan",
    "plan_document",
    "plan_sweep",
    "plan_workers",
    "prune",
    "rounding_document",
    "schema",
    "status",
    "stop",
    "submit",
    "tensor_documents",
    "verify",
]
