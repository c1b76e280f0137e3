// Overlap of boxes with priors for one instruction set; see engine.hpp for what must not be used.
// Follows lanes.inl in an anonymous namespace.

using kernels::kTile;
using kernels::Priors;

// Gives each prior the first box of highest IoU, and returns the first prior of highest IoU.
std::int64_t overlap_priors(const Priors& priors, const float* box, std::int32_t slot, float* best,
                            std::int32_t* best_slot) {
  const F x1 = all(box[0]), y1 = all(box[1]), x2 = all(box[2]), y2 = all(box[3]);
  const F area = all((box[2] - box[0]) * (box[3] - box[1]));
  const F smallest = all(std::numeric_limits<float>::min());
  I lane{};
  for (int at = 0; at < LANES; ++at) lane[at] = at;
  F highest = all(0.0f);  // a box that overlaps nothing takes the first prior
  I highest_at{};
  for (std::int64_t group = 0; group < priors.tiles; group += LANES) {
    const F wide = smaller(load(priors.bounds[2] + group), x2) -
                   larger(load(priors.bounds[0] + group), x1);
    const F high = smaller(load(priors.bounds[3] + group), y2) -
                   larger(load(priors.bounds[1] + group), y1);
    for (unsigned tiles = bits((wide > 0.0f) & (high > 0.0f)); tiles; tiles &= tiles - 1) {
      const std::int64_t start = (group + __builtin_ctz(tiles)) * kTile;
      for (std::int64_t at = start; at < start + kTile; at += LANES) {
        const F width = smaller(load(priors.columns[2] + at), x2) -
                        larger(load(priors.columns[0] + at), x1);
        const F height = smaller(load(priors.columns[3] + at), y2) -
                         larger(load(priors.columns[1] + at), y1);
        const I meets = (width > 0.0f) & (height > 0.0f);
        if (!bits(meets)) continue;
        const F shared = width * height;
        const F whole = area + load(priors.columns[4] + at) - shared;
        const F iou = meets ? shared / larger(whole, smallest) : all(0.0f);
        const I higher = iou > highest;
        highest = higher ? iou : highest;
        highest_at = higher ? lane + static_cast<std::int32_t>(at) : highest_at;
        const F known = load(best + at);
        const I better = iou > known;
        if (!bits(better)) continue;
        store(best + at, better ? iou : known);
        I slots;
        std::memcpy(&slots, best_slot + at, sizeof slots);
        slots = better ? I{} + slot : slots;
        std::memcpy(best_slot + at, &slots, sizeof slots);
      }
    }
  }
  const float top = largest(highest);
  std::int64_t found = -1;
  for (int at = 0; at < LANES; ++at) {
    if (highest[at] == top && (found < 0 || highest_at[at] < found)) found = highest_at[at];
  }
  return found;
}
