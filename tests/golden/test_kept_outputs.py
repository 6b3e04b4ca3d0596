"""Outputs of versions before are known by this one, which writes the same files."""

import pytest

from paramdelta_dist import api
from tests.golden import kept
from tests.golden.merges import recipes

VERSIONS = sorted(kept.KEPT.iterdir())
NAMES = sorted(recipes(""))
every_output = pytest.mark.parametrize("output", [v / name for v in VERSIONS for name in NAMES], ids=lambda p: f"{p.parent.name}-{p.name}")


@pytest.fixture(scope="module")
def inputs(s3_server, tmp_path_factory):
    kept.upload_inputs(s3_server, tmp_path_factory.mktemp("golden") / "inputs")
    return s3_server.environ


@pytest.fixture(autouse=True)
def _reachable(inputs, monkeypatch):
    for name, value in inputs.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_writes_the_files_that_the_version_before_wrote(tmp_path, name):
    kept.merge(name, tmp_path / name)
    made, before = kept.content(tmp_path / name), kept.content(VERSIONS[-1] / name)
    assert sorted(made) == sorted(before)
    assert made == before


def times(folder):
    """When each file was written, save the page of a sweep: that says where its points lie, which is elsewhere now."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "sweep.json"}


@every_output
def test_an_output_of_a_version_before_is_finished_and_whole(tmp_path, output):
    folder = kept.restore(output, tmp_path / output.name)
    before = times(folder)
    assert kept.merge(output.name, folder).state == "nothing to do"
    assert times(folder) == before
    points = [path.parent.parent for path in folder.rglob("commit.json")]
    assert points
    for point in points:
        assert api.status(str(point))["state"] == "complete"
        found = api.verify(str(point), deep=True)
        assert found["ok"], found


@every_output
def test_an_output_that_a_version_before_left_unfinished_is_gone_on_with(tmp_path, output):
    folder = kept.restore(output, tmp_path / output.name)
    expected = kept.content(folder)
    finished = [path.parent.parent for path in folder.rglob("commit.json")]
    kept_shards = set()
    for point in finished:
        shards = sorted(point.glob("model*.safetensors"))
        (point / ".paramdelta/receipts" / f"{shards[0].name}.json").unlink()
        shards[0].unlink()
        (point / ".paramdelta/commit.json").unlink()
        (point / "config.json").unlink()
        (point / "model.safetensors.index.json").unlink(missing_ok=True)
        kept_shards |= {(shard, shard.stat().st_mtime_ns) for shard in shards[1:]}
    (folder / "sweep.json").unlink(missing_ok=True)
    assert kept.merge(output.name, folder).state == "merged"
    assert {(shard, shard.stat().st_mtime_ns) for shard, _ in kept_shards} == kept_shards
    made = kept.content(folder)
    ours = {name for name in expected if ".paramdelta" in name or name == "sweep.json"}
    assert {name: data for name, data in made.items() if name not in ours} == {n: data for n, data in expected.items() if n not in ours}
