/* Sessions of ONNX Runtime behind a gate: open, describe, run, close. Plain C, no Python.
 *
 * Rules:
 *   * No function here touches a Python object; all may be called with or without the GIL.
 *   * Every OrtStatus and OrtValue is released before a function returns, whatever went wrong.
 *   * The in-flight count of the gate drops before control leaves this file, so always before the caller takes the GIL
 *     back: a daemon thread that is ended while taking it leaves nothing counted.
 *   * The environment is made once per process and never released: its destructor races with the library's own.
 * The numbers of the C API are in `ort_c_api.h`; what Python sees of this is `ort.pyx`.
 */
#ifndef RETAILINFER_ORT_RUN_H
#define RETAILINFER_ORT_RUN_H

#include <stddef.h>
#include <stdint.h>

#include "tensor_ref.h"

#define RI_MAX_INPUTS 4096 /* pointers for this many inputs stand on the stack: 32 KB */
#define RI_MAX_HEADS 16
#define RI_MAX_RANK 8 /* of a TensorRef, and so of every input */

/* RunError.code below zero: what was found here, not by ONNX Runtime. */
enum {
    RI_ERR_OUTPUT = -1,    /* an output has another shape or dtype than a score */
    RI_ERR_SCORE = -2,     /* a score is NaN or infinite */
    RI_ERR_CLOSED = -3,    /* the process is exiting, or was forked while a model was running */
    RI_ERR_MODEL = -4,     /* the model is refused: external data, a type that cannot cross */
    RI_ERR_LIBRARY = -5,   /* the library cannot be loaded or is too old */
    RI_ERR_MEMORY = -6,
};

enum { RI_OPEN_OPTIMIZE = 1, RI_OPEN_ARENA = 2, RI_OPEN_MEM_PATTERN = 4 };

typedef struct RiIo {
    char *name;      /* own copy, UTF-8 */
    int32_t kind;    /* ONNXType; only tensors (1) pass `ri_model_open` */
    int32_t dtype;   /* ONNX dtype number */
    int32_t rank;    /* 0 also when the model declares no shape: the C API does not tell these apart */
    int64_t *dims;   /* `rank` numbers, -1 = dynamic */
} RiIo;

typedef struct RiModel RiModel;

/* Load the library and make the environment. Returns 0 or -1. Call under the GIL, or from one thread; a second call does
 * nothing. `holds_gil` tells whether the calling thread holds the interpreter; only asked while a fork is prepared. */
int ri_start(const char *path, int (*holds_gil)(void), RunError *err);
const char *ri_version(void); /* "1.32.0", or NULL before ri_start */

/* Is this an ONNX model that keeps everything inside? Needs no library. Returns 0 or -1. */
int ri_check_bytes(const void *bytes, size_t size, RunError *err);
/* Make a message of ONNX Runtime fit to show: one line, no build paths, cut at `size` bytes. */
void ri_clean_message(char *out, size_t size, const char *text);
/* Open a model over bytes that may be freed afterwards. NULL and `err` on failure. */
RiModel *ri_model_open(const void *bytes, size_t size, int flags, RunError *err);
/* Put a model that nobody uses any more on the list of what is to be freed. Never blocks, never frees. */
void ri_model_drop(RiModel *model);
/* Free what was dropped. Returns how many were; models opened before a fork are forgotten in the child, not freed. */
int ri_drain(void);

size_t ri_model_n_inputs(const RiModel *model);
size_t ri_model_n_outputs(const RiModel *model);
const RiIo *ri_model_input(const RiModel *model, size_t index);
const RiIo *ri_model_output(const RiModel *model, size_t index);
size_t ri_model_n_metadata(const RiModel *model);
const char *ri_model_metadata_key(const RiModel *model, size_t index);
const char *ri_model_metadata_value(const RiModel *model, size_t index);

/* Choose the scores: for each head the output that holds it and the column in that output. Before the first run. */
int ri_model_select(RiModel *model, size_t n_heads, const size_t *outputs, const int64_t *classes, RunError *err);

/* Run and read the chosen scores.
 * inputs: in the order of the model's inputs. scores: OUT, n_heads blocks of n_rows; means nothing unless 0 is returned.
 * Returns 0 or -1. */
int ri_model_scores(const RiModel *model, const TensorRef *inputs, int64_t n_rows, float *scores, RunError *err);

/* The same over memory that does not move, for a caller that runs the same shape again and again: a workspace's single row.
 * inputs: as above; the cells are read at each run and must outlive the lane, the TensorRefs are copied.
 * One run at a time per lane. Close it before its model is dropped and before the memory is freed. */
typedef struct RiLane RiLane;
RiLane *ri_lane_open(const RiModel *model, const TensorRef *inputs, int64_t n_rows, RunError *err); /* NULL on failure */
int ri_lane_scores(RiLane *lane, float *scores, RunError *err);
void ri_lane_close(RiLane *lane); /* NULL is fine */

/* Run and hand over the values of some outputs, to be released one by one with `ri_value_release`. Returns 0 or -1. */
int ri_model_run(const RiModel *model, const TensorRef *inputs, size_t n_outputs, const size_t *outputs, void **values,
                 RunError *err);
int ri_value_describe(const void *value, int32_t *dtype, size_t *rank, int64_t *dims, size_t max_rank, int64_t *n_cells,
                      RunError *err);
int ri_value_data(void *value, void **data, RunError *err);
int ri_value_string_bytes(const void *value, size_t *n_bytes, RunError *err);
/* offsets: OUT, where each string begins in `bytes`. */
int ri_value_strings(const void *value, char *bytes, size_t n_bytes, size_t *offsets, size_t n_cells, RunError *err);
void ri_value_release(void *value);

/* The gate. */
int64_t ri_in_flight(void);
/* Nobody without the GIL enters from now on; wait until all are out. Returns how many still were in when time ran out. */
int64_t ri_before_fork(int64_t timeout_ns);
void ri_after_fork_in_parent(void);
/* Nobody enters any more, ever. Returns as above. */
int64_t ri_close(int64_t timeout_ns);
int ri_is_poisoned(void);

/* Give the heap's unused pages back to the system, where the C library can. Returns whether it gave any. */
int ri_trim_heap(void);

/* Debug build only, else it does nothing and returns 0: have the n-th call of the C API from now on fail (n >= 0; returns
 * 1), or stop that (n < 0; returns whether it has happened). */
int ri_fail_call(int64_t n);

/* The last messages that ONNX Runtime logged, oldest first, separated by newlines. Returns the length. */
size_t ri_log_text(char *text, size_t size);

#endif
