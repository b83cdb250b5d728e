// The small matrix product that every dense kernel is made of.
//
// A tile of rows (weights, read one number at a time) by one or two vectors (activations), the
// sums kept in registers. What differs between the kernels is which numbers are rows, which are
// vectors, and in which order blocks of them are walked, so that they are still in the cache
// when used again.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "layers.h"

namespace fedsparse {
namespace FS_ISA {
namespace dense {

// Rows of a register tile: with two vectors a row, 24 sums where there are 32 vector registers,
// 12 where there are 16.
#if defined(__aarch64__) || FS_WIDTH == 16
constexpr int TILE = 12;
#else
constexpr int TILE = 6;
#endif
constexpr int TERMS = 128;  // terms of a sum in one go: their operands fit in a 32 KiB cache

// What the sums of a tile start from: what is there already, or a number a row, or zero.
struct Start {
  bool add;
  const float* row;  // may be null
};

// to[j][r * to_row ...] = start + sum over k of weights[r * ROW_STEP + k * TERM_STEP] *
// from[j][offsets[k] ...], for r < ROWS, j < COLUMNS and k < terms, each a vector.
// With AHEAD, each term asks for a cache line, at `ahead` + k * ahead_step, that is read soon.
template <int ROW_STEP, int TERM_STEP, bool AHEAD, int COLUMNS, int ROWS>
void multiply(const float* weights, const int32_t* offsets, int64_t terms,
              const float* const* from, float* const* to, int64_t to_row, Start start,
              const float* ahead, int64_t ahead_step) {
  Vec sums[ROWS][COLUMNS];
  FS_UNROLL
  for (int r = 0; r < ROWS; r++)
    FS_UNROLL
    for (int j = 0; j < COLUMNS; j++)
      sums[r][j] = start.add   ? load_loose(to[j] + r * to_row)
                   : start.row ? splat(start.row[r])
                               : Vec{};
  for (int64_t k = 0; k < terms; k++) {
    if (AHEAD) __builtin_prefetch(ahead + k * ahead_step, 0, 2);
    Vec value[COLUMNS];
    FS_UNROLL
    for (int j = 0; j < COLUMNS; j++) value[j] = load_loose(from[j] + offsets[k]);
    FS_UNROLL
    for (int r = 0; r < ROWS; r++) {
      const Vec weight = splat(weights[r * ROW_STEP + k * TERM_STEP]);
      FS_UNROLL
      for (int j = 0; j < COLUMNS; j++) sums[r][j] += weight * value[j];
    }
  }
  FS_UNROLL
  for (int r = 0; r < ROWS; r++)
    FS_UNROLL
    for (int j = 0; j < COLUMNS; j++) store_loose(to[j] + r * to_row, sums[r][j]);
}

typedef void (*Product)(const float*, const int32_t*, int64_t, const float* const*,
                        float* const*, int64_t, Start, const float*, int64_t);
typedef std::array<Product, TILE> Products;   // by rows - 1
typedef std::array<Products, 2> Kernels;      // by columns - 1
typedef std::make_integer_sequence<int, TILE> TileRows;

template <int ROW_STEP, int TERM_STEP, bool AHEAD, int COLUMNS, int... R>
constexpr Products products_of(std::integer_sequence<int, R...>) {
  return {multiply<ROW_STEP, TERM_STEP, AHEAD, COLUMNS, R + 1>...};
}
template <int ROW_STEP, int TERM_STEP, bool AHEAD>
constexpr Kernels products() {
  return {products_of<ROW_STEP, TERM_STEP, AHEAD, 1>(TileRows()),
          products_of<ROW_STEP, TERM_STEP, AHEAD, 2>(TileRows())};
}

// `rows` cut into tiles of nearly one size, `most` at most.
struct Tiles {
  int32_t rows, count;
  explicit Tiles(int32_t rows, int32_t most = TILE)
      : rows(rows), count((rows + most - 1) / most) {}
  int32_t start(int32_t i) const { return int32_t(int64_t(rows) * i / count); }
  int32_t size(int32_t i) const { return start(i + 1) - start(i); }
};

// offsets[k] = k * step.
inline void count_terms(int64_t step, int32_t count, int32_t* offsets) {
  for (int32_t k = 0; k < count; k++) offsets[k] = int32_t(k * step);
}

// low, high = the first and the second half of a[0], b[0], a[1], b[1], ...
template <int... I>
FS_INLINE void interleave(Vec a, Vec b, Vec& low, Vec& high, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * WIDTH)...);
  high = __builtin_shufflevector(a, b, (WIDTH / 2 + I / 2 + I % 2 * WIDTH)...);
#else
  low = __builtin_shuffle(a, b, IntVec{(I / 2 + I % 2 * WIDTH)...});
  high = __builtin_shuffle(a, b, IntVec{(WIDTH / 2 + I / 2 + I % 2 * WIDTH)...});
#endif
}

// to[i][j] = from[j][i], WIDTH by WIDTH; rows of `from` from number `rows` on count as zero.
inline void transpose(const float* from, int64_t from_step, int32_t rows, float* to,
                      int64_t to_step) {
  Vec value[WIDTH], next[WIDTH];
  FS_UNROLL
  for (int i = 0; i < WIDTH; i++) value[i] = i < rows ? load(from + i * from_step) : Vec{};
  FS_UNROLL
  for (int stage = 1; stage < WIDTH; stage *= 2) {
    FS_UNROLL
    for (int i = 0; i < WIDTH / 2; i++)
      interleave(value[i], value[i + WIDTH / 2], next[2 * i], next[2 * i + 1],
                 std::make_integer_sequence<int, WIDTH>());
    FS_UNROLL
    for (int i = 0; i < WIDTH; i++) value[i] = next[i];
  }
  FS_UNROLL
  for (int i = 0; i < WIDTH; i++) store_loose(to + i * to_step, value[i]);
}

}  // namespace dense
}  // namespace FS_ISA
}  // namespace fedsparse
