// Vectors of LANES floats, by the vector extension of GCC and Clang, which lowers them to whatever
// the enclosing translation unit targets. Included inside an anonymous namespace: nothing here may
// be shared with code compiled for another target.
//
// Every operation rounds once, as IEEE 754 says, so all widths give the same bits.

typedef float F __attribute__((vector_size(4 * LANES)));
typedef std::int32_t I __attribute__((vector_size(4 * LANES)));
typedef double D __attribute__((vector_size(4 * LANES)));
typedef std::uint64_t L __attribute__((vector_size(4 * LANES)));

constexpr float kNever = -std::numeric_limits<float>::infinity();

inline F load(const float* from) {
  F lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(float* to, F lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline F all(float value) { return F{} + value; }

inline F smaller(F a, F b) { return a < b ? a : b; }
inline F larger(F a, F b) { return a > b ? a : b; }

// One bit per lane, the first lane lowest.
inline unsigned bits(I mask) {
#if defined(LANES_AVX2)
  return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  unsigned found = 0;
  for (int lane = 0; lane < LANES; ++lane) found |= (mask[lane] & 1u) << lane;
  return found;
#endif
}

inline float largest(F lanes) {
  float values[LANES];
  store(values, lanes);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      values[lane] = values[lane] > values[lane + half] ? values[lane] : values[lane + half];
    }
  }
  return values[0];
}

// exp(x) for x <= 0: the operations of native/reference.py, which documents them, in its order.
inline D exp_nonpositive(D x) {
  constexpr double kRound = 0x1.8p52;
  constexpr double kTaylor[] = {1.0,          1.0,           1.0 / 2,        1.0 / 6,
                                1.0 / 24,     1.0 / 120,     1.0 / 720,      1.0 / 5040,
                                1.0 / 40320,  1.0 / 362880,  1.0 / 3628800,  1.0 / 39916800,
                                1.0 / 479001600};
  x = x > -110.0 ? x : D{} - 110.0;
  const D shifted = x * 0x1.71547652b82fep+0 + kRound;
  const D k = shifted - kRound;
  const D r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
  D sum = D{} + kTaylor[12];
  for (int n = 11; n >= 0; --n) sum = sum * r + kTaylor[n];
  // The low bits of `shifted` hold k, so this is the float64 with the bits of 2**k.
  return sum * reinterpret_cast<D>((reinterpret_cast<L>(shifted) + 1023) << 52);
}

// The same, from float32 to float32, half a vector at a time.
inline F exp_nonpositive(F x) {
  typedef float Half __attribute__((vector_size(2 * LANES)));
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  for (Half& half : halves) {
    half = __builtin_convertvector(exp_nonpositive(__builtin_convertvector(half, D)), Half);
  }
  std::memcpy(&x, halves, sizeof x);
  return x;
}
