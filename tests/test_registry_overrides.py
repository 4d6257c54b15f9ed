"""Overrides in a registry: written once, in one order, readable for ever; and what a host refuses of them, signed and not."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import random
import threading
import uuid

import msgspec
import pytest
from registries import release as plain_release
from signed_releases import DAY_S, NOW_S, key, moment_text, record, signed, statement_of, trust, trust_file

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    BundleError,
    ConfigError,
    ConflictError,
    IntegrityError,
    ManifestError,
    RegistryError,
    RollbackError,
    SignatureError,
    TrustError,
)
from retailinfer.release.envelope import decode_envelope, encode_envelope
from retailinfer.release.highwater import read_state
from retailinfer.release.manifest import (
    MANIFEST,
    FileEntry,
    decode_manifest,
    encode_manifest,
    seal,
    sha256_hex,
)
from retailinfer.release.overrides import MAX_OPEN, apply
from retailinfer.release.statements import Lift, Override, Pointer, Revocations, encode_statement
from retailinfer.release.trust import Mark, Role, Rules

HOUR = 3_600
POLICY = ri.Policy(
    [("approve", 0.0), ("review", 0.6), ("decline", 0.92)],
    segment_by="country",
    segments={"gb": [("approve", 0.0), ("decline", 0.95)]},
    envelope={"review": (0.4, 0.91), "decline": (0.85, 0.97)},
    segment_envelopes={"gb": {"decline": (0.9, 1.0)}},
)


@pytest.fixture(params=["folder", "memory", "object store"])
def where(request, tmp_path):
    """Where a registry lies, as its arguments."""
    if request.param == "folder":
        return {"place": tmp_path / "registry"}
    pytest.importorskip("fsspec", reason="`fsspec` is not installed (pip install retailinfer[test])")
    if request.param == "memory":
        return {"place": f"memory://{uuid.uuid4().hex}"}
    store = request.getfixturevalue("object_store")
    return {"place": f"{store.bucket(f'b-{uuid.uuid4().hex}')}/registry", "storage_options": store.options}


@functools.cache
def release(version="1.0", policy=POLICY):
    """A release that is whole to a registry, with a policy."""
    files = {k: v for k, v in plain_release(version).items() if k not in (MANIFEST, "policy.json")}
    before = decode_manifest(plain_release(version)[MANIFEST])
    entries = tuple(one for one in before.files if one.role != "policy")
    before = msgspec.structs.replace(before, files=entries)
    if policy is not None:
        files["policy.json"] = policy.to_json()
        entries = tuple(
            sorted(
                (
                    *before.files,
                    FileEntry(
                        role="policy",
                        file="policy.json",
                        size=len(files["policy.json"]),
                        sha256=sha256_hex(files["policy.json"]),
                    ),
                ),
                key=lambda entry: entry.file,
            )
        )
    return files | {MANIFEST: encode_manifest(seal(msgspec.structs.replace(before, files=entries)))}


def digest_of(files):
    """Of a release."""
    return decode_manifest(files[MANIFEST]).digest


def moment(seconds):
    """So many seconds from now."""
    return dt.datetime.fromtimestamp(NOW_S + seconds, dt.UTC)


def unsigned(place, clock=None, **settings):
    """A registry with one champion."""
    clock = ManualClock(wall_ns=NOW_S * 10**9) if clock is None else clock
    registry = ri.Registry(place, trust="unsigned", who="anna", clock=clock, **settings)
    registry.publish(release())
    registry.promote("fraud:1.0", why="first")
    return registry


def move(registry, thresholds=None, *, until=HOUR, why="attack", **more):
    """An override of an hour."""
    return registry.override("fraud", thresholds or {"decline": 0.95}, until=moment(until), why=why, **more)


# ---- what calls do ---------------------------------------------------------------------------------------------------


def test_an_override_is_kept_and_read_back(where):
    """On every kind of store, by whoever looks."""
    registry = unsigned(**where)
    made = move(registry)
    assert (made.seq, made.digest, made.begins) == (1, digest_of(release()), moment_text(NOW_S))
    later = move(registry, {"review": 0.5}, begins=moment(HOUR), until=2 * HOUR, who="ben")
    lifted = registry.lift("fraud", why="over", seqs=[1])
    other = ri.Registry(**where, trust="unsigned", clock=ManualClock(wall_ns=NOW_S * 10**9))
    assert other.overrides("fraud") == (made, later, lifted) == registry.overrides("fraud")
    assert (lifted.seq, lifted.lifts, later.who) == (3, (1,), "ben")
    found = other.overrides_in_force("fraud")
    assert registry.overrides_in_force("fraud", documents=found.documents) == found
    assert registry.overrides_in_force("fraud", documents=found.documents[:1]).log == (made,)
    held = apply(POLICY, found.log, digest=made.digest, now_s=NOW_S + HOUR)
    assert [str(one) for one in held.moved] == [
        f"threshold: review from 0.5 instead of 0.6 until {later.until}, override 2"
    ]


def test_one_that_does_not_hold_any_more_is_in_nobodys_way(tmp_path):
    """What an override was built on was lifted: it moves nothing, and the next operator is not asked to put that right."""
    policy = ri.Policy(
        [("approve", 0.0), ("review", 0.3), ("decline", 0.8)],
        envelope={"review": (0.2, 0.79), "decline": (0.4, 0.95)},
    )
    registry = ri.Registry(tmp_path, trust="unsigned", who="anna", clock=ManualClock(wall_ns=NOW_S * 10**9))
    registry.publish(release("1.0", policy))
    registry.promote("fraud:1.0", why="first")
    for thresholds in ({"decline": 0.5}, {"decline": 0.9}, {"review": 0.6}):
        move(registry, thresholds)
    registry.lift("fraud", why="over", seqs=[2])
    fifth = move(registry, {"decline": 0.7})

    def held():
        return apply(policy, registry.overrides("fraud"), digest=fifth.digest, now_s=NOW_S)

    assert [one.override.seq for one in held().refused] == [3]
    assert [(one.action, one.after) for one in held().moved] == [("decline", 0.7)]
    with pytest.raises(ConfigError, match="override 6 would not hold"):
        move(registry, {"review": 0.71})
    registry.lift("fraud", why="over")
    assert (held().moved, held().refused) == ((), ())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"until": 5.0}, "Expected a datetime or a text"),
        ({"until": None}, "Expected a datetime or a text"),
        ({"until": "tomorrow"}, "Expected a moment like"),
        ({"until": "2026-11-29T13:00"}, "time zone"),
        ({"until": dt.datetime.min.replace(tzinfo=dt.UTC)}, "years 1970 to 9999"),
        ({"until": dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=23)))}, "years 1970 to 9999"),
        ({"begins": 0}, "Expected a datetime or a text"),
        ({"segment": []}, "no bands of its own"),
        ({"segment": 5}, "no bands of its own"),
        ({"why": "\ud800"}, "UTF-8"),
        ({"why": ""}, "why="),
        ({"who": 5}, "who="),
        ({"thresholds": [("decline", 0.9)]}, "action -> score"),
        ({"thresholds": {"decline": None}}, "its envelope"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_a_typed_error(tmp_path, wrong, text):
    """Before anything is written."""
    given = {"thresholds": {"decline": 0.95}, "until": moment(HOUR), "why": "attack"} | wrong
    with pytest.raises(ConfigError, match=text):
        unsigned(tmp_path).override("fraud", **given)
    assert not (tmp_path / "overrides").exists()


@pytest.mark.parametrize("seqs", [1, "1", b"1", [True], ["1"], [[1]], [1.0], [None]])
def test_numbers_to_lift_are_numbers(tmp_path, seqs):
    """Anything else is the caller's mistake, told as such."""
    registry = unsigned(tmp_path)
    move(registry)
    with pytest.raises(ConfigError, match="seqs="):
        registry.lift("fraud", why="over", seqs=seqs)


