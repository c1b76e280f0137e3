// Stable least-significant-byte radix sort by some bytes of 64-bit keys, and keys of scores.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace kernels {

inline std::uint64_t key_of(std::uint64_t key) { return key; }

template <typename Entry>
std::uint64_t key_of(const Entry& entry) {
  return entry.key;
}

// Sorts ascending by bytes [first, last) of each key, counted from the lowest; `spare` is scratch.
// An entry is a key or has one.
template <typename Entry>
void sort_by_bytes(std::vector<Entry>& entries, std::vector<Entry>& spare, int first, int last) {
  spare.resize(entries.size());
  for (int byte = first; byte < last; ++byte) {
    const int shift = 8 * byte;
    std::array<std::size_t, 257> start{};
    for (const Entry& entry : entries) ++start[(key_of(entry) >> shift & 0xff) + 1];
    // A byte that all share changes nothing.
    if (!entries.empty() && start[(key_of(entries[0]) >> shift & 0xff) + 1] == entries.size()) {
      continue;
    }
    for (std::size_t digit = 1; digit < start.size(); ++digit) start[digit] += start[digit - 1];
    for (const Entry& entry : entries) spare[start[key_of(entry) >> shift & 0xff]++] = entry;
    std::swap(entries, spare);
  }
}

// Higher scores have lower keys; NaN is none.
inline std::uint64_t falling(double score) {
  score += 0.0;  // -0 to +0: they are equal scores
  std::uint64_t pattern;
  std::memcpy(&pattern, &score, sizeof pattern);
  return pattern >> 63 ? pattern : ~pattern & ~(std::uint64_t{1} << 63);
}

}  // namespace kernels
