// Candidates above a score, out of all boxes and classes. native/reference.py defines the results.
#pragma once

#include <cstdint>
#include <vector>

namespace kernels {

// Scores and boxes of a batch as a network leaves them.
struct Dense {
  const float* boxes;   // (images, priors, 4), or (images, priors, classes, 4) if `per_class`
  const float* scores;  // (images, priors, classes), classes next to each other
  std::int64_t images, priors, classes;
  std::int64_t image_stride, prior_stride;  // of the scores, in floats
  bool per_class;
};

// Boxes (4 floats each), scores and classes of one image, by prior, then by class.
struct Found {
  std::vector<float> boxes, scores;
  std::vector<std::int64_t> labels;
};

// One Found per image: scores strictly above the threshold whose box is finite.
std::vector<Found> collect(const Dense& dense, float threshold, int threads);

}  // namespace kernels
