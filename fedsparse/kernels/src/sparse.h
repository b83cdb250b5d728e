// Convolutions and linear layers that hold and compute their kept weights alone.
//
// One idea serves all three passes. A tile of pixels of one destination plane stays in
// registers while the kept weights of that plane are gone through; each weight multiplies the
// same tile, moved, of some source plane:
//   forward          y[o] += w * x[c], moved      destination y, source x, weights by o
//   input gradient   dx[c] += w * dy[o], moved    destination dx, source dy, weights by c
//   weight gradient  dw = sum of dy[o] * x[c]     dy's tile in registers, x moved, weights by o
// The two gradients of 1x1 convolutions go over the tiles together, as they read the same of dy.
// Tiles are the outer loop and destination planes the inner one, so that what a tile reads of
// the source planes stays in the cache; where that is too much, source channels go by blocks.
// A linear layer is the case of tiles of one pixel. A weight costs one vector from the cache a
// vector of output, which is what bounds the speed: nothing here is worth more arithmetic.
#pragma once

#include "sparse_tiles.h"

namespace fedsparse {
namespace FS_ISA {

// Cuts `height` rows of `width` pixels of `active` lanes into tiles, rows into nearly equal
// parts, and calls visit(row, column, lane, columns, groups) for each, in the order of memory.
template <class Visit>
FS_INLINE void each_tile(int64_t height, int64_t width, int64_t active, Visit visit) {
  const int64_t parts = (width + MOST_COLUMNS - 1) / MOST_COLUMNS;
  for (int64_t row = 0; row < height; row++)
    for (int64_t part = 0; part < parts; part++) {
      const int64_t column = width * part / parts, next = width * (part + 1) / parts;
      int groups;
      for (int64_t lane = 0; lane < active; lane += groups * LANES) {
        groups = active - lane >= MOST_GROUPS * LANES ? MOST_GROUPS : 1;
        visit(row, column, lane, int(next - column), groups);
      }
    }
}

// Whether planes are too much for a core's second cache, so that a tile of them is worth fetching
// ahead of its use.
inline bool is_large(const View& planes) {
  return planes.channels * planes.channel * int64_t(sizeof(float)) > 2 * CACHE_BYTES;
}

// y = the layer's output, plus the bias unless null, of the active lanes.
inline void sparse_forward(const Conv& conv, const int32_t* index, const float* values,
                           const float* bias, const View& x, const View& y) {
  const Rows list = Index(conv, index).forward;
  const Gather pass{list, values, bias, false, x.lanes, x.lanes * conv.stride_w, y.lanes,
                    y.channel, is_large(y)};
  const int64_t rows = conv.out / conv.groups;
  for (int64_t first = 0; first < conv.out; first += rows)
    each_tile(y.height, y.width, x.active,
              [&](int64_t row, int64_t column, int64_t lane, int columns, int groups) {
                const auto tile = gather_of<false>(columns, groups);
                const float* from = x.at(0, row * conv.stride_h, column * conv.stride_w) + lane;
                float* to = y.at(first, row, column) + lane;
                for (int64_t block = 0; block < list.blocks; block++)
                  tile(pass, block, first, first + rows, from, to);
              });
}

// dx = (what it holds, where `add`, plus) the gradient of the input, of the active lanes.
inline void sparse_input_gradient(const Conv& conv, const int32_t* index, const float* values,
                                  const View& dy, const View& dx, bool add) {
  const Rows list = Index(conv, index).backward;
  const Gather pass{list, values, nullptr, add, dy.lanes, dy.lanes, dx.lanes * conv.stride_w,
                    dx.channel, is_large(dx)};
  const int64_t rows = conv.in / conv.groups;
  for (int64_t channel = 0; channel < conv.in; channel += rows)
    for (int64_t phase_y = 0; phase_y < conv.stride_h; phase_y++)
      for (int64_t phase_x = 0; phase_x < conv.stride_w; phase_x++) {
        const int64_t first = (phase_y * conv.stride_w + phase_x) * conv.in + channel;
        const int64_t height = (dx.height - phase_y + conv.stride_h - 1) / conv.stride_h;
        const int64_t width = (dx.width - phase_x + conv.stride_w - 1) / conv.stride_w;
        each_tile(height, width, dy.active,
                  [&](int64_t row, int64_t column, int64_t lane, int columns, int groups) {
                    const auto tile = gather_of<true>(columns, groups);
                    const float* from = dy.at(0, row, column) + lane;
                    float* to = dx.at(channel, row * conv.stride_h + phase_y,
                                      column * conv.stride_w + phase_x) + lane;
                    for (int64_t block = 0; block < list.blocks; block++)
                      tile(pass, block, first, first + rows, from, to);
                  });
      }
}

// How many kept weights' sums the weight gradient holds at once, a vector each.
inline int64_t sums_at_once(const Conv& conv, int64_t kept) {
  const int64_t most = conv.fan_in() > 2048 ? conv.fan_in() : 2048;
  return kept < most ? kept : most;
}

// The floats of scratch memory that sparse_weight_gradient needs.
inline int64_t sparse_scratch(const Conv& conv, const View&, const View& y, int64_t kept) {
  return y.height * y.width == 1 ? 0 : sums_at_once(conv, kept) * WIDTH;
}

// gradient = that of the kept weights, summed over the active lanes.
inline void sparse_weight_gradient(const Conv& conv, const int32_t* index, const View& x,
                                   const View& dy, float* gradient, float* scratch) {
  const Index lists(conv, index);
  const Rows& list = lists.forward;
  if (dy.height * dy.width == 1) {
    int64_t lane = 0;
    for (; lane + 2 * LANES <= x.active; lane += 2 * LANES)
      correlate_linear<2>(list, x, dy, lane, gradient);
    if (lane < x.active) correlate_linear<1>(list, x, dy, lane, gradient);
    return;
  }
  const Correlate pass{list, x.lanes, x.lanes * conv.stride_w, dy.lanes, dy.channel, is_large(dy)};
  const int64_t most = sums_at_once(conv, lists.kept), rows = conv.out / conv.groups;
  auto start = [&](int64_t row, int64_t block) -> const int32_t* {
    return list.start + row * list.blocks + block;
  };
  auto count = [&](int64_t row, int64_t block) -> int64_t {
    return start(row, block)[1] - start(row, block)[0];
  };
  // Group by group and block by block: as many rows at once as there is room for sums.
  for (int64_t top = 0; top < conv.out; top += rows)
    for (int64_t block = 0; block < list.blocks; block++)
      for (int64_t first = top, last; first < top + rows; first = last) {
        int64_t sums = count(first, block);
        for (last = first + 1; last < top + rows && sums + count(last, block) <= most; last++)
          sums += count(last, block);
        if (sums == 0) continue;
        bool fresh = true;
        each_tile(dy.height, dy.width, x.active,
                  [&](int64_t row, int64_t column, int64_t lane, int columns, int groups) {
                    correlate_of(columns, groups)(
                        pass, block, first, last,
                        x.at(0, row * conv.stride_h, column * conv.stride_w) + lane,
                        dy.at(first, row, column) + lane, scratch, fresh);
                    fresh = false;
                  });
        if (list.blocks == 1) {  // rows lie one after the other
          totals(scratch, sums, gradient + *start(first, 0));
          continue;
        }
        const float* from = scratch;
        for (int64_t row = first; row < last; from += count(row, block) * WIDTH, row++)
          totals(from, count(row, block), gradient + *start(row, block));
      }
}

// Whether a linear layer's input gradient is added up weight by weight with the weight gradient,
// rather than gathered: where the weights are too many for the second cache, to read them in the
// order of the inputs costs more, as long as x and dx both fit.
inline bool scatters(const Conv& conv, int64_t kept) {
  const int64_t input = int64_t(conv.in) * 2 * LANES;
  return kept * int64_t(sizeof(float)) > CACHE_BYTES &&
         2 * input * int64_t(sizeof(float)) <= CACHE_BYTES;
}

// Both gradients, as the two functions above leave them. Where they need the same tiles at the
// same time, each is read once for both.
inline void sparse_backward(const Conv& conv, const int32_t* index, const float* values,
                            const View& x, const View& dy, const View& dx, bool add,
                            float* gradient, float* scratch) {
  const Index lists(conv, index);
  const bool pointwise = conv.groups == 1 && conv.kernel_h * conv.kernel_w == 1 &&
                         conv.stride_h * conv.stride_w == 1 && conv.pad_h + conv.pad_w == 0;
  const bool linear = pointwise && dy.height * dy.width == 1;
  if (linear && x.channel == dx.channel && scatters(conv, lists.kept)) {
    if (!add)
      for (int64_t channel = 0; channel < dx.channels; channel++)
        std::memset(dx.at(channel, 0, 0), 0, size_t(dy.active) * sizeof(float));
    int64_t lane = 0;
    for (; lane + 2 * LANES <= dy.active; lane += 2 * LANES)
      backward_linear<2>(lists.forward, values, x, dy, dx, lane, gradient);
    if (lane < dy.active) backward_linear<1>(lists.forward, values, x, dy, dx, lane, gradient);
    return;
  }
  if (!pointwise || linear || lists.forward.blocks > 1 || lists.kept == 0 ||
      lists.kept > sums_at_once(conv, lists.kept)) {
    sparse_weight_gradient(conv, index, x, dy, gradient, scratch);
    sparse_input_gradient(conv, index, values, dy, dx, add);
    return;
  }
  const Correlate weights{lists.forward, x.lanes, x.lanes, dy.lanes, dy.channel, is_large(dy)};
  const Gather input{lists.backward, values, nullptr, add, dy.lanes, dy.lanes, dx.lanes,
                     dx.channel, is_large(dx)};
  bool fresh = true;
  each_tile(dy.height, dy.width, dy.active,
            [&](int64_t row, int64_t column, int64_t lane, int columns, int groups) {
              const float* from = dy.at(0, row, column) + lane;
              float* to = dx.at(0, row, column) + lane;
              correlate_of(columns, groups)(weights, 0, 0, conv.out, x.at(0, row, column) + lane,
                                            from, scratch, fresh);
              fresh = false;
              for (int64_t block = 0; block < lists.backward.blocks; block++)
                gather_of<true>(columns, groups)(input, block, 0, conv.in, from, to);
            });
  totals(scratch, lists.kept, gradient);
}

}  // namespace FS_ISA
}  // namespace fedsparse
