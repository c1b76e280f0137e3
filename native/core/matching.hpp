// Assignment of ground truth to priors. native/reference.py defines the results, to the bit.
#pragma once

#include <cstdint>

namespace kernels {

// Padded boxes of a batch and the priors they are matched with; all xyxy, checked.
struct PriorBatch {
  const float* boxes;         // (images, slots, 4)
  const std::uint8_t* valid;  // (images, slots)
  const float* priors;        // (count, 4)
  std::int64_t images, slots, count;
};

// How boxes claim the prior they overlap most.
enum class Claims {
  kFirst = 0,  // the earlier box keeps it; other priors are positive above the threshold
  kLast = 1,   // the later box takes it; other priors are positive from the threshold on
};

// Writes, for every prior of every image, (images, count): the slot of its box, and whether it is
// positive.
void match_priors(const PriorBatch& batch, float threshold, Claims claims, int threads,
                  std::int64_t* box, std::uint8_t* positive);

}  // namespace kernels
