#include "grading.hpp"

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

double overlap(const double* found, const double* box, bool crowd) {
  const double width =
      std::min(found[2] + found[0], box[2] + box[0]) - std::max(found[0], box[0]);
  if (width <= 0) return 0;
  const double height =
      std::min(found[3] + found[1], box[3] + box[1]) - std::max(found[1], box[1]);
  if (height <= 0) return 0;
  const double shared = width * height, own = found[2] * found[3];
  const double part = shared / (crowd ? own : own + box[2] * box[3] - shared);
  // Areas beyond the range of a double: not a number, and no overlap.
  return std::isnan(part) ? 0 : part;
}

class Grader {
 public:
  Grader(const Detections& found, const Annotations& truth, const Exam& exam, const Verdicts& into)
      : found_(found), truth_(truth), exam_(exam), into_(into) {
    for (std::int64_t level = 0; level < exam.levels; ++level) {
      bars_.push_back(std::min(exam.thresholds[level], 1 - 1e-10));
    }
    lowest_ = *std::min_element(bars_.begin(), bars_.end());
    whole_ = ones(exam.levels);
    for (std::int64_t span = 0; span < exam.spans; ++span) {
      repeat_ |= std::uint64_t{1} << span * exam.levels;
    }
  }

  // `rows` are those of one image, in the order given.
  void image(const std::int64_t* rows, std::int64_t count) {
    const std::int64_t at = found_.images[rows[0]];
    ranked_.clear();
    for (std::int64_t n = 0; n < count; ++n) {
      ranked_.push_back({found_.labels[rows[n]], falling(found_.scores[rows[n]]), rows[n]});
    }
    std::sort(ranked_.begin(), ranked_.end());
    for (auto first = ranked_.begin(); first != ranked_.end();) {
      const std::int64_t label = first->label;
      const auto last = std::find_if(first, ranked_.end(),
                                     [=](const Ranked& one) { return one.label != label; });
      targets_.clear();
      for (std::int64_t row = truth_.offsets[at]; row < truth_.offsets[at + 1]; ++row) {
        if (truth_.labels[row] == label) targets_.push_back(target(row));
      }
      for (auto one = first; one != last; ++one) verdict(one->row, one - first);
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
    for (std::int64_t span = 0; span < exam_.spans; ++span) {
      const double* range = exam_.ranges + 2 * span;
      if (!(measure < range[0] || measure > range[1])) bits |= whole_ << span * exam_.levels;
    }
    return bits;
  }

  Target target(std::int64_t row) const {
    const bool crowd = truth_.crowd[row] != 0;
    return {row, crowd ? ~std::uint64_t{0} : ~inside(truth_.measures[row]), 0, crowd};
  }

  void verdict(std::int64_t row, std::int64_t place) {
    into_.places[row] = place;
    into_.hits[row] = into_.alarms[row] = 0;
    into_.boxes[row] = -1;
    if (place >= exam_.limit) return;
    candidates_.clear();
    for (std::size_t at = 0; at < targets_.size(); ++at) {
      const double shared = overlap(found_.boxes + 4 * row,
                                    truth_.boxes + 4 * targets_[at].row, targets_[at].crowd);
      if (!(shared < lowest_)) candidates_.push_back({at, shared});
    }
    std::uint64_t matched = 0;
    if (candidates_.size() == 1) {
      std::uint64_t levels = 0;
      for (std::int64_t level = 0; level < exam_.levels; ++level) {
        if (!(candidates_[0].overlap < bars_[level])) levels |= std::uint64_t{1} << level;
      }
      matched = repeat_ * levels & targets_[candidates_[0].target].open();
      take(row, candidates_[0].target, matched);
    } else if (!candidates_.empty()) {
      for (std::int64_t bit = 0; bit < exam_.levels * exam_.spans; ++bit) {
        matched |= best(row, bit);
      }
    }
    into_.alarms[row] = inside(found_.measures[row]) & ~matched;
  }

  // Take the box of highest overlap, the last on ties; one that counts before one that does not.
  std::uint64_t best(std::int64_t row, std::int64_t bit) {
    const std::uint64_t mask = std::uint64_t{1} << bit;
    for (const std::uint64_t ignored : {std::uint64_t{0}, mask}) {
      double bar = bars_[bit % exam_.levels];
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
    into_.hits[row] |= bits & ~target.ignored;
    if (bits & 1) into_.boxes[row] = target.row;
  }

  const Detections& found_;
  const Annotations& truth_;
  const Exam& exam_;
  const Verdicts& into_;
  std::vector<double> bars_;
  double lowest_;
  std::uint64_t whole_, repeat_ = 0;
  std::vector<Ranked> ranked_;
  std::vector<Target> targets_;
  std::vector<Candidate> candidates_;
};

}  // namespace

void grade(const Detections& found, const Annotations& truth, const Exam& exam, int threads,
           const Verdicts& into) {
  if (found.count == 0) return;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(found.count));
  std::iota(rows.begin(), rows.end(), 0);
  if (!std::is_sorted(found.images, found.images + found.count)) {
    std::stable_sort(rows.begin(), rows.end(), [&](std::int64_t a, std::int64_t b) {
      return found.images[a] < found.images[b];
    });
  }
  std::vector<std::int64_t> edges{0};
  for (std::int64_t at = 1; at < found.count; ++at) {
    if (found.images[rows[at]] != found.images[rows[at - 1]]) edges.push_back(at);
  }
  edges.push_back(found.count);
  const int workers = found.count >= kWorthThreads ? threads : 1;
  std::vector<Grader> graders(static_cast<std::size_t>(std::max(workers, 1)),
                              Grader(found, truth, exam, into));
  parallel_for(static_cast<std::int64_t>(edges.size()) - 1, workers,
               [&](std::int64_t image, int worker) {
                 graders[worker].image(rows.data() + edges[image], edges[image + 1] - edges[image]);
               });
}

}  // namespace kernels
