"""How results and progress look: tables for a terminal, JSON lines for a log."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from paramdelta_dist.cli import process
from paramdelta_dist.jobs.log_reader import JobProgress
from paramdelta_dist.redaction import redacted, redacted_values
from paramdelta_dist.sizes import format_memory, format_seconds, format_size

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey
    from paramdelta_dist.api import MergeResult, Observer
    from paramdelta_dist.output.receipts import Receipt
    from paramdelta_dist.shards.verify_file import FileVerdict

LINE_SECONDS = 10.0
"""Between two progress lines in a log."""
PACE_SECONDS = 60.0
"""Over how long a rate is taken, and"""
SHORTEST_PACE = 1.0
"""after how many seconds of work there is one."""
FEW = 12
"""Rows of a list that are shown before the rest is only counted."""


def _columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()


@contextmanager
def progress() -> Iterator[Observer]:
    """A bar where stderr is a terminal, JSON lines elsewhere.

    Whatever else prints meanwhile goes to stderr, a line of it: stdout is for the result alone, and Ray tells of dead nodes
    with the state of their raylet.
    """
    with redirect_stdout(_FirstLines()):
        if not sys.stderr.isatty():
            yield ProgressLines()
            return
        with Progress(*_columns(), console=Console(stderr=True), redirect_stdout=False) as bar:
            yield ProgressBar(bar)


class _FirstLines(io.TextIOBase):
    """Passes the first line of each text on to stderr."""

    def write(self, text: str) -> int:
        sys.stderr.write(text if text == "\n" else text.partition("\n")[0])
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


class ProgressBar:
    """Bytes made, rate and time left, on the last line of the terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def started(
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        lines = []
        if "bytes_to_read" in details:
            shards = _plural(details["shards"], "shard")
            lines.append(f"{format_size(details['bytes_to_read'])} to read, {format_size(total)} to write in {shards}")
        if "memory" in details:
            lines.append(_memory_line(details["memory"]))
        if done:
            lines.append(f"{format_size(done)} are in place from an earlier run")
        for line in lines:
            self._bar.console.print(line, highlight=False)
        self._task = self._bar.add_task(what, total=total, completed=done)

    def advanced(self, size: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, size)

    def reached(self, done: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None: ...


class Pace:
    """How fast bytes are made now: over the last minute in which some were.

    A silence counts as `LINE_SECONDS` at most. Before the first byte, and whenever a cluster gives no worker for a while, nothing is
    made, which says nothing of how fast it goes with the workers there are.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        """When it was heard of last, on the caller's clock."""
        self._worked = 0.0
        """Seconds since the first byte, silences cut."""
        self._now = (0.0, 0)
        self._marks: deque[tuple[float, int]] = deque()
        """Where it was at some moments of the last minute, the first of them a little before it."""

    def reached(self, done: int, now: float) -> None:
        """`done` bytes are there."""
        self._worked += 0.0 if self._last is None else min(now - self._last, LINE_SECONDS)
        self._last = now
        if not self._marks or self._worked - self._marks[-1][0] >= PACE_SECONDS / 60:
            self._marks.append((self._worked, done))
        while len(self._marks) > 2 and self._worked - self._marks[1][0] >= PACE_SECONDS:
            self._marks.popleft()
        self._now = self._worked, done

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where nothing can be said yet."""
        if not self._marks:
            return None
        (before, first), (now, done) = self._marks[0], self._now
        return max(0.0, (done - first) / (now - before)) if now - before >= SHORTEST_PACE else None


class ProgressLines:
    """One JSON object a line on stderr: at the start, every ten seconds, and for each finished shard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._counts: Callable[[], Mapping[str, int]] = dict
        self._told = time.monotonic()
        self._pace = Pace()

    def started(
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        self._counts = counts
        self._total, self._done = total, done
        self._told, self._pace = time.monotonic(), Pace()
        self._tell("started", what=what, bytes_total=total, bytes_done=done, **details)

    def advanced(self, size: int) -> None:
        with self._lock:
            self._done += size
            now, done = time.monotonic(), self._done
            if size:
                self._pace.reached(done, now)
            due = now - self._told >= LINE_SECONDS
            if due:
                self._told = now
            rate = self._pace.rate if due else None
        if due:
            counts = self._counts()
            if counts.get("workers") == 0:  # how long that lasts is not known
                rate = None
            speed = None if rate is None else round(rate)
            left = round((self._total - done) / rate, 1) if rate else None
            told: dict[str, Any] = {"bytes_total": self._total, "bytes_done": done, "bytes_per_second": speed, "seconds_left": left}
            self._tell("progress", **told, **counts)

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None:
        told = ("file", "size", "seconds", "worker", "problems")
        self._tell("finished", **{key: getattr(result, key) for key in told if hasattr(result, key)})

    @staticmethod
    def _tell(event: str, **fields: Any) -> None:
        told = {"event": event, "time": round(time.time(), 3), **redacted_values(fields)}
        print(json.dumps(told), file=sys.stderr, flush=True)


@contextmanager
def job_view(stream: TextIO) -> Iterator[JobView]:
    """A job's log on `stream` as it comes; its progress as a bar where that is a terminal, as its JSON lines elsewhere.

    The view raises NobodyReads when that is stdout and its reader has gone away.
    """

    def show(line: str) -> None:
        print(line, file=stream, flush=True)
        if stream is sys.stdout and (output := process.standard_output()) is not None and output.unread:
            raise NobodyReads

    if not (stream.isatty() and sys.stderr.isatty()):
        yield JobView(show, None)
        return
    with Progress(*_columns(), console=Console(file=stream)) as bar:
        yield JobView(lambda line: bar.console.print(escape(line), highlight=False, soft_wrap=True), ProgressBar(bar))


class NobodyReads(Exception):
    """There is nobody left to tell, and telling was all there was to do."""


def notes() -> JobView:
    """What is said about a job, on stderr; for who shows its log in another way, or not at all."""
    return JobView(lambda line: print(line, file=sys.stderr, flush=True), None)


class JobView:
    """What a job writes, and what is said about it. Its text may come from a stranger, and is kept from the terminal's ears."""

    def __init__(self, show: Callable[[str], None], bar: ProgressBar | None) -> None:
        self._show, self._bar = show, bar
        self._progress = JobProgress()

    def line(self, text: str) -> None:
        self._show(_shown(text))

    def event(self, fields: dict[str, Any], text: str) -> None:
        if self._bar is None:
            self.line(text)
            return
        self._progress.take(fields)
        if fields["event"] == "started":
            details: dict[str, Any] = {name: fields[name] for name in ("shards", "bytes_to_read", "memory") if name in fields}
            self._bar.started(fields.get("what", "merging"), fields["bytes_total"], done=fields.get("bytes_done", 0), details=details)
        else:
            self._bar.reached(self._progress.bytes_done)

    def note(self, text: str) -> None:
        print(_shown(text), file=sys.stderr, flush=True) if self._bar is None else self.line(text)


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in redacted(text))


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
        what = f"{_plural(len(document['points']), 'point')} of this sweep" if "points" in document else "this merge"
        console.print(f"nothing to do: {escape(document['output'])} holds {what} of these inputs already")
        if "edited" in document:
            console.print(f"  not as they were written, and left as they are: {escape(_first(document['edited']))}")
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
        console.print(f"  {_plural(len(document['lost']), 'file')} it had lost since it was finished: {escape(_first(document['lost']))}")
    if "gone" in document:
        console.print(f"  {escape(document['gone'])}, the output of this merge, is not there any more")
    console.print(
        f"  {format_size(document['bytes_read'])} read, {format_size(document['bytes_written'])} written in "
        f"{format_seconds(document['seconds'])}: {format_size(moved / max(document['seconds'], 1e-9))}/s"
    )
    nodes = f" on {_plural(document['nodes'], 'node')}" if document["engine"] == "ray" else ""
    console.print(
        f"  {_plural(document['shards']['made'], 'shard')} made{kept} by {_plural(document['workers'], 'worker')}{nodes}; "
        f"peak memory of a process {format_memory(document['peak_memory'])}"
    )
    console.print(f"  {document['tensors']['merged']} tensors merged, {document['tensors']['copied']} copied from the base")
    for note in document.get("notes", ()):
        console.print(f"  note: {escape(note)}")
    if document["workers_lost"]:
        console.print(f"  {_plural(document['workers_lost'], 'worker')} lost on the way; what they were at was made by others")
    if document["bytes_read_again"]:
        console.print(
            f"  {format_size(document['bytes_read_again'])} were read again, for attempts that failed or to check what was in place"
        )
    if document["nonfinite"]:
        console.print(f"  {_plural(document['nonfinite'], 'element')} NaN or infinite, as the recipe allows")
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
    memory, requests = document["memory"], document["requests"]
    counts = document["tensors"]
    times = document["bytes_to_read"] / max(1, document["bytes_of_inputs"])
    again = f", {format_size(document['bytes_of_inputs'])} of inputs {times:.2g} times" if times > 1 else ""
    facts = {
        "output": document["recipe"]["output"],
        "tensors": f"{counts['merged']} merged, {counts['copied']} copied from the base, {document['total_parameters']:,} parameters",
        "to read": f"{format_size(document['bytes_to_read'])} in {requests['read']:,} requests{again}",
        "to write": f"{format_size(document['bytes_to_write'])} in {requests['write']:,} requests, {_count(shards, 'shard')}",
        "memory": _memory_line(memory),
        "tiles": f"{format_memory(memory['tile_size'])}, {memory['tiles_in_flight']} in flight a shard",
        "copied files": ", ".join(name for _, name, *_ in document["side_files"]) or "none",
        "time": f"{format_seconds(document['seconds_at_bandwidth'])} at {format_size(document['bandwidth'])}/s to and from storage",
        "fingerprint": document["fingerprint"],
    }
    _facts(console, facts)


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
    if document["homologous"]:
        console.print(f"{_plural(len(document['models']), 'model')} fit the base {escape(document['base'])}")
        return
    table = Table(
        "model", "what", "difference", "what to do", title=f"differences from the base {escape(document['base'])}", show_lines=True
    )
    for row in document["mismatches"]:
        table.add_row(*(escape(row[key]) for key in ("model", "subject", "problem", "remedy")))
    Console(highlight=False).print(table)
    print(f"error: {_plural(len(document['mismatches']), 'difference')}; these models cannot be merged as they are", file=sys.stderr)


def inspect_tables(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    dtypes = ", ".join(f"{name} {count:,}" for name, count in document["dtypes"].items())
    facts = {
        "checkpoint": document["url"],
        "architecture": f"{document['architecture'] or 'unknown'} ({document['model_type'] or 'no model_type'})",
        "parameters": f"{document['parameters']:,} in {document['tensors']:,} tensors",
        "bytes": f"{document['bytes']:,} ({format_size(document['bytes'])})",
        "dtypes": dtypes,
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
            f"{format_seconds(report['seconds'])}, {format_size(report['bytes_per_second'])}/s, {_plural(report['workers'], 'worker')}"
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
    facts["complete"] = _few(complete)
    if document["damaged"]:
        facts["damaged"] = f"{_few(document['damaged'])}; files are missing or changed since"
    if unfinished:
        facts["unfinished"] = f"{_few(unfinished)}; running or stopped, the same merge command goes on"
    return facts


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _few(names: list[str]) -> str:
    """How many, and the last of them, which are the newest where names begin with a date."""
    shown = ", ".join(names[-3:])
    return f"{len(names)}: {'… ' if len(names) > 3 else ''}{shown}" if names else "none"


def verify_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for problem in document["problems"]:
        console.print(f"problem: {escape(problem)}")
    for name in document["edited"]:
        console.print(f"note: {escape(name)} is not as it was written; it is no part of the model, and people may edit it")
    looked = [f"{_plural(document['files'], 'file')} by structure and receipts"]
    looked += ["every byte by digest"] if document["deep"] else []
    looked += [f"{_plural(document['tiles_recomputed'], 'tile')} computed again"] if document["tiles_recomputed"] else []
    rate = format_size(document["bytes_read"] / max(document["seconds"], 1e-9))
    console.print(f"checked {', '.join(looked)}: {format_size(document['bytes_read'])} in {format_seconds(document['seconds'])}, {rate}/s")
    if document["ok"]:
        console.print(f"{escape(document['output'])} is what was committed")
    else:
        print(f"error: {document['output']}: {_plural(len(document['problems']), 'problem')}", file=sys.stderr)


def analyze_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("delta", "‖δ‖", "‖δ‖ / ‖base‖", "max |δ|", "unchanged", box=None, pad_edge=False)
    for delta in document["deltas"]:
        table.add_row(
            escape(delta["label"]),
            *(_figure(delta[key]) for key in ("norm", "relative_norm", "max_abs")),
            _figure(delta["zero_share"], percent=True),
        )
    console.print(table)
    if document["pairs"]:
        pairs = Table("cosine between", "", "whole model", "mean of tensors", "same sign", box=None, pad_edge=False)
        for pair in document["pairs"][:FEW]:
            figures = (_figure(pair["cosine"]), _figure(pair["mean_cosine"]), _figure(pair["sign_agreement"], percent=True))
            pairs.add_row(escape(pair["first"]), escape(pair["second"]), *figures)
        console.print(pairs)
    if document["nonfinite_tensors"]:
        console.print(f"{_plural(len(document['nonfinite_tensors']), 'tensor')} hold NaN or infinity and were left out of all sums")
    rate = format_size(document["bytes_read"] / max(document["seconds"], 1e-9))
    console.print(
        f"{_plural(document['tensors'], 'tensor')}, {document['parameters']:,} parameters: {format_size(document['bytes_read'])} read in "
        f"{format_seconds(document['seconds'])}, {rate}/s"
    )
    console.print(f"written to {escape(document['output'])}: {', '.join(document['files'])}")


def _figure(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if percent else f"{value:.4g}"


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
        console.print(f"not looked into: {escape(_shown(folder))}, which may not be listed")
    if not found:
        console.print(f"{escape(document['output'])}: no leftovers of ours of that age")
    elif document["removed"]:
        console.print(f"{_plural(len(found), 'leftover')} removed")
    else:
        console.print(f"{_plural(len(found), 'leftover')} found, none removed: --yes removes them")


def _leftover_line(leftover: dict[str, Any]) -> str:
    what = "unfinished file" if leftover["kind"] == "file" else "open multipart upload of"
    return f"{what} {escape(_shown(leftover['name']))}, {format_seconds(leftover['age_seconds'])} old"


def prune_lines(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    done = "removed" if document["removed"] else "would go"
    for output in document["pruned"]:
        console.print(f"{done}: {escape(output['output'])}, {output['state']}, {format_size(output['bytes'])}")
    for output in document["kept"]:
        console.print(f"stays: {escape(output['output'])}, {escape(output['why'])}")
    for folder in document["left"]:
        names = f": {escape(_first(folder['files']))}" if "files" in folder else ""
        console.print(f"left alone: {escape(folder['output'])}, {folder['why']}{names}")
    count = _plural(len(document["pruned"]), "output")
    if document["removed"]:
        console.print(f"{count} removed")
    else:
        console.print(f"{count} found, none removed: --yes removes them" if document["pruned"] else "nothing to remove")


def _memory_line(memory: dict[str, Any]) -> str:
    workers = _plural(memory["workers"] * memory["threads"], "worker")
    return f"{format_memory(memory['projected'])} projected for a process of {workers}, {format_memory(memory['budget'])} allowed"


def _facts(console: Console, facts: dict[str, str]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        console.print(f"[bold]{name:<{width}}[/]{escape(value)}")


def _count(items: Any, noun: str) -> str:
    return _plural(len(items), noun)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
