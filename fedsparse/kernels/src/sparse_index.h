// The compiled index of a sparse layer: which kept weight reads which pixel.
//
// It holds two lists. Both say, a destination plane ("row") after the other, how far from the
// destination's pixel each kept weight reads its source, in pixels, so that the number of lanes
// doesn't matter. `forward` goes by output channel, in the order of the weights themselves.
// `backward` goes by input channel; where a layer has a stride, each phase of the stride (the
// input pixels that see the same kernel rows and columns) has rows of its own.
#pragma once

#include "layers.h"

namespace fedsparse {
namespace FS_ISA {

// A tile is a run of pixels of one row of a plane: at most MOST_COLUMNS of them, of at most
// MOST_GROUPS * LANES lanes, so that its sums fit in registers beside a weight and a pixel.
constexpr int VECTORS = LANES / WIDTH;
#if defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = WIDTH == 16 ? 32 : 16;
#endif
constexpr int MOST_GROUPS = WIDTH >= 8 ? 2 : 1;
constexpr int MOST_COLUMNS = (REGISTERS - 4) / (VECTORS * MOST_GROUPS);

// What a tile reads of the source planes, at most, for it to stay in a core's second cache.
constexpr int64_t CACHE_BYTES = 512 << 10;
// Kept weights of a row and block on average, at least: fewer, and the tile's own loads and
// stores cost more than the cache saves.
constexpr int64_t FEWEST_OF_BLOCK = 16;

// A list. The kept weights of row r that read the b-th block of source channels are
// start[r * blocks + b] up to the next start.
struct Rows {
  const int32_t* start;
  const int32_t* offset;  // in pixels, one a kept weight
  const int32_t* place;   // the weight's place in `values`; null: the same place
  int64_t blocks;
};

// In storage: kept, forward's blocks, backward's blocks; then forward's starts and offsets; then
// backward's starts, offsets and places.
struct Index {
  static constexpr int64_t HEAD = 3;
  int64_t kept, forward_starts, backward_starts;
  Rows forward, backward;
  Index(const Conv& conv, const int32_t* storage) {
    kept = storage[0];
    forward_starts = int64_t(conv.out) * storage[1] + 1;
    backward_starts = int64_t(conv.in) * conv.stride_h * conv.stride_w * storage[2] + 1;
    const int32_t* start = storage + HEAD;
    forward = {start, start + forward_starts, nullptr, storage[1]};
    start += forward_starts + kept;
    const int32_t* offset = start + backward_starts;
    backward = {start, offset, offset + kept, storage[2]};
  }
};

// The most int32 words that sparse_index writes.
inline int64_t sparse_index_words(const Conv& conv, int64_t kept) {
  const int64_t rows = conv.out + int64_t(conv.in) * conv.stride_h * conv.stride_w;
  return Index::HEAD + rows + 2 + 3 * kept + 2 * (kept / FEWEST_OF_BLOCK);
}

// How many blocks to cut `channels` source channels into, of which a tile reads `window` pixels.
inline int64_t blocks_of(int64_t channels, int64_t window, int64_t rows, int64_t kept) {
  const int64_t bytes = channels * window * MOST_GROUPS * LANES * int64_t(sizeof(float));
  const int64_t wanted = (bytes + CACHE_BYTES - 1) / CACHE_BYTES;
  const int64_t most = kept / (rows * FEWEST_OF_BLOCK);
  const int64_t blocks = wanted < most ? wanted : most;
  return blocks > 1 ? blocks : 1;
}

inline int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Writes the index of the kept weights at ascending `positions` (in torch's layout of weights)
// to `storage`. Holds for views of these planes and halos, of any lanes.
inline void sparse_index(const Conv& conv, const View& x, const View& y,
                         const int32_t* positions, int64_t kept, int32_t* storage) {
  const int64_t fan_in = conv.fan_in(), taps = int64_t(conv.kernel_h) * conv.kernel_w;
  const int64_t group_in = conv.in / conv.groups, group_out = conv.out / conv.groups;
  const int64_t columns = y.width < MOST_COLUMNS ? y.width : MOST_COLUMNS;
  const int64_t reach_h = int64_t(conv.kernel_h - 1) * conv.dilation_h;
  const int64_t reach_w = int64_t(conv.kernel_w - 1) * conv.dilation_w;
  storage[0] = int32_t(kept);
  storage[1] = int32_t(blocks_of(
      group_in, (reach_h + 1) * ((columns - 1) * conv.stride_w + reach_w + 1), conv.out, kept));
  storage[2] = int32_t(blocks_of(
      group_out, (reach_h / conv.stride_h + 1) * (columns + reach_w / conv.stride_w),
      int64_t(conv.in) * conv.stride_h * conv.stride_w, kept));
  const Index lists(conv, storage);
  const int64_t blocks = lists.forward.blocks, back_blocks = lists.backward.blocks;
  const int64_t block_in = (group_in + blocks - 1) / blocks;
  const int64_t block_out = (group_out + back_blocks - 1) / back_blocks;
  const int64_t x_channel = x.channel / x.lanes, x_row = x.row / x.lanes;
  const int64_t y_channel = y.channel / y.lanes, y_row = y.row / y.lanes;
  int32_t* const start = storage + (lists.forward.start - storage);
  int32_t* const offset = storage + (lists.forward.offset - storage);
  int32_t* const back_start = storage + (lists.backward.start - storage);
  int32_t* const back_offset = storage + (lists.backward.offset - storage);
  int32_t* const back_place = storage + (lists.backward.place - storage);
  std::memset(start, 0, size_t(lists.forward_starts) * sizeof *start);
  std::memset(back_start, 0, size_t(lists.backward_starts) * sizeof *start);

  // A kept weight: output pixel p reads input pixel p * stride + tap; so input pixel
  // phase + q * stride is read by output pixel q + (phase - tap) / stride.
  struct Kept {
    int64_t out, in, tap_y, tap_x, phase_y, phase_x, back_row;
  };
  auto kept_weight = [&](int64_t k) {
    Kept w;
    const int64_t rest = positions[k] % fan_in;
    w.out = positions[k] / fan_in;
    w.in = w.out / group_out * group_in + rest / taps;
    w.tap_y = rest % taps / conv.kernel_w * conv.dilation_h - conv.pad_h;
    w.tap_x = rest % conv.kernel_w * conv.dilation_w - conv.pad_w;
    w.phase_y = w.tap_y - divide_down(w.tap_y, conv.stride_h) * conv.stride_h;
    w.phase_x = w.tap_x - divide_down(w.tap_x, conv.stride_w) * conv.stride_w;
    w.back_row = ((w.phase_y * conv.stride_w + w.phase_x) * conv.in + w.in) * back_blocks +
                 w.out % group_out / block_out;
    return w;
  };
  for (int64_t k = 0; k < kept; k++) {
    const Kept w = kept_weight(k);
    offset[k] = int32_t(w.in * x_channel + w.tap_y * x_row + w.tap_x);
    start[w.out * blocks + w.in % group_in / block_in + 1]++;
    back_start[w.back_row + 1]++;
  }
  for (int64_t i = 1; i < lists.forward_starts; i++) start[i] += start[i - 1];
  for (int64_t i = 1; i < lists.backward_starts; i++) back_start[i] += back_start[i - 1];
  for (int64_t k = 0; k < kept; k++) {
    const Kept w = kept_weight(k);
    const int32_t at = back_start[w.back_row]++;
    back_offset[at] = int32_t(w.out * y_channel + (w.phase_y - w.tap_y) / conv.stride_h * y_row +
                              (w.phase_x - w.tap_x) / conv.stride_w);
    back_place[at] = int32_t(k);
  }
  // Each start has moved to its end, the next one's start: move them back.
  for (int64_t i = lists.backward_starts - 1; i > 0; i--) back_start[i] = back_start[i - 1];
  back_start[0] = 0;
}

}  // namespace FS_ISA
}  // namespace fedsparse
