"""verify finds and locates one altered byte anywhere; clean finds what killed merges leave, and nothing else."""

import json
import random
import shutil

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.errors import InputChanged, InputError, IntegrityError
from paramdelta_dist.recipe import parse_recipe
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import recipe, save_model


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
        problems = api.verify(str(output), deep=True)["problems"]
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


def test_clean_lists_first_and_removes_only_old_leftovers_of_this_output(models, output, tmp_path):
    part = output / ".model-00001-of-00003.safetensors.1a2b3c4d.part"
    part.write_bytes(b"half")
    (tmp_path / ".other.part").write_bytes(b"not below the output")
    assert api.clean(str(output))["leftovers"] == [], "too young"
    listed = api.clean(str(output), older_than=0)
    assert [leftover["name"] for leftover in listed["leftovers"]] == [part.name]
    assert part.exists()
    api.clean(str(output), older_than=0, remove=True)
    assert not part.exists()
    assert (tmp_path / ".other.part").exists()
    assert api.verify(str(output), deep=True)["ok"]


def test_clean_aborts_open_uploads_below_the_output_and_leaves_others(s3_server, monkeypatch):
    from paramdelta_dist.storage import StoreSettings, aws

    bucket = s3(s3_server, monkeypatch)
    client, name = aws.client(StoreSettings()), bucket.removeprefix("s3://")
    for key in ("runs/out/model-00001-of-00002.safetensors", "runs/out2/model.safetensors", "runs/other"):
        upload = client.create_multipart_upload(Bucket=name, Key=key)
        client.upload_part(Bucket=name, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 100)

    def uploads():
        return sorted(upload["Key"] for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []))

    assert [leftover["name"] for leftover in api.clean(f"{bucket}/runs/out", older_than=0)["leftovers"]] == [
        "model-00001-of-00002.safetensors"
    ]
    assert len(uploads()) == 3
    api.clean(f"{bucket}/runs/out", older_than=0, remove=True)
    assert uploads() == ["runs/other", "runs/out2/model.safetensors"]


def test_a_recipe_gives_verify_its_storage_settings(models, output):
    text = f"base: {models[0]}\ndeltas: [{{post: {models[1]}, base: {models[2]}}}]\noutput: {output}\nshard_size: 30KB\n"
    assert api.verify(str(output), recompute=0.3, recipe=parse_recipe(text, where="r"))["ok"]
