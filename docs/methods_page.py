"""The page of the methods, made from their cards: `python -m docs.methods_page > docs/methods.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from paramdelta_dist.api.methods import methods

WIDTH = 140
"""Columns of a line of prose."""
SCOPES = {
    "element": "an element depends on the same element of the inputs",
    "row": "an element depends on its row",
    "tensor": "an element may depend on its whole tensor; one that is too large for a tile is read more than once",
    "model": "an element may depend on all tensors; the models are read more than once then",
}

HEAD = """\
# Methods

This page is made from the cards of the methods by `python -m docs.methods_page`; a test holds that it is what they say.
`paramdelta-dist methods` lists the same, with methods of other packages, and `paramdelta-dist methods ties` explains one.

All of them run out of core, resume, verify, and give the same bytes everywhere. Where a method looks at a whole tensor first, tensors that
fit the memory budget are read once, larger ones once more for each look; `plan` says how often. Other packages can bring methods of their
own: [writing a method](writing-a-method.md).

```yaml
method: ties
parameters: {density: 0.2, trim: model}      # for all deltas; what is allowed for each may stand in a delta too
base: s3://models/Mistral-7B
deltas:
  - {post: s3://models/Mistral-7B-math}
  - {post: s3://models/Mistral-7B-code, weight: 0.7, density: 0.3}
output: s3://models/Mistral-7B-math-code
```

A parameter that is marked "in each" may also stand in a delta or model, where it counts for that one alone. Every number may be
[rules by tensor](recipe.md#values-by-tensor).
"""


def page(cards: Sequence[Mapping[str, Any]]) -> str:
    """The page for these methods, which are plain values as `paramdelta_dist.api.methods` gives them."""
    return "\n".join([HEAD, *_overview(cards), *(line for card in cards for line in _section(card)), ""])


def _overview(cards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| family | method | what it does |", "| --- | --- | --- |")
    for card in cards:
        yield f"| {card['family']} | [`{card['name']}`](#{card['name']}) | {_cell(card['title'])} |"


def _section(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## {card['name']}", "", f"{card['title']}.", "")
    yield from ("| | |", "| --- | --- |")
    yield f"| formula | {_code(card['formula'])} |"
    yield f"| takes | {_cell(card['takes'])} |"
    yield f"| scope | {card['scope']}: {SCOPES[card['scope']]} |"
    yield f"| paper | {card['paper']} |"
    if card["notes"]:
        yield from ("", *wrap(card["notes"], WIDTH, break_long_words=False, break_on_hyphens=False))
    if card["parameters"]:
        yield from ("", "| parameter | meaning | value | default | in each |", "| --- | --- | --- | --- | --- |")
        yield from (_parameter(parameter) for parameter in card["parameters"])
    yield from ("", "```yaml", *card["example"], "```")


def _parameter(parameter: Mapping[str, Any]) -> str:
    default = parameter["default"]
    shown = "has to be given" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"
    each = "yes" if parameter["for_each"] else "no"
    return f"| `{parameter['name']}` | {_cell(parameter['meaning'])} | {parameter['range']} | {shown} | {each} |"


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return text.replace("|", "\\|")


def main() -> None:
    """Print the page for the methods of this package."""
    sys.stdout.write(page([card for card in methods() if card["package"] is None]))


if __name__ == "__main__":
    main()
