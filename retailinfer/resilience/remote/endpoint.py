"""Where a model server is: a URL taken apart, its password kept out of everything that is shown."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from retailinfer.errors import ConfigError, clip

__all__ = ["Endpoint", "parse_url"]

_SCHEMES = {
    "http": ("http", False, 80),
    "https": ("http", True, 443),
    "grpc": ("grpc", False, 8001),
    "grpcs": ("grpc", True, 443),
}
_FORMS = "http://host[:port][/path], https://, grpc://host[:port], grpcs://"


class Endpoint(NamedTuple):
    """kind: "http" or "grpc". path: before `/v2`, without a slash at its end. authorization: header, or ""."""

    kind: str
    tls: bool
    host: str
    port: int
    path: str
    authorization: str

    @property
    def name(self) -> str:
        """What messages and events call it: no user, no password, no query."""
        scheme = self.kind + ("s" if self.tls else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{self.path}"

    def __repr__(self) -> str:
        return f"<{self.name}>"


def parse_url(url: object) -> Endpoint:
    """Read a URL; a message about a wrong one does not show it, since it may hold a password. Raises: ConfigError."""

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"Expected the URL of a model server, {what}", hint=f"forms: {_FORMS}")

    if not isinstance(url, str):
        raise wrong(f"got `{type(url).__name__}`")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong("got text that is none") from None
    if parts.scheme not in _SCHEMES:
        raise wrong(f"got the scheme {clip(parts.scheme)}")
    kind, tls, default = _SCHEMES[parts.scheme]
    account, at, where = parts.netloc.rpartition("@")
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.\-]+))(?::(\d{1,5}))?", where)
    if found is None or not 0 < int(found[3] or default) < 65_536:
        raise wrong("with a host as in `models:8080` or `[::1]:8080`")
    if parts.query or parts.fragment:
        raise wrong("without `?` and `#`")
    path = parts.path.rstrip("/")
    if kind == "grpc" and path:
        raise wrong("without a path where it is gRPC")
    authorization = ""
    if at:
        user, _, password = account.partition(":")
        secret = f"{unquote(user)}:{unquote(password)}".encode()
        authorization = "Basic " + base64.b64encode(secret).decode("ascii")
    return Endpoint(
        kind,
        tls,
        found[1] or found[2],
        int(found[3] or default),
        quote(path, safe="/%:@!$&'()*+,;=~-._"),
        authorization,
    )
