// Adding a client's weights to an exact sum; `fedsparse/sparsity/exact_sum.py` says why it is
// exact, and does the same in numpy where there are no kernels.
#pragma once

#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

// coarse and fine are the two digits of the sum. A product of a float and a whole number below
// 2^29 is exact in double, so fused multiply-adds give the same bits.
inline void add_exact(const float* __restrict values, int64_t count, double weight,
                      double* __restrict coarse, double* __restrict fine) {
  for (int64_t i = 0; i < count; i++) {
    const double addend = values[i] * weight;
    const double sum = coarse[i] + addend;
    double rest = addend - (sum - coarse[i]);
    int64_t bits;
    std::memcpy(&bits, &rest, sizeof bits);
    bits |= 1;  // no rest lies half-way between two units
    std::memcpy(&rest, &bits, sizeof rest);
    coarse[i] = sum;
    fine[i] += rest;
  }
}

}  // namespace FS_ISA
}  // namespace fedsparse
