"""Hostile signatures: envelopes, statements that the right keys signed, trust files, model-signing bundles, remembered state.

    python tests/fuzz_signatures.py pointer --mutants 500 --seed 7       the same mutants every time; more in fuzzing.py

Rules:
  * A signature would stop almost all of it, so statements are signed again by the right keys after they were changed, and
    most are brought into their canonical form before: what somebody who may sign could do by mistake.
  * Every end is a verdict or a typed refusal.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys

import msgspec
from fuzzing import Target, bytes_mutant, document_mutant, likely_mutant, main, number_mutant

__all__ = ["TARGETS"]


def _canonical(kind, data: bytes) -> bytes:
    """The one encoding of a statement, for seven mutants of eight that are one at all."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        statement = msgspec.json.decode(data, type=kind)
        if len(data) % 8:
            return msgspec.json.encode(statement, order="deterministic")
    return data


def _signed(kind, data: bytes, *names: str) -> bytes:
    from signed_releases import key

    from retailinfer.release.signature import sign_payload

    return sign_payload(kind.payload_type, _canonical(kind, data) or b"{}", [key(name) for name in names])


@functools.cache
def _trust(**changes):
    from signed_releases import trust

    return trust(**changes)


def _payloads(*statements) -> list[bytes]:
    from retailinfer.release.statements import encode_statement

    return [encode_statement(one) for one in statements]


# ---- statements ------------------------------------------------------------------------------------------------------------


def _releases() -> list[bytes]:
    from signed_releases import statement_of, tiny

    one = statement_of(tiny())
    more = {
        "not_before": one.issued,
        "environments": ("production", "staging"),
        "requires": {"msgspec": "0.18"},
    }
    return _payloads(one, msgspec.structs.replace(one, **more))


def _release(data: bytes):
    from signed_releases import tiny

    from retailinfer.release.bundle import read_bundle
    from retailinfer.release.statements import ReleaseStatement

    files = tiny() | {"manifest.sig": _signed(ReleaseStatement, data, "ci", "lead")}
    return read_bundle(files, trust=_trust()).verdict.signed_by


def _pointers() -> list[bytes]:
    from signed_releases import pointer

    from retailinfer.release.statements import Canary

    return _payloads(
        pointer(7),
        pointer(
            8,
            canary=Canary(digest="f" * 64, share=0.05),
            shadow="e" * 64,
            challenger="d" * 64,
            hold="incident",
        ),
    )


def _pointer(data: bytes):
    from retailinfer.release.statements import Pointer
    from retailinfer.release.trust import Mark

    data = _signed(Pointer, data, "ops")
    from signed_releases import NOW_S

    return _trust().rules.pointer(data, "fraud", now_s=NOW_S, mark=Mark(epoch=1, seq=6)).signed_by


def _lists() -> list[bytes]:
    from signed_releases import EXPIRES, ISSUED

    from retailinfer.release.statements import Revocations

    return _payloads(
        Revocations(epoch=1, seq=3, issued=ISSUED),
        Revocations(
            epoch=1,
            seq=4,
            issued=ISSUED,
            expires=EXPIRES,
            releases={"d" * 64: "leak"},
            keys={"e" * 64: "stolen"},
        ),
    )


def _list(data: bytes):
    from signed_releases import NOW_S, trust_file

    from retailinfer.release.statements import Revocations
    from retailinfer.release.trust import Mark, Role, Rules

    rules = Rules(trust_file(revocation=Role(keys=("security",))))
    found, _ = rules.revocations(
        _signed(Revocations, data, "security"), now_s=NOW_S, mark=Mark(epoch=1, seq=2)
    )
    return (str(found.revoked.seq),)


def _overrides() -> list[bytes]:
    from signed_releases import ISSUED, NOW_S, digest_of, moment_text, tiny

    from retailinfer.release.statements import Lift, Override

    one = Override(
        name="fraud",
        environment="production",
        digest=digest_of(tiny()),
        epoch=1,
        seq=3,
        issued=ISSUED,
        begins=ISSUED,
        until=moment_text(NOW_S + 3600),
        thresholds={"decline": 0.95, "review": 0.5},
        who="night",
        why="card testing",
    )
    other = msgspec.structs.replace(one, seq=4, segment="gb", thresholds={"decline": 0.97})
    lift = Lift(
        name="fraud",
        environment="production",
        epoch=1,
        seq=5,
        issued=ISSUED,
        lifts=(2, 3),
        who="night",
        why="over",
    )
    return _payloads(one, other, lift)


def _override(data: bytes):
    """Thresholds ascend and stay inside their envelopes, whatever was signed; and what a schedule says comes true."""
    from signed_releases import NOW_S, digest_of, tiny, trust_file

    from retailinfer.policy import Policy
    from retailinfer.release.overrides import apply, schedule
    from retailinfer.release.statements import Lift, Override
    from retailinfer.release.trust import Mark, Role, Rules

    policy = Policy(
        [("approve", 0.0), ("review", 0.6), ("decline", 0.92)],
        segment_by="country",
        segments={"gb": [("approve", 0.0), ("decline", 0.95)]},
        envelope={"review": (0.4, 0.91), "decline": (0.85, 0.97)},
        segment_envelopes={"gb": {"decline": (0.9, 1.0)}},
    )
    kind = Lift if b'"lifts":' in data else Override
    rules = Rules(trust_file(override=Role(keys=("security",))))
    envelope = _signed(kind, data, "security")
    entry = rules.override(envelope, "fraud", now_s=NOW_S)
    log = rules.overrides([*_first(), envelope], "fraud", now_s=NOW_S, mark=Mark(epoch=1, seq=1)).log
    for step in schedule(policy, log, digest=digest_of(tiny()), now_s=NOW_S):
        for segment in (None, "gb"):
            lows = step.policy.thresholds(segment)[1]
            assert (lows[1:] > lows[:-1]).all(), "bands that do not ascend"
        assert 0.4 <= step.policy.threshold("review") <= 0.91
        assert 0.85 <= step.policy.threshold("decline") <= 0.97
        then = apply(policy, log, digest=digest_of(tiny()), now_s=max(step.from_s, NOW_S))
        assert then.moved == step.moved
    return (entry.name,)


