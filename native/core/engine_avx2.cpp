// The kernels for processors with AVX2; chosen at run time, whatever the build's flags say.
#include <cstdint>
#include <cstring>
#include <limits>

#include "engine.hpp"

#if defined(KERNELS_HAVE_AVX2)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace {
#define LANES 8
#define LANES_AVX2
#include "lanes.inl"
#include "suppression.inl"
#include "matching.inl"
}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kernels {
const Engine kAvx2Engine = {"avx2", blocked, lazy, overlap_priors};
}
#endif
