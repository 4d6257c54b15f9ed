"""Signed releases from the front doors: what a host loads, what it refuses, and in which order it looks."""

from __future__ import annotations

import hashlib
import os
import threading

import msgspec
import pytest
import releases
from processes import run_script
from signed_releases import DAY_S, NOW_S, key, moment_text, record, signed, statement_of, tiny, trust
from test_acceptance_release_files import replaced, resealed
from test_engine_rungs import rescored

import retailinfer as ri
from retailinfer.errors import (
    BundleError,
    GoldenMismatchError,
    IntegrityError,
    RollbackError,
    SignatureError,
    TrustError,
)
from retailinfer.release.bundle import parser_calls, read_bundle
from retailinfer.release.trust import Role

pytestmark = pytest.mark.requires("cryptography", "onnx", "pyarrow")

FILES = releases.payment_files()


def sign(files, **changes):
    """Signed by ci and lead."""
    return files | {"manifest.sig": signed(statement_of(files, **changes), "ci", "lead")}


GOOD = sign(FILES)


def believing(**changes):
    """A host that believes ci and lead about payments and items."""
    return trust(names=("payments", "items"), **changes)


def refused(files, error=BundleError, **changes):
    """Both doors refuse it."""
    for load in (ri.Scorer.load, ri.Ranker.load):
        with pytest.raises(error) as caught:
            load(files, trust=believing(**changes))
        assert len(str(caught.value)) < 1000


def test_a_signed_release_answers():
    """The same as without a signature."""
    scorer = ri.Scorer.load(GOOD, trust=believing())
    plain = ri.Scorer.load(GOOD, trust="unsigned")
    for i in range(20):
        request = releases.payment(amount=float(i))
        assert scorer.score(request).score == plain.score(request).score


def test_every_answer_of_an_unsigned_release_says_so():
    """Whichever way it is asked, and whichever rung answers; those of a signed one say nothing of the kind."""
    said, request = ("release: unsigned",), releases.payment()
    for files, trusted, want in ((FILES, "unsigned", said), (GOOD, believing(), ())):
        scorer = ri.Scorer.load(files, trust=trusted)
        body, packed = msgspec.json.encode(request), msgspec.msgpack.encode(request)
        traces = [
            scorer.score(request).trace,
            tuple(msgspec.json.decode(scorer.score_json(body))["trace"]),
            tuple(msgspec.msgpack.decode(scorer.score_msgpack(packed))["trace"]),
            *(answer.trace for answer in scorer.score_batch([request, request])),
            rescored(scorer, request).trace,
            scorer._live.engine.finish_static(request, None, 0.5, release="static", rung=4).trace,
        ]
        assert set(traces) == {want}
    store = ri.Store(tables={"item": releases.items()})
    items = releases.item_files()
    for files, trusted, want in ((items, "unsigned", said), (sign(items), believing(), ())):
        ranker = ri.Ranker.load(files, trust=trusted, store=store)
        ranking = ranker.rank(releases.CONTEXT, ["sku-001", "sku-002"], k=2)
        asked = msgspec.json.encode({"context": releases.CONTEXT, "candidates": ["sku-001"], "k": 1})
        static = ranker._live.engine.rank_static(["sku-001"], 1, order={}, release="static", rung=4)
        assert {
            ranking.trace,
            tuple(msgspec.json.decode(ranker.rank_json(asked))["trace"]),
            static.trace,
        } == {want}


def test_a_signed_ranker_answers():
    """The other door."""
    store = ri.Store(tables={"item": releases.items()})
    ranker = ri.Ranker.load(sign(releases.item_files()), trust=believing(), store=store)
    assert len(ranker.rank(releases.CONTEXT, ["sku-001", "sku-002"], k=2).items) == 2


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("how", ["empty", "cut", "one byte more", "flipped", "zeroed", "missing", "renamed"])
def test_c27_an_altered_file_is_refused(name, how):
    """Every file of the release, and its signature."""
    data = GOOD[name]
    rest = {other: held for other, held in GOOD.items() if other != name}
    middle = len(data) // 2
    changed = {
        "empty": rest | {name: b""},
        "cut": rest | {name: data[:middle]},
        "one byte more": rest | {name: data + b"\n"},
        "flipped": rest | {name: data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]},
        "zeroed": rest | {name: bytes(len(data))},
        "missing": rest,
        "renamed": rest | {f"x-{name}": data},
    }[how]
    refused(changed)


