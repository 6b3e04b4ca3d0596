"""The command line: parse, call the function of the same name in `api`, render. Nothing is decided here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from paramdelta_dist import stopping
from paramdelta_dist._version import __version__
from paramdelta_dist.cli import process
from paramdelta_dist.errors import Interrupted, ParamDeltaError, StorageError, UsageError
from paramdelta_dist.redaction import redacted, redacted_values

if TYPE_CHECKING:
    from paramdelta_dist.api.jobs import Task
    from paramdelta_dist.driver.consent import Confirm
    from paramdelta_dist.recipe.model import Recipe
    from paramdelta_dist.storage import StorageConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command to which text that is given and empty is a mistake: it comes from a variable that a script left unset."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            given = ctx.params.get(parameter.name or "")
            texts = given if isinstance(given, (list, tuple)) else (given,)
            if any(isinstance(text, str) and not text.strip() for text in texts):
                _fail(_empty(parameter), bool(ctx.params.get("as_json")))
        return super().invoke(ctx)


def _empty(parameter: Any) -> UsageError:
    option = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if option else (parameter.metavar or parameter.name.upper()).strip("[]")
    remedy = "give it a value, or leave it out" if option else "give it a value"
    return UsageError(f"{name}: an empty string is given, perhaps from a variable that is not set; {remedy}")


class _App(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Callable[[_Function], _Function]:
        return super().command(name, cls=_Command, **options)


class _Commands(TyperGroup):
    """Repeats no secret of an argument that it does not know."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _usage():
            return super().invoke(ctx)


@contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = redacted(message)  # type: ignore[attr-defined]
        raise


app = _App(
    name="paramdelta-dist",
    cls=_Commands,
    help="Merge very large models as a stream: from storage through workers to storage, on a laptop or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


class Do(str, Enum):
    merge = "merge"
    verify = "verify"
    analyze = "analyze"


class Engine(str, Enum):
    local = "local"
    ray = "ray"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


RecipeArgument = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Recipe file (YAML), local or at a URL.")]
BaseOption = Annotated[str | None, typer.Option("--base", help="In place of a recipe: the new base that receives the deltas.")]
DeltaOption = Annotated[
    list[str] | None, typer.Option("--delta", metavar="POST[:BASE][:WEIGHT]", help="In place of a recipe: a delta; may be repeated.")
]
OutputOption = Annotated[str | None, typer.Option("--output", help="In place of a recipe: the folder to write.")]
EngineOption = Annotated[
    Engine, typer.Option(help="Threads of this process, or actors of a Ray cluster (RAY_ADDRESS, else an embedded one).")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Shards made at a time. Default: the cores there are, or on a cluster as many as it gives.")
]
MemoryOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most memory of this process, or of each Ray worker: 2GiB. Default: half of the machine.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the merge that is in the output folder; of anything else, after asking or with --yes.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="With --overwrite: delete also weights, index and config that we have not made.")]
PatienceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="How long to wait while a cluster gives no worker at all: 5min. Default: 15min.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Dashboard of the cluster: http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine."
    ),
]
ReportOption = Annotated[
    bool,
    typer.Option(
        "--report",
        help="Measure on the way; a page goes to OUTPUT/.paramdelta/report/, of a sweep one that compares its points to OUTPUT/report/.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: pdd-0123456789ab-1.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; text for people goes to stderr.")]


