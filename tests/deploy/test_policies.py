"""The rights in deploy/iam are those that a merge needs: the requests it really makes, held against the policy."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.deploy.files import CLUSTER, DEPLOY, load
from tests.faults import fault_proxy, refused

INPUTS, OUTPUTS = "my-models", "my-merged-models"
S3_POLICY = load(DEPLOY / "iam/s3-policy.json")
POLICIES = ["s3-policy.json", "ray-head-policy.json"]


def as_list(value):
    return value if isinstance(value, list) else [value]


def allows(policy, action, resource):
    """Whether a policy without conditions and denials lets `action` be done to `resource`."""
    return any(
        action in as_list(statement["Action"]) and any(fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
        for statement in policy["Statement"]
    )


def meaning(method, path):
    """(action, resource) that S3 asks rights for, of one request."""
    parts = urlsplit(path)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    arn = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    if not key:
        if method == "POST":
            assert "delete" in query, path
            return "s3:DeleteObject", arn + "/any"
        assert method in ("GET", "HEAD"), (method, path)
        return ("s3:ListBucketMultipartUploads" if "uploads" in query else "s3:ListBucket"), arn
    if "uploadId" in query and method in ("GET", "DELETE"):
        return ("s3:ListMultipartUploadParts" if method == "GET" else "s3:AbortMultipartUpload"), arn
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}[
        method
    ], arn


@pytest.fixture
def asked(s3_server, monkeypatch, tmp_path):
    """Every right that the whole life of an output asks for, with each engine: merge, a failing upload, status, verify, again with
    other inputs, pruning, and cleaning up after a killed run."""
    import torch

    from paramdelta_dist import api
    from paramdelta_dist.errors import ParamDeltaError
    from tests.models import save_model

    client = s3_server.client()
    for bucket in (INPUTS, OUTPUTS):
        client.create_bucket(Bucket=bucket)
    numbers = torch.arange(5 << 20, dtype=torch.float32)  # 20 MiB: an upload in parts
    for number, name in enumerate(("old", "post", "new")):
        for path in save_model(tmp_path / name, {"a.weight": numbers + number}).iterdir():
            client.put_object(Bucket=INPUTS, Key=f"{name}/{path.name}", Body=path.read_bytes())
    with fault_proxy(s3_server.endpoint) as proxy:
        for name, value in {**s3_server.environ, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            monkeypatch.setenv(name, value)
        for engine in ("obstore", "fsspec"):
            text = f"base: s3://{INPUTS}/new\ndeltas: [{{post: s3://{INPUTS}/post, base: s3://{INPUTS}/old}}]\n"
            text += f"output: s3://{OUTPUTS}/{engine}/{{date}}-{{inputs}}\n"
            text += f"storage: {{'s3://': {{engine: {engine}}}}}\n"
            client.put_object(Bucket=INPUTS, Key=f"{engine}.yaml", Body=text.encode())
            half = text.replace("old}]", "old, weight: 0.5}]")
            client.put_object(Bucket=INPUTS, Key=f"{engine}-half.yaml", Body=half.encode())
            recipe = api.load_recipe(f"s3://{INPUTS}/{engine}.yaml")
            proxy.rule(refused(400, "InvalidRequest"), method="PUT", path="partNumber=2")  # an upload that fails is aborted
            with pytest.raises(ParamDeltaError):
                api.merge(recipe)
            merged = api.merge(recipe)
            assert merged.report["shards"] == {"made": 1, "kept": 0}
            output = merged.output
            assert api.status(output)
            assert api.verify(output, deep=True, recompute=1.0, recipe=recipe)["ok"]
            assert api.merge(recipe, overwrite=True).state == "merged"
            other = api.merge(api.load_recipe(f"s3://{INPUTS}/{engine}-half.yaml"))
            pruned = api.prune(recipe.output, keep=1, remove=True, storage=recipe.storage_config)["pruned"]
            assert [each["output"] for each in pruned] == [output]
            output = other.output
            client.create_multipart_upload(Bucket=OUTPUTS, Key=f"{output.partition(OUTPUTS)[2][1:]}/model.safetensors")
            assert api.clean(output, older_than=0.0, remove=True, storage=recipe.storage_config)
            assert not s3_server.open_uploads(OUTPUTS)
        requests = list(proxy.requests)
    assert len(requests) > 50
    return {meaning(method, path): (method, path) for method, path in requests}


def test_the_s3_policy_allows_every_request_that_is_made_and_nothing_that_is_not(asked):
    for (action, resource), (method, path) in asked.items():
        assert allows(S3_POLICY, action, resource), f"{method} {path} needs {action} on {resource}"
    needed = {(action, OUTPUTS if OUTPUTS in resource else INPUTS) for action, resource in asked}
    for statement in S3_POLICY["Statement"]:
        for action in as_list(statement["Action"]):
            for pattern in as_list(statement["Resource"]):
                bucket = re.fullmatch(r"arn:aws:s3:::([\w-]+)(/\*)?", pattern)[1]
                assert (action, bucket) in needed, f"no request needs {action} on {pattern}"


@pytest.mark.parametrize("action", ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:PutBucketPolicy", "s3:PutObjectAcl"])
def test_inputs_cannot_be_changed(action):
    assert not allows(S3_POLICY, action, f"arn:aws:s3:::{INPUTS}/old/model.safetensors")
    assert not allows(S3_POLICY, action, f"arn:aws:s3:::{INPUTS}")


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_ones_that_iam_takes(name):
    policy = load(DEPLOY / "iam" / name)
    assert set(policy) == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    names = [statement["Sid"] for statement in policy["Statement"]]
    assert len(set(names)) == len(names)
    for statement in policy["Statement"]:
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert re.fullmatch(r"[A-Za-z0-9]+", statement["Sid"])
        assert statement["Effect"] == "Allow"
        for action in as_list(statement["Action"]):
            assert re.fullmatch(r"(s3|ec2|iam):[A-Z][A-Za-z]+", action), "no action with a wildcard"
        for resource in as_list(statement["Resource"]):
            assert resource == "*" or re.fullmatch(r"arn:aws:(s3|ec2|iam):[^:]*:[^:]*:.+", resource)
        for operator, conditions in statement.get("Condition", {}).items():
            assert operator in ("StringEquals", "StringLike")
            assert all(re.fullmatch(r"(aws|ec2|iam|s3):[\w/-]+", key) for key in conditions)


def test_ec2_actions_of_the_head_exist():
    from botocore.session import Session

    operations = Session().get_service_model("ec2").operation_names
    for statement in load(DEPLOY / "iam/ray-head-policy.json")["Statement"]:
        for action in as_list(statement["Action"]):
            service, operation = action.split(":")
            assert action == "iam:PassRole" or (service == "ec2" and operation in operations), action
            changes = not operation.startswith("Describe")
            nodes = any(fnmatchcase("arn:aws:ec2:us-west-2:1:instance/i-1", pattern) for pattern in as_list(statement["Resource"]))
            assert not (changes and nodes) or "Condition" in statement, f"{action} is bounded to nodes of its own"


def test_the_head_may_start_nodes_of_its_cluster_in_every_region():
    policy = load(DEPLOY / "iam/ray-head-policy.json")
    assert not re.search(r"[a-z]{2}-[a-z]+-\d", (DEPLOY / "iam/ray-head-policy.json").read_text())
    name = load(CLUSTER / "aws.yaml")["cluster_name"]
    bounds = [
        v for s in policy["Statement"] for c in s.get("Condition", {}).values() for k, v in c.items() if k.endswith("/ray-cluster-name")
    ]
    assert bounds == [name, name]


@pytest.mark.parametrize("file", ["s3-lifecycle.json", "gcs-lifecycle.json"])
def test_no_rule_of_a_bucket_expires_what_is_served(file):
    assert not re.search(r'Expiration|"Delete"', (DEPLOY / "iam" / file).read_text())


def test_the_s3_rule_for_open_uploads_is_one_that_a_store_takes(s3_server):
    rule = load(DEPLOY / "iam/s3-lifecycle.json")
    client, bucket = s3_server.client(), s3_server.make_bucket()
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rule)
    [open_uploads] = rule["Rules"]
    assert open_uploads["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 1
    assert "Expiration" not in open_uploads, "it never deletes a model"


def test_the_gcs_rule_for_open_uploads_deletes_nothing_else():
    [rule] = load(DEPLOY / "iam/gcs-lifecycle.json")["lifecycle"]["rule"]
    assert rule == {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 2}}


def test_gcs_roles_read_inputs_and_write_outputs():
    reading, writing = (load(DEPLOY / "iam" / f"gcs-{name}-role.yaml") for name in ("input", "output"))
    for role in (reading, writing):
        assert set(role) == {"title", "description", "stage", "includedPermissions"}
        assert all(re.fullmatch(r"storage\.(objects|multipartUploads)\.[a-z]+", each) for each in role["includedPermissions"])
    assert set(reading["includedPermissions"]) == {"storage.objects.get", "storage.objects.list"}
    assert set(reading["includedPermissions"]) < set(writing["includedPermissions"])
