"""Sessions of ONNX Runtime through the C API of the library in its wheel, and the checks before anything enters one.

Rules:
  * The library is found without importing `onnxruntime`, and loaded when the first model is opened; importing this module
    starts nothing. Telemetry is switched off before the library is loaded.
  * A model is bytes. It never names other files, and its inputs and outputs are tensors that NumPy can hold.
  * An array enters only with the dtype, rank and fixed dimensions that the model declares. Layout and byte order are
    converted; nothing else is, because a silent cast is a silent wrong answer.
  * One environment per process, one thread, CPU only. Sessions survive fork; what must not happen around a fork or at
    exit is kept apart by the gate in `ort_run.c`.
Signatures and errors: ort.pyi. What native code calls: ort.pxd. The same on onnxruntime's Python package:
`retailinfer/runtime/fallback.py`.
"""

import atexit
import os
import re
import sys
import warnings

import numpy as np

from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    ModelError,
    ScoreError,
    SessionError,
    ShapeError,
    clip,
)

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset


cdef extern from "Python.h" nogil:
    int PyGILState_Check()

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef extern from "ort_run.h" nogil:
    int RI_ERR_OUTPUT, RI_ERR_SCORE, RI_ERR_CLOSED, RI_ERR_MODEL, RI_ERR_LIBRARY, RI_ERR_MEMORY
    int RI_OPEN_OPTIMIZE, RI_OPEN_ARENA, RI_OPEN_MEM_PATTERN
    int ri_start(const char* path, int (*holds_gil)() noexcept nogil, RunError* err)
    const char* ri_version()
    RiModel* ri_model_open(const void* data, size_t size, int flags, RunError* err)
    void ri_model_drop(RiModel* model)
    int ri_drain()
    size_t ri_model_n_inputs(const RiModel* model)
    size_t ri_model_n_outputs(const RiModel* model)
    const RiIo* ri_model_input(const RiModel* model, size_t index)
    const RiIo* ri_model_output(const RiModel* model, size_t index)
    size_t ri_model_n_metadata(const RiModel* model)
    const char* ri_model_metadata_key(const RiModel* model, size_t index)
    const char* ri_model_metadata_value(const RiModel* model, size_t index)
    int ri_model_select(RiModel* model, size_t n_heads, const size_t* outputs, const int64_t* classes, RunError* err)
    int ri_model_scores(const RiModel* model, const TensorRef* inputs, int64_t n_rows, float* scores, RunError* err)
    RiLane* ri_lane_open(const RiModel* model, const TensorRef* inputs, int64_t n_rows, RunError* err)
    int ri_lane_scores(RiLane* lane, float* scores, RunError* err)
    void ri_lane_close(RiLane* lane)
    int ri_check_bytes(const void* data, size_t size, RunError* err)
    void ri_clean_message(char* out, size_t size, const char* text)
    int ri_model_run(const RiModel* model, const TensorRef* inputs, size_t n_outputs, const size_t* outputs,
                     void** values, RunError* err)
    int ri_value_describe(const void* value, int32_t* dtype, size_t* rank, int64_t* dims, size_t max_rank,
                          int64_t* n_cells, RunError* err)
    int ri_value_data(void* value, void** data, RunError* err)
    int ri_value_string_bytes(const void* value, size_t* n_bytes, RunError* err)
    int ri_value_strings(const void* value, char* data, size_t n_bytes, size_t* offsets, size_t n_cells, RunError* err)
    void ri_value_release(void* value)
    int64_t ri_in_flight()
    int64_t ri_before_fork(int64_t timeout_ns)
    void ri_after_fork_in_parent()
    int64_t ri_close(int64_t timeout_ns)
    int ri_is_poisoned()
    size_t ri_log_text(char* text, size_t size)
    int ri_fail_call(int64_t n)
    int ri_trim_heap()


STRING = 8

