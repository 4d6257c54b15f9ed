"""MLServer for tests: a model server that others wrote, in an environment of its own, speaking HTTP and gRPC.

Rules:
  * Its Python is named by MLSERVER_PYTHON, or is that of `.venv-mlserver`, which the Makefile makes; without it a test is
    skipped, which CI makes a failure.
  * It serves three models of mlserver/runtime.py: `fraud`, `fraud` in version 2, and `broken`, whose first score is NaN.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Server, free_port

RUNTIME = Path(__file__).resolve().parent / "mlserver" / "runtime.py"
TENSORS = {
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
}


def mlserver_python() -> str:
    """The interpreter that has MLServer; skips the test if there is none."""
    named = os.environ.get("MLSERVER_PYTHON")
    path = Path(named) if named else Path(__file__).resolve().parents[1] / ".venv-mlserver" / "bin" / "python"
    if not path.exists() and sys.version_info >= (3, 13):
        pytest.skip("platform: MLServer has no release for this Python")
    if not path.exists():
        pytest.skip("no environment with MLServer: run `make test`, or set MLSERVER_PYTHON")
    return str(path)


class MLServer(Server):
    """One process without workers; it may be killed, paused and started again on its ports."""

    name = "mlserver"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.python = mlserver_python()
        self.grpc_port = 0
        for model, version, extra in (
            ("fraud", "1", {}),
            ("fraud", "2", {}),
            ("broken", "1", {"break": "nan"}),
        ):
            home = folder / f"{model}-{version}"
            home.mkdir()
            parameters = {"version": version, "extra": extra}
            settings: dict[str, Any] = {
                "name": model,
                "implementation": "runtime.MeanModel",
                "parameters": parameters,
            }
            (home / "model-settings.json").write_text(json.dumps(settings | TENSORS))
            (home / "runtime.py").write_bytes(RUNTIME.read_bytes())

    @property
    def url(self) -> str:
        """Of HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_url(self) -> str:
        """Of gRPC."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.grpc_port = self.grpc_port or free_port()
        settings = {
            "host": "127.0.0.1", "http_port": self.port, "grpc_port": self.grpc_port, "metrics_endpoint": None,
            "parallel_workers": 0, "debug": False, "use_structured_logging": False,
        }  # fmt: skip
        (self.folder / "settings.json").write_text(json.dumps(settings))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self.python, "-c", "from mlserver.cli import main; main()", "start", "."],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True, env=environment,
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            for model in ("fraud", "broken"):
                with socket.create_connection(("127.0.0.1", self.port), timeout=2) as sock:
                    sock.sendall(f"GET /v2/models/{model}/ready HTTP/1.0\r\n\r\n".encode())
                    if b" 200 " not in sock.recv(64):
                        return False
            socket.create_connection(("127.0.0.1", self.grpc_port), timeout=2).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    """One MLServer for the session; do not stop it."""
    with MLServer(tmp_path_factory.mktemp("mlserver")) as server:
        yield server


@pytest.fixture
def own_mlserver(tmp_path: Path) -> Iterator[MLServer]:
    """An MLServer for this test alone, to be killed and paused."""
    (folder := tmp_path / "mlserver").mkdir()
    with MLServer(folder) as server:
        yield server
