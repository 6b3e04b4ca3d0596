"""--overwrite takes away what is ours, asks for what is not, and never an input, whatever name it has."""

import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
import yaml

from paramdelta_dist import api
from paramdelta_dist.errors import OutputOccupied, UsageError
from paramdelta_dist.output.sealed_json import parse_document, render_document
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests import oracle
from tests.models import recipe, save_model


def tensors(scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{n}.weight": scale * torch.randn(100, 50, generator=generator) for n in range(4)}


@pytest.fixture
def models(tmp_path):
    return [save_model(tmp_path / name, tensors(scale), files=2) for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def anything_goes(foreign):
    return True


def overwrite(models, out, confirm=None, **more):
    return api.merge(recipe(*models, out, **{"shard_size": "25KB", **more}), overwrite=True, confirm=confirm)


def hub(folder):
    """A folder of models: what is in it belongs to two neighbours, and a file to somebody else."""
    for name in ("llama", "qwen"):
        save_model(folder / name, tensors(seed=7), files=2)
    (folder / "notes.md").write_text("mine")
    return folder


def test_neighbours_below_the_output_are_not_touched(models, tmp_path):
    out = hub(tmp_path / "models")
    before = files(out)
    with pytest.raises(OutputOccupied, match="is not empty"):
        api.merge(recipe(*models, out, shard_size="25KB"))
    assert overwrite(models, out).state == "merged"
    assert {name: data for name, data in files(out).items() if name in before} == before
    assert overwrite(models, out, weight=0.5).state == "merged"
    assert {name: data for name, data in files(out).items() if name in before} == before


def test_a_checkpoint_that_is_not_ours_is_named_and_goes_only_when_told(models, tmp_path):
    out = save_model(hub(tmp_path / "models"), tensors(seed=3), files=3)
    (out / "tokenizer.json").write_text("{}")
    (models[1] / "tokenizer_config.json").write_text("{}")
    (out / "tokenizer_config.json").write_text('{"of": "somebody"}')
    before = files(out)
    asked = []
    with pytest.raises(OutputOccupied, match=r"model-00001-of-00003\.safetensors\n.*\n(.*\n)*Nothing was deleted") as raised:
        overwrite(models, out)
    assert "--yes" in str(raised.value)
    assert raised.value.exit_code == 3
    with pytest.raises(OutputOccupied, match="Nothing was deleted"):
        overwrite(models, out, confirm=lambda foreign: bool(asked.append(foreign)))
    assert files(out) == before
    gone = {"config.json", "model.safetensors.index.json", "tokenizer_config.json"}
    gone |= {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert [set(names) for names in asked[0].values()] == [gone]
    assert overwrite(models, out, confirm=anything_goes).state == "merged"
    kept = {name: data for name, data in before.items() if name not in gone}
    after = files(out)
    assert {name: after.get(name) for name in kept} == kept
    assert not list(out.glob("*-of-00003*"))
    assert "somebody" not in (out / "tokenizer_config.json").read_text()


def test_what_strangers_put_into_an_output_of_ours_stays(models, tmp_path):
    out = tmp_path / "out"
    api.merge(recipe(*models, out, shard_size="25KB"))
    strangers = {
        "adapter_model.safetensors": b"adapter",
        "sub/model.safetensors": b"below",
        "tokenizer.model": b"theirs",
        "run.log": b"log",
    }
    for name, data in strangers.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    assert overwrite(models, out, weight=0.5).state == "merged"
    assert {name: (out / name).read_bytes() for name in strangers} == strangers
    assert overwrite(models, out, shard_size="1MB").state == "merged"
    assert [path.name for path in out.glob("model*.safetensors")] == ["model.safetensors"], "all shards of the longer one are gone"


def test_a_strangers_file_in_the_way_of_an_output_of_ours_is_asked_for(models, tmp_path):
    out = tmp_path / "out"
    api.merge(recipe(*models, out, shard_size="25KB"))
    (out / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(OutputOccupied, match=r"out/model\.safetensors\nNothing"):
        overwrite(models, out, shard_size="1MB")
    assert (out / "model.safetensors").read_bytes() == b"theirs"
    overwrite(models, out, confirm=anything_goes, shard_size="1MB")
    assert api.verify(str(out), deep=True)["ok"]


FORGED = [
    "../new/model-00001-of-00002.safetensors",
    "llama/model-00001-of-00002.safetensors",
    "notes.md",
    "/etc/hostname",
    "run.py/../x.safetensors",
]


@pytest.mark.parametrize("document", ["plan.json", "commit.json"])
@pytest.mark.parametrize("sealed", [True, False])
def test_no_document_makes_us_delete_outside_or_what_is_no_part_of_a_checkpoint(models, tmp_path, document, sealed):
    out = hub(tmp_path / "models")
    api.merge(recipe(*models, out / "out", shard_size="25KB"))
    (out / "out/notes.md").write_text("mine")
    shutil.copytree(out / "llama", out / "out/llama")
    path = out / "out/.paramdelta" / document
    content = parse_document(path.read_bytes())
    if document == "plan.json":
        content["shards"] += [{"file": name, "size": 1, "tensors": 0, "read": 0} for name in FORGED]
        content["side_files"] += [["s3://x", name] for name in FORGED]
        content["replaces"] = FORGED
    else:
        content["files"] |= {name: {"size": 1, "tag": "1", "digest": ""} for name in FORGED}
    text = render_document(content) if sealed else render_document(content).replace(b'"seal": "', b'"seal": "0')
    path.write_bytes(text)
    before = {name: data for name, data in files(tmp_path).items() if not name.startswith("models/out/")}
    assert overwrite(models, out / "out", confirm=anything_goes, weight=0.5).state == "merged"
    assert {name: data for name, data in files(tmp_path).items() if not name.startswith("models/out/")} == before
    assert (out / "out/notes.md").read_text() == "mine"
    assert files(out / "out/llama") == files(out / "llama")


@pytest.mark.parametrize(
    "content", [{"shards": 7}, {"shards": [{}]}, {"files": []}, {"files": {"a": 1}}, {"side_files": [1], "shards": []}, {}]
)
@pytest.mark.parametrize("document", ["plan.json", "commit.json"])
def test_a_document_of_another_shape_is_no_bug_of_ours(models, tmp_path, document, content):
    out = save_model(tmp_path / "out", tensors(seed=3))
    (out / ".paramdelta").mkdir()
    (out / ".paramdelta" / document).write_bytes(render_document(content))
    with suppress(OutputOccupied):
        overwrite(models, out)
    assert overwrite(models, out, confirm=anything_goes, weight=0.5).state == "merged"
    assert api.verify(str(out), deep=True)["ok"]


# --- an input by another name


@pytest.mark.parametrize("relation", ["is", "is above", "is below"])
def test_an_output_that_is_an_input_by_a_link_is_refused(models, tmp_path, relation):
    before = files(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path if relation == "is above" else models[0])
    out = tmp_path / "alias" / ("sub" if relation == "is below" else "")
    with pytest.raises(ValueError, match="in each other"):
        overwrite(models, out, confirm=anything_goes)
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("relation", ["is", "is above", "is below"])
def test_an_output_that_is_an_input_by_a_mount_is_refused(models, tmp_path, relation):
    mount = tmp_path / "mount"
    mount.mkdir()
    source = tmp_path / "all"
    source.mkdir()
    models = [shutil.move(model, source / model.name) for model in models]
    done = subprocess.run(["mount", "--bind", source if relation == "is above" else models[0], mount], check=False)
    if done.returncode:
        pytest.skip("mounts are not allowed here")
    try:
        before = files(source)
        with pytest.raises(ValueError, match="in each other"):
            overwrite(models, mount / "sub" if relation == "is below" else mount, confirm=anything_goes)
        assert files(source) == before
    finally:
        subprocess.run(["umount", mount], check=True)


def test_files_that_an_output_shares_with_an_input_are_not_deleted(models, tmp_path):
    """Hard links stand for every other way in which one file has two names."""
    out = tmp_path / "out"
    out.mkdir()
    for path in models[0].iterdir():
        os.link(path, out / path.name)
    before = files(tmp_path)
    with pytest.raises(OutputOccupied, match=r"holds the files of the input .*new .*Nothing was deleted"):
        overwrite(models, out, confirm=anything_goes)
    assert files(tmp_path) == before


def upload(client, bucket, folder, prefix):
    for path in folder.iterdir():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())


@pytest.mark.parametrize("engines", [("auto", "auto"), ("auto", "fsspec")])
def test_a_bucket_reached_by_a_second_name_is_told_by_what_is_in_it(models, s3_server, monkeypatch, engines):
    """Of one bucket under two names, as an access point is: the input with the endpoint of the environment, the output by one given."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket, client = s3_server.make_bucket(), s3_server.client()
    for folder in models:
        upload(client, bucket, folder, folder.name)
    urls = [f"s3://{bucket}/{folder.name}" for folder in models]
    made = parse_recipe(
        yaml.safe_dump(
            {
                "base": urls[0],
                "deltas": [{"post": urls[1], "base": urls[2]}],
                "output": f"s3://{bucket}/out",
                "storage": {
                    url: {"engine": engine} for url, engine in zip((f"s3://{bucket}/new", f"s3://{bucket}/out"), engines, strict=True)
                },
            }
        ),
        where="test",
    )
    made = made.model_copy(update={"output": f"s3://{bucket}/new"})  # what no check of names would have seen
    if engines[1] == "fsspec":
        made = made.model_copy(update={"output": f"s3://{bucket}//new"})
        upload(client, bucket, models[0], "/new")

    def listed():
        return {entry["Key"]: entry["ETag"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}

    before = listed()
    with pytest.raises(OutputOccupied, match="holds the files of the input"):
        api.merge(made, overwrite=True, confirm=anything_goes)
    assert listed() == before


def test_an_output_of_ours_with_the_bytes_of_an_input_is_replaced_all_the_same(models, s3_server, monkeypatch):
    """A copy of its base, weight by weight: no reason to take it for the base itself."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.make_bucket()
    first = recipe(*models, f"s3://{bucket}/first", shard_size="25KB")
    api.merge(first)
    second = {"base": f"s3://{bucket}/first", "deltas": [{"post": str(models[1]), "base": str(models[2]), "weight": 0.0}]}
    again = Recipe.model_validate({**second, "output": f"s3://{bucket}/second", "shard_size": "25KB", "tokenizer_from": "base"})
    assert api.merge(again).state == "merged"
    assert api.merge(again, overwrite=True).state == "merged"
    with pytest.raises(ValueError, match=f"write s3://{bucket}/first"):
        Recipe.model_validate({**second, "output": f"s3://{bucket}//first"})


# --- the command line


def command(*arguments, **options):
    line = [sys.executable, "-m", "paramdelta_dist", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)


def written(models, out, path):
    path.write_text(
        yaml.safe_dump({"base": str(models[0]), "deltas": [{"post": str(models[1]), "base": str(models[2])}], "output": str(out)})
    )
    return path


def test_without_a_terminal_yes_is_the_way_to_replace_what_is_not_ours(models, tmp_path):
    out = save_model(tmp_path / "out", tensors(seed=3))
    file = written(models, out, tmp_path / "recipe.yaml")
    before = files(out)
    refused = command("merge", file, "--overwrite")
    assert refused.returncode == 3, refused
    assert "out/config.json" in refused.stderr
    assert "--yes" in refused.stderr
    assert files(out) == before
    done = command("merge", file, "--overwrite", "--yes")
    assert done.returncode == 0, done
    oracle.assert_within_one_rounding(oracle.load(out), oracle.merge(tensors(), [(tensors(1.1), tensors(0.9), 1.0)]))


def test_on_a_terminal_it_is_asked(models, tmp_path):
    out = save_model(tmp_path / "out", tensors(seed=3))
    file = written(models, out, tmp_path / "recipe.yaml")
    before = files(out)
    for answer, code in ((b"n\n", 3), (b"y\n", 0)):
        controlling, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "paramdelta_dist", "merge", str(file), "--overwrite"], stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        shown = b""
        while b"Delete these files?" not in shown:
            shown += os.read(controlling, 4096)
        assert b"out/config.json" in shown.replace(b"\r\n", b"")  # a terminal cuts long lines
        assert files(out) == before
        os.write(controlling, answer)
        with suppress(OSError):  # what Linux raises when the other side is closed
            while more := os.read(controlling, 4096):
                shown += more
        os.close(controlling)
        assert process.wait() == code, shown.decode()
    assert api.verify(str(out))["ok"]


@pytest.mark.parametrize("name", ["analysis", "sweep"])
def test_files_of_somebody_else_are_not_written_over(models, tmp_path, name):
    if name == "analysis":
        (tmp_path / "there").mkdir()
        (tmp_path / "there/report.html").write_text("mine")
        with pytest.raises(OutputOccupied, match=r"report\.html"):
            api.analyze(recipe(*models, tmp_path / "out"), str(tmp_path / "there"))
        assert (tmp_path / "there/report.html").read_text() == "mine"
        with pytest.raises(UsageError, match="input"):
            api.analyze(recipe(*models, tmp_path / "out"), str(models[0] / "analysis"))
        for _ in range(2):
            api.analyze(recipe(*models, tmp_path / "out"), str(tmp_path / "free"))
        return
    (tmp_path / "out/report").mkdir(parents=True)
    (tmp_path / "out/sweep.json").write_text('{"mine": 1}')
    swept = recipe(*models, tmp_path / "out").model_copy(update={})
    document = swept.model_dump(by_alias=True, exclude_unset=True)
    del document["deltas"][0]["weight"]
    swept = Recipe.model_validate({**document, "sweep": {"weight": [0.5, 1.0]}})
    with pytest.raises(OutputOccupied, match=r"sweep\.json is no sweep of ours"):
        api.merge(swept)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report", "sweep.json"]
    (tmp_path / "out/sweep.json").unlink()
    (tmp_path / "out/report/report.html").write_text("mine")
    with pytest.raises(OutputOccupied, match=r"report\.html"):
        api.merge(swept, report_page=True)
    assert (tmp_path / "out/report/report.html").read_text() == "mine"