# ONNX dtype number -> what NumPy calls it; strings are object arrays of str.
NUMPY_DTYPES = {
    1: np.dtype(np.float32), 2: np.dtype(np.uint8), 3: np.dtype(np.int8), 4: np.dtype(np.uint16), 5: np.dtype(np.int16),
    6: np.dtype(np.int32), 7: np.dtype(np.int64), 8: np.dtype(object), 9: np.dtype(np.bool_), 10: np.dtype(np.float16),
    11: np.dtype(np.float64), 12: np.dtype(np.uint32), 13: np.dtype(np.uint64),
}

# How long os.fork waits for runs that do not hold the GIL, and the end of the process for those of daemon threads.
FORK_WAIT_S = 2.0
EXIT_WAIT_S = 0.1

_SEARCHED_NAMES = r"(libonnxruntime\.so(\.[\d.]+)?|libonnxruntime(\.[\d.]+)?\.dylib|onnxruntime\.dll)"


# ---------------------------------------------------------------- the library

def library_path():
    import importlib.util  # not at the top: servers of trees never look

    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package `onnxruntime` is not installed", hint="pip install onnxruntime")
    found = []
    for folder in spec.submodule_search_locations:
        capi = os.path.join(folder, "capi")
        if os.path.isdir(capi):
            found += [os.path.join(capi, name) for name in os.listdir(capi) if re.fullmatch(_SEARCHED_NAMES, name)]
    if not found:
        return None
    newest = max(found, key=lambda path: ([int(part) for part in re.findall(r"\d+", os.path.basename(path))], path))
    return os.path.realpath(newest)


