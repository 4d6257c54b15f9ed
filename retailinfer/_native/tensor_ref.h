/* How native modules hand tensors, strings and errors to each other. Plain structs over memory of the caller. */
#ifndef RETAILINFER_TENSOR_REF_H
#define RETAILINFER_TENSOR_REF_H

#include <stddef.h>
#include <stdint.h>

typedef struct StrRef {
    const char *data; /* UTF-8, may hold NULs, not terminated */
    int64_t size;     /* bytes */
} StrRef;

typedef struct TensorRef {
    void *data;     /* C-order cells; dtype 8: an array of StrRef */
    size_t nbytes;  /* of `data`; ignored for strings */
    int32_t dtype;  /* ONNX number: float32 1, int32 6, int64 7, string 8, bool 9, float64 11 */
    int32_t rank;   /* <= 8 */
    int64_t dims[8];
} TensorRef;

typedef struct RunError {
    int32_t code;      /* > 0: OrtErrorCode; < 0: found by us, see ort_run.h */
    char message[512]; /* NUL-terminated UTF-8, safe to show: no path of the machine the library was built on */
} RunError;

#endif
