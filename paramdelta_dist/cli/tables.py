"""How results and progress look: tables for a terminal, JSON lines for a log."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paramdelta_dist.sizes import format_memory, format_seconds, format_size

if TYPE_CHECKING:
    from paramdelta_dist.api import MergeResult
from paramdelta_dist.cli.words import count, few, figure, first, memory_line, plural, shown

FEW = 12
"""Rows of a list that are shown before the rest is only counted."""


def merge_document(result: MergeResult) -> dict[str, Any]:
    pointer = {"pointer": result.pointer} if result.pointer else {}
    page = {"page": result.page} if result.page else {}
    mended = {**({"lost": list(result.lost)} if result.lost else {}), **({"gone": result.gone} if result.gone else {})}
    mended |= {"edited": list(result.edited)} if result.edited else {}
    return {"output": result.output, "state": result.state, "fingerprint": result.fingerprint, **pointer, **page, **mended, **result.report}


def merge_summary(document: dict[str, Any], *, stream: TextIO | None = None) -> None:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    latest = f"  {escape(document['pointer'])} names it the latest" if "pointer" in document else ""
    if document["state"] == "nothing to do":
        what = f"{plural(len(document['points']), 'point')} of this sweep" if "points" in document else "this merge"
        console.print(f"nothing to do: {escape(document['output'])} holds {what} of these inputs already")
        if "edited" in document:
            console.print(f"  not as they were written, and left as they are: {escape(first(document['edited']))}")
        if latest:
            console.print(latest)
        return
    moved = document["bytes_read"] + document["bytes_written"]
    kept = f", {document['shards']['kept']} kept from an earlier run" if document["shards"]["kept"] else ""
    console.print(f"merged into {escape(document['output'])}")
    for point in document.get("points", ())[:FEW]:
        console.print(f"  {escape(point['name'])}" + (", which was there already" if point["state"] == "nothing to do" else ""))
    if len(document.get("points", ())) > FEW:
        console.print(f"  … and {len(document['points']) - FEW} more points")
    if latest:
        console.print(latest)
    if "lost" in document:
        console.print(f"  {plural(len(document['lost']), 'file')} it had lost since it was finished: {escape(first(document['lost']))}")
    if "gone" in document:
        console.print(f"  {escape(document['gone'])}, the output of this merge, is not there any more")
    console.print(
        f"  {format_size(document['bytes_read'])} read, {format_size(document['bytes_written'])} written in "
        f"{format_seconds(document['seconds'])}: {format_size(moved / max(document['seconds'], 1e-9))}/s"
    )
    nodes = f" on {plural(document['nodes'], 'node')}" if document["engine"] == "ray" else ""
    console.print(
        f"  {plural(document['shards']['made'], 'shard')} made{kept} by {plural(document['workers'], 'worker')}{nodes}; "
        f"peak memory of a process {format_memory(document['peak_memory'])}"
    )
    console.print(f"  {document['tensors']['merged']} tensors merged, {document['tensors']['copied']} copied from the base")
    for note in document.get("notes", ()):
        console.print(f"  note: {escape(note)}")
    if document["workers_lost"]:
        console.print(f"  {plural(document['workers_lost'], 'worker')} lost on the way; what they were at was made by others")
    if document["bytes_read_again"]:
        console.print(
            f"  {format_size(document['bytes_read_again'])} were read again, for attempts that failed or to check what was in place"
        )
    if document["nonfinite"]:
        console.print(f"  {plural(document['nonfinite'], 'element')} NaN or infinite, as the recipe allows")
    if "page" in document:
        console.print(f"  report: {escape(document['page'])}")


def plan_tables(document: dict[str, Any], *, stream: TextIO | None = None) -> None:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")
    if "tensor_list" in document:
        _tensor_table(console, document["tensor_list"])
    table = Table("shard", "size", "tensors", "to read", box=None, pad_edge=False)
    shards = document["shards"]
    for shard in shards[:FEW]:
        table.add_row(shard["file"], format_size(shard["size"]), str(shard["tensors"]), format_size(shard["read"]))
    console.print(table)
    if len(shards) > FEW:
        console.print(f"… and {len(shards) - FEW} more")
    _rounding(console, document)
    memory, requests = document["memory"], document["requests"]
    counts = document["tensors"]
    times = document["bytes_to_read"] / max(1, document["bytes_of_inputs"])
    again = f", {format_size(document['bytes_of_inputs'])} of inputs {times:.2g} times" if times > 1 else ""
    facts = {
        "output": document["recipe"]["output"],
        "tensors": f"{counts['merged']} merged, {counts['copied']} copied from the base, {document['total_parameters']:,} parameters",
        "to read": f"{format_size(document['bytes_to_read'])} in {requests['read']:,} requests{again}",
        "to write": f"{format_size(document['bytes_to_write'])} in {requests['write']:,} requests, {count(shards, 'shard')}",
        "memory": memory_line(memory),
        "tiles": f"{format_memory(memory['tile_size'])}, {memory['tiles_in_flight']} in flight a shard",
        "copied files": ", ".join(name for _, name, *_ in document["side_files"]) or "none",
        "time": f"{format_seconds(document['seconds_at_bandwidth'])} at {format_size(document['bandwidth'])}/s to and from storage",
        "fingerprint": document["fingerprint"],
    }
    _facts(console, facts)


def _rounding(console: Console, document: dict[str, Any]) -> None:
    """The deltas beside the steps of the scheme, and a warning where little is left of them."""
    if not document.get("rounding"):
        return
    table = Table("component", "quantised tensors", "rms of deltas", "rms of steps", "deltas / steps", box=None, pad_edge=False)
    for each in document["rounding"]:
        table.add_row(each["component"], f"{each['tensors']:,}", f"{each['delta']:.3g}", f"{each['step']:.3g}", f"{each['ratio']:.2f}")
    console.print(table)
    for note in document["rounding_notes"]:
        console.print(f"warning: {escape(note)}")


def _tensor_table(console: Console, tensors: list[dict[str, Any]]) -> None:
    """A line for each tensor: neighbours in a table would be cut where the terminal ends."""
    for tensor in tensors:
        shape = " × ".join(map(str, tensor["shape"])) or "scalar"
        what = "copied from the base"
        if tensor["merged"]:
            terms = "; ".join(_values(term) for term in tensor["terms"]) or "nothing is added to the base"
            what = f"{terms} | {_values(tensor['parameters'])}" if tensor["parameters"] else terms
        rows = f" in {tensor['row_runs']:,} runs of rows" if "row_runs" in tensor else ""
        console.print(f"{escape(tensor['name'])}  [dim]{tensor['dtype']} {shape}, {tensor['component']}{rows}[/]  {escape(what)}")
    console.print()


def _values(values: dict[str, Any]) -> str:
    """`post: weight 0.5, density 0.2`, the model by the last part of its URL."""
    model = values.get("model")
    listed = ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items() if name != "model"
    )
    return f"{model.rstrip('/').rpartition('/')[2]}: {listed}" if model else listed


def method_list(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    families: dict[str, list[dict[str, Any]]] = {}
    for method in document["methods"]:
        families.setdefault(method["family"], []).append(method)
    width = max(len(method["name"]) for method in document["methods"]) + 2
    for family, methods in families.items():
        console.print(f"[bold]{escape(family)}[/]")
        for method in methods:
            package = f" (of the package {method['package']})" if method["package"] else ""
            console.print(f"  {escape(method['name']):<{width}}{escape(method['title'] + package)}")
    console.print("\n`paramdelta-dist methods NAME` explains one: formula, parameters, paper, an example recipe")


_SCOPES = {
    "element": "an element depends on the same element of the inputs",
    "row": "an element depends on its row",
    "tensor": "an element may depend on its whole tensor; then one that is too large for a tile is read more than once",
    "model": "an element may depend on all tensors; then the models are read more than once",
}


def method_page(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(document['name'])}[/]  {escape(document['title'])}\n")
    facts = {
        "formula": document["formula"],
        "takes": document["takes"],
        "scope": f"{document['scope']}: {_SCOPES[document['scope']]}",
        "paper": document["paper"],
    }
    if document["package"]:
        facts["package"] = document["package"]
    _facts(console, facts)
    if document["notes"]:
        console.print(f"\n{escape(document['notes'])}")
    if document["parameters"]:
        console.print("\n[bold]parameters[/]")
    for parameter in document["parameters"]:
        default = parameter["default"] if isinstance(parameter["default"], str) else json.dumps(parameter["default"])
        given = "has to be given" if parameter["default"] is None else f"default {default}"
        where = "; for all, or in each of them" if parameter["for_each"] else ""
        console.print(f"  {escape(parameter['name'])}: {escape(parameter['meaning'])}")
        console.print(f"      {escape(parameter['range'])}; {given}{where}")
    console.print("\n[bold]example[/]")
    for line in document["example"]:
        console.print(f"  {escape(line)}")


def import_lines(document: dict[str, Any]) -> None:
    """What the user of an imported recipe has to know, on stderr: stdout is for the recipe."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    several = document.get("recipes", [document])
    for made in several:
        console.print(f"{escape(made['name'])}: differences from mergekit:" if made["name"] else "differences from mergekit:")
        for note in made["notes"]:
            console.print(f"  - {escape(note)}")
        if made["written"] is not None:
            console.print(f"recipe written to {escape(made['written'])}; `paramdelta-dist plan` shows what it does")
    if len(several) > 1:
        files = "" if several[0]["written"] else " each from a file of its own, as `-o FILE` writes them,"
        console.print(f"{len(several)} recipes: merge them{files} in this order")


