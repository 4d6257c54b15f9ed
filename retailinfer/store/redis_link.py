"""RedisLink: commands to Redis and replies from it, within a time limit that holds for every byte. Single, sentinel, cluster.

Rules:
  * One flight per `request`: everything is written before anything is read, to all nodes that are concerned. What comes after
    a limit, or after an answer that is no RESP2, is never read: that connection is closed.
  * A connection serves one request at a time and is taken from a list, never tied to a thread: greenlets, signals and
    re-entrant calls each take their own. A forked child closes its copies and opens connections of its own.
  * Nothing is sent twice, unless the server has said that it did not do it (MOVED, ASK). A connection that the server has
    closed meanwhile is noticed before it is used.
  * An error that the server answers with is a value (`ErrorReply`): the caller knows what it asked. Anything else that goes
    wrong is a LinkError. No message holds a password, a key or a value.
  * Nothing is opened when a link is made. Names are looked up on a thread (hostnames.py), since a resolver knows no limits.
Rows over it: sources/redis.py; shared windows: windows_redis.py. It needs no package: RESP2 is forty lines, and a client that
retries, re-reads and pings by itself cannot keep a limit of milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, clip
from retailinfer.hostnames import Names

__all__ = ["ErrorReply", "LinkError", "LinkTimeout", "RedisLink", "Reply", "encode", "key_slot"]

Address: TypeAlias = tuple[str, int] | str  # host and port, or the path of a Unix socket
Reply: TypeAlias = Any  # bytes | int | None | ErrorReply | list of those

_MAX_REPLY = 64 << 20  # bytes of all replies of one flight
_MAX_ITEMS = 1 << 20  # that one array may announce
_MAX_DEPTH = 8
_MAX_LINE = 1 << 16
_MAX_IDLE = 64  # connections kept per node
_SENTINEL_SHARE = 0.5  # of what is left, for each sentinel that is asked: the first may hang
_POLL = getattr(select, "poll", None)


def _now_s() -> float:
    return SystemClock.monotonic_ns() / 1e9


class LinkError(Exception):
    """Redis could not be reached, was not ready, or did not speak RESP2."""


class LinkTimeout(LinkError):  # noqa: N818 - it names what happened
    """The limit passed before everything was answered. Whether the commands were carried out is not known."""


class ErrorReply(NamedTuple):
    """What the server answered instead of doing something, as in `WRONGTYPE Operation against ...`."""

    text: str

    @property
    def code(self) -> str:
        """The first word."""
        return self.text.partition(" ")[0]


_SIZES = [b"\r\n$%d\r\n" % size for size in range(1_024)]


def encode(*words: bytes) -> bytes:
    """One command as RESP."""
    parts = [b"*%d" % len(words)]
    for word in words:
        size = len(word)
        parts.append(_SIZES[size] if size < 1_024 else b"\r\n$%d\r\n" % size)
        parts.append(word)
    parts.append(b"\r\n")
    return b"".join(parts)


def _crc16_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return table


_CRC16 = _crc16_table()  # XMODEM, as the cluster's specification says


def key_slot(key: bytes) -> int:
    """Slot of a key in a cluster: of what stands in its first `{...}`, or of all of it."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    crc = 0
    for byte in key:
        crc = ((crc << 8) & 0xFFFF) ^ _CRC16[(crc >> 8) ^ byte]
    return crc & 16_383


class _Settings(NamedTuple):
    """What a URL says, the password included: it has no repr that shows it."""

    kind: str  # single, sentinel, cluster
    addresses: tuple[Address, ...]
    service: bytes  # of a sentinel
    database: int
    username: str
    password: str
    sentinel_username: str
    sentinel_password: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(map(_shown, self.addresses))}>"


