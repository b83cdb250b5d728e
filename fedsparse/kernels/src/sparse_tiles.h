// The inner loops of sparse layers: one tile of one destination plane in registers, the kept
// weights of that plane one after the other.
#pragma once

#include <algorithm>
#include <utility>

#include "sparse_index.h"

namespace fedsparse {
namespace FS_ISA {

// Brings two pixels, of G runs of LANES each, to the first cache.
template <int G>
FS_INLINE void fetch_pixels(const float* pixel, int64_t column) {
  FS_UNROLL
  for (int line = 0; line < G * LANES; line += 16) {
    fetch(pixel + line);
    fetch(pixel + column + line);
  }
}

// What the tiles of a pass that gathers share.
struct Gather {
  Rows rows;
  const float* values;
  const float* bias;                // one a row, or null
  bool add;                         // to what the destination holds
  int64_t lanes;
  int64_t from_column, to_column;   // floats from a pixel of a tile to the next
  int64_t to_row;                   // floats from a row's destination plane to the next one's
  bool ahead;                       // fetch the next row's tile while this one is computed
};

// to[row] = (bias[row], 0 or what was there) + the sum over the row's kept weights of value *
// from, moved by the weight's offset; for the rows first..last and one block of source channels.
// A tile of C pixels, of G runs of LANES each.
template <int C, int G, bool PLACED>
void gather_tile(const Gather& pass, int64_t block, int64_t first, int64_t last,
                 const float* from, float* to) {
  constexpr int SUMS = C * G * VECTORS;
  constexpr int CHAINS = SUMS >= 8 ? 1 : SUMS >= 4 ? 2 : 4;  // to hide the latency of additions
  const int32_t* const offset = pass.rows.offset;
  const int32_t* const place = pass.rows.place;
  const float* const values = pass.values;
  const float* const bias = pass.bias;
  const int64_t lanes = pass.lanes, blocks = pass.rows.blocks, to_row = pass.to_row;
  const int64_t from_column = pass.from_column, to_column = pass.to_column;
  const bool fresh = block == 0 && !pass.add;
  const int32_t* start = pass.rows.start + first * blocks + block;
  for (int64_t row = first; row < last; row++, start += blocks, to += to_row) {
    int64_t k = start[0];
    const int64_t end = start[1];
    if (k == end && !fresh) continue;
    Vec sum[CHAINS][C][G * VECTORS] = {};
    const Vec initial = splat(fresh && bias ? bias[row] : 0.0f);
    FS_UNROLL
    for (int c = 0; c < C; c++)
      FS_UNROLL
      for (int v = 0; v < G * VECTORS; v++)
        sum[0][c][v] = fresh ? initial : load(to + c * to_column + v * WIDTH);

    auto weigh = [&](Vec (&into)[C][G * VECTORS], int64_t kept) __attribute__((always_inline)) {
      const Vec value = splat(values[PLACED ? place[kept] : kept]);
      const float* pixel = from + offset[kept] * lanes;
      FS_UNROLL
      for (int c = 0; c < C; c++, pixel += from_column)
        FS_UNROLL
        for (int v = 0; v < G * VECTORS; v++) into[c][v] += value * load(pixel + v * WIDTH);
    };
    // One tile is fetched while another is computed, a few lines a weight: at once they would
    // keep what the weights read from coming.
    if (CHAINS == 1 && pass.ahead && row + 1 < last) {
      const float* next = to + to_row;
      const int64_t stop = std::min(end, k + (C + 1) / 2);
      for (; k < stop; k++, next += 2 * to_column) {
        fetch_pixels<G>(next, to_column);
        weigh(sum[0], k);
      }
    }
    for (; k + CHAINS <= end; k += CHAINS)
      FS_UNROLL
      for (int chain = 0; chain < CHAINS; chain++) weigh(sum[chain], k + chain);
    if (CHAINS > 1)
      for (; k < end; k++) weigh(sum[0], k);

    FS_UNROLL
    for (int c = 0; c < C; c++)
      FS_UNROLL
      for (int v = 0; v < G * VECTORS; v++) {
        FS_UNROLL
        for (int chain = 1; chain < CHAINS; chain++) sum[0][c][v] += sum[chain][c][v];
        store(to + c * to_column + v * WIDTH, sum[0][c][v]);
      }
  }
}

// What the tiles of a pass over the weight gradient share.
struct Correlate {
  Rows rows;
  int64_t lanes;
  int64_t x_column, dy_column;  // floats from a pixel of a tile to the next
  int64_t dy_row;               // floats from a row's plane of dy to the next one's
  bool ahead;                   // fetch the next row's tile of dy while this one is computed
};

// sums = (what was there, unless fresh, +) the products of dy's tile and x's, moved by the
// weight's offset, summed over pixels but not over a vector's lanes: one vector a kept weight of
// the rows first..last and the block.
template <int C, int G>
void correlate_tile(const Correlate& pass, int64_t block, int64_t first, int64_t last,
                    const float* x, const float* dy, float* sums, bool fresh) {
  constexpr int CHAINS = C * G * VECTORS > 1 ? 2 : 1;
  const int32_t* const offset = pass.rows.offset;
  const int64_t lanes = pass.lanes, blocks = pass.rows.blocks, dy_row = pass.dy_row;
  const int64_t x_column = pass.x_column, dy_column = pass.dy_column;
  const int32_t* start = pass.rows.start + first * blocks + block;
  for (int64_t row = first; row < last; row++, start += blocks, dy += dy_row) {
    const int64_t end = start[1];
    if (start[0] == end) continue;
    Vec held[C][G * VECTORS];
    FS_UNROLL
    for (int c = 0; c < C; c++)
      FS_UNROLL
      for (int v = 0; v < G * VECTORS; v++) held[c][v] = load(dy + c * dy_column + v * WIDTH);
    const int64_t stop = pass.ahead && row + 1 < last ? start[0] + (C + 1) / 2 : 0;
    const float* next = dy + dy_row;
    for (int64_t k = start[0]; k < end; k++, sums += WIDTH) {
      if (k < stop) {
        fetch_pixels<G>(next, dy_column);
        next += 2 * dy_column;
      }
      const float* pixel = x + offset[k] * lanes;
      Vec sum[CHAINS] = {};
      if (!fresh) sum[0] = load(sums);
      FS_UNROLL
      for (int c = 0; c < C; c++, pixel += x_column)
        FS_UNROLL
        for (int v = 0; v < G * VECTORS; v++)
          sum[(c * G * VECTORS + v) % CHAINS] += held[c][v] * load(pixel + v * WIDTH);
      FS_UNROLL
      for (int chain = 1; chain < CHAINS; chain++) sum[0] += sum[chain];
      store(sums, sum[0]);
    }
  }
}

// The gradient of WIDTH kept weights that read single pixels of x and write the same one, a
// sum over G runs of LANES. With fewer than WIDTH of them the rest of the result is void.
template <int G, bool WHOLE>
FS_INLINE Vec correlate_pixels(const int32_t* offset, int64_t count, const float* x,
                               int64_t lanes, const float* dy) {
  Vec part[WIDTH];
  FS_UNROLL
  for (int i = 0; i < WIDTH; i++) {
    const float* pixel = x + offset[WHOLE || i < count ? i : 0] * lanes;
    part[i] = load(dy) * load(pixel);
    FS_UNROLL
    for (int v = 1; v < G * VECTORS; v++)
      part[i] += load(dy + v * WIDTH) * load(pixel + v * WIDTH);
  }
  return totals_of(part);
}

// The weight gradient of a layer whose output planes are single pixels, of G runs of LANES from
// `lane` on: WIDTH kept weights of a row at a time. Added to that of the lanes before.
template <int G>
void correlate_linear(const Rows& list, const View& x, const View& dy, int64_t lane,
                      float* gradient) {
  const int64_t lanes = x.lanes, blocks = list.blocks;
  const int32_t* const offset = list.offset;
  const float* const from = x.data + lane;
  for (int64_t row = 0; row < dy.channels; row++) {
    const float* const held = dy.at(row, 0, 0) + lane;
    int64_t k = list.start[row * blocks];
    const int64_t end = list.start[(row + 1) * blocks];
    for (; k + WIDTH <= end; k += WIDTH) {
      Vec sums = correlate_pixels<G, true>(offset + k, WIDTH, from, lanes, held);
      if (lane) sums += load_loose(gradient + k);
      store_loose(gradient + k, sums);
    }
    if (k == end) continue;
    const Vec sums = correlate_pixels<G, false>(offset + k, end - k, from, lanes, held);
    for (int64_t i = 0; i < end - k; i++)
      gradient[k + i] = lane ? gradient[k + i] + sums[i] : sums[i];
  }
}

// Both gradients of up to WIDTH kept weights that read single pixels of x and write the same one:
// adds to the pixels of dx, and returns the weights' sums over G runs of LANES.
template <int G, bool WHOLE>
FS_INLINE Vec scatter_pixels(const int32_t* offset, const float* values, int64_t count,
                             const float* x, float* dx, int64_t lanes,
                             const Vec (&held)[G * VECTORS]) {
  Vec part[WIDTH];
  if (!WHOLE)
    FS_UNROLL
    for (int i = 0; i < WIDTH; i++) part[i] = Vec{};
  auto weigh = [&](int i) __attribute__((always_inline)) {
    const int64_t at = offset[i] * lanes;
    const Vec value = splat(values[i]);
    Vec sum = held[0] * load(x + at);
    store(dx + at, load(dx + at) + value * held[0]);
    FS_UNROLL
    for (int v = 1; v < G * VECTORS; v++) {
      sum += held[v] * load(x + at + v * WIDTH);
      store(dx + at + v * WIDTH, load(dx + at + v * WIDTH) + value * held[v]);
    }
    part[i] = sum;
  };
  if (WHOLE) {
    FS_UNROLL
    for (int i = 0; i < WIDTH; i++) weigh(i);
  } else {
    for (int i = 0; i < count; i++) weigh(i);
  }
  return totals_of(part);
}

// Both gradients of a layer whose planes are single pixels, of G runs of LANES from `lane` on;
// adds to dx, and to the gradient of the lanes before.
template <int G>
void backward_linear(const Rows& list, const float* values, const View& x, const View& dy,
                     const View& dx, int64_t lane, float* gradient) {
  const int64_t lanes = x.lanes, blocks = list.blocks;
  const int32_t* const offset = list.offset;
  const float* const from = x.data + lane;
  float* const to = dx.data + lane;
  for (int64_t row = 0; row < dy.channels; row++) {
    Vec held[G * VECTORS];
    FS_UNROLL
    for (int v = 0; v < G * VECTORS; v++) held[v] = load(dy.at(row, 0, 0) + lane + v * WIDTH);
    int64_t k = list.start[row * blocks];
    const int64_t end = list.start[(row + 1) * blocks];
    for (; k + WIDTH <= end; k += WIDTH) {
      Vec sums = scatter_pixels<G, true>(offset + k, values + k, WIDTH, from, to, lanes, held);
      if (lane) sums += load_loose(gradient + k);
      store_loose(gradient + k, sums);
    }
    if (k == end) continue;
    const Vec sums = scatter_pixels<G, false>(offset + k, values + k, end - k, from, to, lanes, held);
    for (int64_t i = 0; i < end - k; i++)
      gradient[k + i] = lane ? gradient[k + i] + sums[i] : sums[i];
  }
}

// gradient[i] = the sum over the lanes of the i-th vector of sums.
inline void totals(const float* sums, int64_t count, float* gradient) {
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) {
    Vec part[WIDTH];
    FS_UNROLL
    for (int j = 0; j < WIDTH; j++) part[j] = load(sums + (i + j) * WIDTH);
    store_loose(gradient + i, totals_of(part));
  }
  for (; i < count; i++) gradient[i] = total(load(sums + i * WIDTH));
}

// The tile functions by number of columns, 1 to MOST_COLUMNS, and of groups.
typedef void (*GatherTile)(const Gather&, int64_t, int64_t, int64_t, const float*, float*);
typedef void (*CorrelateTile)(const Correlate&, int64_t, int64_t, int64_t, const float*,
                              const float*, float*, bool);
template <int G, bool PLACED, int... C>
GatherTile gather_of(int columns, std::integer_sequence<int, C...>) {
  static constexpr GatherTile table[] = {&gather_tile<C + 1, G, PLACED>...};
  return table[columns - 1];
}
template <int G, int... C>
CorrelateTile correlate_of(int columns, std::integer_sequence<int, C...>) {
  static constexpr CorrelateTile table[] = {&correlate_tile<C + 1, G>...};
  return table[columns - 1];
}
template <bool PLACED>
GatherTile gather_of(int columns, int groups) {
  constexpr auto all = std::make_integer_sequence<int, MOST_COLUMNS>();
  return groups == 1 ? gather_of<1, PLACED>(columns, all)
                     : gather_of<MOST_GROUPS, PLACED>(columns, all);
}
inline CorrelateTile correlate_of(int columns, int groups) {
  constexpr auto all = std::make_integer_sequence<int, MOST_COLUMNS>();
  return groups == 1 ? correlate_of<1>(columns, all) : correlate_of<MOST_GROUPS>(columns, all);
}

}  // namespace FS_ISA
}  // namespace fedsparse
