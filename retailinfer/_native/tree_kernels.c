/* The kernels of one instruction set. Compiled, like their files, once for each. */
#include "tree_kernels.h"

#if RI_LEVEL == 4
#define RI_SET ri_kernels_avx512
#define RI_SET_NAME "avx512"
#elif RI_LEVEL == 3
#define RI_SET ri_kernels_avx2
#define RI_SET_NAME "avx2"
#else
#define RI_SET ri_kernels_base
#define RI_SET_NAME "baseline"
#endif

extern const ri_kernel_set RI_SET;

const ri_kernel_set RI_SET = {
    RI_SET_NAME,
    {RI_NAME(ri_walk_1), RI_NAME(ri_walk_8),
#if RI_LEVEL == 4
     RI_NAME(ri_jump_1), RI_NAME(ri_jump_8),
#else
     NULL, NULL,
#endif
#if defined(RI_VECTORS)
     RI_NAME(ri_ranked_32), RI_NAME(ri_ranked_64), RI_NAME(ri_ranked_128), RI_NAME(ri_ranked_256)
#endif
    },
#if RI_LEVEL == 4
    RI_NAME(ri_jump_recorded)
#else
    NULL
#endif
};
