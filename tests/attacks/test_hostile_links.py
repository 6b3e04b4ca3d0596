"""Links, pipes and devices in model folders and outputs: what is read of a folder lies in it, or is refused by name before any work."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from paramdelta_dist import api
from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.errors import CheckpointError, InputChanged, InputError, NotFound
from paramdelta_dist.storage import StorageConfig, open_store
from tests.raw_checkpoints import INDEX, folder, one_tensor
from tests.terminal import call

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


@pytest.fixture
def here(tmp_path):
    """Three models that fit together, each of several weight files, a recipe of them, and what no model may show to anybody."""
    files = {"model-1.safetensors": one_tensor("a"), "sub/model-2.safetensors": one_tensor("b"), "tokenizer.json": TOKENIZER}
    for name in ("new", "post", "old"):
        folder(tmp_path / name, files, weight_map={"a": "model-1.safetensors", "b": "sub/model-2.safetensors"})
    (tmp_path / "recipe.yaml").write_text("base: new\ndeltas: [{post: post, base: old}]\noutput: out\n")
    folder(tmp_path / "secret", {"key": "PLANTED"}, config="PLANTED")
    return tmp_path


def link(path, target):
    path.parent.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def refused(here, *arguments, code=3):
    done = call(*arguments, cwd=here)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "PLANTED" not in done.stdout + done.stderr
    assert not (here / "out" / ".paramdelta" / "commit.json").exists()
    return done.stderr


OF_A_MODEL = (
    "config.json", INDEX, "model-1.safetensors", "sub/model-2.safetensors", "sub", "tokenizer.json", "tokenizer.model",
    "chat_template.jinja", "additional_chat_templates/tool.jinja", "additional_chat_templates", "generation_config.json",
    "modeling_own.py", "LICENSE", "1_Pooling",
)  # fmt: skip
"""Every kind of file that is read of a model, and the folders that some lie in."""


@pytest.mark.parametrize("name", OF_A_MODEL)
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_out_of_the_model_is_refused_and_named_whatever_it_is_called(here, name, kind):
    target = {"file": here / "secret/key", "folder": here / "secret", "nothing": here / "nowhere"}[kind]
    link(here / "post" / name, target)
    for command in ("check", "plan", "merge"):
        message = refused(here, command, "recipe.yaml")
        assert str(here / "post" / name.split("/")[0]) in message
        assert f"is a link to {target}" in message
    assert not (here / "out").exists()


@pytest.mark.parametrize("target", ["/proc/self/environ", "/etc/passwd", "../secret/key", "/dev/zero", "/dev/stdin"])
def test_no_merge_reads_what_a_link_leads_to(here, target):
    """In a process of its own, with secrets in its environment, and an end to the patience: a device has none."""
    link(here / "post" / "chat_template.jinja", target)
    done = subprocess.run(
        [sys.executable, "-m", "paramdelta_dist", "merge", "recipe.yaml"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AWS_SECRET_ACCESS_KEY": "PLANTED"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert f"{here}/post/chat_template.jinja is a link to {target}" in done.stderr
    assert "PLANTED" not in done.stdout + done.stderr
    assert not (here / "out").exists()


@pytest.mark.parametrize("command", [["inspect", "old"], ["analyze", "recipe.yaml", "--output", "report"]], ids=" ".join)
def test_every_command_on_a_model_refuses_its_links(here, command):
    link(here / "old" / "chat_template.jinja", "/proc/self/environ")
    assert "is a link to /proc/self/environ" in refused(here, *command)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 107 characters
        try:
            listener.bind(path.name)
        finally:
            os.chdir(before)


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make devices, and not everywhere")


KINDS = {"a pipe": os.mkfifo, "a socket": make_socket, "a device": make_device}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", INDEX, "model-1.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "by a link"])
def test_what_is_no_file_is_refused_by_its_kind_and_hangs_nothing(here, kind, name, linked):
    path = here / "post" / name
    path.unlink(missing_ok=True)
    KINDS[kind](here / "post" / "odd" if linked else path)
    if linked:
        path.symlink_to("odd")
    assert f"{kind} and not a file" in refused(here, "plan", "recipe.yaml")


def test_the_tokenizer_of_another_folder_is_read_of_that_folder_only(here):
    (here / "words").mkdir()
    link(here / "words" / "tokenizer.json", here / "post" / "tokenizer.json")
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text() + "tokenizer_from: words\n")
    assert f"{here}/words/tokenizer.json is a link to {here}/post/tokenizer.json" in refused(here, "merge", "recipe.yaml")
    link(here / "words" / "tokenizer.json", "real.json")
    shutil.copy(here / "post" / "tokenizer.json", here / "words" / "real.json")
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0


def test_links_inside_the_model_and_a_model_that_is_itself_a_link_are_read(here):
    before = open_checkpoint(str(here / "post"), StorageConfig())
    (here / "post" / "deep").mkdir()
    for number, name in enumerate(("config.json", "tokenizer.json", "model-1.safetensors", "sub/model-2.safetensors")):
        kept = here / "post" / "deep" / str(number)
        (here / "post" / name).rename(kept)
        (here / "post" / name).symlink_to(kept if number % 2 else f"{'../' * name.count('/')}deep/hop{number}")
        (here / "post" / "deep" / f"hop{number}").symlink_to(str(number))  # a chain, by a relative or an absolute path
    (here / "data").mkdir()
    (here / "post").rename(here / "data" / "post-v2")
    (here / "post").symlink_to("data/current")
    (here / "data" / "current").symlink_to("post-v2")
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        path = here / "data" / "post-v2" / name
        if path.is_symlink() and os.path.isabs(os.readlink(path)):
            link(path, here / "data" / "post-v2" / "deep" / Path(os.readlink(path)).name)
    link(here / "data/post-v2/sub/model-2.safetensors", "../deep/3")
    after = open_checkpoint(str(here / "post"), StorageConfig())
    assert after.tensors == before.tensors
    assert set(after.side_files) == set(before.side_files)
    done = call("merge", "recipe.yaml", cwd=here)
    assert done.returncode == 0, done.stderr
    assert not any(path.is_symlink() for path in (here / "out").rglob("*"))


def test_a_link_to_a_folder_inside_the_model_serves_weights_that_the_index_names(here):
    (here / "post" / "sub").rename(here / "post" / "real")
    (here / "post" / "sub").symlink_to("real")
    assert len(open_checkpoint(str(here / "post"), StorageConfig()).tensors) == 2


def test_a_link_that_leads_in_a_circle_is_named_where_it_matters_and_else_not(here):
    for name in ("loop", "notes.txt"):
        link(here / "post" / name, name)
    link(here / "post" / "all", "..")
    assert call("check", "recipe.yaml", cwd=here).returncode == 0
    link(here / "post" / "tokenizer.json", "tokenizer.json")
    assert "post/tokenizer.json is a link to tokenizer.json, and so on in a circle" in refused(here, "check", "recipe.yaml")


def test_links_that_nobody_reads_hinder_nothing(here):
    for name in ("optimizer.pt", "training_args.bin", "runs", "spare.safetensors", "gone"):
        link(here / "post" / name, {"runs": "/etc", "gone": "/nowhere"}.get(name, "/etc/passwd"))
    os.mkfifo(here / "post" / "pipe")
    done = call("merge", "recipe.yaml", cwd=here)
    assert done.returncode == 0, done.stderr


def test_the_copy_that_the_refusal_offers_works(here):
    shutil.move(here / "post" / "tokenizer.json", here / "secret" / "tokenizer.json")
    link(here / "post" / "tokenizer.json", here / "secret" / "tokenizer.json")
    (here / "post").rename(here / "my post")
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text().replace("post: post", "post: my post"))
    message = refused(here, "check", "recipe.yaml")
    command = message.partition("(cp ")[2].partition(")")[0]
    subprocess.run(["sh", "-c", f"cp {command.replace('COPY', 'copied')}"], cwd=here, check=True)
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text().replace("post: my post", "post: copied"))
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0
    assert json.loads((here / "out" / "tokenizer.json").read_text()) == TOKENIZER


# --- caches of the Hub


def cached(cache, model, *, shared=False):
    """`model` as huggingface_hub keeps it: a snapshot of links to blobs, which may be links to a store that all repositories share."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "blobs").mkdir(parents=True)
    if shared:
        (cache / "blobs").mkdir()
        (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        name, blob = path.relative_to(model), repository / "blobs" / f"{number:040x}"
        if shared and name.suffix == ".safetensors":
            digest = f"{number:064x}"
            (cache / "blobs" / digest[:2]).mkdir(exist_ok=True)
            shutil.copy(path, cache / "blobs" / digest[:2] / digest)
            blob.symlink_to(f"../../blobs/{digest[:2]}/{digest}")
        else:
            shutil.copy(path, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


@pytest.mark.parametrize("shared", [False, True], ids=["blobs of its own", "shared blobs"])
@pytest.mark.parametrize("home", ["as it is", "by a link"])
def test_a_snapshot_in_a_cache_of_the_hub_is_a_model(here, shared, home):
    (here / "disk").mkdir()
    snapshot = cached(here / "disk" / "hub", here / "post", shared=shared)
    if home == "by a link":
        (here / "home").symlink_to("disk")
        snapshot = here / "home" / snapshot.relative_to(here / "disk")
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text().replace("post: post", f"post: {snapshot}"))
    done = call("merge", "recipe.yaml", cwd=here)
    assert done.returncode == 0, done.stderr
    assert json.loads((here / "out" / "tokenizer.json").read_text()) == TOKENIZER


def test_a_folder_in_a_snapshot_is_a_model(here):
    """As pipelines of several models are kept."""
    pipeline = here / "pipeline"
    shutil.copytree(here / "post", pipeline / "text_encoder")
    snapshot = cached(here / "hub", pipeline)
    assert len(open_checkpoint(str(snapshot / "text_encoder"), StorageConfig()).tensors) == 2


def test_a_model_that_the_hub_library_has_put_into_its_cache_is_read(here):
    """Laid out by huggingface_hub itself, of whatever version is installed."""
    from huggingface_hub.file_download import _create_symlink

    repository = here / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("ab" * 20)
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "sub").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in (here / "post").rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.copy(path, blob)
        _create_symlink(str(blob), str(snapshot / path.relative_to(here / "post")), new_blob=True)
    assert (snapshot / "config.json").is_symlink()
    assert len(open_checkpoint(str(snapshot), StorageConfig()).tensors) == 2