def test_lifting_ends_all_that_is_open(tmp_path):
    """And nothing is written where nothing is."""
    registry = unsigned(tmp_path)
    assert registry.lift("fraud", why="all good") is None
    move(registry, until=60)
    move(registry, {"review": 0.5}, begins=moment(30), until=90)
    assert registry.lift("fraud", why="over").lifts == (1, 2)
    assert registry.lift("fraud", why="over") is None
    assert registry.lift("fraud", why="over", seqs=[2]) is None  # lifted before: nothing to do
    with pytest.raises(RegistryError, match="no override 7"):
        registry.lift("fraud", why="over", seqs=[7])
    assert len(registry.overrides("fraud")) == 3


@pytest.mark.parametrize(
    ("thresholds", "more", "text"),
    [
        ({"decline": 0.98}, {}, "from 0.85 to 0.97, its envelope"),
        ({"decline": "0.95"}, {}, "its envelope"),
        ({"decline": float("nan")}, {}, "its envelope"),
        ({"approve": 0.1}, {}, "declares no envelope"),
        ({"decline": 0.86, "review": 0.91}, {}, "ascending"),
        ({}, {}, "at least one"),
        ([("decline", 0.95)], {}, "action -> score"),
        ({1: 0.95}, {}, "action -> score"),
        ({"decline": 0.95}, {"segment": "fr"}, "no bands of its own"),
        ({"decline": 0.95}, {"until": moment(0)}, "lasts from"),
        ({"decline": 0.95}, {"until": moment(-HOUR)}, "lasts from"),
        ({"decline": 0.95}, {"until": moment(32 * DAY_S)}, "within 31 days"),
        ({"decline": 0.95}, {"until": "2026-11-30T06:00"}, "time zone"),
        ({"decline": 0.95}, {"until": "tomorrow"}, "a moment like"),
        ({"decline": 0.95}, {"begins": moment(2 * HOUR)}, "lasts from"),
        ({"decline": 0.95}, {"why": " "}, "why="),
        ({"decline": 0.95}, {"release": "shop-a:1.0"}, "no release"),
    ],
)
def test_what_no_host_would_act_on_is_not_written(tmp_path, thresholds, more, text):
    """Refused where it is said, with what would be allowed."""
    registry = unsigned(tmp_path)
    given = {"until": moment(HOUR), "why": "attack"} | more
    with pytest.raises((ConfigError, RegistryError), match=text):
        registry.override("fraud", thresholds, **given)
    assert registry.overrides("fraud") == ()


