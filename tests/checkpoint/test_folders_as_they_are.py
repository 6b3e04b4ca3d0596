"""Model folders as disks and tools leave them: some of it may not be listed, some files are not the files but stand for them."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from paramdelta_dist.checkpoint import find_side_files, open_checkpoint
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import StorageConfig, open_store
from tests.raw_checkpoints import INDEX, folder, one_tensor
from tests.terminal import call

NOBODY = 65534
FILES = {"model.safetensors": one_tensor(), "tokenizer.json": {"model": {"vocab": {"a": 0}}}, "tokenizer.model": b"\x0a\x03\x0a\x01a"}


@contextmanager
def as_nobody():
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def here():
    """A place that everybody may enter, with three models and a recipe; all of the program is loaded before rights are given up."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        place = Path(made)
        place.chmod(0o777)
        for name in ("new", "post", "old"):
            folder(place / name, FILES)
        (place / "recipe.yaml").write_text("base: new\ndeltas: [{post: post, base: old}]\noutput: out\n")
        for command in (["merge", "recipe.yaml"], ["inspect", "post"], ["check", "recipe.yaml"], ["plan", "recipe.yaml"], ["clean", "out"]):
            assert call(*command, cwd=place).returncode == 0
        assert call("inspect", "nowhere", cwd=place).returncode == 3
        shutil.rmtree(place / "out")
        yield place
        for path in place.rglob("*"):
            path.chmod(0o700)


def closed(path, files=(), mode=0):
    path.mkdir()
    for name in files:
        (path / name).write_bytes(b"x")
    path.chmod(mode)


def told(here, *arguments, code):
    with as_nobody():
        done = call(*arguments, cwd=here)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_folder_that_may_not_be_listed_is_named_and_hinders_nothing(here):
    closed(here / "post" / "lost+found", ["x"])
    closed(here / "old" / "logs", mode=0o311)
    assert "lost+found" in told(here, "inspect", "post", code=0)
    for command in ("check", "plan"):
        text = told(here, command, "recipe.yaml", code=0)
        assert f"{here}/post: the folder 'lost+found' may not be listed" in text.replace("\n", " ")
        assert f"{here}/old: the folder 'logs' may not be listed" in text.replace("\n", " ")
    told(here, "merge", "recipe.yaml", code=0)
    assert (here / "out" / "config.json").exists()


def test_an_output_on_a_fresh_volume_whose_lost_and_found_may_not_be_listed_is_free(here):
    (here / "out").mkdir()
    (here / "out").chmod(0o777)
    closed(here / "out" / "lost+found")
    told(here, "merge", "recipe.yaml", code=0)
    assert "not looked into: lost+found" in told(here, "clean", "out", code=0)
    told(here, "status", "out", code=0)


@pytest.mark.parametrize("mode", [0, 0o644])
def test_weights_in_a_folder_that_may_not_be_entered_are_an_error_of_permission(here, mode):
    folder(here / "post", {"deep/w.safetensors": one_tensor()}, weight_map={"a.weight": "deep/w.safetensors"})
    (here / "post" / "model.safetensors").unlink()
    (here / "post" / "deep").chmod(mode)
    for command in (["inspect", "post"], ["check", "recipe.yaml"], ["merge", "recipe.yaml"]):
        text = told(here, *command, code=4)
        assert f"{here}/post/deep/w.safetensors: permission denied" in text
        assert "no such file" not in text


def test_weights_in_a_folder_that_may_be_entered_and_not_listed_are_read(here):
    folder(here / "post", {"deep/w.safetensors": one_tensor()}, weight_map={"a.weight": "deep/w.safetensors"})
    (here / "post" / "model.safetensors").unlink()
    (here / "post" / "deep").chmod(0o311)
    told(here, "check", "recipe.yaml", code=0)


@pytest.mark.parametrize("name", ["additional_chat_templates", "1_Pooling"])
def test_a_folder_of_side_files_that_may_not_be_listed_is_an_error_and_no_silent_loss(here, name):
    closed(here / "post" / name)
    assert f"{here}/post/{name}: permission denied" in told(here, "check", "recipe.yaml", code=4)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_found_before_any_work(here, name):
    (here / "post" / name).chmod(0)
    assert f"{here}/post/{name}: permission denied" in told(here, "plan", "recipe.yaml", code=4)


def test_a_model_folder_that_may_not_be_listed_itself_is_an_error(here):
    (here / "post").chmod(0o311)
    assert f"{here}/post: permission denied" in told(here, "inspect", "post", code=4)


