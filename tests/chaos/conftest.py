"""The ground of chaos: one small model on disk and on S3, and the bytes of a merge that nobody disturbed."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.chaos.runs import SHARDS, Place, end, merge_arguments, model_of, start, write_recipe
from tests.models import save_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("chaos")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path, Path]:
    """new, post and old: twelve tensors of 2.7 MB, which become six shards."""
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n:02}.weight": torch.randn(1350, 500, generator=generator) for n in range(2 * SHARDS)}
    new, post, old = (
        save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2)
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    )
    (post / "generation_config.json").write_text('{"do_sample": true}')
    return new, post, old


@pytest.fixture(scope="session")
def quiet(models, tmp_path_factory) -> dict[str, bytes]:
    """Everything a loader reads of the merge, made on disk in one go."""
    folder = tmp_path_factory.mktemp("quiet")
    place = Place(tuple(map(str, models)), str(folder / "out"))
    done = end(start(*merge_arguments(write_recipe(folder / "recipe.yaml", place), "local"), place=place))
    assert done.code == 0, done
    found = model_of(place.files())
    assert len(found) == SHARDS + 3
    shutil.rmtree(folder)
    return found


@pytest.fixture(scope="session")
def bucket(models, s3_server) -> str:
    """A bucket of S3 that holds the models."""
    name, client = s3_server.make_bucket(), s3_server.client()
    for folder in models:
        for path in folder.iterdir():
            client.put_object(Bucket=name, Key=f"{folder.name}/{path.name}", Body=path.read_bytes())
    return name


@pytest.fixture
def place(request, models, tmp_path) -> Iterator[Place]:
    """An empty output on disk or on S3, as `request.param` says."""
    if request.param == "disk":
        yield Place(tuple(map(str, models)), str(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return
    server, bucket = request.getfixturevalue("s3_server"), request.getfixturevalue("bucket")
    prefix = f"out-{secrets.token_hex(4)}"
    place = Place(tuple(f"s3://{bucket}/{folder.name}" for folder in models), f"s3://{bucket}/{prefix}", server.environ, server.client())
    yield place
    for name in place.names():
        place.client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")


@pytest.fixture
def ray_folder() -> Iterator[dict[str, str]]:
    """The environment that keeps the traces of killed Rays out of the machine's /tmp/ray; short, for the paths of sockets."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {"RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)
