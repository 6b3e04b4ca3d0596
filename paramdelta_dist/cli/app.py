"""The application that typer runs: its usage errors are told as all others are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from paramdelta_dist.cli.answers import fail
from paramdelta_dist.errors import UsageError
from paramdelta_dist.redaction import redacted

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command to which text that is given and empty is a mistake: it comes from a variable that a script left unset."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            given = ctx.params.get(parameter.name or "")
            texts = given if isinstance(given, (list, tuple)) else (given,)
            if any(isinstance(text, str) and not text.strip() for text in texts):
                fail(_empty(parameter), bool(ctx.params.get("as_json")))
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
