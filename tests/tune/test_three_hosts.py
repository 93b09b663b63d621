"""`ray up` of cluster/local.yaml on three hosts, a sweep on them, and one of them lost.

The hosts are network namespaces (`hosts.py`). Only what cannot be had here is replaced in the file:
addresses, names, and the installation, since the hosts see this machine's environment.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hosts import Host, missing, three_hosts
from support.sweep_process import ROOT, SMALL, begun, results

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("one_ray_at_a_time"),
]

PYTHON = "RAY_AUTH_MODE=token ~/dasvit-env/bin/python"


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and this machine as the one from which it was started."""

    head: Host
    workers: list[Host]
    folder: Path
    file: Path

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def ray(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Ray's own command line, here."""
        return subprocess.run(
            [str(Path(sys.prefix) / "bin" / "ray"), *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "HOME": str(self.folder / "client"),
                "RAY_TMPDIR": str(self.folder / "client"),
                "RAY_UP_enable_autoscaler_v2": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def start(self, command: str, log: Path) -> "subprocess.Popen[bytes]":
        """A command on the head, by ssh."""
        ssh = ["ssh", "-i", str(self.folder / "client" / ".ssh" / "id_ed25519")]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        ssh += ["-o", "LogLevel=ERROR"]
        with log.open("wb") as file:
            return subprocess.Popen(
                [*ssh, f"root@{self.head.address}", f"cd ~/dasvit && {command}"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def run(self, command: str, seconds: float = 300) -> tuple[int, str]:
        """Its exit status and output."""
        log = self.folder / "command.log"
        process = self.start(command, log)
        try:
            return process.wait(seconds), log.read_text()
        finally:
            process.kill()


def filled_in(hosts: Sequence[Host], key: Path) -> dict[str, Any]:
    """cluster/local.yaml with the addresses put in, nothing installed, and a head without CPUs."""
    head, *workers = hosts
    text = (ROOT / "cluster" / "local.yaml").read_text()
    text = text.replace("HEAD-REPLACE", head.address)
    text = text.replace("WORKER-REPLACE", ", ".join(host.address for host in workers))
    config = yaml.safe_load(text)
    config["auth"]["ssh_user"] = "root"
    config["auth"]["ssh_private_key"] = str(key)  # ssh's "~" is the user's, whatever HOME says
    config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/dasvit-env"]
    for role, cpus in (("head", 0), ("worker", 1)):
        (start,) = (c for c in config[f"{role}_start_ray_commands"] if "ray start" in c)
        config[f"{role}_start_ray_commands"][-1] = f"{start} --num-cpus={cpus}"
    return config


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    client = tmp_path / "client"
    (client / ".ssh").mkdir(parents=True)
    key = client / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with three_hosts(tmp_path, key.with_suffix(".pub").read_text()) as hosts:
        cluster = Cluster(hosts[0], hosts[1:], tmp_path, tmp_path / "local.yaml")
        cluster.file.write_text(yaml.safe_dump(filled_in(hosts, key)))
        token = cluster.ray("get-auth-token", "--generate")
        assert token.returncode == 0, token.stderr
        up = cluster.ray("up", "--yes", "--no-config-cache", str(cluster.file))
        assert up.returncode == 0, up.stdout + up.stderr
        wait_until(lambda: alive(cluster) == 3, 300)
        yield cluster
        down = cluster.ray("down", "--yes", str(cluster.file))
        assert down.returncode == 0, down.stdout + down.stderr


def alive(cluster: Cluster) -> int:
    """Nodes of the cluster."""
    count = "import ray; ray.init('auto', log_to_driver=False, logging_level='error'); "
    count += "print('alive', sum(node['Alive'] for node in ray.nodes()))"
    _, output = cluster.run(f'{PYTHON} -W ignore -c "{count}"')
    words = output.split()
    return int(words[words.index("alive") + 1]) if "alive" in words else 0


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.5)


REFUSED = {
    f"{PYTHON} tune/run_search.py --address auto --storage-path /tmp/ray/mine": (
        "--storage-path /tmp/ray/mine is not the same folder on "
    ),
    f"HOME=/run {PYTHON} tune/run_search.py --address auto": ("its token here (~/.ray/auth_token)"),
    f"{PYTHON} tune/run_search.py --address auto --gpus-per-trial 1": "has more than 0 GPUs",
    f"{PYTHON} tune/run_search.py --address auto --workers 9": "workers must divide",
}
"""Commands on the head, and what each is told. (The hosts' /tmp/ray are their own; /run has no
token.)"""


def both_begun(root: Path) -> bool:
    """Whether both searches have written down an epoch."""
    return len([t for t in root.glob("search/*/alpha.jsonl") if t.stat().st_size]) == 2


def test_a_host_dies_in_the_middle_of_a_sweep(cluster: Cluster, unhurt: dict[str, Any]) -> None:
    """All trials finish, equal to the bit to those of one machine that nothing happens to. Before
    that: what cannot run on this cluster is refused in one line."""
    for command, words in REFUSED.items():
        status, output = cluster.run(command)
        error = next((line for line in output.splitlines() if line.startswith("error: ")), output)
        assert (status, words in error) == (2, True), output
    log = cluster.folder / "sweep.log"
    root = cluster.shared / "runs" / "small"
    arguments = " ".join(SMALL)
    sweep = cluster.start(
        f"{PYTHON} tune/run_search.py --address auto --storage-path /mnt/dasvit/runs {arguments}",
        log,
    )
    try:
        wait_until(lambda: sweep.poll() is not None or both_begun(root), 300)
        assert sweep.poll() is None and begun(root, "search"), log.read_text()
        cluster.workers[1].kill()  # one search on each worker host: one of them dies with it
        assert sweep.wait(900) == 0, log.read_text()
    finally:
        sweep.kill()
    assert "2 trials at a time, 1 CPUs each" in log.read_text()
    assert results(root) == unhurt
    assert alive(cluster) == 2
