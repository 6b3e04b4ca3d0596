"""No dead end: what a refusal of an input offers is done, and ends with a finished merge."""

import re

import pytest

from tests.remedies.listed import LISTED
from tests.remedies.sites import PACKAGE, sites
from tests.remedies.table import WALKS
from tests.remedies.walking import walk


@pytest.mark.parametrize("found", WALKS, ids=[f"{number} {each.offers[:40]}" for number, each in enumerate(WALKS)])
def test_the_way_that_a_message_offers_ends_with_a_merge(tmp_path, found):
    walk(found, tmp_path)


def test_every_place_that_refuses_is_walked_from_or_listed_with_a_reason():
    """A new message wants a walk in table.py; where none can be, a line in listed.py says why."""
    unknown = [str(site) for site in sites() if not _walked(site) and not _listed(site)]
    assert not unknown, "no walk and no reason for:\n" + "\n".join(unknown)


def test_every_walk_and_every_line_of_the_list_is_of_a_place_that_is_there():
    found = list(sites())
    stale = [f"{each.at}: {each.says}" for each in WALKS if not any(_is_in(site, each.at) and each.says in site.text for site in found)]
    stale += [f"{module}: {what}" for module, what, _ in LISTED if not any(_is_listed_by(site, module, what) for site in found)]
    assert not stale, stale


def test_tests_that_the_list_names_are_there():
    names = {name for _, _, reason in LISTED for name in re.findall(r"tests/[\w/]+\.py", reason)}
    assert names
    assert not [name for name in names if not (PACKAGE.parent / name).exists()]


def _walked(site):
    return any(_is_in(site, each.at) and each.says in site.text for each in WALKS)


def _listed(site):
    return any(_is_listed_by(site, module, what) for module, what, _ in LISTED)


def _is_listed_by(site, module, what):
    return _is_in(site, module) and (what in ("*", site.function) or what in site.text)


def _is_in(site, module):
    """Whether a place is in a module or, where that ends with a slash, in a room."""
    return site.module == module or (module.endswith("/") and site.module.startswith(module))
