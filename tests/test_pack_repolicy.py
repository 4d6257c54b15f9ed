"""A release with another policy and nothing else: what it is made of, what refuses it, and how it loads beside its base."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest
from signed_releases import record, signed, statement_of, trust, trust_file
from small_releases import BANDS, logistic, pack_arrays, pack_payments, payment_spec, payment_store, payments

import retailinfer as ri
from retailinfer.authoring.check import check
from retailinfer.authoring.check_bounds import bounds_of
from retailinfer.authoring.check_policy import check_policy
from retailinfer.authoring.diff import diff
from retailinfer.authoring.loading import build
from retailinfer.cli.main import main
from retailinfer.errors import (
    ConfigError,
    GoldenMismatchError,
    ManifestError,
    SchemaMismatchError,
    SpecError,
    TrustError,
)
from retailinfer.pipeline import Pipeline
from retailinfer.policy import Policy
from retailinfer.release.bundle import parser_calls, read_bundle, write_bundle
from retailinfer.release.golden import decode_golden, encode_golden
from retailinfer.release.manifest import Info, encode_manifest, same_but_policy

pytestmark = pytest.mark.requires("onnx", "pyarrow")

STRICTER = Policy(
    [("approve", 0.0), ("review", 0.4), ("decline", 0.7)],
    segment_by="channel",
    segments={"pos": [("approve", 0.0), ("decline", 0.95)]},
    envelope={"decline": (0.6, 0.97)},
    segment_envelopes={"pos": {"decline": (0.9, 0.99)}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where releases of this file go."""
    return tmp_path_factory.mktemp("repolicy")


@pytest.fixture(scope="module")
def base(folder):
    """The release that answers today."""
    info = {"version": "1.0", "owner": "risk", "hypothesis": "fewer declines", "expires": "2036-01-01"}
    return pack_payments(folder / "base", info=info)


@pytest.fixture(scope="module")
def stricter(folder, base):
    """The same with other thresholds."""
    ri.repolicy(base, policy=STRICTER, version="1.0-strict", out=folder / "stricter")
    return folder / "stricter"


def files_of(path):
    """A release as files by name."""
    return {one.name: one.read_bytes() for one in path.iterdir()}


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_everything_but_the_policy_is_the_bases(base, stricter):
    """Byte for byte; of the golden rows the actions alone are others, and they are those of the new policy."""
    before, after = files_of(base), files_of(stricter)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {
        "manifest.json",
        "policy.json",
        "golden.msgpack",
    }
    rows = [decode_golden(files["golden.msgpack"]) for files in (before, after)]
    assert msgspec.structs.replace(rows[1], actions=rows[0].actions) == rows[0]
    a, b = (read_bundle(files).manifest for files in (before, after))
    assert same_but_policy(a, b)
    assert (b.policy_of.release, b.policy_of.digest, b.release) == (
        a.release,
        a.digest,
        "payments:1.0-strict",
    )
    assert b.thresholds == {"approve": 0.0, "review": 0.4, "decline": 0.7}
    assert b.envelope == {"decline": (0.6, 0.97), "decline in pos": (0.9, 0.99)}
    assert (b.info.owner, b.info.expires, b.info.version) == ("risk", "2036-01-01", "1.0-strict")
    assert b.info.fallbacks == (a.digest,)
    assert b.digest != a.digest


def test_info_says_what_is_new_and_keeps_the_rest(base, tmp_path):
    """A hypothesis of its own; fallbacks where they are given."""
    info = {"hypothesis": "reviews cost less", "fallbacks": ["f" * 64]}
    made = ri.repolicy(base, policy=STRICTER, version="2", out=tmp_path / "a", info=info)
    assert (made.info.hypothesis, made.info.owner, made.info.fallbacks) == (
        "reviews cost less",
        "risk",
        ("f" * 64,),
    )
    again = ri.repolicy(base, policy=STRICTER, version="2", out=tmp_path / "b", info=Info(owner="fraud"))
    assert (again.info.hypothesis, again.info.owner) == ("fewer declines", "fraud")


