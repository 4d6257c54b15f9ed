/* Windows whose state is kept elsewhere: what an event asks the store to do, and what the store's value of an entity says.
 *
 * One value per entity, in the entry formats of panes.h, all numbers little endian:
 *     value     "RIW1" | u32 bytes in all | u32 known_s | sections          known_s: what was before is not known; 0 = all is
 *     section   u64 digest | u8 kind | u8 0 | u16 entries | u32 keep | u32 until_s | entries          20 bytes before the entries
 *     digest    the first 8 bytes of the accumulator's; a ring of event ids is a section of kind RI_ACC_IDS
 *     until_s   seconds since 1950 after which nothing of the section can matter
 * One list of operations per entity, for the script that adds (windows_redis.py):
 *     header    u8 1 | u8 add | u16 accumulators | u32 now_s | u64 event hash, 0 = none | u64 digest of the ring      24 bytes
 *     each      u64 digest | u8 kind | u8 applies | u16 0 | u32 keep | u32 life_s | u32 pane | u32 limit | i64 value     36 bytes
 *     limit     the last pane that can be: what lies behind it was written under a clock that was wrong
 *     value     of sum, min and max the number, of distinct the hash, of count 0
 *
 * Rules:
 *   - The value comes from outside: every offset, count, order and number is checked before anything is read out of it.
 *   - What is read out of a value is read by the code that reads blocks in memory: same arithmetic, same bits.
 */
#ifndef RETAILINFER_WINDOWS_WIRE_H
#define RETAILINFER_WINDOWS_WIRE_H

#include "panes.h"

#define RI_WIRE_HEADER 24
#define RI_WIRE_STEP 36

/* clock_ns: the true clock, 0 = there is none; the now of a call may be any moment of the past. `digests`: of the plan's accumulators in their order, then of its ring. Room for RI_WIRE_HEADER + n_accs * RI_WIRE_STEP. */
void ri_wire_operations(ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, const uint64_t *digests,
                        int64_t clock_ns, int add, uint8_t *out);

/* Find the sections of a value and judge the event by them, as `prepare` does: 0, a RI_WINDOW_* error of the event, or -1: the
 * value is not one. size 0: there is no value. known_ns: for ri_windows_read_block. */
int ri_wire_open(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const uint64_t *digests,
                 int64_t clock_ns, const uint8_t *value, int64_t size, int64_t *known_ns);

#endif
