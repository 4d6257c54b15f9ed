"""One model server over gRPC: Open Inference Protocol, on a channel of grpcio.

Rules:
  * gRPC keeps the deadline itself, over names, connections, TLS and the answer. It retries nothing here, uses no proxy of the
    environment, takes no settings from the server's DNS, and refuses answers that are too large.
  * A channel is made when it is first needed, after a fork: gRPC's threads do not survive one. In a child of a process
    that has used gRPC calls end as kind "forked", unless GRPC_ENABLE_FORK_SUPPORT was set from the start.
  * The parent's channel is left alone in a child, not closed: closing it would wait for threads that are not there.
  * Everything that goes wrong is a RemoteError with a kind; no message holds what the server said.
Messages: grpc_messages.py.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from numpy.typing import NDArray

from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, RemoteError
from retailinfer.resilience.remote import Cancel
from retailinfer.resilience.remote.endpoint import Endpoint
from retailinfer.resilience.remote.grpc_messages import (
    decode_metadata,
    decode_reply,
    encode_metadata_request,
    encode_request,
)
from retailinfer.resilience.remote.tensors import Metadata

__all__ = ["GrpcBackend"]

_SERVICE = "/inference.GRPCInferenceService/"
_KINDS = {
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    **dict.fromkeys(
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.OUT_OF_RANGE,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.UNAUTHENTICATED,
        ),
        "rejected",
    ),
}


# gRPC has one code for all of these; its own text, which no server can write, tells them apart.
_TLS_WORDS = ("SSL_ERROR", "Tls handshake", "Hostname Verification", "verification check")


class _Used:
    """Which process has used gRPC first."""

    pid = 0


def _leave_alone(channel: Any) -> None:
    """Keep a parent's channel for ever: the end of the last reference would close it, also when the interpreter ends."""
    import ctypes  # noqa: PLC0415 - in children of processes that have used gRPC

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))


class GrpcBackend:
    """A model at one endpoint."""

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
    ) -> None:
        self.name = endpoint.name
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._target = f"{host}:{endpoint.port}"
        self._model, self._version = model, version or ""
        given = {
            **({"authorization": endpoint.authorization} if endpoint.authorization else {}),
            **(headers or {}),
        }
        self._metadata = tuple((name.lower(), value) for name, value in given.items())
        self._most = max_reply_bytes
        self._certificates: tuple[bytes | None, bytes | None, bytes | None] | None = None
        if endpoint.tls:
            self._certificates = _read_certificates(ca_certs, client_cert)
        self._channel: Any = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<GrpcBackend {self.name}>"

    def begin_in_child(self) -> None:
        """The channel of the parent is the parent's, and stays as it is."""
        if self._channel is not None:
            _leave_alone(self._channel)
        self._channel = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the channel; the next call makes another one."""
        if self._pid != os.getpid():
            self.begin_in_child()
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

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
        begin_ns = SystemClock.monotonic_ns()
        body = encode_request(self._model, self._version, inputs, outputs)
        left_s = timeout_s - (SystemClock.monotonic_ns() - begin_ns) / 1e9
        return decode_reply(self._call("ModelInfer", body, left_s, cancel))

    def metadata(self, *, timeout_s: float) -> Metadata:
        """What the server says of the model. Raises: RemoteError."""
        return decode_metadata(
            self._call("ModelMetadata", encode_metadata_request(self._model, self._version), timeout_s, None)
        )

    # --- one call ---------------------------------------------------------------------------------------------------

    def _call(self, method: str, body: bytes, timeout_s: float, cancel: Cancel | None) -> bytes:
        if timeout_s <= 0:
            raise RemoteError(f"no time was left to ask {self.name}", kind="timeout")
        call: Callable[..., Any] = self._open().unary_unary(_SERVICE + method)
        try:
            if cancel is None:
                reply = call(body, timeout=timeout_s, metadata=self._metadata)
            else:
                future = call.future(body, timeout=timeout_s, metadata=self._metadata)  # type: ignore[attr-defined]
                cancel.wake_by(future.cancel)
                try:
                    reply = future.result()
                finally:
                    cancel.wake_by(None)
        except grpc.FutureCancelledError as exc:
            raise RemoteError(f"the call to {self.name} was cancelled", kind="cancelled") from exc
        except grpc.RpcError as exc:
            raise self._error(exc, cancel) from None  # its repr shows what the server said
        except ValueError as exc:  # the channel was closed meanwhile
            raise RemoteError(f"the channel to {self.name} was closed", kind="reset") from exc
        if reply is None:  # the status says OK, and no whole message came
            raise RemoteError(f"{self.name} ended the call in the middle of its answer", kind="truncated")
        return bytes(reply)

    def _error(self, exc: Any, cancel: Cancel | None) -> RemoteError:
        code = exc.code()
        kind = _KINDS.get(code, "server")
        details = str(exc.details() or "")
        retry_after_s = None
        for name, value in exc.trailing_metadata() or ():
            if (
                name == "grpc-retry-pushback-ms"
                and isinstance(value, str)
                and re.fullmatch(r"-?[0-9]{1,9}", value)
            ):
                # Below zero: do not come back. As an hour it fits no deadline.
                retry_after_s = 3600.0 if value.startswith("-") else int(value) / 1e3
        if kind == "cancelled" and not (cancel is not None and cancel.is_set):
            kind = "reset"  # the other side ended the stream
        elif kind == "overloaded" and "larger than max" in details:
            return RemoteError(f"{self.name} sent more than {self._most} bytes", kind="too_large")
        elif kind == "unavailable" and any(one in details for one in _TLS_WORDS):
            kind = "tls"
        elif kind == "unavailable" and any(one in details for one in ("connect", "resol")):
            kind = "connect"
        return RemoteError(f"{self.name} answered {code.name}", kind=kind, retry_after_s=retry_after_s)

    def _open(self) -> Any:
        if self._pid != os.getpid():  # a fork that told nobody
            self.begin_in_child()
        if self._channel is None:
            if _Used.pid not in (0, self._pid) and os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "0") in (
                "",
                "0",
                "false",
            ):
                raise RemoteError(
                    "gRPC was used before this process was forked, and cannot be used in it",
                    kind="forked",
                    hint="make the first remote call after the fork, or set GRPC_ENABLE_FORK_SUPPORT=1 for the parent",
                )
            with self._lock:
                if self._channel is None:
                    _Used.pid = self._pid
                    self._channel = self._make()
        return self._channel

    def _make(self) -> Any:
        options = [
            ("grpc.max_receive_message_length", self._most),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 1 << 14),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
            # A server that is back is found within the breaker's first wait, not after two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if self._certificates is None:
            return grpc.insecure_channel(self._target, options=options)
        roots, key, chain = self._certificates
        return grpc.secure_channel(
            self._target, grpc.ssl_channel_credentials(roots, key, chain), options=options
        )


def _read_certificates(
    ca_certs: str | None, client_cert: tuple[str, str] | None
) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Who is trusted (None: gRPC's own list), our key, our certificates. Raises: ConfigError."""
    try:
        roots = None if ca_certs is None else Path(ca_certs).read_bytes()
        if client_cert is None:
            return roots, None, None
        return roots, Path(client_cert[1]).read_bytes(), Path(client_cert[0]).read_bytes()
    except OSError as exc:
        raise ConfigError(f"Expected certificates that can be read ({type(exc).__name__})") from exc
