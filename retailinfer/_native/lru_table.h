/* skeleton */
#ifndef RETAILINFER_LRU_TABLE_H
#define RETAILINFER_LRU_TABLE_H
#include "table.h"
enum { RI_ROW_FRESH = 0, RI_ROW_REFRESH = 1, RI_ROW_EXPIRED = 2, RI_ROW_ABSENT = 3, RI_ROW_UNKNOWN = 4 };
typedef struct ri_lru ri_lru;
RI_INLINE int64_t ri_row_expires_ns(const uint8_t *record) { return (int64_t)ri_load64(record - 48); }
RI_INLINE int64_t ri_row_written_ns(const uint8_t *record) { return (int64_t)ri_load64(record - 40); }
RI_INLINE int64_t ri_row_cell_expires_ns(const uint8_t *record, int64_t ttl_ns, double jitter) {
    (void)jitter;
    return ri_row_written_ns(record) + ttl_ns;
}
RI_INLINE StrRef ri_row_text(const uint8_t *record, size_t offset) {
    StrRef text = {(const char *)record + ri_load32(record + offset), (int64_t)ri_load32(record + offset + 4)};
    return text;
}
#endif
