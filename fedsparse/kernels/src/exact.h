// Payloads of float32 values: checked in one pass, and added to an exact sum.
// `fedsparse/sparsity/exact_sum.py` says why the sum is exact, and does the same in numpy where
// there are no kernels.
#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include "crc32.h"
#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

// A float in a payload: at any address.
typedef float LooseFloat __attribute__((aligned(1), may_alias));
typedef uint32_t LooseBits __attribute__((aligned(1), may_alias));

// The largest magnitude of some floats, as bits: of infinity and NaN the largest of all.
inline uint32_t largest_bits(const void* values, int64_t count) {
  const LooseBits* bits = static_cast<const LooseBits*>(values);
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t magnitude = bits[i] & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// The CRC-32 of `length` bytes, and the largest magnitude, as bits, of the `count` floats that
// begin at byte `first` and lie within them. By blocks, so that they are fetched once.
inline uint32_t check(const void* payload, int64_t length, int64_t first, int64_t count,
                      uint32_t* largest) {
  constexpr int64_t BLOCK = 1 << 14;
  const uint8_t* bytes = static_cast<const uint8_t*>(payload);
  uint32_t crc = 0xffffffffu, most = 0;
  int64_t seen = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    const int64_t size = length - begin < BLOCK ? length - begin : BLOCK;
    crc = crc_more(crc, bytes + begin, size);
    const int64_t whole = (begin + size - first) / 4;
    const int64_t upto = whole < count ? whole : count;
    if (upto > seen) {
      const uint32_t found = largest_bits(bytes + first + 4 * seen, upto - seen);
      most = found > most ? found : most;
      seen = upto;
    }
  }
  *largest = most;
  return ~crc;
}

typedef float Floats __attribute__((vector_size(2 * FS_WIDTH), aligned(1), may_alias));
typedef double Doubles __attribute__((vector_size(4 * FS_WIDTH)));
typedef double LooseDoubles __attribute__((vector_size(4 * FS_WIDTH), aligned(8), may_alias));
typedef int64_t Longs __attribute__((vector_size(4 * FS_WIDTH)));

// Named, as GCC makes four instructions of a conversion that is one.
FS_INLINE Doubles widened(const LooseFloat* from) {
#if defined(__AVX512F__) && FS_WIDTH == 16
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
#elif defined(__AVX__) && FS_WIDTH == 8
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  return __builtin_convertvector(*reinterpret_cast<const Floats*>(from), Doubles);
#endif
}

// Adds weight times a value to both digits, which may be vectors of them. A product of a float
// and a whole number below 2^29 is exact in double, so fused multiply-adds give the same bits.
template <typename Value, typename Bits>
FS_INLINE void add_digits(Value value, double weight, Value& coarse, Value& fine) {
  const Value addend = value * weight;
  const Value sum = coarse + addend;
  const Value rest = addend - (sum - coarse);
  Bits bits;
  std::memcpy(&bits, &rest, sizeof bits);
  bits |= 1;  // no rest lies half-way between two units
  Value odd;
  std::memcpy(&odd, &bits, sizeof odd);
  coarse = sum;
  fine += odd;
}

// coarse and fine, the digits of a sum, += weights[i] * values[i], vectors of `count` floats at any
// addresses. Some entries of all vectors at a time: their digits stay in registers.
inline void add_exact(const void* const* values, const double* weights, int32_t vectors,
                      int64_t count, double* __restrict coarse, double* __restrict fine) {
  constexpr int STEP = FS_WIDTH / 2, PARTS = 4;
  int64_t at = 0;
  for (; at + PARTS * STEP <= count; at += PARTS * STEP) {
    Doubles high[PARTS], low[PARTS];
    for (int part = 0; part < PARTS; part++) {
      high[part] = *reinterpret_cast<const LooseDoubles*>(coarse + at + part * STEP);
      low[part] = *reinterpret_cast<const LooseDoubles*>(fine + at + part * STEP);
    }
    for (int32_t i = 0; i < vectors; i++) {
      const LooseFloat* from = static_cast<const LooseFloat*>(values[i]) + at;
      for (int part = 0; part < PARTS; part++)
        add_digits<Doubles, Longs>(widened(from + part * STEP), weights[i], high[part], low[part]);
    }
    for (int part = 0; part < PARTS; part++) {
      *reinterpret_cast<LooseDoubles*>(coarse + at + part * STEP) = high[part];
      *reinterpret_cast<LooseDoubles*>(fine + at + part * STEP) = low[part];
    }
  }
  for (; at < count; at++)
    for (int32_t i = 0; i < vectors; i++)
      add_digits<double, int64_t>(static_cast<const LooseFloat*>(values[i])[at], weights[i],
                                  coarse[at], fine[at]);
}

}  // namespace FS_ISA
}  // namespace fedsparse
