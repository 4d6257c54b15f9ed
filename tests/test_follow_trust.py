"""What following asks of trust and registry: a kept pointer's grace, newer lists of revocations, a memory, documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from registries import release
from signed_releases import (
    EXPIRES,
    NOW_S,
    digest_of,
    key,
    pointer,
    revoked,
    signed,
    signed_files,
    tiny,
    trust,
    trust_file,
)

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import IntegrityError, ManifestError, RollbackError, SignatureError, TrustError
from retailinfer.release.statements import encode_statement, seconds_of
from retailinfer.release.trust import Role, encode_trust

SECURITY = Role(keys=("security",))


def accepted(path, **changes):
    """A host that has accepted pointer 3 and loaded what it names."""
    host = trust(state=path, **changes)
    document = signed(pointer(3), "ops")
    host.remember("fraud", digest_of(tiny()), host.check_pointer(document, "fraud"))
    return document


@pytest.mark.parametrize(("after_s", "starts"), [(0, True), (71 * 3600, True), (73 * 3600, False)])
def test_a_kept_pointer_has_the_grace_of_a_release(tmp_path, after_s, starts):
    """72 hours by default: the host starts again while its registry is out of reach; a registry's pointer has none."""
    document = accepted(tmp_path / "state.json")
    late = trust(now_s=seconds_of(EXPIRES) + after_s, state=tmp_path / "state.json")
    with pytest.raises(TrustError, match="expired"):
        late.check_pointer(document, "fraud")
    if starts:
        assert late.check_pointer(document, "fraud", kept=True).pointer.seq == 3
    else:
        with pytest.raises(TrustError, match="expired"):
            late.check_pointer(document, "fraud", kept=True)


def test_the_grace_is_a_setting(tmp_path):
    """Of the trust file, as for releases."""
    document = accepted(tmp_path / "state.json")
    now_s = seconds_of(EXPIRES) + 3600
    strict = trust(now_s=now_s, state=tmp_path / "state.json", grace_hours=0.5)
    with pytest.raises(TrustError, match="expired"):
        strict.check_pointer(document, "fraud", kept=True)
    generous = trust(now_s=now_s, state=tmp_path / "state.json", grace_hours=1.5)
    assert generous.check_pointer(document, "fraud", kept=True).pointer.seq == 3


def test_only_the_accepted_pointer_has_a_grace(tmp_path):
    """Another one that has expired, and what was kept by somebody who remembers nothing, has none."""
    accepted(tmp_path / "state.json")
    late_s = seconds_of(EXPIRES) + 60
    late = trust(now_s=late_s, state=tmp_path / "state.json")
    with pytest.raises(TrustError, match="expired"):
        late.check_pointer(signed(pointer(4), "ops"), "fraud", kept=True)
    with pytest.raises(RollbackError):
        late.check_pointer(signed(pointer(2), "ops"), "fraud", kept=True)
    with pytest.raises(TrustError, match="expired"):
        trust(now_s=late_s).check_pointer(signed(pointer(3), "ops"), "fraud", kept=True)


def test_a_kept_pointer_to_a_revoked_release_is_refused(tmp_path):
    """Starting is fail-closed, also from the host's own disk."""
    document = accepted(tmp_path / "state.json", revocation=SECURITY, revocations=revoked())
    host = trust(
        state=tmp_path / "state.json",
        revocation=SECURITY,
        revocations=revoked(2, releases={digest_of(tiny()): "leaks"}),
    )
    with pytest.raises(TrustError, match="revoked"):
        host.check_pointer(document, "fraud", kept=True)


def a_host(folder: Path, **changes):
    """A trust file on disk with its list of revocations beside it."""
    (folder / "trust.json").write_bytes(encode_trust(trust_file(revocation=SECURITY)))
    clock = ManualClock(wall_ns=NOW_S * 10**9)
    return ri.Trust(folder / "trust.json", clock=clock, **changes)


def test_a_newer_list_of_revocations_is_found(tmp_path):
    """Where the old one stood; the same one again is no news, an older one is refused and the newest counts on."""
    (tmp_path / "revocations.sig").write_bytes(revoked(2))
    host = a_host(tmp_path)
    assert host.rules.revoked_because(digest_of(tiny())) is None
    host.look_again()
    assert not host.look_again()
    (tmp_path / "revocations.sig").write_bytes(revoked(3, releases={digest_of(tiny()): "leaks"}))
    assert host.look_again()
    assert host.rules.revoked_because(digest_of(tiny())) == "leaks"
    (tmp_path / "revocations.sig").write_bytes(revoked(2))
    with pytest.raises(RollbackError):
        host.look_again()
    (tmp_path / "revocations.sig").write_bytes(b"{}")
    with pytest.raises((SignatureError, ManifestError)):
        host.look_again()
    (tmp_path / "revocations.sig").unlink()
    assert not host.look_again()
    assert host.rules.revoked_because(digest_of(tiny())) == "leaks"


def test_a_list_that_came_as_bytes_is_not_looked_for():
    """There is no place where another could appear."""
    host = trust(revocation=SECURITY, revocations=revoked())
    assert not host.look_again()
    assert not trust().look_again()


def test_a_memory_is_given_once(tmp_path):
    """Who has one keeps it."""
    host = trust()
    host.remember_in(tmp_path / "a.json")
    host.remember_in(tmp_path / "b.json")
    host.remember("fraud", digest_of(tiny()))
    assert [path.name for path in tmp_path.glob("*.json")] == ["a.json"]


def test_the_document_of_the_pointer_in_force(tmp_path):
    """As the registry has it, so that a host can keep it and open it again."""
    registry = ri.Registry(tmp_path, trust="unsigned", who="anna")
    assert registry.in_force("fraud") is None
    registry.publish(release("1.0"))
    made = registry.promote("fraud:1.0", why="first")
    found = registry.in_force("fraud")
    assert (found.pointer, found.document, found.verdict) == (made, encode_statement(made), None)
    assert registry.opened("fraud", found.document) == found
    with pytest.raises(IntegrityError, match="other"):
        registry.opened("other", found.document)
    with pytest.raises(ManifestError):
        registry.opened("fraud", found.document[:-1])


def test_a_signed_document_is_opened_by_its_signature(tmp_path):
    """By keys that may move pointers; nothing else is parsed."""
    clock = ManualClock(wall_ns=NOW_S * 10**9)
    host = trust()
    registry = ri.Registry(tmp_path, trust=host, keys=[key("ops")], who="anna", clock=clock)
    registry.publish(signed_files())
    made = registry.promote("fraud:1.0", why="first")
    found = registry.in_force("fraud")
    assert found.pointer == made
    assert found.verdict.signed_by == ("ops",)
    assert registry.opened("fraud", found.document).pointer == made
    with pytest.raises(SignatureError):
        registry.opened("fraud", signed(made, "ci"))
    with pytest.raises((SignatureError, ManifestError)):
        registry.opened("fraud", encode_statement(made))
