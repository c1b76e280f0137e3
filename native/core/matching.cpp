#include "matching.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "parallel.hpp"

namespace kernels {
namespace {

// Overlaps below which starting threads costs more than it saves.
constexpr std::int64_t kWorthThreads = 1 << 20;

// Priors in columns, with bounds of runs of them; detectors list neighbours next to each other.
class Columns {
 public:
  Columns(const float* priors, std::int64_t count) {
    constexpr float kFar = std::numeric_limits<float>::infinity();
    const std::int64_t tiles = (count + kTile - 1) / kTile;
    const std::int64_t padded = tiles * kTile;
    const std::int64_t bounds = (tiles + kTile - 1) / kTile * kTile;
    floats_.resize(static_cast<std::size_t>(5 * padded + 4 * bounds));
    float* next = floats_.data();
    float *columns[5], *edges[4];
    for (float*& column : columns) column = std::exchange(next, next + padded);
    for (float*& edge : edges) edge = std::exchange(next, next + bounds);
    // Beyond the last prior and the last tile there is nothing to meet.
    for (const int low : {0, 1}) {
      std::fill_n(columns[low], padded, kFar);
      std::fill_n(columns[low + 2], padded, -kFar);
      std::fill_n(edges[low], bounds, kFar);
      std::fill_n(edges[low + 2], bounds, -kFar);
    }
    for (std::int64_t at = 0; at < count; ++at) {
      const float* prior = priors + 4 * at;
      for (int side = 0; side < 4; ++side) {
        columns[side][at] = prior[side];
        float& edge = edges[side][at / kTile];
        edge = side < 2 ? std::min(edge, prior[side]) : std::max(edge, prior[side]);
      }
      columns[4][at] = (prior[2] - prior[0]) * (prior[3] - prior[1]);
    }
    std::copy_n(columns, 5, priors_.columns);
    std::copy_n(edges, 4, priors_.bounds);
    priors_.tiles = tiles;
  }

  const Priors& priors() const { return priors_; }

 private:
  std::vector<float> floats_;
  Priors priors_;
};

}  // namespace

void match_priors(const PriorBatch& batch, float threshold, Claims claims, int threads,
                  std::int64_t* box, std::uint8_t* positive) {
  if (batch.count == 0) return;
  const Columns columns(batch.priors, batch.count);
  const std::size_t padded = static_cast<std::size_t>(columns.priors().tiles * kTile);
  const bool worth = batch.images * batch.slots * batch.count >= kWorthThreads;
  parallel_for(batch.images, worth ? threads : 1, [&](std::int64_t image, int) {
    const float* boxes = batch.boxes + image * batch.slots * 4;
    const std::uint8_t* valid = batch.valid + image * batch.slots;
    std::int64_t* image_box = box + image * batch.count;
    std::uint8_t* image_positive = positive + image * batch.count;
    const std::int64_t first = std::find(valid, valid + batch.slots, 1) - valid;
    if (first == batch.slots) {
      std::fill_n(image_box, batch.count, 0);
      std::fill_n(image_positive, batch.count, std::uint8_t{0});
      return;
    }
    std::vector<float> best(padded, 0.0f);
    std::vector<std::int32_t> slot(padded, static_cast<std::int32_t>(first));
    std::vector<std::int64_t> claimed(static_cast<std::size_t>(batch.slots), -1);
    for (std::int64_t at = first; at < batch.slots; ++at) {
      if (!valid[at]) continue;
      claimed[at] = engine().overlap_priors(columns.priors(), boxes + 4 * at,
                                            static_cast<std::int32_t>(at), best.data(),
                                            slot.data());
    }
    std::copy_n(slot.begin(), batch.count, image_box);
    for (std::int64_t prior = 0; prior < batch.count; ++prior) {
      image_positive[prior] =
          claims == Claims::kFirst ? best[prior] > threshold : best[prior] >= threshold;
    }
    const auto claim = [&](std::int64_t at) {
      if (claimed[at] < 0) return;
      image_box[claimed[at]] = at;
      image_positive[claimed[at]] = 1;
    };
    if (claims == Claims::kLast) {
      for (std::int64_t at = 0; at < batch.slots; ++at) claim(at);
    } else {
      for (std::int64_t at = batch.slots; at-- > 0;) claim(at);
    }
  });
}

}  // namespace kernels
