// Random problems for the sanitizers, each solved by every instruction set, on one and on several
// threads, and by a scan of all pairs written here once more. Ends with 1 on the first difference.
// The digest of all results is the same on every machine and with every compiler.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "coco_accumulate.hpp"
#include "coco_matching.hpp"
#include "instructions.hpp"
#include "suppression.hpp"

namespace {

using kernels::Batch;
using kernels::Kept;
using kernels::Method;
using kernels::Rule;

struct Problem {
  std::vector<float> boxes, scores;
  std::vector<std::int64_t> labels, offsets;
  Rule rule;

  Batch batch() const {
    return {boxes.data(), scores.data(), labels.data(), offsets.data(),
            static_cast<std::int64_t>(offsets.size()) - 1};
  }
};

class Draw {
 public:
  explicit Draw(unsigned seed) : engine_(seed) {}

  // By hand: the distributions of the standard library differ from one to the other.
  int below(int limit) { return static_cast<int>(engine_() % static_cast<unsigned>(limit)); }
  float within(float low, float high) {
    return low + (high - low) * static_cast<float>(engine_() >> 8) * 0x1p-24f;
  }
  bool coin() { return below(2) == 0; }

  Problem problem() {
    Problem made;
    const int sizes[] = {0, 1, 2, 5, 9, 33, 70, 300};
    const int count = sizes[below(8)], classes = 1 + below(5);
    const float reach = coin() ? 40.0f : 4e17f;
    const bool whole = coin(), tied = coin(), far_labels = below(8) == 0;
    for (int row = 0; row < count; ++row) {
      float box[4];
      if (row > 0 && below(4) == 0) {
        const int twin = below(row);
        std::copy_n(made.boxes.begin() + 4 * twin, 4, box);
      } else {
        for (int axis = 0; axis < 2; ++axis) {
          box[axis] = within(-reach, reach);
          box[axis + 2] = box[axis] + within(0.0f, reach / 2) * static_cast<float>(below(4) != 0);
          if (whole) {
            box[axis] = std::floor(box[axis]);
            box[axis + 2] = std::floor(box[axis + 2]);
          }
        }
      }
      made.boxes.insert(made.boxes.end(), box, box + 4);
      made.scores.push_back(tied ? static_cast<float>(below(4)) / 4 : within(0.0f, 1.0f));
      const std::int64_t label = below(classes);
      made.labels.push_back(far_labels ? (label - 2) * (std::int64_t{1} << 61) : label);
    }
    made.offsets = {0};
    for (int cut = below(4); cut > 0; --cut) made.offsets.push_back(below(count + 1));
    made.offsets.push_back(count);
    std::sort(made.offsets.begin(), made.offsets.end());
    constexpr std::int64_t kNoCap = INT64_MAX;
    made.rule = {static_cast<Method>(below(3)),
                 coin() ? 0.3f : within(0.0f, 1.0f),
                 coin() ? 0.5f : 1e-30f,
                 coin() ? 0.001f : 0.0f,
                 coin(),
                 kNoCap,
                 coin() ? kNoCap : 1 + below(10),
                 coin() ? kNoCap : 1 + below(30)};
    return made;
  }

 private:
  std::mt19937 engine_;
};

float overlap(const float* a, const float* b, float one) {
  const float width = std::min(a[2], b[2]) - std::max(a[0], b[0]) + one;
  const float height = std::min(a[3], b[3]) - std::max(a[1], b[1]) + one;
  if (!(width > 0.0f && height > 0.0f)) return 0.0f;
  const float shared = width * height;
  const float sum = (a[2] - a[0] + one) * (a[3] - a[1] + one) +
                    (b[2] - b[0] + one) * (b[3] - b[1] + one);
  return shared > 0.0f ? shared / (sum - shared) : 0.0f;
}

// Hard and linear only: both need no exp.
Kept scan_all_pairs(const Problem& problem, std::int64_t start, std::int64_t end) {
  const Rule& rule = problem.rule;
  std::vector<float> scores = problem.scores;
  std::vector<std::int64_t> left;
  for (std::int64_t row = start; row < end; ++row) {
    if (scores[row] >= rule.score_threshold) left.push_back(row);
  }
  std::map<std::int64_t, std::int64_t> of_class;
  Kept kept;
  while (!left.empty() && static_cast<std::int64_t>(kept.rows.size()) < rule.max_total) {
    const auto best = std::max_element(
        left.begin(), left.end(),
        [&](std::int64_t a, std::int64_t b) { return scores[a] < scores[b]; });
    const std::int64_t chosen = *best;
    left.erase(best);
    if (of_class[problem.labels[chosen]]++ >= rule.max_per_class) continue;
    kept.rows.push_back(chosen);
    kept.scores.push_back(scores[chosen]);
    std::vector<std::int64_t> next;
    for (const std::int64_t row : left) {
      bool stays = true;
      if (problem.labels[row] == problem.labels[chosen]) {
        const float iou = overlap(&problem.boxes[4 * chosen], &problem.boxes[4 * row],
                                  rule.plus_one ? 1.0f : 0.0f);
        if (iou > rule.iou_threshold) {
          if (rule.method == Method::kLinear) scores[row] = (1.0f - iou) * scores[row];
          stays = rule.method == Method::kLinear && scores[row] >= rule.score_threshold;
        }
      }
      if (stays) next.push_back(row);
    }
    left = std::move(next);
  }
  return kept;
}

bool same(const std::vector<Kept>& a, const std::vector<Kept>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Kept& x, const Kept& y) {
    return x.rows == y.rows && x.scores == y.scores;
  });
}

