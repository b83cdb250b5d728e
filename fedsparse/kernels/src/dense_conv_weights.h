// Dense convolutions: the gradient of the weights, in two ways.
//
// A layer of few weights keeps a vector of sums for each: input times gradient, lane by lane,
// as they lie in memory. For a layer of many these vectors wouldn't fit in the cache, so the
// gradient is transposed, and a vector of sums belongs to a weight and WIDTH output channels.
#pragma once

#include "dense_conv.h"

namespace fedsparse {
namespace FS_ISA {
namespace dense {

// Where each weight of an output channel first met an input: of pixel (0, 0), lane 0.
inline void locate_weights(const Conv& conv, const View& x, int64_t first, int64_t count,
                           int32_t* offsets) {
  locate_terms(conv.kernel_h, conv.kernel_w, x.channel, conv.dilation_h * x.row,
               int64_t(conv.dilation_w) * x.lanes, first, count, offsets);
}

// ---------------------------------------------------------------------------------------------
// Few weights: a register tile of output channels by weights, along a row of pixels

#if defined(__aarch64__) || FS_WIDTH == 16
constexpr int TILE_OUT = 4, TILE_IN = 6;
#else
constexpr int TILE_OUT = 3, TILE_IN = 3;
#endif
constexpr int64_t FEW = 32 << 10;  // floats of sums: 1/8 of a 1 MiB cache

// sums[o][k] += over the pixels of a row, x[offsets[k] ...] * dy[o * channel ...].
template <int OUT, int IN>
void meet(const float* x, int64_t x_step, const int32_t* offsets, const float* dy,
          int64_t dy_step, int64_t dy_channel, int32_t width, int32_t active, float* sums,
          int64_t sums_step) {
  Vec sum[OUT][IN];
  FS_UNROLL
  for (int o = 0; o < OUT; o++)
    FS_UNROLL
    for (int k = 0; k < IN; k++) sum[o][k] = load(sums + o * sums_step + k * WIDTH);
  for (int32_t column = 0; column < width; column++)
    for (int32_t lane = 0; lane < active; lane += WIDTH) {
      const float* input = x + column * x_step + lane;
      const float* gradient = dy + column * dy_step + lane;
      Vec g[OUT];
      FS_UNROLL
      for (int o = 0; o < OUT; o++) g[o] = load(gradient + o * dy_channel);
      FS_UNROLL
      for (int k = 0; k < IN; k++) {
        const Vec value = load(input + offsets[k]);
        FS_UNROLL
        for (int o = 0; o < OUT; o++) sum[o][k] += g[o] * value;
      }
    }
  FS_UNROLL
  for (int o = 0; o < OUT; o++)
    FS_UNROLL
    for (int k = 0; k < IN; k++) store(sums + o * sums_step + k * WIDTH, sum[o][k]);
}

typedef void (*Meeting)(const float*, int64_t, const int32_t*, const float*, int64_t, int64_t,
                        int32_t, int32_t, float*, int64_t);

template <int OUT, int... K>
constexpr std::array<Meeting, TILE_IN> meetings_of(std::integer_sequence<int, K...>) {
  return {meet<OUT, K + 1>...};
}
template <int... O>
constexpr std::array<std::array<Meeting, TILE_IN>, TILE_OUT> meetings(
    std::integer_sequence<int, O...>) {
  return {meetings_of<O + 1>(std::make_integer_sequence<int, TILE_IN>())...};
}
constexpr auto MEETINGS = meetings(std::make_integer_sequence<int, TILE_OUT>());

inline void few_weights_gradient(const Conv& conv, const View& x, const View& dy, int32_t first,
                                 int32_t last, float* dw, float* sums /* [out][weight][WIDTH] */) {
  const int32_t weights = int32_t(conv.fan_in()), outputs = last - first;
  const Tiles out(outputs, TILE_OUT), in(weights, TILE_IN);
  std::memset(sums, 0, sizeof(float) * outputs * weights * WIDTH);
  for (int32_t y = 0; y < dy.height; y++)
    for (int32_t t = 0; t < in.count; t++) {
      int32_t offsets[TILE_IN];
      locate_weights(conv, x, in.start(t), in.size(t), offsets);
      for (int32_t u = 0; u < out.count; u++)
        MEETINGS[out.size(u) - 1][in.size(t) - 1](
            x.at(0, y * conv.stride_h - conv.pad_h, -conv.pad_w),
            int64_t(conv.stride_w) * x.lanes, offsets, dy.at(first + out.start(u), y, 0),
            dy.lanes, dy.channel, dy.width, dy.active,
            sums + (int64_t(out.start(u)) * weights + in.start(t)) * WIDTH,
            int64_t(weights) * WIDTH);
    }
  const int64_t all = int64_t(outputs) * weights;
  for (int64_t i = 0; i < all; i += WIDTH) {
    Vec block[WIDTH] = {};
    const int64_t count = std::min<int64_t>(WIDTH, all - i);
    for (int64_t k = 0; k < count; k++) block[k] = load(sums + (i + k) * WIDTH);
    const Vec totals = totals_of(block);
    std::memcpy(dw + i, &totals, sizeof(float) * count);
  }
}

// ---------------------------------------------------------------------------------------------
// Many weights: rows are weights, terms are pixels and lanes, vectors are output channels

constexpr int DEPTH = 256;             // terms in one go
constexpr Kernels BY_DEEP_ROW = products<DEPTH, 1, false>();  // inputs packed [row][DEPTH]
constexpr int OUTPUTS = 64;            // output channels in one go
constexpr int PAIR = 2 * WIDTH;        // output channels of a product
constexpr int64_t WEIGHTS = 1024;      // weights of an output channel in one go
constexpr int RUNS = DEPTH / LANES;    // runs of LANES samples of a pixel in one go

inline void many_weights_gradient(const Conv& conv, const View& x, const View& dy, int32_t first,
                                  int32_t last, float* dw, float* scratch) {
  const int64_t fan_in = conv.fan_in();
  float* packed = scratch;                   // [TILE][DEPTH]: what each weight met
  float* gradient = packed + TILE * DEPTH;   // [OUTPUTS / PAIR][DEPTH][PAIR]
  float* sums = gradient + OUTPUTS * DEPTH;  // [WEIGHTS][OUTPUTS]
  int32_t steps[DEPTH], offsets[WEIGHTS];
  count_terms(PAIR, DEPTH, steps);
  const int64_t runs = int64_t(dy.height) * dy.width * (dy.active / LANES);
  for (int32_t o = first; o < last; o += OUTPUTS)
    for (int64_t base = 0; base < fan_in; base += WEIGHTS) {
      const int32_t outputs = std::min(OUTPUTS, last - o);
      const int32_t weights = int32_t(std::min(WEIGHTS, fan_in - base));
      const Tiles tiles(weights);
      locate_weights(conv, x, base, weights, offsets);
      int64_t row = 0, column = 0, lane = 0;
      for (int64_t run = 0; run < runs; run += RUNS) {
        const int count = int(std::min<int64_t>(RUNS, runs - run));
        const float* inputs[RUNS];
        for (int i = 0; i < count; i++) {
          inputs[i] = x.at(0, row * conv.stride_h - conv.pad_h,
                           column * conv.stride_w - conv.pad_w) + lane;
          for (int32_t c = 0; c < outputs; c += WIDTH)
            for (int l = 0; l < LANES; l += WIDTH)
              transpose(dy.at(o + c, row, column) + lane + l, dy.channel, outputs - c,
                        gradient + (c / PAIR * DEPTH + i * LANES + l) * PAIR + c % PAIR, PAIR);
          lane += LANES;
          if (lane == dy.active) lane = 0, column++;
          if (column == dy.width) column = 0, row++;
        }
        for (int32_t t = 0; t < tiles.count; t++) {
          const int32_t top = tiles.start(t), rows = tiles.size(t);
          for (int32_t r = 0; r < rows; r++)
            for (int i = 0; i < count; i++)
              std::memcpy(packed + r * DEPTH + i * LANES, inputs[i] + offsets[top + r],
                          sizeof(float) * LANES);
          for (int32_t c = 0; c < outputs; c += PAIR) {
            const float* from[2] = {gradient + c * DEPTH, gradient + c * DEPTH + WIDTH};
            float* to[2] = {sums + top * OUTPUTS + c, sums + top * OUTPUTS + c + WIDTH};
            BY_DEEP_ROW[outputs - c > WIDTH ? 1 : 0][rows - 1](
                packed, steps, count * LANES, from, to, OUTPUTS, Start{run > 0, nullptr},
                nullptr, 0);
          }
        }
      }
      for (int32_t c = 0; c < outputs; c++)
        for (int32_t r = 0; r < weights; r++)
          dw[(o - first + c) * fan_in + base + r] = sums[r * OUTPUTS + c];
    }
}

inline bool are_few(const Conv& conv, int32_t outputs) {
  return outputs * conv.fan_in() * WIDTH <= FEW;
}

inline int64_t conv_weight_scratch(const Conv& conv) {
  const int64_t many =
      (TILE + OUTPUTS) * DEPTH + std::min(WEIGHTS, conv.fan_in()) * OUTPUTS;
  // A call may ask for fewer output channels than there are.
  return std::max(are_few(conv, conv.out) ? 0 : many,
                  std::min(FEW, conv.weights() * WIDTH));
}

inline void conv_weight_gradient(const Conv& conv, const View& x, const View& dy, int32_t first,
                                 int32_t last, float* dw, float* scratch) {
  if (are_few(conv, last - first))
    few_weights_gradient(conv, x, dy, first, last, dw, scratch);
  else
    many_weights_gradient(conv, x, dy, first, last, dw, scratch);
}

}  // namespace dense
}  // namespace FS_ISA
}  // namespace fedsparse
