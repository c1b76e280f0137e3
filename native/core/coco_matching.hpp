// COCO's matching of detections with annotated boxes. native/reference.py defines the results, to
// the bit.
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
struct MatchParams {
  const double* thresholds;  // (levels)
  const double* ranges;      // (spans, 2)
  std::int64_t levels, spans, limit;
};

// Of each detection, in the order it was given.
struct DetectionMatches {
  std::uint64_t* true_positives;
  std::uint64_t* false_positives;
  std::int64_t* ranks;  // detections of its class and image that come before it
  std::int64_t* boxes;   // row it matched by the first bit, or -1
};

void match_detections(const Detections& detections, const Annotations& annotations,
                      const MatchParams& params, int threads, const DetectionMatches& into);

}  // namespace kernels