def test_an_override_that_would_meet_another_one_later_is_not_written(tmp_path):
    """Review goes up to 0.9 for an hour; decline may not go below that then."""
    registry = unsigned(tmp_path)
    move(registry, {"review": 0.9}, begins=moment(HOUR), until=2 * HOUR)
    with pytest.raises(ConfigError, match=f"from {moment_text(NOW_S + HOUR)} on: .*ascending"):
        move(registry, {"decline": 0.88}, until=3 * HOUR)
    assert move(registry, {"decline": 0.88}, until=HOUR).seq == 2  # it ends when the other one begins


def test_an_override_is_of_the_champion_or_of_a_release_that_is_named(tmp_path):
    """After a promotion the new champion has its own thresholds."""
    registry = unsigned(tmp_path)
    registry.publish(release("1.1"))
    named = move(registry, release="fraud:1.1")
    assert named.digest == digest_of(release("1.1"))
    assert move(registry).digest == digest_of(release("1.0"))
    registry.publish(release("1.2", None))
    with pytest.raises(ConfigError, match="has no policy"):
        move(registry, release="fraud:1.2")
    empty = ri.Registry(tmp_path / "empty", trust="unsigned", who="anna")
    with pytest.raises(RegistryError):
        empty.override("fraud", {"decline": 0.95}, until=moment(HOUR), why="x")
    assert empty.overrides("fraud") == ()


def test_a_release_has_so_many_overrides_and_no_more(tmp_path):
    """Until some are lifted."""
    registry = unsigned(tmp_path)
    for _ in range(MAX_OPEN):
        move(registry)
    with pytest.raises(RegistryError, match="lift some"):
        move(registry)
    registry.lift("fraud", why="tidy")
    assert move(registry).seq == MAX_OPEN + 2


