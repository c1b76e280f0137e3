#include "checks.hpp"

#include <cmath>

namespace kernels {
namespace {

constexpr float kLargestCoordinate = 1e18f;  // of native/rules.py

}  // namespace

BadBox first_bad_box(const float* boxes, std::int64_t rows) {
  const auto usable = [](const float* box) {
    bool good = box[0] <= box[2];
    good &= box[1] <= box[3];
    for (int at = 0; at < 4; ++at) good &= std::fabs(box[at]) <= kLargestCoordinate;
    return good;
  };
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* box = boxes + 4 * row;
    if (usable(box)) continue;
    for (int at = 0; at < 4; ++at) {
      if (!std::isfinite(box[at])) return {row, kNotFinite};
    }
    for (int at = 0; at < 4; ++at) {
      if (std::fabs(box[at]) > kLargestCoordinate) return {row, kTooLarge};
    }
    return {row, kInverted};
  }
  return {-1, kNone};
}

std::int64_t first_bad_score(const float* scores, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (!std::isfinite(scores[row])) return row;
  }
  return -1;
}

}  // namespace kernels
