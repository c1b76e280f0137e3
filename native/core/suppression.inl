// Both algorithms of suppression for one instruction set; see engine.hpp for what must not be used.
// Follows lanes.inl in an anonymous namespace.

using kernels::BlockRoom;
using kernels::Image;
using kernels::kBlock;
using kernels::LazyRoom;
using kernels::Method;
using kernels::Rule;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Box {
  float x1, y1, x2, y2, area;
};

inline Box box_of(const Image& image, std::uint32_t row, float one) {
  const float* from = image.boxes + std::int64_t{4} * row;
  const float x1 = from[0], y1 = from[1], x2 = from[2], y2 = from[3];
  return {x1, y1, x2, y2, (x2 - x1 + one) * (y2 - y1 + one)};
}

// One box in every lane, with what the rule says.
struct Probe {
  F x1, y1, x2, y2, area, one;
  F iou_threshold, sigma, score_threshold;

  Probe(const Box& box, const Rule& rule)
      : x1(all(box.x1)),
        y1(all(box.y1)),
        x2(all(box.x2)),
        y2(all(box.y2)),
        area(all(box.area)),
        one(all(rule.plus_one ? 1.0f : 0.0f)),
        iou_threshold(all(rule.iou_threshold)),
        sigma(all(rule.sigma)),
        score_threshold(all(rule.score_threshold)) {}
};

struct Meeting {
  F width, height;
  I meets;
};

inline Meeting meet(const Probe& probe, const float* x1, const float* y1, const float* x2,
                    const float* y2) {
  Meeting found;
  found.width = smaller(load(x2), probe.x2) - larger(load(x1), probe.x1) + probe.one;
  found.height = smaller(load(y2), probe.y2) - larger(load(y1), probe.y1) + probe.one;
  found.meets = (found.width > 0.0f) & (found.height > 0.0f);
  return found;
}

// IoU, and in `changed` the lanes whose score the rule changes.
template <Method M>
inline F overlap(const Probe& probe, const Meeting& meeting, F area, I* changed) {
  const F shared = meeting.width * meeting.height;
  const F iou = shared / (area + probe.area - shared);
  *changed = meeting.meets & (shared > 0.0f);
  if (M != Method::kGaussian) *changed &= iou > probe.iou_threshold;
  return iou;
}

template <Method M>
inline F weight(const Probe& probe, F iou) {
  if (M == Method::kLinear) return 1.0f - iou;
  return exp_nonpositive(-(iou * iou) / probe.sigma);
}

inline int count(unsigned mask) { return __builtin_popcount(mask); }
inline int lowest(unsigned mask) { return __builtin_ctz(mask); }

// ---- Everything is wanted: decay all boxes that meet the selected one, block by block. ----
//
// Boxes near each other share a block, so most blocks are passed over by their bounds alone. The
// test of the bounds rounds as that of a box does, and rounding keeps order: it misses none.

template <Method M>
class Blocks {
 public:
  Blocks(const Image& image, const BlockRoom& room)
      : image_(image), room_(room), one_(image.rule->plus_one ? 1.0f : 0.0f) {}

  std::int64_t run(const std::uint32_t* rows, std::int64_t count, std::int64_t limit,
                   std::uint32_t* kept, float* scores) {
    fill(rows, count);
    std::int64_t done = 0;
    while (done < limit) {
      const std::int64_t slot = best_slot();
      if (slot < 0) break;
      kept[done] = room_.rows[slot];
      scores[done] = column(5)[slot];
      ++done;
      if (live_ == 1) break;
      select(slot);
      if (live_ * 4 <= slots_ * 3 && slots_ > LANES) repack();
    }
    return done;
  }

 private:
  float* column(int index) const { return room_.columns[index]; }

  void fill(const std::uint32_t* rows, std::int64_t count) {
    for (std::int64_t slot = 0; slot < count; ++slot) {
      const Box box = box_of(image_, rows[slot], one_);
      put(slot, box, image_.scores[rows[slot]], rows[slot]);
    }
    close(count);
  }

  void put(std::int64_t slot, const Box& box, float score, std::uint32_t row) {
    column(0)[slot] = box.x1;
    column(1)[slot] = box.y1;
    column(2)[slot] = box.x2;
    column(3)[slot] = box.y2;
    column(4)[slot] = box.area;
    column(5)[slot] = score;
    room_.rows[slot] = row;
  }

  // An empty slot meets nothing.
  void put_nothing(std::int64_t slot) {
    put(slot, {kInfinity, kInfinity, -kInfinity, -kInfinity, 0.0f}, kNever, 0);
  }

  void repack() {
    std::int64_t to = 0;
    for (std::int64_t from = 0; from < slots_; ++from) {
      if (column(5)[from] == kNever) continue;
      const Box box = {column(0)[from], column(1)[from], column(2)[from], column(3)[from],
                       column(4)[from]};
      put(to++, box, column(5)[from], room_.rows[from]);
    }
    close(to);
  }

