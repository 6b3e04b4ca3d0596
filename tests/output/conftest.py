"""Where nightly runs write, and which day it is."""

import pytest

from tests.nightly import Calendar, Place


@pytest.fixture
def disk(tmp_path, at):
    return Place(tmp_path, tmp_path, at.now)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path, monkeypatch, at):
    if request.param == "disk":
        return Place(tmp_path, tmp_path, at.now)
    server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{server.make_bucket()}", tmp_path, at.now)


@pytest.fixture
def at():
    """Makes it that day; before, it is Monday."""
    return Calendar()
