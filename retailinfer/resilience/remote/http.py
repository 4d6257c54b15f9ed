"""One model server over HTTP: Open Inference Protocol v2, on connections of urllib3.

Rules:
  * The time given holds for everything: name, connection, TLS, the request, every byte of the answer. The socket looks at the
    clock before each read, so that a server that sends a byte a second gains nothing. It counts bytes the same way.
  * Nobody is followed: a redirect is an error. No proxy of the environment is used. Compressed answers are not asked for and
    not unpacked. Certificates are always verified; there is no way from https to http.
  * A connection serves one call at a time and is kept only if the whole answer was read. One that the server has closed
    meanwhile, or that says something nobody asked for, is noticed before it is used.
  * A name that leads to a link-local address, where clouds keep the secrets of machines, is refused.
  * A forked child closes its copies, without a word to the other side, and opens its own.
  * Everything that goes wrong is a RemoteError with a kind; no message holds a value, a password or what the server said.
Messages: http_messages.py.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import urllib3.connection
from numpy.typing import NDArray
from urllib3.exceptions import HTTPError, IncompleteRead, InvalidChunkLength, ProtocolError

from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, RemoteError
from retailinfer.hostnames import Names
from retailinfer.resilience.remote import Cancel
from retailinfer.resilience.remote.endpoint import Endpoint
from retailinfer.resilience.remote.http_messages import (
    decode_metadata,
    decode_reply,
    encode_request,
    extensions_of,
    malformed,
)
from retailinfer.resilience.remote.tensors import Metadata

__all__ = ["HttpBackend"]

_MAX_IDLE = 64
_MAX_HEAD = 1 << 17  # bytes of status line and headers
_PIECE = 1 << 16
_AWS_SECRETS = ipaddress.ip_address("fd00:ec2::254")
_SAID = 0.9  # of the time left, that a server is told: the rest is for the way back


def _now_s() -> float:
    return SystemClock.monotonic_ns() / 1e9


class _Limits:
    """What the sockets of one connection look at: until when, and how many bytes more. One call at a time changes it."""

    __slots__ = ("end_s", "most", "received", "sock")

    def __init__(self) -> None:
        self.end_s = 0.0
        self.most = 0
        self.received = 0  # in this call
        self.sock: socket.socket | None = None  # the one that a cancelled call is woken by

    def left_s(self) -> float:
        """Raises: TimeoutError if nothing is left."""
        left_s = self.end_s - _now_s()
        if left_s <= 0:
            raise TimeoutError("the time of the call is over")
        return left_s

    def count(self, n: int) -> int:
        self.received += n
        if self.received > self.most:
            raise _TooLargeError
        return n


class _TooLargeError(Exception):
    """More bytes came than a reply may have."""


class _PlainSocket(socket.socket):
    """A socket with limits."""

    limits: _Limits

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(self.limits.left_s())
        return self.limits.count(super().recv_into(*args, **kwargs))

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(self.limits.left_s())  # holds for all of it
        super().sendall(*args, **kwargs)


class _TlsSocket(ssl.SSLSocket):
    """The same over TLS. The context makes it; its limits are those of the socket that it wraps."""

    limits: _Limits | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        limits = self.limits
        if limits is None:
            return super().recv_into(*args, **kwargs)
        self.settimeout(limits.left_s())
        return limits.count(super().recv_into(*args, **kwargs))

    def send(self, *args: Any, **kwargs: Any) -> int:  # what sendall is made of
        if self.limits is not None:
            self.settimeout(self.limits.left_s())
        return super().send(*args, **kwargs)


def _is_link_local(address: str) -> bool:
    """Also one of IPv4 that is written as one of IPv6, and the one that AWS uses for the same over IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_link_local or found == _AWS_SECRETS


def _open(names: Names, host: str, port: int, limits: _Limits) -> socket.socket:
    """A connected socket with limits. Raises: OSError, LookupError, RemoteError."""
    candidates = names.find(host, port, limits.end_s)
    failure: OSError = OSError("no address")
    for i, (family, where) in enumerate(candidates):
        if host != where[0] and _is_link_local(where[0]):
            failure = OSError("the name leads to a link-local address")
            continue
        now_s = _now_s()
        share_s = (limits.end_s - now_s) / (len(candidates) - i)  # the first may be a black hole
        if share_s <= 0:
            raise TimeoutError("no time left to connect")
        sock = _PlainSocket(family, socket.SOCK_STREAM)
        sock.limits = limits
        limits.sock = sock
        try:
            sock.settimeout(share_s)
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.settimeout(limits.left_s())
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


class _Plain(urllib3.connection.HTTPConnection):
    """A connection whose socket has limits."""

    limits: _Limits
    names: Names

    def _new_conn(self) -> socket.socket:
        return _open(self.names, self.host, self.port, self.limits)


