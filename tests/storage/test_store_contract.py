"""Every engine sits the same contract, on a real server where there is one."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from paramdelta_dist.errors import InputChanged
from paramdelta_dist.storage import Identity, StorageConfig, Store, StoreSettings, open_store
from tests.azurite import AzureServer
from tests.contracts.store_contract import LARGE, SMALLEST_PART, ProducerError, StoreContract, content, failing
from tests.google_xml import GoogleServer
from tests.hub_server import TOKEN, Hub, running_hub
from tests.servers import GcsServer, S3Server


@pytest.fixture(scope="session")
def s3_bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture(scope="session")
def gcs_bucket(gcs_server: GcsServer) -> str:
    return gcs_server.make_bucket()


@pytest.fixture(scope="session")
def azure_container(azure_server: AzureServer) -> str:
    return azure_server.make_container()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def fresh(bucket: str, *, engine: str = "auto") -> Store:
    settings = StoreSettings(engine=engine, part_size=SMALLEST_PART)  # type: ignore[arg-type]
    return open_store(f"{bucket}/run {secrets.token_hex(4)}", StorageConfig({"": settings}))


@pytest.fixture(scope="session")
def emptied_s3_store(s3_server: S3Server, s3_bucket: str) -> Callable[[str], Store]:
    """One store per engine, emptied for every test: a client of s3fs takes half a second to make."""
    stores: dict[str, Store] = {}

    def emptied(engine: str) -> Store:
        if engine not in stores:
            stores[engine] = fresh(f"s3://{s3_bucket}", engine=engine)
        for name in stores[engine].list() or {}:
            stores[engine].delete(name)
        return stores[engine]

    return emptied


class TestLocalDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "not" / "yet there"), StorageConfig())

    def test_a_failed_put_leaves_no_file_behind(self, store: Store) -> None:
        with pytest.raises(ProducerError):
            store.put("object", failing(content(100), 10, ProducerError()), size=200)
        assert [path for path in Path(store.url).rglob("*") if path.is_file()] == []


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return fresh("memory://bucket")


class _S3Contract(StoreContract):
    engine: str

    @pytest.fixture
    def store(self, emptied_s3_store: Callable[[str], Store], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
        for name, value in s3_server.environ.items():
            monkeypatch.setenv(name, value)
        return emptied_s3_store(self.engine)

    def test_list_of_a_folder_that_never_was_is_empty(self, store: Store) -> None:
        assert fresh(store.url, engine=self.engine).list() == {}

    @pytest.mark.parametrize("produced", [0, 1000, LARGE])
    def test_a_failed_put_leaves_no_upload_open(self, store: Store, s3_server: S3Server, s3_bucket: str, produced: int) -> None:
        with pytest.raises(ProducerError):
            store.put("object", failing(content(produced), 3_000_001, ProducerError()), size=LARGE + 1)
        assert s3_server.open_uploads(s3_bucket) == []

    def test_neighbours_with_the_same_beginning_are_not_listed(self, store: Store) -> None:
        beside = open_store(f"{store.url}-beside", StorageConfig({"": StoreSettings(engine=self.engine)}))  # type: ignore[arg-type]
        beside.write("object", b"beside")
        identity = store.write("object", b"inside")
        assert store.list() == {"object": identity}


class TestS3ThroughObstore(_S3Contract):
    engine = "obstore"


class TestS3ThroughS3fs(_S3Contract):
    engine = "fsspec"


class TestGcsThroughGcsfs(StoreContract):
    @pytest.fixture
    def store(self, gcs_server: GcsServer, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
        return fresh(f"gs://{gcs_bucket}")


class TestGcsThroughObstore(StoreContract):
    """Over the XML API, by the way that users go."""

    @pytest.fixture
    def bucket(self, google_server: GoogleServer) -> str:
        return google_server.make_bucket()

    @pytest.fixture
    def store(self, google_server: GoogleServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
        for name, value in google_server.environ.items():
            monkeypatch.setenv(name, value)
        return fresh(f"gs://{bucket}")

    @pytest.mark.parametrize("produced", [0, 1000, LARGE])
    def test_a_failed_put_leaves_no_upload_open(self, store: Store, google_server: GoogleServer, bucket: str, produced: int) -> None:
        with pytest.raises(ProducerError):
            store.put("object", failing(content(produced), 3_000_001, ProducerError()), size=LARGE + 1)
        assert bucket not in {upload.bucket for upload in google_server.uploads.values()}

    def test_a_list_of_several_pages_is_whole(self, store: Store, google_server: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(google_server, "page", 2)
        written = {name: store.write(name, name.encode()) for name in ("a", "b/a", "b/c", "d", "e&<f>")}
        assert store.list() == written


class _AzureContract(StoreContract):
    def test_neighbours_with_the_same_beginning_are_not_listed(self, store: Store) -> None:
        beside = open_store(f"{store.url}-beside", StorageConfig())
        beside.write("object", b"beside")
        identity = store.write("object", b"inside")
        assert store.list() == {"object": identity}


class TestAzureByConnectionString(_AzureContract):
    @pytest.fixture
    def store(self, azure_server: AzureServer, azure_container: str, monkeypatch: pytest.MonkeyPatch) -> Store:
        for name, value in azure_server.environ.items():
            monkeypatch.setenv(name, value)
        return fresh(f"az://{azure_container}")


class TestAzureBySharedAccessSignature(_AzureContract):
    """And by the URL of Hadoop's driver, which names the account."""

    @pytest.fixture
    def store(self, azure_server: AzureServer, azure_container: str, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure_server.endpoint)
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azure_server.sas(azure_container))
        return fresh(f"abfss://{azure_container}@{azure_server.account}.dfs.core.windows.net")


class TestTheHub(StoreContract):
    """By way of the unfinished branch of a repository that is not there before the first write."""

    @pytest.fixture
    def store(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        return open_store(f"hf://someone/run-{secrets.token_hex(4)}", StorageConfig())

    @pytest.mark.parametrize("size", [1000, 999, 1001, 0])
    def test_a_replaced_object_is_not_read_with_the_old_identity(self, store: Store, size: int) -> None:
        """But as it was: the identity names the commit that has it. One that names none is refused."""
        before = store.put("object", [content(1000)], size=1000)
        after = store.put("object", [content(size, seed=1)], size=size)
        assert bytes(store.read_range("object", 0, 1000, identity=before)) == content(1000)
        assert bytes(store.read_range("object", 0, size, identity=after)) == content(size, seed=1)
        with pytest.raises(InputChanged):
            store.read_range("object", 0, 10, identity=Identity(before.size, before.tag))

    def test_a_failed_put_leaves_no_file_on_this_machine(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(ProducerError):
            store.put("object", failing(content(100), 10, ProducerError()), size=200)
        store.put("object", [b"now"], size=3)
        assert list(tmp_path.iterdir()) == []