def test_of_two_at_once_one_comes_first(tmp_path):
    """The other is told, nothing is lost, and both see one order."""
    registries = [unsigned(tmp_path) for _ in range(4)]
    won, lost, barrier = [], [], threading.Barrier(4)

    def decide(i):
        barrier.wait()
        for n in range(3):
            try:
                won.append(move(registries[i], {"decline": 0.86 + 0.01 * i}, why=f"{i}.{n}"))
            except ConflictError:
                lost.append(i)

    threads = [threading.Thread(target=decide, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(lost) == 12
    log, *others = [registry.overrides("fraud") for registry in registries]
    assert others == [log] * 3
    assert [one.seq for one in log] == list(range(1, len(won) + 1))
    assert sorted(one.why for one in log) == sorted(one.why for one in won)


def test_lifting_goes_through_whoever_is_faster(tmp_path):
    """It means the same whatever others did meanwhile: somebody moves a threshold between the look and the write."""
    registry, other = unsigned(tmp_path), unsigned(tmp_path)
    move(registry)
    write, raced = registry._records.write_override, []

    def slower(entry, position):
        if not raced:
            raced.append(move(other, {"review": 0.5}))
        write(entry, position)

    registry._records.write_override = slower
    lifted = registry.lift("fraud", why="over")
    assert (lifted.seq, lifted.lifts) == (3, (1, 2))


def test_environments_have_overrides_of_their_own(tmp_path):
    """What was moved in production is not moved in staging."""
    move(unsigned(tmp_path))
    assert unsigned(tmp_path, environment="staging").overrides("fraud") == ()


def test_a_document_that_was_lost_is_told(tmp_path):
    """The lift that somebody deleted could bring a threshold back."""
    registry = unsigned(tmp_path)
    move(registry)
    registry.lift("fraud", why="over")
    move(registry)
    (tmp_path / "overrides/production/fraud/00000002.json").unlink()
    with pytest.raises(IntegrityError, match="lost override 2 of `fraud`; there are 3"):
        ri.Registry(tmp_path, trust="unsigned").overrides("fraud")


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 60_000, b'{"payload":', b"\xff" * 10, b"null"])
def test_a_document_that_is_none_is_told(tmp_path, data):
    """Where nothing is signed, whoever can write can break it; what is read is refused with a typed error."""
    registry = unsigned(tmp_path)
    move(registry)
    (tmp_path / "overrides/production/fraud/00000002.json").write_bytes(data)
    with pytest.raises((BundleError, RegistryError)):
        registry.overrides("fraud")


def test_a_document_of_another_name_or_place_is_told(tmp_path):
    """Copied from where it belonged."""
    registry = unsigned(tmp_path)
    strange = msgspec.structs.replace(move(registry), environment="staging", seq=2)
    (tmp_path / "overrides/production/fraud/00000002.json").write_bytes(encode_statement(strange))
    with pytest.raises(IntegrityError, match="in staging"):
        registry.overrides("fraud")


# ---- signed ----------------------------------------------------------------------------------------------------------


def believing(**changes):
    """A host that believes ops about pointers and night about thresholds."""
    keys = {name: record(name) for name in ("ci", "lead", "ops", "night", "root")}
    return trust(**({"keys": keys, "override": Role(keys=("night",))} | changes))


def signed_registry(place, *names, trusted=None, clock=None):
    """A registry that signs with the keys of these people; ops has promoted a release."""
    trusted = believing() if trusted is None else trusted
    clock = ManualClock(wall_ns=NOW_S * 10**9) if clock is None else clock
    files = release() | {"manifest.sig": signed(statement_of(release()), "ci", "lead")}
    first = ri.Registry(place, trust=trusted, keys=[key("ops")], who="ops", clock=clock)
    first.publish(files)
    first.promote("fraud:1.0", why="first")
    return ri.Registry(place, trust=trusted, keys=[key(name) for name in names], who="night", clock=clock)


def override(seq=1, **changes):
    """An override of the release."""
    given = {
        "name": "fraud",
        "environment": "production",
        "digest": digest_of(release()),
        "epoch": 1,
        "seq": seq,
        "issued": moment_text(NOW_S - 60),
        "begins": moment_text(NOW_S - 60),
        "until": moment_text(NOW_S + HOUR),
        "thresholds": {"decline": 0.95},
        "who": "night",
        "why": "attack",
    }
    return Override(**(given | changes))


def lift(seq, *seqs, **changes):
    """The end of some."""
    given = {
        "name": "fraud",
        "environment": "production",
        "epoch": 1,
        "seq": seq,
        "issued": moment_text(NOW_S),
        "lifts": seqs,
        "who": "night",
        "why": "over",
    }
    return Lift(**(given | changes))


