"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Do(StrEnum):
    merge = "merge"
    verify = "verify"
    analyze = "analyze"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


class Device(StrEnum):
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

MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure", help="Of a quantised base: read some of the weights, and say what rounding to its scheme leaves of the deltas."
    ),
]

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: pdd-0123456789ab-1.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; text for people goes to stderr.")]