// FNV-1a over rows and bits of scores.
void digest(std::uint64_t& sum, const std::vector<Kept>& results) {
  const auto add = [&](std::uint64_t value) { sum = (sum ^ value) * 0x100000001b3u; };
  for (const Kept& kept : results) {
    add(kept.rows.size());
    for (const std::int64_t row : kept.rows) add(static_cast<std::uint64_t>(row));
    for (const float score : kept.scores) {
      std::uint32_t pattern;
      std::memcpy(&pattern, &score, sizeof pattern);
      add(pattern);
    }
  }
}

void check(bool equal, const char* what, int seed) {
  if (equal) return;
  std::fprintf(stderr, "problem %d: %s differ\n", seed, what);
  std::exit(1);
}

// DetectionMatches and curves of drawn detections, on one and on several threads. Of each box at most one
// detection is a hit in a range at a threshold.
void run_coco(int seed, std::int64_t count) {
  Draw draw(static_cast<unsigned>(seed));
  const std::int64_t images = 1 + draw.below(5), classes = 1 + draw.below(3), boxes = draw.below(40);
  std::vector<std::int64_t> offsets{0}, of_image, labels, box_labels;
  std::vector<double> places, box_places, measures, box_measures, scores;
  std::vector<std::uint8_t> crowd;
  for (std::int64_t cut = 1; cut < images; ++cut) {
    offsets.push_back(draw.below(static_cast<int>(boxes) + 1));
  }
  offsets.push_back(boxes);
  std::sort(offsets.begin(), offsets.end());
  const auto place = [&](std::vector<double>& into) {
    for (int side = 0; side < 4; ++side) into.push_back(draw.below(side < 2 ? 20 : 9));
  };
  for (std::int64_t row = 0; row < boxes; ++row) {
    box_labels.push_back(draw.below(static_cast<int>(classes)));
    place(box_places);
    box_measures.push_back(draw.below(9));
    crowd.push_back(draw.below(8) == 0);
  }
  for (std::int64_t row = 0; row < count; ++row) {
    of_image.push_back(draw.below(static_cast<int>(images)));
    labels.push_back(draw.below(static_cast<int>(classes)));
    place(places);
    measures.push_back(draw.below(9));
    scores.push_back(draw.below(50) / 50.0);
  }
  const double thresholds[] = {0.5, 0.75}, ranges[] = {0, 9, 0, 4}, recalls[] = {0, 0.5, 1};
  const std::int64_t limits[] = {1, 10};
  const kernels::Detections detections{of_image.data(), labels.data(), places.data(),
                             measures.data(), scores.data(), count};
  const kernels::Annotations annotations{offsets.data(), box_labels.data(), box_places.data(),
                             box_measures.data(), crowd.data()};
  const kernels::MatchParams match_params{thresholds, ranges, 2, 2, 10};
  const std::vector<std::int64_t> many(static_cast<std::size_t>(2 * classes), boxes + 1);
  const kernels::AccumulateParams accumulate_params{many.data(), recalls, limits, classes, 2, 2, 3, 2};
  std::vector<std::uint64_t> true_positives[2], false_positives[2];
  std::vector<std::int64_t> ranks[2], matched[2];
  std::vector<double> curves[2];
  for (const int run : {0, 1}) {
    const auto size = static_cast<std::size_t>(count);
    true_positives[run].resize(size);
    false_positives[run].resize(size);
    ranks[run].resize(size);
    matched[run].resize(size);
    const int threads = run == 0 ? 1 : 3;
    kernels::match_detections(detections, annotations, match_params, threads,
                   {true_positives[run].data(), false_positives[run].data(), ranks[run].data(), matched[run].data()});
    curves[run].resize(static_cast<std::size_t>(classes * (12 + 6 + 8)));
    double* precision = curves[run].data();
    kernels::accumulate({of_image.data(), labels.data(), scores.data(), true_positives[run].data(),
                    false_positives[run].data(), ranks[run].data(), count},
                   accumulate_params, threads,
                   {precision, precision + 12 * classes, precision + 18 * classes});
  }
  check(true_positives[0] == true_positives[1] && false_positives[0] == false_positives[1] && ranks[0] == ranks[1] &&
            matched[0] == matched[1] && curves[0] == curves[1],
        "threads of COCO's rules", seed);
  for (int bit = 0; bit < 4; ++bit) {
    std::int64_t total = 0;
    for (std::int64_t row = 0; row < count; ++row) {
      total += true_positives[0][row] >> bit & 1;
      check((true_positives[0][row] & false_positives[0][row]) == 0, "true and false positives", seed);
    }
    check(total <= boxes, "true positives and boxes", seed);
  }
}

