"""The files for `ray up` are ones that Ray, and the cloud behind it, take."""

import jsonschema
import pytest
from botocore.session import Session
from botocore.validate import ParamValidator

from tests.deploy.files import CLUSTER, DEPLOY, IMAGE, load

CLOUDS = ["aws", "gcp"]
FILES = [*CLOUDS, "on-premise"]


def taken(config):
    """What `ray up` makes of a file. Raises jsonschema.ValidationError."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(config)
    validate_config(made)
    return made


def prepared(name):
    return taken(load(CLUSTER / f"{name}.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name):
    config = prepared(name)
    assert config["docker"]["image"].startswith(IMAGE)
    assert not config["setup_commands"], "the image has everything"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wrong", [{"unknown_key": 1}, {"idle_timeout_minutes": "five"}])
def test_ray_refuses_a_file_with_a_mistake(name, wrong):
    with pytest.raises(jsonschema.ValidationError):
        taken({**load(CLUSTER / f"{name}.yaml"), **wrong})


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_only_drives_and_workers_come_and_go(name):
    config = prepared(name)
    nodes = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert (nodes["worker"]["min_workers"], nodes["worker"]["max_workers"]) == (0, config["max_workers"])
    assert nodes["worker"]["labels"] == {"ray.io/market-type": "spot"}
    assert nodes["head"]["node_config"] != nodes["worker"]["node_config"]


@pytest.mark.parametrize("name", FILES)
def test_starts_keep_the_object_store_small_and_the_dashboard_private(name):
    config = prepared(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[0] == "ray stop"  # in the container
        assert "--object-store-memory=268435456" in commands[1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][1]


def test_ec2_takes_the_nodes_and_only_workers_are_spot():
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    nodes = load(CLUSTER / "aws.yaml")["available_node_types"]
    for node in nodes.values():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
        assert node["node_config"]["IamInstanceProfile"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert "KeyName" not in node["node_config"]
    assert nodes["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]


def test_gcp_nodes_act_as_accounts_and_only_workers_are_spot():
    nodes = load(CLUSTER / "gcp.yaml")["available_node_types"]
    assert nodes["worker"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in nodes["head"]["node_config"]
    for node in nodes.values():
        assert node["node_config"]["serviceAccounts"][0]["email"].endswith(".iam.gserviceaccount.com")


def test_boto3_on_the_head_fits_the_botocore_of_the_image():
    [command] = load(CLUSTER / "aws.yaml")["head_setup_commands"]
    pinned = dict(line.split("==") for line in (DEPLOY / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#")
    assert command.endswith(f"boto3=={pinned['botocore']}")
