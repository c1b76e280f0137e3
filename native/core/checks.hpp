// What the kernels refuse; native/reference.py says the same.
#pragma once

#include <cstdint>

namespace kernels {

enum Fault { kNone = 0, kNotFinite = 1, kTooLarge = 2, kInverted = 3 };

struct BadBox {
  std::int64_t row;  // -1 if there is none
  Fault fault;
};

BadBox first_bad_box(const float* boxes, std::int64_t rows);

// -1 if all are finite.
std::int64_t first_bad_score(const float* scores, std::int64_t rows);

}  // namespace kernels