def test_a_snapshot_may_lead_to_its_own_blobs_only(here):
    snapshot = cached(here / "hub", here / "post", shared=True)
    other = cached(here / "hub" / "deeper", here / "old")
    repository = snapshot.parent.parent
    (here / "hub" / "models--org--name" / "token").write_text("PLANTED")
    (here / "hub" / "blobs" / "ab").mkdir()
    (here / "hub" / "blobs" / "ab" / ("cd" * 32)).write_text("PLANTED")
    for target in (
        repository / "token",
        repository / "refs",
        other / "tokenizer.json",
        here / "hub" / "blobs" / ".huggingface-shared-blobs",
        here / "hub" / "blobs" / "ab" / ("cd" * 32),
        here / "secret" / "key",
    ):
        link(snapshot / "tokenizer.json", target)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is a link to"):
            open_checkpoint(str(snapshot), StorageConfig())
    link(snapshot / "tokenizer.json", repository / "blobs" / "planted")
    link(repository / "blobs" / "planted", here / "secret" / "key")
    with pytest.raises(CheckpointError, match="outside of this folder"):
        open_checkpoint(str(snapshot), StorageConfig())


@pytest.mark.parametrize("shape", ["x/snapshots/1", "models--a--b/snapshots", "models--a--b/revisions/1"])
def test_a_folder_that_only_resembles_a_snapshot_has_no_blobs(here, shape):
    place = here / "lookalike" / shape
    place.mkdir(parents=True)
    blobs = place.parent.parent / "blobs"
    blobs.mkdir()
    for path in (here / "post").iterdir():
        if path.is_file():
            shutil.copy(path, place)
    shutil.copytree(here / "post" / "sub", place / "sub")
    shutil.copy(here / "post" / "tokenizer.json", blobs / "1")
    link(place / "tokenizer.json", blobs / "1")
    with pytest.raises(CheckpointError, match="outside of this folder"):
        open_checkpoint(str(place), StorageConfig())


