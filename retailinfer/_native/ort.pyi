"""Sessions of ONNX Runtime: what Python sees of `ort.pyx`.

Dtypes are ONNX numbers: float32 1, uint8 2, int8 3, uint16 4, int16 5, int32 6, int64 7, string 8, bool 9,
float16 10, float64 11, uint32 12, uint64 13. A shape is a tuple in which a dynamic dimension is None; the empty tuple
is a scalar, or a model that declares no shape. Application code uses `retailinfer.runtime.session`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

STRING: Final = 8
NUMPY_DTYPES: Final[dict[int, np.dtype[Any]]]
FORK_WAIT_S: float
EXIT_WAIT_S: float

_IoEntry: TypeAlias = tuple[str, int, tuple[int | None, ...]]

def library_path() -> str | None:
    """Absolute path of ONNX Runtime's library in the installed wheel, found without importing it; None: there is none.

    Raises: ConfigError when `onnxruntime` is not installed.
    """

def guard_environment() -> None:
    """Switch telemetry off for an ONNX Runtime that is loaded from now on, and refuse settings taken from model files.

    Warns (RuntimeWarning) when `onnxruntime` was imported before and may have started its telemetry thread.
    Raises: ConfigError when ORT_LOAD_CONFIG_FROM_MODEL is set.
    """

def start() -> str:
    """Load the library, make the environment and run one tiny model, once per process. Returns the library's version.

    Called by the first `OrtModel`. Starts no thread. Registers the fork and exit hooks.
    Raises: ConfigError when there is no library, it is too old, or it does not behave.
    """

def drain() -> int:
    """Free the sessions of models that are gone, without the GIL; returns how many. Opening a model does it too.

    A session is not freed where its last reference falls: that may be in a garbage collection on a serving thread.
    """

def in_flight() -> int:
    """How many threads are inside ONNX Runtime now."""

def is_poisoned() -> bool:
    """Was this process forked while a thread was inside? Then no session works here."""

def keep_for_ever(thing: object) -> None:
    """Take a reference that nobody gives back: `thing` is not ended in this process, not even by its exit."""

def trim_heap() -> bool:
    """Give unused pages of the C heap back to the system, without the GIL; False where that cannot be done, or none were."""

def _fail_call(n: int) -> bool:
    """For tests, in the debug build only (else False): let the n-th call of the C API from now on fail.

    n < 0 stops that and tells whether it has happened.
    """

def recent_log() -> list[str]:
    """The last messages that ONNX Runtime logged (at most 16, severity error), oldest first. Nothing goes to stderr."""

def clean_message(text: str) -> str:
    """A message of ONNX Runtime on one line, without the paths of the machine that built it, at most 511 bytes."""

def check_model_bytes(model_bytes: bytes | bytearray | memoryview) -> None:
    """Look through the bytes without loading anything.

    Raises: ModelError for what is no ONNX model, keeps weights in other files, or nests without end.
    """

def check_array(name: str, dtype: int, shape: tuple[int | None, ...], value: object) -> NDArray[Any]:
    """`value` as a C-contiguous array in native byte order with the declared dtype, rank and fixed dimensions.

    Raises: FeatureTypeError (no array, another dtype, masked), ShapeError (another rank or size).
    """

def check_feeds(inputs: tuple[_IoEntry, ...], feeds: Mapping[str, object]) -> list[NDArray[Any]]:
    """`check_array` for every input, in the model's order.

    Raises: as that; FeatureMissingError for a missing input, ShapeError for an unknown one.
    """

def check_tensors(inputs: tuple[_IoEntry, ...], tensors: Sequence[object]) -> tuple[list[NDArray[Any]], int]:
    """The same for arrays in the model's order; also that all have the same number of rows, or one row for all."""

def output_numbers(outputs: tuple[_IoEntry, ...], names: Sequence[str] | None) -> list[int]:
    """Positions of the named outputs, all for None. Raises: ConfigError."""

def encode_strings(array: NDArray[Any], path: str) -> list[bytes]:
    """UTF-8 of every cell in C order.

    Raises: FeatureTypeError for what is no str, FeatureRangeError for lone surrogates.
    """

@final
class OrtModel:
    """One ONNX model in one session: CPU, one thread, graph optimised. Safe to use from many threads.

    Survives fork: a child may go on using it. Raises ModelError when the bytes are no model, when ONNX Runtime refuses
    it, when it keeps weights in other files, or when an input or output is no tensor that NumPy can hold (unwrap ZipMap
    when packing). `model_bytes` may be freed afterwards. Opening releases the GIL.
    """

    @property
    def inputs(self) -> tuple[_IoEntry, ...]: ...
    @property
    def outputs(self) -> tuple[_IoEntry, ...]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def backend(self) -> Literal["c"]: ...
    @property
    def version(self) -> str: ...
    def __init__(
        self,
        model_bytes: bytes | bytearray | memoryview,
        *,
        optimize: bool = True,
        arena: bool = False,
        mem_pattern: bool = False,
    ) -> None: ...
    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Sequence[str] | None = None,
        *,
        gil: Literal["hold", "release"] = "hold",
    ) -> dict[str, NDArray[Any]]:
        """Run on one array per input; returns fresh arrays, strings as objects of type str.

        Layout and byte order are converted; another dtype, rank or fixed dimension is an error, never a cast.
        Raises: FeatureTypeError, FeatureRangeError, FeatureMissingError, ShapeError (the feeds); ConfigError
        (`outputs`, `gil`); SessionError (the model failed).
        """

    def select_score(self, output: int, column: int = 0) -> None:
        """Choose the score: column `column` of output number `output`.

        Call it before the first `scores` and before other threads run the model. Raises: ModelError.
        """

    def select_scores(self, heads: Sequence[tuple[int, int]]) -> None:
        """The same for up to 16 scores as (output, column)."""

    def scores(
        self, tensors: Sequence[object], *, gil: Literal["hold", "release"] = "hold"
    ) -> NDArray[np.float32]:
        """Scores of a batch: shape (rows,), or (heads, rows) when several scores are chosen. All finite.

        tensors: one array per input in the model's order, each with the rows first; a context has one row for all.
        An output of shape (rows,), (rows, 1), (rows, columns) or (rows, 1, 1) in float32, float64 or int64 can be a
        score; it is rounded to float32 once. Raises: as `run`; ScoreError for NaN and infinity.
        """

    def lane(self, tensors: Sequence[object]) -> Lane:
        """A run that is repeated over the same arrays, for tests and timing."""

@final
class Lane:
    @property
    def arrays(self) -> tuple[NDArray[Any], ...]: ...
    @property
    def n_rows(self) -> int: ...
    def __init__(self, model: OrtModel, tensors: Sequence[object]) -> None: ...
    def scores(self) -> float | list[float]:
        """Run on what `arrays` hold now: one float for one row and one score, else all scores, head by head."""