@pytest.mark.requires("cryptography")
def test_one_key_moves_a_threshold_and_hosts_believe_it(tmp_path):
    """The key of the role `override`, which signs nothing else."""
    registry = signed_registry(tmp_path, "night")
    made = move(registry)
    host = ri.Registry(tmp_path, trust=believing(), clock=ManualClock(wall_ns=NOW_S * 10**9))
    assert host.overrides("fraud") == (made,)
    assert host.overrides_in_force("fraud").verdict.mark.seq == 1
    lifted = registry.lift("fraud", why="over")
    assert host.overrides("fraud") == (made, lifted)
    with pytest.raises(SignatureError):
        registry.renew("fraud", why="but I may not")


@pytest.mark.requires("cryptography")
@pytest.mark.parametrize("names", [("ops",), ("ci", "lead"), ("root",), ("stranger",)])
def test_other_keys_move_no_threshold(tmp_path, names):
    """Not those of pointers, releases or the trust file, nor one that nobody knows."""
    with pytest.raises(SignatureError, match="role `override`"):
        move(signed_registry(tmp_path, *names))
    assert not (tmp_path / "overrides").exists()


@pytest.mark.requires("cryptography")
def test_nobody_moves_a_threshold_where_no_key_may(tmp_path):
    """A trust file without the role; and a caller without a key."""
    closed = believing(override=None)
    with pytest.raises(TrustError, match="no role `override`"):
        move(signed_registry(tmp_path, "night", trusted=closed))
    with pytest.raises(ConfigError, match="keys="):
        move(ri.Registry(tmp_path, trust=believing(), clock=ManualClock(wall_ns=NOW_S * 10**9)))
    # what somebody put there counts for nobody who does not believe in it
    move(signed_registry(tmp_path, "night"))
    assert ri.Registry(tmp_path, trust=closed).overrides("fraud") == ()


def rules(**changes):
    """Of a trust file with a key of the night."""
    keys = {name: record(name) for name in ("ci", "lead", "ops", "night", "second")}
    given = {"keys": keys, "override": Role(keys=("night", "second")), "trust": None}
    return Rules(trust_file(**(given | changes)))


@pytest.mark.requires("cryptography")
@pytest.mark.parametrize(
    ("statement", "names", "error", "text"),
    [
        (override(), ("ops",), SignatureError, "1 signature"),
        (override(), ("stranger",), SignatureError, "1 signature"),
        (override(name="shop-a"), ("night",), TrustError, "Expected an override of 'fraud'"),
        (override(environment="staging"), ("night",), TrustError, "staging"),
        (override(epoch=2), ("night",), RollbackError, "epoch 2"),
        (
            override(issued=moment_text(NOW_S + 301), begins=moment_text(NOW_S + 301)),
            ("night",),
            TrustError,
            "counts from",
        ),
        (lift(2, 1, issued=moment_text(NOW_S + 301)), ("night",), TrustError, "counts from"),
        (lift(2, 1, environment="staging"), ("night",), TrustError, "staging"),
        (lift(2, 1, name="shop-a"), ("night",), TrustError, "Expected an override of 'fraud'"),
    ],
)
def test_what_is_not_for_here_is_refused(statement, names, error, text):
    """By its keys, name, environment, epoch; and in a series it moves nothing."""
    data = signed(statement, *names)
    with pytest.raises(error, match=text):
        rules().override(data, "fraud", now_s=NOW_S)
    assert rules().overrides([data], "fraud", now_s=NOW_S).log == ()


@pytest.mark.requires("cryptography")
def test_a_statement_of_another_kind_never_stands_for_an_override():
    """Not even when one key has both roles."""
    pointer = Pointer(
        name="fraud", environment="production", epoch=1, seq=1, issued=moment_text(NOW_S), who="x", why="y"
    )
    both = rules(override=Role(keys=("ops",)), pointer=Role(keys=("ops",)))
    with pytest.raises(SignatureError, match="of one kind never"):
        both.override(signed(pointer, "ops"), "fraud", now_s=NOW_S)
    with pytest.raises(SignatureError, match="of one kind never"):
        both.pointer(signed(override(), "ops"), "fraud", now_s=NOW_S)


@pytest.mark.requires("cryptography")
def test_every_flipped_byte_of_an_override_is_refused():
    """The envelope has one spelling, the signature covers the rest."""
    good = signed(override(), "night")
    assert rules().override(good, "fraud", now_s=NOW_S) == override()
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises((SignatureError, ManifestError)):
            rules().override(bad, "fraud", now_s=NOW_S)


