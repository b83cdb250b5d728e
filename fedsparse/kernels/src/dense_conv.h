// Dense convolutions: forward and the gradient of the inputs.
//
// Both are passes of one form: rows are the channels written, terms the channels read and the
// taps, vectors pixels and lanes. The input gradient of a strided convolution is one pass for
// each phase of the stride, as inputs of one phase meet the same taps.
#pragma once

#include "dense_tile.h"

namespace fedsparse {
namespace FS_ISA {
namespace dense {

constexpr Kernels BY_ROW = products<TERMS, 1, false>();  // weights packed [row][TERMS]
constexpr int64_t CHUNK = 8 * TERMS;  // terms whose weights are packed together
constexpr int64_t PACKED = 64 << 10;  // floats of packed weights: a quarter of a 1 MiB cache
constexpr int64_t STRIP = 128 << 10;  // floats that a row of a strip reads and writes: a half

// One pass over a plane: pixel (y, x) of channel r becomes the sum over the channels c read and
// the taps (i, j) of weight[r, c, i, j] * from[c, y, x, i, j]. Addresses are affine in all.
struct Pass {
  const float* weights;
  int64_t weight_row, weight_channel, weight_y, weight_x;  // floats along r, c, i, j
  int32_t rows, channels, taps_y, taps_x;
  const float* from;
  int64_t from_channel, from_y, from_x, from_tap_y, from_tap_x;
  float* to;
  int64_t to_channel, to_y, to_x;
  int32_t height, width, active;

  int64_t terms() const { return int64_t(channels) * taps_y * taps_x; }

