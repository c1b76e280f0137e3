#include "collection.hpp"

#include <algorithm>
#include <cmath>

#include "engine.hpp"
#include "parallel.hpp"

namespace kernels {
namespace {

// Scores below which starting threads costs more than it saves.
constexpr std::int64_t kWorthThreads = 1 << 20;

// Hits searched for at a time.
constexpr std::int64_t kRoom = 4096;

}  // namespace

std::vector<Found> collect(const Dense& dense, float threshold, int threads) {
  std::vector<Found> results(static_cast<std::size_t>(dense.images));
  const bool worth = dense.images * dense.priors * dense.classes >= kWorthThreads;
  parallel_for(dense.images, worth ? threads : 1, [&](std::int64_t image, int) {
    Found& result = results[image];
    const Rows rows{dense.scores + image * dense.image_stride, dense.priors, dense.classes,
                    dense.prior_stride};
    const std::int64_t boxes_per_prior = dense.per_class ? dense.classes : 1;
    const float* boxes = dense.boxes + image * dense.priors * boxes_per_prior * 4;
    std::vector<std::uint64_t> hits(static_cast<std::size_t>(std::max(kRoom, dense.classes)));
    for (std::int64_t row = 0; row < rows.count;) {
      const std::int64_t count = engine().find_above(rows, threshold, &row, hits.data(),
                                                     static_cast<std::int64_t>(hits.size()));
      for (std::int64_t hit = 0; hit < count; ++hit) {
        const auto prior = static_cast<std::int64_t>(hits[hit] >> 32);
        const auto label = static_cast<std::int64_t>(hits[hit] & 0xffffffffu);
        const float* box = boxes + 4 * (prior * boxes_per_prior + (dense.per_class ? label : 0));
        if (!std::all_of(box, box + 4, [](float side) { return std::isfinite(side); })) continue;
        result.boxes.insert(result.boxes.end(), box, box + 4);
        result.scores.push_back(rows.scores[prior * rows.stride + label]);
        result.labels.push_back(label);
      }
    }
  });
  return results;
}

}  // namespace kernels
