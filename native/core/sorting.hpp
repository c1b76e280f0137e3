// Stable least-significant-byte radix sort of 64-bit keys by some of their bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kernels {

// Sorts ascending by bytes [first, last) of each key, counted from the lowest; `spare` is scratch.
inline void sort_by_bytes(std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& spare,
                          int first, int last) {
  spare.resize(keys.size());
  for (int byte = first; byte < last; ++byte) {
    const int shift = 8 * byte;
    std::array<std::size_t, 257> start{};
    for (const std::uint64_t key : keys) ++start[(key >> shift & 0xff) + 1];
    for (std::size_t digit = 1; digit < start.size(); ++digit) start[digit] += start[digit - 1];
    for (const std::uint64_t key : keys) spare[start[key >> shift & 0xff]++] = key;
    std::swap(keys, spare);
  }
}

}  // namespace kernels