def _shown(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


_SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_OPTIONS = {"db", "sentinel_username", "sentinel_password", "ca", "cert", "key", "verify"}
_FORMS = (
    "redis://[user:password@]host[:port][/database], rediss:// for TLS (?ca=&cert=&key=), unix:///path, "
    "redis+sentinel://host:port,host:port/service[/database], redis+cluster://host:port,host:port"
)


def _parse(url: object) -> _Settings:
    """Read a URL; a message about a wrong one does not show it, since it may hold a password."""

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"Expected a URL of Redis, {what}", hint=f"forms: {_FORMS}")

    if not isinstance(url, str):
        raise wrong(f"got `{type(url).__name__}`")
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise wrong("got text that is none") from None
    if parts.scheme not in _SCHEMES:
        raise wrong(f"got the scheme {clip(parts.scheme)}")
    kind, with_tls = _SCHEMES[parts.scheme]
    if unknown := options.keys() - _OPTIONS:
        raise wrong(f"with the options {sorted(_OPTIONS)}, got {clip(min(unknown))}")
    account, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (unquote(one) for one in account.partition(":"))
    path = [unquote(one) for one in parts.path.split("/") if one]
    service = ""
    addresses: tuple[Address, ...]
    if parts.scheme in ("unix", "redis+unix"):
        addresses, path = (unquote(parts.path),), []
        if not addresses[0] or hosts or not hasattr(socket, "AF_UNIX"):
            raise wrong("with the path of a Unix socket")
    else:
        default = 26_379 if kind == "sentinel" else 6_379
        addresses = tuple(_address(one, default, wrong) for one in hosts.split(",")) if hosts else ()
        if kind == "single":
            addresses = addresses or (("localhost", default),)
            if len(addresses) > 1:
                raise wrong("with one host, or one of redis+cluster:// and redis+sentinel://")
    if not addresses:
        raise wrong("with the hosts to ask")
    if kind == "sentinel":
        if not path:
            raise wrong("with the name of the service that the sentinels watch")
        service, path = path[0], path[1:]
    database = options.get("db", path[0] if path else "0")
    if len(path) > 1 or not re.fullmatch(r"\d{1,6}", database):
        raise wrong("with a database that is a number")
    if kind == "cluster" and int(database):
        raise wrong("with database 0, the only one that a cluster has")
    return _Settings(
        kind, addresses, service.encode(), int(database), username, password,
        options.get("sentinel_username", ""), options.get("sentinel_password", ""),
        _tls(options, wrong) if with_tls else None,
    )  # fmt: skip


def _address(text: str, default: int, wrong: Callable[[str], ConfigError]) -> Address:
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^\[\]:/\s]+))(?::(\d{1,5}))?", text)
    if found is None or not 0 < int(found[3] or default) < 65_536:
        raise wrong("with hosts as in `redis-1:6379` or `[::1]:6379`")
    return found[1] or unquote(found[2]), int(found[3] or default)


def _tls(options: dict[str, str], wrong: Callable[[str], ConfigError]) -> ssl.SSLContext:
    if (verify := options.get("verify", "full")) not in ("full", "ca"):
        raise wrong("with verify=full, or verify=ca where certificates do not name their hosts")
    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
        context.check_hostname = verify == "full"
        if "cert" in options:
            context.load_cert_chain(options["cert"], options.get("key"))
    except OSError as exc:
        raise wrong(f"with certificates that can be read ({type(exc).__name__})") from exc
    return context


