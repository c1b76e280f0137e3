// Which instructions the kernels use.
#pragma once

#include <string>
#include <vector>

namespace kernels {

// The instruction sets this machine can run; the last, the fastest, is used unless told otherwise.
std::vector<std::string> instruction_sets();

// For tests: all give the same bits.
void use_instruction_set(const std::string& name);

}  // namespace kernels