@pytest.mark.requires("cryptography")
def test_more_than_one_may_have_to_sign():
    """Where the trust file asks for two."""
    two = rules(override=Role(keys=("night", "second"), threshold=2))
    with pytest.raises(SignatureError, match="2 signature"):
        two.override(signed(override(), "night"), "fraud", now_s=NOW_S)
    assert two.override(signed(override(), "night", "second"), "fraud", now_s=NOW_S).seq == 1


@pytest.mark.requires("cryptography")
def test_a_key_that_expired_or_was_revoked_moves_nothing_any_more():
    """What it had moved is where the release has it again."""
    data = signed(override(), "night")
    keys = {name: record(name) for name in ("ci", "lead", "ops", "second")}
    expiring = rules(keys=keys | {"night": record("night", expires=moment_text(NOW_S + 60))})
    assert len(expiring.overrides([data], "fraud", now_s=NOW_S + 59).log) == 1
    assert expiring.overrides([data], "fraud", now_s=NOW_S + 60).log == ()


@pytest.mark.requires("cryptography")
def test_an_override_that_is_put_there_again_moves_nothing():
    """It was lifted; its number is known, and the first document with it counts."""
    first, end = signed(override(1), "night"), signed(lift(2, 1), "night")
    again = rules().overrides([first, end, first], "fraud", now_s=NOW_S)
    assert [one.seq for one in again.log] == [1, 2]
    held = apply(POLICY, again.log, digest=digest_of(release()), now_s=NOW_S)
    assert held.moved == ()
    twin = signed(override(1, thresholds={"decline": 0.86}), "night")
    assert rules().overrides([first, twin], "fraud", now_s=NOW_S).log == (override(1),)


@pytest.mark.requires("cryptography")
def test_an_override_that_was_taken_away_is_missed(tmp_path):
    """A host remembers how far it has seen: a lift that was deleted does not bring a threshold back unseen."""
    state = tmp_path / "accepted.json"
    registry = signed_registry(tmp_path / "registry", "night")
    move(registry)
    registry.lift("fraud", why="over")

    def host():
        return ri.Registry(
            tmp_path / "registry", trust=believing(state=state), clock=ManualClock(wall_ns=NOW_S * 10**9)
        )

    seen = host()
    seen.trust.remember_overrides("fraud", seen.overrides_in_force("fraud").verdict)
    assert read_state(str(state)).overrides["fraud"].seq == 2
    before = state.read_bytes()
    seen.trust.remember_overrides("fraud", seen.overrides_in_force("fraud").verdict)
    assert state.read_bytes() == before
    last = tmp_path / "registry/overrides/production/fraud/00000002.json"
    data = last.read_bytes()
    last.unlink()
    with pytest.raises(
        RollbackError, match="override 2 of 'fraud', which this host has seen, was taken away"
    ):
        host().overrides("fraud")
    last.write_bytes(b"junk of somebody who can write there")
    with pytest.raises(RollbackError, match="was taken away"):
        host().overrides("fraud")
    last.write_bytes(data)
    assert len(host().overrides("fraud")) == 2
    third = move(registry, {"review": 0.5})
    assert third.seq == 3
    assert host().overrides_in_force("fraud").verdict.mark.seq == 3


def nobody_signs(document):
    """The same payload under the signature of a key that nobody knows."""
    envelope = decode_envelope(document)
    return encode_envelope(envelope.payload_type, envelope.payload, {"0" * 64: b"x" * 64})


@pytest.mark.requires("cryptography")
@pytest.mark.parametrize("after", [False, True], ids=["last", "in the middle"])
@pytest.mark.parametrize("remembers", [False, True], ids=["a new host", "a host with a memory"])
@pytest.mark.parametrize(
    "spoil", [lambda documents: b"junk", lambda documents: documents[0], lambda documents: nobody_signs(documents[1])],
    ids=["junk", "the override again", "nobody's signature"],
)  # fmt: skip
def test_a_lift_that_was_spoilt_brings_nothing_back(tmp_path, spoil, after, remembers):
    """By somebody who can write in the registry and holds no key; the newest one is missed by those who have seen it."""
    state = tmp_path / "accepted.json"
    registry = signed_registry(tmp_path / "registry", "night")
    moved = move(registry)
    registry.lift("fraud", why="over")
    if after:
        assert move(registry, {"review": 0.5}).seq == 3

    def host():
        where = {"state": state} if remembers else {}
        return ri.Registry(
            tmp_path / "registry", trust=believing(**where), clock=ManualClock(wall_ns=NOW_S * 10**9)
        )

    seen = host()
    found = seen.overrides_in_force("fraud")
    seen.trust.remember_overrides("fraud", found.verdict)
    lifted = tmp_path / "registry/overrides/production/fraud/00000002.json"
    lifted.write_bytes(spoil(found.documents))
    if not after and not remembers:  # it has never been there for this host
        assert host().overrides("fraud") == (moved,)
        return
    with pytest.raises(RollbackError, match="taken away"):
        host().overrides("fraud")
    lifted.write_bytes(found.documents[1])
    assert host().overrides_in_force("fraud") == found