  // Floats of a row's packed weights, rows packed together, and floats of both.
  int64_t packed_row() const {
    return (std::min(CHUNK, terms()) + TERMS - 1) / TERMS * TERMS;
  }
  int32_t panel() const {
    const int64_t most = PACKED / std::max<int64_t>(TERMS, packed_row()) / TILE * TILE;
    return int32_t(std::min<int64_t>(rows, most));
  }
  int64_t packed() const { return panel() * packed_row(); }
};

// Where terms first, first + 1, ... read their input, in the order channel, tap row, tap column.
inline void locate_terms(int32_t taps_y, int32_t taps_x, int64_t channel, int64_t tap_y,
                         int64_t tap_x, int64_t first, int64_t count, int32_t* offsets) {
  const int64_t taps = int64_t(taps_y) * taps_x;
  for (int64_t k = 0; k < count; k++) {
    const int64_t c = (first + k) / taps, tap = (first + k) % taps;
    offsets[k] = int32_t(c * channel + tap / taps_x * tap_y + tap % taps_x * tap_x);
  }
}

// The weights of rows top..top+rows-1 and of those terms, as [block of terms][row][TERMS].
inline void pack_weights(const Pass& pass, int32_t top, int32_t rows, int64_t first,
                         int64_t count, float* packed) {
  const int64_t taps = int64_t(pass.taps_y) * pass.taps_x;
  for (int64_t k = 0; k < count; k++) {
    const int64_t c = (first + k) / taps, tap = (first + k) % taps;
    const float* from = pass.weights + top * pass.weight_row + c * pass.weight_channel +
                        tap / pass.taps_x * pass.weight_y + tap % pass.taps_x * pass.weight_x;
    float* to = packed + k / TERMS * rows * TERMS + k % TERMS;
    for (int32_t r = 0; r < rows; r++) to[r * TERMS] = from[r * pass.weight_row];
  }
}

// Columns left..right-1 of row y, for a panel of rows and a block of terms.
inline void multiply_strip(const Pass& pass, int32_t y, int32_t left, int32_t right,
                           int32_t top, const Tiles& tiles, const float* packed,
                           const int32_t* offsets, int64_t terms, Start start) {
  const int32_t of_pixel = pass.active / WIDTH, vectors = (right - left) * of_pixel;
  // The addresses of vectors v and v + 1 of the strip, of the first channel read and written.
  const float* from[2];
  float* to[2];
  int columns;
  const auto locate = [&](int32_t v) {
    columns = std::min(2, vectors - v);
    for (int j = 0; j < columns; j++) {
      const int64_t column = left + (v + j) / of_pixel, lane = (v + j) % of_pixel * WIDTH;
      from[j] = pass.from + y * pass.from_y + column * pass.from_x + lane;
      to[j] = pass.to + top * pass.to_channel + y * pass.to_y + column * pass.to_x + lane;
    }
  };
  const auto product = [&](int32_t t, const int32_t* at) {
    const int32_t row = tiles.start(t);
    float* target[2];
    for (int j = 0; j < columns; j++) target[j] = to[j] + row * pass.to_channel;
    BY_ROW[columns - 1][tiles.size(t) - 1](
        packed + row * TERMS, at, terms, from, target, pass.to_channel,
        Start{start.add, start.row ? start.row + row : nullptr}, nullptr, 0);
  };
  if (pass.taps_y * pass.taps_x >= 4 || tiles.count <= 2) {
    for (int32_t t = 0; t < tiles.count; t++)
      for (int32_t v = 0; v < vectors; v += 2) {
        locate(v);
        product(t, offsets);
      }
    return;
  }
  // With few taps the terms lie on many pages, often a power of two apart: gather them once for
  // all tiles.
  alignas(64) float gathered[TERMS][2][WIDTH];
  int32_t steps[TERMS];
  for (int k = 0; k < TERMS; k++) steps[k] = k * 2 * WIDTH;
  for (int32_t v = 0; v < vectors; v += 2) {
    locate(v);
    for (int j = 0; j < columns; j++) {
      for (int64_t k = 0; k < terms; k++) store(gathered[k][j], load(from[j] + offsets[k]));
      from[j] = gathered[0][j];
    }
    for (int32_t t = 0; t < tiles.count; t++) product(t, steps);
  }
}

// Runs a pass; the sums start from the bias, a number a row, or zero if it is null, or with
// `add` from what is there.
inline void run_pass(const Pass& pass, const float* bias, bool add, float* packed) {
  int32_t offsets[CHUNK];
  int64_t first = 0;
  do {  // once even without a term: the result is then the start
    const int64_t count = std::min(CHUNK, pass.terms() - first);
    locate_terms(pass.taps_y, pass.taps_x, pass.from_channel, pass.from_tap_y, pass.from_tap_x,
                 first, count, offsets);
    for (int32_t top = 0; top < pass.rows; top += pass.panel()) {
      const int32_t rows = std::min(pass.panel(), pass.rows - top);
      const Tiles tiles(rows);
      pack_weights(pass, top, rows, first, count, packed);
      // Down one strip of columns after the other, so narrow that what a row of it reads and
      // writes stays in the cache for the next block of terms and the next row.
      const int64_t column =
          count / std::max(1, pass.taps_x) * pass.from_x + rows * pass.to_x;
      const int64_t strips = (column * pass.width + STRIP - 1) / STRIP;
      const int32_t width = int32_t((pass.width + strips - 1) / strips);
      for (int32_t left = 0; left < pass.width; left += width)
        for (int32_t y = 0; y < pass.height; y++) {
          int64_t done = 0;
          do {
            multiply_strip(pass, y, left, std::min(left + width, pass.width), top, tiles,
                           packed + done * rows, offsets + done,
                           std::min<int64_t>(TERMS, count - done),
                           Start{add || first + done > 0, bias ? bias + top : nullptr});
            done += TERMS;
          } while (done < count);
        }
    }
    first += count;
  } while (first < pass.terms());
}

inline Pass forward_pass(const Conv& conv, const float* w, const View& x, const View& y) {
  Pass pass;
  pass.weights = w;
  pass.weight_row = conv.fan_in();
  pass.weight_channel = int64_t(conv.kernel_h) * conv.kernel_w;
  pass.weight_y = conv.kernel_w;
  pass.weight_x = 1;
  pass.rows = conv.out;
  pass.channels = conv.in;
  pass.taps_y = conv.kernel_h;
  pass.taps_x = conv.kernel_w;
  pass.from = x.at(0, -conv.pad_h, -conv.pad_w);
  pass.from_channel = x.channel;
  pass.from_y = conv.stride_h * x.row;
  pass.from_x = int64_t(conv.stride_w) * x.lanes;
  pass.from_tap_y = conv.dilation_h * x.row;
  pass.from_tap_x = int64_t(conv.dilation_w) * x.lanes;
  pass.to = y.data;
  pass.to_channel = y.channel;
  pass.to_y = y.row;
  pass.to_x = y.lanes;
  pass.height = y.height;
  pass.width = y.width;
  pass.active = y.active;
  return pass;
}

inline void conv_forward(const Conv& conv, const float* w, const float* bias, const View& x,
                         const View& y, float* scratch) {
  run_pass(forward_pass(conv, w, x, y), bias, false, scratch);
}

// One axis of a stride phase of the input gradient. The inputs first, first + stride, ... get
// gradient through some of the kernel's taps alone, here from the last one down, so that
// addresses rise: tap, tap - tap_step, ... Input number t and tap number i of these meet in
// output t + output + i * output_step.
struct Phase {
  int32_t inputs, tap, tap_step, taps, output, output_step;