def test_c27_files_of_two_signed_releases_do_not_mix():
    """Each file of one in the other, manifest and signature too."""
    other = sign(releases.payment_files(extra="ignore"))
    mixed = 0
    for name in GOOD:
        if other[name] != GOOD[name]:
            refused(GOOD | {name: other[name]})
            mixed += 1
    assert mixed >= 3


def test_c27_a_manifest_that_was_sealed_again_is_refused():
    """Whoever may write makes a manifest that is right in itself; he cannot sign it."""
    refused(resealed(nan_inputs=True) | {"manifest.sig": GOOD["manifest.sig"]}, IntegrityError)
    for name in ("policy.json", "model.onnx", "contract.json"):
        files = replaced(name, FILES[name] + b" ") | {"manifest.sig": GOOD["manifest.sig"]}
        refused(files, IntegrityError)


def test_c28_unsigned_by_too_few_or_by_others_is_refused():
    """With the error that says so."""
    refused(FILES, SignatureError)
    for names in (("ci",), ("stranger", "other"), ("risk", "ops")):
        refused(FILES | {"manifest.sig": signed(statement_of(FILES), *names)}, SignatureError)


@pytest.mark.parametrize("now_s", [0, NOW_S - 2 * DAY_S, NOW_S + 31 * DAY_S, NOW_S + 3650 * DAY_S])
def test_c29_at_a_wrong_time_it_is_refused_and_what_runs_goes_on(now_s):
    """Clock at 1970, not yet valid, expired, ten years ahead; a scorer that was loaded answers on."""
    scorer = ri.Scorer.load(GOOD, trust=believing())
    before = scorer.score(releases.payment()).score
    refused(GOOD, TrustError, now_s=now_s)
    assert scorer.score(releases.payment()).score == before


def test_c30_what_was_accepted_is_remembered_by_loading(tmp_path):
    """Last of all: a release that fails later leaves no mark."""
    state = tmp_path / "state.json"
    bad = sign(replaced("model.onnx", releases.deep_network(15, seed=4)))
    refused(bad, GoldenMismatchError, state=state)
    assert not state.exists()
    believed = believing(state=state)
    ri.Scorer.load(GOOD, trust=believed)
    assert believed.mark_of("payments").loaded == statement_of(FILES).digest
    newer = {"epoch": 2, "state": state}
    ri.Scorer.load(GOOD, trust=believing(**newer))
    refused(GOOD, RollbackError, state=state)


def test_c30_a_state_that_cannot_be_written_refuses(tmp_path):
    """Fail closed when loading; the tables are let go."""
    with pytest.raises(BundleError, match="accepted"):
        ri.Scorer.load(GOOD, trust=believing(state=tmp_path / "nowhere" / "state.json"))


def test_c31_revoked_releases_and_keys_are_refused():
    """By a list that security signed."""
    from signed_releases import revoked

    role = {"revocation": Role(keys=("security",))}
    refused(GOOD, TrustError, revocations=revoked(releases={statement_of(FILES).digest: "leak"}), **role)
    refused(GOOD, SignatureError, revocations=revoked(keys={key("ci").id: "stolen"}), **role)
    assert ri.Scorer.load(GOOD, trust=believing(revocations=revoked(), **role))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="platform: no FIFO here")
def test_c33_a_pipe_a_link_and_a_folder_in_the_place_of_the_signature(tmp_path):
    """At once."""
    for name, data in GOOD.items():
        (tmp_path / name).write_bytes(data)
    signature = tmp_path / "manifest.sig"
    signature.unlink()
    os.mkfifo(signature)
    refused(tmp_path, IntegrityError)
    signature.unlink()
    signature.mkdir()
    refused(tmp_path, IntegrityError)
    signature.rmdir()
    (tmp_path.parent / "elsewhere.sig").write_bytes(GOOD["manifest.sig"])
    signature.symlink_to(tmp_path.parent / "elsewhere.sig")
    for path in tmp_path.iterdir():
        if not path.is_symlink():
            path.chmod(0o644)
    assert ri.Scorer.load(tmp_path, trust=believing())
    with pytest.raises(IntegrityError):
        ri.Scorer.load(tmp_path, trust=believing(), strict_paths=True)