def test_a_policy_only_release_has_a_base_that_may_be_one(base, stricter, tmp_path):
    """The way back is a chain of fallbacks."""
    made = ri.repolicy(stricter, policy=Policy(BANDS, n_reasons=2), version="3", out=tmp_path / "third")
    assert made.policy_of.version == "1.0-strict"
    assert made.info.fallbacks == tuple(read_bundle(path).manifest.digest for path in (stricter, base))
    assert made.envelope is msgspec.UNSET


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"policy": Policy(BANDS)}, ConfigError, "nothing to release"),
        ({"version": "1.0"}, ConfigError, "another version"),
        ({"version": "../2"}, ConfigError, "version"),
        ({"policy": [("approve", 0.0)]}, ConfigError, "ri.Policy"),
        ({"info": {"owners": 7}}, ConfigError, "info="),
        ({"info": {"envelope": {"decline": [0.8, 0.97]}}}, ConfigError, "info="),
        (
            {"policy": Policy(BANDS, segment_by="amount", segments={"x": BANDS})},
            SchemaMismatchError,
            "no request field of type str",
        ),
        ({"policy": Policy(BANDS, reasons={"nothing": "x"})}, SchemaMismatchError, "nothing"),
        (
            {"policy": Policy([("approve", 0.6), ("decline", 0.9)])},
            SchemaMismatchError,
            "below the lowest threshold",
        ),
    ],
)
def test_what_could_not_answer_is_not_written(base, tmp_path, changes, error, text):
    """Refused before anything is there."""
    given = {"policy": STRICTER, "version": "2", "out": tmp_path / "new"} | changes
    with pytest.raises(error, match=text):
        ri.repolicy(base, **given)
    assert not (tmp_path / "new").exists()


def test_the_ladder_must_fit_the_new_policy(tmp_path):
    """Fraud degrades to review: a policy without it is none for this contract."""
    contract = ri.Contract(use_case="fraud", max_rows=1_000, ladder=(ri.Rung(kind="static"),))
    path = pack_payments(tmp_path, contract=contract, fallback=ri.Fallback(action="review", score=0.6))
    with pytest.raises((SpecError, ManifestError), match="review"):
        ri.repolicy(
            path, policy=Policy([("approve", 0.0), ("decline", 0.9)]), version="2", out=tmp_path / "new"
        )


def test_a_release_of_arrays_has_no_use_for_a_policy(tmp_path):
    """It decides nothing."""
    with pytest.raises(ConfigError, match="takes arrays"):
        ri.repolicy(pack_arrays(tmp_path), policy=STRICTER, version="2", out=tmp_path / "new")


def test_a_release_without_a_policy_may_get_one(tmp_path):
    """Scores that were looked at for a month get thresholds."""
    path = pack_payments(tmp_path, policy=None)
    made = ri.repolicy(path, policy=STRICTER, version="2", out=tmp_path / "new")
    assert made.thresholds["decline"] == 0.7
    scorer = ri.Scorer.load(tmp_path / "new", store=payment_store(), trust="unsigned")
    assert scorer.policy.to_json() == STRICTER.to_json()


# ---- the same trail --------------------------------------------------------------------------------------------------


@pytest.fixture
def checked():
    """`check_policy` of two releases."""
    made = []

    def go(new, old):
        made.extend(build(read_bundle(path)) for path in (new, old) if path is not None)
        return check_policy(
            made[-1 if old is None else -2], None if old is None else made[-1], bounds_of(None)
        )

    yield go
    for one in made:
        one.door.close()


def test_check_verifies_that_only_the_policy_is_new(base, stricter, checked):
    """And says how many golden decisions are others."""
    found = check(stricter, against=base, seconds=0.05)["policy"]
    assert found.state == "passed"
    flips = found.figures["golden_flips"]
    assert sum(flips.values()) > 0
    before, after = (read_bundle(path).read("golden", decode_golden).actions for path in (base, stricter))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == sum(flips.values())
    assert any(note.startswith("golden rows: ") for note in found.notes)
    assert checked(base, stricter).state == "not applicable"
    assert checked(stricter, None).state == "warned"


