#include "suppression.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "engine.hpp"
#include "parallel.hpp"
#include "sorting.hpp"

namespace kernels {
namespace {

// Pair tests below which starting threads costs more than it saves.
constexpr std::int64_t kWorthThreads = 1 << 20;

// Candidates of one image, class after class in the order of the labels.
struct Groups {
  std::vector<std::uint32_t> rows;
  std::vector<std::int64_t> start;  // (classes + 1,) into rows

  std::int64_t classes() const { return static_cast<std::int64_t>(start.size()) - 1; }
  std::int64_t size(std::int64_t group) const { return start[group + 1] - start[group]; }
};

Groups group_by_label(const float* scores, const std::int64_t* labels, std::int64_t count,
                      float threshold) {
  Groups groups;
  groups.rows.reserve(static_cast<std::size_t>(count));
  std::int64_t low = std::numeric_limits<std::int64_t>::max();
  std::int64_t high = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t row = 0; row < count; ++row) {
    if (!(scores[row] >= threshold)) continue;
    groups.rows.push_back(static_cast<std::uint32_t>(row));
    low = std::min(low, labels[row]);
    high = std::max(high, labels[row]);
  }
  groups.start.push_back(0);
  if (groups.rows.empty()) return groups;
  const std::uint64_t span =
      static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);  // wraps as it should
  if (span < 2 * groups.rows.size() + 1024) {
    std::vector<std::int64_t> next(span + 2, 0);
    for (const std::uint32_t row : groups.rows) ++next[labels[row] - low + 1];
    for (std::size_t label = 1; label < next.size(); ++label) {
      next[label] += next[label - 1];
      if (next[label] != next[label - 1]) groups.start.push_back(next[label]);
    }
    std::vector<std::uint32_t> sorted(groups.rows.size());
    for (const std::uint32_t row : groups.rows) sorted[next[labels[row] - low]++] = row;
    groups.rows = std::move(sorted);
  } else {
    std::stable_sort(groups.rows.begin(), groups.rows.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return labels[a] < labels[b]; });
    for (std::size_t at = 1; at <= groups.rows.size(); ++at) {
      if (at == groups.rows.size() || labels[groups.rows[at]] != labels[groups.rows[at - 1]]) {
        groups.start.push_back(static_cast<std::int64_t>(at));
      }
    }
  }
  return groups;
}

// Of each class only the `count` best boxes stay, the first on ties; their order is lost.
void keep_best(Groups& groups, const float* scores, std::int64_t count) {
  const auto better = [&](std::uint32_t a, std::uint32_t b) {
    return heap_key(scores[a], a) > heap_key(scores[b], b);
  };
  std::int64_t to = 0;
  for (std::int64_t c = 0; c < groups.classes(); ++c) {
    const auto begin = groups.rows.begin() + groups.start[c];
    const auto end = groups.rows.begin() + groups.start[c + 1];
    const auto cut = begin + std::min<std::int64_t>(end - begin, count);
    if (cut != end) std::nth_element(begin, cut, end, better);
    groups.start[c] = to;
    to = std::copy(begin, cut, groups.rows.begin() + to) - groups.rows.begin();
  }
  groups.start.back() = to;
  groups.rows.resize(static_cast<std::size_t>(to));
}

// Buffers of one thread, reused from class to class.
class Workspace {
 public:
  BlockRoom block_room(std::int64_t count) {
    const std::int64_t blocks = (count + kBlock - 1) / kBlock;
    const std::int64_t slots = blocks * kBlock;
    const std::int64_t bounds = (blocks + kBlock - 1) / kBlock * kBlock;
    const std::size_t needed = static_cast<std::size_t>(6 * slots + 5 * bounds);
    if (floats_.size() < needed) floats_.resize(needed);
    if (rows_.size() < static_cast<std::size_t>(slots)) rows_.resize(slots);
    BlockRoom room;
    float* next = floats_.data();
    for (float*& column : room.columns) column = std::exchange(next, next + slots);
    for (float*& bound : room.bounds) bound = std::exchange(next, next + bounds);
    room.rows = rows_.data();
    return room;
  }

