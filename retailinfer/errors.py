"""Every exception of retailinfer, by who has to act.

RetailInferError
├── CallerError                 the request, the spec or the settings are wrong: mend the call
│   ├── RequestError            bytes that are no request (HTTP 400) or not the declared one (422)
│   ├── LimitError              too many bytes, levels, rows (HTTP 413)
│   ├── FeatureError            a value does not fit its declaration (HTTP 422)
│   │   ├── FeatureTypeError    another type than declared
│   │   ├── FeatureRangeError   the right type, but NaN, infinite, too large, out of the vocabulary
│   │   ├── FeatureMissingError absent where the column says "refuse"
│   │   └── ShapeError          an array of another shape, dtype or byte order
│   ├── SpecError               the feature spec contradicts itself, or is not fitted
│   └── ConfigError             settings, keyword arguments, an extra that is not installed
├── BundleError                 the release cannot be trusted or used: nothing was loaded
│   ├── ManifestError           the manifest is not one, or names what it must not
│   ├── IntegrityError          bytes differ from what the manifest says
│   ├── ModelError              the model cannot be read, or uses what is refused
│   ├── SignatureError          nobody signed it who may, or what was signed was changed
│   ├── TrustError              signed, and not for here or now: name, environment, expired, revoked
│   ├── RollbackError           older than what this host has accepted already
│   ├── AccessError             it reads a table or a stream that the store keeps from it
│   ├── SchemaMismatchError     model, spec and policy do not fit each other
│   └── GoldenMismatchError     the golden rows gave other scores than recorded
├── RegistryError               the registry could not do it: out of reach, held, no such release
│   └── ConflictError           somebody else was faster: look again, decide again
└── ServingError                this call could not finish: degrade, retry elsewhere, alert
    ├── SessionError            the inference engine failed
    ├── ScoreError              the model gave a score that is NaN, infinite or out of its declared range
    ├── DeadlineExceededError   no time left
    ├── OverloadedError         more calls at once than this process takes
    ├── RemoteError             the remote model did not answer, or not as agreed
    ├── RevokedError            the release was revoked while it ran, and is told not to answer
    ├── SwapError               another release was not put in place: the one before serves on
    └── Unavailable             no rung of the ladder could answer

Rules:
  * A message says: what was expected, what came, where (`$.path`), and what to do. It is built only on failure.
  * Values are clipped to 40 characters. No message carries more of a request than the one value that is wrong.
  * `http_status` is the status an HTTP adapter should answer with.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "BundleError",
    "CallerError",
    "ConfigError",
    "ConflictError",
    "DeadlineExceededError",
    "FeatureError",
    "FeatureMissingError",
    "FeatureRangeError",
    "FeatureTypeError",
    "GoldenMismatchError",
    "IntegrityError",
    "LimitError",
    "ManifestError",
    "ModelError",
    "OverloadedError",
    "RegistryError",
    "RemoteError",
    "RequestError",
    "RetailInferError",
    "RevokedError",
    "RollbackError",
    "SchemaMismatchError",
    "ScoreError",
    "ServingError",
    "SessionError",
    "ShapeError",
    "SignatureError",
    "SpecError",
    "SwapError",
    "TrustError",
    "Unavailable",
    "clip",
]


def clip(value: object, size: int = 40) -> str:
    """`repr` of a value, at most `size` characters long: what an error message may show of it."""
    try:
        if issubclass(type(value), (str, bytes)):  # isinstance would ask the value for its class
            value = value[: size + 1]  # type: ignore[index]  # the repr of a megabyte costs a megabyte
        text = _short(value, size)
    except Exception as exc:  # noqa: BLE001 - a hostile or broken __repr__ must not replace the error being reported
        text = f"<{type(value).__name__}, its repr raised {type(exc).__name__}>"
    return text if len(text) <= size else text[: size - 3] + "..."


_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", dict: "{}", set: "{}"}


def _short(value: object, size: int) -> str:
    """`repr`, but of plain containers no more than is shown: of a megabyte of lists in lists it takes seconds."""
    kind = type(value)
    if kind in (str, bytes):
        return repr(value[: size + 1])  # type: ignore[index]
    if kind not in _BRACKETS or not value:
        return repr(value)
    if size <= 0:
        return "..."
    parts: list[str] = []
    used = 1
    for item in value.items() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
        if used > size:
            break
        if kind is dict:
            key = _short(item[0], size - used)
            parts.append(f"{key}: {_short(item[1], size - used - len(key))}")
        else:
            parts.append(_short(item, size - used))
        used += len(parts[-1]) + 2
    comma = "," if kind is tuple and len(parts) == 1 else ""
    return f"{_BRACKETS[kind][0]}{', '.join(parts)}{comma}{_BRACKETS[kind][1]}"


class RetailInferError(Exception):
    """Base of every error that this library raises on purpose."""

    http_status: int = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}; {hint}")
        self.hint = hint


class CallerError(RetailInferError):
    """The request, the spec or the settings are wrong; the same call fails again."""

    http_status = 400


class RequestError(CallerError):
    """The bytes are not a request of this release: malformed (HTTP 400), or well-formed and of another shape (HTTP 422)."""

    def __init__(self, message: str, *, malformed: bool = True, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.http_status = 400 if malformed else 422


class LimitError(CallerError):
    """A limit of the contract or of the decoder was passed, before any work was done."""

    http_status = 413


class FeatureError(CallerError):
    """A value does not fit the declaration of its field. `path` is where it stands, as `$.field`."""

    http_status = 422

    def __init__(self, message: str, *, path: str = "$", hint: str | None = None) -> None:
        super().__init__(f"{message} - at `{path}`", hint=hint)
        self.path = path


class FeatureTypeError(FeatureError):
    """A value has another type than its field declares."""


class FeatureRangeError(FeatureError):
    """A value has the right type but cannot be used: NaN, infinite, too large, not in the vocabulary."""


class FeatureMissingError(FeatureError):
    """A value is absent, null, unknown or stale, and its column says `refuse`."""


class ShapeError(FeatureError):
    """An array has another shape, dtype, byte order or layout than the model takes."""


class SpecError(CallerError):
    """The feature spec contradicts itself, or is used before `fit`."""


class ConfigError(CallerError):
    """A setting or an argument cannot mean anything, or an optional package is not installed."""


class BundleError(RetailInferError):
    """A release cannot be trusted or used. Nothing was loaded; what served before goes on."""


class ManifestError(BundleError):
    """The manifest is missing, malformed, or names files that it must not name."""


class IntegrityError(BundleError):
    """Bytes on disk differ from what the manifest records."""


class SignatureError(BundleError):
    """Nobody signed this who may, or too few did, or what was signed is not what came."""


class TrustError(BundleError):
    """Well signed, and not for here or now: another name or environment, not yet valid, expired, revoked, not approved."""


class RollbackError(BundleError):
    """Well signed, and older than what this host has accepted already."""


class AccessError(BundleError):
    """It reads a table, or the windows over a stream, that the store keeps from releases of its name."""


class ModelError(BundleError):
    """A model cannot be read, or uses an operator, type or feature that is refused."""


class SchemaMismatchError(BundleError):
    """Model, feature spec, policy or tables do not fit each other."""


class GoldenMismatchError(BundleError):
    """The golden rows gave other tensors, scores or decisions than the release records."""


class RegistryError(RetailInferError):
    """A registry could not do what was asked: it cannot be reached, something is missing, or a rule forbids it."""

    http_status = 503


class ConflictError(RegistryError):
    """Somebody else moved the pointer, or took the version, between the look and the decision. Nothing was lost."""

    http_status = 409


class ServingError(RetailInferError):
    """This call could not finish through no fault of the caller.

    Attributes:
        counted: the request was counted in its windows before the call failed, so that who answers in its place must not
            count it again.
        began_ns: when the call began, of the monotonic clock, where it read it.
    """

    http_status = 503
    counted: bool = False
    began_ns: int | None = None


class SessionError(ServingError):
    """The inference engine reported a failure while it ran."""


class ScoreError(ServingError):
    """The model returned a score that is NaN, infinite, or outside its declared range."""


class DeadlineExceededError(ServingError):
    """The time given to the call is used up, or what is left of it has lately not been enough.

    Attributes:
        late: the answer was there, after the deadline, and was dropped.
    """

    http_status = 504
    late: bool = False


class OverloadedError(ServingError):
    """More calls are under way than this process takes; nothing was done. `retry_after_s`: when to come back, jittered."""

    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RemoteError(ServingError):
    """The remote model did not answer in time, or its reply is not what was agreed.

    Attributes:
        kind: what went wrong, one of a fixed list (docs/remote.md), such as "connect", "timeout" or "malformed".
        retry_after_s: when the other side wants to be asked again; None where it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "failed",
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after_s = retry_after_s


class RevokedError(ServingError):
    """The release was revoked while it ran, and `on_revoked="degrade"` keeps it from answering."""


class SwapError(ServingError):
    """Another release was not put in place, through no fault of its own: the one before serves on."""


class Unavailable(ServingError):  # noqa: N818 - the field's own word for this outcome
    """No rung of the fallback ladder could answer. `tried`: (rung, why it did not), best first; the release itself is one."""

    tried: tuple[tuple[str, str], ...] = ()


class WouldWait(Exception):  # noqa: N818 - no error, and no caller sees it: it says that the call belongs into a thread
    """The answer needs something that is not in memory, and the caller said not to wait. Nothing was counted or added."""
