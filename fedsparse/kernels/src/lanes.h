// Vectors of floats, as wide as the instruction set that this file is compiled for.
//
// Every kernel keeps a batch of samples side by side in memory: the innermost dimension of
// each activation is the sample ("lane"), a multiple of 16 of them, so a vector is always a run
// of samples of one element, whatever the layer's shape and stride.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#ifndef FS_ISA
#define FS_ISA portable
#endif
#ifndef FS_WIDTH
#define FS_WIDTH 4
#endif

#define FS_UNROLL _Pragma("GCC unroll 32")
#define FS_INLINE inline __attribute__((always_inline))

namespace fedsparse {
namespace FS_ISA {

constexpr int WIDTH = FS_WIDTH;      // floats of a vector: 16, 8 or 4
constexpr int LANES = 16;            // lanes come in multiples of this
typedef float Vec __attribute__((vector_size(4 * FS_WIDTH)));
typedef int32_t IntVec __attribute__((vector_size(4 * FS_WIDTH)));
typedef float Loose __attribute__((vector_size(4 * FS_WIDTH), aligned(4), may_alias));
typedef float Tight __attribute__((vector_size(4 * FS_WIDTH), may_alias));

FS_INLINE Vec load(const float* from) { return *reinterpret_cast<const Tight*>(from); }
FS_INLINE Vec load_loose(const float* from) { return *reinterpret_cast<const Loose*>(from); }
FS_INLINE void store(float* to, Vec value) { *reinterpret_cast<Tight*>(to) = value; }
FS_INLINE void store_loose(float* to, Vec value) { *reinterpret_cast<Loose*>(to) = value; }
FS_INLINE Vec splat(float value) { return value - Vec{}; }  // a broadcast, no addition

// Begins to bring a line to the first cache; any address will do.
FS_INLINE void fetch(const float* from) { __builtin_prefetch(from); }

// The sum of a vector's floats, halves added to halves: the same order on every machine of
// one width.
FS_INLINE float total(Vec value) {
  float part[WIDTH];
  std::memcpy(part, &value, sizeof part);
  FS_UNROLL
  for (int half = WIDTH / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

// Where a and b consist of parts of HALF lanes: a's even parts, each plus the odd one after it,
// and in between the same sums of b.
template <int HALF, int... LANE>
FS_INLINE Vec add_parts(Vec a, Vec b, std::integer_sequence<int, LANE...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (LANE & HALF ? LANE + WIDTH : LANE)...) +
         __builtin_shufflevector(a, b, (LANE & HALF ? LANE - HALF + WIDTH : LANE + HALF)...);
#else
  return __builtin_shuffle(a, b, IntVec{(LANE & HALF ? LANE + WIDTH : LANE)...}) +
         __builtin_shuffle(a, b, IntVec{(LANE & HALF ? LANE - HALF + WIDTH : LANE + HALF)...});
#endif
}

// The totals of WIDTH vectors, as one vector: lane i holds that of the i-th.
template <int HALF = WIDTH / 2>
FS_INLINE Vec totals_of(const Vec* from) {
  if constexpr (HALF == 0)
    return *from;
  else
    return add_parts<HALF>(totals_of<HALF / 2>(from), totals_of<HALF / 2>(from + HALF),
                           std::make_integer_sequence<int, WIDTH>());
}

}  // namespace FS_ISA
}  // namespace fedsparse
