"""Vectors of signing: releases, pointers, lists, envelopes and trust files, good and bad, with the verdict that each must get.

`python tests/signing_vectors.py` writes signing_vectors.json, which is committed: what was accepted or refused once stays so.
Keys are made of their names and Ed25519 signs the same bytes the same way, so it writes the same file every time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from signed_releases import (
    DAY_S,
    NOW_S,
    approval_of,
    digest_of,
    key,
    pointer,
    record,
    revoked,
    signed,
    signed_files,
    statement_of,
    tiny,
    trust_file,
)

from retailinfer.clock import ManualClock
from retailinfer.errors import RetailInferError
from retailinfer.release.envelope import decode_envelope, encode_envelope
from retailinfer.release.statements import encode_statement, moment_text
from retailinfer.release.trust import Mark, Role, Rules, decode_trust, encode_trust

FILE = Path(__file__).with_name("signing_vectors.json")


def verdict(case: dict[str, Any], blobs: dict[str, bytes]) -> str:
    """What becomes of a case: "ok", or the name of the error."""
    from retailinfer.release.bundle import read_bundle
    from retailinfer.release.trust_files import Trust

    now_s = case.get("now_s", NOW_S)
    try:
        if case["kind"] == "trust":
            decode_trust(blobs[case["trust"]])
        elif case["kind"] == "envelope":
            decode_envelope(blobs[case["data"]])
        elif case["kind"] == "pointer":
            mark = Mark(**case["mark"]) if "mark" in case else None
            rules = Rules(decode_trust(blobs[case["trust"]]))
            rules.pointer(blobs[case["data"]], case.get("name_of", "fraud"), now_s=now_s, mark=mark)
        else:
            revocations = blobs[case["revocations"]] if "revocations" in case else None
            clock = ManualClock(wall_ns=int(now_s) * 10**9)
            believed = Trust(blobs[case["trust"]], revocations=revocations, clock=clock)
            files = {name: blobs[blob] for name, blob in case["files"].items()}
            read_bundle(files, trust=believed, expected=case.get("expected"))
    except RetailInferError as exc:
        return type(exc).__name__
    return "ok"


class Book:
    """Collects cases, and every blob once."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.cases: list[dict[str, Any]] = []

    def blob(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()[:16]
        self.blobs[name] = data
        return name

    def add(self, name: str, kind: str, expect: str, **more: Any) -> None:
        self.cases.append({"name": name, "kind": kind, "expect": expect, **more})

    def release(
        self,
        name: str,
        expect: str,
        files: dict[str, bytes],
        *,
        revocations: bytes | None = None,
        **more: Any,
    ) -> None:
        rest = {field: more.pop(field) for field in ("now_s", "expected") if field in more}
        if revocations is not None:
            rest["revocations"] = self.blob(revocations)
        trust = self.blob(encode_trust(trust_file(**more)))
        held = {file: self.blob(data) for file, data in sorted(files.items())}
        self.add(name, "release", expect, trust=trust, files=held, **rest)

    def point(self, name: str, expect: str, data: bytes, **more: Any) -> None:
        rest = {field: more.pop(field) for field in ("now_s", "mark", "name_of") if field in more}
        trust = self.blob(encode_trust(trust_file(**more)))
        self.add(name, "pointer", expect, trust=trust, data=self.blob(data), **rest)


def make() -> Book:
    """All of them."""
    book = Book()
    _releases(book)
    _statements(book)
    _approvals(book)
    _revocations(book)
    _pointers(book)
    _envelopes(book)
    _trust_files(book)
    return book


def _releases(book: Book) -> None:
    good = signed_files()
    book.release("signed by two", "ok", good)
    book.release("signed by two and a stranger", "ok", signed_files(None, "ci", "lead", "stranger"))
    book.release("demanded by digest", "ok", good, expected=digest_of(tiny()))
    book.release("another than demanded", "IntegrityError", good, expected="1" * 64)
    book.release("model.sig beside", "ok", good | {"model.sig": b"whatever"})
    book.release("unsigned", "SignatureError", tiny())
    for names in (
        ("ci",),
        ("lead",),
        ("ci", "risk"),
        ("root", "ops"),
        ("stranger", "other"),
        ("ci", "stranger"),
    ):
        book.release(f"signed by {' and '.join(names)}", "SignatureError", signed_files(None, *names))
    book.release("one of one", "ok", signed_files(None, "ci"), release=Role(keys=("ci",)))
    three = Role(keys=("ci", "lead", "risk"), threshold=3)
    book.release("two of three", "SignatureError", good, release=three)
    book.release("three of three", "ok", signed_files(None, "ci", "lead", "risk"), release=three)
    other = signed_files(tiny("2.0"))
    for name in ("manifest.json", "manifest.sig", "model.onnx"):
        book.release(f"{name} of another release", "IntegrityError", good | {name: other[name]})
    for name, data in good.items():
        error = {"manifest.sig": "SignatureError"}.get(name, "IntegrityError")
        book.release(f"{name} with a byte more", error, good | {name: data + b"\n"})
        book.release(f"{name} with a byte less", error, good | {name: data[:-1]})
        book.release(f"{name} with a bit flipped", error, good | {name: bytes([data[0] ^ 1]) + data[1:]})
        rest = {one: held for one, held in good.items() if one != name}
        gone = {"manifest.json": "ManifestError", "manifest.sig": "SignatureError"}.get(
            name, "IntegrityError"
        )
        book.release(f"{name} missing", gone, rest)
        book.release(f"{name} renamed", gone, rest | {f"x{name}": data})
    for name in ("extra.txt", "MODEL.ONNX", "other.sig", "../model.onnx", "approval-.sig", "Manifest.sig"):
        book.release(f"{name} added", "IntegrityError", good | {name: b"x"})


def _statements(book: Book) -> None:
    month = moment_text(NOW_S + 30 * DAY_S)
    for name, expect, changes in (
        ("for two environments", "ok", {"environments": ("production", "staging")}),
        ("for staging", "TrustError", {"environments": ("staging",)}),
        ("without an end", "ok", {"expires": None}),
        ("ends in a second", "ok", {"expires": moment_text(NOW_S + 1)}),
        ("ended now", "TrustError", {"expires": moment_text(NOW_S)}),
        ("begins in 300 s", "ok", {"not_before": moment_text(NOW_S + 300)}),
        ("begins in 301 s", "TrustError", {"not_before": moment_text(NOW_S + 301)}),
        ("issued in 301 s", "TrustError", {"issued": moment_text(NOW_S + 301), "expires": month}),
        ("another digest", "IntegrityError", {"digest": "0" * 64}),
        ("another manifest", "IntegrityError", {"manifest_sha256": "0" * 64}),
        ("another version", "IntegrityError", {"version": "9"}),
        ("an allowed name that is not its own", "IntegrityError", {"name": "shop-1"}),
        ("a name that is not allowed", "TrustError", {"name": "other"}),
        ("fallbacks that the manifest does not name", "IntegrityError", {"fallbacks": ("1" * 64,)}),
        ("needs what is here", "ok", {"requires": {"msgspec": "0.18"}}),
        ("needs newer", "TrustError", {"requires": {"msgspec": "999"}}),
        ("needs what is not here", "TrustError", {"requires": {"no-such-thing": "1"}}),
    ):
        book.release(f"statement: {name}", expect, signed_files(**changes))
    book.release("clock at 1970", "TrustError", signed_files(), now_s=0)
    book.release("clock ten years ahead", "TrustError", signed_files(), now_s=NOW_S + 3650 * DAY_S)
    book.release("manifest ends sooner", "TrustError", signed_files(tiny(expires="2026-12-01")))
    book.release("manifest ends with it", "ok", signed_files(tiny(expires=month)))
    payload = encode_statement(statement_of(tiny()))
    for name, expect, other in (
        ("white space", "ManifestError", payload.replace(b":", b": ", 1)),
        ("an unknown field", "ManifestError", payload[:-1] + b',"more":1}'),
        ("a field twice", "ManifestError", payload[:-1] + b',"name":"fraud"}'),
        ("not JSON", "ManifestError", b"hello"),
    ):
        book.release(
            f"payload with {name}", expect, tiny() | {"manifest.sig": _raw(payload_type_of(), other)}
        )
    for kind in ("application/json", "application/vnd.retailinfer.approval.v1+json"):
        book.release(
            f"payload of type {kind}", "SignatureError", tiny() | {"manifest.sig": _raw(kind, payload)}
        )
    for field in ("expires", "not_before"):
        for shift, expect in (
            ((1, "ok"), (0, "SignatureError")) if field == "expires" else ((0, "ok"), (1, "SignatureError"))
        ):
            keys = {name: record(name) for name in ("lead", "ops", "root")}
            keys["ci"] = record("ci", **{field: moment_text(NOW_S + shift)})
            book.release(f"key {field} in {shift} s", expect, signed_files(), keys=keys)
    book.release("trust file expired", "TrustError", signed_files(), expires=moment_text(NOW_S))
    book.release("names end in a star", "ok", signed_files(tiny(name="shop-home")))


def payload_type_of() -> str:
    """Of a release's statement."""
    return statement_of(tiny()).payload_type


def _raw(payload_type: str, payload: bytes) -> bytes:
    from retailinfer.release.signature import sign_payload

    return sign_payload(payload_type, payload, [key("ci"), key("lead")])


def _approvals(book: Book) -> None:
    good = signed_files()
    one = {"approval": Role(keys=("risk",))}
    two = {"approval": Role(keys=("risk", "lead"), threshold=2)}
    book.release("approved", "ok", good | {"approval-a.sig": approval_of(good)}, **one)
    book.release("not approved", "TrustError", good, **one)
    book.release(
        "approved by a stranger",
        "TrustError",
        good | {"approval-a.sig": approval_of(good, "stranger")},
        **one,
    )
    book.release("approved by one of two", "TrustError", good | {"approval-a.sig": approval_of(good)}, **two)
    both = {"approval-a.sig": approval_of(good), "approval-b.sig": approval_of(good, "lead")}
    book.release("approved by two", "ok", good | both, **two)
    twice = {"approval-a.sig": approval_of(good), "approval-b.sig": approval_of(good, why="again")}
    book.release("approved twice by one", "TrustError", good | twice, **two)
    for name, expect, changes in (
        ("for staging", "TrustError", {"environment": "staging"}),
        ("until now", "TrustError", {"expires": moment_text(NOW_S)}),
        ("of another release", "IntegrityError", {"digest": "0" * 64}),
        ("of another name", "IntegrityError", {"name": "shop-1"}),
    ):
        book.release(
            f"approval {name}", expect, good | {"approval-a.sig": approval_of(good, **changes)}, **one
        )
    book.release(
        "approval damaged", "SignatureError", good | {"approval-a.sig": approval_of(good)[:-1]}, **one
    )
    book.release(
        "approval is a release", "SignatureError", good | {"approval-a.sig": good["manifest.sig"]}, **one
    )


def _revocations(book: Book) -> None:
    role = {"revocation": Role(keys=("security",))}
    good = signed_files()
    book.release("no list where one is needed", "TrustError", good, **role)
    for name, expect, data in (
        ("empty", "ok", revoked()),
        ("of others", "ok", revoked(releases={"0" * 64: "x"}, keys={"1" * 64: "y"})),
        ("of this release", "TrustError", revoked(releases={digest_of(tiny()): "leak"})),
        ("of a key that signed", "SignatureError", revoked(keys={key("ci").id: "stolen"})),
        ("of another epoch", "RollbackError", revoked(epoch=2)),
        ("that has expired", "TrustError", revoked(expires=moment_text(NOW_S))),
        ("by somebody else", "SignatureError", signed(pointer(), "ops")),
        ("cut short", "SignatureError", revoked()[:-1]),
    ):
        book.release(f"revocations {name}", expect, good, revocations=data, **role)


def _pointers(book: Book) -> None:
    digest = hashlib.sha256(encode_statement(pointer(7))).hexdigest()
    book.point("pointer", "ok", signed(pointer(7), "ops"))
    for name, expect, mark in (
        ("the same again", "ok", {"epoch": 1, "seq": 7, "sha256": digest}),
        ("after number 6", "ok", {"epoch": 1, "seq": 6, "sha256": "0" * 64}),
        ("after number 8", "RollbackError", {"epoch": 1, "seq": 8, "sha256": "0" * 64}),
        ("another with its number", "RollbackError", {"epoch": 1, "seq": 7, "sha256": "0" * 64}),
        ("after the last number", "RollbackError", {"epoch": 1, "seq": 2**63 - 1, "sha256": "0" * 64}),
        ("after epoch 2", "RollbackError", {"epoch": 2, "seq": 1, "sha256": "0" * 64}),
    ):
        book.point(f"pointer {name}", expect, signed(pointer(7), "ops"), mark=mark)
    late = {"epoch": 1, "seq": 2**63 - 1, "sha256": "0" * 64}
    book.point("pointer of a new epoch", "ok", signed(pointer(1, epoch=2), "ops"), mark=late, epoch=2)
    for name, expect, changes in (
        ("of another name", "TrustError", {"name": "shop-1"}),
        ("for staging", "TrustError", {"environment": "staging"}),
        ("of the next epoch", "RollbackError", {"epoch": 2}),
        ("expired", "TrustError", {"expires": moment_text(NOW_S)}),
        ("of the future", "TrustError", {"issued": moment_text(NOW_S + 301)}),
        ("at nothing", "ok", {"champion": None}),
        ("that is held", "ok", {"hold": "incident 12"}),
        ("without an end", "ok", {"expires": None}),
    ):
        book.point(f"pointer {name}", expect, signed(pointer(**changes), "ops"))
    for names in (("ci",), ("ci", "lead"), ("stranger",)):
        book.point(f"pointer by {' and '.join(names)}", "SignatureError", signed(pointer(), *names))
    book.point("pointer that is a release", "SignatureError", signed(statement_of(tiny()), "ops"))
    book.point("pointer where none may be", "TrustError", signed(pointer(), "ops"), pointer=None)


def _envelopes(book: Book) -> None:
    data = encode_envelope("text/x", b"payload", {"0" * 64: b"s" * 64, "1" * 64: b"t" * 64})
    book.add("envelope", "envelope", "ok", data=book.blob(data))
    swapped = data.replace(b'"0000', b'"2000')
    for name, other in (
        ("with a blank at its end", data + b"\n"),
        ("with a blank before it", b" " + data),
        ("with a blank inside", data.replace(b":", b": ", 1)),
        ("with spare bits", data.replace(b"cGF5bG9hZA==", b"cGF5bG9hZB==")),
        ("without padding", data.replace(b"cGF5bG9hZA==", b"cGF5bG9hZA")),
        ("with padding twice", data.replace(b"cGF5bG9hZA==", b"cGF5bG9hZA====")),
        ("with url-safe base64", data.replace(b"c3Nz", b"c-Nz", 1)),
        ("with a line in its base64", data.replace(b"c3Nz", b"c3\nNz", 1)),
        ("with unsorted signatures", swapped),
        ("with a field more", data[:-1] + b',"more":1}'),
        (
            "with fields in another order",
            b'{"payloadType":"text/x","payload":"cGF5bG9hZA==","signatures":[]}',
        ),
        ("without signatures", encode_empty()),
        ("with a comma more", data.replace(b"}]", b"},]")),
        ("with a capital in a key", data.replace(b"0" * 64, b"A" + b"0" * 63)),
        ("with an escape", data.replace(b"payloadType", b"payload\\u0054ype")),
        ("with a byte order mark", b"\xef\xbb\xbf" + data),
        ("in UTF-16", data.decode().encode("utf-16")),
        ("that is empty", b""),
        ("that is null", b"null"),
        ("that is nested", b"[" * 5000),
    ):
        assert other != data, name
        book.add(f"envelope {name}", "envelope", "SignatureError", data=book.blob(other))


def encode_empty() -> bytes:
    """An envelope that nobody signed."""
    return b'{"payload":"cGF5bG9hZA==","payloadType":"text/x","signatures":[]}'


def _trust_files(book: Book) -> None:
    text = encode_trust(trust_file())
    plain = json.loads(text)
    book.add("trust file", "trust", "ok", trust=book.blob(text))
    book.add("trust file in a line", "trust", "ok", trust=book.blob(json.dumps(plain).encode()))
    for name, changes in (
        ("of format 2", {"format": 2}),
        ("of epoch 0", {"epoch": 0}),
        ("with an unknown field", {"more": 1}),
        ("with one key twice", {"keys": plain["keys"] | {"copy": plain["keys"]["ci"]}}),
        ("with a role of unknown keys", {"release": {"keys": ["nobody"]}}),
        ("with a key twice in a role", {"release": {"keys": ["ci", "ci"], "threshold": 2}}),
        ("that asks for more than it has", {"release": {"keys": ["ci"], "threshold": 2}}),
        ("that asks for none", {"release": {"keys": ["ci"], "threshold": 0}}),
        ("without names", {"names": []}),
        ("with RSA", {"keys": {"ci": {"algorithm": "rsa", "public": plain["keys"]["ci"]["public"]}}}),
    ):
        book.add(
            f"trust file {name}",
            "trust",
            "ConfigError",
            trust=book.blob(json.dumps(plain | changes).encode()),
        )
    book.add(
        "trust file with a field twice", "trust", "ConfigError", trust=book.blob(b'{"epoch":1,' + text[1:])
    )


def encode(book: Book) -> str:
    """The committed file."""
    blobs = {name: base64.b64encode(data).decode() for name, data in sorted(book.blobs.items())}
    cases = ",\n".join(json.dumps(case, sort_keys=True) for case in book.cases)
    lines = ",\n".join(f'"{name}": "{text}"' for name, text in blobs.items())
    return f'{{"cases": [\n{cases}\n],\n"blobs": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    FILE.write_text(encode(make()), encoding="utf-8")
