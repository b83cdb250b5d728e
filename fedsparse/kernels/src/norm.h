// BatchNorm over the batch's samples and pixels, with the ReLU that follows it.
#pragma once

#include "elementwise.h"

namespace fedsparse {
namespace FS_ISA {

struct Norm {
  const float *gamma, *beta;
  float *mean, *variance;  // running
  float *saved_mean, *saved_scale;  // of this batch; scale = 1 / sqrt(variance + epsilon)
  float epsilon, momentum, cap;
  bool relu;
};

// 1 for lanes that hold one of `count` samples, 0 for others, from the lane `whole` on; before
// it every lane holds one.
struct Alive {
  explicit Alive(int32_t count) : whole(count / LANES * LANES) {
    for (int32_t i = 0; i < LANES; i++) of[i] = whole + i < count ? 1.0f : 0.0f;
  }
  FS_INLINE Vec at(int32_t lane) const {
    return lane < whole ? splat(1.0f) : load_loose(of + (lane - whole));
  }
  int32_t whole;
  float of[LANES];
};

// Sums f(row, column, offset of a vector from that pixel) over a channel's samples: a row in
// floats, rows in doubles, as gradients of gamma are small differences of large sums.
template <class F>
FS_INLINE double sum_samples(const View& view, int32_t count, F f) {
  double sum = 0.0;
  if (count == view.active) {
    each_run(view, [&](int32_t y, int32_t x, int64_t floats) {
      Vec part[4] = {};
      int64_t i = 0;
      for (; i + 4 * WIDTH <= floats; i += 4 * WIDTH)
        FS_UNROLL
        for (int k = 0; k < 4; k++) part[k] += f(y, x, i + k * WIDTH);
      for (; i < floats; i += WIDTH) part[0] += f(y, x, i);
      sum += total((part[0] + part[1]) + (part[2] + part[3]));
    });
    return sum;
  }
  const Alive alive(count);
  for (int32_t y = 0; y < view.height; y++) {
    Vec part = {};
    for (int32_t x = 0; x < view.width; x++)
      for (int32_t i = 0; i < view.active; i += WIDTH) part += f(y, x, i) * alive.at(i);
    sum += total(part);
  }
  return sum;
}

// The line that takes a channel's elements to their normal form: x * scale + shift.
struct Line {
  Line(const Norm& norm, int32_t c)
      : scale(splat(norm.gamma[c] * norm.saved_scale[c])),
        shift(splat(float(norm.beta[c] -
                          double(norm.saved_mean[c]) * norm.gamma[c] * norm.saved_scale[c]))) {}
  FS_INLINE Vec at(Vec x) const { return x * scale + shift; }
  Vec scale, shift;
};

// Finds the mean and the deviation of each channel: the batch's, or the running ones if frozen.
inline void norm_statistics(const Norm& norm, const View& x, int32_t count, bool frozen,
                            bool track) {
  const double values = double(int64_t(count) * x.height * x.width);
  for (int32_t c = 0; c < x.channels; c++) {
    double mean = norm.mean[c], variance = norm.variance[c];
    if (!frozen) {
      mean = sum_samples(x, count, [&](int32_t row, int32_t column, int64_t i) {
               return load(x.at(c, row, column) + i);
             }) / values;
      const Vec center = splat(float(mean));
      const double spread = sum_samples(x, count, [&](int32_t row, int32_t column, int64_t i) {
        const Vec apart = load(x.at(c, row, column) + i) - center;
        return apart * apart;
      });
      variance = spread / values;
      if (track) {
        norm.mean[c] += norm.momentum * float(mean - norm.mean[c]);
        norm.variance[c] += norm.momentum * float(spread / (values - 1) - norm.variance[c]);
      }
    }
    norm.saved_mean[c] = float(mean);
    norm.saved_scale[c] = float(1.0 / std::sqrt(variance + norm.epsilon));
  }
}

// y = the normal form of x, by the saved statistics: also to make y anew on the way back.
inline void norm_apply(const Norm& norm, const View& x, const View& y) {
  const Vec cap = splat(norm.cap);
  for (int32_t c = 0; c < x.channels; c++) {
    const Line line(norm, c);
    each_run(x, [&](int32_t row, int32_t column, int64_t floats) {
      const float* from = x.at(c, row, column);
      float* to = y.at(c, row, column);
      if (norm.relu) {
        for (int64_t i = 0; i < floats; i += WIDTH)
          store(to + i, clipped(line.at(load(from + i)), cap));
      } else {
        for (int64_t i = 0; i < floats; i += WIDTH) store(to + i, line.at(load(from + i)));
      }
    });
  }
}

// Needs x alone, not y. dx may lie where x does: each element is read before it is written.
inline void norm_backward(const Norm& norm, const View& x, const View& dy, const View& dx,
                          int32_t count, bool frozen, bool add, float* dgamma, float* dbeta) {
  const Vec cap = splat(norm.cap);
  const double values = double(int64_t(count) * x.height * x.width);
  const Alive alive(count);
  for (int32_t c = 0; c < x.channels; c++) {
    const Line line(norm, c);
    const auto gradient = [&](int32_t row, int32_t column, int64_t i) {
      const Vec given = load(dy.at(c, row, column) + i);
      if (!norm.relu) return given;
      return passed(given, line.at(load(x.at(c, row, column) + i)), cap);
    };
    const Vec mean = splat(norm.saved_mean[c]), deviation = splat(norm.saved_scale[c]);
    const double sum = sum_samples(dy, count, gradient);
    const double product = sum_samples(dy, count, [&](int32_t row, int32_t column, int64_t i) {
      return gradient(row, column, i) * ((load(x.at(c, row, column) + i) - mean) * deviation);
    });
    dbeta[c] = float(sum);
    dgamma[c] = float(product);
    if (dx.data == nullptr) continue;
    const Vec shift = splat(frozen ? 0.0f : float(sum / values));
    const Vec slope = splat(frozen ? 0.0f : float(product / values));
    const auto put = [&](int32_t row, int32_t column, int64_t i, Vec keep) {
      const Vec normal = (load(x.at(c, row, column) + i) - mean) * deviation;
      Vec value = line.scale * (gradient(row, column, i) - shift - normal * slope) * keep;
      float* to = dx.at(c, row, column) + i;
      store(to, add ? load(to) + value : value);
    };
    if (count == x.active) {
      each_run(x, [&](int32_t row, int32_t column, int64_t floats) {
        for (int64_t i = 0; i < floats; i += WIDTH) put(row, column, i, splat(1.0f));
      });
      continue;
    }
    for (int32_t row = 0; row < x.height; row++)
      for (int32_t column = 0; column < x.width; column++)
        for (int32_t i = 0; i < x.active; i += WIDTH) put(row, column, i, alive.at(i));
  }
}

}  // namespace FS_ISA
}  // namespace fedsparse
