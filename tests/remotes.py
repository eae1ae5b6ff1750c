"""Servers on loopback for the tests: S3 by moto, and a proxy before it that throttles, cuts and counts."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "AKIAIOSFODNN7EXAMPLE"


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server at `port`, and does to them what its settings say."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.counts: Counter[str] = Counter()  # by LIST, GET and HEAD
        self.throttled: dict[str, int] = {}  # so many answers to requests of a kind are 503 SlowDown
        self.cut: dict[str, int] = {}  # so many answers break off halfway
        self.refused: set[str] = set()  # kinds that are answered by 403

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, due: dict[str, int], kind: str) -> bool:
        """Tell whether it is this request's turn."""
        due[kind] = due.get(kind, 0) - 1
        return due[kind] >= 0


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = "LIST" if "list-type=2" in self.path else self.command
        self.server.counts[kind] += 1
        if kind in self.server.refused:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self._answer(403, {}, body)
            return
        if self.server.take(self.server.throttled, kind):
            self._answer(
                503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            )
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body, headers = answer.read(), dict(answer.getheaders())
        connection.close()
        self._answer(answer.status, headers, body, cut=self.server.take(self.server.cut, kind))

    do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def client(port: int) -> Any:
    """Return a client of the S3 server at a port."""
    import boto3  # takes 0.3 s

    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")


def put(proxy: Proxy, **objects: bytes) -> None:
    """Put objects into the bucket."""
    for key, body in objects.items():
        client(proxy.port).put_object(Bucket="bucket", Key=key, Body=body)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve in a thread."""
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pages(count: int) -> type[BaseHTTPRequestHandler]:
    """Return a stand-in for S3 that lists `count` empty objects of a bucket, a thousand at a time."""

    class Bucket(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            match = re.search(r"continuation-token=(\d+)", self.path)
            first = int(match[1]) if match else 0
            last = min(count, first + 1000)
            entries = "".join(
                f"<Contents><Key>folder/{i:09}.jpg</Key><LastModified>2026-11-24T02:00:00.000Z</LastModified>"
                f"<ETag>&quot;{i:032x}&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for i in range(first, last)
            )
            more = last < count
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
                f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{entries}"
                f"{f'<NextContinuationToken>{last}</NextContinuationToken>' if more else ''}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Bucket