def guard_environment():
    if os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL", "0") not in ("", "0"):
        raise ConfigError(
            "ORT_LOAD_CONFIG_FROM_MODEL is set: a model could choose its own session settings",
            hint="unset it; settings belong to the release, not to the model file",
        )
    if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") is None:
        warnings.warn(
            "onnxruntime was imported before retailinfer opened a model and without ORT_DISABLE_TELEMETRY=1: it may have "
            "started a thread that uploads telemetry; set the variable before the import",
            RuntimeWarning,
            stacklevel=3,
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


cdef int holds_gil() noexcept nogil:
    return PyGILState_Check()


def _before_fork():
    ri_before_fork(<int64_t> (FORK_WAIT_S * 1e9))


def _after_fork_in_parent():
    ri_after_fork_in_parent()


def _at_exit():
    ri_close(<int64_t> (EXIT_WAIT_S * 1e9))


cdef bint started = False


def start():
    global started
    cdef RunError err
    if started:
        return ri_version().decode()
    guard_environment()
    path = library_path()
    if path is None:
        raise ConfigError(
            "onnxruntime is installed without its C library (libonnxruntime next to its Python module)",
            hint='use backend="python", or a wheel of onnxruntime 1.22 or newer',
        )
    encoded = os.fsencode(path)
    if ri_start(encoded, holds_gil, &err):
        raise ConfigError(err.message.decode("utf-8", "replace"))
    started = True
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
    atexit.register(_at_exit)
    return ri_version().decode()


def in_flight():
    return ri_in_flight()


def is_poisoned():
    return bool(ri_is_poisoned())


def drain():
    cdef int n_freed
    if not started:
        return 0
    with nogil:
        n_freed = ri_drain()
    return n_freed


def keep_for_ever(thing):
    Py_INCREF(thing)


def trim_heap():
    cdef int given
    with nogil:
        given = ri_trim_heap()
    return bool(given)


def _fail_call(n):
    return bool(ri_fail_call(n))


def recent_log():
    cdef char text[4352]
    cdef size_t size = ri_log_text(text, sizeof(text))
    return PyUnicode_DecodeUTF8(text, size, "replace").splitlines()


cdef int raise_run_error(const RunError* err) except -1:
    message = (<bytes> err.message).decode("utf-8", "replace")
    if err.code == RI_ERR_SCORE:
        raise ScoreError(message)
    if err.code == RI_ERR_MEMORY:
        raise MemoryError(message)
    if err.code in (RI_ERR_OUTPUT, RI_ERR_CLOSED):
        raise SessionError(message)
    raise SessionError(f"the model failed to run: {message} (onnxruntime code {err.code})")


# ---------------------------------------------------------------- arrays that may enter

def check_array(str name, int dtype, tuple shape, value):
    path = f"$.{name}"
    if not isinstance(value, (np.ndarray, np.generic)):
        raise FeatureTypeError(
            f"Expected a NumPy array, got `{type(value).__name__}` {clip(value)}", path=path,
            hint="convert it with numpy.asarray and an explicit dtype",
        )
    # Nobody can hold a masked array without numpy.ma being loaded; loading it here would cost every start 10 ms.
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise FeatureTypeError(
            "Expected a plain NumPy array, got a masked one", path=path, hint="fill it with `.filled(value)`",
        )
    array = np.asarray(value)
    expected = NUMPY_DTYPES[dtype]
    kind = array.dtype.kind
    if dtype == STRING:
        if kind not in "OUT":
            raise FeatureTypeError(
                f"Expected strings (an object array of str, or dtype U), got dtype `{array.dtype}`", path=path,
                hint="decode bytes first" if kind == "S" else None,
            )
        array = np.ascontiguousarray(array.astype(object)).reshape(array.shape)
    else:
        if kind != expected.kind or array.dtype.itemsize != expected.itemsize:
            raise FeatureTypeError(
                f"Expected dtype `{expected}`, got `{array.dtype}`", path=path,
                hint=f"cast it on purpose: array.astype(numpy.{expected.name})",
            )
        # Only now layout and byte order: neither changes a value. `reshape` because ascontiguousarray makes 0-d 1-d.
        if not array.dtype.isnative or array.dtype != expected:
            array = array.astype(expected)
        if not (array.flags.c_contiguous and array.flags.aligned):
            array = np.array(array, order="C", copy=True)
    # A declared rank of 0 may also mean that the model declares no shape; ONNX Runtime itself checks those.
    if shape and len(shape) != array.ndim:
        raise ShapeError(
            f"Expected {len(shape)} dimensions {_shape_text(shape)}, got {array.ndim} with shape {array.shape}", path=path,
        )
    if array.ndim > 8:
        raise ShapeError(f"Expected at most 8 dimensions, got {array.ndim}", path=path)
    for want, got in zip(shape, array.shape, strict=False):
        if want is not None and want != got:
            raise ShapeError(f"Expected shape {_shape_text(shape)}, got {array.shape}", path=path)
    return array


def _shape_text(shape):
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"


def check_feeds(tuple inputs, feeds):
    for name, _, _ in inputs:
        if name not in feeds:
            raise FeatureMissingError(
                "Expected an array for every input of the model, got none", path=f"$.{name}",
                hint="the inputs are " + clip(", ".join(known for known, _, _ in inputs), 200),
            )
    if len(feeds) != len(inputs):
        known = {name for name, _, _ in inputs}
        unknown = next(name for name in feeds if name not in known)
        raise ShapeError(
            f"Expected the inputs {clip(sorted(known), 200)}, got one more", path=f"$.{clip(unknown)}",
            hint="take it out; an array that the model does not read is a mistake",
        )
    return [check_array(name, dtype, shape, feeds[name]) for name, dtype, shape in inputs]


def output_numbers(tuple outputs, names):
    if names is None:
        return list(range(len(outputs)))
    known = {output[0]: number for number, output in enumerate(outputs)}
    numbers = []
    for name in names:
        if name not in known:
            raise ConfigError(f"the model has no output {clip(name)}", hint=f"it has {clip(sorted(known), 200)}")
        if known[name] in numbers:
            raise ConfigError(f"output {clip(name)} is asked for twice")
        numbers.append(known[name])
    return numbers


def encode_strings(array, str path):
    encoded = []
    for value in array.ravel().tolist():
        if not isinstance(value, str):
            raise FeatureTypeError(f"Expected `str`, got `{type(value).__name__}` {clip(value)}", path=path)
        try:
            encoded.append(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise FeatureRangeError(
                f"Expected text that UTF-8 can hold, got a lone surrogate in {clip(value)}", path=path,
            ) from None
    return encoded


cdef class _Refs:
    """TensorRefs over arrays, and what keeps their memory: buffers, encoded strings. Released with this object."""

    cdef:
        TensorRef* refs
        Py_buffer* views
        StrRef** cells
        Py_ssize_t n, n_views
        list kept

    def __cinit__(self, tuple inputs, list arrays):
        cdef Py_ssize_t i, j
        cdef bytes text
        self.n = len(inputs)
        self.kept = []
        self.refs = <TensorRef*> PyMem_Malloc((self.n + 1) * sizeof(TensorRef))
        self.views = <Py_buffer*> PyMem_Malloc((self.n + 1) * sizeof(Py_buffer))
        self.cells = <StrRef**> PyMem_Malloc((self.n + 1) * sizeof(StrRef*))
        if self.refs == NULL or self.views == NULL or self.cells == NULL:
            raise MemoryError
        memset(self.refs, 0, self.n * sizeof(TensorRef))
        memset(self.cells, 0, self.n * sizeof(StrRef*))
        for i in range(self.n):
            name, dtype, _ = inputs[i]
            array = arrays[i]
            self.refs[i].dtype = dtype
            self.refs[i].rank = array.ndim
            for j in range(array.ndim):
                self.refs[i].dims[j] = array.shape[j]
            if dtype == STRING:
                encoded = encode_strings(array, f"$.{name}")
                self.kept.append(encoded)
                self.cells[i] = <StrRef*> PyMem_Malloc((len(encoded) + 1) * sizeof(StrRef))
                if self.cells[i] == NULL:
                    raise MemoryError
                for j in range(len(encoded)):
                    text = encoded[j]
                    self.cells[i][j].data = <const char*> text
                    self.cells[i][j].size = len(text)
                self.refs[i].data = self.cells[i]
                self.n_views += 1
                memset(&self.views[i], 0, sizeof(Py_buffer))
            else:
                PyObject_GetBuffer(array, &self.views[i], PyBUF_SIMPLE)
                self.n_views += 1
                self.refs[i].data = self.views[i].buf
                self.refs[i].nbytes = self.views[i].len

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.views != NULL:
            for i in range(self.n_views):
                if self.cells[i] == NULL:  # strings hold no buffer
                    PyBuffer_Release(&self.views[i])
        if self.cells != NULL:
            for i in range(self.n):
                PyMem_Free(self.cells[i])
        PyMem_Free(self.refs)
        PyMem_Free(self.views)
        PyMem_Free(self.cells)


# ---------------------------------------------------------------- models

cdef tuple io_entry(const RiIo* io):
    shape = tuple([None if io.dims[i] < 0 else io.dims[i] for i in range(io.rank)])
    return (io.name.decode("utf-8", "replace"), io.dtype, shape)


cdef object to_array(void* value):
    """Copy one value into an array of its own."""
    cdef RunError err
    cdef int32_t dtype = 0
    cdef size_t rank = 0, n_bytes = 0
    cdef int64_t dims[64]
    cdef int64_t n_cells = 0, i
    cdef void* data = NULL
    cdef Py_buffer view
    cdef size_t* offsets
    cdef size_t end
    if ri_value_describe(value, &dtype, &rank, dims, 64, &n_cells, &err):
        raise_run_error(&err)
    shape = tuple([dims[i] for i in range(<int64_t> rank)])
    if dtype == 8:
        if ri_value_string_bytes(value, &n_bytes, &err):
            raise_run_error(&err)
        text = bytearray(n_bytes + 1)
        offsets = <size_t*> PyMem_Malloc((n_cells + 1) * sizeof(size_t))
        if offsets == NULL:
            raise MemoryError
        try:
            if n_cells > 0 and ri_value_strings(value, <char*> text, n_bytes, offsets, n_cells, &err):
                raise_run_error(&err)
            array = np.empty(n_cells, dtype=object)
            for i in range(n_cells):
                end = offsets[i + 1] if i + 1 < n_cells else n_bytes
                try:
                    array[i] = PyUnicode_DecodeUTF8(<char*> text + offsets[i], end - offsets[i], NULL)
                except UnicodeDecodeError:
                    raise SessionError("an output of the model holds strings that are not UTF-8") from None
        finally:
            PyMem_Free(offsets)
        return array.reshape(shape)
    if dtype not in NUMPY_DTYPES:
        raise SessionError(f"an output has ONNX dtype {dtype}, which NumPy does not have")
    array = np.empty(shape, dtype=NUMPY_DTYPES[dtype])
    if n_cells > 0:
        if ri_value_data(value, &data, &err):
            raise_run_error(&err)
        PyObject_GetBuffer(array, &view, PyBUF_WRITABLE | PyBUF_ANY_CONTIGUOUS)
        memcpy(view.buf, data, view.len)
        PyBuffer_Release(&view)
    return array


def check_model_bytes(model_bytes):
    cdef RunError err
    cdef Py_buffer view
    cdef int status
    if not isinstance(model_bytes, (bytes, bytearray, memoryview)):
        raise ModelError(
            f"Expected the bytes of an ONNX model, got `{type(model_bytes).__name__}`", hint="read the file first",
        )
    PyObject_GetBuffer(model_bytes, &view, PyBUF_SIMPLE)
    status = ri_check_bytes(view.buf, view.len, &err)
    PyBuffer_Release(&view)
    if status:
        raise ModelError(err.message.decode("utf-8", "replace"))


def clean_message(str text):
    cdef char cleaned[512]
    encoded = text.encode("utf-8", "replace")
    ri_clean_message(cleaned, sizeof(cleaned), encoded)
    return (<bytes> cleaned).decode("utf-8", "replace")


def _release_gil(gil):
    if gil == "hold":
        return False
    if gil == "release":
        return True
    raise ConfigError(f'Expected gil="hold" or gil="release", got {clip(gil)}')


cdef class OrtModel:
    """One model in one session. Shapes, dtypes and errors: ort.pyi."""

    # arena and mem_pattern are off by default. Measured on one core, one row, alternating rounds, against Python's `run`:
    #   trees (300 x 31): 0.815 without both, 0.824 with mem_pattern, 0.840 with arena, 0.829 with both
    #   one MatMul:       0.270                0.290                   0.273             0.290
    #   int8 net, 3 layers, 1 row: 0.555 / 0.495 / 0.642 / 0.594; 512 rows: all within noise
    # and both hold locks and memory that grows: the arena never gives back, mem_pattern keeps one plan for each new
    # combination of input shapes. Without them memory is the C library's own, which is safe around fork.
    # mem_pattern=True is worth a try for small quantised nets whose row counts repeat.
    def __init__(self, model_bytes, *, optimize=True, arena=False, mem_pattern=False):
        cdef RunError err
        cdef Py_buffer view
        cdef RiModel* opened
        cdef int flags = 0
        if self._model != NULL:
            raise TypeError("an OrtModel is opened once; make another one")
        check_model_bytes(model_bytes)
        start()
        drain()
        flags |= RI_OPEN_OPTIMIZE if optimize else 0
        flags |= RI_OPEN_ARENA if arena else 0
        flags |= RI_OPEN_MEM_PATTERN if mem_pattern else 0
        PyObject_GetBuffer(model_bytes, &view, PyBUF_SIMPLE)
        with nogil:
            opened = ri_model_open(view.buf, view.len, flags, &err)
        PyBuffer_Release(&view)
        if opened == NULL:
            message = err.message.decode("utf-8", "replace")
            if err.code == RI_ERR_MEMORY:
                raise MemoryError(message)
            if err.code == RI_ERR_CLOSED:
                raise SessionError(message)
            if err.code == RI_ERR_MODEL:
                raise ModelError(message)
            raise ModelError(f"onnxruntime {ri_version().decode()} refuses the model: {message} (code {err.code})")
        self._model = opened
        self.inputs = tuple([io_entry(ri_model_input(opened, i)) for i in range(ri_model_n_inputs(opened))])
        self.outputs = tuple([io_entry(ri_model_output(opened, i)) for i in range(ri_model_n_outputs(opened))])
        self.metadata = {
            ri_model_metadata_key(opened, i).decode("utf-8", "replace"):
                ri_model_metadata_value(opened, i).decode("utf-8", "replace")
            for i in range(ri_model_n_metadata(opened))
        }

    def __dealloc__(self):
        # May run in a garbage collection of any thread, or in a forked child: only queue it. `drain` frees.
        if self._model != NULL:
            ri_model_drop(self._model)

    def run(self, feeds, outputs=None, *, gil="hold"):
        cdef RunError err
        cdef bint release = _release_gil(gil)
        cdef size_t i, n
        cdef size_t* wanted
        cdef void** values
        cdef int status
        cdef _Refs refs
        if self._model == NULL:
            raise SessionError("the model was not opened")
        refs = _Refs(self.inputs, check_feeds(self.inputs, feeds))
        numbers = output_numbers(self.outputs, outputs)
        n = len(numbers)
        wanted = <size_t*> PyMem_Malloc((n + 1) * sizeof(size_t))
        values = <void**> PyMem_Malloc((n + 1) * sizeof(void*))
        if wanted == NULL or values == NULL:
            PyMem_Free(wanted)
            PyMem_Free(values)
            raise MemoryError
        try:
            for i in range(n):
                wanted[i] = numbers[i]
                values[i] = NULL
            if release:
                with nogil:
                    status = ri_model_run(self._model, refs.refs, n, wanted, values, &err)
            else:
                status = ri_model_run(self._model, refs.refs, n, wanted, values, &err)
            if status:
                raise_run_error(&err)
            result = {}
            for i in range(n):
                result[self.outputs[numbers[i]][0]] = to_array(values[i])
            return result
        finally:
            for i in range(n):
                if values[i] != NULL:
                    ri_value_release(values[i])
            PyMem_Free(wanted)
            PyMem_Free(values)

    cpdef object select_scores(self, object heads):
        cdef RunError err
        cdef size_t outputs[16]
        cdef int64_t columns[16]
        cdef size_t i, n = len(heads)
        if self._model == NULL:
            raise SessionError("the model was not opened")
        if n < 1 or n > 16:
            raise ModelError(f"Expected 1 to 16 scores to be chosen, got {n}")
        for i in range(n):
            output, column = heads[i]
            if output < 0:
                raise ModelError(f"Expected the number of an output, got {output}")
            outputs[i] = output
            columns[i] = column
        if ri_model_select(self._model, n, outputs, columns, &err):
            raise ModelError(err.message.decode("utf-8", "replace"))
        self.n_heads = n

    cpdef object select_score(self, Py_ssize_t output, Py_ssize_t column=0):
        self.select_scores([(output, column)])

    cdef int run_scores(self, const TensorRef* inputs, int64_t n_rows, float* scores, RunError* err) noexcept nogil:
        return ri_model_scores(self._model, inputs, n_rows, scores, err)

    cdef RiLane* open_lane(self, const TensorRef* inputs, int64_t n_rows, RunError* err) noexcept nogil:
        return ri_lane_open(self._model, inputs, n_rows, err)

    cdef int run_lane(self, RiLane* lane, float* scores, RunError* err) noexcept nogil:
        return ri_lane_scores(lane, scores, err)

    cdef void close_lane(self, RiLane* lane) noexcept nogil:
        ri_lane_close(lane)

    def lane(self, tensors):
        return Lane(self, tensors)

    @property
    def backend(self):
        return "c"

    @property
    def version(self):
        return ri_version().decode()

    def scores(self, tensors, *, gil="hold"):
        cdef RunError err
        cdef bint release = _release_gil(gil)
        cdef Py_buffer view
        cdef int64_t n_rows = 0
        cdef int status
        cdef _Refs refs
        if self.n_heads == 0:
            raise SessionError("no score is chosen", hint="call select_score(output, column) first")
        arrays, n_rows = check_tensors(self.inputs, tensors)
        refs = _Refs(self.inputs, arrays)
        result = np.empty((self.n_heads, n_rows), dtype=np.float32)
        if n_rows > 0:
            PyObject_GetBuffer(result, &view, PyBUF_WRITABLE | PyBUF_SIMPLE)
            if release:
                with nogil:
                    status = self.run_scores(refs.refs, n_rows, <float*> view.buf, &err)
            else:
                status = self.run_scores(refs.refs, n_rows, <float*> view.buf, &err)
            PyBuffer_Release(&view)
            if status:
                raise_run_error(&err)
        return result[0] if self.n_heads == 1 else result


@cython.no_gc_clear  # closing the lane needs the model and the arrays, also when a cycle is collected
cdef class Lane:
    """One shape over arrays that stay where they are; write into them and call `scores`. For tests and timing."""

    cdef:
        OrtModel _model
        _Refs _refs
        RiLane* _lane
        float* _scores
        readonly tuple arrays
        readonly int64_t n_rows

    def __cinit__(self, OrtModel model not None, tensors):
        cdef RunError err
        if model.n_heads == 0:
            raise SessionError("no score is chosen", hint="call select_score(output, column) first")
        arrays, self.n_rows = check_tensors(model.inputs, tensors)
        self._model = model
        self._refs = _Refs(model.inputs, arrays)
        self.arrays = tuple(arrays)
        self._scores = <float*> PyMem_Malloc((model.n_heads * self.n_rows + 1) * sizeof(float))
        if self._scores == NULL:
            raise MemoryError
        self._lane = model.open_lane(self._refs.refs, self.n_rows, &err)
        if self._lane == NULL:
            raise_run_error(&err)

    def __dealloc__(self):
        if self._lane != NULL:
            self._model.close_lane(self._lane)
        PyMem_Free(self._scores)

    def scores(self):
        cdef RunError err
        if self._model.run_lane(self._lane, self._scores, &err):
            raise_run_error(&err)
        if self.n_rows == 1 and self._model.n_heads == 1:
            return self._scores[0]
        return [self._scores[i] for i in range(self.n_rows * self._model.n_heads)]


def check_tensors(tuple inputs, tensors):
    if len(tensors) != len(inputs):
        raise ShapeError(f"Expected {len(inputs)} arrays, one per input of the model, got {len(tensors)}")
    arrays = [check_array(name, dtype, shape, tensor) for (name, dtype, shape), tensor in zip(inputs, tensors, strict=True)]
    n_rows = None
    for (name, _, _), array in zip(inputs, arrays, strict=True):
        if array.ndim == 0:
            raise ShapeError("Expected one row per score, got an array without dimensions", path=f"$.{name}")
        if n_rows is None or n_rows == 1:  # the context of a ranking is one row for all candidates
            n_rows = array.shape[0]
        elif array.shape[0] not in (1, n_rows):
            raise ShapeError(f"Expected {n_rows} rows as in the other inputs, or 1, got {array.shape[0]}", path=f"$.{name}")
    if n_rows is None:
        raise ShapeError("the model has no input, so it has no rows")
    return arrays, n_rows
