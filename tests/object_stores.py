"""A real object store for tests: moto's S3 server in a process of its own, and how to make it misbehave.

Rules:
  * It keeps conditional writes as S3 does, one request at a time: moto looks and writes in two steps, S3 does not.
  * A bucket for each test; nothing is cleaned up but by ending the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Server

PROGRAM = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
ignored = sys.argv[2:]  # headers that this store does not know

def one_at_a_time(environ, start_response):
    environ["wsgi.input"].read  # the body is read inside
    for name in ignored:
        environ.pop("HTTP_" + name.upper().replace("-", "_"), None)
    with lock:
        return list(app(environ, start_response))

make_server("127.0.0.1", int(sys.argv[1]), one_at_a_time, True, request_handler=MotoRequestHandler).serve_forever()
"""


class ObjectStore(Server):
    """moto's S3. `ignores`: headers that it acts as if it had never seen."""

    name = "moto"

    def __init__(self, folder: Path, *ignores: str) -> None:
        super().__init__(folder)
        self.ignores = ignores

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, Any]:
        """What fsspec needs to reach it."""
        return {
            "key": "test",
            "secret": "test",
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        import boto3

        client = boto3.client(
            "s3",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            endpoint_url=self.url,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.port), *self.ignores],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One S3 server for the session: make a bucket of your own."""
    for module in ("moto", "s3fs"):
        pytest.importorskip(module, reason=f"`{module}` is not installed (pip install retailinfer[test])")
    with ObjectStore(tmp_path_factory.mktemp("moto")) as server:
        yield server
