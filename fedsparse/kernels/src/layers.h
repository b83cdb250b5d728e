// What layers work on: activations with the batch innermost, and the geometry of a convolution.
#pragma once

#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

// An activation or its gradient, [channel][row][column][lane]. `data` points at column 0 of
// row 0 of channel 0; `halo` rows and columns around each plane exist in memory too and hold
// zeros, so that a convolution with padding <= halo needs no check at the edges. Addresses of
// pixels are multiples of 64 bytes.
struct View {
  float* data;
  int64_t channel;  // floats from a channel to the next
  int64_t row;      // floats from a row to the next: (width + 2 halo) * lanes
  int32_t channels, height, width;
  int32_t halo;
  int32_t lanes;    // floats from a column to the next: the most samples, rounded up to LANES
  int32_t active;   // lanes to be computed now, a multiple of LANES, at most `lanes`

  FS_INLINE float* at(int64_t c, int64_t y, int64_t x) const {
    return data + c * channel + y * row + x * lanes;
  }
};

// A convolution; a linear layer is one of 1x1 over planes of one pixel. Weights are laid out
// as torch's: [out][in / groups][kernel row][kernel column].
struct Conv {
  int32_t out, in, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
      groups;
  int64_t fan_in() const { return int64_t(in / groups) * kernel_h * kernel_w; }
  int64_t weights() const { return out * fan_in(); }
};

}  // namespace FS_ISA
}  // namespace fedsparse