class _Wire:
    """One connection, and what has been received on it and not yet been read."""

    __slots__ = ("_at", "_buffer", "_poll", "_received", "address", "sock")

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address
        self._buffer = b""
        self._at = 0
        self._received = 0
        self._poll: Any = None
        if _POLL is not None:
            self._poll = _POLL()
            self._poll.register(sock.fileno(), select.POLLIN | select.POLLERR | select.POLLHUP)

    def quiet(self) -> bool:
        """Whether nothing has come that nobody asked for; the end of the connection would have."""
        if self._at != len(self._buffer):
            return False
        if self._poll is not None:
            return not self._poll.poll(0)
        return not select.select([self.sock], [], [], 0)[0]

    def send(self, data: bytes, end_s: float) -> None:
        self._received = 0
        left_s = end_s - _now_s()
        if left_s <= 0:
            raise LinkTimeout("no time left to ask Redis")
        try:
            self.sock.settimeout(left_s)
            self.sock.sendall(data)
        except TimeoutError:
            raise LinkTimeout("Redis took no more commands") from None
        except OSError as exc:
            raise LinkError(f"Redis ended the connection ({type(exc).__name__})") from exc

    def _more(self, end_s: float) -> None:
        left_s = end_s - _now_s()
        if left_s <= 0:
            raise LinkTimeout("Redis did not answer in time")
        try:
            self.sock.settimeout(left_s)
            data = self.sock.recv(1 << 17)
        except TimeoutError:
            raise LinkTimeout("Redis did not answer in time") from None
        except OSError as exc:
            raise LinkError(f"Redis ended the connection ({type(exc).__name__})") from exc
        if not data:
            raise LinkError("Redis ended the connection")
        self._received += len(data)
        if self._received > _MAX_REPLY:
            raise LinkError(f"Redis sent more than {_MAX_REPLY} bytes")
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def _line(self, end_s: float) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > _MAX_LINE:
                raise LinkError("Redis sent something that is no RESP2")
            self._more(end_s)
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _bulk(self, size: int, end_s: float) -> bytes:
        have = len(self._buffer) - self._at
        if have < size + 2:
            if size > _MAX_REPLY:
                raise LinkError(f"Redis announced more than {_MAX_REPLY} bytes")
            parts = [self._buffer[self._at :]]  # joined once: a long text does not grow byte by byte
            self._buffer, self._at = b"", 0
            while have < size + 2:
                self._more(end_s)
                parts.append(self._buffer)
                have += len(self._buffer)
                self._buffer = b""
            self._buffer = b"".join(parts)
        end = self._at + size
        if self._buffer[end : end + 2] != b"\r\n":
            raise LinkError("Redis sent something that is no RESP2")
        text = self._buffer[self._at : end]
        self._at = end + 2
        return text

    def _texts(self, items: list[Reply], n: int) -> None:
        """Append the texts that have been received whole, up to `n` items: the short way for hundreds of rows."""
        buffer, at = self._buffer, self._at
        while len(items) < n and buffer[at : at + 1] == b"$":
            end = buffer.find(b"\r\n", at)
            digits = buffer[at + 1 : end]
            if end < 0 or not digits.isdigit() or len(digits) > 8:
                break
            stop = end + 2 + int(digits)
            if buffer[stop : stop + 2] != b"\r\n":
                break
            items.append(buffer[end + 2 : stop])
            at = stop + 2
        self._at = at

    def read(self, end_s: float, depth: int = 0) -> Reply:
        """The next reply."""
        line = self._line(end_s)
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self._bulk(_number(rest), end_s)
        if kind == b":":
            return _number(rest)
        if kind == b"*":
            if rest == b"-1":
                return None
            n = _number(rest)
            if not 0 <= n <= _MAX_ITEMS or depth >= _MAX_DEPTH:
                raise LinkError("Redis announced an array that is too long or too deep")
            items: list[Reply] = []
            while len(items) < n:
                self._texts(items, n)
                if len(items) < n:
                    items.append(self.read(end_s, depth + 1))
            return items
        if kind == b"+":
            return rest
        if kind == b"-":
            return ErrorReply(rest.decode("utf-8", "replace"))
        raise LinkError("Redis sent something that is no RESP2")

    def close(self) -> None:
        """Close this process's copy; another process that holds one notices nothing."""
        with contextlib.suppress(OSError):
            self.sock.close()

    def __del__(self) -> None:
        self.close()  # a link that is dropped needs no close of its own


