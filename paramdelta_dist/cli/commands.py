"""The command line: parse, call the function of the same name in `api`, render. Nothing is decided here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paramdelta_dist._version import __version__
from paramdelta_dist.errors import UsageError
from paramdelta_dist.redaction import redacted

if TYPE_CHECKING:
    from paramdelta_dist.api.jobs import Task
from paramdelta_dist.cli.answers import print_json, printable, reporting, show
from paramdelta_dist.cli.app import app
from paramdelta_dist.cli.arguments import asked_consent, parse_bytes, parse_duration, recipe_of, storage_of
from paramdelta_dist.cli.options import (
    AddressOption,
    BaseOption,
    DeltaOption,
    Device,
    Do,
    Engine,
    EngineOption,
    JobArgument,
    JsonOption,
    MeasureOption,
    MemoryOption,
    OutputOption,
    OverwriteOption,
    PatienceOption,
    RecipeArgument,
    ReportOption,
    WorkersOption,
    YesOption,
)

__all__ = ["app"]


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
    with reporting(as_json, "stopped. What is finished is kept; the same command goes on from there"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import progress, tables

        consent = asked_consent(yes)  # before the progress: rich's stand-in for stderr is no terminal, up to rich 14
        with progress.progress() as observer:
            result = api.merge(
                recipe_of(recipe, base, delta, output),
                engine=engine.value,
                workers=workers,
                memory=parse_bytes(memory, "--memory"),
                device=device.value,
                overwrite=overwrite,
                confirm=consent,
                patience=parse_duration(patience, "--patience"),
                report_page=report,
                observer=observer,
            )
        show(tables.merge_document(result), tables.merge_summary, as_json)


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
    measure: MeasureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a merge would do: shards, traffic, memory, time. Reads headers only."""
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        speed = parse_bytes(bandwidth, "--bandwidth")
        given = recipe_of(recipe, base, delta, output)
        budget = parse_bytes(memory, "--memory")
        made, report = api.plan(given, memory=budget if engine is Engine.local else None)
        points = max(1, len(given.points))
        sizing = api.plan_workers(made, engine=engine.value, workers=workers, memory=budget, points=points)
        document = api.plan_document(made, sizing, report)
        document["seconds_at_bandwidth"] = round((document["bytes_to_read"] + made.bytes_to_write) / (speed or 1), 1)
        document["bandwidth"] = speed
        if tensors:
            document["tensor_list"] = api.tensor_documents(made)
        if measure:
            document |= api.rounding_document(made)
        show(document, tables.plan_tables, as_json)