@pytest.mark.requires("cryptography")
def test_a_lift_that_was_seen_is_missed_whatever_was_written_since(tmp_path):
    """The next operator builds on what the thief has left; a host that knew better does not."""
    state = tmp_path / "accepted.json"
    registry = signed_registry(tmp_path / "registry", "night")
    move(registry)
    registry.lift("fraud", why="over")
    trusted = believing(state=state)
    seen = ri.Registry(tmp_path / "registry", trust=trusted, clock=ManualClock(wall_ns=NOW_S * 10**9))
    trusted.remember_overrides("fraud", seen.overrides_in_force("fraud").verdict)
    (tmp_path / "registry/overrides/production/fraud/00000002.json").write_bytes(b"junk")
    fresh = ri.Registry(tmp_path / "registry", trust=believing(), keys=[key("night")], who="night",
                        clock=ManualClock(wall_ns=NOW_S * 10**9))  # fmt: skip
    assert move(fresh, {"review": 0.5}).seq == 3
    again = ri.Registry(tmp_path / "registry", trust=trusted, clock=ManualClock(wall_ns=NOW_S * 10**9))
    with pytest.raises(RollbackError, match="override 2 of 'fraud', which this host has seen"):
        again.overrides("fraud")


def series_of(n, rnd):
    """Documents of overrides, some of which are lifted, each naming the one before it."""
    documents, standing = [], []
    for seq in range(1, n + 1):
        before = hashlib.sha256(documents[-1]).hexdigest() if documents else None
        if standing and rnd.random() < 0.5:
            statement = lift(seq, standing.pop(rnd.randrange(len(standing))), previous=before)
        else:
            statement = override(seq, previous=before)
            standing.append(seq)
        documents.append(signed(statement, rnd.choice(["night", "second"])))
    return documents


def spoilt(documents, rnd):
    """What somebody without a key can make of them."""
    found = list(documents)
    for _ in range(rnd.randint(1, 3)):
        at = rnd.randrange(len(found))
        how = rnd.randrange(6)
        if how == 0:
            found[at] = b"junk"
        elif how == 1:
            found[at] = nobody_signs(rnd.choice(documents))
        elif how == 2:
            found[at] = rnd.choice(documents)
        elif how == 3:
            found = found[: at + 1]
        elif how == 4:
            rnd.shuffle(found)
        else:
            found.insert(at, rnd.choice(documents))
    return found


def standing(log):
    """Numbers of overrides that nobody has lifted."""
    lifted = {number for one in log if isinstance(one, Lift) for number in one.lifts}
    return {one.seq for one in log if isinstance(one, Override)} - lifted


@pytest.mark.requires("cryptography")
def test_whatever_somebody_without_a_key_does_nothing_comes_back():
    """A host that has seen the series refuses it or has no override that it did not have; a new one lacks a tail at most."""
    judge, refused = rules(), 0
    for seed in range(150):
        rnd = random.Random(seed)
        documents = series_of(rnd.randint(2, 7), rnd)
        seen = judge.overrides(documents, "fraud", now_s=NOW_S)
        changed = spoilt(documents, rnd)
        for mark in (seen.mark, None):
            try:
                found = judge.overrides(changed, "fraud", now_s=NOW_S, mark=mark)
            except RollbackError:
                refused += 1
                continue
            last = max((one.seq for one in found.log), default=0)
            then = seen.log if mark is not None else [one for one in seen.log if one.seq <= last]
            assert standing(found.log) <= standing(then), seed
    assert 50 < refused < 250