// Enough work in one class, in many classes and in many images for threads to start.
void run_threads() {
  Draw draw(1);
  for (const int images : {1, 6}) {
    Problem problem = draw.problem();
    problem.boxes.clear();
    problem.scores.clear();
    problem.labels.clear();
    const int count = 24000;
    for (int row = 0; row < count; ++row) {
      const float x = draw.within(0, 900), y = draw.within(0, 900);
      problem.boxes.insert(problem.boxes.end(), {x, y, x + draw.within(0, 80), y + 50});
      problem.scores.push_back(draw.within(0, 1));
      problem.labels.push_back(draw.below(40));
    }
    problem.offsets = {0};
    for (int image = 1; image <= images; ++image) {
      problem.offsets.push_back(std::int64_t{count} * image / images);
    }
    problem.rule = {Method::kGaussian, 0.3f, 0.5f, 0.001f, false, INT64_MAX, INT64_MAX,
                    INT64_MAX};
    const auto expected = kernels::suppress(problem.batch(), problem.rule, 1);
    check(same(kernels::suppress(problem.batch(), problem.rule, 4), expected), "threads", -images);
    problem.rule.max_total = 100;
    const auto top = kernels::suppress(problem.batch(), problem.rule, 1);
    check(same(kernels::suppress(problem.batch(), problem.rule, 4), top), "threads", -images);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 2000;
  std::uint64_t sum = 0xcbf29ce484222325u;
  for (int seed = 0; seed < problems; ++seed) {
    run_coco(seed, seed % 400 == 0 ? 1 << 14 : seed % 30);
    const Problem problem = Draw(static_cast<unsigned>(seed)).problem();
    const auto rows = static_cast<std::int64_t>(problem.scores.size());
    check(kernels::first_bad_box(problem.boxes.data(), rows).row == -1, "checks", seed);
    std::vector<Kept> expected;
    for (const std::string& name : kernels::instruction_sets()) {
      kernels::use_instruction_set(name);
      const auto found = kernels::suppress(problem.batch(), problem.rule, 1);
      if (expected.empty()) expected = found;
      check(same(found, expected), "instruction sets", seed);
      check(same(kernels::suppress(problem.batch(), problem.rule, 3), expected), "threads", seed);
      Rule few = problem.rule;
      few.top_k_per_class = 7;
      for (const Kept& kept : kernels::suppress(problem.batch(), few, 1)) {
        check(kept.rows.size() <= 7 * 5, "kept and wanted", seed);
      }
    }
    digest(sum, expected);
    if (problem.rule.method == Method::kGaussian) continue;
    std::vector<Kept> scanned;
    for (std::size_t image = 0; image + 1 < problem.offsets.size(); ++image) {
      scanned.push_back(
          scan_all_pairs(problem, problem.offsets[image], problem.offsets[image + 1]));
    }
    check(same(expected, scanned), "kernel and scan", seed);
  }
  run_threads();
  std::printf("%d problems, no difference, digest %016llx\n", problems,
              static_cast<unsigned long long>(sum));
  return 0;
}
