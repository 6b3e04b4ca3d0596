"""The frame of a page: one HTML file with everything in it, for a browser without a network, a phone, and paper."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files

from paramdelta_dist._version import __version__
from paramdelta_dist.analysis.page.svg import text


def framed(title: str, lead: str, sections: Sequence[str]) -> bytes:
    """The whole page. `title` is text, `lead` (a line below it) and `sections` are HTML; empty ones are left out."""
    assets = files(__package__) / "assets"
    style, script = ((assets / name).read_text() for name in ("style.css", "script.js"))
    document = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{text(title)}</h1>
<p class="soft">{lead}</p>
{"".join(section for section in sections if section)}
<footer>Made by paramdelta-dist {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>
</main>
<script>
{script}</script>
</body>
</html>
"""
    return document.encode(errors="backslashreplace")