@functools.cache
def _first() -> tuple[bytes, ...]:
    from signed_releases import key

    from retailinfer.release.signature import sign_payload
    from retailinfer.release.statements import Override

    return (sign_payload(Override.payload_type, _overrides()[0], [key("security")]),)


# ---- envelopes and what stands beside --------------------------------------------------------------------------------------


def _envelopes() -> list[bytes]:
    from signed_releases import approval_of, signed_files

    files = signed_files()
    return [files["manifest.sig"], approval_of(files, "risk", "lead")]


def _envelope(data: bytes):
    from retailinfer.release.envelope import decode_envelope, encode_envelope

    found = decode_envelope(data)
    assert encode_envelope(*found) == data, "an envelope has two spellings"
    return tuple(found.signatures)


def _trust_files() -> list[bytes]:
    from signed_releases import record, trust_file

    from retailinfer.release.limited import Limits
    from retailinfer.release.trust import Role, encode_trust

    keys = {name: record(name, who="x", expires="2027-01-01T00:00:00Z") for name in ("ci", "lead")}
    more = {
        "keys": keys,
        "pointer": None,
        "trust": None,
        "strict": Limits(),
        "expires": "2027-01-01T00:00:00Z",
    }
    return [encode_trust(trust_file()), encode_trust(trust_file(**more, approval=Role(keys=("ci",))))]


def _trust_file(data: bytes):
    from retailinfer.release.trust import Rules, decode_trust, encode_trust

    file = decode_trust(data)
    assert decode_trust(encode_trust(file)) == file
    return tuple(name for name, _, _ in Rules(file).known.values())


def _states() -> list[bytes]:
    from retailinfer.release.highwater import State
    from retailinfer.release.trust import Mark

    marks = {
        "fraud": Mark(epoch=1, seq=7, sha256="a" * 64, loaded="b" * 64),
        "shop-1": Mark(epoch=1, loaded="c" * 64),
    }
    return [
        msgspec.json.encode(State(names=marks, revocations=Mark(epoch=1, seq=2), overrides=marks)),
        msgspec.json.encode(State()),
    ]


def _state(data: bytes):
    import tempfile
    from pathlib import Path

    from retailinfer.release.highwater import read_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        path.write_bytes(data)
        return tuple(read_state(str(path)).names)


def _kept() -> list[bytes]:
    from retailinfer.release.last_good import Kept, _Record

    def one(digit: str) -> Kept:
        return Kept(
            digest=digit * 64,
            version="1.0",
            folder=f"1.0-{digit * 16}-0123456789ab",
            pointer=b'{"payload":"e30="}',
            verified="2026-11-29T12:00:00Z",
        )

    return [msgspec.json.encode(_Record(kept=(one("a"), one("b")))), msgspec.json.encode(_Record())]


def _last_good(data: bytes):
    import tempfile

    from retailinfer.errors import BundleError, RegistryError
    from retailinfer.release.last_good import LastGood

    with tempfile.TemporaryDirectory() as folder:
        place = LastGood(folder, environment="production", name="fraud")
        place.folder.mkdir(parents=True)
        (place.folder / "last-good.json").write_bytes(data)
        kept = place.kept()
        for one in kept:  # whatever it names, nothing outside is read
            assert "/" not in one.folder
            assert not one.folder.startswith(".")
            try:
                place.files(one.digest)
            except (BundleError, RegistryError):
                pass
            else:
                raise AssertionError("there are no such files")
        return tuple(one.digest for one in kept)


@functools.cache
def _ec_key():
    from retailinfer.release.signature import EcPrivateKey

    return EcPrivateKey.generate()


def _bundles() -> list[bytes]:
    from signed_releases import tiny

    from retailinfer.release.oms import sign_files

    bundle = sign_files("fraud", tiny(), _ec_key())
    return [bundle, json.dumps(json.loads(bundle), indent=1).encode()]


def _bundle(data: bytes):
    from signed_releases import tiny

    from retailinfer.release.oms import verify_files

    return (verify_files(data, tiny(), _ec_key().public),)


def _check(names, data: bytes) -> None:
    assert isinstance(names, tuple)
    assert all(isinstance(name, str) for name in names)


def _refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import BundleError, ConfigError

    return {BundleError: "refused", ConfigError: "refused"}


def _target(name: str, seeds, door, **more) -> Target:
    ways = (bytes_mutant, number_mutant, document_mutant, document_mutant, *[likely_mutant] * 6)
    return Target(name, seeds, door, ways, _refusals, _check, needs=("cryptography",), slow=2.0, **more)


TARGETS = {
    target.name: target
    for target in (
        _target("statement", _releases, _release),
        _target("pointer", _pointers, _pointer),
        _target("revocations", _lists, _list),
        _target("override", _overrides, _override),
        _target("envelope", _envelopes, _envelope),
        _target("trust-file", _trust_files, _trust_file),
        _target("accepted-state", _states, _state),
        _target("last-good", _kept, _last_good),
        _target("model-signing", _bundles, _bundle),
    )
}


if __name__ == "__main__":
    sys.exit(main(TARGETS))
