"""verify finds and locates one altered byte anywhere; clean finds what killed merges leave, and nothing else."""

import json
import random
import shutil

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.errors import InputChanged, InputError, IntegrityError
from paramdelta_dist.recipe.yaml_text import parse_recipe
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import recipe, save_model
from tests.terminal import call


@pytest.fixture
def models(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(70, 51, generator=generator) for n in range(6)} | {"ids": torch.arange(9)}
    made = [
        save_model(tmp_path / name, {n: t * 2 if name == "new" and t.is_floating_point() else t for n, t in tensors.items()}, files=2)
        for name in ("new", "post", "old")
    ]
    (made[1] / "tokenizer_config.json").write_text('{"a": 1}')
    return made


@pytest.fixture
def output(models, tmp_path):
    api.merge(recipe(*models, tmp_path / "out", shard_size="30KB"))
    return tmp_path / "out"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_a_sound_output_passes_every_check(output):
    document = api.verify(str(output), deep=True, recompute=1.0)
    assert (document["ok"], document["problems"]) == (True, [])
    assert document["tiles_recomputed"] >= 3
    assert document["bytes_read"] > 0


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_one_flipped_byte_in_a_tensor_is_located_to_file_and_tensor(output, engine, request):
    if engine == "ray":
        request.getfixturevalue("on_shared_ray")
    names = {}
    for path in sorted(output.glob("*.safetensors")):
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        names |= {name: (path, start + entry["data_offsets"][0]) for name, entry in header.items() if name != "__metadata__"}
    path, position = names["layers.3.weight"]
    flip(path, position + 17)
    assert api.verify(str(output))["ok"], "a structural check reads no weights"
    document = api.verify(str(output), deep=True, engine=engine)
    assert document["problems"] == [f"{path.name}: the bytes of tensor 'layers.3.weight' were altered"]
    recomputed = api.verify(str(output), recompute=1.0)
    assert len(recomputed["problems"]) == 1
    assert "'layers.3.weight'" in recomputed["problems"][0]


@pytest.mark.parametrize("seed", range(25))
def test_one_flipped_byte_anywhere_is_found(output, seed):
    generator = random.Random(seed)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    path = files[seed % len(files)]
    flip(path, generator.randrange(path.stat().st_size))
    try:
        document = api.verify(str(output), deep=True)
        problems = [*document["problems"], *document["edited"]]
    except IntegrityError as error:  # the commit itself
        problems = [str(error)]
    assert any(str(path.relative_to(output)) in problem for problem in problems), path


def lie_about_the_total(out):
    index = out / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"total_size": 8', '"total_size": 9'))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda out: next(out.glob("*.safetensors")).unlink(), "missing"),
        (lambda out: (out / "tokenizer_config.json").write_text("{}"), "tokenizer_config.json: 2 bytes"),
        (lambda out: shutil.copy(next(out.glob("*.safetensors")), out / "consolidated.safetensors"), "consolidated.safetensors: not part"),
        (lambda out: next((out / ".paramdelta/receipts").iterdir()).unlink(), "receipts/"),
        (lie_about_the_total, "total_size"),
    ],
    ids=["shard gone", "side file replaced", "stray shard", "receipt gone", "total_size wrong"],
)  # fmt: skip
def test_structural_damage_is_found_without_reading_weights(output, damage, told):
    damage(output)
    document = api.verify(str(output))
    assert not document["ok"]
    assert any(told in problem for problem in document["problems"]), document["problems"]
    assert document["bytes_read"] == 0


def test_verify_of_what_is_no_finished_merge_is_an_input_error(models, tmp_path):
    with pytest.raises(InputError, match="no finished merge"):
        api.verify(str(models[0]))
    with pytest.raises(InputError, match="no finished merge"):
        api.verify(str(tmp_path / "nowhere"))


def test_recomputing_from_changed_inputs_is_refused(models, output):
    path = next(models[1].glob("*.safetensors"))
    path.write_bytes(path.read_bytes())
    with pytest.raises(InputChanged, match="no longer those it was merged from"):
        api.verify(str(output), recompute=0.5)


def test_a_moved_output_is_still_verified(output, tmp_path):
    shutil.copytree(output, tmp_path / "elsewhere")
    assert api.verify(str(tmp_path / "elsewhere"), deep=True)["ok"]


