// Choice of the instruction set, at run time.
#include "engine.hpp"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "instructions.hpp"

namespace kernels {
namespace {

// Those this machine can run, the fastest last.
const std::vector<const Engine*>& engines() {
  static const std::vector<const Engine*> found = [] {
    std::vector<const Engine*> usable = {&kBaselineEngine};
#if defined(KERNELS_HAVE_AVX2)
    if (__builtin_cpu_supports("avx2")) usable.push_back(&kAvx2Engine);
#endif
    return usable;
  }();
  return found;
}

std::atomic<const Engine*>& chosen() {
  static std::atomic<const Engine*> engine{engines().back()};
  return engine;
}

}  // namespace

const Engine& engine() { return *chosen().load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Engine* engine : engines()) names.emplace_back(engine->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const Engine* engine : engines()) {
    if (name == engine->name) {
      chosen() = engine;
      return;
    }
  }
  throw std::invalid_argument("this machine cannot run '" + name + "'");
}

}  // namespace kernels