def changed(path, out, **changes):
    """The release with some files replaced, and a manifest that says so."""
    bundle = read_bundle(path)
    files = {entry.file: (entry.role, bundle.files[entry.file]) for entry in bundle.manifest.files}
    for name, data in changes.pop("files", {}).items():
        files[name] = (files[name][0], data)
    write_bundle(out, files, msgspec.structs.replace(bundle.manifest, files=(), **changes))
    return out


def test_check_finds_a_release_that_only_says_so(base, stricter, checked, tmp_path):
    """Another model, other golden rows, another field of the manifest: each is named."""
    golden = read_bundle(stricter).read("golden", decode_golden)
    other = msgspec.structs.replace(golden, now_ns=golden.now_ns + 1)
    contract = msgspec.json.encode(ri.Contract(p99_ms=51, max_rows=1_000), order="deterministic")
    lies = {
        "contract.json": {"files": {"contract.json": contract}},
        "`now_ns` of the golden rows": {"files": {"golden.msgpack": encode_golden(other)}},
        "`row_independent` of the manifest": {"row_independent": False},
    }
    for i, (text, changes) in enumerate(lies.items()):
        found = checked(changed(stricter, tmp_path / str(i), **changes), base)
        assert found.state == "failed"
        assert any(text in note for note in found.notes)
    retrained = pack_payments(tmp_path / "retrained", model=logistic(len(payment_spec().names), seed=2))
    found = checked(stricter, retrained)
    assert (found.state, "was not looked at" in found.notes[0]) == ("warned", True)


def test_diff_tells_the_policy_and_the_flips(base, stricter):
    """Nothing else decides differently."""
    found = diff(base, stricter)
    assert {one.part for one in found.changes} == {"policy", "facts"}
    assert all(one.same_bits and one.flips for one in found.golden)


def test_golden_actions_that_the_policy_does_not_give_are_refused(base, stricter, tmp_path):
    """The new golden rows hold the policy to its word, on every host."""
    old = read_bundle(base).files["golden.msgpack"]
    forged = changed(stricter, tmp_path / "forged", files={"golden.msgpack": old})
    with pytest.raises(GoldenMismatchError, match="leads to"):
        ri.Scorer.load(forged, store=payment_store(), trust="unsigned")
    running = Pipeline.load(base, store=payment_store(), trust="unsigned")
    with pytest.raises(GoldenMismatchError, match="leads to"):
        Pipeline.load(forged, trust="unsigned", beside=running)


# ---- beside its base -------------------------------------------------------------------------------------------------

REQUEST = {"card_id": "c1", "channel": "app", "amount": 12.5, "at": 1_700_000_500, "gift": None}


def test_beside_its_base_the_models_are_shared(base, stricter):
    """No model is opened, no feature compiled; the same bits, and its own thresholds."""
    store = payment_store()
    running = Pipeline.load(base, store=store, trust="unsigned")
    alone = Pipeline.load(stricter, store=store, trust="unsigned")
    before = parser_calls.copy()
    made = Pipeline.load(stricter, store=store, trust="unsigned", beside=running)
    assert set(parser_calls - before) == {"manifest.json", "policy.json", "golden.msgpack"}
    assert made.sessions is running.sessions
    assert made.program is running.program
    assert made.request_type is running.request_type
    assert made.permits is running.permits
    held = {entry.role: made.bundle.files[entry.file] for entry in made.manifest.files}
    same = {role for role, data in held.items() if any(data is one for one in running.bundle.files.values())}
    assert set(held) - same == {"policy", "golden"}
    for i in range(60):
        request = REQUEST | {"amount": 1.5**i, "channel": ("app", "pos", "web")[i % 3]}
        one, other, old = (p.engine.score(request, "id") for p in (made, alone, running))
        assert one == other
        assert one.score == old.score
        assert one.release == "payments:1.0-strict"
    assert made.engine.stages["run"] is running.engine.stages["run"]


