// The kernels for the processor every build must run on: SSE2 on x86-64, NEON on AArch64.
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "engine.hpp"

namespace {
#define LANES 4
#include "lanes.inl"
#include "suppression.inl"
#include "matching.inl"
}  // namespace

namespace kernels {
const Engine kBaselineEngine = {"baseline", blocked, lazy, overlap_priors};
}
