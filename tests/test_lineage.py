"""Lineage and access: what the manifest says is read, by whom, and what a store keeps from a release.

Releases are small_releases.py's: payments that read a table, windows over two streams, a ranking.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from small_releases import (
    logistic,
    pack_arrays,
    pack_payments,
    pack_ranking,
    pack_windows,
    payment_spec,
    payment_store,
    payments,
    window_spec,
)

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.diff import diff
from retailinfer.cli.main import main
from retailinfer.errors import AccessError, ConfigError, ManifestError, SpecError
from retailinfer.features.lineage import lineage
from retailinfer.release.bundle import read_bundle
from retailinfer.release.manifest import Manifest, Read, encode_manifest, seal

pytestmark = pytest.mark.requires("onnx", "pyarrow")

PAYMENT = {"card_id": "c1", "channel": "app", "amount": 12.5, "at": 1_700_000_000.0}
QUERY = "SELECT card_id, avg(amount) AS mean_amount FROM payments GROUP BY card_id"
DAILY = ri.Source.defined("warehouse.cards_daily", QUERY, owner="data platform")
TOPIC = ri.Source("kafka:payments.v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the releases of this file lie."""
    made: Path = tmp_path_factory.mktemp("lineage")
    return made


@pytest.fixture(scope="module")
def payments_release(folder) -> Path:
    """A release that reads the table `card`."""
    return pack_payments(folder)


@pytest.fixture(scope="module")
def windows_release(folder) -> Path:
    """A release that reads the table `card` and windows over two streams."""
    return pack_windows(
        folder, info={"owners": {"card": "cards team", "chargeback": "risk", "nobody reads": "x"}}
    )


def reads_of(release: Path) -> dict[tuple[str, str], Read]:
    """Kind and name -> what the manifest says of it."""
    return {(one.kind, one.name): one for one in read_bundle(release).manifest.reads}


def windows_store(**settings: Any) -> ri.Store:
    """What the release of windows reads."""
    return ri.Store(tables={"card": payment_store()["card"]}, windows=ri.Windows.memory(), **settings)


def resealed(release: Path, **changes: Any) -> dict[str, bytes]:
    """The same files under another manifest, which is well-formed and whole."""
    files = {one.name: one.read_bytes() for one in release.iterdir()}
    manifest = msgspec.json.decode(files["manifest.json"], type=Manifest)
    return files | {"manifest.json": encode_manifest(seal(msgspec.structs.replace(manifest, **changes)))}


