"""What a recipe's storage settings say of where bytes live is part of what a merge is; what the previous version made stays what it is."""

import json
import os

import pytest
import torch
import yaml

from paramdelta_dist import api
from paramdelta_dist.errors import OutputOccupied
from paramdelta_dist.jobs.submit import Submission
from paramdelta_dist.output.sealed_json import parse_document, render_document
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.yaml_text import parse_recipe
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import save_model
from tests.servers import s3_server as start_s3_server
from tests.terminal import call

BUCKET = "models"
NAMES = ("new", "post", "old")


@pytest.fixture(scope="module")
def sites(s3_server, tmp_path_factory):
    """Two S3 servers with the same bucket, in which the same models are under the same names."""
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(100, 100, generator=generator) for n in range(4)}
    with start_s3_server() as other:
        for server in (s3_server, other):
            server.client().create_bucket(Bucket=BUCKET)
        for name, scale in zip(NAMES, (1.0, 1.1, 0.9), strict=True):
            for path in save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2).iterdir():
                for server in (s3_server, other):
                    server.client().put_object(Bucket=BUCKET, Key=f"{name}/{path.name}", Body=path.read_bytes())
        yield s3_server, other


@pytest.fixture(autouse=True)
def keys(sites, monkeypatch):
    """Both servers know the same key; where they are, the environment does not say."""
    for name, value in sites[0].environ.items():
        if name not in ("AWS_ENDPOINT_URL", "AWS_REGION"):
            monkeypatch.setenv(name, value)


def merge_of(output, settings, **more):
    document = {"base": f"s3://{BUCKET}/new", "deltas": [{"post": f"s3://{BUCKET}/post", "base": f"s3://{BUCKET}/old"}]}
    storage = {"storage": {"s3://": settings}} if settings else {}
    return Recipe.model_validate({**document, "output": output, "shard_size": "50KB", **storage, **more})


def stem(recipe):
    return Submission(recipe, api.plan(recipe)[0].fingerprint).stem


def names(server, prefix):
    listed = server.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix) for entry in listed}


def previous_version(output):
    """Make the output what the version wrote that knew nothing of locations."""
    path = output / ".paramdelta/plan.json"
    document = parse_document(path.read_bytes())
    assert document.pop("locations") == {}
    path.write_bytes(render_document(document))


@pytest.mark.parametrize(
    "changed", [{"region": "eu-west-1"}, {"profile": "lab"}, {"endpoint": "http://other:9000"}, {"endpoint": "http://minio:9000/prefix"}]
)
def test_what_decides_where_an_output_lives_decides_which_job_it_is(changed):
    here = merge_of(f"s3://{BUCKET}/out", {"endpoint": "http://minio:9000", "region": "us-east-1"})
    there = here.model_copy(update={"storage": {"s3://": here.storage["s3://"].model_copy(update=changed)}})
    assert Submission(here, "f").stem != Submission(there, "f").stem
    assert Submission(here, None).stem != Submission(there, None).stem


@pytest.mark.parametrize("changed", [{"anonymous": True}, {"engine": "fsspec"}, {"endpoint": "http://minio:9000/"}])
def test_the_way_to_an_output_does_not(changed):
    here = merge_of(f"s3://{BUCKET}/out", {"endpoint": "http://minio:9000"})
    there = here.model_copy(update={"storage": {"s3://": here.storage["s3://"].model_copy(update=changed)}})
    assert Submission(here, "f").stem == Submission(there, "f").stem


def test_settings_of_other_places_and_of_local_folders_change_nothing():
    plain = merge_of("/models/out", {})
    for prefix in ("s3://elsewhere/", "/models", ""):
        set_there = merge_of("/models/out", {}, storage={prefix: {"endpoint": "http://minio:9000"}})
        assert Submission(set_there, "f").stem == Submission(plain, "f").stem


def test_one_recipe_at_two_endpoints_makes_two_outputs(sites, tmp_path):
    plans = []
    for server in sites:
        recipe = merge_of(f"s3://{BUCKET}/twice", {"endpoint": server.endpoint})
        plans.append((api.plan(recipe)[0].fingerprint, stem(recipe)))
        assert api.merge(recipe).state == "merged"
        assert api.merge(recipe).state == "nothing to do"
    assert len(set(plans)) == len({fingerprint for fingerprint, _ in plans}) == 2
    assert names(sites[0], "twice/") == names(sites[1], "twice/") >= {"config.json", ".paramdelta/commit.json"}


