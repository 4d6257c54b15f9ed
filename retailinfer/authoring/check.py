"""Checks before a release answers: `ri.check(release, against=champion, on=rows)` -> a report that approvals rest on.

Rules:
  * Every check says passed, warned, failed or not applicable, with its figures and the bounds that they were held against.
  * Both releases answer the very same rows. A row that one of them refuses is counted, and compared with nothing.
  * Failures that are intended are named beforehand (`allow`), and stay in the report.
What is looked at: check_requests.py, check_rows.py, check_rankings.py, check_speed.py; the bounds are in check_bounds.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.authoring.check_bounds import bounds_of
from retailinfer.authoring.check_policy import check_policy
from retailinfer.authoring.check_rankings import check_rankings
from retailinfer.authoring.check_requests import check_schema
from retailinfer.authoring.check_rows import Rows, check_data, check_decisions, check_scores, check_season
from retailinfer.authoring.check_speed import check_int8, check_latency, check_memory
from retailinfer.authoring.compare import answers, columns_of_table, refuse_nothing_to_compare
from retailinfer.authoring.loading import Loaded, build
from retailinfer.clock import Clock, SystemClock
from retailinfer.contracts import Contract
from retailinfer.errors import ConfigError, RetailInferError, clip
from retailinfer.features.arrow import as_table
from retailinfer.release.bundle import PathLike, read_bundle
from retailinfer.release.golden import cpu_class
from retailinfer.release.report import Check, CheckReport
from retailinfer.release.statements import moment_text
from retailinfer.runtime.session import onnxruntime_version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.release.trust_files import Trust
    from retailinfer.store.store import Store

__all__ = ["CHECKS", "check"]

CHECKS = (
    "schema",
    "policy",
    "data",
    "scores",
    "ranking",
    "seasonality",
    "decisions",
    "latency",
    "quantisation",
    "memory",
)
Source = PathLike | Mapping[str, bytes]


def check(
    release: Source,
    *,
    against: Source | None = None,
    on: Any = None,
    labels: str | None = None,
    cohorts: Sequence[str] = (),
    positive: Sequence[str] | None = None,
    golden_users: Iterable[Mapping[str, Any]] | PathLike | None = None,
    k: int = 10,
    store: Store | None = None,
    contract: Contract | Mapping[str, Any] | None = None,
    float_model: PathLike | Mapping[str, PathLike] | None = None,
    bounds: Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
    seconds: float = 2.0,
    trust: Trust | None = None,
    clock: Clock | None = None,
) -> CheckReport:
    """Look at a release before it answers.

    Args:
        release, against: directories, or files by name; `against` is the one that answers today.
        on: rows, as for `FeatureSpec.fit`: anything with the Arrow stream interface, with the fields of the request and the
            stored values and windows under their names. What is not there is null, and said.
        labels: a column of the rows: 1 or true = bad (fraud), or what was forecast.
        cohorts: columns of the rows by whose values decisions are looked at.
        positive: actions that a good row must not get; the policy's last one by default.
        golden_users: rankings to compare: {"context": ..., "candidates": [...]}, or a file with one of these a line (JSON).
            They need `store`. Without them, rows with the same context are one ranking. k: how many of the first count.
        store: the tables that both releases read; stand-ins made of golden rows without it.
        contract: instead of the release's own, for the latency.
        float_model: the ONNX file that a quantised release was made from, or role -> file.
        bounds: name -> what fails, or (warns, fails): docs/checks.md has the names.
        allow: checks whose failure is intended.
        seconds: how long calls are timed.
        trust: whom to believe; None reads both as unsigned.
    Raises: BundleError when a release is not whole or does not answer here, ConfigError.
    """
    held, allowed = bounds_of(bounds), tuple(dict.fromkeys(allow))
    for name in allowed:
        if name not in CHECKS:
            raise ConfigError(f"allow has {clip(name)}, expected some of {', '.join(CHECKS)}")
    users = _users(golden_users, store)
    table = None if on is None else as_table(on)
    opened: list[Loaded] = []
    try:
        opened.append(new := build(read_bundle(release, trust=trust), store=store))
        old = None
        if against is not None:
            opened.append(old := build(read_bundle(against, trust=trust), store=store))
        agreed = _contract(new, contract)
        rows, why_not = _rows(new, table)
        before, why_not_before = (None, None) if old is None else _rows(old, table)
        truth = None if labels is None or table is None else _labels(table, labels)
        acts = _positive(new, positive)
        data = check_data(new, rows, why_not, held)
        if why_not_before is not None:
            data.notes.append(f"the other release cannot read the rows: {why_not_before}")
        checks: list[Check] = [
            check_schema(new, old, held),
            check_policy(new, old, held),
            data,
            check_scores(new, rows, before, held),
            check_rankings(new, old, rows, before, users, k=k, bounds=held),
            check_season(new, rows, before, truth, held),
            check_decisions(new, rows, before, labels=truth, cohorts=cohorts, positive=acts, bounds=held),
            check_latency(new, old, agreed, seconds, held),
            check_int8(new, _floats(new, float_model), held),
            check_memory(new, old, held),
        ]
        now_s = (SystemClock() if clock is None else clock).wall_ns() / 1e9
        return CheckReport(
            release=new.bundle.manifest.release,
            digest=new.bundle.manifest.digest,
            against=None if old is None else old.bundle.manifest.release,
            against_digest=None if old is None else old.bundle.manifest.digest,
            made=moment_text(now_s),
            cpu=cpu_class(),
            onnxruntime=onnxruntime_version(new.pipeline.sessions.values()),
            rows=0 if table is None else table.num_rows,
            allowed=allowed,
            checks=checks,
        )
    finally:
        for one in opened:
            one.door.close()


# ---- what callers give -----------------------------------------------------------------------------------------------


def _rows(loaded: Loaded, table: Any) -> tuple[Rows | None, str | None]:
    """The rows with a release's answers, or why it cannot read them."""
    if table is None or table.num_rows == 0 or refuse_nothing_to_compare(loaded.pipeline) is not None:
        return None, None
    try:
        columns, absent = columns_of_table(table, loaded.pipeline)
        return Rows(table, columns, answers(loaded.pipeline, columns, absent=absent)), None
    except RetailInferError as exc:
        return None, str(exc)


