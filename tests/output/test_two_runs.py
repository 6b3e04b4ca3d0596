"""Two runs and one folder: at each request that one makes to the store, the other comes in and runs whole.

Whoever comes in with --overwrite has the folder in the end, complete; whoever lost it says so. What a process does that is stopped
at a step for as long as the other runs is the same, and needs no process: see tests/chaos for those.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import OutputOccupied, OutputTaken
from paramdelta_dist.storage import StorageConfig, open_store
from tests.executors import acting
from tests.models import recipe, save_model
from tests.watched_stores import stored_by, watched

CALLS = ("identify", "list", "read", "put", "write", "delete")


def tensors(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{n}.weight": scale * torch.randn(100, 50, generator=generator) for n in range(4)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = [save_model(root / name, tensors(scale), files=2) for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))]
    (made[1] / "generation_config.json").write_text("{}")
    return made


class Meeting:
    """Counts the requests to one folder of the run in the foreground, and lets something happen at one of them."""

    def __init__(self, url, at, happens):
        self.url, self.at, self.happens, self.calls, self.met = url, at, happens, 0, False
        self._lock, self._inside = threading.Lock(), False

    def arrive(self, store):
        if store.url != self.url or self._inside:
            return
        with self._lock:
            self.calls += 1
            if self.calls != self.at or self.met:
                return
            self.met = self._inside = True
            try:
                self.happens()
            finally:
                self._inside = False

    @property
    def storage(self):
        """The stores of the run in the foreground."""

        def asked(store, request, name):
            if request in CALLS:
                self.arrive(store)

        return watched(asked, asked)


def stop():
    raise KeyboardInterrupt


class Ground:
    """A place for outputs, on disk or on S3, and the two recipes that fight for one of them."""

    def __init__(self, models, url, quiet):
        self.models, self.url, self.quiet = models, url, quiet

    def run(self, weight, storage=None, resources=Resources(workers=1), **more):  # noqa: B008  # it is frozen
        made = recipe(*self.models, self.url, weight=weight, shard_size="45KB")
        return merge_with(made if storage is None else stored_by(made, storage), resources, **more)

    def files(self):
        store = open_store(self.url, StorageConfig())
        return {name: store.read(name, limit=1 << 20) for name in store.list()}

    def assert_is(self, weight):
        """Complete, verified, and with no file of the other run."""
        assert api.verify(self.url, deep=True)["problems"] == []
        assert api.status(self.url)["state"] == "complete"
        found = self.files()
        model = {name: data for name, data in found.items() if not name.startswith(".paramdelta/") and name != "README.md"}
        assert model == self.quiet[weight]
        books = {name for name in found if name.startswith(".paramdelta/")}
        assert books == {f".paramdelta/{name}.json" for name in ("plan", "commit", "report")} | {
            f".paramdelta/receipts/{name}.json" for name in model if name.endswith(".safetensors")
        }
        if not self.url.startswith("s3"):
            assert not list(Path(self.url).rglob("*.part"))


@pytest.fixture(scope="module")
def quiet(models, tmp_path_factory):
    """What a loader reads of either merge, undisturbed."""
    made = {}
    for weight in (1.0, 0.5):
        ground = Ground(models, str(tmp_path_factory.mktemp("quiet") / "out"), {})
        ground.run(weight)
        made[weight] = {n: d for n, d in ground.files().items() if not n.startswith(".paramdelta/") and n != "README.md"}
    return made


@pytest.fixture
def ground(request, models, quiet, tmp_path, monkeypatch):
    if request.param == "disk":
        yield Ground(models, str(tmp_path / "out"), quiet)
        return
    server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = server.make_bucket()
    yield Ground(models, f"s3://{bucket}/out-{secrets.token_hex(4)}", quiet)
    assert server.open_uploads(bucket) == []


def moments(few, most):
    """Numbers of requests: some of them always, all of them where there is time."""
    return [pytest.param(n, marks=() if n in few else pytest.mark.slow) for n in range(1, most + 1)]


@pytest.mark.parametrize("at", moments({9, 13, 25, 33, 41, 58, 63, 72, 74}, 90))
@pytest.mark.parametrize("ground", ["disk", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_run_that_is_overtaken_at_any_moment_says_so_and_leaves_the_winner_whole(ground, at):
    ground_meeting = Meeting(ground.url, at, lambda: ground.run(0.5, overwrite=True))
    try:
        ended, refused = ground.run(1.0, ground_meeting.storage).state, None
    except OutputOccupied as error:
        ended, refused = "refused", error
    if not ground_meeting.met:
        assert ended == "merged"
        assert at > 50, "the matrix ends where the run does"
        return
    ground.assert_is(0.5)
    if refused:
        assert refused.exit_code == 3
        assert isinstance(refused, OutputTaken) or "belongs to another merge" in str(refused), "it had not begun"
    else:
        assert ground_meeting.calls <= at + 1, "the other one came after its last word"


@pytest.mark.parametrize("at", moments({2, 6, 12, 20}, 40))
@pytest.mark.parametrize("ground", ["disk", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_comes_in_while_another_takes_over_mixes_nothing(ground, at, finished):
    """The one that is taken from is begun, or finished; it comes in at each request of the one that takes over."""
    if finished:
        ground.run(1.0)
    else:
        with pytest.raises(KeyboardInterrupt):
            ground.run(1.0, resources=acting(after=stop))
    inner = []

    def comes_in():
        try:
            inner.append(ground.run(1.0).state)
        except OutputOccupied as error:
            inner.append(str(error))

    meeting = Meeting(ground.url, at, comes_in)
    try:
        ground.run(0.5, meeting.storage, overwrite=True)
    except OutputTaken:
        assert inner == ["merged"]
        ground.assert_is(1.0)
        return
    ground.assert_is(0.5)


@pytest.mark.parametrize("ground", ["disk", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("at", moments({5, 30}, 60))
def test_a_merge_that_is_begun_anew_by_the_same_recipe_is_lost_to_the_one_that_began_it(ground, at):
    meeting = Meeting(ground.url, at, lambda: ground.run(1.0, overwrite=True))
    with suppress(OutputTaken):
        assert ground.run(1.0, meeting.storage).state in ("merged", "nothing to do")
    ground.assert_is(1.0)


@pytest.mark.parametrize("ground", ["disk"], indirect=True)
def test_a_take_over_that_was_killed_is_ended_by_the_next_run(ground):
    """Whether that is told to overwrite again or not; and what was a model before stays one until the first file goes."""
    ground.run(1.0)
    for count in range(1, 8):
        deleted = []

        def deleting(store, request, name, deleted=deleted, count=count):
            if request == "delete":
                deleted.append(name)
                if len(deleted) == count:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ground.run(0.5, watched(deleting), overwrite=True)
        assert api.status(ground.url)["state"] == "unfinished"
        assert ground.run(0.5).state == "merged"
        ground.assert_is(0.5)
        ground.run(1.0, overwrite=True)
