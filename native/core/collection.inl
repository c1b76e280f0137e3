// Search for high scores for one instruction set; see engine.hpp for what must not be used.
// Follows lanes.inl in an anonymous namespace.

using kernels::Rows;

std::int64_t find_above(const Rows& rows, float threshold, std::int64_t* row,
                        std::uint64_t* found, std::int64_t room) {
  const F bar = all(threshold);
  const std::int64_t whole = rows.columns / LANES * LANES;
  std::int64_t count = 0;
  while (*row < rows.count && count + rows.columns <= room) {
    const float* scores = rows.scores + *row * rows.stride;
    const std::uint64_t at = static_cast<std::uint64_t>(*row) << 32;
    std::int64_t column = 0;
    for (; column < whole; column += LANES) {
      for (unsigned lanes = bits(load(scores + column) > bar); lanes; lanes &= lanes - 1) {
        found[count++] = at | static_cast<std::uint64_t>(column + lowest(lanes));
      }
    }
    for (; column < rows.columns; ++column) {
      if (scores[column] > threshold) found[count++] = at | static_cast<std::uint64_t>(column);
    }
    ++*row;
  }
  return count;
}
