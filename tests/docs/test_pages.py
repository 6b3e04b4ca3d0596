"""What the pages of docs/ say is so: commands exist, files exist, recipes are recipes, figures and names are the code's."""

import json
import re

import pytest
import yaml

from docs.methods_page import page as page_of
from paramdelta_dist import errors
from paramdelta_dist.api.methods import methods
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests.docs.pages import CONTRIBUTING, DOCS, PAGES, README, REPOSITORY, blocks, named_files, our_commands, recipe_files
from tests.terminal import command

ALL_PAGES = (*PAGES, README, CONTRIBUTING)
BLOCKS = [block for page in ALL_PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "console", "text")]


def title(page):
    return str(page.relative_to(REPOSITORY))


def parse(arguments):
    """What the real command line makes of these arguments, without running anything."""
    group = command()
    with group.make_context("paramdelta-dist", list(arguments)) as context:
        name, chosen, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        with chosen.make_context(name, rest, parent=context) as inner:
            return inner.params


@pytest.mark.parametrize("page", ALL_PAGES, ids=title)
def test_every_file_that_a_page_names_exists(page):
    missing = [name for name in named_files(page) if not (REPOSITORY / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=title)
def test_every_link_to_a_heading_finds_it(page):
    for target in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        text = ((page.parent / file) if file else page).read_text()
        headings = {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}
        assert anchor in headings, target


@pytest.mark.parametrize("block", [block for block in SHELL if our_commands(block.text)], ids=str)
def test_the_command_line_takes_every_command_on_a_page(block):
    for arguments in our_commands(block.text):
        if "--help" not in arguments and arguments:
            parse(arguments)


def test_the_check_of_commands_can_fail():
    for wrong in (["merge", "x.yaml", "--no-such"], ["mrege", "x.yaml"], ["merge", "x.yaml", "--engine", "dask"], ["inspect"]):
        with pytest.raises(Exception, match=r"(?i)no such|not one of|missing"):
            parse(wrong)


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in PAGES for name in recipe_files(page)], ids=str)
def test_every_recipe_on_a_page_is_one(page, name):
    parse_recipe(recipe_files(page)[name], where=name)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "yaml")], ids=str)
def test_data_on_a_page_is_well_formed(block):
    json.loads(block.text) if block.language == "json" else list(yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page)], ids=str)
def test_a_block_says_what_it_is(block):
    assert block.language in ("bash", "python", "yaml", "toml", "json", "text")


def test_the_index_has_every_page():
    index = (DOCS / "README.md").read_text()
    names = [str(page.relative_to(DOCS)) for page in PAGES]
    assert [name for name in names if name != "README.md" and f"({name})" not in index] == []
    assert "(docs/README.md)" in README.read_text()


def test_the_readme_is_a_door():
    """It fits two screens, and names the two commands by which a stranger sees that all of it works."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 110] == []
    targets = re.findall(r"^([a-z]+)(?: [a-z]+)*:", (REPOSITORY / "Makefile").read_text(), re.M)
    commands = [command for block in blocks(README) for command in re.findall(r"^make (\w+)", block.text, re.M)]
    assert commands == ["demo", "test"]
    assert set(commands) <= set(targets)


@pytest.mark.parametrize("page", ALL_PAGES, ids=title)
def test_prose_has_lines_that_an_editor_shows_whole(page):
    """A row of a table is one line, however long."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.text, "")
    assert [line for line in text.splitlines() if len(line) > 140 and not line.lstrip().startswith("|")] == []


def test_the_table_of_exit_codes_is_that_of_the_errors():
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", (DOCS / "exit-codes.md").read_text(), re.M)}
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ParamDeltaError)]
    assert told >= {0, *(each.exit_code for each in classes)}


def test_the_kinds_of_errors_are_on_the_page_of_exit_codes():
    page = (DOCS / "exit-codes.md").read_text()
    inside = (errors.ParamDeltaError, errors.AlreadyExists)  # neither comes out of a command
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ParamDeltaError)]
    assert [each.__name__ for each in classes if each not in inside and f"`{each.__name__}`" not in page] == []


def test_the_page_of_methods_is_what_their_cards_say():
    cards = [card for card in methods() if card["package"] is None]
    assert (DOCS / "methods.md").read_text() == page_of(cards), "write it anew: python -m docs.methods_page > docs/methods.md"