def owned_spec(**entity: Any) -> ri.FeatureSpec:
    """A spec of one table and one window, with people behind both."""
    return ri.FeatureSpec(
        request={"card_id": str, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": ri.Entity("card_id", **({"owner": "cards team", "source": DAILY} | entity))},
        streams={"payment": ri.Stream(None, owner="checkout", source=TOPIC)},
        columns=[
            c.numeric("amount"),
            c.stored("card.mean_amount", unknown=0.0, null=0.0),
            c.window("card", "count", on="payment", over="1h", name="recent"),
        ],
    )


# ---- what is listed --------------------------------------------------------------------------------------------------


def test_the_manifest_lists_tables_windows_and_streams(windows_release):
    """Everything that the features read stands there, with columns, an owner where somebody said one, and a digest."""
    found = reads_of(windows_release)
    assert list(found) == [
        ("table", "card"),
        ("window", "before"),
        ("window", "card_count_1h_payment"),
        ("window", "lost"),
        ("stream", "chargeback"),
        ("stream", "payment"),
    ]
    assert found["table", "card"].columns == ("mean_amount",)
    assert found["window", "lost"].columns == ("loss",)
    assert found["window", "before"].digest == found["window", "card_count_1h_payment"].digest  # one state
    owners = {key: one.owner for key, one in found.items() if one.owner is not None}
    assert owners == {
        ("table", "card"): "cards team",
        ("window", "lost"): "risk",
        ("stream", "chargeback"): "risk",
    }
    assert all(len(one.digest or "") == 64 for one in found.values())


def test_owners_and_sources_are_declared_where_the_thing_is():
    """An entity and a stream name their owner and what fills them; a source's digest is of its definition."""
    found = {(one.kind, one.name): one for one in lineage(owned_spec().body)}
    assert {key: one.owner for key, one in found.items()} == {
        ("table", "card"): "cards team",
        ("window", "recent"): "checkout",
        ("stream", "payment"): "checkout",
        ("source", "kafka:payments.v2"): None,
        ("source", "warehouse.cards_daily"): "data platform",
    }
    assert found["source", "warehouse.cards_daily"].digest == hashlib.sha256(QUERY.encode()).hexdigest()
    assert found["source", "kafka:payments.v2"].digest is None


def test_people_are_no_part_of_what_decides():
    """Another owner or source changes neither fingerprint nor digests, survives features.json, and no bit of a cell."""
    with_people, without = owned_spec(), owned_spec(owner=None, source=None)
    assert with_people.fingerprint == without.fingerprint
    assert with_people != without
    read = ri.FeatureSpec.from_json(with_people.to_json())
    assert read == with_people
    assert lineage(read.body) == lineage(with_people.body)
    assert [one.digest for one in lineage(without.body) if one.kind != "source"] == [
        one.digest for one in lineage(with_people.body) if one.kind != "source"
    ]
    assert ri.FeatureSpec.from_json(without.to_json()).body.entities["card"] == ri.Entity(("card_id",))


def test_a_digest_changes_with_the_definition():
    """Another type of a stored column, or another field of a stream, is another digest; another label is not."""
    digests = [
        {one.name: one.digest for one in lineage(spec.body)}
        for spec in (
            owned_spec(),
            owned_spec(columns={"mean_amount": "int"}),
            owned_spec(owner="somebody else", source=None),
        )
    ]
    assert digests[0]["card"] != digests[1]["card"]
    assert digests[0]["card"] == digests[2]["card"]
    assert digests[0]["recent"] == digests[1]["recent"]


def test_a_ranking_lists_the_table_of_its_candidates(folder):
    """`available=` may ask any column of it, so it is listed also where no feature reads one."""
    found = reads_of(pack_ranking(folder))
    assert {name for kind, name in found if kind == "table"} == {"item", "user"}
    spec = ri.FeatureSpec(
        request={"sku": str, "boost": float},
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("boost")],
    )
    assert [(one.kind, one.name, one.columns) for one in lineage(spec.body)] == [("table", "item", ())]


def test_a_release_of_arrays_reads_nothing(folder):
    """Its caller brings everything."""
    assert reads_of(pack_arrays(folder)) == {}


def test_what_a_release_of_arrays_never_checks_is_never_read(folder):
    """A features.json of arrays may hold nonsense beside them; it stays unread, as by everything else."""
    body = msgspec.json.decode((pack_arrays(folder / "nonsense") / "features.json").read_bytes())
    window = {"entity": "nobody", "on": "nothing", "what": "count", "pane_ns": 1, "over_ns": 1}
    spec = ri.FeatureSpec.from_json(
        msgspec.json.encode(body | {"windows": {"w": window}, "candidate": "nobody"})
    )
    assert lineage(spec.body) == ()


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ({"owner": ""}, "at entity `card`"),
        ({"owner": "a\nb"}, "text of one line"),
        ({"owner": "x" * 257}, "at most 256"),
        ({"owner": 7}, "text of one line"),
        ({"source": "warehouse.cards"}, "Expected an ri.Source"),
        ({"source": ri.Source("")}, "text of one line"),
        ({"source": ri.Source("a", sha256="A" * 64)}, "SHA-256"),
        ({"source": ri.Source("kafka:payments.v2", owner="another")}, "declared in two ways"),
    ],
)
def test_what_is_no_owner_and_no_source_is_refused(entity, message):
    """A declaration that could not stand in a manifest, or contradicts another, fails where it is made."""
    with pytest.raises(SpecError, match=message):
        owned_spec(**entity)


