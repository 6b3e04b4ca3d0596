"""Stores that are given to a run in place of those it opens: a test learns of each request, and may come in before or after it."""

from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import StorageConfig

REQUESTS = ("identify", "list", "read", "read_range", "put", "write", "delete", "publish")


class Watched:
    """A store that calls `before(store, request, name)` and `after(store, request, name)` around every request to it; `name` is None
    for those that are about no object."""

    def __init__(self, store, before, after):
        self.url, self.remote = store.url, store.remote
        self._store, self._before, self._after = store, before, after

    def __getattr__(self, request):
        real = getattr(self._store, request)
        if request not in REQUESTS:
            return real

        def call(*arguments, **options):
            name = arguments[0] if arguments else None
            self._before(self._store, request, name)
            result = real(*arguments, **options)
            self._after(self._store, request, name)
            return result

        return call


def nothing(store, request, name):
    pass


def watched(before=nothing, after=nothing, config=None):
    """The storage config with which every store is a watched one."""
    config = config or StorageConfig()
    return StorageConfig(config.by_prefix, lambda store: Watched(store, before, after))


def stored_by(recipe, config):
    """The recipe over stores that are given, which no YAML can say."""

    class Given(Recipe):
        @property
        def storage_config(self):
            return config

    return Given.model_validate(recipe.model_dump(by_alias=True, exclude_unset=True, warnings=False))
