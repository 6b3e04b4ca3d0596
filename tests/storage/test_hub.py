"""Models of the Hugging Face Hub, through its own client, from a Hub on loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

import paramdelta_dist
from paramdelta_dist.errors import CredentialsError, InputChanged, NotFound, TransientStorageError, UsageError
from paramdelta_dist.storage import StorageConfig, Store, StoreSettings, normalize, open_store
from paramdelta_dist.storage.retry import RetryPolicy
from tests.hub_server import TOKEN, Hub, Repository, running_hub
from tests.models import ARCHITECTURES, make_models, recipe
from tests.terminal import call

WEIGHTS = os.urandom(200_000)
FILES: dict[str, bytes | None] = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/of/it.json": b"[1]"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories["org/model"] = Repository()
        hub.repositories["org/model"].push(FILES)
        yield hub


def opened(url: str = "hf://org/model", **settings: object) -> Store:
    return open_store(normalize(url), StorageConfig({"": StoreSettings(**settings)}))  # type: ignore[arg-type]


def whole(store: Store, name: str = "model.safetensors") -> bytes:
    identity = store.identify(name)
    return bytes(store.read_range(name, 0, identity.size, identity=identity))


def in_a_process(*words: str, hub: Hub, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as the environment alone has it, without what the fixture sets in this process."""
    given = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cwd / "home")}
    return subprocess.run(
        [sys.executable, "-m", "paramdelta_dist", *words], capture_output=True, text=True, env=given, cwd=cwd, timeout=300, check=False
    )


def test_a_model_is_listed_and_read_by_ranges(hub: Hub) -> None:
    store = opened()
    found = store.list() or {}
    assert {name: identity.size for name, identity in found.items()} == {name: len(data or b"") for name, data in FILES.items()}
    assert found["model.safetensors"].tag == hashlib.sha256(WEIGHTS).hexdigest()
    assert {name: store.identify(name) for name in found} == found
    assert store.read("config.json", limit=10) == b"{}"
    identity = found["model.safetensors"]
    memory = memoryview(bytearray(1000))
    assert bytes(store.read_range("model.safetensors", 100, 1100, identity=identity, into=memory)) == WEIGHTS[100:1100] == bytes(memory)


def test_a_listing_of_many_pages_is_whole_and_goes_to_the_endpoint_alone(hub: Hub) -> None:
    """The links to the next page bear the public Hub's name, as those of a mirror do."""
    hub.page_size = 2
    assert list(opened().list() or {}) == list(FILES)


def test_a_folder_of_a_repository_is_a_model_of_its_own(hub: Hub) -> None:
    store = opened("hf://org/model/sub/of")
    assert list(store.list() or {}) == ["it.json"]
    assert store.read("it.json", limit=10) == b"[1]"
    assert opened("hf://org/model/never").list() == {}


@pytest.mark.parametrize("spelling", ["v1", "a%2Fbranch", "refs/pr/7", "refs%2Fpr%2F7", "COMMIT"])
def test_a_revision_is_a_branch_a_tag_a_request_or_a_commit(hub: Hub, spelling: str) -> None:
    repository = hub.repositories["org/model"]
    commit = repository.branches["main"]
    repository.branches |= {"v1": commit, "a/branch": commit, "refs/pr/7": commit}
    repository.push({"model.safetensors": b"newer"})
    assert whole(opened()) == b"newer"
    assert whole(opened(f"hf://org/model@{spelling.replace('COMMIT', commit)}")) == WEIGHTS


def test_what_was_listed_is_read_whatever_is_pushed_meanwhile(hub: Hub) -> None:
    """From the commit that was listed, by another process as well: the identity brings it along."""
    store = opened()
    identity = (store.list() or {})["model.safetensors"]
    first = bytes(store.read_range("model.safetensors", 0, 1000, identity=identity))
    hub.repositories["org/model"].push({"model.safetensors": os.urandom(200_000)})
    rest = bytes(store.read_range("model.safetensors", 1000, 200_000, identity=identity))
    assert first + rest == WEIGHTS
    elsewhere = opened("hf://org/model/")
    assert bytes(elsewhere.read_range("model.safetensors", 0, 200_000, identity=identity)) == WEIGHTS


