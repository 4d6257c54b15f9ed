"""HTTP with a tracking server of MLflow: one GET at a time, everything checked and counted. For mlflow.py.

Rules:
  * One time limit for all requests together, down to the last byte of a head that comes a byte at a time.
  * An answer says how long it is and keeps to it; nothing larger than was asked for is read.
  * Nobody is followed. Credentials go to this server, and over https only, unless it is on this machine.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
from time import monotonic
from typing import TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec

from retailinfer.errors import ConfigError, RegistryError, clip

__all__ = ["NotFoundError", "Server"]

_T = TypeVar("_T")
MAX_ANSWER = 4 << 20  # bytes of what the server says of a model or a run
_PIECE = 1 << 20


class NotFoundError(RegistryError):
    """The server has no such thing."""


class Server:
    """A tracking server. One connection a request; all of them together have until `ends_s`."""

    def __init__(self, uri: str, *, ends_s: float) -> None:
        parts = urlsplit(uri if isinstance(uri, str) else "")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or port == -1
            or parts.query
            or parts.fragment
        ):
            raise ConfigError(
                f"Expected the http(s) URL of an MLflow server, got {clip(without_user(uri), 80)}",
                hint="give tracking_uri=, or set MLFLOW_TRACKING_URI; models in a folder or a database need `mlflow server`",
            )
        self._tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.origin = f"{parts.scheme}://{host}{'' if parts.port is None else f':{parts.port}'}{self._base}"
        self._ends_s = ends_s
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "retailinfer"} | _authorization(
            parts.username, parts.password
        )
        if "Authorization" in self._headers and not self._tls and not _is_here(self.host):
            raise ConfigError(
                f"credentials for {self.origin} would travel in the open",
                hint="use https, or a tunnel to this machine",
            )

    def __str__(self) -> str:
        return self.origin

    def ask(self, what: str, kind: type[_T], **arguments: str | None) -> _T:
        """One question. Raises: RegistryError."""
        data = self._get(f"/api/2.0/mlflow/{what}?{urlencode(arguments)}", MAX_ANSWER, what)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise RegistryError(
                f"{self} answers otherwise than MLflow: {clip(str(exc), 100)} - at {what}"
            ) from exc

    def file(self, path: str, cap: int) -> bytes:
        """A file of the server's own. Raises: RegistryError."""
        return self._get(f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}", cap, path)

    def _get(self, target: str, cap: int, what: str) -> bytes:
        left_s = self._ends_s - monotonic()
        if left_s <= 0:
            raise RegistryError(
                f"{self} took too long - at {clip(what, 80)}", hint="give it more with timeout_s="
            )
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.default_port = 443 if self._tls else 80
        context = ssl.create_default_context() if self._tls else None
        late = threading.Event()
        watch: threading.Timer | None = None
        try:
            sock = socket.create_connection((self.host, self.port), timeout=left_s)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
            connection.sock = sock
            # The socket's own limit is for each read; a server that sends a byte now and then would never meet it.
            watch = threading.Timer(max(self._ends_s - monotonic(), 0.0), _cut, (sock, late))
            watch.daemon = True
            watch.start()
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.request("GET", self._base + target, headers=self._headers)
            return self._body(connection.getresponse(), cap, what)
        except (OSError, http.client.HTTPException, ValueError, RegistryError) as exc:
            # Cut off, a connection breaks in many ways (ValueError: in the middle of TLS); late is what it was.
            if late.is_set() or isinstance(exc, TimeoutError):
                raise RegistryError(
                    f"{self} took too long - at {clip(what, 80)}", hint="give it more with timeout_s="
                ) from exc
            if isinstance(exc, RegistryError):
                raise
            raise RegistryError(
                f"{self} did not answer: {clip(str(exc), 100)} - at {clip(what, 80)}"
            ) from exc
        finally:
            if watch is not None:
                watch.cancel()
            connection.close()

    def _body(self, answer: http.client.HTTPResponse, cap: int, what: str) -> bytes:
        if answer.status in (401, 403):
            raise RegistryError(
                f"{self} refuses us ({answer.status}) - at {clip(what, 80)}",
                hint="set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        if 300 <= answer.status < 400:
            to = without_user(answer.headers.get("Location", ""))
            raise RegistryError(
                f"{self} sends us to {clip(to, 80)}",
                hint="give that address as tracking_uri= if it is the right one",
            )
        if answer.status != 200:
            said = answer.read(4096).decode("utf-8", "replace")
            kind = NotFoundError if answer.status == 404 else RegistryError
            raise kind(f"{self} answers {answer.status}: {clip(said, 200)} - at {clip(what, 80)}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise RegistryError(f"{self} compresses what was not to be compressed - at {clip(what, 80)}")
        if answer.length is not None and answer.length > cap:
            raise _too_large(what, cap)
        if answer.length is None and not answer.chunked:
            raise RegistryError(f"{self} does not say where its answer ends - at {clip(what, 80)}")
        parts: list[bytes] = []
        size = 0
        while part := answer.read(min(_PIECE, cap + 1 - size)):
            parts.append(part)
            size += len(part)
            if size > cap:
                raise _too_large(what, cap)
        if answer.length:  # a whole answer leaves nothing to come
            raise RegistryError(f"{self} ended in the middle of {clip(what, 80)}")
        return b"".join(parts)


def _too_large(what: str, cap: int) -> RegistryError:
    return RegistryError(
        f"Expected at most {cap} bytes - at {clip(what, 80)}",
        hint="raise max_bytes= if it is meant to be that large",
    )


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _authorization(user: str | None, password: str | None) -> dict[str, str]:
    """Of the URL, or as MLflow's own client takes them from the environment."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user is None and token:
        return {"Authorization": f"Bearer {_one_line(token)}"}
    user = unquote(user) if user is not None else os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password) if password is not None else os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _one_line(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("MLFLOW_TRACKING_TOKEN is no text of one line")
    return token


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without_user(uri: object) -> str:
    """A URL as messages may show it."""
    return re.sub(r"//[^/@]*@", "//", uri) if isinstance(uri, str) else repr(uri)
