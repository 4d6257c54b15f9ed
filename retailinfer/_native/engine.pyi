"""The engine of one release, as `pipeline` builds it and the front doors call it. Users never see it.

Durations are nanoseconds unless a name says otherwise; `now_ns` is ns since the epoch, 0 = the clock's own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.admission import Permits, StageClock
from retailinfer._native.ort import OrtModel
from retailinfer._native.program import Program, RequestReader
from retailinfer._native.reasons import ForestReasons
from retailinfer._native.resolve import Resolver
from retailinfer._native.table import SnapshotTable, TableSlot
from retailinfer._native.trees import TreeModel

def new_id_prefix() -> None:
    """Draw this process's prefix of answer ids; runs at the first answer and in every forked child."""

@final
class Bound:
    """An entity's plan fitted to one generation of its table. Raises: SchemaMismatchError."""

    table: SnapshotTable
    def __init__(self, plan: EntityPlan, table: SnapshotTable) -> None: ...

@final
class EntityPlan:
    """How the stored columns of one entity get into slots.

    Args:
        slot: where the store points. section: 0 = the context alone has the key, 1 = the candidate alone, 2 = both.
        keys: slots of the key's parts. wanted: slots of the stored columns; columns: their names in the table;
            kinds: the type names that the spec wants.
    Raises: SchemaMismatchError when the table lacks a column or has it in another type.
    """

    name: str
    slot: TableSlot
    section: int
    def __init__(
        self,
        name: str,
        slot: TableSlot,
        section: int,
        keys: tuple[int, ...],
        wanted: tuple[int, ...],
        columns: tuple[str, ...],
        kinds: tuple[str, ...],
    ) -> None: ...

@final
class Workspace:
    """Memory of one call: slots, one tile of tensors (512 rows), scores. Pooled by the engine."""

@final
class Available:
    """Compiled `available=`: (column, operator number, constant) terms joined by `and`; a null cell does not hold."""

    text: str
    def __init__(self, plan: EntityPlan | None, text: str, terms: list[tuple[str, int, float]]) -> None: ...

@final
class Occlusion:
    """Groups of cells that are taken away, one after the other, to see what a score loses.

    Args:
        names: one object a group. most: of them in an answer.
        blanks: (group, tensor number, of its mask, first cell, cells).
        tensors: by number the background's row, shape (cells,); masks: of its mask, None without one.
    """

    names: tuple[Any, ...]
    most: int
    def __init__(
        self,
        program: Program,
        *,
        names: tuple[Any, ...],
        most: int,
        blanks: Sequence[tuple[int, int, bool, int, int]],
        tensors: Sequence[NDArray[Any]],
        masks: Sequence[NDArray[Any] | None],
    ) -> None: ...

@final
class Prepared:
    """One request as models elsewhere take it, and what a decision about it says beside their score.

    Attributes:
        request: as it was given. inputs: arrays with one row each, in the order of the models' inputs.
        stale, missing, trace: as in a decision. fresh: no value is stale or unavailable.
        review: a column sends it to review. counted: the request was counted in its windows.
    """

    request: Any
    inputs: list[NDArray[Any]]
    stale: tuple[str, ...]
    missing: tuple[str, ...]
    fresh: bool
    review: bool
    segment: tuple[int, int] | None
    trace: tuple[str, ...]
    counted: bool