  // The rows such that boxes of similar size and place are near each other.
  const std::uint32_t* neighbours(const float* boxes, const std::uint32_t* rows,
                                  std::int64_t count) {
    if (count <= 2 * kBlock) return rows;
    float x1 = std::numeric_limits<float>::max(), y1 = x1, x2 = -x1, y2 = -x1;
    for (std::int64_t at = 0; at < count; ++at) {
      const float* box = boxes + std::int64_t{4} * rows[at];
      x1 = std::min(x1, box[0]);
      y1 = std::min(y1, box[1]);
      x2 = std::max(x2, box[2]);
      y2 = std::max(y2, box[3]);
    }
    const float across = std::max(std::max(x2 - x1, y2 - y1), std::numeric_limits<float>::min());
    keys_.resize(static_cast<std::size_t>(count));
    for (std::int64_t at = 0; at < count; ++at) {
      const float* box = boxes + std::int64_t{4} * rows[at];
      const float size = std::max(box[2] - box[0], box[3] - box[1]) / across;
      const auto cell = [&](float low, float high, float origin) {
        const float centre = (low * 0.5f + high * 0.5f - origin) / across;
        return static_cast<std::uint32_t>(std::min(std::max(centre, 0.0f), 1.0f) * 1023.0f);
      };
      // Sizes by octave, from the whole extent down to a fifteenth halving.
      int octave = 0;
      std::frexp(size, &octave);
      const std::uint64_t scale = static_cast<std::uint64_t>(std::clamp(octave + 15, 0, 15));
      const std::uint64_t place =
          interleave(cell(box[0], box[2], x1)) | interleave(cell(box[1], box[3], y1)) << 1;
      keys_[at] = (scale << 20 | place) << 32 | rows[at];
    }
    sort_by_bytes(keys_, spare_, 4, 7);
    order_.resize(static_cast<std::size_t>(count));
    for (std::int64_t at = 0; at < count; ++at) order_[at] = static_cast<std::uint32_t>(keys_[at]);
    return order_.data();
  }

 private:
  // The ten bits of a number at every second place.
  static std::uint64_t interleave(std::uint32_t bits) {
    bits = (bits | bits << 8) & 0x00ff00ffu;
    bits = (bits | bits << 4) & 0x0f0f0f0fu;
    bits = (bits | bits << 2) & 0x33333333u;
    return (bits | bits << 1) & 0x55555555u;
  }

  std::vector<float> floats_;
  std::vector<std::uint32_t> rows_, order_;
  std::vector<std::uint64_t> keys_, spare_;
};

struct ImageRows {
  const float* boxes;
  const float* scores;
  const std::int64_t* labels;
  std::int64_t start, count;
};

Kept suppress_lazily(const ImageRows& rows, const Groups& groups, const Rule& rule) {
  const std::int64_t classes = groups.classes();
  const std::int64_t limit =
      std::min<std::int64_t>(rule.max_total, static_cast<std::int64_t>(groups.rows.size()));
  const std::size_t count = static_cast<std::size_t>(rows.count);
  std::vector<std::uint64_t> heap(groups.rows.size());
  std::vector<std::uint32_t> group(count), seen(count, 0), kept_of(classes, 0);
  std::vector<float> scores(rows.scores, rows.scores + rows.count);
  std::vector<std::int64_t> first(static_cast<std::size_t>(classes));
  std::int64_t places = 0;
  for (std::int64_t c = 0; c < classes; ++c) {
    first[c] = places;
    places += std::min({groups.size(c), limit, rule.max_per_class});
    for (std::int64_t at = groups.start[c]; at < groups.start[c + 1]; ++at) {
      const std::uint32_t row = groups.rows[at];
      group[row] = static_cast<std::uint32_t>(c);
      heap[at] = heap_key(scores[row], row);
    }
  }
  places += kBlock;
  std::vector<float> columns(static_cast<std::size_t>(5 * places), 0.0f);
  LazyRoom room{heap.data(), static_cast<std::int64_t>(heap.size()), group.data(), scores.data(),
                seen.data(), {}, first.data(), kept_of.data()};
  for (int column = 0; column < 5; ++column) {
    room.columns[column] = columns.data() + column * places;
  }
  std::vector<std::uint32_t> found(static_cast<std::size_t>(limit));
  Kept kept;
  kept.scores.resize(static_cast<std::size_t>(limit));
  const Image image{rows.boxes, rows.scores, &rule};
  const std::int64_t done = engine().lazy(image, room, limit, found.data(), kept.scores.data());
  kept.scores.resize(static_cast<std::size_t>(done));
  kept.rows.reserve(static_cast<std::size_t>(done));
  for (std::int64_t at = 0; at < done; ++at) kept.rows.push_back(rows.start + found[at]);
  return kept;
}

