/* The part of ONNX Runtime's C API that is used here: opaque types, numbers, function types, slot numbers.
 *
 * Rules:
 *   * The wheel of onnxruntime ships the library but no header, so this file declares what is needed, and no more.
 *   * The table of function pointers is append-only: a slot number never changes. `tests/test_ort_slots.py` reaches every
 *     slot named here and compares what comes back with the Python API, which has a binding of its own.
 *   * Every function that can fail returns an OrtStatus that the caller must release; NULL is success.
 * What is done with it is `ort_run.c`.
 */
#ifndef RETAILINFER_ORT_C_API_H
#define RETAILINFER_ORT_C_API_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RI_ORT_CALL __stdcall
#else
#define RI_ORT_CALL
#endif

/* The version of the table that is asked for. NULL from GetApi means that the library is older than 1.22. */
#define RI_ORT_API_VERSION 22

typedef struct OrtEnv OrtEnv;
typedef struct OrtStatus OrtStatus;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtAllocator OrtAllocator;

typedef struct OrtApiBase {
    const void *(RI_ORT_CALL *GetApi)(uint32_t version);
    const char *(RI_ORT_CALL *GetVersionString)(void);
} OrtApiBase;

enum { ORT_LOG_ERROR = 3 };
enum { ORT_SEQUENTIAL = 0 };
enum { ORT_DISABLE_ALL = 0, ORT_ENABLE_ALL = 99 };
enum { ORT_ARENA_ALLOCATOR = 1, ORT_MEM_TYPE_DEFAULT = 0 };

/* ONNXType: what a value is. */
enum {
    ORT_TYPE_UNKNOWN = 0,
    ORT_TYPE_TENSOR = 1,
    ORT_TYPE_SEQUENCE = 2,
    ORT_TYPE_MAP = 3,
    ORT_TYPE_OPAQUE = 4,
    ORT_TYPE_SPARSE = 5,
    ORT_TYPE_OPTIONAL = 6,
};

/* ONNXTensorElementDataType, the same numbers as TensorProto.DataType. */
enum {
    ORT_FLOAT32 = 1,
    ORT_UINT8 = 2,
    ORT_INT8 = 3,
    ORT_UINT16 = 4,
    ORT_INT16 = 5,
    ORT_INT32 = 6,
    ORT_INT64 = 7,
    ORT_STRING = 8,
    ORT_BOOL = 9,
    ORT_FLOAT16 = 10,
    ORT_FLOAT64 = 11,
    ORT_UINT32 = 12,
    ORT_UINT64 = 13,
};

typedef void(RI_ORT_CALL *OrtLoggingFunction)(void *param, int severity, const char *category, const char *log_id,
                                              const char *code_location, const char *message);

/* X(slot, name, result, arguments): one line per function. `ort_run.c` makes a struct of typed pointers of them, so that
 * a wrong number or signature can stand in one place only. */