def s3(server, monkeypatch):
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.make_bucket()}"


def test_verify_works_over_s3_and_finds_a_replaced_object(models, s3_server, monkeypatch):
    bucket = s3(s3_server, monkeypatch)
    api.merge(recipe(*models, f"{bucket}/out", shard_size="30KB"))
    assert api.verify(f"{bucket}/out", deep=True, recompute=0.5)["ok"]
    store = open_store(f"{bucket}/out", StorageConfig())
    name = next(name for name in store.list() if name.endswith("2-of-00003.safetensors"))
    data = bytearray(store.read(name, limit=1 << 30))
    data[-5] ^= 1
    store.write(name, bytes(data))
    problems = api.verify(f"{bucket}/out", deep=True)["problems"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: the bytes of tensor")


OURS = ".model-00001-of-00003.safetensors.1a2b3c4d.paramdelta-part"
EARLIER = ".model-00001-of-00003.safetensors.1a2b3c4d.part"


def planted(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")


def cleaned(url, root, **more):
    """What is listed and what is left alone, and what of the files below `root` is gone after it is removed."""
    before = {path for path in root.rglob("*") if path.is_file()}
    document = api.clean(str(url), older_than=0, **more)
    assert {path for path in root.rglob("*") if path.is_file()} == before, "listing removes nothing"
    api.clean(str(url), older_than=0, remove=True, **more)
    gone = before - {path for path in root.rglob("*") if path.is_file()}
    assert {str(url / entry["name"]) for entry in document["leftovers"]} == set(map(str, gone))
    return gone, {entry["name"]: entry["reason"] for entry in document["left_alone"]}


def test_clean_lists_first_and_removes_only_old_leftovers_of_this_output(models, output, tmp_path):
    planted(output / OURS, output / EARLIER, output / ".paramdelta" / "receipts" / ".a.json.00000000.paramdelta-part", tmp_path / OURS)
    document = api.clean(str(output))
    assert document["leftovers"] == []
    assert {entry["reason"] for entry in document["left_alone"]} == {"it is younger than that"}
    gone, left = cleaned(output, tmp_path)
    assert gone == {output / OURS, output / EARLIER, output / ".paramdelta" / "receipts" / ".a.json.00000000.paramdelta-part"}
    assert left == {}
    assert api.verify(str(output), deep=True)["ok"]


STRANGERS = (
    ".x.part", ".other.part", ".movie.mkv.part", ".download.1A2B3C4D.part", ".download.1a2b3c4.part", ".1a2b3c4d.part",
    "visible.1a2b3c4d.part", ".notes.paramdelta-part", ".model.safetensors.1a2b3c4d.paramdelta-part~", ".paramdelta-part", ".part",
)  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_clean_leaves_hidden_files_of_strangers_alone_even_in_an_output(output, tmp_path, name):
    planted(output / name, output / "deep" / name, tmp_path / "beside" / name)
    gone, left = cleaned(tmp_path, tmp_path)
    assert gone == set()
    assert set(left.values()) <= {"its name is not one of ours"}


@pytest.mark.parametrize("name", [EARLIER, ".0123456789abcdef.part"])
def test_files_of_the_earlier_form_are_ours_only_in_an_output_of_ours(output, tmp_path, name):
    """Others may have files of such names too."""
    planted(output / name, tmp_path / "qwen" / name, tmp_path / name)
    gone, left = cleaned(tmp_path, tmp_path)
    assert gone == {output / name}
    assert left == dict.fromkeys([name, f"qwen/{name}"], "no output of ours is there (.paramdelta/plan.json is missing)")


def test_clean_finds_what_is_left_beside_the_outputs_of_a_series_and_before_a_plan_was_written(models, tmp_path):
    nightly = tmp_path / "nightly"
    api.merge(recipe(*models, nightly / "{date}"))
    begun = nightly / "2020-01-01" / ".paramdelta" / ".plan.json.12345678.paramdelta-part"
    ours = {
        nightly / ".latest.json.12345678.paramdelta-part",
        nightly / ".paramdelta" / "latest" / ".a.json.12345678.paramdelta-part",
        begun,
    }
    planted(*ours, nightly / "qwen" / OURS, tmp_path / "llama" / OURS)
    gone, left = cleaned(nightly, tmp_path)
    assert gone == ours
    assert list(left) == [f"qwen/{OURS}"]
    planted(*ours)
    assert {entry["name"] for entry in api.clean(str(nightly / "{date}"), older_than=0)["leftovers"]} == {
        str(path.relative_to(nightly)) for path in ours
    }


def test_clean_removes_no_link_folder_or_pipe_that_has_a_name_of_ours(output, tmp_path):
    planted(tmp_path / "precious")
    (output / OURS).symlink_to(tmp_path / "precious")
    (output / OURS.replace("1a", "2b")).mkdir()
    planted(output / OURS.replace("1a", "2b") / "inside")
    (output / "linked").symlink_to(tmp_path / "beside")
    planted(tmp_path / "beside" / OURS)
    assert cleaned(output, tmp_path) == (set(), {})
    assert (output / OURS).is_symlink()


@pytest.mark.parametrize("plan", [b"", b"{", b"theirs"])
def test_a_plan_that_a_power_cut_has_emptied_still_tells_an_output_of_ours(output, tmp_path, plan):
    (output / ".paramdelta" / "plan.json").write_bytes(plan)
    planted(output / OURS, output / EARLIER)
    assert cleaned(output, tmp_path)[0] == {output / OURS, output / EARLIER}


def test_clean_tells_on_the_terminal_what_it_removes_and_what_it_leaves_alone(output, tmp_path):
    planted(output / OURS, output / ".x.part", *(tmp_path / "many" / f".{n}.part" for n in range(30)))
    done = call("clean", ".", "--older-than", "0s", cwd=tmp_path)
    assert f"unfinished file out/{OURS}" in done.stdout
    assert "left alone: unfinished file out/.x.part" in done.stdout
    assert "left alone: 19 more" in done.stdout
    assert "1 leftover found, none removed: --yes removes them" in done.stdout
    done = call("clean", ".", "--older-than", "0s", "--yes", cwd=tmp_path)
    assert (done.returncode, "1 leftover removed" in done.stdout) == (0, True)
    assert not (output / OURS).exists()
    assert len(list(tmp_path.rglob("*.part"))) == 31


def test_clean_aborts_open_uploads_of_outputs_of_ours_and_leaves_others(models, s3_server, monkeypatch):
    from paramdelta_dist.storage import StoreSettings, aws

    bucket = s3(s3_server, monkeypatch)
    api.merge(recipe(*models, f"{bucket}/runs/out", shard_size="30KB"))
    client, name = aws.client(StoreSettings()), bucket.removeprefix("s3://")
    ours = ["runs/out/.paramdelta/plan.json", "runs/out/model-00001-of-00003.safetensors", "runs/out/model-00009-of-00009.safetensors"]
    theirs = [
        "runs/other", "runs/out/model.gguf", "runs/out/qwen/model-00001-of-00003.safetensors", "runs/out2/model.safetensors",
        "runs/qwen/model-00001-of-00003.safetensors",
    ]  # fmt: skip
    for key in ours + theirs:
        upload = client.create_multipart_upload(Bucket=name, Key=key)
        client.upload_part(Bucket=name, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 100)

    def uploads():
        return sorted(upload["Key"] for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []))

    document = api.clean(f"{bucket}/runs/out", older_than=0)
    assert sorted(f"runs/out/{entry['name']}" for entry in document["leftovers"]) == ours
    document = api.clean(f"{bucket}/runs", older_than=0)
    assert sorted(f"runs/{entry['name']}" for entry in document["leftovers"]) == ours
    assert sorted(f"runs/{entry['name']}" for entry in document["left_alone"]) == theirs
    assert uploads() == sorted(ours + theirs)
    api.clean(bucket, older_than=0, remove=True)
    assert uploads() == theirs


def test_a_recipe_gives_verify_its_storage_settings(models, output):
    text = f"base: {models[0]}\ndeltas: [{{post: {models[1]}, base: {models[2]}}}]\noutput: {output}\nshard_size: 30KB\n"
    assert api.verify(str(output), recompute=0.3, recipe=parse_recipe(text, where="r"))["ok"]
