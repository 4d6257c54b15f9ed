"""The report of the checks before a release: what was looked at, with figures and bounds, and whether it may be approved.

Rules:
  * A report speaks of one release, by digest. Whoever approves on its ground has the report's own bytes hashed.
  * It has one encoding (JSON). The page for people carries the same JSON inside, so that either can be handed over.
Who fills it: `authoring.check`. Who asks for it: `Registry.approve`, `authoring.signing.approve`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from retailinfer.errors import ConfigError, clip
from retailinfer.release.manifest import Digest, Short, Text

__all__ = [
    "MAX_REPORT_BYTES",
    "Chart",
    "Check",
    "CheckReport",
    "decode_report",
    "encode_report",
    "passing_report",
    "read_report",
]

FORMAT = 1
MAX_REPORT_BYTES = 16 << 20
PAGE_BEGINS = b'<script type="application/json" id="report">'
PAGE_ENDS = b"</script>"

State = Literal["passed", "warned", "failed", "not applicable"]


class Chart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers for a picture. `series`: name -> one value a label; `line`: a bound to draw, where there is one."""

    title: Short
    labels: list[str]
    series: dict[Short, list[float]]
    line: float | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check.

    Attributes:
        text: what was found, in a line. notes: what bears on it, one line each.
        figures: name -> what was measured. bounds: name of a figure -> (warns, fails); None = no bound of that kind.
    """

    name: Short
    state: State
    text: Text
    notes: list[str] = []
    figures: dict[str, Any] = {}
    bounds: dict[str, tuple[float | None, float | None]] = {}
    charts: list[Chart] = []


class CheckReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found out about a release before it answers.

    Attributes:
        release, digest: of it. against, against_digest: the release that it was compared with.
        made: the moment (UTC). cpu, onnxruntime: where.
        rows: how many were scored; 0 = none were given.
        allowed: checks whose failure was said to be intended beforehand; it is told, and does not stop the release.
    """

    format: int = FORMAT
    release: Short
    digest: Digest
    against: Short | None = None
    against_digest: Digest | None = None
    made: Annotated[str, Meta(max_length=32)]
    cpu: Short
    onnxruntime: Short
    rows: int = 0
    allowed: tuple[str, ...] = ()
    checks: list[Check]

    @property
    def failed(self) -> tuple[str, ...]:
        """Checks that failed and were not allowed to."""
        return tuple(
            one.name for one in self.checks if one.state == "failed" and one.name not in self.allowed
        )

    @property
    def passed(self) -> bool:
        """Nothing failed that was not allowed to, and something was looked at."""
        return not self.failed and any(one.state != "not applicable" for one in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of a name. Raises: KeyError."""
        for one in self.checks:
            if one.name == name:
                return one
        raise KeyError(name)

    def to_json(self) -> bytes:
        """The report for machines and for approvals."""
        return encode_report(self)


def encode_report(report: CheckReport) -> bytes:
    """The one encoding of a report."""
    return msgspec.json.encode(report, order="deterministic")


def decode_report(data: bytes) -> CheckReport:
    """A report out of its JSON, or out of the page that was made of it. Raises: ConfigError."""
    if len(data) > MAX_REPORT_BYTES:
        raise ConfigError(f"Expected a report of at most {MAX_REPORT_BYTES} bytes, got {len(data)}")
    content = data
    if data.lstrip()[:1] == b"<":
        _, begins, rest = data.partition(PAGE_BEGINS)
        content, ends, _ = rest.partition(PAGE_ENDS)
        if not begins or not ends:
            raise ConfigError("the page is no report of checks", hint="`retailinfer check --html` makes one")
    try:
        report = msgspec.json.decode(content, type=CheckReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(
            f"this is no report of checks: {clip(str(exc), 200)}",
            hint="`retailinfer check RELEASE --report FILE` makes one",
        ) from exc
    if report.format != FORMAT:
        raise ConfigError(
            f"Expected a report of format {FORMAT}, got {report.format}",
            hint="check the release again with this version",
        )
    return report


def read_report(given: bytes | str | os.PathLike[str]) -> bytes:
    """The bytes of a report, or of its file. Raises: ConfigError."""
    if isinstance(given, bytes):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"Expected report= as bytes or as a path, got `{type(given).__name__}`")
    try:
        with Path(given).open("rb") as file:
            return file.read(MAX_REPORT_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot read the report {clip(os.fspath(given), 200)}: {getattr(exc, 'strerror', None) or exc}",
            hint="`retailinfer check RELEASE --report FILE` makes one",
        ) from exc


def passing_report(data: bytes, digest: str, what: str) -> CheckReport:
    """The report, if it lets this release pass. Raises: ConfigError for one of another release, and for one that failed.

    Args:
        what: the release, for messages.
    """
    report = decode_report(data)
    if report.digest != digest:
        raise ConfigError(
            f"the report is about {report.release} `{report.digest[:12]}...`, not about {what} `{digest[:12]}...`",
            hint="check this release",
        )
    if not report.passed:
        failed = ", ".join(report.failed) or "nothing was looked at"
        raise ConfigError(
            f"the report does not let {what} pass: {failed}",
            hint="mend it, or check again with allow= for what is intended",
        )
    return report
