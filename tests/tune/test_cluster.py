"""cluster/gpu.yaml: valid for Ray, closed to the world, and of the Ray version installed here."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster" / "gpu.yaml"
PAGE = ROOT / "docs" / "cluster.md"


@pytest.fixture
def config() -> dict[str, Any]:
    """The file with Ray's defaults for AWS filled in, valid by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(prepared)
    return prepared


def test_the_head_runs_no_task(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]  # a head on spot loses the sweep


def test_workers_are_on_spot_and_come_when_needed(config: dict[str, Any]) -> None:
    (worker,) = (
        node
        for name, node in config["available_node_types"].items()
        if name != config["head_node_type"]
    )
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == config["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_images_have_the_version_of_ray_that_is_installed(config: dict[str, Any]) -> None:
    prefix = f"rayproject/ray:{version('ray')}-py311-"
    assert config["docker"]["head_image"] == prefix + "cpu"
    assert config["docker"]["worker_image"] == prefix + "cu128"


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_a_token_and_without_usage_statistics(
    config: dict[str, Any], role: str
) -> None:
    (start,) = (c for c in config[f"{role}_start_ray_commands"] if "ray start" in c)
    exports, _, command = start.partition("ray start")
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(
        exports.replace(";", " ").split()
    )
    if role == "head":
        assert "--dashboard-host=127.0.0.1" in command.split()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]  # for `ray exec`


def test_nothing_is_open_to_the_world(config: dict[str, Any]) -> None:
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]  # else Ray opens SSH to all addresses
    assert "security_group" not in config["provider"]
    own = yaml.safe_load(CLUSTER.read_text())
    assert "0.0.0.0" not in str(own)
    assert "::/0" not in str(own)


def test_no_secret_in_the_file() -> None:
    text = CLUSTER.read_text()
    assert not re.search(r"AKIA|ASIA|BEGIN .*KEY|RAY_AUTH_TOKEN=|password", text)
    assert not re.search(r"secret_access|[0-9a-f]{32}|[A-Za-z0-9+/]{40}", text, re.IGNORECASE)


def test_every_node_mounts_the_shared_file_system(config: dict[str, Any]) -> None:
    (command,) = config["initialization_commands"]
    assert command.count("fs-REPLACE") == 1
    assert '"$FILE_SYSTEM":/ /mnt/dasvit' in command
    assert "-v /mnt/dasvit:/mnt/dasvit" in config["docker"]["run_options"]


def test_the_page_fills_in_each_placeholder() -> None:
    placeholders = set(re.findall(r"\w+-REPLACE", CLUSTER.read_text()))
    assert placeholders == {"sg-REPLACE", "subnet-REPLACE", "ami-REPLACE", "fs-REPLACE"}
    section = PAGE.read_text().partition("## Your own machines")[0]
    assert placeholders == set(re.findall(r"s/(\w+-REPLACE)/", section))


@pytest.mark.slow
def test_ray_bootstraps_it_on_a_simulated_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    from ray.autoscaler._private.commands import _bootstrap_config

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair under it
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    (tmp_path / ".ssh").mkdir()
    config = yaml.safe_load(CLUSTER.read_text())
    region = config["provider"]["region"]

    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", region_name=region)
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        group = ec2.create_security_group(GroupName="dasvit", Description="-", VpcId=vpc)["GroupId"]
        text = CLUSTER.read_text().replace("sg-REPLACE", group).replace("subnet-REPLACE", subnet)
        before = ec2.describe_security_groups()["SecurityGroups"]
        final = _bootstrap_config(yaml.safe_load(text), no_config_cache=True)
        assert ec2.describe_security_groups()["SecurityGroups"] == before  # none made or opened

    nodes = final["available_node_types"]
    worker = {"CPU": 8, "GPU": 1}.items()
    assert worker <= nodes["gpu_worker"]["resources"].items()
    assert nodes["head"]["resources"]["CPU"] == 0
    for node in nodes.values():
        assert node["node_config"]["SecurityGroupIds"] == [group]
        assert node["node_config"]["SubnetIds"] == [subnet]
        assert node["node_config"]["ImageId"] == "ami-REPLACE"
        assert node["node_config"]["KeyName"]
    assert Path(final["auth"]["ssh_private_key"]).is_relative_to(tmp_path)
