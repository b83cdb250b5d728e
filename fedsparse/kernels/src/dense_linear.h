// Dense linear layers: forward and both gradients.
//
// Weights are used once a call, so each kernel copies a block of them into the cache, in a
// form that the product reads well (rows that lie a power of two apart would push one another
// out of the cache), and is done with the block before it takes the next.
#pragma once

#include "dense_tile.h"

namespace fedsparse {
namespace FS_ISA {
namespace dense {

// A block of weights for the input gradient: outputs, inputs, floats from an output to the next.
constexpr int PANEL_TERMS = 32, PANEL = 512, PANEL_STEP = PANEL + LANES;
// A block of inputs for the weight gradient: inputs, floats from a lane to the next.
constexpr int INPUTS = 256, INPUTS_STEP = INPUTS + LANES;

constexpr Kernels BY_TILE = products<TERMS, 1, true>();        // packed [row][TERMS]
constexpr Kernels BY_PANEL = products<1, PANEL_STEP, true>();  // packed [term][PANEL_STEP]

// One tile of rows for all active lanes: rows of `to`, terms of `from`.
inline void multiply_lanes(const Kernels& kernels, int32_t rows, const float* weights,
                           const int32_t* offsets, int64_t terms, const float* from, float* to,
                           int64_t to_row, int32_t active, Start start, const float* ahead,
                           int64_t ahead_step) {
  for (int32_t lane = 0; lane < active; lane += 2 * WIDTH) {
    const int columns = active - lane > WIDTH ? 2 : 1;
    const float* sources[2] = {from + lane, from + lane + WIDTH};
    float* targets[2] = {to + lane, to + lane + WIDTH};
    kernels[columns - 1][rows - 1](weights, offsets, terms, sources, targets, to_row, start,
                                   ahead, ahead_step);
  }
}

inline int64_t linear_scratch(const Conv& conv, const View& y) {
  const int64_t forward = TILE * TERMS, inputs = std::min(PANEL_TERMS, conv.out) * PANEL_STEP;
  const int64_t weights =
      TILE * TERMS + TILE * WIDTH + std::min(TERMS, y.lanes) * INPUTS_STEP;
  return std::max({forward, inputs, weights});
}

// Rows are outputs, terms are inputs, vectors are lanes.
inline void linear_forward(const Conv& conv, const float* w, const float* bias, const View& x,
                           const View& y, float* packed /* [TILE][TERMS] */) {
  int32_t offsets[TERMS];
  count_terms(x.channel, TERMS, offsets);
  const Tiles tiles(conv.out);
  for (int32_t t = 0; t < tiles.count; t++) {
    const int32_t top = tiles.start(t), rows = tiles.size(t);
    for (int32_t first = 0; first < conv.in; first += TERMS) {
      const int32_t terms = std::min(TERMS, conv.in - first);
      for (int32_t r = 0; r < rows; r++)
        std::memcpy(packed + r * TERMS, w + int64_t(top + r) * conv.in + first,
                    sizeof(float) * terms);
      // Meanwhile fetch the next tile's rows, which follow this one's.
      const bool last = t + 1 == tiles.count;
      const float* ahead = last ? w : w + int64_t(top + rows) * conv.in + int64_t(first) * rows;
      multiply_lanes(BY_TILE, rows, packed, offsets, terms, x.at(first, 0, 0), y.at(top, 0, 0),
                     y.channel, y.active, Start{first > 0, bias ? bias + top : nullptr}, ahead,
                     last ? 0 : rows);
    }
  }
}

// Rows are inputs, terms are outputs, vectors are lanes.
inline void linear_input_gradient(const Conv& conv, const float* w, const View& dy,
                                  const View& dx, bool add,
                                  float* packed /* [PANEL_TERMS][PANEL_STEP] */) {
  int32_t offsets[PANEL_TERMS];
  count_terms(dy.channel, PANEL_TERMS, offsets);
  for (int32_t first = 0; first < conv.out; first += PANEL_TERMS) {
    const int32_t terms = std::min(PANEL_TERMS, conv.out - first);
    for (int32_t top = 0; top < conv.in; top += PANEL) {
      const int32_t inputs = std::min(PANEL, conv.in - top);
      const float* block = w + int64_t(first) * conv.in + top;
      for (int32_t k = 0; k < terms; k++)
        std::memcpy(packed + k * PANEL_STEP, block + int64_t(k) * conv.in,
                    sizeof(float) * inputs);
      const Tiles tiles(inputs);
      for (int32_t t = 0; t < tiles.count; t++) {
        // Meanwhile fetch the next block of these outputs, a row of it a tile.
        const bool last = top + PANEL >= conv.in || t >= terms;
        multiply_lanes(BY_PANEL, tiles.size(t), packed + tiles.start(t), offsets, terms,
                       dy.at(first, 0, 0), dx.at(top + tiles.start(t), 0, 0), dx.channel,
                       dx.active, Start{add || first > 0, nullptr},
                       last ? w : block + int64_t(t) * conv.in + PANEL,
                       last ? 0 : PANEL / PANEL_TERMS);
      }
    }
  }
}

// Rows are outputs, terms are lanes, vectors are inputs: x is transposed, INPUTS at a time.
inline void linear_weight_gradient(const Conv& conv, const View& x, const View& dy,
                                   int32_t first, int32_t last, float* dw, float* scratch) {
  float* packed = scratch;              // [TILE][TERMS]
  float* edge = packed + TILE * TERMS;  // [TILE][WIDTH]
  float* inputs = edge + TILE * WIDTH;  // [TERMS][INPUTS_STEP]
  int32_t offsets[TERMS];
  count_terms(INPUTS_STEP, TERMS, offsets);
  const Tiles tiles(last - first);
  for (int32_t left = 0; left < conv.in; left += INPUTS) {
    const int32_t some = std::min(INPUTS, conv.in - left);
    for (int32_t lane = 0; lane < dy.active; lane += TERMS) {
      const int32_t terms = std::min(TERMS, dy.active - lane);
      const Start start{lane > 0, nullptr};
      for (int32_t c = 0; c < some; c += WIDTH)
        for (int32_t l = 0; l < terms; l += WIDTH)
          transpose(x.at(left + c, 0, 0) + lane + l, x.channel, some - c,
                    inputs + l * INPUTS_STEP + c, INPUTS_STEP);
      for (int32_t t = 0; t < tiles.count; t++) {
        const int32_t rows = tiles.size(t);
        for (int32_t r = 0; r < rows; r++)
          std::memcpy(packed + r * TERMS, dy.at(first + tiles.start(t) + r, 0, 0) + lane,
                      sizeof(float) * terms);
        float* target = dw + int64_t(tiles.start(t)) * conv.in + left;
        int32_t c = 0;
        for (; c + 2 * WIDTH <= some; c += 2 * WIDTH) {
          const float* from[2] = {inputs + c, inputs + c + WIDTH};
          float* to[2] = {target + c, target + c + WIDTH};
          // Meanwhile fetch the lines to be written next.
          BY_TILE[1][rows - 1](packed, offsets, terms, from, to, conv.in, start,
                               target + c + 2 * WIDTH, conv.in);
        }
        for (; c < some; c += WIDTH) {  // a vector alone, the last one perhaps in part
          const int32_t width = std::min(WIDTH, some - c);
          const float* from[1] = {inputs + c};
          float* to[1] = {edge};
          for (int32_t r = 0; start.add && r < rows; r++)
            std::memcpy(edge + r * WIDTH, target + int64_t(r) * conv.in + c,
                        sizeof(float) * width);
          BY_TILE[0][rows - 1](packed, offsets, terms, from, to, WIDTH, start, target, 0);
          for (int32_t r = 0; r < rows; r++)
            std::memcpy(target + int64_t(r) * conv.in + c, edge + r * WIDTH,
                        sizeof(float) * width);
        }
      }
    }
  }
}

}  // namespace dense
}  // namespace FS_ISA
}  // namespace fedsparse
