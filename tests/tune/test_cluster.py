"""cluster/gpu.yaml: nothing to fill in, valid for Ray, shared storage, open to ssh alone."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "gpu.yaml").read_text()
MOUNT = "mount -t nfs4 -o hard,noatime,retry=0 10.0.0.7:/mnt/dasvit /mnt/dasvit"


def prepared(text: str) -> dict[str, Any]:
    """With Ray's defaults for AWS filled in, valid by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


@pytest.fixture
def config() -> dict[str, Any]:
    return prepared(TEXT)


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    head = config["head_node_type"]
    return {name: node for name, node in config["available_node_types"].items() if name != head}


def test_nothing_is_to_be_filled_in(config: dict[str, Any]) -> None:
    """No name of something that only one account has: all of it is Ray's or AWS's to find."""
    assert not re.search(r"REPLACE|\b(ami|sg|subnet|vpc|fs)-\d", json.dumps(config))
    for node in config["available_node_types"].values():
        assert re.fullmatch(
            r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/[\w.-]+-ubuntu-\d\d\.04/latest/ami-id",
            node["node_config"]["ImageId"],
        )
    assert "availability_zone" not in config["provider"]  # all of them


def test_what_is_commented_out_is_valid_where_it_stands() -> None:
    def uncommented(line: str) -> str:
        assert TEXT.count(f"# {line}") == 1
        return TEXT.replace(f"# {line}", line)

    own_image = prepared(uncommented("worker_image: "))["docker"]["worker_image"]
    assert own_image.startswith("registry.example.org/")
    for key in ("SubnetIds", "SecurityGroupIds"):
        for node in prepared(uncommented(f"{key}: "))["available_node_types"].values():
            assert node["node_config"][key]
    block = re.search(r"(?m)^  # - >-\n(  #   .*\n)+", TEXT)
    assert block is not None
    with_efs = TEXT.replace(block[0], re.sub(r"(?m)^  # ", "  ", block[0]))
    first, second = prepared(with_efs)["initialization_commands"]
    assert ".efs." in first
    assert second == prepared(TEXT)["initialization_commands"][0]


def test_the_head_runs_no_task_and_keeps_the_results(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]  # a head on spot loses the sweep
    assert config["provider"]["cache_stopped_nodes"] is True  # `ray down` deletes no disk
    for node in config["available_node_types"].values():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] is True


def test_workers_of_two_types_are_on_spot_and_come_when_needed(config: dict[str, Any]) -> None:
    nodes = workers(config).values()
    assert len({node["node_config"]["InstanceType"] for node in nodes}) == len(nodes) == 2
    for node in nodes:
        assert node["min_workers"] == 0
        assert node["max_workers"] == config["max_workers"]
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < config["idle_timeout_minutes"] <= 30


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


def test_no_secret_in_the_file() -> None:
    assert not re.search(r"AKIA|ASIA|BEGIN .*KEY|RAY_AUTH_TOKEN=|password", TEXT)
    assert not re.search(r"secret_access|[0-9a-f]{32}", TEXT, re.IGNORECASE)


