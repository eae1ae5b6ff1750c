"""Reach or start a Ray cluster, list what it has, and leave it.

In: ``auto``, ``local`` or ``HOST:PORT``. Out: the places where workers can run.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rn50feat.durable.limits import cores
from rn50feat.errors import ClusterError

CURRENT = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes its address
REACH_SECONDS = 3.0
OBJECT_STORE = 256 << 20  # bytes; Ray would take a third of the memory, and only a few batches are under way
# Ray reads these when it is imported or connects for the first time, so they stay set in this process.
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback; by default, six ports are open to the network
    "RAY_AUTH_MODE": "token",  # other users of this machine reach loopback, too
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # even so it would ask addresses of clouds where it runs
}


@dataclass(frozen=True)
class Place:
    """Where a worker can run: a node, by Ray's id and by name, and which part of it."""

    node: str
    host: str
    part: int
    cpus: int
    gpus: int


class Cluster:
    """The connection of this process to a Ray cluster, and the cluster itself if it was started here."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at `address`; raise `ClusterError` if that fails.

        ``auto`` is the cluster that the variable RAY_ADDRESS names, or that
        runs on this machine; ``local`` is a new one on this machine, which
        ends with this process. A program that is already connected keeps its
        connection, whatever `address` says.
        """
        if find_spec("ray") is None:
            raise ClusterError("Ray is not installed: pip install 'rn50feat[ray]', or use --engine local")
        self.name, self._folder = "the Ray cluster of this run", ""
        self._ours = "ray" not in sys.modules or not _ray().is_initialized()
        if self._ours and address == "local":
            self._start()
        elif self._ours:
            self._join(address)

    def _join(self, address: str) -> None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # attempts to connect; Ray makes 20 of 40 s each
        if address == "auto":
            address = _running()
            if (Path.home() / ".ray/auth_token").exists():  # as `ray start` and Ray's own auto do
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.name = f"the Ray cluster {address}"
        _require_server(address)
        self._connect(address=address)

    def _start(self) -> None:
        # Closed to others: Ray opens its own folder inside to all. In /tmp: a socket's name has 107 characters.
        self._folder = tempfile.mkdtemp(prefix="rn50feat-ray-", dir="/tmp")
        os.environ.update(_LOCAL)
        settings = {"num_cpus": cores(), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        try:
            self._connect(address="local", _temp_dir=f"{self._folder}/ray", **settings)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _connect(self, **settings: Any) -> None:
        handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it
        try:
            _ray().init(logging_level="error", log_to_driver=False, **settings)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"{self.name} cannot be used ({_sentence(error)}): run this on one of its nodes, with the same Python,"
                " Ray and token, or with --ray-address local"
            ) from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not handler:
                signal.signal(signal.SIGTERM, handler)

    def places(self, *, gpu: bool) -> list[Place]:
        """List a place for each node that is alive, with all its cores; with `gpu`, one for each GPU instead."""
        found = []
        for node in _ray().nodes():
            cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
            parts = gpus if gpu else min(1, cpus)
            share = cpus // max(1, parts)
            if node["Alive"]:
                name = node["NodeManagerHostname"]
                found += [Place(node["NodeID"], name, part, share, int(gpu)) for part in range(parts)]
        return found

    def leave(self) -> None:
        """Close the connection if it was made here, and stop a cluster that was started here."""
        if self._ours:
            _ray().shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _ray() -> Any:
    import ray

    return ray


def _running() -> str:
    """Find the address of the cluster that RAY_ADDRESS names, or that was started on this machine."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    try:
        # /tmp/ray is open to all, and whoever runs the cluster runs code in this process.
        if CURRENT.stat().st_uid in (os.getuid(), 0):
            return CURRENT.read_text().strip()
    except OSError:
        pass
    raise ClusterError(
        "no Ray cluster of yours runs on this machine: start one with ray start --head, name one with"
        " --ray-address HOST:PORT, or use --ray-address local"
    )


def _sentence(error: BaseException) -> str:
    """Shorten an error of Ray's to its first sentence: the rest is a traceback, or advice."""
    text = " ".join(str(error.__cause__ or error).split())
    return text.rpartition("ray.exceptions.")[2].partition(". ")[0][:300]


def require_address(address: str) -> None:
    """Raise `ClusterError` unless `address` is auto, local or HOST:PORT."""
    if address not in ("auto", "local"):
        _host_and_port(address)


def _host_and_port(address: str) -> tuple[str, int]:
    if (match := re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d{1,5})", address)) is None:
        raise ClusterError(f"{address} is not the address of a Ray cluster: use HOST:PORT, auto or local")
    return match[1], int(match[2])


def _require_server(address: str) -> None:
    """Raise `ClusterError` unless something listens at `address`: Ray itself takes 40 s to give up."""
    try:
        socket.create_connection(_host_and_port(address), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"the Ray cluster {address} cannot be reached ({getattr(error, 'strerror', None) or error}):"
            " check that it runs, give another --ray-address, or use --ray-address local"
        ) from error
