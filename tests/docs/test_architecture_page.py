"""The page of the architecture is about this code: its rooms are on the floors they have, its files and names are there."""

import re

import pytest

from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.index import INDEX_NAME
from paramdelta_dist.output import names as output_names
from tests.docs.pages import DOCS
from tests.test_architecture import LEVEL_OF, LEVELS, PACKAGE

PAGE = (DOCS / "architecture.md").read_text()


def rows(text):
    """The cells of every row of the tables in a text, but for their heads."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines if not set(line) <= set("-| ")]


def section(title):
    """What stands below a heading, up to the next of its level."""
    level = title.partition(" ")[0]
    return re.search(rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def test_every_room_is_on_its_floor_and_none_is_missing():
    told = {}
    for floor, room, _ in rows(section("## The house"))[1:]:
        for name in quoted(room):
            told[name.removesuffix("/").removesuffix(".py")] = int(floor)
    assert told == {name: level for name, level in LEVEL_OF.items() if level < len(LEVELS) - 1}


def test_no_room_of_the_package_is_without_a_floor():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == LEVEL_OF.keys()


def test_every_word_of_the_glossary_is_there_once_and_named_in_the_code():
    words = [(word, code) for word, _, code in rows(section("## Glossary")) if code != "in the code"]
    single = [each for word, _ in words for each in word.split(", ")]
    assert len(single) == len(set(single))
    for word, code in words:
        file, *names = quoted(code)
        assert names, word
        source = (PACKAGE / file).read_text()
        for name in names:
            assert re.search(rf"^\s*((class|def) {name}\b|{name}\b\s*[:=])", source, re.M), f"{file} does not define {name}"


@pytest.mark.parametrize("walk", re.findall(r"^### (.* to the .*)$", PAGE, re.MULTILINE))
def test_a_walk_goes_through_files_that_are_there_and_is_counted_right(walk):
    text = section(f"### {walk}")
    steps = [(quoted(file)[0], quoted(names)) for file, names, _ in rows(text) if file != "file"]
    for file, names in steps:
        source = (PACKAGE / file).read_text()
        assert [name for name in names if not re.search(rf"\b{name}\b", source)] == [], file
    files = {file for file, _ in steps}
    names = {name for _, found in steps for name in found}
    assert text.strip().startswith(f"{len(files)} files, {len(names)} names."), (len(files), len(names))


def test_what_lies_in_an_output_folder_is_drawn():
    drawn = section("## What lies in an output folder")
    ours = [value for name, value in vars(output_names).items() if name.isupper() and name != "FOLDER"] + [CONFIG_NAME, INDEX_NAME]
    assert len(ours) > 10
    for told in (drawn, output_names.__doc__):
        assert [name for name in ours if name.removeprefix(f"{output_names.FOLDER}/") not in told] == []
