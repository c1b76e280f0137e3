// The part of the kernels that is compiled once per instruction set.
//
// Its translation units use no templates or inline functions of the standard library: the linker
// keeps one copy of those, which could be the one for a processor that is not there. Callers lend
// all memory.
#pragma once

#include <cstdint>

#include "suppression.hpp"

namespace kernels {

// Boxes of one image; rows below are relative to it.
struct Image {
  const float* boxes;
  const float* scores;
  const Rule* rule;
};

// Boxes per block of the blocked algorithm, a multiple of every LANES.
constexpr std::int64_t kBlock = 32;

// Room for the blocked algorithm on `capacity` boxes.
struct BlockRoom {
  float* columns[6];          // x1 y1 x2 y2 area score, each kBlock * blocks long
  std::uint32_t* rows;        // kBlock * blocks
  float* bounds[5];           // x1 y1 x2 y2 best, each blocks long, rounded up to kBlock
};

// Candidates of all classes of an image for the lazy algorithm.
struct LazyRoom {
  std::uint64_t* heap;            // one key per candidate, in any order
  std::int64_t candidates;
  const std::uint32_t* group;     // (rows of the image) dense class of each candidate row
  float* scores;                  // (rows of the image) scores as decayed so far
  std::uint32_t* seen;            // (rows of the image) 0; kept boxes of the class already applied
  // Kept boxes by class: class c owns columns[.][first[c]...], with kBlock to spare at the end.
  float* columns[5];              // x1 y1 x2 y2 area
  const std::int64_t* first;
  std::uint32_t* kept;            // (classes) 0
};

// Priors per tile, a multiple of every LANES.
constexpr std::int64_t kTile = 64;

// Priors for matching, in tiles that are passed over where their bounds miss a box.
struct Priors {
  const float* columns[5];  // x1 y1 x2 y2 area, each kTile * tiles long
  const float* bounds[4];   // x1 y1 x2 y2, each tiles long, rounded up to kTile
  std::int64_t tiles;
};

struct Engine {
  const char* name;
  // Keep up to `limit` of the boxes in `rows` (of one class, similar places near each other).
  // Returns how many; `kept` and `scores` receive them in the order of selection.
  std::int64_t (*blocked)(const Image& image, const std::uint32_t* rows, std::int64_t count,
                          std::int64_t limit, const BlockRoom& room, std::uint32_t* kept,
                          float* scores);
  // Keep up to `limit` boxes of all classes, best first.
  std::int64_t (*lazy)(const Image& image, const LazyRoom& room, std::int64_t limit,
                       std::uint32_t* kept, float* scores);
  // Compare one box of an image with all priors: raise their `best` IoU and set `best_slot` where
  // it is higher. Returns the first prior of highest IoU.
  std::int64_t (*overlap_priors)(const Priors& priors, const float* box, std::int32_t slot,
                                 float* best, std::int32_t* best_slot);
};

// The engine in use.
const Engine& engine();

// Higher scores have higher keys, and of equal scores lower rows.
static inline std::uint32_t ordered(float score) {
  score += 0.0f;  // -0 to +0: they are equal scores
  std::uint32_t pattern;
  __builtin_memcpy(&pattern, &score, sizeof pattern);
  return pattern & 0x80000000u ? ~pattern : pattern | 0x80000000u;
}

static inline std::uint64_t heap_key(float score, std::uint32_t row) {
  return std::uint64_t{ordered(score)} << 32 | (0xffffffffu - row);
}

static inline std::uint32_t key_row(std::uint64_t key) {
  return 0xffffffffu - static_cast<std::uint32_t>(key);
}

extern const Engine kBaselineEngine;
#if defined(__x86_64__) || defined(__i386__)
#define KERNELS_HAVE_AVX2 1
extern const Engine kAvx2Engine;
#endif

}  // namespace kernels