# --- stand-ins

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
HAWSER = LFS.replace(b"git-lfs", b"hawser")
ANNEX = b"/annex/objects/SHA256E-s12345--4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393.json\n"
SIDE = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "chat_template.jinja",
    "additional_chat_templates/a.jinja",
    "x.py",
    "LICENSE",
)


@pytest.mark.parametrize("name", [*SIDE, INDEX, "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "remedy"), [(LFS, "git lfs pull"), (HAWSER, "git lfs pull"), (ANNEX, "git annex get")], ids=["lfs", "hawser", "annex"]
)
def test_a_pointer_in_place_of_any_file_is_refused_with_the_command_that_fetches_it(tmp_path, name, content, remedy):
    path = folder(tmp_path / "model", {**FILES, name: content})
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(str(path), StorageConfig())
    assert f"{path}/{name}: a pointer of " in str(refusal.value)
    assert remedy in str(refusal.value)


@pytest.mark.parametrize("place", ["disk", "memory", "s3"])
def test_a_pointer_is_recognised_wherever_the_model_lies(tmp_path, place, request, monkeypatch):
    url = {"disk": str(tmp_path), "memory": "memory://models"}.get(place)
    if url is None:
        server = request.getfixturevalue("s3_server")
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.make_bucket()}"
    store = open_store(f"{url}/model", StorageConfig())
    for path in sorted(path for path in folder(tmp_path / "made", {**FILES, "tokenizer.json": LFS}).iterdir()):
        store.write(path.name, path.read_bytes())
    for look in (open_checkpoint, find_side_files):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: a pointer of Git LFS"):
            look(store.url, StorageConfig())
    store.write("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}')
    assert open_checkpoint(store.url, StorageConfig()).side_files.keys() == {"config.json", "tokenizer.json", "tokenizer.model"}


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>" + b"x" * 50_000, b"\xef\xbb\xbf\n <HTML lang=en>", b"<!doctype HTML>"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "model.safetensors", INDEX])
def test_a_web_page_saved_in_place_of_a_file_is_refused(tmp_path, page, name):
    path = folder(tmp_path / "model", {**FILES, name: page})
    with pytest.raises(CheckpointError, match="a web page"):
        open_checkpoint(str(path), StorageConfig())


def test_files_that_resemble_stand_ins_are_what_they_are(tmp_path):
    plain = {
        "chat_template.jinja": b"<html>{{ messages }}</html>",
        "LICENSE.md": b"<!DOCTYPE html><html>",
        "vocab.txt": b"<s>\n<unk>\n<htmlish>\n",
        "merges.txt": b"#version: 0.2\nversion https\n",
        "x.py": b"# version https://git-lfs.github.com/spec/v1\n",
        "tokenizer_config.json": b"{}",
    }
    assert set(plain) <= set(open_checkpoint(str(folder(tmp_path / "model", {**FILES, **plain})), StorageConfig()).side_files)


@pytest.mark.parametrize("where", ["post", "old", "tokenizer_from"])
def test_a_pointer_stops_a_merge_before_any_work_and_fetching_it_lets_it_go_on(here, where):
    if where == "tokenizer_from":
        shutil.copytree(here / "post", here / "words")
        (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text() + "tokenizer_from: words\n")
    name = "words" if where == "tokenizer_from" else where
    (here / name / "tokenizer.model").write_bytes(LFS)
    for command in ("check", "plan", "merge"):
        done = call(command, "recipe.yaml", cwd=here)
        if (command, where) == ("check", "tokenizer_from"):
            continue  # which is about the models alone
        assert done.returncode == 3
        assert f"{here}/{name}/tokenizer.model: a pointer of Git LFS" in done.stderr
        assert not (here / "out").exists()
    (here / name / "tokenizer.model").write_bytes(FILES["tokenizer.model"])
    assert call("merge", "recipe.yaml", cwd=here).returncode == 0


def test_git_annex_links_say_how_to_fetch_them(tmp_path):
    """As `git annex add` leaves files: links into the repository, to nothing where the content was not fetched."""
    repository = folder(tmp_path / "repository", FILES)
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    objects = repository / ".git" / "annex" / "objects" / "aa" / "bb" / "KEY"
    objects.mkdir(parents=True)
    (repository / "tokenizer.json").rename(objects / "KEY")
    (repository / "tokenizer.json").symlink_to(".git/annex/objects/aa/bb/KEY/KEY")
    assert "tokenizer.json" in open_checkpoint(str(repository), StorageConfig()).side_files, "fetched, and in the folder"
    (objects / "KEY").unlink()
    with pytest.raises(CheckpointError, match="is not there; git annex get fetches it"):
        open_checkpoint(str(repository), StorageConfig())