@final
class Engine:
    """One release, ready to answer. Safe to call from many threads, coroutines and greenlets.

    Args:
        model: a session over the C API with its score selected; None: `session` is called with one array per input.
        trees: instead of `model`: a forest over the one tensor; `tree_column` of its answer is the score.
        inputs: (is mask, tensor number, shape of a row) per model input.
        bands: (action, lowest score) of the common bands, then of each segment; segments: value -> (first band, number).
        sections: {"columns": "context" | "item" | "cross" per column}.
        decode, encode: bytes <-> Struct. max_bytes, max_depth: of an encoded request.
        row_independent: False runs rows one by one.
        score_low, score_high: a score outside is a ScoreError.
        hold_below_us: native work that is predicted to be shorter keeps the GIL.
        resolver: mutable tables, windows and aliases; None where snapshots are all there is.
        budget_ns: of a call that brings none: how long it may wait for sources and round trips.
        reasons: of the forest; occlusion: of any other model. Without either, decisions have none and nothing is worked out.
            Occlusion runs one row more for each group; where the call's budget has less time left than that, the answer has
            no reasons.
        is_system_clock: `clock` is the machine's clock, which is then read without Python.
        permits: how many calls may be under way; None: any number. event_type: of events about answers, for `set_hook`.
    `began_ns` of a call: on the clock's monotonic time, when its caller asked, where it stood in a queue since; 0 = now.
    `budget_ns` of a call, 0 = that one: less than what 99 of 100 such calls took lately, waiting apart, is a
    DeadlineExceededError before any work (but for every 32nd such call), and an answer after it is one with `late` set.
    priority: of the call, for its permit, which is given back while it waits. Where it may not wait, what is missing is
    unavailable. Raises: OverloadedError. An error after the request was counted in its windows has `counted` set.
    observe: count the request as an event, `event_id` its id (ConfigError where nothing
    counts it); may_wait: False raises WouldWait, before anything is counted, instead of waiting.
    """

    program: Program
    reader: RequestReader
    model: OrtModel | None
    trees: TreeModel | None
    session: Any
    release: str
    arm: str
    hold_below_us: float
    fixed_us: float
    row_us: float
    tile: int
    reasons: ForestReasons | None
    occlusion: Occlusion | None
    most: int
    rows_each: int
    has_clock: bool
    max_rows: int
    resolver: Resolver | None
    n_answers: int
    n_fresh: int
    permits: Permits | None
    run_clock: StageClock
    wait_clock: StageClock
    whole_clock: StageClock
    n_short: int
    n_refused_time: int
    n_late: int
    hook: Callable[[Any], object] | None
    n_hook_failures: int
    def __init__(
        self,
        *,
        program: Program,
        reader: RequestReader,
        model: OrtModel | None = None,
        session: Callable[[list[NDArray[Any]]], NDArray[np.float32]] | None = None,
        trees: TreeModel | None = None,
        tree_column: int = 0,
        inputs: tuple[tuple[bool, int, tuple[int, ...]], ...],
        bands: tuple[tuple[str, float], ...],
        n_common_bands: int,
        segments: dict[str, tuple[int, int]],
        segment_slot: int,
        review_action: str | None,
        plans: tuple[EntityPlan, ...],
        sections: dict[str, Sequence[str]],
        candidate_slot: int,
        candidate_is_text: bool,
        release: str,
        block_name: str,
        decision_type: type,
        ranking_type: type,
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        decode_ids: Callable[[bytes], Any] | None = None,
        clock: Any,
        max_bytes: int,
        max_depth: int,
        max_rows: int,
        row_independent: bool,
        has_clock: bool,
        score_low: float = ...,
        score_high: float = ...,
        hold_below_us: float = 100.0,
        max_item_age_ns: int = 0,
        resolver: Resolver | None = None,
        budget_ns: int = ...,
        reasons: ForestReasons | None = None,
        occlusion: Occlusion | None = None,
        is_system_clock: bool = False,
        permits: Permits | None = None,
        event_type: type | None = None,
        trace: tuple[str, ...] = (),
        moves: tuple[tuple[int, tuple[float, ...], tuple[str, ...]], ...] = (),
    ) -> None:
        """Arguments that `pipeline.Pipeline` does not explain:

        trace: what every answer says of where it came from.
        moves: earliest first: the wall clock's moment (ns) from which on other lowest scores hold for `bands`, and the trace
            that says so. They come into force at the first answer from then on, without anybody's help, and never go back.
        """
    @property
    def trace(self) -> tuple[str, ...]:
        """What answers say now, before what is said of each of them alone."""

    def moves_left(self) -> int:
        """How many of `moves` are still to come; those whose moment has come are in force after this."""

    @property
    def one_us(self) -> float:
        """Predicted time of the models for one request, reasons included."""

    @property
    def waits(self) -> bool:
        """A call may have to wait for a source or for shared windows."""
    @property
    def has_item_table(self) -> bool:
        """Candidates have a table of their own."""

    @property
    def stages(self) -> dict[str, StageClock]:
        """How long calls take: "run" of single ones and "run/64" of rankings and batches of 64 to 127 rows, waiting apart;
        "wait" and "whole" of those that had to wait. Only calls with a deadline or a hook are timed.
        """
    def set_hook(self, hook: Callable[[Any], object] | None) -> None:
        """Call `hook` with an event for each answer, before the caller has it; None: nobody. One event a row of a batch.

        The event is event_type(answer, request, wall_ns, took_ns, priority). Late answers and errors are no events here.
        What the hook raises is counted in `n_hook_failures`, and goes no further. Raises: ConfigError without an `event_type`.
        """

    def set_permits(self, permits: Permits | None) -> None:
        """Take permits of others from now on, such as those of another release of the same door; None: of nobody.

        Calls under way give theirs back to nobody: do this before the first one.
        """

    def set_drill(self, on_drill: Callable[[Any, Any], object] | None, every: int) -> None:
        """Call on_drill(request, answer) with every n-th answer, inside its call: it must not wait. None, or 0: never."""

    def drop_late(self, late_ns: int) -> None:
        """Count an answer that somebody else made too late. Raises: DeadlineExceededError, always."""

    def outside_counts(self) -> dict[str, int]:
        """Column -> how many values lay outside its training range since the engine was made; only those above zero."""

    def score(
        self,
        request: object,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
        began_ns: int = 0,
    ) -> Any:
        """One request -> Decision. Holds the GIL unless one row takes longer than `hold_below_us`.

        Raises: FeatureError, SessionError, ScoreError.
        """

    def score_json(
        self,
        body: bytes,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
    ) -> bytes:
        """JSON -> JSON. Raises also LimitError, RequestError."""

    def score_msgpack(
        self,
        body: bytes,
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
    ) -> bytes:
        """MessagePack -> MessagePack. Raises also LimitError, RequestError."""

    def score_json_staged(
        self, body: bytes, observe: bool = False, inner: bool = False
    ) -> tuple[bytes, tuple[int, ...]]:
        """As `score_json`; ns of decode, resolve, fill, run, decide, encode; with `inner` also of what `resolve` spends on
        tables and on windows.
        """

    def score_batch(
        self,
        requests: Iterable[object],
        row_errors: bool = False,
        now_ns: int = 0,
        request_ids: Sequence[str] | None = None,
        first_row: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_ids: Iterable[str | bytes | int | None] | None = None,
        priority: str = "critical",
    ) -> list[Any]:
        """Decisions in order; with `row_errors` an error stands where its decision would, be it the request's or its score's.

        first_row: number of the first request, for messages. budget_ns: of the whole batch; 0 = no deadline, but waiting for
        sources ends within the engine's. Rows for which there is no time left get a DeadlineExceededError.
        observe: each is counted after those before it; without `row_errors` none is counted unless all of them can be.
        Raises: LimitError, as `score`.
        """

    def check_events(self, items: list[Any], ids: list[Any] | None, first_row: int, ws: Workspace) -> None:
        """Read every request, and check it as an event, before any of them is counted. For `score_batch`."""

    def id_list(self, candidates: Iterable[Any]) -> list[Any]:
        """A list of our own of the caller's candidates. Raises: FeatureTypeError, LimitError beyond `max_rows`."""
    def rank(
        self,
        context: object,
        candidates: Iterable[Any],
        k: int,
        available: Available | None = None,
        exclude: Iterable[Any] | None = None,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
        began_ns: int = 0,
    ) -> Any:
        """Context and ids -> Ranking. Gives up the GIL at most once, and where it waits for a source.

        Raises: FeatureError, LimitError, SessionError, ScoreError.
        """

    def rank_json(
        self,
        body: bytes,
        available: Available | None = None,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        priority: str = "critical",
    ) -> bytes:
        """JSON with context, candidates, k, exclude, request_id -> JSON."""

    def rank_json_staged(
        self, body: bytes, available: Available | None = None
    ) -> tuple[bytes, tuple[int, int, int, int, int, int]]:
        """As `rank_json`; ns of decode, resolve, fill, run, decide, encode."""

    def compile_available(self, text: str, terms: list[tuple[str, int, float]]) -> Available:
        """Raises: FeatureTypeError for a column that the candidates' table lacks."""

    def encode_items(self, table: SnapshotTable) -> None:
        """Compute the item columns of all rows of a table and attach them to it. Releases the GIL."""

    def calibrate(self, rounds: int = 5) -> tuple[float, float]:
        """Measure what a run costs: fixed us, us a row. Sets `fixed_us` and `row_us`."""

    def calibrate_as(self, other: Engine) -> None:
        """Take over what another engine of the same models has measured, and measure on together with it."""

    def vectorize(self, request: object, now_ns: int = 0, budget_ns: int = 0) -> list[NDArray[Any]]:
        """The model's inputs for one request, shape (1, cells) each, in the model's order. Raises: FeatureError."""

    def fill(self, request: object) -> None:
        """The same into the engine's own memory, returning nothing: the cost of features alone. Raises: FeatureError."""

    def prepare(
        self,
        request: object,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        permit: int = 0,
    ) -> Prepared:
        """What a model elsewhere would be given for a request. Takes no permit, and waits for sources within the budget.

        permit: of `permits.take`; it is not held while a source or a shared window is waited for, and held again afterwards.
        Raises: FeatureError.
        """

    def finish(
        self,
        prepared: Prepared,
        score: float,
        *,
        release: str,
        rung: int,
        request_id: str | None = None,
    ) -> Any:
        """The decision about a prepared request and somebody else's score for it, by this release's policy; without reasons.

        Raises: ScoreError for a score that is not finite, out of the release's range, or below the policy's bands.
        """

    def finish_static(
        self,
        request: object | None,
        action: str | None,
        score: float | None,
        *,
        release: str,
        rung: int,
        request_id: str | None = None,
    ) -> Any:
        """A decision without a model.

        Args:
            request: read for the policy's segment alone; None: the common bands.
            action: None = by the bands. score: None = the lowest of the action's band; 0.0 where it has none.
        Raises: ConfigError for an action that the policy lacks; ScoreError; FeatureError for the request.
        """

    def rank_static(
        self,
        candidates: Iterable[Any],
        k: int,
        *,
        available: Available | None = None,
        exclude: Iterable[Any] | None = None,
        order: dict[Any, int],
        release: str,
        rung: int,
        request_id: str | None = None,
    ) -> Any:
        """A ranking without a model: by place in `order`, then as given; what is excluded or not available is left out.

        Scores are ranks: 1.0 for the first of n candidates, 1/n for the last. Raises: FeatureError, LimitError.
        """

    def decode(self, body: bytes, kind: str) -> Any:
        """Bytes -> the request's Struct; kind "json", or "msgpack" of a scorer. Raises: RequestError, LimitError."""

    def encode(self, answer: Any, kind: str) -> bytes:
        """An answer -> bytes; kind "json" or "msgpack"."""

    def ids_of(self, request: Any) -> list[Any]:
        """The candidates of a decoded ranking request. Raises: RequestError, LimitError."""

    def tensors(
        self, requests: Sequence[object], now_ns: int = 0
    ) -> tuple[list[NDArray[Any]], list[tuple[tuple[str, ...], tuple[str, ...]]]]:
        """What the model would get, each request on its own: arrays by input, and (stale, missing) per row."""

    def tensors_ranking(
        self, context: object, candidates: Iterable[Any], now_ns: int = 0
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """The same for one tile of candidates, and the ids that would be scored, in order."""
