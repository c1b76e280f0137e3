// COCO's verdict on detections. native/grading_reference.py defines the results, to the bit.
#pragma once

#include <cstdint>

namespace kernels {

// Annotated boxes, xywh; image i has rows offsets[i] to offsets[i + 1].
struct Annotations {
  const std::int64_t* offsets;  // (images + 1)
  const std::int64_t* labels;
  const double* boxes;  // (count, 4)
  const double* measures;
  const std::uint8_t* crowd;
};

// Detections, xywh, of images by position.
struct Detections {
  const std::int64_t* images;
  const std::int64_t* labels;
  const double* boxes;  // (count, 4)
  const double* measures;
  const double* scores;
  std::int64_t count;
};

// What is asked; bit range * levels + level of a word is the answer.
struct Exam {
  const double* thresholds;  // (levels)
  const double* ranges;      // (spans, 2)
  std::int64_t levels, spans, limit;
};

// Of each detection, in the order it was given.
struct Verdicts {
  std::uint64_t* hits;
  std::uint64_t* alarms;
  std::int64_t* places;  // detections of its class and image that come before it
  std::int64_t* boxes;   // row it matched by the first bit, or -1
};

void grade(const Detections& found, const Annotations& truth, const Exam& exam, int threads,
           const Verdicts& into);

}  // namespace kernels