Kept suppress_all(const ImageRows& rows, const Groups& groups, const Rule& rule, int threads) {
  const std::int64_t classes = groups.classes();
  const std::size_t candidates = groups.rows.size();
  std::vector<std::uint32_t> found(candidates);
  std::vector<float> scores(candidates);
  std::vector<std::int64_t> done(static_cast<std::size_t>(classes));
  std::vector<Workspace> spaces(static_cast<std::size_t>(threads));
  const Image image{rows.boxes, rows.scores, &rule};
  const std::int64_t limit = std::min(rule.max_per_class, rule.max_total);
  parallel_for(classes, threads, [&](std::int64_t c, int worker) {
    Workspace& space = spaces[worker];
    const std::int64_t start = groups.start[c], count = groups.size(c);
    const std::uint32_t* order = space.neighbours(rows.boxes, groups.rows.data() + start, count);
    done[c] = engine().blocked(image, order, count, limit, space.block_room(count),
                               found.data() + start, scores.data() + start);
  });
  // Merge the classes: by falling score, equal scores by row.
  std::vector<std::uint64_t> keys, spare;
  keys.reserve(candidates);
  for (std::int64_t c = 0; c < classes; ++c) {
    for (std::int64_t at = groups.start[c]; at < groups.start[c] + done[c]; ++at) {
      keys.push_back(std::uint64_t{~ordered(scores[at])} << 32 | static_cast<std::uint64_t>(at));
    }
  }
  sort_by_bytes(keys, spare, 4, 8);
  const auto row_of = [&](std::uint64_t key) { return found[static_cast<std::uint32_t>(key)]; };
  for (auto from = keys.begin(); from != keys.end();) {
    const auto to = std::find_if(
        from, keys.end(), [&](std::uint64_t key) { return key >> 32 != *from >> 32; });
    if (to - from > 1) {
      std::sort(from, to,
                [&](std::uint64_t a, std::uint64_t b) { return row_of(a) < row_of(b); });
    }
    from = to;
  }
  keys.resize(std::min<std::uint64_t>(keys.size(), static_cast<std::uint64_t>(rule.max_total)));
  Kept kept;
  kept.rows.reserve(keys.size());
  kept.scores.reserve(keys.size());
  for (const std::uint64_t key : keys) {
    kept.rows.push_back(rows.start + row_of(key));
    kept.scores.push_back(scores[static_cast<std::uint32_t>(key)]);
  }
  return kept;
}

Kept suppress_image(const ImageRows& rows, const Rule& rule, int threads) {
  Groups groups = group_by_label(rows.scores, rows.labels, rows.count, rule.score_threshold);
  if (rule.top_k_per_class < static_cast<std::int64_t>(groups.rows.size())) {
    keep_best(groups, rows.scores, rule.top_k_per_class);
  }
  if (rule.max_total < static_cast<std::int64_t>(groups.rows.size())) {
    return suppress_lazily(rows, groups, rule);
  }
  std::int64_t pairs = 0;
  for (std::int64_t c = 0; c < groups.classes(); ++c) {
    pairs += groups.size(c) * std::min(groups.size(c), rule.max_per_class);
  }
  return suppress_all(rows, groups, rule, pairs < kWorthThreads ? 1 : threads);
}

}  // namespace

std::vector<Kept> suppress(const Batch& batch, const Rule& rule, int threads) {
  std::vector<Kept> kept(static_cast<std::size_t>(batch.images));
  const auto run = [&](std::int64_t n, int inner) {
    const std::int64_t start = batch.offsets[n], count = batch.offsets[n + 1] - start;
    const ImageRows rows{batch.boxes + 4 * start, batch.scores + start, batch.labels + start,
                         start, count};
    kept[n] = suppress_image(rows, rule, inner);
  };
  const std::int64_t rows = batch.offsets[batch.images];
  if (batch.images >= threads && rows * 16 >= kWorthThreads) {
    parallel_for(batch.images, threads, [&](std::int64_t n, int) { run(n, 1); });
  } else {
    for (std::int64_t n = 0; n < batch.images; ++n) run(n, threads);
  }
  return kept;
}

}  // namespace kernels
