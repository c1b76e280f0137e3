// Precision and recall from matches. native/reference.py defines the results, to the bit.
#pragma once

#include <cstdint>

namespace kernels {

// Detections of all images with their matches, in any order.
struct MatchedDetections {
  const std::int64_t* images;
  const std::int64_t* labels;
  const double* scores;
  const std::uint64_t* true_positives;
  const std::uint64_t* false_positives;
  const std::int64_t* ranks;
  std::int64_t count;
};

struct AccumulateParams {
  const std::int64_t* boxes;  // (classes, spans) that count
  const double* recalls;      // (points), rising
  const std::int64_t* limits;  // (caps), rising
  std::int64_t classes, spans, levels, points, caps;
};

struct Curves {
  double* precision;  // (levels, points, classes, spans)
  double* scores;     // (levels, points, classes), of the first range
  double* recall;     // (levels, classes, spans, caps)
};

void accumulate(const MatchedDetections& matched, const AccumulateParams& params, int threads,
                const Curves& into);

}  // namespace kernels
