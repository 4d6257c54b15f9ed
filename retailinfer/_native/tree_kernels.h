/* Names of the kernels of one instruction set: RI_LEVEL is 1 (baseline), 3 (AVX2) or 4 (AVX-512 with VBMI and VBMI2). */
#ifndef RETAILINFER_TREE_KERNELS_H
#define RETAILINFER_TREE_KERNELS_H

#include "tree_keys.h"

#define RI_JOIN(NAME, LEVEL) NAME##_##LEVEL
#define RI_JOIN_LEVEL(NAME, LEVEL) RI_JOIN(NAME, LEVEL)
#define RI_NAME(NAME) RI_JOIN_LEVEL(NAME, RI_LEVEL)

ri_tree_kernel RI_NAME(ri_walk_1), RI_NAME(ri_walk_8);
#if defined(RI_VECTORS)
ri_tree_kernel RI_NAME(ri_ranked_32), RI_NAME(ri_ranked_64), RI_NAME(ri_ranked_128), RI_NAME(ri_ranked_256);
#endif
#if RI_LEVEL == 4
ri_tree_kernel RI_NAME(ri_jump_1), RI_NAME(ri_jump_8);
ri_recorded_kernel RI_NAME(ri_jump_recorded);
#endif

#endif
