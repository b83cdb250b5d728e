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

// Two sums over a channel's samples.
struct Sums {
  double first = 0.0, second = 0.0;
};

// Sums what f(row, column, offset of a vector from that pixel, first, second) adds to the two:
// within a row in floats, rows in doubles, as gradients of gamma are small differences of large
// sums. `f` gets a factor, too: 0 for lanes without a sample.
template <class F>
FS_INLINE Sums sum_samples(const View& view, int32_t count, F f) {
  Sums sums;
  if (count == view.active) {
    each_run(view, [&](int32_t y, int32_t x, int64_t floats) {
      Vec first[2] = {}, second[2] = {};
      int64_t i = 0;
      for (; i + 2 * WIDTH <= floats; i += 2 * WIDTH)
        FS_UNROLL
        for (int k = 0; k < 2; k++) f(y, x, i + k * WIDTH, splat(1.0f), first[k], second[k]);
      for (; i < floats; i += WIDTH) f(y, x, i, splat(1.0f), first[0], second[0]);
      sums.first += total(first[0] + first[1]);
      sums.second += total(second[0] + second[1]);
    });
    return sums;
  }
  const Alive alive(count);
  for (int32_t y = 0; y < view.height; y++) {
    Vec first = {}, second = {};
    for (int32_t x = 0; x < view.width; x++)
      for (int32_t i = 0; i < view.active; i += WIDTH) f(y, x, i, alive.at(i), first, second);
    sums.first += total(first);
    sums.second += total(second);
  }
  return sums;
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
      const auto add = [&](int32_t row, int32_t column, int64_t i, Vec keep, Vec& sum, Vec&) {
        sum += load(x.at(c, row, column) + i) * keep;
      };
      mean = sum_samples(x, count, add).first / values;
      const Vec center = splat(float(mean));
      const auto part = [&](int32_t row, int32_t column, int64_t i, Vec keep, Vec& sum, Vec&) {
        const Vec apart = (load(x.at(c, row, column) + i) - center) * keep;
        sum += apart * apart;
      };
      const double spread = sum_samples(x, count, part).first;
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
    const auto both = [&](int32_t row, int32_t column, int64_t i, Vec keep, Vec& first,
                          Vec& second) {
      const Vec given = gradient(row, column, i) * keep;
      first += given;
      second += given * ((load(x.at(c, row, column) + i) - mean) * deviation);
    };
    const Sums sums = sum_samples(dy, count, both);
    dbeta[c] = float(sums.first);
    dgamma[c] = float(sums.second);
    if (dx.data == nullptr) continue;
    const Vec shift = splat(frozen ? 0.0f : float(sums.first / values));
    const Vec slope = splat(frozen ? 0.0f : float(sums.second / values));
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
