"""The Ray engine: nodes and workers that die, clusters that are of no use, and what Ray must not do on its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import RN50FEAT, Run, rows
from fake import KILLS, KILLS_ONCE, BlindStart, FakeStart, LocalFakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.engines import cluster, ray
from rn50feat.engines.cluster import Cluster
from rn50feat.engines.contract import EngineOptions, StartEngine
from rn50feat.errors import ClusterError, DeviceError
from rn50feat.store.summary import Summary

pytestmark = pytest.mark.network

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster as TestCluster

HERE = Path(__file__).parent.parent  # tests
COUNT = 150


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of 150 pictures of different colours; one is broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i:03}.png").write_bytes(encoded(Image.new("RGB", (9, 9), (i, 1, 0)), "PNG"))
    (folder / "077.png").write_bytes(b"\x89PNG\r\n\x1a\n, and that is all")
    return folder


def extract(folder: Path, start: StartEngine, **settings: object) -> Summary:
    return rn50feat.extract(folder, folder.parent / "ray.h5", weights="random", start=start, **settings)


def at(simulated: TestCluster, start: StartEngine) -> StartEngine:
    return partial(ray.start, address=simulated.address, each=start)


def ledger(store: Path) -> dict[str, str]:
    return {Path(failure.path).name: failure.reason for failure in FeatureStore(store).failures()}


def assert_as_from_one_machine(folder: Path, *but: str) -> None:
    """Compare the store with that of another engine: every row once, and equal; the same provenance and ledger."""
    rn50feat.extract(folder, folder.parent / "local.h5", weights="random", start=FakeStart())
    ours, local = rows(folder.parent / "ray.h5"), rows(folder.parent / "local.h5")
    assert sorted(ours) == sorted(set(local) - {f"pictures/{name}" for name in but})
    assert len(FeatureStore(folder.parent / "ray.h5")) == len(ours)
    assert all(np.array_equal(row, local[path]) for path, row in ours.items())
    stores = [FeatureStore(folder.parent / name) for name in ("ray.h5", "local.h5")]
    assert stores[0].provenance == stores[1].provenance
    assert stores[0].dtype == stores[1].dtype
    failures = ledger(folder.parent / "ray.h5")
    assert {name: reason for name, reason in failures.items() if name not in but} == ledger(folder.parent / "local.h5")


# Nodes and workers that die


def test_a_node_that_dies_costs_no_row(ray_cluster: TestCluster, shades: Path) -> None:
    node = ray_cluster.add_node(num_cpus=1)
    engines: list[ray.RayEngine] = []
    killed: list[float] = []

    def start(*arguments: object, **settings: object) -> ray.RayEngine:
        engines.append(at(ray_cluster, LocalFakeStart(seconds=0.05))(*arguments, **settings))  # type: ignore[arg-type]
        while len(engines[0]._started) < 3:
            if (member := engines[0]._next(1.0)) is not None:
                list(engines[0]._hear(member))
        return engines[0]

    def kill() -> None:
        at_work = [m for m in engines[0]._members.values() if m.portions] if engines else []
        if not killed and node.node_id in [member.place.node for member in at_work]:
            killed.append(time.monotonic())
            ray_cluster.remove_node(node, allow_graceful=False)

    summary = extract(shades, start, should_stop=kill)
    assert killed
    assert (summary.new, summary.failed) == (COUNT - 1, 1)
    assert_as_from_one_machine(shades)


def test_a_worker_that_dies_costs_no_row_and_a_picture_that_kills_each_is_a_failure(
    ray_cluster: TestCluster, shades: Path, tmp_path: Path
) -> None:
    for name, red in (("once", KILLS_ONCE), ("always", KILLS)):
        (shades / f"080-{name}.png").write_bytes(encoded(Image.new("RGB", (9, 9), (red, 1, 0)), "PNG"))
    handler = signal.getsignal(signal.SIGTERM)
    summary = extract(shades, at(ray_cluster, LocalFakeStart(mark=str(tmp_path / "mark"))))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert (tmp_path / "mark").exists()
    assert (summary.new, summary.failed) == (COUNT, 2)
    assert ledger(tmp_path / "ray.h5")["080-always.png"] == "ended its Ray worker 2 times"
    assert_as_from_one_machine(shades, "080-always.png")
    assert extract(shades, FakeStart()).failed_before == 2


# Clusters that are of no use
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "cannot be reached .Connection refused.: check that it runs"),
        ("127.0.0.1:99999", "cannot be reached"),
        ("ray://head:10001", "is not the address of a Ray cluster: use HOST:PORT"),
        ("head", "is not the address"),
    ],
)
def test_an_address_without_a_cluster_is_one_clear_error(address: str, reason: str) -> None:
    with pytest.raises(ClusterError, match=reason):
        Cluster(address)


def test_auto_is_the_cluster_of_the_variable_or_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CURRENT", tmp_path / "current")
    with pytest.raises(ClusterError, match="no Ray cluster of yours runs on this machine: start one"):
        Cluster("auto")
    (tmp_path / "current").write_text("127.0.0.1:1\n")
    with pytest.raises(ClusterError, match="127.0.0.1:1 cannot be reached"):
        Cluster("auto")
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    if os.stat(tmp_path).st_uid:  # what root puts there is trusted
        with pytest.raises(ClusterError, match="no Ray cluster of yours"):
            Cluster("auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(ClusterError, match="127.0.0.1:2 cannot be reached"):
        Cluster("auto")


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="pip install 'rn50feat.ray.', or use --engine local"):
        Cluster("local")


def test_a_cluster_without_a_gpu_is_told_at_once(ray_cluster: TestCluster, shades: Path) -> None:
    for device, reason in (("cuda", "has no GPU: omit --device cuda"), ("cuda:1", "use --device cuda")):
        with pytest.raises(DeviceError, match=reason):
            extract(shades, at(ray_cluster, FakeStart()), options=EngineOptions(device=device))


def test_a_cluster_that_asks_for_another_token_is_one_error(
    ray_cluster: TestCluster, shades: Path, rn50feat: Run
) -> None:
    settings = ["--weights", "random", "--engine", "ray", "--ray-address", ray_cluster.address]
    done = rn50feat("extract", shades, "ray.h5", *settings, RAY_AUTH_TOKEN="ef" * 32)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if "gcs_client.cc" not in line)
    assert error.startswith(f"Error: the Ray cluster {ray_cluster.address} cannot be used (AuthenticationError: ")
    assert error.endswith(
        "run this on one of its nodes, with the same Python, Ray and token, or with --ray-address local"
    )


def test_nodes_without_the_pictures_are_one_error_not_thousands(ray_cluster: TestCluster, shades: Path) -> None:
    with pytest.raises(ClusterError, match=r"does not see .*/\d+.png .has vanished.: mount the images"):
        extract(shades, at(ray_cluster, BlindStart()))
    assert not (shades.parent / "ray.h5").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda package: (package / "engines/node.py").unlink(),
            "has no rn50feat .*: install the same",
        ),
        (
            lambda package: (package / "__init__.py").write_text(
                (package / "__init__.py").read_text().replace("__version__ = ", "__version__ = '0.0.9' or ")
            ),
            r"has rn50feat 0\.0\.9 on Python .*, this process rn50feat .*: install the same",
        ),
    ],
)
def test_another_rn50feat_on_a_node_is_one_error(
    ray_cluster: TestCluster,
    shades: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    reason: str,
) -> None:
    tmp_path = shades.parent
    shutil.copytree(Path(rn50feat.__file__).parent, tmp_path / "other/rn50feat")
    change(tmp_path / "other/rn50feat")
    monkeypatch.chdir(tmp_path)  # workers import from the driver's working folder first
    node = ray_cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{tmp_path / 'other'}:{HERE}"})
    try:
        with pytest.raises(ClusterError, match=reason):
            extract(shades, at(ray_cluster, LocalFakeStart(seconds=1)))
    finally:
        ray_cluster.remove_node(node)


# A cluster of one's own


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def alive(pid: int) -> bool:
    """Tell whether a process runs: one that has ended may stay in the table until somebody asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def listening(pids: list[int]) -> set[str]:
    """Return the addresses, as the kernel writes them, at which processes listen or to which they talk, over TCP."""
    inodes = set()
    for pid in pids:
        try:
            inodes |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, _, *_, inode = line.split()[:10]
            if f"socket:[{inode}]" in inodes:
                found |= {local.partition(":")[0], remote.partition(":")[0]}
    return found


