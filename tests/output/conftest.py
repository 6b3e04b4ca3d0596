"""Where nightly runs write, and which day it is."""

import pytest

from paramdelta_dist.output import series
from tests.nightly import MONDAY, Place


@pytest.fixture
def disk(tmp_path):
    return Place(tmp_path, tmp_path)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return Place(tmp_path, tmp_path)
    server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{server.make_bucket()}", tmp_path)


@pytest.fixture
def at(monkeypatch):
    """Make it that day."""

    def at(day):
        monkeypatch.setattr(series, "today", lambda: day)

    at(MONDAY)
    return at