def _number(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19:
        raise LinkError("Redis sent something that is no RESP2")
    return int(text)


class RedisLink:
    """Connections to one Redis, sentinel-watched Redis, or cluster. Safe to use from any thread, greenlet and process."""

    def __init__(self, url: str) -> None:
        self._settings = _parse(url)
        self._names = Names()
        self._idle: dict[Address, list[_Wire]] = {}
        self._pid = os.getpid()
        self._master: Address | None = None  # as a sentinel said
        self._slots: list[Address | None] | None = None  # of a cluster
        self.connections = 0  # opened so far
        self.flights = 0  # requests so far

    @property
    def is_cluster(self) -> bool:
        """Whether keys of one request may lie on several nodes, so that a script may touch one of them only."""
        return self._settings.kind == "cluster"

    def __repr__(self) -> str:
        return f"<RedisLink {self._settings!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a link to Redis cannot be pickled or copied: it holds connections and a password")

    # --- one flight -----------------------------------------------------------------------------------------------

    def request(self, commands: Sequence[tuple[bytes | None, bytes]], *, timeout_s: float) -> list[Reply]:
        """Send encoded commands, each with the key that says where to (None: anywhere); return their replies in order.

        Raises: LinkError, LinkTimeout. Some of the commands may have been carried out then.
        """
        end_s = _now_s() + timeout_s
        if self._pid != os.getpid():
            self._forget()
        self.flights += 1
        try:
            if self._settings.kind == "cluster":
                return self._to_cluster(commands, end_s)
            address = self._settings.addresses[0] if self._settings.kind == "single" else self._watched(end_s)
            replies = self._fly([(address, [command for _, command in commands], False)], end_s)[0]
        except LinkError:
            self._master = None  # a new one may have been chosen
            raise
        for reply in replies:
            if type(reply) is ErrorReply:
                self._check_ready(reply)
        return replies

    def call(self, key: bytes | None, command: bytes, *, timeout_s: float) -> Reply:
        """One command's reply: what `request` does, in half its time where there is one server."""
        if self._settings.kind != "single" or self._pid != os.getpid():
            return self.request([(key, command)], timeout_s=timeout_s)[0]
        end_s = _now_s() + timeout_s
        self.flights += 1
        wire = self._take(self._settings.addresses[0], end_s)
        try:
            wire.send(command, end_s)
            reply = wire.read(end_s)
        except BaseException:  # as in `_fly`
            wire.close()
            raise
        self._give_back(wire)
        if type(reply) is ErrorReply:
            self._check_ready(reply)
        return reply

    def _check_ready(self, reply: ErrorReply) -> None:
        """Turn errors that concern the server and not the command into a LinkError."""
        if reply.code in _NOT_READY:
            self.distrust()
            raise LinkError(f"Redis is not ready: {reply.code}")

    def _fly(self, plan: Sequence[tuple[Address, Sequence[bytes], bool]], end_s: float) -> list[list[Reply]]:
        """Write to all nodes, then read from all. (address, commands, whether each needs ASKING before it)."""
        wires: list[_Wire] = []
        try:
            for address, commands, asking in plan:
                wires.append(self._take(address, end_s))
                wires[-1].send(
                    b"".join(_ASKING + one for one in commands) if asking else b"".join(commands), end_s
                )
            replies = []
            for wire, (_, commands, asking) in zip(wires, plan, strict=True):
                got = []
                for _ in commands:
                    if asking:
                        wire.read(end_s)
                    got.append(wire.read(end_s))
                replies.append(got)
        except BaseException:  # a greenlet may be killed here: what was asked is still to come
            for wire in wires:
                wire.close()
            raise
        for wire in wires:
            self._give_back(wire)
        return replies

    # --- connections ----------------------------------------------------------------------------------------------

    def _take(self, address: Address, end_s: float) -> _Wire:
        idle = self._idle.get(address)
        while idle:
            try:
                wire = idle.pop()
            except IndexError:  # another thread took it
                break
            if wire.quiet():
                return wire
            wire.close()
        return self._connect(address, end_s, self._settings.username, self._settings.password)

    def _give_back(self, wire: _Wire) -> None:
        if self._pid != os.getpid():  # forked while it was out: it is the parent's
            wire.close()
            return
        idle = self._idle.setdefault(wire.address, [])
        if len(idle) < _MAX_IDLE:
            idle.append(wire)
        else:
            wire.close()

    def _connect(
        self, address: Address, end_s: float, username: str, password: str, *, plain: bool = False
    ) -> _Wire:
        """Open a connection and say who we are; `plain` to sentinels, which have no databases."""
        wire = _Wire(self._open(address, end_s), address)
        try:
            self._greet(wire, end_s, username, password, plain)
        except BaseException:
            wire.close()
            raise
        self.connections += 1
        return wire

    def _greet(self, wire: _Wire, end_s: float, username: str, password: str, plain: bool) -> None:
        watched = self._settings.kind == "sentinel" and not plain
        greeting = []
        if password:
            greeting.append(encode(b"AUTH", *([username.encode()] if username else []), password.encode()))
        if self._settings.database and not plain:
            greeting.append(encode(b"SELECT", b"%d" % self._settings.database))
        if watched:
            greeting.append(encode(b"ROLE"))
        if not greeting:
            return
        wire.send(b"".join(greeting), end_s)
        replies = [wire.read(end_s) for _ in greeting]
        for reply in replies:
            if type(reply) is ErrorReply:
                raise LinkError(f"Redis refused the connection: {reply.code}")
        if watched and (not isinstance(replies[-1], list) or replies[-1][:1] != [b"master"]):
            raise LinkError("the sentinels named a Redis that is no master")

    def _open(self, address: Address, end_s: float) -> socket.socket:
        if isinstance(address, str):
            return self._open_one(socket.AF_UNIX, address, address, end_s)
        failure: LinkError = LinkError("a host of Redis has no address")
        try:
            candidates = self._names.find(*address, end_s)
        except (TimeoutError, LookupError) as exc:
            raise LinkTimeout("looking up a host of Redis took too long, or found nothing") from exc
        for i, (family, where) in enumerate(candidates):
            now_s = _now_s()
            share_s = now_s + (end_s - now_s) / (len(candidates) - i)  # the first may be a black hole
            try:
                return self._open_one(family, where, address[0], share_s)
            except LinkError as exc:
                failure = exc
        raise failure

    def _open_one(self, family: int, where: Any, host: str, end_s: float) -> socket.socket:
        left_s = end_s - _now_s()
        if left_s <= 0:
            raise LinkTimeout("no time left to reach Redis")
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left_s)
            sock.connect(where)
            if family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if self._settings.tls is not None:
                    sock.settimeout(max(0.001, end_s - _now_s()))
                    sock = self._settings.tls.wrap_socket(sock, server_hostname=host)
        except TimeoutError:
            sock.close()
            raise LinkTimeout("Redis did not take the connection in time") from None
        except OSError as exc:
            sock.close()
            raise LinkError(f"Redis cannot be reached ({type(exc).__name__})") from exc
        except BaseException:
            sock.close()
            raise
        return sock

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, {}
        for wires in idle.values():
            for wire in wires:
                wire.close()

    def _forget(self) -> None:
        """After a fork: the parent's connections are the parent's."""
        self._pid = os.getpid()
        self._names = Names()
        self._drop_idle()

    def distrust(self) -> None:
        """Ask again who the master is, and where slots are."""
        self._master = self._slots = None
        self._drop_idle()

    def close(self) -> None:
        """Close what is idle. The link may be used again."""
        self._drop_idle()

    # --- sentinel -------------------------------------------------------------------------------------------------

    def _watched(self, end_s: float) -> Address:
        """Address of the master; whether it is one is asked when a connection to it is opened."""
        if self._master is not None:
            return self._master
        failure: LinkError | None = None
        for sentinel in self._settings.addresses:
            now_s = _now_s()
            until_s = now_s + (end_s - now_s) * _SENTINEL_SHARE
            try:
                wire = self._connect(
                    sentinel, until_s,
                    self._settings.sentinel_username, self._settings.sentinel_password, plain=True,
                )  # fmt: skip
                try:
                    wire.send(
                        encode(b"SENTINEL", b"get-master-addr-by-name", self._settings.service), until_s
                    )
                    reply = wire.read(until_s)
                finally:
                    wire.close()
                if isinstance(reply, list) and len(reply) == 2:
                    self._master = _told(reply[0], reply[1])
                    return self._master
                failure = LinkError("a sentinel does not know the service")
            except LinkError as exc:
                failure = exc
        raise failure or LinkError("no sentinel answered")

    # --- cluster --------------------------------------------------------------------------------------------------

    def _to_cluster(self, commands: Sequence[tuple[bytes | None, bytes]], end_s: float) -> list[Reply]:
        replies: list[Reply] = [None] * len(commands)
        left = list(range(len(commands)))
        for _ in range(4):  # twice moved is rare, four times is a cluster that does not know itself
            slots = self._slots or self._ask_slots(end_s)
            where: dict[Address, list[int]] = {}
            for i in left:
                key = commands[i][0]
                slot = 0 if key is None else key_slot(key)
                if (address := slots[slot]) is None:
                    self._slots = None
                    raise LinkError("no node of the cluster has this slot")
                where.setdefault(address, []).append(i)
            plan = [(address, [commands[i][1] for i in which], False) for address, which in where.items()]
            try:
                got = self._fly(plan, end_s)
            except LinkError:
                self._slots = None  # somebody else may have taken over
                raise
            left = []
            asked: dict[Address, list[int]] = {}
            for which, answers in zip(where.values(), got, strict=True):
                for i, answer in zip(which, answers, strict=True):
                    replies[i] = answer
                    if type(answer) is ErrorReply:
                        if answer.code == "MOVED":
                            left.append(i)
                        elif answer.code == "ASK":
                            asked.setdefault(_redirected(answer, self._settings), []).append(i)
                        else:
                            self._check_ready(answer)
            if asked:
                plan = [(address, [commands[i][1] for i in which], True) for address, which in asked.items()]
                for which, answers in zip(asked.values(), self._fly(plan, end_s), strict=True):
                    for i, answer in zip(which, answers, strict=True):
                        replies[i] = answer
            if not left:
                return replies
            self._slots = None
        raise LinkError("the cluster sent a command from node to node")

    def _ask_slots(self, end_s: float) -> list[Address | None]:
        failure: LinkError | None = None
        known = [address for address in self._idle if address not in self._settings.addresses]
        for address in [*self._settings.addresses, *known]:
            now_s = _now_s()
            until_s = now_s + (end_s - now_s) * _SENTINEL_SHARE
            try:
                reply = self._fly([(address, [encode(b"CLUSTER", b"SLOTS")], False)], until_s)[0][0]
                slots = self._slots = _slot_map(reply, address)
            except LinkError as exc:
                failure = exc
            else:
                return slots
        raise failure or LinkError("no node of the cluster answered")


