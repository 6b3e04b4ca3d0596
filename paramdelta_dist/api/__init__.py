"""The verbs: what `import paramdelta_dist` offers and what each command of the same name calls."""

from paramdelta_dist.api.analyzing import analyze
from paramdelta_dist.api.catalogue import method, methods
from paramdelta_dist.api.clusters import Task, follow, job_status, list_jobs, logs, stop, submit
from paramdelta_dist.api.documents import plan_document, tensor_documents
from paramdelta_dist.api.engines import Device, Engine
from paramdelta_dist.api.merging import merge
from paramdelta_dist.api.models import check, inspect, open_models
from paramdelta_dist.api.observing import Observer
from paramdelta_dist.api.outputs import clean, status
from paramdelta_dist.api.planning import plan, plan_sweep
from paramdelta_dist.api.pruning import prune
from paramdelta_dist.api.recipes import import_mergekit, load_recipe, schema
from paramdelta_dist.api.results import MergeResult, State
from paramdelta_dist.api.sizing import plan_workers
from paramdelta_dist.api.verifying import verify

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
    "schema",
    "status",
    "stop",
    "submit",
    "tensor_documents",
    "verify",
]