def test_two_owners_for_one_table_are_refused(tmp_path):
    """Spec and info may each name the owner; two different ones are nobody's."""
    spec = msgspec.structs.replace(
        payment_spec().body, entities={"card": ri.Entity(("card_id",), owner="cards team")}
    )
    features = ri.FeatureSpec.from_body(spec)
    with pytest.raises(ConfigError, match="two owners: 'cards team' in the spec, 'risk' in info"):
        pack_payments(tmp_path, features=features, info={"owners": {"card": "risk"}})
    same = pack_payments(tmp_path, features=features, info={"owners": {"card": "cards team"}})
    assert reads_of(same)["table", "card"].owner == "cards team"


# ---- a manifest that says otherwise ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        lambda reads: (),
        lambda reads: (msgspec.structs.replace(reads[0], digest="0" * 64),),
        lambda reads: (msgspec.structs.replace(reads[0], digest=None),),
        lambda reads: (msgspec.structs.replace(reads[0], columns=()),),
        lambda reads: (msgspec.structs.replace(reads[0], name="customer"),),
        lambda reads: (*reads, Read(kind="table", name="customer")),
        lambda reads: (*reads, Read(kind="source", name="warehouse")),
        lambda reads: (msgspec.structs.replace(reads[0], columns=("more",)), *reads),
    ],
    ids=[
        "nothing",
        "another digest",
        "no digest",
        "no columns",
        "another table",
        "one more",
        "a source",
        "twice",
    ],
)
def test_a_manifest_that_hides_or_invents_reads_is_refused(payments_release, lie):
    """What the features read decides; a manifest that lists something else is not loaded, whoever signed it."""
    reads = read_bundle(payments_release).manifest.reads
    with pytest.raises(ManifestError, match="do not agree on what is read"):
        ri.Scorer.load(resealed(payments_release, reads=lie(reads)), store=payment_store(), trust="unsigned")


def test_another_owner_in_the_manifest_changes_nothing(payments_release):
    """People change; a release does not stop answering because of it."""
    (read,) = read_bundle(payments_release).manifest.reads
    files = resealed(payments_release, reads=(msgspec.structs.replace(read, owner="somebody"),))
    with ri.Scorer.load(files, store=payment_store(), trust="unsigned") as scorer:
        assert scorer.score(PAYMENT).action


# ---- access ------------------------------------------------------------------------------------------------------------


def store_of(**access: Any) -> ri.Store:
    """The store of the payments with rules."""
    return ri.Store(
        tables={"card": payment_store()["card"]},
        access={("*" if k == "any" else k): v for k, v in access.items()},
    )


@pytest.mark.parametrize("readers", [("payments",), ("pay*",), ("fraud", "*"), ("*ment*",), ("p*y*s",)])
def test_who_is_named_may_read(payments_release, readers):
    """A name, or a pattern that matches the whole of it."""
    store = store_of(card=ri.Access(readers=readers))
    with ri.Scorer.load(payments_release, store=store, trust="unsigned") as scorer:
        assert scorer.score(PAYMENT).action


@pytest.mark.parametrize(
    "readers", [(), ("payment",), ("fraud-*",), ("*x",), ("payments-*",), ("s*",), ("p.yments",)]
)
def test_who_is_not_named_may_not(payments_release, readers):
    """Nothing else is enough, and the error says what, who, whose and what to do."""
    store = store_of(card=ri.Access(readers=readers, owner="cards team"))
    with pytest.raises(AccessError) as caught:
        ri.Scorer.load(payments_release, store=store, trust="unsigned")
    text = str(caught.value)
    release = read_bundle(payments_release).manifest.release
    assert f"release `{release}` may not read table `card` (mean_amount): it is cards team's" in text
    assert all(f"`{one}`" in text for one in readers)
    assert "ask cards team to add `payments`" in text