def ray_folders(pids: list[int]) -> set[str]:
    """Return the folders of clusters that the command lines of processes name."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= set(re.findall(r"/tmp/rn50feat-ray-\w+", Path(f"/proc/{pid}/cmdline").read_text()))
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
NOBODY = {"00000000", "00000000000000000000000000000000"}  # the other end of a socket that listens


@pytest.mark.slow
def test_a_cluster_of_ones_own_is_quiet_keeps_to_loopback_and_computes_the_same(scenes: Path, tmp_path: Path) -> None:
    options = EngineOptions(backend="torch", precision="fp32")
    settings = ["--weights", "random", "--backend", "torch", "--precision", "fp32", "--json", "--quiet"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # the fixture's
    with subprocess.Popen(
        [*RN50FEAT, "extract", scenes, "ray.h5", "--engine", "ray", "--ray-address", "local", *settings],
        cwd=tmp_path,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        most: list[int] = []
        addresses: set[str] = set()
        folders: set[str] = set()
        modes: set[int] = set()
        while process.poll() is None:
            pids = family(process.pid)
            most = max(most, pids, key=len)
            addresses |= listening(pids)
            folders |= ray_folders(pids)
            with contextlib.suppress(FileNotFoundError):
                modes |= {stat.S_IMODE(os.stat(folder).st_mode) for folder in folders}
            time.sleep(0.2)
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    (summary,) = map(json.loads, output.splitlines())  # nothing else
    assert summary["new"] == 12
    assert [line for line in errors.splitlines() if "waiting for a worker" not in line] == []
    assert len(most) > 5  # this process, Ray's own, the worker and its decoding processes
    assert addresses and addresses <= LOOPBACK | NOBODY
    assert NOBODY & addresses  # some did listen
    assert modes == {0o700}
    (folder,) = folders
    assert not Path(folder).exists()
    deadline = time.monotonic() + 30  # Ray kills what it started, and the kernel takes its time
    while (left := [pid for pid in most if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []

    rn50feat.extract(scenes, tmp_path / "local.h5", weights="random", options=options)
    ours, local = rows(tmp_path / "ray.h5"), rows(tmp_path / "local.h5")
    assert ours.keys() == local.keys()
    assert all(np.array_equal(row, local[path]) for path, row in ours.items())
    (run,) = FeatureStore(tmp_path / "ray.h5").runs()
    assert run["device"] == "ray 1 x cpu"


def test_the_option_ray_address_needs_the_engine_ray(rn50feat: Run) -> None:
    done = rn50feat("extract", ".", "out.h5", "--ray-address", "local")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: --ray-address requires --engine ray.")