@pytest.mark.parametrize("change", ["model", "features", "contract", "name"])
def test_beside_another_release_nothing_is_shared(base, tmp_path, change):
    """It loads as it would alone."""
    running = Pipeline.load(base, store=payment_store(), trust="unsigned")
    given = {
        "model": {"model": logistic(len(payment_spec().names), seed=2)},
        "features": {"features": payment_spec().fit(payments(300, seed=8))},
        "contract": {"contract": ri.Contract(max_rows=10)},
        "name": {},
    }[change]
    if change == "name":
        bundle = read_bundle(base)
        files = {entry.file: (entry.role, bundle.files[entry.file]) for entry in bundle.manifest.files}
        write_bundle(
            tmp_path / "other", files, msgspec.structs.replace(bundle.manifest, files=(), name="other")
        )
        path = tmp_path / "other"
    else:
        path = pack_payments(tmp_path, **given)
    made = Pipeline.load(path, store=payment_store(), trust="unsigned", beside=running)
    assert made.sessions is not running.sessions
    assert not running.differs_in_policy(read_bundle(path))


def test_reasons_are_the_new_policys(base, tmp_path):
    """A policy that asks for them gets them, out of models that are shared; and none where it asks for none."""
    asking = Policy(BANDS, reasons={"amount": "an unusual amount"}, n_reasons=3)
    ri.repolicy(base, policy=asking, version="2", out=tmp_path / "asking")
    store = payment_store()
    running = Pipeline.load(base, store=store, trust="unsigned")
    made = Pipeline.load(tmp_path / "asking", store=store, trust="unsigned", beside=running)
    alone = Pipeline.load(tmp_path / "asking", store=store, trust="unsigned")
    assert made.engine.score(REQUEST, "id") == alone.engine.score(REQUEST, "id")
    assert made.engine.score(REQUEST).reasons
    assert not running.engine.score(REQUEST).reasons
    back = Pipeline.load(base, store=store, trust="unsigned", beside=made)
    assert back.engine.score(REQUEST, "id") == running.engine.score(REQUEST, "id")
    assert made.explainer is not running.explainer


def test_the_base_may_go_while_the_new_one_answers(base, stricter):
    """Nothing of it is needed; it is freed like any other."""
    import gc
    import weakref

    running = Pipeline.load(base, store=payment_store(), trust="unsigned")
    made = Pipeline.load(stricter, store=payment_store(), trust="unsigned", beside=running)
    gone = weakref.ref(running)
    gc.disable()
    try:
        running.close()
        del running
        assert gone() is None
    finally:
        gc.enable()
    assert made.engine.score(REQUEST).release == "payments:1.0-strict"


