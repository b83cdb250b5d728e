// The largest gradients of pruned weights, without a dense gradient (FedTiny, section
// "progressive pruning"): blocks of rows are offered one after another to a bounded buffer.
#pragma once

#include <algorithm>

#include "api.h"
#include "lanes.h"

namespace fedsparse {
namespace FS_ISA {

struct Entry {
  float value;
  int32_t position;
};

// Larger magnitude first; of equal ones the lower position.
inline bool before(const Entry& a, const Entry& b) {
  const float left = std::fabs(a.value), right = std::fabs(b.value);
  return left != right ? left > right : a.position < b.position;
}

// The buffer: room for `room` entries, more than `wanted`; cut back to `wanted` when it is full.
class Largest {
 public:
  Largest(Entry* entries, int64_t room, int64_t wanted)
      : entries_(entries), room_(room), wanted_(wanted) {}

  // Entries come by ascending position, so an equal one that comes later loses.
  FS_INLINE void offer(float value, int32_t position) {
    if (!(std::fabs(value) > least_)) return;
    entries_[count_++] = {value, position};
    if (count_ == room_) cut();
  }

  // Writes the largest by ascending position and returns how many there are.
  int64_t take(int32_t* position, float* value) {
    cut();
    std::sort(entries_, entries_ + count_,
              [](const Entry& a, const Entry& b) { return a.position < b.position; });
    for (int64_t i = 0; i < count_; i++) {
      position[i] = entries_[i].position;
      value[i] = entries_[i].value;
    }
    return count_;
  }

 private:
  void cut() {
    if (count_ <= wanted_) return;
    std::nth_element(entries_, entries_ + wanted_ - 1, entries_ + count_, before);
    count_ = wanted_;
    least_ = std::fabs(entries_[wanted_ - 1].value);
  }

  Entry* entries_;
  int64_t room_, wanted_, count_ = 0;
  float least_ = -1.0f;
};

}  // namespace FS_ISA
}  // namespace fedsparse