def test_c34_a_file_that_is_exchanged_while_it_is_read_is_never_loaded_unverified(tmp_path):
    """Somebody swaps every file between a good and an evil one of the same size, all the time, 2,000 reads long."""
    good = tiny() | {"manifest.sig": signed(statement_of(tiny()), "ci", "lead")}
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            for name, data in good.items():
                for content in (data[::-1], data):
                    beside = tmp_path.parent / f"{name}.new"
                    beside.write_bytes(content)
                    beside.replace(tmp_path / name)
                    with open(tmp_path / name, "r+b") as file:  # noqa: PTH123 - in place too
                        file.write(content)

    thread = threading.Thread(target=swap)
    thread.start()
    loaded = failed = 0
    try:
        for _ in range(2000):
            try:
                bundle = read_bundle(tmp_path, trust=trust())
            except BundleError:
                failed += 1
            else:
                loaded += 1
                assert bundle.files == {
                    name: data for name, data in tiny().items() if name != "manifest.json"
                }
    finally:
        stop.set()
        thread.join()
    assert loaded + failed == 2000
    assert failed > 0
    assert read_bundle(tmp_path, trust=trust()).signed_by == ("ci", "lead")


@pytest.mark.parametrize("what", ["empty", "hello", "deep", "wrong msgpack"])
@pytest.mark.parametrize("name", sorted(set(FILES) - {"manifest.json"}))
def test_c36_garbage_that_was_signed_is_still_no_model(name, what):
    """A signature says who, not that it is sound: the parsers refuse it as before, with a typed error."""
    data = {"empty": b"", "hello": b"hello", "deep": b"[" * 50_000, "wrong msgpack": b"\xdd\xff\xff\xff\xff"}[
        what
    ]
    with pytest.raises(BundleError):
        ri.Scorer.load(sign(replaced(name, data)), trust=believing())


def test_parsers_run_in_order_and_none_before_the_signature_holds():
    """The counting seam, over whole loads."""
    parser_calls.clear()
    ri.Scorer.load(GOOD, trust=believing())
    order = list(parser_calls)
    assert order[:2] == ["manifest.sig", "manifest.json"]
    assert set(order[2:]) <= set(FILES)
    for files in (FILES, FILES | {"manifest.sig": signed(statement_of(FILES), "ci")}):
        parser_calls.clear()
        refused(files, SignatureError)
        assert not parser_calls
    for name in sorted(set(FILES) - {"manifest.json"}):
        parser_calls.clear()
        refused(GOOD | {name: FILES[name] + b"x"}, IntegrityError)
        assert set(parser_calls) == {"manifest.sig", "manifest.json"}


def test_an_unsigned_release_costs_no_import_of_openssl():
    """Who loads without a trust file pays nothing for signatures: the packages are not even imported."""
    out = run_script("""
        import sys
        import releases, retailinfer as ri
        files = releases.payment_files()
        before = set(sys.modules)
        ri.Scorer.load(files, trust="unsigned").score(releases.payment())
        new = set(sys.modules) - before
        print(sorted(name for name in new if "cryptography" in name or "trust" in name or "envelope" in name))
    """)
    assert out == "[]"


def test_the_rung_previous_takes_what_the_signed_release_allows(tmp_path):
    """And what it answers from is not what the host remembers as loaded."""
    old = sign(releases.payment_files(extra="ignore"))
    state = tmp_path / "state.json"
    with pytest.raises(TrustError, match="does not allow"):
        ri.Scorer.load(*ladder_with(()), previous=old, trust=believing(state=state))
    (allowed,) = ladder_with((statement_of(old).digest,))
    believed = believing(state=state)
    ri.Scorer.load(allowed, previous=old, trust=believed)
    assert believed.mark_of("payments").loaded == statement_of(allowed).digest
    with pytest.raises(SignatureError):
        ri.Scorer.load(allowed, previous=releases.payment_files(extra="ignore"), trust=believing())


def ladder_with(fallbacks):
    """A release with the rung `previous`, which names releases that may answer in its place."""
    contract = msgspec.json.encode(
        msgspec.json.decode(FILES["contract.json"]) | {"ladder": [{"kind": "previous"}]}
    )
    files = replaced("contract.json", contract)
    from retailinfer.release.manifest import decode_manifest, encode_manifest, seal

    manifest = decode_manifest(files["manifest.json"])
    info = msgspec.structs.replace(manifest.info, fallbacks=fallbacks)
    sealed = encode_manifest(seal(msgspec.structs.replace(manifest, info=info)))
    return (sign(files | {"manifest.json": sealed}),)


def test_helpers_are_what_they_say():
    """The statement is of this very manifest, and the key of the trust file is the one that signs."""
    statement = statement_of(FILES)
    assert statement.manifest_sha256 == hashlib.sha256(FILES["manifest.json"]).hexdigest()
    assert record("ci").public != record("lead").public
    assert moment_text(NOW_S) == "2026-11-29T12:00:00Z"