def test_a_push_that_leaves_a_file_alone_changes_nothing_about_it(hub: Hub) -> None:
    store = opened()
    before = store.list() or {}
    hub.repositories["org/model"].push({"README.md": b"better words"})
    after = store.list() or {}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert hash(after["model.safetensors"]) == hash(before["model.safetensors"])
    assert after["model.safetensors"].version != before["model.safetensors"].version


def test_a_history_that_was_rewritten_is_a_changed_input(hub: Hub) -> None:
    store, repository = opened(), hub.repositories["org/model"]
    identity = (store.list() or {})["model.safetensors"]
    repository.commits.clear()
    repository.push({"model.safetensors": b"other"})
    with pytest.raises(InputChanged, match="run again"):
        store.read_range("model.safetensors", 0, 10, identity=identity)


def test_many_ranges_at_once_ask_the_hub_once_where_the_file_lies(hub: Hub) -> None:
    store = opened()
    identity = (store.list() or {})["model.safetensors"]
    store.read_range("model.safetensors", 0, 10, identity=identity)
    with ThreadPoolExecutor(16) as pool:
        parts = pool.map(lambda i: bytes(store.read_range("model.safetensors", i, i + 2000, identity=identity)), range(0, 200_000, 2000))
        assert b"".join(parts) == WEIGHTS
    assert len(hub.asked("/resolve/")) == 1
    assert len(hub.asked("signature=")) == 101


def test_a_location_that_has_expired_is_asked_for_again(hub: Hub) -> None:
    store = opened()
    assert whole(store) == WEIGHTS
    hub.expired |= {path.partition("signature=")[2] for path in hub.asked("signature=")}
    assert whole(store) == WEIGHTS
    assert len(hub.asked("/resolve/")) == 2


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["org/model"].private = True
    assert whole(opened()) == WEIGHTS
    told = {"signature=" in path: headers.get("authorization") for _, path, headers in hub.requests}
    assert told == {False: f"Bearer {TOKEN}", True: None}


