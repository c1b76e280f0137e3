// Soft-NMS and NMS over classes and images. native/reference.py defines the results, to the bit.
#pragma once

#include <cstdint>
#include <vector>

namespace kernels {

enum class Method { kLinear = 0, kGaussian = 1, kHard = 2 };

struct Rule {
  Method method;
  float iou_threshold;      // IoU strictly above it is decayed or removed
  float sigma;              // of the Gaussian weight exp(-iou^2 / sigma)
  float score_threshold;    // a score below it leaves; -infinity for none
  bool plus_one;            // a length is x2 - x1 + 1
  std::int64_t top_k_per_class;  // of each class of an image only the best take part
  std::int64_t max_per_class;
  std::int64_t max_total;   // per image
};

// Rows kept and their decayed scores, by falling score, then row.
struct Kept {
  std::vector<std::int64_t> rows;
  std::vector<float> scores;
};

// A batch of images, one after the other; image n is rows offsets[n] to offsets[n + 1].
struct Batch {
  const float* boxes;            // (M, 4) xyxy, checked by first_bad_box
  const float* scores;           // (M,) finite
  const std::int64_t* labels;    // (M,)
  const std::int64_t* offsets;   // (images + 1,)
  std::int64_t images;
};

// Largest number of rows of one image.
constexpr std::int64_t kMostRows = (std::int64_t{1} << 31) - 1;

// One Kept per image. The same for any number of threads.
std::vector<Kept> suppress(const Batch& batch, const Rule& rule, int threads);

}  // namespace kernels