  void close(std::int64_t live) {
    live_ = live;
    slots_ = (live + LANES - 1) / LANES * LANES;
    blocks_ = (slots_ + kBlock - 1) / kBlock;
    for (std::int64_t slot = live; slot < slots_; ++slot) put_nothing(slot);
    for (std::int64_t block = 0; block < blocks_; ++block) {
      F x1 = all(kInfinity), y1 = x1, x2 = all(-kInfinity), y2 = x2, best = all(kNever);
      for (std::int64_t slot = block * kBlock; slot < end(block); slot += LANES) {
        x1 = smaller(x1, load(column(0) + slot));
        y1 = smaller(y1, load(column(1) + slot));
        x2 = larger(x2, load(column(2) + slot));
        y2 = larger(y2, load(column(3) + slot));
        best = larger(best, load(column(5) + slot));
      }
      room_.bounds[0][block] = -largest(-x1);
      room_.bounds[1][block] = -largest(-y1);
      room_.bounds[2][block] = largest(x2);
      room_.bounds[3][block] = largest(y2);
      room_.bounds[4][block] = largest(best);
    }
    for (std::int64_t block = blocks_; block % LANES; ++block) {
      room_.bounds[0][block] = room_.bounds[1][block] = kInfinity;
      room_.bounds[2][block] = room_.bounds[3][block] = -kInfinity;
      room_.bounds[4][block] = kNever;
    }
  }

  std::int64_t end(std::int64_t block) const {
    const std::int64_t full = (block + 1) * kBlock;
    return full < slots_ ? full : slots_;
  }

  // Slot of the best score, of equal ones that of the lowest row; -1 when nothing is left.
  std::int64_t best_slot() const {
    const float* bests = room_.bounds[4];
    F widest = load(bests);
    for (std::int64_t block = LANES; block < blocks_; block += LANES) {
      widest = larger(widest, load(bests + block));
    }
    const float best = largest(widest);
    if (best == kNever) return -1;
    std::int64_t found = -1;
    for (std::int64_t group = 0; group < blocks_; group += LANES) {
      unsigned blocks = bits(load(bests + group) == best);
      for (; blocks; blocks &= blocks - 1) {
        const std::int64_t block = group + lowest(blocks);
        for (std::int64_t slot = block * kBlock; slot < end(block); slot += LANES) {
          unsigned lanes = bits(load(column(5) + slot) == best);
          for (; lanes; lanes &= lanes - 1) {
            const std::int64_t candidate = slot + lowest(lanes);
            if (found < 0 || room_.rows[candidate] < room_.rows[found]) found = candidate;
          }
        }
      }
    }
    return found;
  }

  // Take the box out of its slot and decay those it meets.
  void select(std::int64_t slot) {
    const Box box = {column(0)[slot], column(1)[slot], column(2)[slot], column(3)[slot],
                     column(4)[slot]};
    const Probe probe(box, *image_.rule);
    put_nothing(slot);
    --live_;
    const std::int64_t own = slot / kBlock;
    decay(own, probe);
    for (std::int64_t group = 0; group < blocks_; group += LANES) {
      const Meeting meeting = meet(probe, room_.bounds[0] + group, room_.bounds[1] + group,
                                   room_.bounds[2] + group, room_.bounds[3] + group);
      unsigned blocks = bits(meeting.meets);
      for (; blocks; blocks &= blocks - 1) {
        const std::int64_t block = group + lowest(blocks);
        if (block != own && room_.bounds[4][block] != kNever) decay(block, probe);
      }
    }
  }

  void decay(std::int64_t block, const Probe& probe) {
    F best = all(kNever);
    for (std::int64_t slot = block * kBlock; slot < end(block); slot += LANES) {
      F score = load(column(5) + slot);
      const Meeting meeting =
          meet(probe, column(0) + slot, column(1) + slot, column(2) + slot, column(3) + slot);
      if (bits(meeting.meets)) {
        I changed;
        const F iou = overlap<M>(probe, meeting, load(column(4) + slot), &changed);
        if (M == Method::kHard) {
          live_ -= count(bits(changed & (score != kNever)));
          score = changed ? all(kNever) : score;
          store(column(5) + slot, score);
        } else if (bits(changed)) {
          const F decayed = weight<M>(probe, iou) * score;
          const F after = decayed >= probe.score_threshold ? decayed : all(kNever);
          live_ -= count(bits(changed & (score != kNever) & (after == kNever)));
          score = changed ? after : score;
          store(column(5) + slot, score);
        }
      }
      best = larger(best, score);
    }
    room_.bounds[4][block] = largest(best);
  }

  const Image& image_;
  const BlockRoom& room_;
  const float one_;
  std::int64_t live_ = 0;    // boxes neither kept nor removed
  std::int64_t slots_ = 0;   // in use, a multiple of LANES
  std::int64_t blocks_ = 0;
};

