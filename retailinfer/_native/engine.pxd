"""Types of the engine: who owns which memory for how long. What it does: engine.pyx; what Python sees: engine.pyi."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

from retailinfer._native.admission cimport Call, Permits, StageClock, ri_stage
from retailinfer._native.ort cimport OrtModel, RiLane
from retailinfer._native.program cimport Program, RequestReader, RowState, ri_slot, ri_state
from retailinfer._native.reasons cimport ForestReasons
from retailinfer._native.resolve cimport CallOptions, Lease, Resolver
from retailinfer._native.table cimport SnapshotTable, TableSlot, TableView, ri_index
from retailinfer._native.tensor_ref cimport RunError, StrRef, TensorRef
from retailinfer._native.trees cimport TreeModel

cdef enum:
    TILE = 512          # rows of tensors that a workspace holds; larger requests loop
    MAX_POOL = 8


ctypedef struct Cell:       # one stored column of a record -> its slot
    int32_t slot
    int32_t kind            # of the cell: 0 f64, 1 i64, 2 text, 3 vector
    int64_t bit
    size_t offset
    int64_t width


ctypedef struct Segment:    # cells that are copied together
    int32_t tensor
    int64_t source          # byte offset in the item block's row
    int64_t target          # byte offset in the tensor's row
    int64_t size


ctypedef struct Condition:  # one comparison of `available=`
    int32_t kind
    int32_t op              # 0 <, 1 <=, 2 >, 3 >=, 4 ==, 5 !=
    int64_t bit
    size_t offset
    double number


ctypedef struct Lookup:         # an entity's plan for one table, as native code needs it
    ri_index index
    TableView view
    const int* keys             # slots of the key's parts
    int n_keys
    Cell* cells
    int n_cells


ctypedef struct Blank:          # cells of one group, and what they become when the group is taken away
    int32_t group
    int32_t tensor
    bint is_mask
    size_t offset               # bytes, in the tensor's row
    size_t size
    const uint8_t* value


cdef class Occlusion:
    """Groups of cells of the models' inputs, with the background that stands for each: contributions without a look inside."""
    cdef:
        readonly tuple names          # one object a group, shared by all answers
        readonly int32_t most         # reasons of one row
        int32_t n_groups
        int n_blanks
        Blank* blanks                 # by group
        list keep                     # what they point into


cdef class Bound:
    """A plan fitted to one generation of its table. Immutable; whoever holds it may read the table without the GIL."""
    cdef:
        readonly SnapshotTable table
        int* keys
        Lookup c


cdef class EntityPlan:
    """How one entity's stored columns get into slots, and the latest `Bound` of it."""
    cdef:
        readonly str name
        readonly TableSlot slot       # where the store points
        readonly int section          # 0 context, 1 item, 2 cross
        int n_keys
        int* keys                     # slots
        tuple wanted                  # slots of the stored columns
        tuple columns                 # their names in the table
        tuple kinds                   # canonical type names that the spec wants
        Bound bound
    cdef Bound current(self)


cdef class Workspace:
    """Memory for one call at a time: slots, one tile of tensors, scores. Popped from the engine's pool, pushed back after."""
    cdef:
        RowState state
        uint8_t** tensors             # (n_tensors) 64-byte aligned, TILE rows each
        uint8_t** masks               # (n_tensors) or NULL each
        uint8_t** wide_masks          # masks in the dtype of the model's input
        uint8_t** rows                # scratch: where the current row of each tensor is
        uint8_t** mask_rows
        uint8_t** templates           # context cells of one row, per tensor
        uint8_t** template_masks
        TensorRef* inputs             # in the order of the model's inputs
        int n_tensors
        RiLane* lane                  # the single row, prepared
        void* tree_scratch            # of a forest's call; NULL: no forest
        int32_t* leaves               # (reason_rows, trees) of rows whose reasons are looked for
        void* reason_scratch
        int32_t* picked               # (TILE, most) groups: the reasons of each row
        int32_t* n_picked             # (TILE)
        float* occluded               # (groups + 1) scores of one row, whole and without each group
        OrtModel model                # kept alive for the lane
        float scores[TILE]
        int64_t capacity              # candidates that the arrays below hold
        int32_t* found                # row in the item table, per candidate
        StrRef* keys                  # key bytes, per candidate
        int64_t* numbers              # integer keys
        int32_t* kept                 # candidate of each scored row
        float* ranked                 # its score
        uint8_t* why                  # per candidate: 0 kept, or why it is suppressed
        int32_t* set_cells            # open addressing over rows: duplicates and exclusions
        int64_t set_size
        int32_t* kept_rows            # its row in the item table, -1: unknown
        int32_t* order                # positions of the best, best first
        uint8_t* seen                 # per column: 1 missing, 2 stale, 4 unavailable, over all rows of a ranking
        bint seen_any
        bint has_unknown              # some kept candidate has no row
        bint has_refused
        int64_t bad_rows              # rows of the tile in which a score left its range
        Bound items                   # the candidates' table of this call
        Lookup* item_lookup           # the same, for native code; NULL: none
        Lookup** cross                # entities of context and candidate, of this call
        StrRef* cross_keys            # (TILE) composite keys of a tile
        int32_t* cross_rows           # (cross plans, TILE) their rows
        uint8_t* block                # finished item cells of this call's table; NULL: none
        int64_t block_stride
        uint8_t* flags                # per item row: 1 refused, 2 something was missing; NULL: nothing was
        int64_t flags_stride
        char* key_scratch
        int64_t key_room
        CallOptions options           # of this call; only where there is a resolver
        Lease lease                   # None without a resolver
        const ri_slot* live_cross     # (candidates, cells): what mutable tables hold for context and candidate
        Call* call                    # whose memory this is, on its caller's stack; NULL: a tool's
        bint fresh                    # no value of the answer was stale or unavailable

    cdef int reserve(self, int64_t n) except -1
    cdef int reserve_set(self, int64_t size) except -1