@pytest.mark.parametrize(
    ("settings", "token", "kind", "words"),
    [
        ({"private": True}, "", CredentialsError, ["hf auth login", "HF_TOKEN", "/org/model"]),
        ({"private": True}, "hf_other", NotFound, ["no model org/model", "/org/model"]),
        ({"private": True}, "hf_mistyped", CredentialsError, ["does not take the token", "hf auth login"]),
        ({"gated": True}, "", CredentialsError, ["ask for it on http", "/org/model", "hf auth login"]),
        ({"gated": True}, "hf_other", CredentialsError, ["ask for it on http", "/org/model", "hf auth login"]),
    ],
)
def test_what_may_not_be_read_says_where_to_ask(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, settings: dict[str, bool], token: str, kind: type[Exception], words: list[str]
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for name, value in settings.items():
        setattr(hub.repositories["org/model"], name, value)
    with pytest.raises(kind) as caught:
        whole(opened())
    assert all(word in str(caught.value) for word in words), caught.value
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the way out that it names
    assert whole(opened(anonymous=False)) == WEIGHTS


def test_an_unknown_model_and_an_unknown_revision_are_inputs_that_are_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"no branch, tag or commit .never..*/org/model/tree/main"):
        opened("hf://org/model@never").list()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(NotFound, match="the Hub has no model org/never"):
        opened("hf://org/never").identify("config.json")  # a listing is empty: it may be the place for an output
    with pytest.raises(NotFound, match="no such object"):
        opened().identify("never")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://gpt2", "hf://OWNER/gpt2"),
        ("hf://gpt2@main", "hf://OWNER/gpt2"),
        ("hf://", "hf://OWNER/NAME"),
        ("hf://org/model@", "hf://OWNER/NAME"),
        ("hf://models/org/model", "write hf://org/model"),
        ("hf://datasets/org/data", "only models"),
        ("hf://spaces/org/app/x", "only models"),
        ("hf://buckets/org/b", "only models"),
        ("https://huggingface.co/org/model", "write hf://org/model"),
        ("https://huggingface.co/org/model/tree/v1", "write hf://org/model@v1"),
        ("https://huggingface.co/org/model/tree/main", "write hf://org/model$"),
        ("https://hf.co/org/model", "write hf://org/model"),
    ],
)
def test_what_is_no_model_of_the_hub_says_how_one_is_written(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        normalize(url)


def test_being_offline_is_said_and_not_tried(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        opened().list()
    assert hub.requests == []


def test_a_hub_that_is_busy_or_away_is_tried_again(hub: Hub) -> None:
    answers = [503, 500, 502, 429, 504]
    hub.before = lambda method, path: (answers.pop(), {}) if answers else None
    quick = RetryPolicy(first_delay=0.01, longest_delay=0.1)
    assert whole(opened(retries=quick)) == WEIGHTS
    assert answers == []
    short = opened(retries=replace(quick, seconds=0.5))
    hub.before = lambda method, path: (503, {})
    with pytest.raises(TransientStorageError):
        short.list()
    hub.close()
    with pytest.raises(TransientStorageError):
        short.list()


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "2"}, {"RateLimit": '"resolvers";r=0;t=2', "RateLimit-Policy": '"fixed window";"resolvers";q=5000;w=300'}]
)
def test_a_limit_is_waited_for_as_long_as_the_hub_says(hub: Hub, headers: dict[str, str]) -> None:
    """Also where that is longer than a call is tried again for."""
    waits: list[float] = []
    noted = RetryPolicy(seconds=0.0, sleep=lambda waiting, seconds: waits.append(seconds))
    limits = [(429, headers), (429, headers)]
    hub.before = lambda method, path: limits.pop() if "/resolve/" in path and limits else None
    assert whole(opened(retries=noted)) == WEIGHTS
    assert len(waits) == 2
    assert all(2 <= wait < 3.5 for wait in waits)


def test_a_range_that_is_cut_off_is_never_taken_for_whole(hub: Hub) -> None:
    store = opened(retries=RetryPolicy(seconds=0.5))
    identity = (store.list() or {})["model.safetensors"]
    hub.before = lambda method, path: (206, {"Content-Range": "bytes 0-9/200000"}) if "signature=" in path else None
    with pytest.raises(TransientStorageError, match="10\\) asked for, 0 bytes came"):
        store.read_range("model.safetensors", 0, 10, identity=identity)


def test_a_merge_of_models_on_the_hub_is_the_one_of_their_folders(hub: Hub, tmp_path: Path) -> None:
    """By the command line, while somebody pushes to one of them after its header was read."""
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    for name, folder in (("new", new), ("post", post), ("old", old)):
        hub.publish(f"org/{name}", Path(folder))
    weights = sorted(
        name
        for name in hub.repositories["org/post"].commits[hub.repositories["org/post"].branches["main"]]
        if name.endswith(".safetensors")
    )
    ranges = 0

    def push(method: str, path: str) -> None:
        nonlocal ranges
        ranges += "signature=" in path and "/org/post/" in path
        if ranges == len(weights) + 1:
            hub.repositories["org/post"].push(dict.fromkeys(weights, b"another model"))

    hub.before = push
    (tmp_path / "r.yaml").write_text("base: hf://org/new\ndeltas: [{post: hf://org/post, base: hf://org/old}]\noutput: out\n")
    done = in_a_process("merge", "r.yaml", hub=hub, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.repositories["org/post"].history[-1][2] == "a push"
    paramdelta_dist.merge(recipe(new, post, old, tmp_path / "here"))
    made = sorted(path.name for path in (tmp_path / "here").glob("*.safetensors"))
    assert made
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "here" / name).read_bytes() for name in made)


