"""The manual, README and CONTRIBUTING as tests see them: fenced blocks with what a comment before them says, files and links they name."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = REPOSITORY / "README.md"
CONTRIBUTING = REPOSITORY / "CONTRIBUTING.md"

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (not run|setup): ([^\n]*) -->\s*$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?<![\w./:-])((?:cluster|deploy|docs|benchmarks|tests|paramdelta_dist)/[\w./-]*[\w/])")


@dataclass(frozen=True)
class Block:
    """A fenced block. `<!-- not run: why -->` before it keeps its commands from being run, `<!-- setup: command -->` runs one before."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    setup: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    found = []
    for match in _FENCE.finditer(source):
        comments = dict(_comments(source[: match.start()]))
        line = source.count("\n", 0, match.start()) + 1
        text = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(page, line, match[2], text, comments.get("not run"), comments.get("setup")))
    return found


def _comments(before: str) -> list[tuple[str, str]]:
    found = []
    while comment := _COMMENT.search(before):
        found.append((comment[1], comment[2]))
        before = before[: comment.start()]
    return found


def our_commands(text: str) -> list[list[str]]:
    """The arguments of every `paramdelta-dist` in a shell script, after its continuation lines are joined."""
    commands = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        starts = [place for place, word in enumerate(words) if word == "paramdelta-dist"]
        for start in starts:
            end = next((n for n in range(start, len(words)) if re.fullmatch(r"[|&;<>()]+", words[n])), len(words))
            arguments = words[start + 1 : end]
            commands.append(arguments[:-1] if arguments and end < len(words) and arguments[-1].isdigit() else arguments)  # 2>file
    return commands


def named_files(page: Path) -> list[str]:
    """Paths of this repository, relative to its root, that a page names in its text, its commands or its links."""
    source = page.read_text()
    linked = [target.partition("#")[0] for target in _LINK.findall(source) if "://" not in target]
    paths = [str((page.parent / target).resolve().relative_to(REPOSITORY)) for target in linked if target]
    return sorted({*paths, *_FILE.findall(source)})


def recipe_files(page: Path) -> dict[str, str]:
    """The YAML blocks whose first line is `# name.yaml`, by that name."""
    named = [(re.match(r"# (\S+\.ya?ml)\b", block.text), block) for block in blocks(page) if block.language == "yaml"]
    return {match[1]: block.text for match, block in named if match}