def test_aliases_are_closed_with_their_entity(folder):
    """They would tell in a trace under which key somebody goes; also a release that only names the entity looks them up."""
    spec = ri.FeatureSpec(
        request={"card_id": str, "amount": float},
        entities={"card": ri.Entity("card_id")},
        columns=[c.numeric("amount")],
    )
    rows = payments(20).select(["card_id", "amount"])
    spec = spec.fit(rows)
    release = folder / "names"
    ri.pack("names", model=logistic(1), features=spec, golden=rows, out=release)
    assert reads_of(release) == {}

    def loaded(readers):
        store = ri.Store(aliases=["card"], access={"card": ri.Access(readers=readers, owner="identity team")})
        store.aliases("card").link("guest", into="c1")
        return ri.Scorer.load(release, store=store, trust="unsigned")

    with pytest.raises(AccessError, match="may not read the aliases of `card`: it is identity team's"):
        loaded(("fraud",))
    with loaded(("names",)) as scorer:
        assert "card: guest -> c1" in scorer.score({"card_id": "guest", "amount": 1.0}).trace


def test_star_closes_what_is_not_named(payments_release):
    """A rule for everything else, which a rule of its own goes before."""
    with pytest.raises(AccessError, match="readers are nobody"):
        ri.Scorer.load(payments_release, store=store_of(any=ri.Access()), trust="unsigned")
    store = store_of(any=ri.Access(), card=ri.Access(readers=("payments",)))
    ri.Scorer.load(payments_release, store=store, trust="unsigned").close()


def test_windows_are_closed_by_their_stream(windows_release):
    """Who may not read a stream may not read what is counted of it."""
    closed = windows_store(access={"chargeback": ri.Access(readers=("risk-*",))})
    with pytest.raises(
        AccessError, match="may not read the windows over stream `chargeback` \\(card_id, loss\\)"
    ):
        ri.Scorer.load(windows_release, store=closed, trust="unsigned")
    opened = windows_store(access={"chargeback": ri.Access(readers=("windows",))})
    ri.Scorer.load(windows_release, store=opened, trust="unsigned").close()


def test_a_ranker_is_asked_for_its_candidates(folder):
    """The table of the candidates is a table."""
    release = pack_ranking(folder / "again")
    tables = {
        "user": ri.Snapshot.from_rows({"u1": {"spend": 3.0}}),
        "item": ri.Snapshot.from_rows({"s1": {"price": 3.0}, "s2": {"price": 1.0}}),
    }
    with pytest.raises(AccessError, match="table `item`"):
        ri.Ranker.load(
            release,
            store=ri.Store(tables=tables, access={"item": ri.Access(readers=("search",))}),
            trust="unsigned",
        )


def test_the_rung_below_is_asked_too(payments_release, tmp_path):
    """`previous=` answers out of the same store, so it may not read more than the release above it."""
    other = pack_payments(tmp_path, info={"version": "old"})
    contract = {"ladder": [{"kind": "previous"}]}
    renamed = resealed(other, name="legacy")
    store = store_of(card=ri.Access(readers=("payments",)))
    with pytest.raises(AccessError, match="release `legacy:old` may not read table `card`"):
        ri.Scorer.load(payments_release, store=store, trust="unsigned", previous=renamed, contract=contract)


def test_nothing_is_opened_before_the_store_was_asked(payments_release, monkeypatch):
    """A release that may not read is refused before a model of it is parsed."""
    from retailinfer import pipeline

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(pipeline, "open_session", refuse)
    monkeypatch.setattr(pipeline, "_open_trees", refuse)
    with pytest.raises(AccessError):
        ri.Scorer.load(payments_release, store=store_of(card=ri.Access()), trust="unsigned")


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ({"crad": ri.Access(readers=("fraud",))}, "names 'crad', and the store has no such table"),
        ({"card": ("fraud",)}, "Expected an ri.Access for 'card'"),
        ({"card": ri.Access(readers="fraud")}, "Expected names of releases"),
        ({"card": ri.Access(readers=("Fraud",))}, "Expected names of releases"),
        ({"card": ri.Access(readers=("fra?d",))}, "Expected names of releases"),
        ({"card": ri.Access(readers=("fraud[a]",))}, "Expected names of releases"),
        ({"card": ri.Access(readers=("",))}, "Expected names of releases"),
        ({"card": ri.Access(readers=(7,))}, "Expected names of releases"),
        (["card"], "Expected access= as"),
    ],
)
def test_rules_that_protect_nothing_are_refused(access, message):
    """A typing mistake in a rule must not leave a table open."""
    with pytest.raises(ConfigError, match=message):
        ri.Store(tables={"card": payment_store()["card"]}, access=access)


