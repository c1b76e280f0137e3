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
#include "core/collection.hpp"
#include "core/grading.hpp"
#include "core/instructions.hpp"
#include "core/matching.hpp"
#include "core/suppression.hpp"
#include "core/tally.hpp"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;
using Words = py::array_t<std::uint64_t, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Flags = py::array_t<bool, py::array::c_style>;
using AnyFloats = py::array_t<float>;  // of any strides

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

std::tuple<Integers, Flags> match(const Floats& boxes, const Flags& valid, const Floats& priors,
                                  float threshold, int claims, int threads) {
  const kernels::Truth truth{boxes.data(),   reinterpret_cast<const std::uint8_t*>(valid.data()),
                             priors.data(),  boxes.shape(0),
                             boxes.shape(1), priors.shape(0)};
  Integers box({truth.images, truth.count});
  Flags positive({truth.images, truth.count});
  std::int64_t* box_data = box.mutable_data();
  auto* positive_data = reinterpret_cast<std::uint8_t*>(positive.mutable_data());
  {
    const py::gil_scoped_release released;
    kernels::match(truth, threshold, static_cast<kernels::Claims>(claims), threads, box_data,
                   positive_data);
  }
  return {box, positive};
}

std::tuple<Floats, Floats, Integers, Integers> collect(const Floats& boxes, const AnyFloats& scores,
                                                       float threshold, int threads) {
  constexpr py::ssize_t kFloat = sizeof(float);
  const kernels::Dense dense{boxes.data(),
                             scores.data(),
                             scores.shape(0),
                             scores.shape(1),
                             scores.shape(2),
                             scores.strides(0) / kFloat,
                             scores.strides(1) / kFloat,
                             boxes.ndim() == 4};
  if (dense.priors > kernels::kMostRows || dense.classes > kernels::kMostRows) {
    throw std::invalid_argument("more than " + std::to_string(kernels::kMostRows) +
                                " priors or classes");
  }
  std::vector<kernels::Found> results;
  {
    const py::gil_scoped_release released;
    results = kernels::collect(dense, threshold, threads);
  }
  Integers offsets(dense.images + 1);
  std::int64_t total = offsets.mutable_data()[0] = 0;
  for (std::int64_t n = 0; n < dense.images; ++n) {
    total += static_cast<std::int64_t>(results[n].scores.size());
    offsets.mutable_data()[n + 1] = total;
  }
  Floats found_boxes({total, std::int64_t{4}}), found_scores(total);
  Integers labels(total);
  float* box = found_boxes.mutable_data();
  float* score = found_scores.mutable_data();
  std::int64_t* label = labels.mutable_data();
  for (const kernels::Found& image : results) {
    box = std::copy(image.boxes.begin(), image.boxes.end(), box);
    score = std::copy(image.scores.begin(), image.scores.end(), score);
    label = std::copy(image.labels.begin(), image.labels.end(), label);
  }
  return {found_boxes, found_scores, labels, offsets};
}

// A column of one of the records of native/records.py, which lives as long as the call.
template <typename Array>
Array column(const py::handle& record, const char* name) {
  return record.attr(name).cast<Array>();
}

std::tuple<Words, Words, Integers, Integers> grade(const py::handle& found, const py::handle& truth,
                                                   const py::handle& exam, int threads) {
  const auto images = column<Integers>(found, "images"), labels = column<Integers>(found, "labels");
  const auto boxes = column<Doubles>(found, "boxes"), measures = column<Doubles>(found, "measures");
  const auto scores = column<Doubles>(found, "scores");
  const auto offsets = column<Integers>(truth, "offsets");
  const auto classes = column<Integers>(truth, "labels");
  const auto targets = column<Doubles>(truth, "boxes");
  const auto sizes = column<Doubles>(truth, "measures");
  const auto crowd = column<Flags>(truth, "crowd");
  const auto thresholds = column<Doubles>(exam, "thresholds");
  const auto ranges = column<Doubles>(exam, "ranges");
  const py::ssize_t count = images.size();
  Words hits(count), alarms(count);
  Integers places(count), matched(count);
  const kernels::Detections asked{images.data(),   labels.data(), boxes.data(),
                             measures.data(), scores.data(), count};
  const kernels::Annotations given{offsets.data(), classes.data(), targets.data(), sizes.data(),
                             reinterpret_cast<const std::uint8_t*>(crowd.data())};
  const kernels::Exam rules{thresholds.data(), ranges.data(), thresholds.size(), ranges.shape(0),
                            exam.attr("limit").cast<std::int64_t>()};
  const kernels::Verdicts into{hits.mutable_data(), alarms.mutable_data(), places.mutable_data(),
                               matched.mutable_data()};
  {
    const py::gil_scoped_release released;
    kernels::grade(asked, given, rules, threads, into);
  }
  return {hits, alarms, places, matched};
}

std::tuple<Doubles, Doubles, Doubles> tally(const py::handle& graded, const py::handle& scale,
                                            int threads) {
  const auto images = column<Integers>(graded, "images");
  const auto labels = column<Integers>(graded, "labels");
  const auto places = column<Integers>(graded, "places");
  const auto scores = column<Doubles>(graded, "scores");
  const auto hits = column<Words>(graded, "hits"), alarms = column<Words>(graded, "alarms");
  const auto boxes = column<Integers>(scale, "boxes"), limits = column<Integers>(scale, "limits");
  const auto recalls = column<Doubles>(scale, "recalls");
  const kernels::Graded asked{images.data(), labels.data(), scores.data(), hits.data(),
                              alarms.data(), places.data(), images.size()};
  const kernels::Scale rules{boxes.data(),   recalls.data(),
                             limits.data(),  boxes.shape(0),
                             boxes.shape(1), scale.attr("levels").cast<std::int64_t>(),
                             recalls.size(), limits.size()};
  Doubles precision({rules.levels, rules.points, rules.classes, rules.spans});
  Doubles reached({rules.levels, rules.points, rules.classes});
  Doubles recall({rules.levels, rules.classes, rules.spans, rules.caps});
  const kernels::Curves into{precision.mutable_data(), reached.mutable_data(),
                             recall.mutable_data()};
  {
    const py::gil_scoped_release released;
    kernels::tally(asked, rules, threads, into);
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
  module.def("match", &match, py::arg("boxes").noconvert(), py::arg("valid").noconvert(),
             py::arg("priors").noconvert(), py::arg("threshold"), py::arg("claims"),
             py::arg("threads"));
  module.def("collect", &collect, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
             py::arg("threshold"), py::arg("threads"));
  module.def("grade", &grade, py::arg("found"), py::arg("truth"), py::arg("exam"),
             py::arg("threads"));
  module.def("tally", &tally, py::arg("graded"), py::arg("scale"), py::arg("threads"));
  module.def("first_bad_box", &first_bad_box, py::arg("boxes").noconvert());
  module.def("first_bad_score", &first_bad_score, py::arg("scores").noconvert());
  module.def("instruction_sets", &kernels::instruction_sets);
  module.def("use_instruction_set", &kernels::use_instruction_set, py::arg("name"));
}
