"""cluster/: valid for Ray, of one version, with a token, open to ssh alone, on shared storage."""

import copy
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tune.options import parse_options

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FILES = ROOT / "cluster"
GPU, LOCAL = ((FILES / f"{name}.yaml").read_text() for name in ("gpu", "local"))
DOCKERFILE = (FILES / "Dockerfile").read_text()
CLAIM, JOB = yaml.safe_load_all((FILES / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
MOUNT = "mount -t nfs4 -o hard,noatime,retry=0 10.0.0.7:/mnt/dasvit /mnt/dasvit"


def prepared(text: str) -> dict[str, Any]:
    """With Ray's defaults filled in, valid by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


@pytest.fixture
def config() -> dict[str, Any]:
    return prepared(GPU)


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    head = config["head_node_type"]
    return {name: node for name, node in config["available_node_types"].items() if name != head}


@pytest.mark.parametrize("text", [GPU, LOCAL], ids=["gpu", "local"])
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback(text: str) -> None:
    config = prepared(text)
    for role in ("head", "worker"):
        (start,) = (c for c in config[f"{role}_start_ray_commands"] if "ray start" in c)
        exports, _, command = start.partition("ray start")
        assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(
            exports.replace(";", " ").split()
        )
        assert ("--dashboard-host=127.0.0.1" in command.split()) == (role == "head")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_no_secret_in_the_files() -> None:
    for path in FILES.iterdir():
        text = path.read_text()
        assert not re.search(r"AKIA|ASIA|BEGIN .*KEY|RAY_AUTH_TOKEN=|password", text)
        assert not re.search(r"secret_access|[0-9a-f]{32}", text, re.IGNORECASE)


def test_one_version_of_ray_everywhere(config: dict[str, Any]) -> None:
    """That of cluster/Dockerfile, and pip keeps it: pyproject.toml accepts it."""
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    parts = re.fullmatch(r"rayproject/ray:([\d.]+)-(py\d+)-cu\d+", base)
    assert parts is not None
    ray, python = parts.groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = map(Requirement, project["optional-dependencies"]["tune"])
    (accepted,) = (need for need in needs if need.name == "ray")
    assert ray in accepted.specifier
    assert config["docker"]["worker_image"] == base
    assert config["docker"]["head_image"] == f"rayproject/ray:{ray}-{python}-cpu"
    assert CLUSTER["rayVersion"] == ray
    (setup,) = prepared(LOCAL)["setup_commands"]
    assert f'"ray[default]=={ray}"' in setup
    assert f"python{python[2]}.{python[3:]} " in setup
    copied = re.findall(r"^COPY --chown=\S+ (.*) \S+$", DOCKERFILE, re.MULTILINE)
    names = " ".join(copied).split()
    assert {"dasvit", "tune", "pyproject.toml"} <= set(names)
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize(
    ("name", "heading"),
    [("local.yaml", "## Your own machines"), ("kuberay.yaml", "## Kubernetes")],
)
def test_the_page_fills_in_each_placeholder(name: str, heading: str) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    section = page.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    assert f"cluster/{name}" in section
    for placeholder in set(re.findall(r"\w+-REPLACE", (FILES / name).read_text())):
        assert f"s/{placeholder}/" in section or f"s|{placeholder}|" in section


def test_nothing_is_to_be_filled_in(config: dict[str, Any]) -> None:
    """No name of something that only one account has: all of it is Ray's or AWS's to find."""
    assert not re.search(r"REPLACE|\b(ami|sg|subnet|vpc|fs)-\d", json.dumps(config))
    for node in config["available_node_types"].values():
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")


def test_the_head_keeps_the_results_and_workers_are_on_spot(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert (head["resources"], head["max_workers"]) == ({"CPU": 0}, 0)
    assert "InstanceMarketOptions" not in head["node_config"]  # a head on spot loses the sweep
    assert config["provider"]["cache_stopped_nodes"] is True  # `ray down` deletes no disk
    for node in workers(config).values():
        assert (node["min_workers"], node["max_workers"]) == (0, config["max_workers"])
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for node in config["available_node_types"].values():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] is True
    options = config["docker"]["run_options"]
    assert {"-v /mnt/dasvit:/mnt/dasvit", "-e RAY_AUTH_MODE=token"} <= set(options)
    assert "--gpus all" in config["docker"]["worker_run_options"]


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
        (folder / "bin").mkdir()
        for name, body in programs.items():
            self.install(name, f'echo "{name} $*" >> {folder}/calls\n{body}')

    def install(self, name: str, body: str) -> None:
        program = self.folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)

    def run(self, command: str, head_ip: str | None = None) -> list[str]:
        """Run a command as Ray does on a node; returns the calls it made, without `sudo`."""
        calls = self.folder / "calls"
        calls.write_text("")
        if head_ip is not None:
            command = f"export RAY_HEAD_IP={head_ip}; {command}"
        environment = {k: v for k, v in os.environ.items() if k != "RAY_HEAD_IP"}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        environment |= {"HOME": str(self.folder)}
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
    assert calls[-1] == "exportfs -ra"
    assert not any(call.startswith("mount ") for call in calls)
    path, options, *clients = (node.folder / "dasvit.exports").read_text().split()
    assert path == "/mnt/dasvit"
    assert {"all_squash", "anonuid=1000", "sync"} <= set(options.removeprefix("-").split(","))
    assert clients == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    again = node.run(share)  # `ray up` once more
    assert again[-1] == "exportfs -ra" and not any("apt-get" in call for call in again)


def test_a_worker_mounts_it_as_soon_as_the_head_exports_it(
    config: dict[str, Any], node: Node
) -> None:
    (share,) = config["initialization_commands"]
    calls = node.run(share, head_ip="10.0.0.7")
    assert calls.count(MOUNT) == 4  # three before the export
    assert not any(call.startswith(("exportfs", "chown")) for call in calls)
    assert node.run(share, head_ip="10.0.0.7") == ["mountpoint -q /mnt/dasvit"]


@pytest.mark.parametrize(
    ("text", "head_ip"), [(GPU, "10.0.0.7"), (LOCAL, None)], ids=["gpu", "local"]
)
def test_a_machine_without_the_folder_fails(text: str, head_ip: str | None, node: Node) -> None:
    node.install("sleep", "")  # the head never comes to it
    (command,) = prepared(text)["initialization_commands"]
    with pytest.raises(subprocess.CalledProcessError):
        node.run(command, head_ip)


def test_workers_get_the_heads_own_image(config: dict[str, Any], node: Node) -> None:
    """The head may start instances, but not read the parameter that the image's name stands for."""
    node.install(
        "wget", 'case "$*" in *PUT*api/token) echo T;; *"token: T"*ami-id) echo ami-7;; esac'
    )
    (look_up,) = (c for c in config["head_start_ray_commands"] if "ami-id" in c)
    file = node.folder / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    expected = copy.deepcopy(config)
    for kind in expected["available_node_types"].values():
        kind["node_config"]["ImageId"] = "ami-7"
    for _ in range(2):  # `ray up` once more
        node.run(look_up)
        assert json.loads(file.read_text()) == expected
    node.install("wget", "exit 4")  # no answer: say so now, not when a worker is missed
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
    raw = yaml.safe_load(GPU)
    name = "ray-autoscaler-dasvit"  # as in the file's line that narrows ssh
    assert GPU.count(f"--group-name {name} ") == 2

    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", region_name=raw["provider"]["region"])
        final = _bootstrap_config(raw, no_config_cache=True)

        def open_to() -> list[tuple[Any, list[str]]]:
            """Port, and addresses; what is open to the group itself is left out."""
            (group,) = ec2.describe_security_groups(GroupNames=[name])["SecurityGroups"]
            rules = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
            return [(r.get("FromPort"), [a["CidrIp"] for a in r["IpRanges"]]) for r in rules]

        assert open_to() == [(22, ["0.0.0.0/0"])]
        ssh = {"GroupName": name, "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        ec2.revoke_security_group_ingress(**ssh, CidrIp="0.0.0.0/0")
        ec2.authorize_security_group_ingress(**ssh, CidrIp="192.0.2.1/32")
        _bootstrap_config(raw, no_config_cache=True)  # `ray up` once more
        assert open_to() == [(22, ["192.0.2.1/32"])]

        nodes = final["available_node_types"]
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


def test_all_of_ones_own_workers_start() -> None:
    (node,) = prepared(LOCAL)["available_node_types"].values()
    addresses = yaml.safe_load(LOCAL)["provider"]["worker_ips"]
    assert node["min_workers"] == node["max_workers"] == len(addresses)


def test_the_job_is_what_kuberay_reads() -> None:
    """Its fields are those of the RayJob definition of KubeRay 1.7; this keeps others out."""
    assert (CLAIM["apiVersion"], CLAIM["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(JOB["spec"]) == {
        *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        "rayClusterSpec",
    }
    assert set(CLUSTER) == {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    }


def test_the_job_asks_for_the_token_and_opens_no_port_to_the_outside() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert PODS[0]["serviceType"] == "ClusterIP"
    assert not re.search(r"NodePort|LoadBalancer|Ingress|hostNetwork|hostPort", str(JOB))


def test_gpu_pods_come_when_needed_and_fit_a_trial() -> None:
    head, gpu = PODS
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    assert head["rayStartParams"] == {"num-cpus": "0"}
    (container,) = gpu["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    options = parse_options(JOB["spec"]["entrypoint"].partition("run_search.py ")[2].split())
    assert options.address == "auto"
    assert (str(options.cpus_per_trial), limits["nvidia.com/gpu"]) == (limits["cpu"], "1")
    assert options.max_concurrent_trials == gpu["maxReplicas"]
    assert options.storage_path.startswith("/mnt/dasvit/")


def test_every_pod_mounts_the_one_volume() -> None:
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in PODS:
        spec = group["template"]["spec"]
        (volume,) = spec["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        (container,) = spec["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/dasvit"}]