cdef class Available:
    cdef:
        EntityPlan plan
        readonly str text
        list terms
        Condition* conditions
        int n
        tuple schema                  # of the tables that the offsets describe; no table is kept alive
        Available newer               # for tables whose columns are others
    cdef Available current(self, SnapshotTable table)
    cdef int _read(self, tuple columns) except -1
    cdef bint holds(self, const TableView* view, int64_t row) noexcept nogil


cdef class Prepared:
    """One request as other models than the release's own take it, and what a decision about it says beside their score."""
    cdef:
        readonly object request
        readonly list inputs          # arrays, one row each, in the order of the models' inputs
        readonly tuple stale
        readonly tuple missing
        readonly bint fresh
        readonly bint review          # a column sends it to review
        readonly object segment       # the policy's bands for it; None: the common ones
        readonly tuple trace
        readonly bint counted         # it was counted in its windows


cdef class Engine:
    cdef:
        readonly Program program
        readonly RequestReader reader
        readonly OrtModel model       # None: `session` or `trees` is asked
        readonly TreeModel trees      # the forest that is the model; None: there is none
        int tree_column               # of its answer
        readonly ForestReasons reasons    # why the forest says so; None: nobody asks
        readonly Occlusion occlusion      # the same of any other model
        readonly int32_t most             # reasons of a decision; 0: none are worked out
        tuple reason_names
        int64_t reason_rows           # rows whose leaves are kept at once
        readonly int64_t rows_each    # rows that the model runs for one request
        readonly object session
        readonly str release
        readonly str arm
        readonly tuple trace          # what every answer of this release says of where it came from
        readonly double hold_below_us # GIL: kept where native work is predicted to be shorter
        float score_low               # what the model's last operator guarantees
        float score_high
        readonly double fixed_us      # prediction: fixed_us + row_us * rows
        readonly double row_us
        readonly int tile             # rows per model run; 1 where rows of a batch influence each other
        readonly bint has_clock       # a column measures ages or elapsed time
        readonly Resolver resolver    # mutable tables, aliases and windows; None: snapshots are all there is
        int n_live_cross              # cells of them, and their slots
        const int* live_slots
        int64_t budget_ns             # of a call that brings no deadline of its own
        bint is_system_clock          # `clock` is the machine's, which is read without Python
        readonly Permits permits      # None: as many calls as there are
        readonly StageClock run_clock     # single calls without their waiting: what admission compares with
        readonly StageClock wait_clock    # waiting of calls that had to
        readonly StageClock whole_clock   # these calls as a whole
        list sized_clocks             # batches and rankings, without their waiting, by octave of their rows
        int64_t wake_ns               # by how much waiting lately went on after its time was over
        readonly int64_t n_short      # calls for which time seemed too short
        readonly int64_t n_refused_time   # of these, those that were refused
        readonly int64_t n_late       # answers that came after the deadline and were dropped
        readonly object hook          # told of answers; None: nobody
        object event_type
        object on_drill               # given every n-th answer; None: nobody
        int64_t drill_every           # 0: never
        int64_t drill_left
        readonly int64_t n_hook_failures  # what hooks and drills raised
        object decode_msgpack
        readonly int64_t n_answers    # decisions and rankings
        readonly int64_t n_fresh      # of these, made without a stale and without an unavailable value
        list pool
        tuple all_plans
        int n_cross_plans
        tuple context_plans           # entities that depend on the request alone
        tuple cross_plans             # entities that need the candidate too
        EntityPlan item_plan          # the candidate's own table, or None
        int candidate_slot            # -1: not a ranker
        bint candidate_text           # True: ids are text, False: integers
        uint16_t* context_columns
        uint16_t* item_columns
        uint16_t* cross_columns
        int n_context, n_item, n_cross
        Segment* item_segments
        int n_item_segments
        Segment* context_segments
        int n_context_segments
        int64_t item_row_bytes
        int64_t max_item_age_ns       # smallest max_age among item columns; 0: none
        str block_name
        str flags_name
        int n_inputs
        tuple input_plan              # ((is mask, tensor), shape template) per model input
        tuple actions                 # (action names) of all bands of all segments, by band number
        float* thresholds
        tuple moves                   # still to come, earliest first: (wall ns, lowest scores of all bands, trace)
        int64_t next_move_ns          # of the first of them; FOREVER = none
        int n_bands
        dict segments                 # value -> (first band, number of bands)
        int segment_slot
        object review_action
        object decision_type
        object ranking_type
        object decode_json
        object encode_json
        object decode_ids
        int64_t max_bytes
        int max_depth
        readonly int64_t max_rows
        object clock                  # wall_ns, monotonic_ns
        int64_t* row_bytes            # per tensor
        int64_t* cells                # per tensor
        int* mask_dtype               # per tensor
        int* tensor_is_context        # per tensor
        int64_t* input_bytes          # per model input: bytes of a row
        int* input_is_context         # per model input
        uint64_t* outside             # per column: values outside the training range, of workspaces that are gone
        bint has_masks
        bint has_text                 # some tensor holds texts
        int n_common_bands            # bands [0, n) are those of no segment

    cdef Workspace pop(self)
    cdef void push(self, Workspace ws) noexcept
    cdef int64_t monotonic_ns(self) except? -1
    cdef int64_t wall_ns(self) except? -1
    cdef int enter(self, Call* call, object priority, int64_t budget_ns, StageClock stage, int64_t began_ns) except -1
    cdef int64_t began_earlier(self, Call* call, int64_t began_ns) noexcept
    cdef int admit(self, Call* call, int64_t n) except -1
    cdef StageClock sized(self, int64_t n)
    cdef int short_of_time(self, Call* call, ri_stage* stage, int64_t left_ns) except -1
    cdef void untimed(self, Call* call) noexcept
    cdef void leave(self, Call* call) noexcept
    cdef object conclude(self, Call* call, object answer, object request, object priority)
    cdef int tell(self, object answer, object request, int64_t now_ns, int64_t took_ns, object priority) except -1
    cdef int drill(self, object answer, object request) except -1
    cdef int check_score(self, float score) except -1
    cdef object as_rung(self, object decision, str release, int rung)
    cdef int refuse_late(self, int64_t late_ns) except -1
    cdef int begin_wait(self, Workspace ws) except -1
    cdef void stop_wait(self, Workspace ws) noexcept
    cdef int end_wait(self, Workspace ws) except -1
    cdef int64_t wait_until(self, Call* call) noexcept
    cdef int fetch_many(self, Workspace ws, dict missing) except -1
    cdef int tell_error(self, Workspace ws) except -1
    cdef int tell_began(self, object error, Call* call) except -1
    cdef object no_time_for(self, Call* call, int64_t n)
    cdef void _set_rows(self, Workspace ws, int64_t n) noexcept nogil
    cdef void _widen_masks(self, Workspace ws, int64_t n) noexcept nogil
    cdef int look_up(self, Lookup* plan, Workspace ws) noexcept nogil
    cdef int begin(self, Workspace ws, int64_t now_ns, int64_t budget_ns, bint observe, object event_id, bint may_wait,
                   bint copy) except -1
    cdef int resolve_row(self, object request, Workspace ws, int64_t now_ns, int64_t row) except -1
    cdef int resolve_all(self, object request, Workspace ws, int64_t row) except -1
    cdef int look_up_all(self, Workspace ws, tuple snapshots, tuple live, int64_t row) except -1
    cdef int prefetch(self, list items, int64_t start, int64_t end, int64_t first_row, Workspace ws) except -1
    cdef int gather_cross(self, Workspace ws, int64_t m) except -1
    cdef int64_t moment(self, Workspace ws) noexcept
    cdef StrRef candidate_key(self, Workspace ws, int32_t candidate) noexcept nogil
    cdef bint seen_fresh(self, Workspace ws) noexcept nogil
    cdef int fill_row(self, Workspace ws, int64_t at, int64_t row) except -1
    cdef int run_model(self, Workspace ws, int64_t n, bint release_gil) except -1
    cdef int tree_scores(self, Workspace ws, int64_t n, RunError* err) noexcept nogil
    cdef int run_row(self, Workspace ws, int64_t end_ns) except -1
    cdef int64_t end_of(self, int64_t budget_ns) except -1
    cdef int run_occluded(self, Workspace ws) except -1
    cdef void occlude_rows(self, Workspace ws, int64_t first, int64_t n) noexcept nogil
    cdef void pick_occluded(self, Workspace ws) noexcept nogil
    cdef tuple reasons_of(self, Workspace ws, int64_t at)
    cdef bint out_of_range(self, Workspace ws, int64_t n) noexcept nogil
    cdef int refuse_range(self, Workspace ws, int64_t n) except -1
    cdef int python_scores(self, Workspace ws, int64_t n) except -1
    cdef object next_id(self)
    cdef object band_action(self, float score, Workspace ws)
    cdef object decide(self, Workspace ws, float score, object request_id, object action)
    cdef int move_thresholds(self) except -1
    cdef tuple _flags(self, Workspace ws, int first)
    cdef bint flags_are_fresh(self, Workspace ws) noexcept nogil
    cdef int guard(self, const char* data, Py_ssize_t size, bint json) except -1
    cdef object decode_body(self, object body, bint json, object decode)
    cdef object score_object(self, object request, object request_id, int64_t now_ns, Call* call, bint observe,
                             object event_id, bint may_wait, object priority, int64_t* marks)
    cdef list batch_core(self, object requests, bint row_errors, int64_t now_ns, object request_ids, int64_t first_row, Call* call,
                         int64_t budget_ns, bint observe, object event_ids, object priority)
    cdef object rank_list(self, object context, object candidates, int64_t k, object available, object exclude, object request_id,
                          int64_t now_ns, Call* call, bint observe, object event_id, bint may_wait, object priority)
    cdef object _segment_bands(self, Workspace ws)
    cdef object _decide_row(self, float score, object flags, object action, object segment, object request_id, tuple trace,
                            tuple reasons)
    cdef int encode_row(self, Lookup* plan, Workspace ws, int64_t row, uint8_t* out, uint8_t* flag) noexcept nogil
    cdef void set_candidate(self, Workspace ws, StrRef key) noexcept nogil
    cdef object rank_raw(self, object context, object raw, int64_t k, object available, object exclude, object request_id,
                         int64_t now_ns, Call* call, bint observe, object event_id, object priority, int64_t* marks)
    cdef int rank_context(self, object context, Workspace ws, int64_t now_ns) except -1
    cdef void note_flags(self, Workspace ws) noexcept nogil
    cdef int64_t rank_filter(self, list ids, int64_t n, Workspace ws, Available available, object exclude,
                             dict suppressed) except -1
    cdef bint releases(self, int64_t n) noexcept
    cdef object key_object(self, list ids, Workspace ws, int64_t i)
    cdef object plain_key(self, object key, str where, int64_t i)
    cdef list run_alone(self, Workspace ws, int64_t n, list reasons)
    cdef int count_rows(self, object rows, str what) except -1
    cdef int own_key(self, object key, Workspace ws, int64_t i) except -1
    cdef int find_cross(self, Workspace ws, int64_t first, int64_t count) noexcept nogil
    cdef int64_t assemble(self, Workspace ws, int64_t first, int64_t count) noexcept nogil
    cdef void copy_rows(self, Workspace ws, int64_t first, int64_t count) noexcept nogil
    cdef int64_t native_tiles(self, Workspace ws, int64_t m, RunError* err) noexcept nogil
    cdef int64_t python_tiles(self, Workspace ws, int64_t m, int64_t* marks) except -2
    cdef void keep_scores(self, Workspace ws, int64_t first, int64_t placed, int64_t total) noexcept nogil
    cdef object rank_core(self, object context, list ids, int64_t n, Workspace ws, int64_t k, object available, object exclude,
                          object request_id, int64_t now_ns, int64_t* marks)
    cdef int note_items(self, Workspace ws, int64_t k) except -1
    cdef tuple seen_names(self, Workspace ws)