def test_a_store_without_rules_is_open(payments_release):
    """And costs nothing to ask."""
    assert payment_store().access == {}
    ri.Scorer.load(payments_release, store=payment_store(), trust="unsigned").close()


# ---- tools -------------------------------------------------------------------------------------------------------------


def test_inspect_shows_what_is_read(windows_release, capsys):
    """For people a table, for machines the manifest's own list."""
    assert main(["inspect", str(windows_release)]) == 0
    out = capsys.readouterr().out
    _, _, told = out.partition("What it reads\n")
    lines = [line.split() for line in told.splitlines()]
    assert lines[0] == ["kind", "name", "owner", "columns", "definition"]
    digest = reads_of(windows_release)["window", "lost"].digest or ""
    assert ["window", "lost", "risk", "loss", digest[:12]] in lines
    assert main(["inspect", str(windows_release), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["manifest"]["reads"]
    assert {(one["kind"], one["name"]) for one in listed} == set(reads_of(windows_release))


def test_diff_shows_what_is_read_now(payments_release, windows_release, tmp_path):
    """What came, and whose it is; an owner alone decides no answer."""
    found = {
        one.what: one for one in diff(payments_release, windows_release).changes if one.part == "lineage"
    }
    assert (found["stream chargeback"].before, found["stream chargeback"].after) == (None, "read")
    assert found["table card: owner"].after == "cards team"
    assert (
        found["window lost: definition"].after
        == (reads_of(windows_release)["window", "lost"].digest or "")[:12]
    )
    owned = pack_payments(tmp_path, info={"owners": {"card": "cards team"}})
    compared = diff(payments_release, owned)
    assert [one.what for one in compared.changes if one.part == "lineage"] == ["table card: owner"]
    assert compared.same


def test_a_check_warns_of_other_sources(payments_release, tmp_path):
    """A source that is new, or defined otherwise, is for whoever approves to know."""

    def packed(name: str, source: ri.Source) -> Path:
        entities = {"card": ri.Entity(("card_id",), source=source)}
        spec = ri.FeatureSpec.from_body(msgspec.structs.replace(payment_spec().body, entities=entities))
        return pack_payments(tmp_path / name, features=spec)

    daily, hourly = packed("daily", DAILY), packed("hourly", ri.Source.defined(DAILY.name, QUERY.lower()))
    notes = ri.check(daily, against=payments_release, store=payment_store(), seconds=0.01)["schema"].notes
    assert notes == [
        "it reads the source `warehouse.cards_daily` of data platform, which the other release does not"
    ]
    notes = ri.check(hourly, against=daily, store=payment_store(), seconds=0.01)["schema"].notes
    assert notes == ["the source `warehouse.cards_daily` is defined otherwise now"]


def test_a_spec_that_was_fitted_keeps_its_people():
    """`fit` returns a new spec; who answers for a table stays."""
    spec = window_spec().body
    people = msgspec.structs.replace(
        spec, entities={"card": ri.Entity(("card_id",), owner="cards team", source=DAILY)}
    )
    assert ri.FeatureSpec.from_body(people).body.entities["card"].owner == "cards team"
    fitted = owned_spec().fit(payments().append_column("recent", payments().column("amount")))
    assert fitted.body.entities["card"].source == DAILY
    assert fitted.body.streams["payment"].owner == "checkout"