class _Tls(urllib3.connection.HTTPSConnection):
    """The same over TLS."""

    limits: _Limits
    names: Names

    def _new_conn(self) -> socket.socket:
        return _open(self.names, self.host, self.port, self.limits)

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, _TlsSocket)
        self.sock.limits = self.limits
        self.limits.sock = self.sock


def _context(ca_certs: str | None, client_cert: tuple[str, str] | None) -> ssl.SSLContext:
    """Certificates are verified, and so are names; TLS 1.2 or newer. Raises: ConfigError."""
    try:
        context = ssl.create_default_context(cafile=ca_certs)
        if client_cert is not None:
            context.load_cert_chain(*client_cert)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"Expected certificates that can be read ({type(exc).__name__})") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TlsSocket
    return context


class HttpBackend:
    """A model at one endpoint. `binary`: None = ask the server once whether it has the binary extension."""

    takes_cancel = True

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        ca_certs: str | None = None,
        client_cert: tuple[str, str] | None = None,
        max_reply_bytes: int = 16 << 20,
        binary: bool | None = None,
    ) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._tls = _context(ca_certs, client_cert) if endpoint.tls else None
        self._root = f"{endpoint.path}/v2"
        self._model = f"{self._root}/models/{quote(model, safe='')}"
        if version is not None:
            self._model += f"/versions/{quote(version, safe='')}"
        self._headers = {
            "User-Agent": "retailinfer",
            "Accept-Encoding": "identity",
            **({"Authorization": endpoint.authorization} if endpoint.authorization else {}),
            **(headers or {}),
        }
        self._most = max_reply_bytes
        # What the server can beyond the protocol; None: it has to be asked.
        self._extensions = None if binary is None else frozenset(["binary_tensor_data"] if binary else ())
        self.connections = 0  # opened so far
        self.begin_in_child()

    def __repr__(self) -> str:
        return f"<HttpBackend {self.name}>"

    def begin_in_child(self) -> None:
        """The connections of the parent are the parent's: their copies are closed, which the other side does not notice."""
        idle: list[_Plain | _Tls] = getattr(self, "_idle", [])
        self._idle: list[_Plain | _Tls] = []
        self._names = Names()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        for connection in idle:
            with contextlib.suppress(OSError):
                connection.close()

    def close(self) -> None:
        """Close what is idle. It may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        for connection in getattr(self, "_idle", ()):
            connection.close()

    @property
    def n_idle(self) -> int:
        """Connections that wait for the next call."""
        return len(self._idle)

    # --- what is asked ----------------------------------------------------------------------------------------------

    def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        timeout_s: float,
        cancel: Cancel | None = None,
    ) -> dict[str, NDArray[Any]]:
        """See Backend. cancel: ends the call from another thread, as kind "cancelled"."""
        end_s = _now_s() + timeout_s
        if self._extensions is None:
            self._extensions = self._ask_extensions(end_s, cancel)
        timeout_us = None
        if "schedule_policy" in self._extensions:  # a server that drops what nobody waits for any more
            timeout_us = max(1, int((end_s - _now_s()) * _SAID * 1e6))
        binary = "binary_tensor_data" in self._extensions
        body, head_size = encode_request(inputs, outputs, binary=binary, timeout_us=timeout_us)
        more = {"Content-Type": "application/json"}
        if head_size is not None:
            more = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(head_size),
            }
        reply, size = self._call("POST", f"{self._model}/infer", body, more, end_s, cancel)
        return decode_reply(reply, size)

    def metadata(self, *, timeout_s: float) -> Metadata:
        """What the server says of the model. Raises: RemoteError."""
        return decode_metadata(self._call("GET", self._model, None, {}, _now_s() + timeout_s, None)[0])

    def _ask_extensions(self, end_s: float, cancel: Cancel | None) -> frozenset[str]:
        try:
            reply, _ = self._call("GET", self._root, None, {}, end_s, cancel)
            return frozenset(extensions_of(reply))
        except RemoteError as exc:
            if exc.kind in ("rejected", "malformed"):  # it answers, but not to this
                return frozenset()
            raise

    # --- one call ---------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        end_s: float,
        cancel: Cancel | None,
    ) -> tuple[bytes, int | None]:
        """Body of a reply of status 200, and the size of its JSON where bytes follow it. Raises: RemoteError."""
        if self._pid != os.getpid():  # a fork that told nobody
            self.begin_in_child()
        connection = self._take()
        limits = connection.limits
        limits.end_s, limits.received, limits.most = end_s, 0, self._most + _MAX_HEAD
        whole = False
        sent = False
        try:
            if cancel is not None:
                cancel.wake_by(lambda: _wake(limits))
            connection.timeout = limits.left_s()
            if connection.is_closed:
                self.connections += 1
                connection.connect()
            sent = True
            connection.request(
                method, path, body, {**self._headers, **headers},
                preload_content=False, decode_content=False,
            )  # fmt: skip
            response = connection.getresponse()
            whole, reply, size = self._read(connection, response)
        except RemoteError:
            raise
        except Exception as exc:
            if cancel is not None and cancel.is_set:
                raise RemoteError(f"the call to {self.name} was cancelled", kind="cancelled") from exc
            error = self._error(exc, sent=sent, received=limits.received)
            # http.client shows what the server said, and what it was given as a header.
            raise error from (exc if isinstance(exc, OSError) else None)
        finally:
            if cancel is not None:
                cancel.wake_by(None)
            if whole and (cancel is None or not cancel.is_set):
                self._give_back(connection)
            else:
                connection.close()
        return reply, size

    def _read(
        self, connection: _Plain | _Tls, response: urllib3.HTTPResponse
    ) -> tuple[bool, bytes, int | None]:
        """Whether all was read; body; size of its JSON. Raises: RemoteError, and what reading raises."""
        status = response.status
        if status != 200:
            raise self._refusal(status, response.headers.get("Retry-After"))
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise malformed("it is compressed, which was not asked for")
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > self._most:
            raise _TooLargeError
        parts = []
        while piece := response.read(_PIECE, decode_content=False):
            parts.append(piece)
        size = response.headers.get("Inference-Header-Content-Length")
        if size is not None and not (size.isascii() and size.isdigit() and len(size) < 12):
            raise malformed("the size of its header is no number")
        return not connection.is_closed, b"".join(parts), None if size is None else int(size)

    def _refusal(self, status: int, retry_after: str | None) -> RemoteError:
        wait_s = float(retry_after or 0) if re.fullmatch(r"[0-9]{1,6}", (retry_after or "").strip()) else None
        kind = "server" if status >= 500 else "malformed"
        if status == 429:
            kind = "overloaded"
        elif status == 503:
            kind = "unavailable"
        elif 300 <= status < 400:
            return RemoteError(f"{self.name} answered {status}: redirects are not followed", kind="redirect")
        elif 400 <= status < 500:
            kind = "rejected"
        return RemoteError(f"{self.name} answered {status}", kind=kind, retry_after_s=wait_s)

    def _error(self, exc: Exception, *, sent: bool, received: int) -> RemoteError:
        """The one place where the exceptions of sockets, TLS, http.client and urllib3 become ours."""
        where, cause = self.name, type(exc).__name__
        if isinstance(exc, _TooLargeError):
            return RemoteError(f"{where} sent, or announced, more than {self._most} bytes", kind="too_large")
        inner: BaseException = exc
        while isinstance(inner, HTTPError) and (deeper := inner.__cause__ or inner.__context__) is not None:
            inner = deeper
            if isinstance(inner, _TooLargeError):
                return RemoteError(f"{where} sent more than {self._most} bytes", kind="too_large")
        if isinstance(exc, TimeoutError) or isinstance(inner, TimeoutError):
            if not sent:
                return RemoteError(f"{where} took no connection in the time given", kind="connect")
            return RemoteError(f"{where} did not answer in the time given", kind="timeout")
        if not sent:
            if isinstance(inner, ssl.SSLError):
                return RemoteError(f"no trusted TLS with {where} ({cause})", kind="tls")
            return RemoteError(f"{where} cannot be reached ({type(inner).__name__})", kind="connect")
        if received == 0 and isinstance(exc, (OSError, ProtocolError, http.client.RemoteDisconnected)):
            return RemoteError(f"{where} ended the connection before it answered", kind="reset")
        if isinstance(inner, (http.client.LineTooLong, InvalidChunkLength)) or isinstance(
            exc, InvalidChunkLength
        ):
            return RemoteError(f"{where} sent what is no HTTP ({cause})", kind="malformed")
        if isinstance(exc, (OSError, IncompleteRead, ProtocolError, http.client.IncompleteRead)):
            return RemoteError(f"{where} ended the connection in the middle of its answer", kind="truncated")
        return RemoteError(f"{where} sent what is no HTTP ({cause})", kind="malformed")

    # --- connections ------------------------------------------------------------------------------------------------

    def _take(self) -> _Plain | _Tls:
        while self._idle:
            try:
                connection = self._idle.pop()  # the one used last: the others may grow old and be closed
            except IndexError:  # another thread took it
                break
            if connection.is_connected:
                return connection
            connection.close()
        where, tls = self._endpoint, self._tls
        made: _Plain | _Tls
        made = (
            _Plain(where.host, where.port) if tls is None else _Tls(where.host, where.port, ssl_context=tls)
        )
        made.limits, made.names = _Limits(), self._names
        return made

    def _give_back(self, connection: _Plain | _Tls) -> None:
        if self._pid == os.getpid() and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()


def _wake(limits: _Limits) -> None:
    """Whoever waits for the socket sees its end. What TLS holds is left alone: another thread is using it."""
    sock = limits.sock
    if sock is not None:
        try:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError as exc:
            if exc.errno not in (errno.ENOTCONN, errno.EBADF):
                raise