def test_inputs_from_elsewhere_are_another_merge_which_says_what_differs_and_goes_on_with_the_old_settings(sites, tmp_path):
    here, there = (merge_of(str(tmp_path / "out"), {"endpoint": server.endpoint}) for server in sites)
    assert api.merge(here).state == "merged"
    with pytest.raises(OutputOccupied) as raised:
        api.merge(there)
    said = str(raised.value)
    assert f"endpoint of s3://{BUCKET}/new was {sites[0].endpoint}, is {sites[1].endpoint}" in said
    assert "with the settings as they were it goes on" in said
    assert api.merge(here).state == "nothing to do"
    assert api.merge(there, overwrite=True).state == "merged"


def test_an_output_is_verified_from_wherever_its_inputs_are_reached(sites, tmp_path, monkeypatch):
    recipe = merge_of(str(tmp_path / "out"), {"endpoint": sites[0].endpoint})
    api.merge(recipe)
    assert api.verify(str(tmp_path / "out"), recompute=1.0, recipe=recipe)["ok"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", sites[0].endpoint)
    assert api.verify(str(tmp_path / "out"), recompute=1.0)["ok"]
    elsewhere = merge_of(str(tmp_path / "out"), {"endpoint": sites[1].endpoint})
    assert api.verify(str(tmp_path / "out"), recompute=1.0, recipe=elsewhere)["ok"], "the same versions of the same files"


def test_without_settings_a_plan_is_what_it_was(sites, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", sites[0].endpoint)
    plan, _ = api.plan(merge_of(str(tmp_path / "out"), {"anonymous": False, "engine": "obstore"}))
    assert plan.fingerprint == plan.unlocated == api.plan(merge_of(str(tmp_path / "other"), {}))[0].fingerprint


@pytest.mark.parametrize("template", ["out", "nightly/{date}", "nightly/{inputs}"])
@pytest.mark.parametrize("sweep", [False, True], ids=["merge", "sweep"])
def test_what_the_previous_version_made_with_settings_is_done_and_what_it_began_goes_on(sites, tmp_path, monkeypatch, template, sweep):
    if sweep and template != "out":
        pytest.skip("a sweep has no template")
    more = {"sweep": {"weight": [0.5, 1.0]}} if sweep else {}
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", sites[0].endpoint)
        api.merge(merge_of(str(tmp_path / template), {}, **more))
    recipe = merge_of(str(tmp_path / template), {"endpoint": sites[0].endpoint}, **more)
    outputs = [path.parent.parent for path in tmp_path.rglob(".paramdelta/plan.json")]
    assert len(outputs) == 1 + sweep
    for output in outputs:
        previous_version(output)
    assert api.merge(recipe).state == "nothing to do"
    for output in outputs:
        (output / ".paramdelta/commit.json").unlink()
        (output / "config.json").unlink()
        next(output.glob("*1-of-0000*.safetensors")).unlink()
    result = api.merge(recipe)
    assert result.state == "merged"
    assert result.report["shards"]["kept"] > 0
    assert api.merge(recipe).state == "nothing to do"
    assert api.verify(str(outputs[0]), deep=True)["ok"]
    assert len(list(tmp_path.rglob(".paramdelta/plan.json"))) == 1 + sweep, "and nothing beside it"


def test_what_this_version_made_without_settings_is_not_taken_for_what_the_previous_one_made_with_them(sites, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", sites[0].endpoint)
        api.merge(merge_of(str(tmp_path / "out"), {}))
    with pytest.raises(OutputOccupied, match=f"endpoint of s3://{BUCKET}/new was not set, is {sites[1].endpoint}"):
        api.merge(merge_of(str(tmp_path / "out"), {"endpoint": sites[1].endpoint}))


@pytest.mark.parametrize("command", [["status"], ["inspect"], ["clean"], ["verify"], ["verify", "--recompute", "1"]], ids=" ".join)
def test_every_command_about_a_folder_takes_the_settings_to_reach_it_from_a_recipe(sites, tmp_path, command):
    recipe = merge_of(f"s3://{BUCKET}/reached", {"endpoint": sites[1].endpoint})
    api.merge(recipe)
    text = yaml.dump(recipe.model_dump(by_alias=True, exclude_unset=True, mode="json"))
    assert parse_recipe(text, where="r") == recipe
    (tmp_path / "recipe.yaml").write_text(text)
    name, *options = command
    done = call(name, recipe.output, *options, "--recipe", "recipe.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.get("output", found.get("url")) == recipe.output
    if name == "status":
        assert found["state"] == "complete"


def test_a_job_is_its_clusters_and_no_recipes(tmp_path):
    done = call("status", "pdd-0123456789ab-1", "--recipe", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "--recipe: pdd-0123456789ab-1 is a job" in done.stderr


def test_no_settings_are_lost_on_the_way_to_the_output(sites):
    config = StorageConfig({"s3://": merge_of("s3://x/out", {"endpoint": sites[1].endpoint}).storage_config.by_prefix["s3://"]})
    assert open_store(f"s3://{BUCKET}/new", config).list()
    assert "AWS_ENDPOINT_URL" not in os.environ