// ---- Only the best few are wanted: scores only fall, so a stale score is an upper bound. ----
//
// The box on top of the heap is brought up to date with the boxes kept of its class since it was
// last seen, in the order they were kept. Still on top, it is the next to keep.

inline void sift_down(std::uint64_t* heap, std::int64_t size, std::int64_t hole,
                      std::uint64_t key) {
  for (;;) {
    std::int64_t child = 2 * hole + 1;
    if (child >= size) break;
    child += child + 1 < size && heap[child + 1] > heap[child];
    if (heap[child] <= key) break;
    heap[hole] = heap[child];
    hole = child;
  }
  heap[hole] = key;
}

template <Method M>
class Lazy {
 public:
  Lazy(const Image& image, const LazyRoom& room)
      : image_(image), room_(room), one_(image.rule->plus_one ? 1.0f : 0.0f) {}

  std::int64_t run(std::int64_t limit, std::uint32_t* kept, float* scores) {
    std::uint64_t* heap = room_.heap;
    std::int64_t size = room_.candidates;
    for (std::int64_t parent = size / 2; parent-- > 0;) {
      sift_down(heap, size, parent, heap[parent]);
    }
    std::int64_t done = 0;
    while (size > 0 && done < limit) {
      const std::uint64_t key = heap[0];
      const std::uint32_t row = kernels::key_row(key);
      const std::uint32_t group = room_.group[row];
      const std::int64_t rivals = room_.kept[group];
      bool gone = rivals >= image_.rule->max_per_class;
      if (!gone && room_.seen[row] < rivals) {
        gone = !catch_up(row, group, rivals);
        const std::uint64_t now = kernels::heap_key(room_.scores[row], row);
        if (!gone && now != key) {
          sift_down(heap, size, 0, now);
          continue;
        }
      }
      if (!gone) {
        keep(row, group);
        kept[done] = row;
        scores[done] = room_.scores[row];
        ++done;
      }
      --size;
      if (size > 0) sift_down(heap, size, 0, heap[size]);
    }
    return done;
  }

 private:
  void keep(std::uint32_t row, std::uint32_t group) {
    const std::int64_t at = room_.first[group] + room_.kept[group]++;
    const Box box = box_of(image_, row, one_);
    room_.columns[0][at] = box.x1;
    room_.columns[1][at] = box.y1;
    room_.columns[2][at] = box.x2;
    room_.columns[3][at] = box.y2;
    room_.columns[4][at] = box.area;
  }

  // False if the box leaves.
  bool catch_up(std::uint32_t row, std::uint32_t group, std::int64_t rivals) {
    const Rule& rule = *image_.rule;
    const Probe probe(box_of(image_, row, one_), rule);
    float score = room_.scores[row];
    const std::int64_t start = room_.first[group];
    for (std::int64_t rival = room_.seen[row]; rival < rivals; rival += LANES) {
      const std::int64_t at = start + rival;
      const Meeting meeting = meet(probe, room_.columns[0] + at, room_.columns[1] + at,
                                   room_.columns[2] + at, room_.columns[3] + at);
      const unsigned known =
          rivals - rival >= LANES ? ~0u : (1u << static_cast<unsigned>(rivals - rival)) - 1u;
      if (!(bits(meeting.meets) & known)) continue;
      I changed;
      const F iou = overlap<M>(probe, meeting, load(room_.columns[4] + at), &changed);
      unsigned lanes = bits(changed) & known;
      if (!lanes) continue;
      if (M == Method::kHard) return false;
      const F weights = weight<M>(probe, iou);
      for (; lanes; lanes &= lanes - 1) {
        score = weights[lowest(lanes)] * score;
        if (!(score >= rule.score_threshold)) return false;
      }
    }
    room_.scores[row] = score;
    room_.seen[row] = static_cast<std::uint32_t>(rivals);
    return true;
  }

  const Image& image_;
  const LazyRoom& room_;
  const float one_;
};

std::int64_t blocked(const Image& image, const std::uint32_t* rows, std::int64_t count,
                     std::int64_t limit, const BlockRoom& room, std::uint32_t* kept,
                     float* scores) {
  switch (image.rule->method) {
    case Method::kLinear:
      return Blocks<Method::kLinear>(image, room).run(rows, count, limit, kept, scores);
    case Method::kGaussian:
      return Blocks<Method::kGaussian>(image, room).run(rows, count, limit, kept, scores);
    case Method::kHard:
      return Blocks<Method::kHard>(image, room).run(rows, count, limit, kept, scores);
  }
  return 0;
}

std::int64_t lazy(const Image& image, const LazyRoom& room, std::int64_t limit,
                  std::uint32_t* kept, float* scores) {
  switch (image.rule->method) {
    case Method::kLinear:
      return Lazy<Method::kLinear>(image, room).run(limit, kept, scores);
    case Method::kGaussian:
      return Lazy<Method::kGaussian>(image, room).run(limit, kept, scores);
    case Method::kHard:
      return Lazy<Method::kHard>(image, room).run(limit, kept, scores);
  }
  return 0;
}
