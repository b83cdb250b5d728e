// Pooling: the largest value of each window, or its mean.
#pragma once

#include <algorithm>

#include "elementwise.h"

namespace fedsparse {
namespace FS_ISA {

// With `relu`, a ReLU stands before the maximum. It is taken after it, which is the same, and
// less work: the input stays as it was, and y > 0 says where the gradient passes.
struct Pool {
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  bool relu;
  float cap;

  // Whether windows cover each input exactly once.
  bool tiles(const View& x) const {
    return kernel_h == stride_h && kernel_w == stride_w && pad_h == 0 && pad_w == 0 &&
           x.height % kernel_h == 0 && x.width % kernel_w == 0;
  }
};

// Calls f(channel, output row, output column, first and last row and column of the window).
template <class F>
FS_INLINE void each_window(const Pool& pool, const View& x, const View& y, F f) {
  for (int32_t c = 0; c < y.channels; c++)
    for (int32_t row = 0; row < y.height; row++) {
      const int32_t top = row * pool.stride_h - pool.pad_h;
      const int32_t from = std::max(top, 0), to = std::min(top + pool.kernel_h, x.height);
      for (int32_t column = 0; column < y.width; column++) {
        const int32_t left = column * pool.stride_w - pool.pad_w;
        f(c, row, column, from, to, std::max(left, 0), std::min(left + pool.kernel_w, x.width));
      }
    }
}

inline void max_pool_forward(const Pool& pool, const View& x, const View& y) {
  each_window(pool, x, y, [&](int32_t c, int32_t row, int32_t column, int32_t top,
                              int32_t bottom, int32_t left, int32_t right) {
    for (int32_t i = 0; i < y.active; i += WIDTH) {
      Vec most = load(x.at(c, top, left) + i);
      for (int32_t h = top; h < bottom; h++)
        for (int32_t w = left; w < right; w++) {
          const Vec value = load(x.at(c, h, w) + i);
          // What is not a number stays the largest, and shows in the loss.
          most = (value > most) | (value != value) ? value : most;
        }
      if (pool.relu) most = clipped(most, splat(pool.cap));
      store(y.at(c, row, column) + i, most);
    }
  });
}

// The gradient goes to the first of the largest, as in torch; with ADD, to what dx holds.
template <bool ADD>
inline void hand_back(const Pool& pool, const View& x, const View& y, const View& dy,
                      const View& dx) {
  each_window(pool, x, y, [&](int32_t c, int32_t row, int32_t column, int32_t top,
                              int32_t bottom, int32_t left, int32_t right) {
    for (int32_t i = 0; i < y.active; i += WIDTH) {
      const Vec most = load(y.at(c, row, column) + i);
      Vec rest = load(dy.at(c, row, column) + i);
      if (pool.relu) rest = passed(rest, most, splat(pool.cap));
      for (int32_t h = top; h < bottom; h++)
        for (int32_t w = left; w < right; w++) {
          const IntVec chosen = load(x.at(c, h, w) + i) == most;
          float* to = dx.at(c, h, w) + i;
          const Vec part = chosen ? rest : Vec{};
          store(to, ADD ? load(to) + part : part);
          rest = chosen ? Vec{} : rest;
        }
    }
  });
}

// dx = the gradient, or dx += it.
inline void max_pool_backward(const Pool& pool, const View& x, const View& y, const View& dy,
                              const View& dx, bool add) {
  if (!add && pool.tiles(x)) {
    hand_back<false>(pool, x, y, dy, dx);
    return;
  }
  if (!add) clear_interior(dx);
  hand_back<true>(pool, x, y, dy, dx);
}

// `windows` holds the first and last input row of each output row, then the same of columns.
template <class F>
FS_INLINE void each_mean(const int32_t* windows, const View& y, F f) {
  const int32_t* columns = windows + 2 * y.height;
  for (int32_t c = 0; c < y.channels; c++)
    for (int32_t row = 0; row < y.height; row++)
      for (int32_t column = 0; column < y.width; column++)
        f(c, row, column, windows[2 * row], windows[2 * row + 1], columns[2 * column],
          columns[2 * column + 1]);
}

inline void average_pool_forward(const int32_t* windows, const View& x, const View& y) {
  each_mean(windows, y, [&](int32_t c, int32_t row, int32_t column, int32_t top, int32_t bottom,
                            int32_t left, int32_t right) {
    const Vec share = splat(1.0f / float((bottom - top) * (right - left)));
    for (int32_t i = 0; i < y.active; i += WIDTH) {
      Vec sum = {};
      for (int32_t h = top; h < bottom; h++)
        for (int32_t w = left; w < right; w++) sum += load(x.at(c, h, w) + i);
      store(y.at(c, row, column) + i, sum * share);
    }
  });
}

// dx holds zeros or what is added to.
inline void average_pool_backward(const int32_t* windows, const View& dy, const View& dx) {
  each_mean(windows, dy, [&](int32_t c, int32_t row, int32_t column, int32_t top, int32_t bottom,
                             int32_t left, int32_t right) {
    const Vec share = splat(1.0f / float((bottom - top) * (right - left)));
    for (int32_t i = 0; i < dy.active; i += WIDTH) {
      const Vec part = load(dy.at(c, row, column) + i) * share;
      for (int32_t h = top; h < bottom; h++)
        for (int32_t w = left; w < right; w++) {
          float* to = dx.at(c, h, w) + i;
          store(to, load(to) + part);
        }
    }
  });
}

}  // namespace FS_ISA
}  // namespace fedsparse
