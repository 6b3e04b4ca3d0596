"""No credential leaves the process: planted ones are searched for in everything a run writes, prints or shows."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import typer

from paramdelta_dist import api
from paramdelta_dist.cli.answers import reporting
from paramdelta_dist.storage import StorageConfig, StoreSettings, open_store
from paramdelta_dist.storage.retry import RetryPolicy
from tests.models import recipe, save_model
from tests.servers import free_ports
from tests.terminal import call
from tests.watched_stores import stored_by

ROOT = str(Path(__file__).parent.parent.parent)
TOKEN = "PLANTED-SESSION-TOKEN-7f3a"


def run(arguments, environment):
    """stdout and stderr of the command, and the command lines that processes had while it ran."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paramdelta_dist", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = set()
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_text(errors="replace"))
            except OSError:
                continue
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    out, err = process.communicate()
    return process.returncode, out + err, seen


@pytest.fixture
def ray_files():
    """Where Ray keeps sockets and logs: a short path, since a socket's has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_planted_credentials_are_in_no_output_log_receipt_or_process_list(tmp_path, s3_server, monkeypatch, ray_files, engine):
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    secret, bucket = s3_server.environ["AWS_SECRET_ACCESS_KEY"], f"s3://{s3_server.make_bucket()}"
    for name in ("new", "post", "old"):
        folder = save_model(tmp_path / name, {f"w{n}": torch.ones(1000) * n for n in range(4)})
        store = open_store(f"{bucket}/{name}", StorageConfig())
        for path in folder.iterdir():
            store.write(path.name, path.read_bytes())
    environment = {**os.environ, **s3_server.environ, "RAY_TMPDIR": ray_files}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {bucket}/new\ndeltas: [{{post: {bucket}/post, base: {bucket}/old}}]\noutput: {bucket}/out\nshard_size: 5KB\n")
    code, text, lines = run(["merge", str(recipe), "--engine", engine, "--json"], environment)
    assert code == 0, text
    code, told, more = run(
        ["merge", str(recipe), "--overwrite", "--engine", engine],
        {**environment, "AWS_SESSION_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": "PLANTED-WRONG-SECRET"},
    )
    assert code == 4, told
    store = open_store(f"{bucket}/out", StorageConfig())
    written = "".join(store.read(name, limit=1 << 30).decode(errors="replace") for name in store.list())
    logs = "".join(path.read_text(errors="replace") for path in Path(ray_files).rglob("*") if path.is_file())
    assert "commit" in str(store.list())
    for planted in (secret, TOKEN, "PLANTED-WRONG-SECRET"):
        for place, content in (
            ("output", written),
            ("terminal", text + told),
            ("ray's logs", logs),
            ("process list", "".join(lines | more)),
        ):
            assert planted not in content, f"{planted} is in the {place}"


@pytest.mark.parametrize(
    "url",
    ["s3://key:PLANTED@bucket/x", "https://user:PLANTED@host/x", "https://host/x?X-Amz-Signature=PLANTED", "sftp://me:PLANTED@host/x"],
)
@pytest.mark.parametrize("command", ["inspect", "status", "verify", "clean"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(command, url, tmp_path):
    done = call(command, url, cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 2
    assert "PLANTED" not in text
    assert "Traceback" not in text


PLANTED = {
    "AWS_SESSION_TOKEN": "PLANTED-session/token+1=",
    "AZURE_STORAGE_ACCOUNT_KEY": "PLANTEDaccountkey/ABCDEFGHIJKLMNOPQRSTUVWXYZ==",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2024-01-01&sig=PLANTED%2Fsignature%3D",
    "HF_TOKEN": "hf_PLANTEDabcdefghijklmnopqrstuvwxyz",
    "RAY_AUTH_TOKEN": "PLANTED-ray-token",
    "HTTPS_PROXY": "http://clerk:PLANTED-proxy@127.0.0.1:1",
}
"""Secrets of the environment that a run of the local disk or of another store has no business to show."""


@pytest.fixture
def models(tmp_path):
    for name in ("new", "post", "old"):
        save_model(tmp_path / name, {"w": torch.ones(1000)})
    (tmp_path / "recipe.yaml").write_text("base: new\ndeltas: [{post: post, base: old}]\noutput: out\n")
    return tmp_path


def everything_written(folder):
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_no_secret_of_the_environment_is_printed_or_written_by_any_command(models):
    shown = ""
    for arguments in (
        ["check"], ["plan"], ["merge", "--report"], ["status", "out"], ["verify", "out", "--deep"], ["inspect", "new"], ["clean", "out"],
        ["analyze", "--output", "analysis"],
    ):  # fmt: skip
        recipe = ["recipe.yaml"] if arguments[0] in ("check", "plan", "merge", "analyze") else []
        for more in ([], ["--json"]):
            done = call(arguments[0], *recipe, *arguments[1:], *more, cwd=models, **PLANTED)
            assert done.returncode == 0, done.stderr
            shown += done.stdout + done.stderr
    assert "PLANTED" not in shown
    assert "PLANTED" not in everything_written(models)


URLS = [
    "az://container/model?sv=2024&sig=PLANTED%2Fsig",
    "abfss://container@account.dfs.core.windows.net/model?sig=PLANTED",
    "https://account.blob.core.windows.net/container?sv=2024&sig=PLANTED",
    "gs://bucket/model?X-Goog-Signature=PLANTED&X-Goog-Credential=PLANTED",
    "s3://bucket/model?X-Amz-Signature=PLANTED&X-Amz-Security-Token=PLANTED",
    "https://me:PLANTED@host/model",
    "hf://me:PLANTED@someone/model",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("place", ["base", "post", "output", "tokenizer_from", "storage"])
def test_a_signed_url_in_a_recipe_is_refused_and_never_repeated(models, url, place):
    recipe = {"base": "new", "post": "post", "output": "out", "tokenizer_from": "base", "storage": "s3://x/"} | {place: url}
    text = (
        f"base: {recipe['base']!r}\ndeltas: [{{post: {recipe['post']!r}, base: old}}]\noutput: {recipe['output']!r}\n"
        f"tokenizer_from: {recipe['tokenizer_from']!r}\nstorage: {{{recipe['storage']!r}: {{region: us-east-1}}}}\n"
    )
    (models / "signed.yaml").write_text(text)
    before = everything_written(models)
    for command in (["check"], ["plan"], ["merge"], ["submit", "--address", "http://127.0.0.1:1"]):
        for more in ([], ["--json"]):
            done = call(command[0], "signed.yaml", *command[1:], *more, cwd=models)
            assert done.returncode == 2, done.stderr
            assert "PLANTED" not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
    assert everything_written(models) == before


@pytest.mark.parametrize("arguments", [["inspect"], ["status"], ["merge", "a"], ["frobnicate"], ["plan", "--base"], ["clean"], ["import"]])
@pytest.mark.parametrize("url", URLS[1:2] + URLS[5:6])
def test_no_command_repeats_the_secret_of_an_argument(tmp_path, arguments, url):
    for more in ([], ["--no-such"], [f"--no-such={url}"]):
        done = call(*arguments, url, *more, cwd=tmp_path)
        assert done.returncode == 2
        assert "PLANTED" not in done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("AWS_ENDPOINT_URL", "http://me:PLANTED-password@{server}", 2),
        ("http_proxy", "http://me:PLANTED%2Fpassword@no proxy", 2),
        ("AWS_SESSION_TOKEN", "PLANTED-session-token", 4),
        ("AWS_SECRET_ACCESS_KEY", "PLANTED-secret/key+1", 4),
        ("AWS_SECRET_ACCESS_KEY", "PLANTED-secret\n", 4),
        ("AWS_ACCESS_KEY_ID", "PLANTED-ACCESS-KEY-ID", 4),
    ],
)
def test_what_goes_wrong_is_told_without_the_secret_that_was_sent(tmp_path, s3_server, monkeypatch, engine, variable, value, code):
    filled = value.format(server=s3_server.endpoint.removeprefix("http://"))
    bucket = s3_server.make_bucket()
    (tmp_path / "recipe.yaml").write_text(
        f"base: s3://{bucket}/new\ndeltas: [{{post: s3://{bucket}/post}}]\noutput: out\nstorage: {{'s3://': {{engine: {engine}}}}}\n"
    )
    for more in ([], ["--json"]):
        done = call("check", "recipe.yaml", *more, cwd=tmp_path, **{**s3_server.environ, variable: filled})
        assert done.returncode == code, done.stderr
        assert "PLANTED" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_proxy_that_is_away_is_told_without_its_password(s3_server, monkeypatch, capsys, engine, as_json):
    """As `check` tells it, but without the 90 seconds of patience that every command has."""
    for name, value in {**s3_server.environ, "HTTP_PROXY": f"http://me:PLANTED-password@127.0.0.1:{free_ports(1)[0]}"}.items():
        monkeypatch.setenv(name, value)
    impatient = StoreSettings(engine, retries=RetryPolicy(seconds=0.5))
    given = stored_by(recipe("s3://bucket/new", "s3://bucket/post", None, "out"), StorageConfig({"s3://": impatient}))
    with pytest.raises(typer.Exit) as ended, reporting(as_json, tells=True):
        api.check(given)
    assert ended.value.exit_code == 75
    said = capsys.readouterr()
    assert "127.0.0.1" in said.err
    assert "PLANTED" not in said.out + said.err
    assert "Traceback" not in said.err


def test_a_bug_shows_its_traceback_without_secrets(tmp_path):
    """A module that Python imports first makes a bug of what the command line calls."""
    (tmp_path / "sitecustomize.py").write_text(
        "import paramdelta_dist.api as api\n"
        "def broken(url, *_):\n    raise ZeroDivisionError(f'GET {url}?sig=PLANTED with PLANTED-session-token')\n"
        "api.status = broken\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), ROOT)), "AWS_SESSION_TOKEN": "PLANTED-session-token"}
    done = subprocess.run(
        [sys.executable, "-m", "paramdelta_dist", "status", "az://c/x"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: GET az://c/x?sig=*** with ***" in done.stderr
    assert "PLANTED" not in done.stderr + done.stdout
