#include "coco_accumulate.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "parallel.hpp"
#include "sorting.hpp"

namespace kernels {
namespace {

// Detections below which starting threads costs more than it saves.
constexpr std::int64_t kWorthThreads = 1 << 14;

struct Entry {
  std::uint64_t key;
  std::int64_t row;
};

// Rows by class, within it by image, within that as given.
class Classes {
 public:
  Classes(const MatchedDetections& matched, std::int64_t classes) : start_(classes + 1, 0) {
    entries_.resize(static_cast<std::size_t>(matched.count));
    const bool sorted = std::is_sorted(matched.images, matched.images + matched.count);
    std::vector<Entry> by_image;
    if (!sorted) {
      for (std::int64_t row = 0; row < matched.count; ++row) {
        by_image.push_back({static_cast<std::uint64_t>(matched.images[row]), row});
      }
      std::vector<Entry> spare;
      sort_by_bytes(by_image, spare, 0, 8);
    }
    for (std::int64_t row = 0; row < matched.count; ++row) ++start_[matched.labels[row] + 1];
    for (std::size_t label = 1; label < start_.size(); ++label) start_[label] += start_[label - 1];
    std::vector<std::int64_t> next(start_.begin(), start_.end());
    for (std::int64_t at = 0; at < matched.count; ++at) {
      const std::int64_t row = sorted ? at : by_image[at].row;
      entries_[next[matched.labels[row]]++] = {falling(matched.scores[row]), row};
    }
  }

  // Writes the entries of a class by falling score.
  void ranked(std::int64_t label, std::vector<Entry>& entries, std::vector<Entry>& spare) const {
    entries.assign(entries_.begin() + start_[label], entries_.begin() + start_[label + 1]);
    sort_by_bytes(entries, spare, 0, 8);
  }

 private:
  std::vector<std::int64_t> start_;
  std::vector<Entry> entries_;
};

// The curves of one class at one threshold and one range, built true positive by true positive.
struct Curve {
  std::vector<double> precision;     // at each true positive
  std::vector<double> scores;        // of each true positive
  std::vector<std::int64_t> within;  // true positives by limit
  // Those that are false positives at all levels of the range left out.
  std::int64_t false_positives;
};

class Accumulator {
 public:
  Accumulator(const MatchedDetections& matched, const AccumulateParams& params, const Curves& into)
      : matched_(matched), params_(params), into_(into), every_(params.spans) {
    curves_.resize(static_cast<std::size_t>(params.spans * params.levels));
  }

  void label(std::int64_t label, const Classes& classes) {
    classes.ranked(label, entries_, spare_);
    for (Curve& curve : curves_) {
      curve.precision.clear();
      curve.scores.clear();
      curve.within.assign(static_cast<std::size_t>(params_.caps), 0);
      curve.false_positives = 0;
    }
    std::fill(every_.begin(), every_.end(), 0);
    for (const Entry& entry : entries_) count(entry.row);
    for (std::int64_t span = 0; span < params_.spans; ++span) {
      if (params_.boxes[label * params_.spans + span] == 0) continue;
      for (std::int64_t level = 0; level < params_.levels; ++level) write(label, span, level);
    }
  }

 private:
  void count(std::int64_t row) {
    const std::int64_t levels = params_.levels;
    const std::uint64_t whole =
        levels == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << levels) - 1;
    for (std::int64_t span = 0; span < params_.spans; ++span) {
      std::uint64_t false_at = matched_.false_positives[row] >> span * levels & whole;
      if (false_at == whole) {
        ++every_[span];
        continue;
      }
      Curve* curves = curves_.data() + span * levels;
      for (; false_at != 0; false_at &= false_at - 1) {
        ++curves[__builtin_ctzll(false_at)].false_positives;
      }
      std::uint64_t true_at = matched_.true_positives[row] >> span * levels & whole;
      for (; true_at != 0; true_at &= true_at - 1) {
        Curve& curve = curves[__builtin_ctzll(true_at)];
        const auto right = static_cast<double>(curve.precision.size() + 1);
        const auto wrong = static_cast<double>(every_[span] + curve.false_positives);
        curve.precision.push_back(
            right / (wrong + right + std::numeric_limits<double>::epsilon()));
        if (span == 0) curve.scores.push_back(matched_.scores[row]);
        for (std::int64_t cap = params_.caps; cap-- > 0;) {
          if (matched_.ranks[row] >= params_.limits[cap]) break;
          ++curve.within[cap];
        }
      }
    }
  }

  void write(std::int64_t label, std::int64_t span, std::int64_t level) {
    Curve& curve = curves_[span * params_.levels + level];
    std::vector<double>& precision = curve.precision;
    for (std::size_t at = precision.size(); at-- > 1;) {
      precision[at - 1] = std::max(precision[at - 1], precision[at]);
    }
    const auto boxes = static_cast<double>(params_.boxes[label * params_.spans + span]);
    std::size_t at = 0;
    for (std::int64_t point = 0; point < params_.points; ++point) {
      const double recall = params_.recalls[point];
      while (at < precision.size() && static_cast<double>(at + 1) / boxes < recall) ++at;
      const bool reached = at < precision.size();
      const std::int64_t cell = (level * params_.points + point) * params_.classes + label;
      into_.precision[cell * params_.spans + span] = reached ? precision[at] : 0;
      if (span != 0) continue;
      // No recall is reached by the very first detection, whatever it detects.
      if (recall <= 0) {
        into_.scores[cell] = entries_.empty() ? 0 : matched_.scores[entries_[0].row];
      } else {
        into_.scores[cell] = reached ? curve.scores[at] : 0;
      }
    }
    for (std::int64_t cap = 0; cap < params_.caps; ++cap) {
      const std::int64_t cell = (level * params_.classes + label) * params_.spans + span;
      into_.recall[cell * params_.caps + cap] = static_cast<double>(curve.within[cap]) / boxes;
    }
  }

  const MatchedDetections& matched_;
  const AccumulateParams& params_;
  const Curves& into_;
  std::vector<std::int64_t> every_;  // detections that are false at all levels of a range
  std::vector<Curve> curves_;
  std::vector<Entry> entries_, spare_;
};

}  // namespace

void accumulate(const MatchedDetections& matched, const AccumulateParams& params, int threads,
                const Curves& into) {
  const std::int64_t cells = params.levels * params.classes;
  std::fill_n(into.precision, cells * params.points * params.spans, -1.0);
  std::fill_n(into.scores, cells * params.points, -1.0);
  std::fill_n(into.recall, cells * params.spans * params.caps, -1.0);
  const Classes classes(matched, params.classes);
  const int workers = matched.count >= kWorthThreads ? threads : 1;
  std::vector<Accumulator> accumulators(static_cast<std::size_t>(std::max(workers, 1)),
                                        Accumulator(matched, params, into));
  parallel_for(params.classes, workers, [&](std::int64_t label, int worker) {
    accumulators[worker].label(label, classes);
  });
}

}  // namespace kernels
