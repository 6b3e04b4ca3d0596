"""Nightly runs: models and outputs in one place, days, and deaths."""

import json
from datetime import UTC, date, datetime, time

import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.storage import StorageConfig, open_store
from tests.executors import acting, ends_after
from tests.models import recipe, save_model
from tests.watched_stores import watched

MONDAY, TUESDAY, WEDNESDAY = date(2026, 11, 23), date(2026, 11, 24), date(2026, 11, 25)


class Killed(BaseException):
    """The process ends here."""


def tensors(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{n}.weight": scale * torch.randn(40, 25, generator=generator) for n in range(4)}


class Calendar:
    """Says what day it is; a call makes it another."""

    def __init__(self):
        self.day = MONDAY

    def __call__(self, day):
        self.day = day

    def now(self):
        return datetime.combine(self.day, time(12), UTC)


class Place:
    """Where models lie and outputs are written: a folder on disk or a prefix of a bucket. What runs there goes by the clock `now`."""

    def __init__(self, root, folder, now):
        self.root, self.folder, self.now = root, folder, now
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9)):
            self.train(name, scale)

    def train(self, name, scale):
        """A model, there from now on, in place of what was there."""
        folder = save_model(self.folder / name, tensors(scale), files=2)
        for path in folder.iterdir() if self.root != self.folder else ():
            open_store(f"{self.root}/{name}", StorageConfig()).write(path.name, path.read_bytes())

    def recipe(self, template="{date}", **more):
        new, post, old = (f"{self.root}/{name}" for name in ("new", "post", "old"))
        return recipe(new, post, old, f"{self.root}/nightly/{template}", shard_size="5KB", **more)

    def plan(self, made):
        return api.plan(made, now=self.now)

    def merge(self, made, resources=Resources(), **options):  # noqa: B008  # it is frozen
        return merge_with(made, resources, now=self.now, **options)

    @property
    def store(self):
        return open_store(f"{self.root}/nightly", StorageConfig())

    def pointer(self, name="latest.json"):
        return json.loads(self.store.read(name, limit=1 << 16))

    def outputs(self):
        return sorted({name.partition("/")[0] for name in self.store.list() if name.endswith(".safetensors")})

    def state(self):
        return self.store.list()

    def expire(self, *names):
        """What a lifecycle rule does to objects that are old enough."""
        for name in names:
            self.store.delete(name)


def killed_at(request, name):
    """The process ends before it sends this request about this object."""

    def before(store, asked, about):
        if (asked, about) == (request, name):
            raise Killed

    return watched(before)


def killed_after(shards):
    """Resources of a process that ends after so many shards."""
    return acting(ends_after(shards, Killed()))
