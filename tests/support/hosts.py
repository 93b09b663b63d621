"""Three hosts on one machine: network namespaces on a bridge, reached by ssh. Needs root.

Each host has its own processes, network, home, Ray folder (/tmp/ray), /run and /dev/shm; all share
one folder at /mnt/dasvit, as by NFS. Everything else they see is this machine's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BRIDGE", "TOOLS", "Host", "missing", "three_hosts"]

BRIDGE = "dasvit-test"
NETWORK = "10.213.77"
SHARED = Path("/mnt/dasvit")
TOOLS = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "rsync")
START_SECONDS = 30.0

# What a host is: run by `unshare` as the first process of its own process, mount and name spaces.
BOOT = """
set -e
hostname "$NAME"
mount --make-rprivate /
mount --bind "$FOLDER/passwd" /etc/passwd
mount --bind "$FOLDER/ray" /tmp/ray
mount --bind "$SHARED_FROM" /mnt/dasvit
mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mkdir /run/sshd
exec "$SSHD" -D -e -f "$FOLDER/sshd_config"
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A running host; `process` holds all of its processes."""

    name: str
    address: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """Everything on it dies at once, as at a power cut."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            # The first process of a process space takes all others with it.
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()


def missing() -> str | None:
    """Why such hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in TOOLS if _find(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    probe = f"{BRIDGE}-probe"
    done = _ip("netns", "add", probe, check=False)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    _ip("netns", "delete", probe)
    return None


@contextmanager
def three_hosts(folder: Path, public_key: str) -> Iterator[list[Host]]:
    """Hosts that take the key's owner as root. At the end they and their network are gone.

    Args:
        folder: for their files; "shared" in it is the folder that all of them see.
    """
    _clear()
    with ExitStack() as undo:
        for path in (SHARED, Path("/tmp/ray")):  # somewhere to mount theirs
            if not path.exists():
                path.mkdir(parents=True)
                undo.callback(_remove_empty, path)
        (folder / "shared").mkdir(parents=True, exist_ok=True)
        _ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(_ip, "link", "delete", BRIDGE)
        _ip("address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        hosts = [_start(number, folder, public_key, undo) for number in (1, 2, 3)]
        for host in hosts:
            _wait_for_ssh(host)
        yield hosts


def _clear() -> None:
    """What a test that was itself killed has left."""
    for number in (1, 2, 3):
        name = f"{BRIDGE}{number}"
        for pid in _ip("netns", "pids", name, check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", name, check=False)
        _ip("link", "delete", f"dv-out{number}", check=False)
    _ip("link", "delete", BRIDGE, check=False)


def _start(number: int, folder: Path, public_key: str, undo: ExitStack) -> Host:
    name, address = f"{BRIDGE}{number}", f"{NETWORK}.{number}"
    own = folder / f"host{number}"
    for part in ("home/.ssh", "ray"):
        (own / part).mkdir(parents=True)
    (own / "home" / ".ssh" / "authorized_keys").write_text(public_key)
    root, *others = Path("/etc/passwd").read_text().splitlines(keepends=True)
    fields = root.split(":")
    assert fields[0] == "root"
    fields[5] = str(own / "home")
    (own / "passwd").write_text("".join([":".join(fields), *others]))
    key = own / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (own / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey {key}\nPidFile none\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {own / 'home' / '.ssh' / 'authorized_keys'}\n"
    )
    _ip("netns", "add", name)
    undo.callback(_ip, "netns", "delete", name)
    inside, outside = f"dv-in{number}", f"dv-out{number}"
    _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
    _ip("link", "set", outside, "master", BRIDGE, "up")
    for command in (
        ("address", "add", f"{address}/24", "dev", inside),
        ("link", "set", inside, "up"),
        ("link", "set", "lo", "up"),
        # Leads nowhere, but Ray finds a host's address by asking which one a route would use.
        ("route", "add", "default", "via", f"{NETWORK}.254"),
    ):
        _ip("-n", name, *command)
    spaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    with (own / "boot.log").open("wb") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, *spaces, "--mount-proc", "bash", "-c", BOOT],
            env={
                "PATH": os.environ["PATH"],
                "NAME": name,
                "FOLDER": str(own),
                "SHARED_FROM": str(folder / "shared"),
                "SSHD": str(_find("sshd")),
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    host = Host(name, address, own, process)
    undo.callback(host.kill)
    return host


def _wait_for_ssh(host: Host) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "listening" not in (log := (host.folder / "boot.log").read_text()):
        if host.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{host.name} did not start: {log}")
        time.sleep(0.1)


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def _ip(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done


def _remove_empty(path: Path) -> None:
    if not any(path.iterdir()):
        path.rmdir()
