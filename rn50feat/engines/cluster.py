"""A Ray cluster: how it is reached or started, what it has, and how it is left.

In: ``auto``, ``local`` or ``HOST:PORT``. Out: the places where workers can
run. What Ray prints, reports and opens by itself is kept from the user here.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rn50feat.durable.limits import cores
from rn50feat.errors import ClusterError

logger = logging.getLogger(__name__)

CURRENT = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes its address
REACH_SECONDS = 3.0
OBJECT_STORE = 256 << 20  # bytes; Ray would take a third of the memory, where a few batches are under way
# What an HTTP/2 client says first, with an empty frame of settings; a gRPC server, and so Ray, answers with another.
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback; by default, six ports are open to the network
    "RAY_AUTH_MODE": "token",  # the other users of this machine reach loopback, too
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # one for this process: Ray reads it once
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # even so it would ask addresses of clouds where it runs
}
_ATTEMPTS = "3"  # to connect, one a second; Ray makes 20


@dataclass(frozen=True)
class Place:
    """Where a worker can run: a node, by Ray's id and by name, and which part of it."""

    node: str
    host: str
    part: int
    cpus: int
    gpus: int


class Cluster:
    """The connection of this process to a Ray cluster, and the cluster itself where it was started here."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at `address`; raise `ClusterError` within seconds when that cannot be.

        ``auto`` is the cluster that the variable RAY_ADDRESS names, or that
        runs on this machine; ``local`` is one of this machine's own, which
        ends with this process. A program that is connected already keeps its
        connection, whatever `address` says.
        """
        if find_spec("ray") is None:
            raise ClusterError("Ray is not installed: pip install 'rn50feat[ray]', or --engine local")
        self.name, self._folder = "the Ray cluster of this run", ""
        self._ours = "ray" not in sys.modules or not _ray().is_initialized()
        if self._ours and address == "local":
            self._start()
        elif self._ours:
            self._join(address)

    def _join(self, address: str) -> None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", _ATTEMPTS)
        if address == "auto":
            address = _running()
            if (Path.home() / ".ray/auth_token").exists():  # as `ray start` and Ray's own auto do
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.name = f"the Ray cluster {address}"
        _probe(address)
        _probe(_taken_for(address))
        self._connect(address=address)

    def _start(self) -> None:
        # Closed to others: Ray leaves its sockets and logs open to all. In /tmp: a socket's name has 107 characters.
        self._folder = tempfile.mkdtemp(prefix="rn50feat-ray-", dir="/tmp")
        settings = {"num_cpus": cores(), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        try:
            with _on_loopback():
                self._connect(address="local", _temp_dir=self._folder, **settings)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _connect(self, **settings: Any) -> None:
        _hush()
        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place
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
        """Return a place for each node that is alive, with all its cores; with `gpu`, one for each GPU instead."""
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
        """Close the connection, if it was made here, and stop what was started here."""
        if self._ours:
            _ray().shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _ray() -> Any:
    import ray

    return ray


def _hush() -> None:
    """Send to the log, at its lowest level, what Ray prints on stdout of every process that dies."""
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logger.debug("Ray: %s", " ".join(data["lines"]))

    vars(worker)["print_to_stdstream"] = log


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Set the variables of a cluster for this process alone, for what it starts meanwhile."""
    before = {name: os.environ.get(name) for name in _LOCAL}
    os.environ.update(_LOCAL)
    from ray._private import ray_constants

    enabled, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # if ray was imported before
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _running() -> str:
    """Return the address of the cluster that RAY_ADDRESS names, or that was started on this machine."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    try:
        # /tmp/ray is open to all, and whoever runs the cluster runs code in this process.
        if CURRENT.stat().st_uid in (os.getuid(), 0):
            return CURRENT.read_text().strip()
    except OSError:
        pass
    raise ClusterError(
        "no Ray cluster of yours runs on this machine: start one with ray start --head, say where it is with"
        " --ray-address HOST:PORT, or take --ray-address local"
    )


def _taken_for(address: str) -> str:
    """Return the address that Ray will use: localhost becomes this machine's address on the network."""
    from ray._private import services

    return str(services.canonicalize_bootstrap_address(address))


def _sentence(error: BaseException) -> str:
    """Return what an error of Ray's begins with: the rest is a traceback, or advice."""
    text = " ".join(str(error.__cause__ or error).split())
    return text.rpartition("ray.exceptions.")[2].partition(". ")[0][:300]


def require_address(address: str) -> None:
    """Raise `ClusterError` for what is neither auto nor local, nor HOST:PORT."""
    if address not in ("auto", "local"):
        _host_and_port(address)


def _host_and_port(address: str) -> tuple[str, int]:
    if (match := re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d{1,5})", address)) is None:
        raise ClusterError(f"{address} is no address of a Ray cluster: give HOST:PORT, auto or local")
    return match[1], int(match[2])


def _probe(address: str) -> None:
    """Raise `ClusterError` unless a gRPC server answers at `address`: Ray itself would wait for 80 s to 15 minutes."""
    host, port = _host_and_port(address)
    remedy = "see that it runs, give another --ray-address, or take --ray-address local"
    try:
        with socket.create_connection((host, port), timeout=REACH_SECONDS) as server:
            server.sendall(_HTTP2)
            answer = server.recv(9)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"the Ray cluster {address} cannot be reached ({reason}): {remedy}") from error
    if answer[3:4] != bytes([_SETTINGS]):
        raise ClusterError(f"what answers at {address} is no Ray cluster: {remedy}")