def test_blobs_that_are_themselves_elsewhere_are_not_of_the_cache(here):
    snapshot = cached(here / "hub", here / "post")
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(here / "stolen")
    blobs.symlink_to(here / "stolen")
    with pytest.raises(CheckpointError, match="outside of this folder"):
        open_checkpoint(str(snapshot), StorageConfig())


# --- between plan and reading


@pytest.mark.parametrize("name", ["model-1.safetensors", "sub/model-2.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("by", ["link", "pipe", "link of the folder"])
def test_what_takes_the_place_of_a_planned_file_is_not_read(here, name, by):
    store = open_store(str(here / "post"), StorageConfig())
    identity = store.list()[name]
    outside = here / "secret" / name
    outside.parent.mkdir(exist_ok=True)
    shutil.copy2(here / "post" / name, outside)  # of the same size and time: nothing but the place tells
    path = here / "post" / name
    if by == "link of the folder" and "/" in name:
        shutil.rmtree(path.parent)
        path.parent.symlink_to(outside.parent)
    elif by == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        link(path, outside)
    for read in (
        lambda: store.read_range(name, 0, identity.size, identity=identity),
        lambda: store.read(name, limit=1 << 20),
        lambda: store.identify(name),
    ):
        with pytest.raises(InputError):
            read()


def test_a_file_swapped_for_a_link_again_and_again_never_shows_what_lies_outside(here):
    """A race that is run some thousand times: every read is of the model's own bytes, or refused."""
    store, path = open_store(str(here / "post"), StorageConfig()), here / "post" / "tokenizer.json"
    own, stop = path.read_bytes(), threading.Event()

    def swap():
        while not stop.is_set():
            for kind in ("link", "file", "folder link", "folder"):
                spare = here / "post" / "spare"
                if kind == "link":
                    spare.symlink_to(here / "secret" / "key")
                    spare.rename(path)
                elif kind == "file":
                    spare.write_bytes(own)
                    spare.rename(path)
                elif kind == "folder link":
                    (here / "post" / "sub").rename(here / "post" / "aside")
                    (here / "post" / "sub").symlink_to(here / "outer")
                else:
                    (here / "post" / "sub").unlink()
                    (here / "post" / "aside").rename(here / "post" / "sub")

    weights = (here / "post" / "sub" / "model-2.safetensors").read_bytes()
    (here / "outer").mkdir()
    (here / "outer" / "model-2.safetensors").write_bytes(b"PLANTED")
    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {"read": 0, "refused": 0}
    try:
        for _ in range(1500):
            for name, expected in (("tokenizer.json", own), ("sub/model-2.safetensors", weights)):
                try:
                    assert store.read(name, limit=1 << 20) == expected
                    seen["read"] += 1
                except (InputError, InputChanged, NotFound):
                    seen["refused"] += 1
    finally:
        stop.set()
        swapper.join()
    assert all(seen.values()), seen


# --- outputs


def test_a_folder_of_links_is_no_empty_output(here):
    for name in ("model.safetensors", "config.json", "runs"):
        link(here / "out" / name, here / "secret" / ("" if name == "runs" else "key"))
    assert "is not empty" in refused(here, "merge", "recipe.yaml")
    assert (here / "secret" / "key").read_text() == "PLANTED"


def test_links_in_place_of_output_files_are_replaced_and_what_they_lead_to_is_not_touched(here):
    precious = here / "secret" / "key"
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0
    (here / "out" / ".paramdelta" / "commit.json").unlink()
    made = {path: path.read_bytes() for path in (here / "out").glob("*") if path.is_file()}
    for path in made:
        link(path, precious)
    done = call("merge", "recipe.yaml", cwd=here)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in made if not path.is_symlink()} == made
    assert precious.read_text() == "PLANTED"


@pytest.mark.parametrize("name", ["plan.json", "commit.json", "report.json"])
@pytest.mark.parametrize("command", ["status", "verify", "merge"])
def test_a_document_of_an_output_that_is_a_link_is_not_followed(here, name, command):
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0
    path = here / "out" / ".paramdelta" / name
    shutil.move(path, here / "secret" / name)
    link(path, here / "secret" / name)
    done = call(command, "recipe.yaml" if command == "merge" else "out", cwd=here)
    assert "Traceback" not in done.stderr
    if (command, name) == ("merge", "report.json"):
        return  # which a finished merge does not read
    assert done.returncode in (3, 5), done.stderr + done.stdout
    assert f"{path} is a link to" in done.stderr + done.stdout or name in done.stderr + done.stdout


def test_nothing_is_written_or_deleted_through_a_link_out_of_the_output(here):
    (here / "out").mkdir()
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "plan.json").write_text("theirs")
    link(here / "out" / ".paramdelta", here / "elsewhere")
    for more in ([], ["--overwrite"]):
        message = refused(here, "merge", "recipe.yaml", *more)
        assert ".paramdelta" in message
    store = open_store(str(here / "out"), StorageConfig())
    for act in (lambda: store.delete(".paramdelta/plan.json"), lambda: store.put(".paramdelta/x", [b"1"], size=1)):
        with pytest.raises(InputError, match=r"leads to .*elsewhere, outside of"):
            act()
    assert [path.name for path in (here / "elsewhere").iterdir()] == ["plan.json"]