  Phase(int32_t first, int32_t size, int32_t kernel, int32_t stride, int32_t pad,
        int32_t dilation) {
    inputs = size > first ? (size - first + stride - 1) / stride : 0;
    tap_step = 1;
    while (tap_step * dilation % stride) tap_step++;
    output_step = tap_step * dilation / stride;
    tap = kernel - 1;
    while (tap > 0 && (first + pad - tap * dilation) % stride) tap--;
    const int32_t met = first + pad - tap * dilation;
    taps = met % stride ? 0 : tap / tap_step + 1;
    output = met % stride ? 0 : met / stride;
  }
};

inline Pass gradient_pass(const Conv& conv, const float* w, const View& dy, const View& dx,
                          int32_t top, int32_t left) {
  const Phase v(top, dx.height, conv.kernel_h, conv.stride_h, conv.pad_h, conv.dilation_h);
  const Phase h(left, dx.width, conv.kernel_w, conv.stride_w, conv.pad_w, conv.dilation_w);
  const int64_t taps = int64_t(conv.kernel_h) * conv.kernel_w;
  Pass pass;
  // Without a tap there is no weight to point at, and for sizes there are no weights at all.
  const bool some = w != nullptr && v.taps > 0 && h.taps > 0;
  pass.weights = some ? w + int64_t(v.tap) * conv.kernel_w + h.tap : w;
  pass.weight_row = taps;
  pass.weight_channel = conv.in * taps;
  pass.weight_y = -int64_t(v.tap_step) * conv.kernel_w;
  pass.weight_x = -h.tap_step;
  pass.rows = conv.in;
  pass.channels = conv.out;
  pass.taps_y = v.taps;
  pass.taps_x = h.taps;
  pass.from = dy.at(0, v.output, h.output);
  pass.from_channel = dy.channel;
  pass.from_y = dy.row;
  pass.from_x = dy.lanes;
  pass.from_tap_y = v.output_step * dy.row;
  pass.from_tap_x = int64_t(h.output_step) * dy.lanes;
  pass.to = dx.at(0, top, left);
  pass.to_channel = dx.channel;
  pass.to_y = conv.stride_h * dx.row;
  pass.to_x = int64_t(conv.stride_w) * dx.lanes;
  pass.height = v.inputs;
  pass.width = h.inputs;
  pass.active = dx.active;
  return pass;
}

inline void conv_input_gradient(const Conv& conv, const float* w, const View& dy,
                                const View& dx, bool add, float* scratch) {
  for (int32_t top = 0; top < conv.stride_h; top++)
    for (int32_t left = 0; left < conv.stride_w; left++) {
      const Pass pass = gradient_pass(conv, w, dy, dx, top, left);
      if (pass.height && pass.width && !(add && pass.terms() == 0))
        run_pass(pass, nullptr, add, scratch);
    }
}

}  // namespace dense
}  // namespace FS_ISA
}  // namespace fedsparse