def test_the_command_line_tells_it_in_one_line_with_its_exit_code(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"].gated = True
    for url, code, words in (
        ("hf://org/model", 4, "hf auth login"),
        ("hf://org/never", 4, "nobody is logged in"),
        ("hf://org/model@never", 3, "no branch, tag or commit"),
        ("hf://gpt2", 2, "hf://OWNER/gpt2"),
    ):
        done = call("inspect", url, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert words in done.stderr
    done = call("inspect", "hf://org/never", cwd=tmp_path, HF_TOKEN=TOKEN)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr


@pytest.mark.parametrize("output", ["hf://me/merged/folder", "hf://me/merged@v1", "hf://me/merged/{date}"])
def test_an_output_that_is_a_part_of_a_repository_is_refused_before_anything_is_made(hub: Hub, tmp_path: Path, output: str) -> None:
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    with pytest.raises(UsageError, match="hf://OWNER/NAME"):
        paramdelta_dist.plan(recipe(new, post, old, output))
    assert hub.asked("^(?!GET)") == []


def test_a_merge_is_published_by_one_commit_to_a_new_private_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until then the main branch shows nothing of it; a run that was ended goes on; verify and status know it."""
    make_models(tmp_path, ARCHITECTURES["llama"])
    (tmp_path / "r.yaml").write_text("base: new\ndeltas: [{post: post, base: old}]\noutput: hf://me/merged\nshard_size: 100KB\n")
    environment = {"HF_TOKEN": TOKEN}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    seen: list[set[str]] = []
    puts = 0

    def watch(method: str, path: str) -> tuple[int, dict[str, str]] | None:
        nonlocal puts
        merged = hub.repositories.get("me/merged")
        if merged is not None and "main" in merged.branches:
            seen.append(set(merged.commits[merged.branches["main"]]))
        puts += method == "PUT"
        return (403, {}) if method == "PUT" and puts == 2 else None

    hub.before = watch
    done = call("merge", "r.yaml", cwd=tmp_path, **environment)
    assert done.returncode == 4, done.stderr
    assert seen
    assert all(files == {".gitattributes"} for files in seen)
    hub.repositories["me/merged"].push({"NOTES.md": b"by a person, meanwhile"})
    uploads = len(hub.asked("^PUT"))
    done = call("merge", "r.yaml", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    merged = hub.repositories["me/merged"]
    assert merged.private
    assert list(merged.branches) == ["main"]
    assert [message for branch, _, message in merged.history if branch == "main"] == [
        "initial commit",
        "a push",
        "Merge with paramdelta-dist",
    ]
    published = merged.commits[merged.branches["main"]]
    assert published["NOTES.md"] == b"by a person, meanwhile"
    old, post, new = (tmp_path / name for name in ("old", "post", "new"))
    paramdelta_dist.merge(recipe(new, post, old, tmp_path / "here", shard_size="100KB"))
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("*.safetensors")}
    assert {name: data for name, data in published.items() if name.endswith(".safetensors")} == here
    assert len(hub.asked("^PUT")) - uploads < len(here)  # what the first run had finished was kept
    for words in (["verify", "hf://me/merged", "--deep"], ["status", "hf://me/merged"], ["merge", "r.yaml"]):
        done = call(*words, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
    assert list(merged.branches) == ["main"]


def test_an_output_in_a_repository_that_is_read_is_refused(hub: Hub) -> None:
    with pytest.raises(Exception, match="in each other"):
        recipe("hf://org/model@v1", "hf://org/post", "hf://org/old", "hf://org/model")


def test_writing_without_a_login_says_how(hub: Hub) -> None:
    with pytest.raises(CredentialsError, match="hf auth login"):
        opened().write("x", b"")
