// Precision and recall from verdicts. native/grading_reference.py defines the results, to the bit.
#pragma once

#include <cstdint>

namespace kernels {

// Verdicts of all images, in any order.
struct Graded {
  const std::int64_t* images;
  const std::int64_t* labels;
  const double* scores;
  const std::uint64_t* hits;
  const std::uint64_t* alarms;
  const std::int64_t* places;
  std::int64_t count;
};

struct Scale {
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

void tally(const Graded& graded, const Scale& scale, int threads, const Curves& into);

}  // namespace kernels
