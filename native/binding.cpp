// The only file that knows Python. The callers in native/*.py check shapes, types and values first.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/checks.hpp"
#include "core/coco_accumulate.hpp"
#include "core/coco_matching.hpp"
#include "core/instructions.hpp"
#include "core/matching.hpp"
#include "core/suppression.hpp"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;
using Words = py::array_t<std::uint64_t, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Flags = py::array_t<bool, py::array::c_style>;

static_assert(sizeof(bool) == sizeof(std::uint8_t));

kernels::Rule rule_from(const py::handle& rule) {
  return {static_cast<kernels::Method>(rule.attr("method").cast<int>()),
          rule.attr("iou_threshold").cast<float>(),
          rule.attr("sigma").cast<float>(),
          rule.attr("score_threshold").cast<float>(),
          rule.attr("plus_one").cast<bool>(),
          rule.attr("top_k_per_class").cast<std::int64_t>(),
          rule.attr("max_per_class").cast<std::int64_t>(),
          rule.attr("max_total").cast<std::int64_t>()};
}

std::tuple<Integers, Floats, Integers> suppress(const Floats& boxes, const Floats& scores,
                                                const Integers& labels, const Integers& offsets,
                                                const py::handle& rule, int threads) {
  const kernels::Batch batch{boxes.data(), scores.data(), labels.data(), offsets.data(),
                             offsets.size() - 1};
  for (std::int64_t n = 0; n < batch.images; ++n) {
    if (batch.offsets[n + 1] - batch.offsets[n] > kernels::kMostRows) {
      throw std::invalid_argument("image " + std::to_string(n) + " has more than " +
                                  std::to_string(kernels::kMostRows) + " boxes");
    }
  }
  const kernels::Rule parsed = rule_from(rule);
  std::vector<kernels::Kept> kept;
  {
    const py::gil_scoped_release released;
    kept = kernels::suppress(batch, parsed, threads);
  }
  Integers kept_offsets(batch.images + 1);
  std::int64_t total = kept_offsets.mutable_data()[0] = 0;
  for (std::int64_t n = 0; n < batch.images; ++n) {
    total += static_cast<std::int64_t>(kept[n].rows.size());
    kept_offsets.mutable_data()[n + 1] = total;
  }
  Integers kept_rows(total);
  Floats kept_scores(total);
  std::int64_t* row = kept_rows.mutable_data();
  float* score = kept_scores.mutable_data();
  for (const kernels::Kept& image : kept) {
    row = std::copy(image.rows.begin(), image.rows.end(), row);
    score = std::copy(image.scores.begin(), image.scores.end(), score);
  }
  return {kept_rows, kept_scores, kept_offsets};
}

std::tuple<Integers, Flags> match_priors(const Floats& boxes, const Flags& valid,
                                         const Floats& priors, float threshold, int claims,
                                         int threads) {
  const kernels::PriorBatch batch{
      boxes.data(),   reinterpret_cast<const std::uint8_t*>(valid.data()),
      priors.data(),  boxes.shape(0),
      boxes.shape(1), priors.shape(0)};
  Integers box({batch.images, batch.count});
  Flags positive({batch.images, batch.count});
  std::int64_t* box_data = box.mutable_data();
  auto* positive_data = reinterpret_cast<std::uint8_t*>(positive.mutable_data());
  {
    const py::gil_scoped_release released;
    kernels::match_priors(batch, threshold, static_cast<kernels::Claims>(claims), threads, box_data,
                   positive_data);
  }
  return {box, positive};
}

// A column of one of the records of native/records.py, which lives as long as the call.
template <typename Array>
Array column(const py::handle& record, const char* name) {
  return record.attr(name).cast<Array>();
}