@pytest.mark.requires("cryptography")
def test_an_override_names_the_document_before_it(tmp_path):
    """Signed or not; a series whose oldest documents were left out can be read."""
    for registry in (signed_registry(tmp_path / "signed", "night"), unsigned(tmp_path / "unsigned")):
        entries = (move(registry), registry.lift("fraud", why="over"), move(registry, {"review": 0.5}))
        found = registry.overrides_in_force("fraud")
        before = [None, *(hashlib.sha256(document).hexdigest() for document in found.documents)]
        assert [one.previous for one in entries] == before[:-1]
        assert registry.overrides_in_force("fraud", documents=found.documents[1:]).log == entries[1:]
        assert registry.overrides_in_force("fraud", documents=found.documents[2:]).log == entries[2:]


@pytest.mark.requires("cryptography")
def test_a_lift_outlives_its_key():
    """What it ended stays ended when the key expires; a key that was revoked ends nothing."""
    documents = [signed(override(1), "second"), signed(lift(2, 1), "night")]
    keys = {name: record(name) for name in ("ci", "lead", "ops", "second")}
    later = rules(keys=keys | {"night": record("night", expires=moment_text(NOW_S - 1))})
    assert later.overrides(documents, "fraud", now_s=NOW_S).log == (override(1), lift(2, 1))
    not_yet = rules(keys=keys | {"night": record("night", not_before=moment_text(NOW_S + 1))})
    assert not_yet.overrides(documents, "fraud", now_s=NOW_S).log == (override(1),)
    gone = Revocations(epoch=1, seq=1, issued=moment_text(NOW_S), keys={key("night").id: "stolen"})
    revoked = Rules(later.file, gone)
    assert revoked.overrides(documents, "fraud", now_s=NOW_S).log == (override(1),)


@pytest.mark.requires("cryptography")
def test_nothing_is_lifted_by_a_key_that_has_expired(tmp_path):
    """What counts for ever was signed while the key did."""
    both = Role(keys=("night", "lead"))
    move(signed_registry(tmp_path, "lead", trusted=believing(override=both)))
    keys = {name: record(name) for name in ("ci", "lead", "ops", "root")}
    trusted = believing(keys=keys | {"night": record("night", expires=moment_text(NOW_S - 1))}, override=both)
    late = ri.Registry(
        tmp_path, trust=trusted, keys=[key("night")], who="night", clock=ManualClock(wall_ns=NOW_S * 10**9)
    )
    with pytest.raises(SignatureError, match="valid now"):
        late.lift("fraud", why="over")
    assert len(late.overrides("fraud")) == 1


@pytest.mark.requires("cryptography")
def test_a_key_that_expires_is_no_theft():
    """Its documents are there, they count no more, and no number is used twice."""
    documents = [signed(override(1), "second"), signed(override(2), "night")]
    mark = rules().overrides(documents, "fraud", now_s=NOW_S).mark
    keys = {name: record(name) for name in ("ci", "lead", "ops", "second")}
    later = rules(keys=keys | {"night": record("night", expires=moment_text(NOW_S - 1))})
    verdict = later.overrides(documents, "fraud", now_s=NOW_S, mark=mark)
    assert [one.seq for one in verdict.log] == [1]
    assert verdict.mark == mark
    with pytest.raises(RollbackError, match="taken away"):
        later.overrides(documents[:1], "fraud", now_s=NOW_S, mark=mark)


@pytest.mark.requires("cryptography")
def test_a_new_epoch_begins_its_own_series():
    """Numbers that a thief has jumped to mean nothing any more; and no older trust file comes back."""
    mark = Mark(epoch=1, seq=2**63 - 1, sha256="f" * 64)
    new = rules(epoch=2)
    data = signed(override(1, epoch=2), "night")
    verdict = new.overrides([data], "fraud", now_s=NOW_S, mark=mark)
    assert (len(verdict.log), verdict.mark.epoch, verdict.mark.seq) == (1, 2, 1)
    with pytest.raises(RollbackError, match="epoch"):
        rules().overrides([], "fraud", now_s=NOW_S, mark=verdict.mark)


@pytest.mark.requires("cryptography")
def test_a_trust_file_that_has_expired_believes_no_override():
    """As with pointers."""
    old = rules(expires=moment_text(NOW_S - 1))
    with pytest.raises(TrustError, match="expired"):
        old.overrides([signed(override(), "night")], "fraud", now_s=NOW_S)
