"""What programs read of ours, and the bytes of every method, are what they were."""

import json

import pytest

from paramdelta_dist.methods import METHODS
from tests.golden.merges import make_inputs
from tests.golden.surfaces import DIGESTS, SURFACES, bytes_of, surfaces


def test_what_programs_read_is_what_it_was(tmp_path):
    """Where a change is meant: `python -m tests.golden.surfaces`."""
    now, before = surfaces(tmp_path), SURFACES.read_text().splitlines()
    assert [line for line in before if line not in now] == []
    assert [line for line in now if line not in before] == []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    make_inputs(root)
    return root


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_makes_the_bytes_that_it_made(tmp_path, models, method):
    assert bytes_of(method, models, tmp_path) == {
        key: d for key, d in json.loads(DIGESTS.read_text()).items() if key.split()[0] == method.name
    }
