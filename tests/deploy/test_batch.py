"""Job definitions for AWS Batch and Google Cloud Batch, and the SkyPilot task."""

import pytest
from botocore.session import Session
from botocore.validate import ParamValidator

from tests.deploy.files import DEPLOY, IMAGE, load

SPOT, SEVERAL = "spot-job-definition.json", "job-definition.json"
PASSING = "75"


def container(definition):
    if definition["type"] == "container":
        return definition["containerProperties"]
    [nodes] = definition["nodeProperties"]["nodeRangeProperties"]
    return nodes["container"]


def refusals(definition):
    shape = Session().get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    return ParamValidator().validate(definition, shape).generate_report()


@pytest.mark.parametrize("name", [SPOT, SEVERAL])
def test_aws_batch_takes_the_definition(name):
    definition = load(DEPLOY / "aws-batch" / name)
    assert not refusals(definition)
    assert refusals({**definition, "retryStrategi": {}})
    assert refusals({**definition, "timeout": {"attemptDurationSeconds": "8h"}})


@pytest.mark.parametrize("name", [SPOT, SEVERAL])
def test_aws_batch_tries_again_what_may_pass_and_nothing_else(name):
    definition = load(DEPLOY / "aws-batch" / name)
    retry = definition["retryStrategy"]
    assert 1 < retry["attempts"] <= 10
    assert [(rule.get("onExitCode"), rule["action"]) for rule in retry["evaluateOnExit"]] == [
        (None, "RETRY"),
        (PASSING, "RETRY"),
        (None, "EXIT"),
    ]
    assert retry["evaluateOnExit"][0]["onStatusReason"] == "Host EC2*"
    assert definition["timeout"]["attemptDurationSeconds"] >= 3600
    assert definition["platformCapabilities"] == ["EC2"]


@pytest.mark.parametrize("name", [SPOT, SEVERAL])
def test_aws_batch_runs_our_image_as_a_role_with_the_recipe_it_is_given(name):
    definition = load(DEPLOY / "aws-batch" / name)
    properties = container(definition)
    assert properties["image"].startswith(IMAGE)
    assert properties["jobRoleArn"]
    assert "Ref::recipe" in properties["command"]
    assert definition["parameters"]["recipe"].startswith("s3://")
    assert {each["type"] for each in properties["resourceRequirements"]} == {"VCPU", "MEMORY"}
    assert not any("KEY" in each["name"] or "SECRET" in each["name"] for each in properties.get("environment", ()))


def test_several_nodes_of_aws_batch_start_by_the_launcher():
    definition = load(DEPLOY / "aws-batch" / SEVERAL)
    nodes = definition["nodeProperties"]
    assert nodes["mainNode"] == 0
    assert nodes["nodeRangeProperties"][0]["targetNodes"] == "0:"
    properties = container(definition)
    assert properties["command"][:2] == ["paramdelta-launch", "paramdelta-dist"]
    assert properties["linuxParameters"]["sharedMemorySize"] * 2**20 > 268435456, "Ray's object store lies there"


def test_one_node_of_aws_batch_takes_less_memory_than_it_has():
    from paramdelta_dist.sizes import parse_size

    properties = container(load(DEPLOY / "aws-batch" / SPOT))
    memory = next(int(each["value"]) for each in properties["resourceRequirements"] if each["type"] == "MEMORY") << 20
    assert parse_size(properties["command"][properties["command"].index("--memory") + 1]) < 0.9 * memory


def gcp_job(document):
    from google.cloud import batch_v1
    from google.protobuf import json_format

    return batch_v1.Job(json_format.ParseDict(document, batch_v1.Job.pb(batch_v1.Job())))


def test_google_batch_takes_the_job():
    from google.cloud import batch_v1
    from google.protobuf import json_format

    document = load(DEPLOY / "gcp-batch/job.json")
    job = gcp_job(document)
    [group] = job.task_groups
    assert group.task_count == group.parallelism == 4, "all nodes at once, since they wait for each other"
    assert group.task_count_per_node == 1
    assert group.require_hosts_file
    [instance] = job.allocation_policy.instances
    assert instance.policy.provisioning_model == batch_v1.AllocationPolicy.ProvisioningModel.SPOT
    assert job.allocation_policy.service_account.email
    assert job.logs_policy.destination == batch_v1.LogsPolicy.Destination.CLOUD_LOGGING
    with pytest.raises(json_format.ParseError):
        gcp_job({**document, "taskGroup": []})
    with pytest.raises(json_format.ParseError):
        gcp_job({**document, "logsPolicy": {"destination": "SOMEWHERE"}})


def test_google_batch_starts_our_image_by_the_launcher_on_the_hosts_network():
    job = gcp_job(load(DEPLOY / "gcp-batch/job.json"))
    runnable = job.task_groups[0].task_spec.runnables[-1].container
    assert runnable.image_uri.startswith(IMAGE)
    assert list(runnable.commands[:2]) == ["paramdelta-launch", "paramdelta-dist"]
    assert "--network=host" in runnable.options
    assert "--shm-size=512m" in runnable.options
    assert "/etc/cloudbatch-taskgroup-hosts:/etc/cloudbatch-taskgroup-hosts:ro" in runnable.volumes


def test_google_batch_tries_again_what_may_pass_and_nothing_else():
    from google.cloud import batch_v1

    spec = gcp_job(load(DEPLOY / "gcp-batch/job.json")).task_groups[0].task_spec
    [policy] = spec.lifecycle_policies  # Batch takes one, and does the opposite for codes that are not in it
    assert policy.action == batch_v1.LifecyclePolicy.Action.RETRY_TASK
    assert set(policy.action_condition.exit_codes) == {50001, int(PASSING)}
    assert 0 < spec.max_retry_count <= 10
    assert spec.max_run_duration.total_seconds() >= 3600


SKY = {
    "name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run",
}  # fmt: skip
SKY_RESOURCES = {
    "infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "disk_tier", "any_of", "job_recovery", "image_id", "labels",
}  # fmt: skip


def test_the_skypilot_task_has_only_fields_of_one():
    task = load(DEPLOY / "skypilot/task.yaml")
    assert set(task) <= SKY
    assert set(task["resources"]) <= SKY_RESOURCES
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [int(PASSING)]}
    assert isinstance(task["num_nodes"], int)
    assert "deploy/launch.sh paramdelta-dist merge" in task["run"]
    assert "ray start" not in task["run"]
    assert "PDD_PORT=" in task["run"], "SkyPilot's own Ray has the usual ones"


def test_the_skypilot_task_installs_what_the_image_has():
    task, dockerfile = load(DEPLOY / "skypilot/task.yaml"), (DEPLOY / "Dockerfile").read_text()
    assert "--constraints deploy/constraints.txt" in task["setup"]
    assert '"torch==2.13.0+cpu"' in task["setup"]
    assert 'TORCH="2.13.0+cpu"' in dockerfile
    assert "--python 3.11 " in task["setup"]
