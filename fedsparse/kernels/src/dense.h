// Dense layers: convolutions and linear layers, forward and gradients, without im2col.
//
// All functions are deterministic, allocate nothing, and take layers of one group.
#pragma once

#include "dense_conv.h"
#include "dense_conv_weights.h"
#include "dense_linear.h"

namespace fedsparse {
namespace FS_ISA {

// A layer of planes of one pixel.
inline bool is_linear(const Conv& conv, const View& x) {
  return conv.kernel_h == 1 && conv.kernel_w == 1 && x.height == 1 && x.width == 1 &&
         conv.pad_h == 0 && conv.pad_w == 0;
}

// Floats of scratch that dense_forward and both gradients need at most.
inline int64_t dense_scratch(const Conv& conv, const View& x, const View& y) {
  if (is_linear(conv, x)) return dense::linear_scratch(conv, y);
  int64_t most = std::max(dense::conv_weight_scratch(conv),
                          dense::forward_pass(conv, nullptr, x, y).packed());
  for (int32_t top = 0; top < conv.stride_h; top++)
    for (int32_t left = 0; left < conv.stride_w; left++)
      most = std::max(most, dense::gradient_pass(conv, nullptr, y, x, top, left).packed());
  return most;
}

// y = the convolution of x, over y's interior, for the active lanes. w: [out][in][kernel row]
// [kernel column]; bias: a number an output channel, or null.
inline void dense_forward(const Conv& conv, const float* w, const float* bias, const View& x,
                          const View& y, float* scratch) {
  if (is_linear(conv, x))
    dense::linear_forward(conv, w, bias, x, y, scratch);
  else
    dense::conv_forward(conv, w, bias, x, y, scratch);
}

// dx = (or, with `add`, +=) the gradient of the inputs, over dx's interior, for the active
// lanes. dy's halo holds zeros and is at least dilation * (kernel - 1) - pad wide.
inline void dense_input_gradient(const Conv& conv, const float* w, const View& dy,
                                 const View& dx, bool add, float* scratch) {
  if (is_linear(conv, dx))
    dense::linear_input_gradient(conv, w, dy, dx, add, scratch);
  else
    dense::conv_input_gradient(conv, w, dy, dx, add, scratch);
}

// dw = the gradient of the weights of output channels first..last-1: [last - first][fan_in].
inline void dense_weight_gradient(const Conv& conv, const View& x, const View& dy, int32_t first,
                                  int32_t last, float* dw, float* scratch) {
  if (last <= first) return;
  if (is_linear(conv, x))
    dense::linear_weight_gradient(conv, x, dy, first, last, dw, scratch);
  else
    dense::conv_weight_gradient(conv, x, dy, first, last, dw, scratch);
}

// db[o] = the sum of dy's channel o over pixels and active lanes.
inline void bias_gradient(const View& dy, float* db) {
  for (int32_t o = 0; o < dy.channels; o++) {
    Vec sums[4] = {};  // several, so that an addition needn't wait for the one before
    for (int32_t y = 0; y < dy.height; y++)
      for (int32_t lane = 0; lane < dy.active; lane += WIDTH) {
        const float* from = dy.at(o, y, 0) + lane;
        int32_t x = 0;
        for (; x + 4 <= dy.width; x += 4)
          for (int i = 0; i < 4; i++) sums[i] += load(from + (x + i) * int64_t(dy.lanes));
        for (; x < dy.width; x++) sums[0] += load(from + x * int64_t(dy.lanes));
      }
    db[o] = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

}  // namespace FS_ISA
}  // namespace fedsparse
