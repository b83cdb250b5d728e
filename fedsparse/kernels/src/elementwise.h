// Operations on one element at a time: ReLU, addition, copies between shapes.
#pragma once

#include "layers.h"

namespace fedsparse {
namespace FS_ISA {

// Calls f(row, column, floats) for runs of floats that lie side by side in every view of this
// shape with as many lanes: whole rows, or single pixels where only part of the lanes is active.
template <class F>
FS_INLINE void each_run(const View& view, F f) {
  for (int32_t y = 0; y < view.height; y++) {
    if (view.active == view.lanes) {
      f(y, 0, int64_t(view.width) * view.lanes);
    } else {
      for (int32_t x = 0; x < view.width; x++) f(y, x, int64_t(view.active));
    }
  }
}

// The halo of a gradient is zero before a convolution reads it; buffers are shared, so whoever
// writes a gradient first clears it.
inline void clear_halo(const View& view) {
  if (view.halo == 0) return;
  const int64_t side = int64_t(view.halo) * view.lanes, edge = view.halo * view.row;
  const int64_t wide = view.width * int64_t(view.lanes);
  for (int32_t c = 0; c < view.channels; c++) {
    float* plane = view.at(c, 0, 0) - side;
    std::memset(plane - edge, 0, edge * sizeof(float));
    std::memset(plane + view.height * view.row, 0, edge * sizeof(float));
    for (int32_t y = 0; y < view.height; y++) {
      std::memset(plane + y * view.row, 0, side * sizeof(float));
      std::memset(plane + y * view.row + side + wide, 0, side * sizeof(float));
    }
  }
}

inline void clear_interior(const View& view) {
  for (int32_t c = 0; c < view.channels; c++)
    each_run(view, [&](int32_t y, int32_t x, int64_t count) {
      std::memset(view.at(c, y, x), 0, count * sizeof(float));
    });
}

// Compared in this order, what is not a number stays so, and shows in the loss.
FS_INLINE Vec clipped(Vec value, Vec cap) {
  const Vec positive = value < 0 ? Vec{} : value;
  return positive > cap ? cap : positive;
}

// The gradient where a ReLU let its input through; `value` is the ReLU's output.
FS_INLINE Vec passed(Vec gradient, Vec value, Vec cap) {
  return (value > 0) & (value < cap) ? gradient : Vec{};
}

inline void relu_forward(const View& value, float cap) {
  const Vec limit = splat(cap);
  for (int32_t c = 0; c < value.channels; c++)
    each_run(value, [&](int32_t y, int32_t x, int64_t count) {
      float* at = value.at(c, y, x);
      for (int64_t i = 0; i < count; i += WIDTH) store(at + i, clipped(load(at + i), limit));
    });
}

inline void relu_backward(const View& value, const View& gradient, float cap) {
  const Vec limit = splat(cap);
  for (int32_t c = 0; c < value.channels; c++)
    each_run(value, [&](int32_t y, int32_t x, int64_t count) {
      const float* at = value.at(c, y, x);
      float* to = gradient.at(c, y, x);
      for (int64_t i = 0; i < count; i += WIDTH)
        store(to + i, passed(load(to + i), load(at + i), limit));
    });
}

inline void add_forward(const View& a, const View& b, const View& out) {
  for (int32_t c = 0; c < out.channels; c++)
    each_run(out, [&](int32_t y, int32_t x, int64_t count) {
      const float *left = a.at(c, y, x), *right = b.at(c, y, x);
      float* to = out.at(c, y, x);
      for (int64_t i = 0; i < count; i += WIDTH) store(to + i, load(left + i) + load(right + i));
    });
}

// to = from, or to += from.
inline void hand_on(const View& from, const View& to, bool add) {
  for (int32_t c = 0; c < from.channels; c++)
    each_run(from, [&](int32_t y, int32_t x, int64_t count) {
      const float* source = from.at(c, y, x);
      float* target = to.at(c, y, x);
      for (int64_t i = 0; i < count; i += WIDTH)
        store(target + i, add ? load(target + i) + load(source + i) : load(source + i));
    });
}

// The same between two shapes of as many elements, counted channel by channel, row by row.
inline void reshape(const View& from, const View& to, bool add) {
  int32_t c = 0, y = 0, x = 0;
  for (int32_t channel = 0; channel < from.channels; channel++)
    for (int32_t row = 0; row < from.height; row++)
      for (int32_t column = 0; column < from.width; column++) {
        const float* source = from.at(channel, row, column);
        float* target = to.at(c, y, x);
        for (int32_t i = 0; i < from.active; i += WIDTH)
          store(target + i, add ? load(target + i) + load(source + i) : load(source + i));
        if (++x == to.width) x = 0, y++;
        if (y == to.height) y = 0, c++;
      }
}

}  // namespace FS_ISA
}  // namespace fedsparse
