"""Fixtures: pictures, a fake engine, the real network from a weights file, and the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torchvision
from chromium import PROGRAM, Chromium
from click.testing import CliRunner, Result
from fake import FakeStart
from PIL import Image
from remotes import KEY, Proxy, client, serving
from scenes import encoded, scene
from streams import Player
from trees import plant

from rn50feat import FeatureStore, extract
from rn50feat.cli.main import main
from rn50feat.sources import remote

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, what tests start would ignore it

Run = Callable[..., "subprocess.CompletedProcess[str]"]
# The program, but for the line that says every 30 seconds how far it is: no test is about the speed of a machine.
_CODE = "from rn50feat.cli import main, terminal; terminal.PLAIN_SECONDS = 1e9; main.main(prog_name='rn50feat')"
RN50FEAT = [sys.executable, "-c", _CODE]

MARKS = {  # by the fixture that a test asks for
    "browser": {"chromium"},
    "network": {"moto", "ray_cluster", "server"},
    "slow": {"card", "planted", "ray_cluster", "resnet", "resnet50", "rn50feat"},
}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, fixtures in MARKS.items():
            if fixtures.intersection(item.fixturenames):  # type: ignore[attr-defined]
                item.add_marker(mark)


@pytest.fixture
def start() -> FakeStart:
    return FakeStart()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five plain pictures; the fake engine's features are their colours."""
    folder = tmp_path / "pictures"
    for name, color in {
        "red": "red",
        "sub/green": "lime",
        "sub/blue": "blue",
        "white": "white",
        "z": "#606080",
    }.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (40, 30), color), "PNG"))
    return folder


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of twenty pictures; the value of each is its number."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.png").write_bytes(encoded(Image.new("RGB", (9, 9), (i, 1, 0)), "PNG"))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with images/ and features/, for the store, side by side."""
    return plant(tmp_path / "data")


@pytest.fixture
def store(pictures: Path, start: FakeStart) -> FeatureStore:
    """A store of `pictures`, made by the fake engine under the name of random weights."""
    path = pictures.parent / "out.h5"
    extract(pictures, path, weights="random", start=start)
    return FeatureStore(path)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve landscapes of different sizes."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(12):
        image = scene(seed, 300 + 17 * seed, 420 - 23 * seed)
        (folder / f"scene{seed:02}.jpg").write_bytes(encoded(image, quality=90))
    return folder


@pytest.fixture(scope="session")
def resnet50() -> torch.nn.Module:
    """A seeded torchvision ResNet50 with its classifier, and with uneven batch norm statistics."""
    torch.manual_seed(3)
    module = torchvision.models.resnet50()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.8, 1.6)
    return module.eval()


@pytest.fixture(scope="session")
def weights(resnet50: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of `resnet50` in a file."""
    path = tmp_path_factory.mktemp("weights") / "seeded.pth"
    torch.save(resnet50.state_dict(), path)
    return path


@pytest.fixture
def rn50feat(tmp_path: Path) -> Run:
    """Run the program in a process of its own, in the test's folder; returns what it printed, and its exit code."""

    def run(*arguments: str | os.PathLike[str], **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RN50FEAT, *map(os.fspath, arguments)],
            cwd=tmp_path,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("RN50FEAT")}, **variables},
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )

    return run


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser; a test that needs it is skipped where there is none, but not in continuous integration."""
    if PROGRAM is None:
        why = "needs Chromium: apt-get install chromium"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the program in this process, in the test's folder: for what needs torch, without importing it again."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | os.PathLike[str]) -> Result:
        return CliRunner().invoke(main, [os.fspath(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray cluster of two nodes with a core each, simulated here; its workers import from this folder, too."""
    here = Path(__file__).parent
    folder = tempfile.mkdtemp(prefix="rn50feat-test-", dir="/tmp")  # a socket's name has 107 characters at most
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        patch.setenv("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9/")
        from ray.cluster_utils import Cluster

        patch.setattr("ray._private.utils.write_ray_address", lambda address: None)  # not to become anybody's default
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder, "include_dashboard": False}
        )
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    """A GPU that is played on the CPU."""
    return Player(monkeypatch)


@pytest.fixture(scope="session")
def moto() -> Iterator[int]:
    """The port of an S3 server."""
    from moto.server import ThreadedMotoServer  # takes a second

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def proxy(moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before that server, with an empty bucket, in the environment of this process and its children."""
    server = Proxy(moto)
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    remote._file_system.cache_clear()
    with serving(server):
        client(moto).create_bucket(Bucket="bucket")
        yield server
    import boto3

    bucket = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{moto}").Bucket("bucket")
    bucket.objects.all().delete()
    bucket.delete()
    remote._file_system.cache_clear()


def rows(store: Path) -> dict[str, np.ndarray]:
    """Return the features of a store by path."""
    opened = FeatureStore(store)
    with opened.reading():
        features = [row for _, block in opened.blocks() for row in block]
        return dict(zip(opened.paths(), features))
