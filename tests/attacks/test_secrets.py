"""No credential leaves the process: planted ones are searched for in everything a run writes, prints or shows."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import save_model
from tests.terminal import call

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


@pytest.mark.parametrize("engine", ["local", "ray"])
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
