// The loss of a batch, its gradient, and samples brought into the layout of the kernels.
#pragma once

#include "api.h"
#include "layers.h"

namespace fedsparse {
namespace FS_ISA {

// Lay samples out with the batch innermost, LANES of them at a time; lanes without a sample are
// zero.
inline void gather(const float* x, const int64_t* rows, int32_t count, const View& to) {
  const int64_t features = int64_t(to.channels) * to.height * to.width;
  for (int32_t first = 0; first < to.active; first += LANES) {
    const float* from[LANES];
    const int32_t here = count - first < LANES ? count - first : LANES;
    for (int32_t k = 0; k < here; k++) from[k] = x + rows[first + k] * features;
    int64_t feature = 0;
    for (int32_t c = 0; c < to.channels; c++)
      for (int32_t y = 0; y < to.height; y++)
        for (int32_t i = 0; i < to.width; i++, feature++) {
          float* pixel = to.at(c, y, i) + first;
          if (here == LANES) {
            for (int32_t k = 0; k < LANES; k++) pixel[k] = from[k][feature];
          } else {
            for (int32_t k = 0; k < LANES; k++) pixel[k] = k < here ? from[k][feature] : 0.0f;
          }
        }
  }
}

inline void scatter(const View& from, int32_t count, float* outputs) {
  for (int32_t lane = 0; lane < count; lane++)
    for (int32_t c = 0; c < from.channels; c++)
      outputs[int64_t(lane) * from.channels + c] = from.at(c, 0, 0)[lane];
}

// Softmax cross-entropy, summed; `gradient`, if any, is that of the mean.
inline FsSums cross_entropy(const View& logits, const int64_t* labels, const int64_t* rows,
                            int32_t count, const View& gradient) {
  FsSums sums = {0.0, 0};
  for (int32_t lane = 0; lane < count; lane++) {
    const auto logit = [&](int64_t c) { return logits.data[c * logits.channel + lane]; };
    const int64_t label = labels[rows[lane]];
    int32_t best = 0;
    for (int32_t c = 1; c < logits.channels; c++)
      if (logit(c) > logit(best)) best = c;
    double partition = 0.0;
    for (int32_t c = 0; c < logits.channels; c++) partition += std::exp(logit(c) - logit(best));
    sums.loss += std::log(partition) - (double(logit(label)) - logit(best));
    sums.correct += best == label;
    if (gradient.data == nullptr) continue;
    const float scale = float(1.0 / partition), share = 1.0f / float(count);
    for (int32_t c = 0; c < logits.channels; c++) {
      const float chance = std::exp(logit(c) - logit(best)) * scale;
      gradient.data[c * gradient.channel + lane] = (chance - float(c == label)) * share;
    }
  }
  return sums;
}

// Squared error of one output, summed.
inline FsSums squared_error(const View& output, const float* targets, const int64_t* rows,
                            int32_t count, const View& gradient) {
  FsSums sums = {0.0, 0};
  for (int32_t lane = 0; lane < count; lane++) {
    const float apart = output.data[lane] - targets[rows[lane]];
    sums.loss += double(apart) * apart;
    if (gradient.data != nullptr) gradient.data[lane] = 2.0f * apart / float(count);
  }
  return sums;
}

inline FsSums loss(const FsWork& work, const View& output, const int64_t* rows, int32_t count,
                   const View& gradient) {
  if (gradient.data != nullptr)
    for (int32_t c = 0; c < gradient.channels; c++)
      for (int32_t lane = count; lane < gradient.active; lane++)
        gradient.data[c * gradient.channel + lane] = 0.0f;
  return work.y != nullptr ? cross_entropy(output, work.y, rows, count, gradient)
                           : squared_error(output, work.targets, rows, count, gradient);
}

}  // namespace FS_ISA
}  // namespace fedsparse
