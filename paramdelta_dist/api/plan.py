"""Planning: what a merge or a sweep would do, as a value and as plain values for people and programs."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.checkpoint import HomologyReport
from paramdelta_dist.checkpoint.components import locate
from paramdelta_dist.driver.make_plan import plan, plan_sweep
from paramdelta_dist.methods import find_method
from paramdelta_dist.planning import MergePlan, WorkerMemory
from paramdelta_dist.planning.requests import count_requests
from paramdelta_dist.planning.tiles import bytes_to_reduce
from paramdelta_dist.storage import open_store, part_size, redact

__all__ = ["plan", "plan_document", "plan_sweep", "tensor_documents"]


def plan_document(merge_plan: MergePlan, memory: WorkerMemory, report: HomologyReport) -> dict[str, Any]:
    """A plan as plain values for people and programs: shards, traffic, requests, memory."""
    requests = sum(count_requests(shard, tile_size=memory.tile_size) for shard in merge_plan.shards)
    reduced = [bytes_to_reduce(shard, tile_size=memory.tile_size) for shard in merge_plan.shards]
    remote = open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config).remote
    writes = sum(-(-shard.size // part_size(shard.size)) if remote else 1 for shard in merge_plan.shards)
    document = merge_plan.as_document()
    return {
        **document,
        "shards": [{**shard, "read": shard["read"] + again} for shard, again in zip(document["shards"], reduced, strict=True)],
        "bytes_to_read": merge_plan.bytes_to_read + sum(reduced),
        "bytes_of_inputs": merge_plan.bytes_to_read,
        "bytes_to_write": merge_plan.bytes_to_write,
        "requests": {"read": requests, "write": writes},
        "memory": memory.as_document(),
        "notes": list(report.notes),
    }


def tensor_documents(merge_plan: MergePlan) -> list[dict[str, Any]]:
    """What each tensor of the output gets, as plain values: whether it is merged or copied, and the value of every parameter."""
    documents = []
    for shard in merge_plan.shards:
        for tensor in shard.tensors:
            place = locate(tensor.name)
            document: dict[str, Any] = {
                "name": tensor.name,
                "file": shard.file,
                "dtype": tensor.dtype if tensor.encoded is None else tensor.encoded.encoding.title,
                "shape": list(tensor.shape),
                "component": place.component.value,
                "layer": place.layer,
                "merged": tensor.merged,
            }
            if tensor.rows is not None:
                document["row_runs"] = tensor.rows.count
            if tensor.merged:
                call = shard.calls[tensor.call]
                own = {parameter.name for parameter in find_method(call.method).for_each}
                document["parameters"] = {name: value for name, value in call.parameters.items() if name not in own}
                document["terms"] = [{"model": redact(merge_plan.models[term.post]), **term.values} for term in call.terms]
            documents.append(document)
    return documents
