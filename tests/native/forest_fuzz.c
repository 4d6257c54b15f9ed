/* libFuzzer's door to forest_case_check: what a coverage-guided run does with the bytes of a case. */
#include "forest_cases.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static forest_counts counts;
    forest_case_check(data, size, NULL, &counts);
    return 0;
}