def _labels(table: Any, name: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        raise ConfigError(
            f"the rows have no column {clip(name)} with labels",
            hint=f"they have {', '.join(table.column_names)}",
        )
    try:
        values = [np.nan if one is None else float(one) for one in table.column(name).to_pylist()]
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"Expected numbers or booleans as labels in {clip(name)}") from exc
    return np.array(values, np.float64)


def _positive(new: Loaded, given: Sequence[str] | None) -> Sequence[str]:
    policy = new.pipeline.policy
    if policy is None:
        return ()
    if given is None:
        return policy.actions[-1:]
    for action in given:
        if action not in policy.actions:
            raise ConfigError(
                f"positive has {clip(action)}, which the policy does not say",
                hint=f"it says {policy.actions}",
            )
    return tuple(given)


def _contract(new: Loaded, given: Contract | Mapping[str, Any] | None) -> Contract:
    if given is None:
        return new.pipeline.contract
    try:
        return given if isinstance(given, Contract) else msgspec.convert(dict(given), Contract)
    except (msgspec.ValidationError, TypeError) as exc:
        raise ConfigError(f"contract= is no contract: {exc}") from exc


def _users(given: Any, store: Store | None) -> list[Mapping[str, Any]] | None:
    if given is None:
        return None
    if store is None:
        raise ConfigError("golden_users= needs store=, with the tables that both releases read")
    if isinstance(given, (str, os.PathLike)):
        try:
            given = [
                msgspec.json.decode(line) for line in Path(given).read_bytes().splitlines() if line.strip()
            ]
        except (OSError, msgspec.DecodeError) as exc:
            raise ConfigError(f"cannot read golden users from {clip(os.fspath(given), 200)}: {exc}") from exc
    users = list(given)
    for number, one in enumerate(users):
        if not isinstance(one, Mapping) or not {"context", "candidates"} <= one.keys():
            raise ConfigError(
                f'Expected golden users as {{"context": ..., "candidates": [...]}}, got {clip(one)} as number {number}'
            )
    return users


def _floats(new: Loaded, given: PathLike | Mapping[str, PathLike] | None) -> dict[str, bytes]:
    if given is None:
        return {}
    roles = [model.role for model in new.bundle.manifest.models]
    paths = given if isinstance(given, Mapping) else {roles[-1]: given}
    found = {}
    for role, path in paths.items():
        if role not in roles:
            raise ConfigError(f"float_model has the role {clip(role)}, the release has {', '.join(roles)}")
        try:
            found[role] = Path(path).read_bytes()
        except OSError as exc:
            raise ConfigError(f"cannot read {clip(os.fspath(path), 200)}: {exc.strerror}") from exc
    return found