std::tuple<Words, Words, Integers, Integers> match_detections(const py::handle& detections,
                                                              const py::handle& annotations,
                                                              const py::handle& params,
                                                              int threads) {
  const auto images = column<Integers>(detections, "images");
  const auto labels = column<Integers>(detections, "labels");
  const auto boxes = column<Doubles>(detections, "boxes");
  const auto measures = column<Doubles>(detections, "measures");
  const auto scores = column<Doubles>(detections, "scores");
  const auto offsets = column<Integers>(annotations, "offsets");
  const auto true_labels = column<Integers>(annotations, "labels");
  const auto true_boxes = column<Doubles>(annotations, "boxes");
  const auto true_measures = column<Doubles>(annotations, "measures");
  const auto crowd = column<Flags>(annotations, "crowd");
  const auto thresholds = column<Doubles>(params, "thresholds");
  const auto ranges = column<Doubles>(params, "ranges");
  const py::ssize_t count = images.size();
  Words true_positives(count), false_positives(count);
  Integers ranks(count), matched_boxes(count);
  const kernels::Detections detection_columns{images.data(),   labels.data(), boxes.data(),
                                              measures.data(), scores.data(), count};
  const kernels::Annotations annotation_columns{
      offsets.data(), true_labels.data(), true_boxes.data(), true_measures.data(),
      reinterpret_cast<const std::uint8_t*>(crowd.data())};
  const kernels::MatchParams parsed{thresholds.data(), ranges.data(), thresholds.size(),
                                    ranges.shape(0), params.attr("limit").cast<std::int64_t>()};
  const kernels::DetectionMatches into{true_positives.mutable_data(),
                                       false_positives.mutable_data(), ranks.mutable_data(),
                                       matched_boxes.mutable_data()};
  {
    const py::gil_scoped_release released;
    kernels::match_detections(detection_columns, annotation_columns, parsed, threads, into);
  }
  return {true_positives, false_positives, ranks, matched_boxes};
}

std::tuple<Doubles, Doubles, Doubles> accumulate(const py::handle& matched,
                                                 const py::handle& params, int threads) {
  const auto images = column<Integers>(matched, "images");
  const auto labels = column<Integers>(matched, "labels");
  const auto ranks = column<Integers>(matched, "ranks");
  const auto scores = column<Doubles>(matched, "scores");
  const auto true_positives = column<Words>(matched, "true_positives");
  const auto false_positives = column<Words>(matched, "false_positives");
  const auto boxes = column<Integers>(params, "boxes"), limits = column<Integers>(params, "limits");
  const auto recalls = column<Doubles>(params, "recalls");
  const kernels::MatchedDetections columns{
      images.data(),          labels.data(), scores.data(), true_positives.data(),
      false_positives.data(), ranks.data(),  images.size()};
  const kernels::AccumulateParams parsed{boxes.data(),   recalls.data(),
                                         limits.data(),  boxes.shape(0),
                                         boxes.shape(1), params.attr("levels").cast<std::int64_t>(),
                                         recalls.size(), limits.size()};
  Doubles precision({parsed.levels, parsed.points, parsed.classes, parsed.spans});
  Doubles reached({parsed.levels, parsed.points, parsed.classes});
  Doubles recall({parsed.levels, parsed.classes, parsed.spans, parsed.caps});
  const kernels::Curves into{precision.mutable_data(), reached.mutable_data(),
                             recall.mutable_data()};
  {
    const py::gil_scoped_release released;
    kernels::accumulate(columns, parsed, threads, into);
  }
  return {precision, reached, recall};
}

std::tuple<std::int64_t, int> first_bad_box(const Floats& boxes) {
  const py::gil_scoped_release released;
  const kernels::BadBox bad = kernels::first_bad_box(boxes.data(), boxes.shape(0));
  return {bad.row, static_cast<int>(bad.fault)};
}

std::int64_t first_bad_score(const Floats& scores) {
  const py::gil_scoped_release released;
  return kernels::first_bad_score(scores.data(), scores.size());
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "Compiled kernels; native/reference.py defines what they compute.";
  module.def("suppress", &suppress, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
             py::arg("labels").noconvert(), py::arg("offsets").noconvert(), py::arg("rule"),
             py::arg("threads"));
  module.def("match_priors", &match_priors, py::arg("boxes").noconvert(),
             py::arg("valid").noconvert(), py::arg("priors").noconvert(), py::arg("threshold"), py::arg("claims"),
             py::arg("threads"));
  module.def("match_detections", &match_detections, py::arg("detections"), py::arg("annotations"),
             py::arg("params"), py::arg("threads"));
  module.def("accumulate", &accumulate, py::arg("matched"), py::arg("params"), py::arg("threads"));
  module.def("first_bad_box", &first_bad_box, py::arg("boxes").noconvert());
  module.def("first_bad_score", &first_bad_score, py::arg("scores").noconvert());
  module.def("instruction_sets", &kernels::instruction_sets);
  module.def("use_instruction_set", &kernels::use_instruction_set, py::arg("name"));
}