#define RI_ORT_FUNCTIONS(X)                                                                                             \
    X(1, GetErrorCode, int, (const OrtStatus *))                                                                        \
    X(2, GetErrorMessage, const char *, (const OrtStatus *))                                                            \
    X(4, CreateEnvWithCustomLogger, OrtStatus *, (OrtLoggingFunction, void *, int, const char *, OrtEnv **))            \
    X(6, DisableTelemetryEvents, OrtStatus *, (const OrtEnv *))                                                         \
    X(8, CreateSessionFromArray, OrtStatus *,                                                                           \
      (const OrtEnv *, const void *, size_t, const OrtSessionOptions *, OrtSession **))                                 \
    X(9, Run, OrtStatus *,                                                                                              \
      (OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t, const char *const *,  \
       size_t, OrtValue **))                                                                                            \
    X(10, CreateSessionOptions, OrtStatus *, (OrtSessionOptions **))                                                    \
    X(13, SetSessionExecutionMode, OrtStatus *, (OrtSessionOptions *, int))                                             \
    X(17, DisableMemPattern, OrtStatus *, (OrtSessionOptions *))                                                        \
    X(18, EnableCpuMemArena, OrtStatus *, (OrtSessionOptions *))                                                        \
    X(19, DisableCpuMemArena, OrtStatus *, (OrtSessionOptions *))                                                       \
    X(22, SetSessionLogSeverityLevel, OrtStatus *, (OrtSessionOptions *, int))                                          \
    X(23, SetSessionGraphOptimizationLevel, OrtStatus *, (OrtSessionOptions *, int))                                    \
    X(24, SetIntraOpNumThreads, OrtStatus *, (OrtSessionOptions *, int))                                                \
    X(25, SetInterOpNumThreads, OrtStatus *, (OrtSessionOptions *, int))                                                \
    X(30, SessionGetInputCount, OrtStatus *, (const OrtSession *, size_t *))                                            \
    X(31, SessionGetOutputCount, OrtStatus *, (const OrtSession *, size_t *))                                           \
    X(33, SessionGetInputTypeInfo, OrtStatus *, (const OrtSession *, size_t, OrtTypeInfo **))                           \
    X(34, SessionGetOutputTypeInfo, OrtStatus *, (const OrtSession *, size_t, OrtTypeInfo **))                          \
    X(36, SessionGetInputName, OrtStatus *, (const OrtSession *, size_t, OrtAllocator *, char **))                      \
    X(37, SessionGetOutputName, OrtStatus *, (const OrtSession *, size_t, OrtAllocator *, char **))                     \
    X(39, CreateRunOptions, OrtStatus *, (OrtRunOptions **))                                                            \
    X(48, CreateTensorAsOrtValue, OrtStatus *, (OrtAllocator *, const int64_t *, size_t, int, OrtValue **))             \
    X(49, CreateTensorWithDataAsOrtValue, OrtStatus *,                                                                  \
      (const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t, int, OrtValue **))                               \
    X(51, GetTensorMutableData, OrtStatus *, (OrtValue *, void **))                                                     \
    X(53, GetStringTensorDataLength, OrtStatus *, (const OrtValue *, size_t *))                                         \
    X(54, GetStringTensorContent, OrtStatus *, (const OrtValue *, void *, size_t, size_t *, size_t))                    \
    X(55, CastTypeInfoToTensorInfo, OrtStatus *, (const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **))             \
    X(56, GetOnnxTypeFromTypeInfo, OrtStatus *, (const OrtTypeInfo *, int *))                                           \
    X(60, GetTensorElementType, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int *))                                \
    X(61, GetDimensionsCount, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, size_t *))                               \
    X(62, GetDimensions, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int64_t *, size_t))                           \
    X(65, GetTensorTypeAndShape, OrtStatus *, (const OrtValue *, OrtTensorTypeAndShapeInfo **))                         \
    X(69, CreateCpuMemoryInfo, OrtStatus *, (int, int, OrtMemoryInfo **))                                               \
    X(76, AllocatorFree, OrtStatus *, (OrtAllocator *, void *))                                                         \
    X(78, GetAllocatorWithDefaultOptions, OrtStatus *, (OrtAllocator **))                                               \
    X(93, ReleaseStatus, void, (OrtStatus *))                                                                           \
    X(95, ReleaseSession, void, (OrtSession *))                                                                         \
    X(96, ReleaseValue, void, (OrtValue *))                                                                             \
    X(97, ReleaseRunOptions, void, (OrtRunOptions *))                                                                   \
    X(98, ReleaseTypeInfo, void, (OrtTypeInfo *))                                                                       \
    X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo *))                                           \
    X(100, ReleaseSessionOptions, void, (OrtSessionOptions *))                                                          \
    X(111, SessionGetModelMetadata, OrtStatus *, (const OrtSession *, OrtModelMetadata **))                             \
    X(116, ModelMetadataLookupCustomMetadataMap, OrtStatus *,                                                           \
      (const OrtModelMetadata *, OrtAllocator *, const char *, char **))                                                \
    X(118, ReleaseModelMetadata, void, (OrtModelMetadata *))                                                            \
    X(123, ModelMetadataGetCustomMetadataMapKeys, OrtStatus *,                                                          \
      (const OrtModelMetadata *, OrtAllocator *, char ***, int64_t *))                                                  \
    X(130, AddSessionConfigEntry, OrtStatus *, (OrtSessionOptions *, const char *, const char *))                       \
    X(252, GetResizedStringTensorElementBuffer, OrtStatus *, (OrtValue *, size_t, size_t, char **))

#endif