# --- recipes are the user's own words


def test_a_recipe_may_come_by_any_link_or_pipe(here):
    """As Kubernetes mounts config maps, and shells pass what a command writes."""
    mount = here / "mount"
    (mount / "..2026_11_28").mkdir(parents=True)
    text = (here / "recipe.yaml").read_text().replace("base: new", f"base: {here}/new").replace("post: post", f"post: {here}/post")
    text = text.replace("base: old", f"base: {here}/old").replace("output: out", f"output: {here}/out")
    (mount / "..2026_11_28" / "recipe.yaml").write_text(text)
    link(mount / "..data", "..2026_11_28")
    link(mount / "recipe.yaml", "..data/recipe.yaml")
    link(here / "elsewhere.yaml", mount / "recipe.yaml")
    for path in (mount / "recipe.yaml", here / "elsewhere.yaml"):
        assert api.load_recipe(str(path)).base == str(here / "new")
        assert call("check", path, cwd=here).returncode == 0
    tool = f"'{sys.executable}' -m paramdelta_dist check"
    for line in (f"{tool} /dev/stdin < recipe.yaml", f"cat recipe.yaml | {tool} /dev/stdin", f"{tool} <(cat recipe.yaml)"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line], cwd=mount, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_a_recipe_that_leads_in_a_circle_is_a_mistake_of_usage(here):
    link(here / "loop.yaml", "loop.yaml")
    done = call("check", "loop.yaml", cwd=here)
    assert (done.returncode, "loop.yaml: links lead in a circle" in done.stderr) == (2, True)


def test_a_link_that_has_the_name_of_a_pointer_to_the_latest_output(here):
    recipe = here / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("output: out", "output: nightly/{date}"))
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0
    link(here / "nightly" / "our-latest.json", "/etc/passwd")
    assert call("status", "nightly", cwd=here).returncode == 0
    link(here / "nightly" / "latest.json", here / "secret" / "key")
    assert "nightly/latest.json is a link to" in call("merge", "recipe.yaml", cwd=here).stderr
    assert (here / "secret" / "key").read_text() == "PLANTED"


def test_a_model_mounted_as_a_config_map_is_read(here):
    shutil.move(here / "post", here / "post.real")
    mount = here / "post"
    shutil.copytree(here / "post.real", mount / "..2026_11_28")
    link(mount / "..data", "..2026_11_28")
    for path in (here / "post.real").iterdir():
        link(mount / path.name, f"..data/{path.name}")
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0