_ASKING = encode(b"ASKING")
# Errors that say something about the server, whatever the command was.
_NOT_READY = frozenset(
    [
        "LOADING",
        "MASTERDOWN",
        "READONLY",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "NOAUTH",
        "NOPERM",
        "BUSY",
        "NOREPLICAS",
        "MISCONF",
        "OOM",
    ]
)


def _told(host: object, port: object) -> tuple[str, int]:
    try:
        number = int(port) if isinstance(port, (int, bytes)) else 0
        if isinstance(host, bytes) and host and 0 < number < 65_536:
            return host.decode("ascii"), number
    except ValueError:
        pass
    raise LinkError("Redis named an address that is none")


def _redirected(reply: ErrorReply, settings: _Settings) -> Address:
    """Where `ASK 3999 127.0.0.1:6381` points to."""
    host, _, port = reply.text.rpartition(" ")[2].rpartition(":")
    return _told(host.encode() or str(settings.addresses[0][0]).encode(), port.encode())


def _slot_map(reply: Reply, asked: Address) -> list[Address | None]:
    """Address of every slot's master, out of CLUSTER SLOTS."""
    slots: list[Address | None] = [None] * 16_384
    if not isinstance(reply, list):
        raise LinkError("Redis is no cluster")
    try:
        for first, last, (host, port, *_), *_ in reply:
            # A node that does not know its own address gives an empty one: it is where we asked.
            address = _told(host or str(asked[0]).encode(), port)
            slots[range(16_384)[first] : range(16_384)[last] + 1] = [address] * (last + 1 - first)
    except (TypeError, ValueError, IndexError):
        raise LinkError("Redis described its cluster in a way that is not understood") from None
    return slots
