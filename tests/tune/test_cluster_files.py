"""cluster/local.yaml and cluster/kuberay.yaml: valid, of one version, with a token, not exposed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FILES = ROOT / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def load(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


@pytest.fixture
def local() -> dict[str, Any]:
    """The file with Ray's defaults filled in, valid by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load("local.yaml"))
    validate_config(prepared)
    return prepared


@pytest.fixture
def claim_and_job() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all((FILES / "kuberay.yaml").read_text())
    return claim, job


@pytest.fixture
def job(claim_and_job: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return claim_and_job[1]["spec"]


@pytest.fixture
def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group, then the workers'."""
    cluster = job["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_ray_refuses_a_wrong_key_in_such_a_file() -> None:
    """What the other tests lean on."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config(load("local.yaml") | {"head_start_commands": []}))


def test_all_of_ones_own_workers_start(local: dict[str, Any]) -> None:
    (node,) = local["available_node_types"].values()
    workers = load("local.yaml")["provider"]["worker_ips"]
    assert node["min_workers"] == node["max_workers"] == len(workers)


def test_ones_own_machines_use_the_token(local: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        (start,) = (c for c in local[f"{role}_start_ray_commands"] if "ray start" in c)
        exports = start.partition("ray start")[0].replace(";", " ").split()
        assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(exports)
    assert local["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_of_ones_own_head_is_on_loopback(local: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in " ".join(local["head_start_ray_commands"]).split()
    assert "0.0.0.0" not in str(load("local.yaml"))


def test_a_machine_without_the_shared_folder_is_refused(local: dict[str, Any]) -> None:
    (command,) = local["initialization_commands"]
    assert command.count("/mnt/dasvit") == 1  # one variable
    assert "exit 1" in command


def test_the_job_is_what_kuberay_reads(
    claim_and_job: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Its fields are those of the RayJob definition of KubeRay 1.7; this keeps others out."""
    claim, job = claim_and_job
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) == {
        "entrypoint",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    assert set(job["spec"]["rayClusterSpec"]) == {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }


def test_the_job_asks_for_the_token(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_one_version_of_ray_everywhere(job: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """That of cluster/Dockerfile, and pip keeps it: pyproject.toml accepts it."""
    (base,) = re.findall(r"^FROM (\S+)$", (FILES / "Dockerfile").read_text(), re.MULTILINE)
    parts = re.fullmatch(r"rayproject/ray:([\d.]+)-(py\d+)-cu\d+", base)
    assert parts is not None
    ray, python = parts.groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (accepted,) = (
        requirement
        for requirement in map(Requirement, project["optional-dependencies"]["tune"])
        if requirement.name == "ray"
    )
    assert ray in accepted.specifier
    gpu = load("gpu.yaml")["docker"]
    assert gpu["worker_image"] == base
    assert gpu["head_image"] == f"rayproject/ray:{ray}-{python}-cpu"
    assert job["rayClusterSpec"]["rayVersion"] == ray
    (setup,) = load("local.yaml")["setup_commands"]
    assert f'"ray[default]=={ray}"' in setup
    assert f"python{python[2]}.{python[3:]} " in setup
    images = {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}
    assert images == {"IMAGE-REPLACE"}


def test_the_image_holds_what_a_sweep_needs() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.*) \S+$", (FILES / "Dockerfile").read_text(), re.M)
    names = " ".join(copied).split()
    assert {"dasvit", "tune", "pyproject.toml"} <= set(names)
    assert all((ROOT / name).exists() for name in names)


def test_gpu_pods_come_when_needed_and_fit_a_trial(
    job: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    head, workers = groups
    assert job["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)
    assert head["rayStartParams"] == {"num-cpus": "0"}
    (container,) = workers["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert limits == container["resources"]["requests"]
    flags = job["entrypoint"].split()
    assert flags[flags.index("--cpus-per-trial") + 1] == limits["cpu"]
    assert flags[flags.index("--max-concurrent-trials") + 1] == str(workers["maxReplicas"])


def test_the_job_has_options_that_the_command_knows(job: dict[str, Any]) -> None:
    from tune.options import parse_options

    arguments = job["entrypoint"].partition("run_search.py ")[2].split()
    assert parse_options(arguments).address == "auto"


def test_every_pod_mounts_the_one_volume(
    claim_and_job: tuple[dict[str, Any], dict[str, Any]], groups: list[dict[str, Any]]
) -> None:
    claim, job = claim_and_job
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups:
        spec = group["template"]["spec"]
        (volume,) = spec["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in spec["containers"]:
            assert container["volumeMounts"] == [
                {"name": volume["name"], "mountPath": "/mnt/dasvit"}
            ]
    assert "--storage-path /mnt/dasvit/" in job["spec"]["entrypoint"]


def test_the_job_opens_no_port_to_the_outside(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not re.search(r"NodePort|LoadBalancer|Ingress|hostNetwork|hostPort", str(job))


@pytest.mark.parametrize(
    ("name", "heading"),
    [("local.yaml", "## Your own machines"), ("kuberay.yaml", "## Kubernetes")],
)
def test_the_page_fills_in_each_placeholder(name: str, heading: str) -> None:
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    assert f"cluster/{name}" in section
    for placeholder in set(re.findall(r"\w+-REPLACE", (FILES / name).read_text())):
        assert f"s/{placeholder}/" in section or f"s|{placeholder}|" in section