def check_table(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for note in document["notes"]:
        console.print(f"note: {escape(note)}")
    for mode, what in document["vocabulary"]:
        console.print(f"with vocab: {mode}: {escape(what)}")
    _rounding(console, document)
    if document["homologous"]:
        console.print(f"{plural(len(document['models']), 'model')} fit the base {escape(document['base'])}")
        return
    table = Table(
        "model", "what", "difference", "what to do", title=f"differences from the base {escape(document['base'])}", show_lines=True
    )
    for row in document["mismatches"]:
        table.add_row(*(escape(row[key]) for key in ("model", "subject", "problem", "remedy")))
    Console(highlight=False).print(table)
    print(f"error: {plural(len(document['mismatches']), 'difference')}; these models cannot be merged as they are", file=sys.stderr)


def inspect_tables(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    dtypes = ", ".join(f"{name} {count:,}" for name, count in document["dtypes"].items())
    quantised = "; ".join(f"{count:,} matrices, {title}" for title, count in document.get("quantised", {}).items())
    facts = {
        "checkpoint": document["url"],
        "architecture": f"{document['architecture'] or 'unknown'} ({document['model_type'] or 'no model_type'})",
        "parameters": f"{document['parameters']:,} in {document['tensors']:,} tensors",
        "bytes": f"{document['bytes']:,} ({format_size(document['bytes'])})",
        "dtypes": dtypes,
        **({"quantised": quantised} if quantised else {}),
        "tied embeddings": "yes" if document["tied_embeddings"] else "no",
        "side files": ", ".join(document["side_files"]) or "none",
    }
    if document["orphans"]:
        facts["not in the index"] = ", ".join(document["orphans"])
    if document["unlisted"]:
        facts["may not be listed"] = ", ".join(document["unlisted"])
    _facts(console, facts)
    table = Table("file", "size", "tensors", box=None, pad_edge=False)
    for file in document["files"][:FEW]:
        table.add_row(escape(file["name"]), format_size(file["size"]), str(file["tensors"]))
    console.print(table)
    if len(document["files"]) > FEW:
        console.print(f"… and {len(document['files']) - FEW} more files; --json lists every file and tensor")
    tensors = Table("tensor", "dtype", "shape", box=None, pad_edge=False)
    for tensor in document["tensor_list"][:FEW]:
        tensors.add_row(escape(tensor["name"]), tensor["dtype"], " × ".join(map(str, tensor["shape"])) or "scalar")
    console.print(tensors)
    if len(document["tensor_list"]) > FEW:
        console.print(f"… and {len(document['tensor_list']) - FEW} more tensors; --json lists every file and tensor")


def status_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if document["state"] == "series":
        _facts(console, _series_facts(document))
        return
    states = {
        "absent": "nothing is there",
        "foreign": "files that no merge of ours made",
        "unfinished": "a merge that is running, or was stopped; the same merge command goes on from here",
        "complete": "a finished merge",
        "damaged": "a merge that was finished, whose files are no longer those; merge --overwrite makes it again",
    }
    facts = {"output": document["output"], "state": f"{document['state']}: {states[document['state']]}"}
    if "unreadable" in document:
        names = ", ".join(document["unreadable"])
        facts["unreadable"] = f"{names}, as after a power cut; the same merge, run again, keeps what is finished and writes it anew"
    if "shards" in document:
        shards, size = document["shards"], document["bytes"]
        facts["shards"] = f"{shards['done']} of {shards['total']} done"
        facts["bytes"] = f"{format_size(size['done'])} of {format_size(size['total'])}"
        facts["fingerprint"] = str(document["fingerprint"])
    if "committed" in document:
        facts["committed"] = str(document["committed"])
    if "edited" in document:
        facts["edited"] = f"{', '.join(document['edited'])}: not as they were written, and no part of the model"
    if "damaged" in document:
        facts["damaged"] = ", ".join(document["damaged"])
    if "report" in document:
        report = document["report"]
        facts["last run"] = (
            f"{format_seconds(report['seconds'])}, {format_size(report['bytes_per_second'])}/s, {plural(report['workers'], 'worker')}"
        )
    _facts(console, facts)


def job_id(document: dict[str, Any]) -> None:
    """For `submit --no-wait`: the id alone, so that a script can take it."""
    if document["state"] == "nothing to do":
        print(f"nothing to do: {document['output']} holds this merge of these inputs already", file=sys.stderr)
    print(document["job"])


def job_end(document: dict[str, Any]) -> None:
    """How a followed job ended; what it wrote was shown while it came."""
    if document["state"] == "nothing to do" and document["output"] is None:
        print(f"{document['job']} stands for no job: there was nothing to do when it was submitted")
    elif document["state"] == "nothing to do":
        merge_summary(document)
    elif "error" in document:
        print(f"error: {document['error']['message']}", file=sys.stderr)
    elif "result" in document:
        result = document["result"]
        (verify_lines if "ok" in result else analyze_lines if "deltas" in result else merge_summary)(result)
    else:
        print(f"job {document['job']} {document['state']}")


def job_stopped(document: dict[str, Any]) -> None:
    if document["state"] == "nothing to do":
        print(f"{document['job']} stands for no job: there was nothing to do when it was submitted, and nothing is to stop")
    elif not document["told_to_stop"]:
        print(f"job {document['job']} was over already: {document['state']}")
    elif document["state"] == "stopped":
        print(f"job {document['job']} is stopped; what is finished is kept, and submitting again goes on from there")
    else:
        print(f"job {document['job']} is told to stop; --wait waits for its end")


def job_table(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not document["jobs"]:
        console.print("no merge was submitted to this cluster")
        return
    table = Table("job", "state", "began", "took", "output", box=None, pad_edge=False)
    for job in document["jobs"]:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["began"])) if job["began"] else ""
        took = format_seconds(job["seconds"]) if job["seconds"] is not None else ""
        table.add_row(job["job"], job["state"], began, took, escape(job["output"] or ""))
    console.print(table)


def job_lines(document: dict[str, Any]) -> None:
    """The status of a job, running or over."""
    console = Console(highlight=False, soft_wrap=True)
    facts = {"job": document["job"], "state": document["state"]}
    facts |= {"output": document["output"]} if document["output"] else {}
    if document["seconds"] is not None:
        facts["time"] = format_seconds(document["seconds"])
    result = document.get("result", {})
    if "bytes_written" in result:
        facts["merged"] = f"{format_size(result['bytes_read'])} read, {format_size(result['bytes_written'])} written"
        facts["rate"] = f"{format_size(result['bytes_per_second'])}/s, read and written"
        facts["shards"] = f"{result['shards']['made']} made, {result['shards']['kept']} kept from an earlier run"
        facts["workers"], facts["retries"] = str(result["workers"]), str(result["retries"])
    elif result:
        facts["merged"] = result["state"]
    elif document.get("bytes", {}).get("total"):
        size, shards = document["bytes"], document["shards"]
        facts["bytes"] = f"{format_size(size['done'])} of {format_size(size['total'])} ({size['done'] / size['total']:.0%})"
        facts["shards"] = f"{shards['finished']} finished by this job, {shards['total']} in all"
        for name, suffix in (("workers", ""), ("retries", "")):
            if document[name] is not None:
                facts[name] = f"{document[name]}{suffix}"
        if document["bytes_per_second"] and not document.get("exit_code"):
            facts["rate"] = f"{format_size(document['bytes_per_second'])}/s written"
            facts["time left"] = format_seconds(document["seconds_left"]) if document["seconds_left"] is not None else "unknown"
    if "error" in document:
        driver = document["error"].get("driver", {}).get("message", "")
        facts["ended"] = document["error"]["message"]
        if driver:
            facts["because"] = driver.partition("\\n")[0]  # the first line: what is shown has its line breaks spelt out
    _facts(console, facts)


_DANGLING = {"absent": "which is NOT THERE", "damaged": "which LOST FILES", "unfinished": "which is NOT FINISHED"}


def _series_facts(document: dict[str, Any]) -> dict[str, str]:
    complete, unfinished = document["complete"], document["unfinished"]
    facts = {"outputs in": document["output"]}
    for name, pointer in document["latest"].items():
        facts[name] = f"{pointer['output']}, committed {pointer['committed']}"
        if name in document["dangling"]:
            facts[name] += f"; {_DANGLING[document['dangling'][name]]}: the next merge of these inputs makes it again"
    facts["complete"] = few(complete)
    if document["damaged"]:
        facts["damaged"] = f"{few(document['damaged'])}; files are missing or changed since"
    if unfinished:
        facts["unfinished"] = f"{few(unfinished)}; running or stopped, the same merge command goes on"
    return facts


def verify_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for problem in document["problems"]:
        console.print(f"problem: {escape(problem)}")
    for name in document["edited"]:
        console.print(f"note: {escape(name)} is not as it was written; it is no part of the model, and people may edit it")
    looked = [f"{plural(document['files'], 'file')} by structure and receipts"]
    looked += ["every byte by digest"] if document["deep"] else []
    looked += [f"{plural(document['tiles_recomputed'], 'tile')} computed again"] if document["tiles_recomputed"] else []
    rate = format_size(document["bytes_read"] / max(document["seconds"], 1e-9))
    console.print(f"checked {', '.join(looked)}: {format_size(document['bytes_read'])} in {format_seconds(document['seconds'])}, {rate}/s")
    if document["ok"]:
        console.print(f"{escape(document['output'])} is what was committed")
    else:
        print(f"error: {document['output']}: {plural(len(document['problems']), 'problem')}", file=sys.stderr)


def analyze_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("delta", "‖δ‖", "‖δ‖ / ‖base‖", "max |δ|", "unchanged", box=None, pad_edge=False)
    for delta in document["deltas"]:
        table.add_row(
            escape(delta["label"]),
            *(figure(delta[key]) for key in ("norm", "relative_norm", "max_abs")),
            figure(delta["zero_share"], percent=True),
        )
    console.print(table)
    if document["pairs"]:
        pairs = Table("cosine between", "", "whole model", "mean of tensors", "same sign", box=None, pad_edge=False)
        for pair in document["pairs"][:FEW]:
            figures = (figure(pair["cosine"]), figure(pair["mean_cosine"]), figure(pair["sign_agreement"], percent=True))
            pairs.add_row(escape(pair["first"]), escape(pair["second"]), *figures)
        console.print(pairs)
    _rounding(console, document)
    if document["nonfinite_tensors"]:
        console.print(f"{plural(len(document['nonfinite_tensors']), 'tensor')} hold NaN or infinity and were left out of all sums")
    rate = format_size(document["bytes_read"] / max(document["seconds"], 1e-9))
    console.print(
        f"{plural(document['tensors'], 'tensor')}, {document['parameters']:,} parameters: {format_size(document['bytes_read'])} read in "
        f"{format_seconds(document['seconds'])}, {rate}/s"
    )
    console.print(f"written to {escape(document['output'])}: {', '.join(document['files'])}")


def clean_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    found = document["leftovers"]
    for leftover in found:
        console.print(_leftover_line(leftover))
    reasons: dict[str, list[dict[str, Any]]] = {}
    for leftover in document["left_alone"]:
        reasons.setdefault(leftover["reason"], []).append(leftover)
    for reason, left in reasons.items():
        for leftover in left[:FEW]:
            console.print(f"left alone: {_leftover_line(leftover)}; {escape(reason)}")
        if len(left) > FEW:
            console.print(f"left alone: {len(left) - FEW} more; {escape(reason)}")
    for folder in document["unlisted"]:
        console.print(f"not looked into: {escape(shown(folder))}, which may not be listed")
    if not found:
        console.print(f"{escape(document['output'])}: no leftovers of ours of that age")
    elif document["removed"]:
        console.print(f"{plural(len(found), 'leftover')} removed")
    else:
        console.print(f"{plural(len(found), 'leftover')} found, none removed: --yes removes them")


def _leftover_line(leftover: dict[str, Any]) -> str:
    what = "unfinished file" if leftover["kind"] == "file" else "open multipart upload of"
    return f"{what} {escape(shown(leftover['name']))}, {format_seconds(leftover['age_seconds'])} old"


def prune_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    done = "removed" if document["removed"] else "would go"
    for output in document["pruned"]:
        console.print(f"{done}: {escape(output['output'])}, {output['state']}, {format_size(output['bytes'])}")
    for output in document["kept"]:
        console.print(f"stays: {escape(output['output'])}, {escape(output['why'])}")
    for folder in document["left"]:
        names = f": {escape(first(folder['files']))}" if "files" in folder else ""
        console.print(f"left alone: {escape(folder['output'])}, {folder['why']}{names}")
    count = plural(len(document["pruned"]), "output")
    if document["removed"]:
        console.print(f"{count} removed")
    else:
        console.print(f"{count} found, none removed: --yes removes them" if document["pruned"] else "nothing to remove")


def _facts(console: Console, facts: dict[str, str]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        console.print(f"[bold]{name:<{width}}[/]{escape(value)}")