def test_threads_score_with_both_at_once(base, stricter):
    """One model, two policies, four threads: each answer is whole."""
    running = Pipeline.load(base, store=payment_store(), trust="unsigned")
    made = Pipeline.load(stricter, store=payment_store(), trust="unsigned", beside=running)
    wanted = {p.manifest.release: p.engine.score(REQUEST, "id") for p in (running, made)}
    wrong = []

    def score(pipeline):
        for _ in range(500):
            answer = pipeline.engine.score(REQUEST, "id")
            if answer != wanted[pipeline.manifest.release]:
                wrong.append(answer)

    threads = [threading.Thread(target=score, args=(p,)) for p in (running, made, running, made)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.requires("cryptography")
def test_it_is_signed_like_any_other_release(base, stricter, tmp_path):
    """Beside a running base too: without signatures it does not load, and `previous` may be its base."""

    def believing():
        return trust(keys={n: record(n) for n in ("ci", "lead", "ops", "root")}, names=("payments",))

    def sign(path):
        files = files_of(path)
        return files | {"manifest.sig": signed(statement_of(files), "ci", "lead")}

    store = payment_store()
    running = Pipeline.load(sign(base), store=store, trust=believing())
    made = Pipeline.load(sign(stricter), store=store, trust=believing(), beside=running)
    assert made.sessions is running.sessions
    assert made.engine.trace == ()
    with pytest.raises(ri.SignatureError):
        Pipeline.load(files_of(stricter), store=store, trust=believing(), beside=running)
    with pytest.raises(TrustError, match="does not allow"):
        Pipeline.load(sign(stricter), store=store, trust=believing(), instead_of=running.manifest)
    Pipeline.load(sign(base), store=store, trust=believing(), instead_of=made.manifest)


@pytest.mark.requires("cryptography")
def test_the_whole_trail_is_that_of_any_release(base, stricter, tmp_path):
    """Signed, checked, approved, published, promoted, rolled back, and loaded by a host that believes the keys."""
    import shutil

    from signed_releases import key

    from retailinfer.authoring.signing import sign
    from retailinfer.release.trust import Role, encode_trust

    people = ("ci", "risk", "ops", "root")
    file = tmp_path / "trust.json"
    file.write_bytes(
        encode_trust(
            trust_file(
                keys={name: record(name) for name in people},
                names=("payments",),
                release=Role(keys=("ci",)),
                approval=Role(keys=("risk",)),
            )
        )
    )
    registry = {
        name: ri.Registry(tmp_path / "registry", trust=str(file), keys=[key(name)], who=name)
        for name in people
    }
    for path in (base, stricter):
        folder = shutil.copytree(path, tmp_path / path.name)
        sign(folder, key=key("ci"))
        registry["ci"].publish(folder)
        against = None if path is base else base
        report = check(path, against=against, seconds=0.05, allow=("latency",))
        ref = f"payments:{read_bundle(path).manifest.version}"
        registry["risk"].approve(ref, why="read it", report=report.to_json())
        registry["ops"].promote(ref, why="next")
    host = ri.Registry(tmp_path / "registry", trust=str(file))
    scorer = ri.Scorer.load(host.read("payments"), trust=str(file), store=payment_store())
    assert (scorer.manifest.version, scorer.policy.threshold("decline")) == ("1.0-strict", 0.7)
    assert registry["ops"].roll_back("payments", why="queue").champion == read_bundle(base).manifest.digest


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_the_command_makes_it_and_inspect_shows_it(base, tmp_path, capsys):
    """Policy and info from files; what may be moved is told."""
    (tmp_path / "policy.toml").write_text(
        'bands = [["approve", 0.0], ["review", 0.4], ["decline", 0.7]]\nenvelope = {decline = [0.6, 0.97]}\n'
    )
    (tmp_path / "info.json").write_text('{"hypothesis": "reviews cost less"}')
    out = tmp_path / "new"
    arguments = ["--policy", f"{tmp_path}/policy.toml", "--info", f"{tmp_path}/info.json", "--out", str(out)]
    assert main(["repolicy", str(base), *arguments, "--version", "2.0"]) == 0
    told = capsys.readouterr().out
    assert "payments:2.0 is in" in told
    assert "payments:1.0, digest" in told
    assert "approve from 0, review from 0.4, decline from 0.7" in told
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "the policy alone is new; all else is payments:1.0" in shown
    assert "an operator may move decline from 0.6 to 0.97" in shown
    assert main(["repolicy", str(base), *arguments, "--version", "2.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["policy_of"]["version"] == "1.0"
    assert main(["repolicy", str(base), *arguments, "--version", "1.0"]) == 1
    assert "another version" in capsys.readouterr().err


def test_manifests_without_these_fields_keep_their_bytes(base):
    """A release that was packed before they existed has the digest that it always had."""
    data = encode_manifest(read_bundle(base).manifest)
    assert b"policy_of" not in data
    assert b"envelope" not in data