def _version(wanted: bool) -> None:
    """While the options are read: without a command nothing else of a group is called."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None: ...


@app.command()
def merge(
    recipe: RecipeArgument = None,
    base: BaseOption = None,
    delta: DeltaOption = None,
    output: OutputOption = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    device: Annotated[Device, typer.Option(help="Where workers compute; auto is the CPU.")] = Device.auto,
    overwrite: OverwriteOption = False,
    yes: YesOption = False,
    patience: PatienceOption = None,
    report: ReportOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge: make the output of a recipe, or go on where an earlier run stopped."""
    with _reporting(as_json, "stopped. What is finished is kept; the same command goes on from there"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        with rendering.progress() as observer:
            result = api.merge(
                _recipe(recipe, base, delta, output),
                engine=engine.value,
                workers=workers,
                memory=_bytes(memory, "--memory"),
                device=device.value,
                overwrite=overwrite,
                confirm=_consent(yes),
                patience=_seconds(patience, "--patience"),
                report_page=report,
                observer=observer,
            )
        _show(rendering.merge_document(result), rendering.merge_summary, as_json)


@app.command()
def plan(
    recipe: RecipeArgument = None,
    base: BaseOption = None,
    delta: DeltaOption = None,
    output: OutputOption = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with the values it gets.")] = False,
    bandwidth: Annotated[str, typer.Option(metavar="SIZE", help="Bytes a second to and from storage, for the estimate of time.")] = "1GB",
    as_json: JsonOption = False,
) -> None:
    """Show what a merge would do: shards, traffic, memory, time. Reads headers only."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        speed = _bytes(bandwidth, "--bandwidth")
        given = _recipe(recipe, base, delta, output)
        budget = _bytes(memory, "--memory")
        made, report = api.plan(given, memory=budget if engine is Engine.local else None)
        points = max(1, len(given.points))
        sizing = api.plan_workers(made, engine=engine.value, workers=workers, memory=budget, points=points)
        document = api.plan_document(made, sizing, report)
        document["seconds_at_bandwidth"] = round((document["bytes_to_read"] + made.bytes_to_write) / (speed or 1), 1)
        document["bandwidth"] = speed
        if tensors:
            document["tensor_list"] = api.tensor_documents(made)
        _show(document, rendering.plan_tables, as_json)


@app.command()
def check(
    recipe: RecipeArgument = None,
    base: BaseOption = None,
    delta: DeltaOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that all models of a recipe fit together; lists every difference and what to do about it."""
    with _reporting(as_json, tells=True):
        from dataclasses import asdict

        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        report = api.check(_recipe(recipe, base, delta, output, output_needed=False))
        _show({"homologous": not report.mismatches, **asdict(report)}, rendering.check_table, as_json)
        if report.mismatches:
            raise typer.Exit(3)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Model folder, local or at a URL.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe, where storage settings are needed to reach the model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint holds, from its headers alone."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        _show(api.inspect(url, _storage(recipe)), rendering.inspect_tables, as_json)


@app.command("import")
def import_(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="mergekit's YAML file, local or at a URL.")],
    output: Annotated[
        str, typer.Option("--output", help="The folder that the recipe will write; of several configs, each one below it.")
    ] = "merged",
    recipe: Annotated[
        str | None,
        typer.Option("-o", "--recipe", metavar="FILE", help="Write the recipe here, not on stdout; of several configs, each to FILE-NAME."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a mergekit config into a recipe; tells in what the merge will differ, and refuses what cannot be mapped."""
    with _reporting(as_json, tells=recipe is None):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        made = api.import_mergekit(config, output=output)
        several: list[dict[str, Any]] = []
        for one in made:
            file = recipe if recipe is None or not one.name else _named(recipe, one.name)
            if file is not None:
                _write_new(file, redacted(one.text))
            elif not as_json:
                typer.echo(("---\n" if several else "") + redacted(one.text), nl=False)
            several.append({"name": one.name, "recipe": one.text, "written": file, "notes": list(one.notes)})
        _show({"recipes": several} if len(several) > 1 else several[0], rendering.import_lines, as_json)


def _named(path: str, name: str) -> str:
    stem, suffix = os.path.splitext(path)
    return f"{stem}-{name}{suffix}"


def _write_new(path: str, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already; name another file, or remove it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), local or at a URL.")],
    address: AddressOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, or return as soon as it is submitted.")] = True,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Make the plan here first, or leave that to the cluster.")] = True,
    ship: Annotated[
        str,
        typer.Option(
            metavar="image|package|wheel|FILE.whl",
            help="The code that runs: what the cluster has, what runs here, or a wheel (built from this checkout, or a file).",
        ),
    ] = "image",
    do: Annotated[Do, typer.Option("--do", help="What the job does: merge, verify the output, or analyze the deltas.")] = Do.merge,
    deep: Annotated[bool, typer.Option("--deep", help="With --do verify: read every byte and compare digests.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", help="With --do verify: another folder than the recipe's; with analyze: where its pages go.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="The cluster's Python that has the package. Default: Ray's own."),
    ] = None,
    workers: WorkersOption = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory of each worker: 2GiB.")] = None,
    device: Annotated[Device, typer.Option(help="Where workers compute; auto is the CPU.")] = Device.auto,
    overwrite: OverwriteOption = False,
    yes: YesOption = False,
    patience: PatienceOption = None,
    report: ReportOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a merge as a job on a Ray cluster. Submitting it again joins the job, goes on after a failure, or finds it done."""
    with _reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        merging = {"--overwrite": overwrite, "--yes": yes, "--report": report, "--device": device is not Device.auto}
        merging |= {"--patience": patience is not None, "--memory": memory is not None and do is Do.verify}
        task = _task(do, deep, output, merging)
        with rendering.job_view(sys.stderr) as view:
            document = api.submit(
                api.load_recipe(recipe),
                address=address,
                ship=ship,
                python=python,
                task=task,
                check=check,
                wait=wait,
                workers=workers,
                memory=_bytes(memory, "--memory"),
                device=device.value,
                overwrite=overwrite,
                yes=yes,
                confirm=_consent(yes),
                patience=_seconds(patience, "--patience"),
                report_page=report,
                listener=view,
            )
        _show(document, rendering.job_end if wait else rendering.job_id, as_json)
        raise typer.Exit(document.get("exit_code") or 0)


def _task(do: Do, deep: bool, output: str | None, merging: Mapping[str, bool]) -> Task | None:
    """What to submit in place of a merge, where options of another command are none of it."""
    from paramdelta_dist.api import Task

    given = {name: chosen and do is not Do.merge for name, chosen in merging.items()}
    given |= {"--deep": deep and do is not Do.verify, "--output": output is not None and do is Do.merge}
    wrong = [name for name in given if given[name]]
    if wrong:
        raise UsageError(f"{wrong[0]} is no option of --do {do.value}; leave it out")
    if do is Do.merge:
        return None
    return Task("verify" if do is Do.verify else "analyze", output, ("--deep",) if deep else ())


@app.command()
def jobs(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the merges that were submitted to a cluster."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        _show({"jobs": api.list_jobs(address, listener=rendering.notes())}, rendering.job_table, as_json)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit as it does.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a job has written."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        if not follow:
            log = api.logs(job, address=address, listener=rendering.notes())
            _print_json({"job": job, "log": log}) if as_json else print(_printable(log, keep="\n\t"), end="")
            return
        with rendering.job_view(sys.stderr if as_json else sys.stdout) as view:
            try:
                document = api.follow(job, address=address, listener=view)
            except rendering.NobodyReads:  # as in `logs JOB -f | head`: how the job ends is for others to learn
                return
        _show(document, rendering.job_end, as_json)
        raise typer.Exit(document["exit_code"])


@app.command()
def stop(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a job. What is finished is kept: submitting again goes on from there."""
    with _reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        _show(api.stop(job, wait=wait, address=address, listener=rendering.notes()), rendering.job_stopped, as_json)


@app.command()
def status(
    what: Annotated[str, typer.Argument(metavar="OUTPUT|JOB", help="Output folder, local or at a URL, or the id of a job.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The recipe, where storage settings are needed to reach the output.")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what is in an output folder and how far a merge into it, or a job, has come."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering
        from paramdelta_dist.jobs.job_id import parse_job_id

        if not parse_job_id(what):
            _show(api.status(what, _storage(recipe)), rendering.status_lines, as_json)
        elif recipe is not None:
            raise UsageError(f"--recipe: {what} is a job, which its cluster tells of; storage settings are for output folders")
        else:
            _show(api.job_status(what, address=address, listener=rendering.notes()), rendering.job_lines, as_json)


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="Output folder of a finished merge, local or at a URL.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare digests.")] = False,
    recompute: Annotated[
        float, typer.Option(metavar="FRACTION", help="Compute this fraction of the tiles from the inputs again: 0.01.")
    ] = 0.0,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The recipe, where storage settings are needed to reach output or inputs.")
    ] = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a finished output: structure and receipts, and on request every byte. Exit code 5 when something is wrong."""
    with _reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        with rendering.progress() as observer:
            document = api.verify(
                output,
                deep=deep,
                recompute=recompute,
                recipe=api.load_recipe(recipe) if recipe else None,
                engine=engine.value,
                workers=workers,
                observer=observer,
            )
        _show(document, rendering.verify_lines, as_json)
        if not document["ok"]:
            raise typer.Exit(5)


@app.command()
def analyze(
    recipe: RecipeArgument = None,
    base: BaseOption = None,
    delta: DeltaOption = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for the tables and the page, local or at a URL. Default: ./analysis.")
    ] = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyze the deltas of a recipe: sizes, cosines and distributions, as tables and an HTML page. Writes no model."""
    with _reporting(as_json, "stopped. Nothing of it is kept; the same command begins anew"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        with rendering.progress() as observer:
            document = api.analyze(
                _recipe(recipe, base, delta, None, output_needed=False),
                output,
                engine=engine.value,
                workers=workers,
                memory=_bytes(memory, "--memory"),
                observer=observer,
            )
        _show(document, rendering.analyze_lines, as_json)


@app.command()
def clean(
    output: Annotated[str, typer.Argument(help="Output folder, local or at a URL.")],
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Only what was begun at least this long ago: 24h, 30min, 7d.")] = "24h",
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is found; without it, it is only listed.")] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The recipe, where storage settings are needed to reach the output.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find, and with --yes remove, what killed merges left in an output: unfinished files and open multipart uploads."""
    with _reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        age = _seconds(older_than, "--older-than") or 0.0
        _show(api.clean(output, older_than=age, remove=yes, storage=_storage(recipe)), rendering.clean_lines, as_json)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(metavar="N", help="Whole outputs to keep, the newest, beside those that a pointer names.")],
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT_TEMPLATE", help="As in the recipe: s3://models/nightly/{date}. Default: the recipe's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is found; without it, it is only listed.")] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The recipe: for its output, and where storage settings are needed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find, and with --yes remove, old outputs of a recipe that runs every night; never the one that latest.json names."""
    with _reporting(as_json, "stopped. An output that is half removed is no model any more; the same command goes on"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        given = api.load_recipe(recipe) if recipe else None
        template = output or (given.output if given else None)
        if template is None:
            raise UsageError("name the outputs as the recipe does, such as s3://models/nightly/{date}, or give --recipe")
        document = api.prune(template, keep=keep, remove=yes, storage=given.storage_config if given else None)
        _show(document, rendering.prune_lines, as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A method, to be explained; left out, all are listed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The merge methods there are, or one of them: formula, parameters and their ranges, paper, an example recipe."""
    with _reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import rendering

        if name is None:
            _show({"methods": api.methods()}, rendering.method_list, as_json)
        else:
            _show(api.method(name), rendering.method_page, as_json)


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of the recipe, for editors and CI; with or without --json it is the same."""
    with _reporting(as_json):
        from paramdelta_dist import api

        _print_json(api.schema())


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where to put the demo's models.")] = "paramdelta-demo",
    engine: EngineOption = Engine.ray,
    as_json: JsonOption = False,
) -> None:
    """Make three small models, merge them on an embedded Ray, and compare the result with a merge in memory."""
    with _reporting(as_json):
        from paramdelta_dist.cli import demo as tour

        document = tour.run(folder, engine=engine.value)
        if as_json:
            _print_json(document)


@contextmanager
def _reporting(as_json: bool, stopped: str = "stopped", *, tells: bool = False) -> Iterator[None]:
    """Turn our errors into one message and their exit code; a bug keeps its traceback.

    `stopped` is what a stop means, unless what is done says something closer with `stopping.say`. With `tells`, all that comes of a
    command is what it prints: then a full disk there is an error, where a merge goes on.
    """
    waiting = stopping.Waiting()
    stopping.say(stopped)
    process.speak_by(lambda text: _tell(Interrupted(text), as_json))
    try:
        yield
        if tells:
            _require_told()
    except (KeyboardInterrupt, ParamDeltaError) as error:
        if waiting.over:
            raise typer.Exit(Interrupted.exit_code) from None  # the process has the last words
        _fail(error if isinstance(error, ParamDeltaError) else Interrupted(stopping.farewell()), as_json)


def _require_told() -> None:
    output = process.standard_output()
    if output is not None and output.lost is not None and not output.unread:
        raise StorageError(f"standard output took only a part of this: {output.lost.strerror}")


def _fail(error: ParamDeltaError, as_json: bool) -> None:
    _tell(error, as_json)
    raise typer.Exit(error.exit_code) from None


def _tell(error: ParamDeltaError, as_json: bool) -> None:
    if as_json:
        _print_json({"error": {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}})
    print("error:", _printable(str(error), keep="\n"), file=sys.stderr)


def _printable(value: Any, *, keep: str = "") -> Any:
    """Plain values without secrets, and without the characters that a terminal obeys: names among them may come from a stranger's file."""
    if isinstance(value, str):
        value = redacted(value)
        return value if value.isprintable() else "".join(c if c in keep or c.isprintable() else repr(c)[1:-1] for c in value)
    if isinstance(value, dict):
        return {_printable(key): _printable(entry) for key, entry in value.items()}
    return [_printable(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _show(document: dict[str, Any], render: Any, as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        render(_printable(document))


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(redacted_values(document), indent=2), flush=True)  # ASCII, so that no name and no terminal's encoding can stop it


def _recipe(source: str | None, base: str | None, deltas: list[str] | None, output: str | None, *, output_needed: bool = True) -> Recipe:
    flags = [name for name, value in (("--base", base), ("--delta", deltas), ("--output", output)) if value]
    if source is not None and flags:
        raise UsageError(f"give a recipe file or flags, not both (recipe {source}, {', '.join(flags)})")
    if source is not None:
        from paramdelta_dist.api import load_recipe

        return load_recipe(source)
    if not flags:
        raise UsageError("name a recipe file, or give --base, --delta and --output")
    if base is None or not deltas or (output is None and output_needed):
        raise UsageError(f"--base, --delta and --output are needed together (given: {', '.join(flags)})")
    from paramdelta_dist.recipe.flags import recipe_from_flags

    return recipe_from_flags(base=base, deltas=deltas, output=output or "memory://unused-by-check")


def _consent(yes: bool) -> Confirm | None:
    """Who says whether files that are not ours may go: --yes, whoever sits at the terminal, or nobody."""
    if yes:
        return lambda _: True
    return _ask if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() else None


def _ask(foreign: Mapping[str, Sequence[str]]) -> bool:
    from paramdelta_dist.driver.consent import listing

    print(f"--overwrite deletes what no merge of ours has made:\n{_printable(listing(foreign), keep=chr(10))}", file=sys.stderr)
    try:
        return typer.confirm("Delete these files?", err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None


def _storage(recipe: str | None) -> StorageConfig | None:
    """The storage settings of a recipe file, where one is given."""
    if recipe is None:
        return None
    from paramdelta_dist.api import load_recipe

    return load_recipe(recipe).storage_config


def _bytes(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    from paramdelta_dist.sizes import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None
    if size <= 0:
        raise UsageError(f"{flag}: {text} is nothing")
    return size


def _seconds(text: str | None, flag: str) -> float | None:
    if text is None:
        return None
    from paramdelta_dist.sizes import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None
