#include "coco_matching.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "parallel.hpp"
#include "sorting.hpp"

namespace kernels {
namespace {

// Detections below which starting threads costs more than it saves.
constexpr std::int64_t kWorthThreads = 1 << 14;

double overlap(const double* detection, const double* box, bool crowd) {
  const double width =
      std::min(detection[2] + detection[0], box[2] + box[0]) - std::max(detection[0], box[0]);
  if (width <= 0) return 0;
  const double height =
      std::min(detection[3] + detection[1], box[3] + box[1]) - std::max(detection[1], box[1]);
  if (height <= 0) return 0;
  const double shared = width * height, own = detection[2] * detection[3];
  const double part = shared / (crowd ? own : own + box[2] * box[3] - shared);
  // Areas beyond the range of a double: not a number, and no overlap.
  return std::isnan(part) ? 0 : part;
}

class Matcher {
 public:
  Matcher(const Detections& detections, const Annotations& annotations, const MatchParams& params,
          const DetectionMatches& into)
      : detections_(detections), annotations_(annotations), params_(params), into_(into) {
    for (std::int64_t level = 0; level < params.levels; ++level) {
      bars_.push_back(std::min(params.thresholds[level], 1 - 1e-10));
    }
    lowest_ = *std::min_element(bars_.begin(), bars_.end());
    whole_ = ones(params.levels);
    for (std::int64_t span = 0; span < params.spans; ++span) {
      repeat_ |= std::uint64_t{1} << span * params.levels;
    }
  }

  // `rows` are those of one image, in the order given.
  void image(const std::int64_t* rows, std::int64_t count) {
    const std::int64_t image = detections_.images[rows[0]];
    ranked_.clear();
    for (std::int64_t n = 0; n < count; ++n) {
      ranked_.push_back(
          {detections_.labels[rows[n]], falling(detections_.scores[rows[n]]), rows[n]});
    }
    std::sort(ranked_.begin(), ranked_.end());
    for (auto first = ranked_.begin(); first != ranked_.end();) {
      const std::int64_t label = first->label;
      const auto last = std::find_if(first, ranked_.end(),
                                     [=](const Ranked& one) { return one.label != label; });
      targets_.clear();
      for (std::int64_t row = annotations_.offsets[image]; row < annotations_.offsets[image + 1];
           ++row) {
        if (annotations_.labels[row] == label) targets_.push_back(target(row));
      }
      for (auto at = first; at != last; ++at) match(at->row, at - first);
      first = last;
    }
  }

 private:
  struct Ranked {
    std::int64_t label;
    std::uint64_t key;
    std::int64_t row;

    bool operator<(const Ranked& other) const {
      if (label != other.label) return label < other.label;
      if (key != other.key) return key < other.key;
      return row < other.row;
    }
  };

  struct Target {
    std::int64_t row;
    std::uint64_t ignored;  // where it does not count: a crowd, or outside the range
    std::uint64_t taken;
    bool crowd;

    std::uint64_t open() const { return crowd ? ~std::uint64_t{0} : ~taken; }
  };

  struct Candidate {
    std::size_t target;
    double overlap;
  };

  static std::uint64_t ones(std::int64_t count) {
    return count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  }

  // All bits of the ranges that a measure lies in.
  std::uint64_t inside(double measure) const {
    std::uint64_t bits = 0;
    for (std::int64_t span = 0; span < params_.spans; ++span) {
      const double* range = params_.ranges + 2 * span;
      if (!(measure < range[0] || measure > range[1])) bits |= whole_ << span * params_.levels;
    }
    return bits;
  }

  Target target(std::int64_t row) const {
    const bool crowd = annotations_.crowd[row] != 0;
    return {row, crowd ? ~std::uint64_t{0} : ~inside(annotations_.measures[row]), 0, crowd};
  }

  void match(std::int64_t row, std::int64_t rank) {
    into_.ranks[row] = rank;
    into_.true_positives[row] = into_.false_positives[row] = 0;
    into_.boxes[row] = -1;
    if (rank >= params_.limit) return;
    candidates_.clear();
    for (std::size_t at = 0; at < targets_.size(); ++at) {
      const double shared = overlap(detections_.boxes + 4 * row,
                                    annotations_.boxes + 4 * targets_[at].row, targets_[at].crowd);
      if (!(shared < lowest_)) candidates_.push_back({at, shared});
    }
    std::uint64_t matched = 0;
    if (candidates_.size() == 1) {
      std::uint64_t levels = 0;
      for (std::int64_t level = 0; level < params_.levels; ++level) {
        if (!(candidates_[0].overlap < bars_[level])) levels |= std::uint64_t{1} << level;
      }
      matched = repeat_ * levels & targets_[candidates_[0].target].open();
      take(row, candidates_[0].target, matched);
    } else if (!candidates_.empty()) {
      for (std::int64_t bit = 0; bit < params_.levels * params_.spans; ++bit) {
        matched |= best(row, bit);
      }
    }
    into_.false_positives[row] = inside(detections_.measures[row]) & ~matched;
  }

  // Take the box of highest overlap, the last on ties; one that counts before one that does not.
  std::uint64_t best(std::int64_t row, std::int64_t bit) {
    const std::uint64_t mask = std::uint64_t{1} << bit;
    for (const std::uint64_t ignored : {std::uint64_t{0}, mask}) {
      double bar = bars_[bit % params_.levels];
      const Candidate* chosen = nullptr;
      for (const Candidate& one : candidates_) {
        const Target& target = targets_[one.target];
        if ((target.ignored & mask) != ignored || !(target.open() & mask)) continue;
        if (one.overlap < bar) continue;
        bar = one.overlap;
        chosen = &one;
      }
      if (chosen == nullptr) continue;
      take(row, chosen->target, mask);
      return mask;
    }
    return 0;
  }

  void take(std::int64_t row, std::size_t at, std::uint64_t bits) {
    Target& target = targets_[at];
    target.taken |= bits;
    into_.true_positives[row] |= bits & ~target.ignored;
    if (bits & 1) into_.boxes[row] = target.row;
  }

  const Detections& detections_;
  const Annotations& annotations_;
  const MatchParams& params_;
  const DetectionMatches& into_;
  std::vector<double> bars_;
  double lowest_;
  std::uint64_t whole_, repeat_ = 0;
  std::vector<Ranked> ranked_;
  std::vector<Target> targets_;
  std::vector<Candidate> candidates_;
};

}  // namespace

void match_detections(const Detections& detections, const Annotations& annotations,
                      const MatchParams& params, int threads, const DetectionMatches& into) {
  if (detections.count == 0) return;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(detections.count));
  std::iota(rows.begin(), rows.end(), 0);
  if (!std::is_sorted(detections.images, detections.images + detections.count)) {
    std::stable_sort(rows.begin(), rows.end(), [&](std::int64_t a, std::int64_t b) {
      return detections.images[a] < detections.images[b];
    });
  }
  std::vector<std::int64_t> edges{0};
  for (std::int64_t at = 1; at < detections.count; ++at) {
    if (detections.images[rows[at]] != detections.images[rows[at - 1]]) edges.push_back(at);
  }
  edges.push_back(detections.count);
  const int workers = detections.count >= kWorthThreads ? threads : 1;
  std::vector<Matcher> matchers(static_cast<std::size_t>(std::max(workers, 1)),
                              Matcher(detections, annotations, params, into));
  parallel_for(static_cast<std::int64_t>(edges.size()) - 1, workers,
               [&](std::int64_t image, int worker) {
                 matchers[worker].image(rows.data() + edges[image],
                                        edges[image + 1] - edges[image]);
               });
}

}  // namespace kernels