@app.command()
def check(
    recipe: RecipeArgument = None,
    base: BaseOption = None,
    delta: DeltaOption = None,
    output: OutputOption = None,
    measure: MeasureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check that all models of a recipe fit together; lists every difference and what to do about it."""
    with reporting(as_json, tells=True):
        from dataclasses import asdict

        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        given = recipe_of(recipe, base, delta, output, output_needed=False)
        report = api.check(given)
        document = {"homologous": not report.mismatches, **asdict(report)}
        if measure and not report.mismatches:
            document |= api.rounding_document(api.plan(given)[0])
        show(document, tables.check_table, as_json)
        if report.mismatches:
            raise typer.Exit(3)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Model folder, local or at a URL.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe, where storage settings are needed to reach the model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint holds, from its headers alone."""
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        show(api.inspect(url, storage_of(recipe)), tables.inspect_tables, as_json)


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
    with reporting(as_json, tells=recipe is None):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        made = api.import_mergekit(config, output=output)
        several: list[dict[str, Any]] = []
        for one in made:
            file = recipe if recipe is None or not one.name else _named(recipe, one.name)
            if file is not None:
                _write_new(file, redacted(one.text))
            elif not as_json:
                typer.echo(("---\n" if several else "") + redacted(one.text), nl=False)
            several.append({"name": one.name, "recipe": one.text, "written": file, "notes": list(one.notes)})
        show({"recipes": several} if len(several) > 1 else several[0], tables.import_lines, as_json)


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
    with reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import job_view, tables

        merging = {"--overwrite": overwrite, "--yes": yes, "--report": report, "--device": device is not Device.auto}
        merging |= {"--patience": patience is not None, "--memory": memory is not None and do is Do.verify}
        task = _task(do, deep, output, merging)
        consent = asked_consent(yes)
        with job_view.job_view(sys.stderr) as view:
            document = api.submit(
                api.load_recipe(recipe),
                address=address,
                ship=ship,
                python=python,
                task=task,
                check=check,
                wait=wait,
                workers=workers,
                memory=parse_bytes(memory, "--memory"),
                device=device.value,
                overwrite=overwrite,
                yes=yes,
                confirm=consent,
                patience=parse_duration(patience, "--patience"),
                report_page=report,
                listener=view,
            )
        show(document, tables.job_end if wait else tables.job_id, as_json)
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
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import job_view, tables

        show({"jobs": api.list_jobs(address, listener=job_view.notes())}, tables.job_table, as_json)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit as it does.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a job has written."""
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import job_view, tables

        if not follow:
            log = api.logs(job, address=address, listener=job_view.notes())
            print_json({"job": job, "log": log}) if as_json else print(printable(log, keep="\n\t"), end="")
            return
        with job_view.job_view(sys.stderr if as_json else sys.stdout) as view:
            try:
                document = api.follow(job, address=address, listener=view)
            except job_view.NobodyReads:  # as in `logs JOB -f | head`: how the job ends is for others to learn
                return
        show(document, tables.job_end, as_json)
        raise typer.Exit(document["exit_code"])


@app.command()
def stop(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a job. What is finished is kept: submitting again goes on from there."""
    with reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import job_view, tables

        show(api.stop(job, wait=wait, address=address, listener=job_view.notes()), tables.job_stopped, as_json)


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
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import job_view, tables
        from paramdelta_dist.jobs.job_id import parse_job_id

        if not parse_job_id(what):
            show(api.status(what, storage_of(recipe)), tables.status_lines, as_json)
        elif recipe is not None:
            raise UsageError(f"--recipe: {what} is a job, which its cluster tells of; storage settings are for output folders")
        else:
            show(api.job_status(what, address=address, listener=job_view.notes()), tables.job_lines, as_json)


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
    with reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import progress, tables

        with progress.progress() as observer:
            document = api.verify(
                output,
                deep=deep,
                recompute=recompute,
                recipe=api.load_recipe(recipe) if recipe else None,
                engine=engine.value,
                workers=workers,
                observer=observer,
            )
        show(document, tables.verify_lines, as_json)
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
    with reporting(as_json, "stopped. Nothing of it is kept; the same command begins anew"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import progress, tables

        with progress.progress() as observer:
            document = api.analyze(
                recipe_of(recipe, base, delta, None, output_needed=False),
                output,
                engine=engine.value,
                workers=workers,
                memory=parse_bytes(memory, "--memory"),
                observer=observer,
            )
        show(document, tables.analyze_lines, as_json)


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
    with reporting(as_json):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        age = parse_duration(older_than, "--older-than") or 0.0
        show(api.clean(output, older_than=age, remove=yes, storage=storage_of(recipe)), tables.clean_lines, as_json)


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
    with reporting(as_json, "stopped. An output that is half removed is no model any more; the same command goes on"):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        given = api.load_recipe(recipe) if recipe else None
        template = output or (given.output if given else None)
        if template is None:
            raise UsageError("name the outputs as the recipe does, such as s3://models/nightly/{date}, or give --recipe")
        document = api.prune(template, keep=keep, remove=yes, storage=given.storage_config if given else None)
        show(document, tables.prune_lines, as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A method, to be explained; left out, all are listed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The merge methods there are, or one of them: formula, parameters and their ranges, paper, an example recipe."""
    with reporting(as_json, tells=True):
        from paramdelta_dist import api
        from paramdelta_dist.cli import tables

        if name is None:
            show({"methods": api.methods()}, tables.method_list, as_json)
        else:
            show(api.method(name), tables.method_page, as_json)


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of the recipe, for editors and CI; with or without --json it is the same."""
    with reporting(as_json):
        from paramdelta_dist import api

        print_json(api.schema())


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where to put the demo's models.")] = "paramdelta-demo",
    engine: EngineOption = Engine.ray,
    as_json: JsonOption = False,
) -> None:
    """Make three small models, merge them on an embedded Ray, and compare the result with a merge in memory."""
    with reporting(as_json):
        from paramdelta_dist.cli import demo as tour

        document = tour.run(folder, engine=engine.value)
        if as_json:
            print_json(document)
