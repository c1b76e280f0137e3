#include "tally.hpp"

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
  Classes(const Graded& graded, std::int64_t classes) : start_(classes + 1, 0) {
    entries_.resize(static_cast<std::size_t>(graded.count));
    const bool sorted = std::is_sorted(graded.images, graded.images + graded.count);
    std::vector<Entry> by_image;
    if (!sorted) {
      for (std::int64_t row = 0; row < graded.count; ++row) {
        by_image.push_back({static_cast<std::uint64_t>(graded.images[row]), row});
      }
      std::vector<Entry> spare;
      sort_by_bytes(by_image, spare, 0, 8);
    }
    for (std::int64_t row = 0; row < graded.count; ++row) ++start_[graded.labels[row] + 1];
    for (std::size_t label = 1; label < start_.size(); ++label) start_[label] += start_[label - 1];
    std::vector<std::int64_t> next(start_.begin(), start_.end());
    for (std::int64_t at = 0; at < graded.count; ++at) {
      const std::int64_t row = sorted ? at : by_image[at].row;
      entries_[next[graded.labels[row]]++] = {falling(graded.scores[row]), row};
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

// The curves of one class at one threshold and one range, built hit by hit.
struct Curve {
  std::vector<double> precision;     // at each hit
  std::vector<double> scores;        // of each hit
  std::vector<std::int64_t> within;  // hits by limit
  std::int64_t alarms;               // those that are none in all levels of the range left out
};

class Tally {
 public:
  Tally(const Graded& graded, const Scale& scale, const Curves& into)
      : graded_(graded), scale_(scale), into_(into), every_(scale.spans) {
    curves_.resize(static_cast<std::size_t>(scale.spans * scale.levels));
  }

  void label(std::int64_t label, const Classes& classes) {
    classes.ranked(label, entries_, spare_);
    for (Curve& curve : curves_) {
      curve.precision.clear();
      curve.scores.clear();
      curve.within.assign(static_cast<std::size_t>(scale_.caps), 0);
      curve.alarms = 0;
    }
    std::fill(every_.begin(), every_.end(), 0);
    for (const Entry& entry : entries_) count(entry.row);
    for (std::int64_t span = 0; span < scale_.spans; ++span) {
      if (scale_.boxes[label * scale_.spans + span] == 0) continue;
      for (std::int64_t level = 0; level < scale_.levels; ++level) write(label, span, level);
    }
  }

 private:
  void count(std::int64_t row) {
    const std::int64_t levels = scale_.levels;
    const std::uint64_t whole =
        levels == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << levels) - 1;
    const std::uint64_t hits = graded_.hits[row], alarms = graded_.alarms[row];
    for (std::int64_t span = 0; span < scale_.spans; ++span) {
      std::uint64_t alarmed = alarms >> span * levels & whole;
      if (alarmed == whole) {
        ++every_[span];
        continue;
      }
      Curve* curves = curves_.data() + span * levels;
      for (; alarmed != 0; alarmed &= alarmed - 1) ++curves[__builtin_ctzll(alarmed)].alarms;
      std::uint64_t hit = hits >> span * levels & whole;
      for (; hit != 0; hit &= hit - 1) {
        Curve& curve = curves[__builtin_ctzll(hit)];
        const auto right = static_cast<double>(curve.precision.size() + 1);
        const auto wrong = static_cast<double>(every_[span] + curve.alarms);
        curve.precision.push_back(
            right / (wrong + right + std::numeric_limits<double>::epsilon()));
        if (span == 0) curve.scores.push_back(graded_.scores[row]);
        for (std::int64_t cap = scale_.caps; cap-- > 0;) {
          if (graded_.places[row] >= scale_.limits[cap]) break;
          ++curve.within[cap];
        }
      }
    }
  }

  void write(std::int64_t label, std::int64_t span, std::int64_t level) {
    Curve& curve = curves_[span * scale_.levels + level];
    std::vector<double>& precision = curve.precision;
    for (std::size_t at = precision.size(); at-- > 1;) {
      precision[at - 1] = std::max(precision[at - 1], precision[at]);
    }
    const auto boxes = static_cast<double>(scale_.boxes[label * scale_.spans + span]);
    std::size_t at = 0;
    for (std::int64_t point = 0; point < scale_.points; ++point) {
      const double recall = scale_.recalls[point];
      while (at < precision.size() && static_cast<double>(at + 1) / boxes < recall) ++at;
      const bool reached = at < precision.size();
      const std::int64_t cell = (level * scale_.points + point) * scale_.classes + label;
      into_.precision[cell * scale_.spans + span] = reached ? precision[at] : 0;
      if (span != 0) continue;
      // No recall is reached by the very first detection, whatever it found.
      if (recall <= 0) {
        into_.scores[cell] = entries_.empty() ? 0 : graded_.scores[entries_[0].row];
      } else {
        into_.scores[cell] = reached ? curve.scores[at] : 0;
      }
    }
    for (std::int64_t cap = 0; cap < scale_.caps; ++cap) {
      const std::int64_t cell = (level * scale_.classes + label) * scale_.spans + span;
      into_.recall[cell * scale_.caps + cap] = static_cast<double>(curve.within[cap]) / boxes;
    }
  }

  const Graded& graded_;
  const Scale& scale_;
  const Curves& into_;
  std::vector<std::int64_t> every_;  // alarms at all levels of a range
  std::vector<Curve> curves_;
  std::vector<Entry> entries_, spare_;
};

}  // namespace

void tally(const Graded& graded, const Scale& scale, int threads, const Curves& into) {
  const std::int64_t cells = scale.levels * scale.classes;
  std::fill_n(into.precision, cells * scale.points * scale.spans, -1.0);
  std::fill_n(into.scores, cells * scale.points, -1.0);
  std::fill_n(into.recall, cells * scale.spans * scale.caps, -1.0);
  const Classes classes(graded, scale.classes);
  const int workers = graded.count >= kWorthThreads ? threads : 1;
  std::vector<Tally> tallies(static_cast<std::size_t>(std::max(workers, 1)),
                             Tally(graded, scale, into));
  parallel_for(scale.classes, workers, [&](std::int64_t label, int worker) {
    tallies[worker].label(label, classes);
  });
}

}  // namespace kernels