class Node:
    """A machine whose programs only write down how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = dict.fromkeys(("mkdir", "chown", "systemctl", "exportfs"), "") | {
            "sudo": 'exec "$@"',
            "mountpoint": f"test -e {folder}/mounted",
            "dpkg": f"test -e {folder}/$2",
            "apt-get": f'test "$1" = update || touch {folder}/"${{@: -1}}"',
            "mount": f"test -e {folder}/exported && touch {folder}/mounted",
            # Each wait brings the head nearer to its export.
            "sleep": f"echo >> {folder}/waited; test $(wc -l < {folder}/waited) -lt 3 || "
            f"touch {folder}/exported",
            "tee": f'cat > {folder}/"${{1##*/}}"',
        }
        for name, body in programs.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
            program.chmod(0o755)

    def run(self, command: str, head_ip: str | None = None) -> list[str]:
        """Run a command as Ray does on a node; returns the calls it made, without `sudo`."""
        calls = self.folder / "calls"
        calls.write_text("")
        if head_ip is not None:
            command = f"export RAY_HEAD_IP={head_ip}; {command}"
        environment = {k: v for k, v in os.environ.items() if k != "RAY_HEAD_IP"}
        environment["PATH"] = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        subprocess.run(["bash", "-c", f"true && ({command})"], check=True, env=environment)
        return [line for line in calls.read_text().splitlines() if not line.startswith("sudo ")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_head_exports_the_folder_to_private_addresses(
    config: dict[str, Any], node: Node
) -> None:
    (share,) = config["initialization_commands"]
    calls = node.run(share)
    assert next(call for call in calls if "install" in call).endswith("nfs-kernel-server")
    assert calls[-1] == "exportfs -ra"
    assert not any(call.startswith("mount ") for call in calls)
    path, options, *clients = (node.folder / "dasvit.exports").read_text().split()
    assert path == "/mnt/dasvit"
    assert {"all_squash", "anonuid=1000", "sync"} <= set(options.removeprefix("-").split(","))
    assert clients == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    again = node.run(share)  # `ray up` once more
    assert again[-1] == "exportfs -ra"
    assert not any("apt-get" in call for call in again)


def test_a_worker_mounts_it_as_soon_as_the_head_exports_it(
    config: dict[str, Any], node: Node
) -> None:
    (share,) = config["initialization_commands"]
    calls = node.run(share, head_ip="10.0.0.7")
    assert next(call for call in calls if "install" in call).endswith("nfs-common")
    assert calls.count(MOUNT) == 4  # three before the export
    assert not any(call.startswith(("exportfs", "chown")) for call in calls)
    assert node.run(share, head_ip="10.0.0.7") == ["mountpoint -q /mnt/dasvit"]


def test_a_worker_that_cannot_mount_it_fails(config: dict[str, Any], node: Node) -> None:
    (share,) = config["initialization_commands"]
    (node.folder / "bin" / "sleep").write_text("#!/bin/bash\n")  # the head never comes to it
    with pytest.raises(subprocess.CalledProcessError):
        node.run(share, head_ip="10.0.0.7")


def test_the_containers_see_the_folder(config: dict[str, Any]) -> None:
    assert "-v /mnt/dasvit:/mnt/dasvit" in config["docker"]["run_options"]
    assert "--gpus all" in config["docker"]["worker_run_options"]


def test_workers_get_the_heads_own_image(
    config: dict[str, Any], node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head may start instances, but not read the parameter that the image's name stands for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    wget = node.folder / "bin" / "wget"
    wget.write_text(
        '#!/bin/bash\ncase "$*" in *PUT*api/token) echo T;; *"token: T"*ami-id) echo ami-7;; esac\n'
    )
    wget.chmod(0o755)
    (look_up,) = (c for c in config["head_start_ray_commands"] if "ami-id" in c)
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    for _ in range(2):  # `ray up` once more
        node.run(look_up)
        expected = copy.deepcopy(config)
        for kind in expected["available_node_types"].values():
            kind["node_config"]["ImageId"] = "ami-7"
        assert json.loads(file.read_text()) == expected
    wget.write_text("#!/bin/bash\nexit 4\n")  # no answer: say so now, not when a worker is missed
    with pytest.raises(subprocess.CalledProcessError):
        node.run(look_up)


@pytest.mark.slow
def test_ray_starts_it_on_a_simulated_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as moto goes: it looks no image up, checks no right, and runs nothing on a node."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair under it
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    (tmp_path / ".ssh").mkdir()
    raw = yaml.safe_load(TEXT)

    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", region_name=raw["provider"]["region"])
        final = _bootstrap_config(raw, no_config_cache=True)
        nodes = final["available_node_types"]
        zones = {
            zone["ZoneName"] for zone in ec2.describe_availability_zones()["AvailabilityZones"]
        }
        name = "ray-autoscaler-dasvit"  # as in the file's line that narrows ssh
        assert TEXT.count(f"--group-name {name} ") == 2

        def group() -> dict[str, Any]:
            (group,) = ec2.describe_security_groups(GroupNames=[name])["SecurityGroups"]
            return group

        def open_to() -> list[tuple[Any, list[str]]]:
            """Port, and addresses; what is open to the group itself is left out."""
            return [
                (rule.get("FromPort"), [r["CidrIp"] for r in rule["IpRanges"]])
                for rule in group()["IpPermissions"]
                if rule["IpRanges"]
            ]

        assert open_to() == [(22, ["0.0.0.0/0"])]
        for change, address in (
            (ec2.revoke_security_group_ingress, "0.0.0.0/0"),
            (ec2.authorize_security_group_ingress, "192.0.2.1/32"),
        ):
            change(GroupName=name, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=address)
        _bootstrap_config(raw, no_config_cache=True)  # `ray up` once more
        assert open_to() == [(22, ["192.0.2.1/32"])]

        for node in nodes.values():
            subnets = ec2.describe_subnets(SubnetIds=node["node_config"]["SubnetIds"])["Subnets"]
            assert {subnet["AvailabilityZone"] for subnet in subnets} == zones
            assert node["node_config"]["SecurityGroupIds"] == [group()["GroupId"]]
            assert node["node_config"]["KeyName"]
        assert nodes["head"]["resources"]["CPU"] == 0
        for node in workers(final).values():
            assert {"CPU": 8, "GPU": 1}.items() <= node["resources"].items()

        provider = _get_node_provider(final["provider"], final["cluster_name"])
        tags = {"ray-node-type": "head", "ray-launch-config": "-", "ray-node-name": "-"}
        head = nodes["head"]["node_config"] | final["head_node"]
        (first,) = provider.create_node(head, tags, 1)
        for worker in workers(final).values():
            provider.create_node(worker["node_config"], tags | {"ray-node-type": "worker"}, 1)
        provider.terminate_nodes(provider.non_terminated_nodes({"ray-node-type": "head"}))
        assert list(provider.create_node(head, tags, 1)) == [first]  # the same disk
    assert Path(final["auth"]["ssh_private_key"]).is_relative_to(tmp_path)
