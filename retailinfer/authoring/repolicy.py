"""repolicy: a release that answers differently by its policy alone. Its models, features and golden rows stay what they are.

Rules:
  * Every file but policy.json is the base's, byte for byte; in golden.msgpack the actions alone are others, decided anew by
    the new policy from the recorded scores. The manifest says whose it is (`policy_of`), and nothing else of it changes but
    what speaks of the policy and what only people know.
  * Before anything is written the new release is built and its golden rows are replayed, as loading does it.
It is signed, checked, approved and promoted like every other release. A follower that runs its base shares the models with it
(`Pipeline.with_policy`).
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.authoring.describe import envelope_of, thresholds_of
from retailinfer.authoring.golden import actions_of, segments_of
from retailinfer.authoring.loading import build
from retailinfer.errors import ConfigError, ManifestError, clip
from retailinfer.features.canonical import Columns
from retailinfer.features.program import slot_names
from retailinfer.features.spec import FeatureSpec
from retailinfer.policy import Policy
from retailinfer.release.bundle import Bundle, read_bundle, write_bundle
from retailinfer.release.golden import Golden, decode_golden, encode_golden
from retailinfer.release.manifest import FileEntry, Info, Manifest, PolicyOf, check_name, seal, sha256_hex

if TYPE_CHECKING:
    from retailinfer.release.trust_files import Trust

__all__ = ["golden_beside", "repolicy"]

MAX_FALLBACKS = 64  # as manifests have them


def repolicy(
    release: str | os.PathLike[str] | Mapping[str, bytes],
    *,
    policy: Policy,
    version: str,
    out: str | os.PathLike[str],
    info: Info | Mapping[str, Any] | None = None,
    trust: Trust | None = None,
) -> Manifest:
    """Make a release that differs from another one in its policy alone: thresholds, segments, envelopes, reasons.

    Args:
        release: the one that it is based on: a directory, or files by name.
        policy: the new one. version: of the new release.
        out: directory of the new release; it appears whole or not at all.
        info: what only people know, see `retailinfer.release.manifest.Info`; what is left out stays as the base has it. The
            base may answer in its place (`fallbacks`), unless this says otherwise.
        trust: whom to believe about the base; None reads it as unsigned.
    Returns: the manifest. Raises: ConfigError for a release without decisions, one of the same version, or a policy that says
        nothing new; SpecError where the ladder or the fallback contradicts the policy; SchemaMismatchError for a segment or a
        reason that the features do not have; BundleError.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"Expected policy= as ri.Policy, got `{type(policy).__name__}`")
    base = read_bundle(release, trust=trust)
    manifest = base.manifest
    spec = base.read("features", FeatureSpec.from_json)
    if spec is None or spec.arrays or manifest.score is None:
        raise ConfigError(
            f"{manifest.release} takes arrays and decides nothing: it has no use for a policy",
            hint="pack it with features= and a score",
        )
    _check_new(base, policy, version)
    files = {
        entry.file: (entry.role, base.files[entry.file])
        for entry in manifest.files
        if entry.role not in ("policy", "golden")
    }
    files["policy.json"] = ("policy", policy.to_json())
    golden = base.read("golden", decode_golden)
    if golden is not None:
        segments = segments_of(policy, _columns(golden, spec))
        decided = actions_of(policy, golden.score_values(), segments)
        name = manifest.file_of("golden") or "golden.msgpack"
        files[name] = ("golden", encode_golden(msgspec.structs.replace(golden, actions=decided)))
    new = msgspec.structs.replace(
        manifest,
        version=version,
        created=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        files=(),
        thresholds=thresholds_of(policy),
        envelope=envelope_of(policy),
        policy_of=PolicyOf(name=manifest.name, version=manifest.version, digest=manifest.digest),
        info=_info(manifest, info, version),
    )
    _replay(new, files)
    return write_bundle(out, files, new)


def golden_beside(base: Bundle, release: Bundle) -> str | None:
    """What differs between the golden rows of two releases beside the actions; None = nothing."""
    rows = [one.read("golden", decode_golden) for one in (base, release)]
    if rows[0] is None or rows[1] is None:
        return None if rows[0] is rows[1] else "one of them has no golden rows"
    for field in Golden.__struct_fields__:
        if field != "actions" and getattr(rows[0], field) != getattr(rows[1], field):
            return f"`{field}` of the golden rows"
    return None


def _check_new(base: Bundle, policy: Policy, version: str) -> None:
    """Raises: ConfigError."""
    try:
        check_name("version", version)
    except ManifestError as exc:
        raise ConfigError(str(exc)) from exc
    if version == base.manifest.version:
        raise ConfigError(
            f"Expected another version than {clip(version)}, which the base has", hint="such as 1.2-review"
        )
    before = base.read("policy", Policy.from_json)
    if before is not None and before.to_json() == policy.to_json():
        raise ConfigError(
            f"the policy is the one that {base.manifest.release} has: there is nothing to release"
        )


def _columns(golden: Golden, spec: FeatureSpec) -> Columns:
    slots = slot_names(spec.body)
    return Columns.of_slots(golden.n_rows, slots, golden.canonical(slots))


def _info(base: Manifest, given: Info | Mapping[str, Any] | None, version: str) -> Info:
    asked = {} if given is None else given
    if isinstance(asked, Info):
        asked = msgspec.to_builtins(asked)  # fields that say nothing are not in it
    kept = msgspec.to_builtins(base.info)
    fallbacks = list(dict.fromkeys((base.digest, *base.info.fallbacks)))[:MAX_FALLBACKS]
    try:
        return msgspec.convert({**kept, "fallbacks": fallbacks, **asked, "version": version}, Info)
    except (msgspec.ValidationError, TypeError) as exc:
        raise ConfigError(
            f"info= does not fit: {exc}", hint=f"its fields are {', '.join(Info.__struct_fields__)}"
        ) from exc


def _replay(manifest: Manifest, files: Mapping[str, tuple[str, bytes]]) -> None:
    """Build it as a host would, with stand-ins for its tables. Raises: BundleError, SpecError."""
    entries = tuple(
        FileEntry(role=role, file=name, size=len(data), sha256=sha256_hex(data))
        for name, (role, data) in sorted(files.items())
    )
    sealed = seal(msgspec.structs.replace(manifest, files=entries))
    build(Bundle(sealed, {name: data for name, (_, data) in files.items()}, "memory")).door.close()
