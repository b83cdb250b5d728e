// Optimizer steps over the stored weights: what is pruned is not there, and costs nothing.
#pragma once

#include "api.h"
#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

// Adds the proximal term mu (w - w_0) (FedProx, eq. 2), weight decay, as torch's optimizers do, and
// l1 sign(w) to the gradient. `slots`: momentum, or Adam's averages of gradients and their squares.
// The loops are plain: compilers make vectors of them.
inline void step(const FsSettings& settings, int64_t count, float* weights,
                 const float* gradients, float* slots, const float* start, int64_t steps) {
  const float mu = settings.proximal, decay = settings.weight_decay, lr = settings.lr;
  const float l1 = settings.l1;
  const auto gradient = [&](int64_t i) {
    const float pulled = start == nullptr ? gradients[i] : gradients[i] + mu * (weights[i] - start[i]);
    const float shrunk = pulled + decay * weights[i];
    if (l1 == 0.0f) return shrunk;  // the same for all weights: taken out of the loop
    return shrunk + (weights[i] > 0.0f ? l1 : weights[i] < 0.0f ? -l1 : 0.0f);
  };
  if (settings.optimizer == FS_SGD) {
    for (int64_t i = 0; i < count; i++) weights[i] -= lr * gradient(i);
  } else if (settings.optimizer == FS_MOMENTUM) {
    const float keep = settings.momentum;
    for (int64_t i = 0; i < count; i++) {
      slots[i] = keep * slots[i] + gradient(i);
      weights[i] -= lr * slots[i];
    }
  } else {
    float *first = slots, *second = slots + count;
    const double one = 1.0 - std::pow(double(settings.beta1), double(steps));
    const double two = 1.0 - std::pow(double(settings.beta2), double(steps));
    const float rate = float(lr / one), scale = float(1.0 / std::sqrt(two));
    const float keep = settings.beta1, held = settings.beta2;
    for (int64_t i = 0; i < count; i++) {
      const float g = gradient(i);
      first[i] += (1.0f - keep) * (g - first[i]);
      second[i] = held * second[i] + (1.0f - held) * g * g;
      weights[i] -= rate * first[i] / (std::sqrt(second[i]) * scale + settings.epsilon);
    }
  }
}

}  // namespace FS_ISA
}  // namespace fedsparse
