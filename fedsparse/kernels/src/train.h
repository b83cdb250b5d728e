// Whole jobs in one call: local training, a test, the search for gradients of pruned weights.
#pragma once

#include "exact.h"
#include "run.h"

namespace fedsparse {
namespace FS_ISA {

inline bool lacks_values(const FsModel& model, int64_t count) {
  for (int32_t i = 0; i < model.op_count; i++) {
    const FsTensor& tensor = model.tensors[model.ops[i].input];
    if (model.ops[i].kind == FS_NORM && count * tensor.height * tensor.width < 2) return true;
  }
  return false;
}

inline int32_t train(const FsModel* model, const FsWork* work, const FsSettings* settings,
                     float* slots, const float* start, int64_t* steps, const int64_t* rows,
                     const int64_t* edges, int32_t batches, int64_t first, int64_t last,
                     FsSums* sums) {
  for (int64_t b = first; b < last; b++) {
    const int64_t epoch = b / batches, place = b % batches;
    const int64_t* here = rows + epoch * edges[batches] + edges[place];
    const int32_t count = int32_t(edges[place + 1] - edges[place]);
    if (place == 0) *sums = {0.0, 0};
    if (!work->frozen && lacks_values(*model, count)) return FS_ONE_VALUE;
    const Batch batch(*model, *work, count);
    gather(work->x, here, count, batch.value(model->input));
    batch.forward();
    const FsSums part = loss(*work, batch.value(model->output), here, count,
                             batch.gradient(model->output));
    batch.backward();
    step(*settings, model->parameters, work->parameters, work->gradients, slots, start, ++*steps);
    sums->loss += part.loss;
    sums->correct += part.correct;
    if (place + 1 == batches && !std::isfinite(sums->loss)) return FS_NOT_FINITE;
  }
  return FS_DONE;
}

inline void evaluate(const FsModel* model, const FsWork* work, int64_t samples, FsSums* sums,
                     float* outputs) {
  *sums = {0.0, 0};
  int64_t rows[512];
  const int32_t most = work->lanes < 512 ? work->lanes : 512;
  const View none = {};
  for (int64_t first = 0; first < samples; first += most) {
    const int32_t count = int32_t(samples - first < most ? samples - first : most);
    for (int32_t i = 0; i < count; i++) rows[i] = first + i;
    const Batch batch(*model, *work, count);
    gather(work->x, rows, count, batch.value(model->input));
    batch.forward();
    const View output = batch.value(model->output);
    if (outputs != nullptr) scatter(output, count, outputs + first * output.channels);
    if (work->y == nullptr && work->targets == nullptr) continue;
    const FsSums part = loss(*work, output, rows, count, none);
    sums->loss += part.loss;
    sums->correct += part.correct;
  }
}

// Offer the gradients of a block of rows, save those that `kept` names; returns how many of
// the kept positions stand before the end of the block.
inline int64_t offer_block(Largest& largest, const float* gradient, int64_t first, int64_t count,
                           const int32_t* kept, int64_t stored, int64_t next) {
  for (int64_t i = 0; i < count; i++) {
    if (next < stored && kept[next] == first + i)
      next++;
    else
      largest.offer(gradient[i], int32_t(first + i));
  }
  return next;
}

// The weight gradient of rows first .. last - 1, whole, of any convolution.
inline void block_gradient(const Conv& conv, const View& x, const View& dy, int32_t first,
                           int32_t last, float* gradient, float* scratch) {
  if (conv.groups == 1) {
    dense_weight_gradient(conv, x, dy, first, last, gradient, scratch);
    return;
  }
  // A layer with groups is a sparse one that keeps these rows.
  const int64_t entries = (last - first) * conv.fan_in();
  int32_t* positions = reinterpret_cast<int32_t*>(scratch);
  int32_t* index = positions + entries;
  for (int64_t i = 0; i < entries; i++) positions[i] = int32_t(first * conv.fan_in() + i);
  sparse_index(conv, x, dy, positions, entries, index);
  const int64_t words = (entries + sparse_index_words(conv, entries) + 15) / 16 * 16;
  sparse_weight_gradient(conv, index, x, dy, gradient, scratch + words);
}

inline void grow_layer(const FsModel& model, const FsWork& work, const FsOp& op, int32_t count,
                       FsGrowth& growth) {
  const Batch batch(model, work, count);
  const Conv conv = geometry(model, op);
  const int64_t rows = block_rows(conv), entries = (rows * conv.fan_in() + 15) / 16 * 16;
  float *gradient = batch.scratch(), *scratch = gradient + entries;
  const int64_t stored = op.positions < 0 ? 0 : op.kept;
  const int32_t* kept = model.positions + (stored ? op.positions : 0);
  Largest largest(reinterpret_cast<Entry*>(growth.entries), growth.wanted + BLOCK, growth.wanted);
  int64_t next = 0;
  for (int64_t first = 0; first < conv.out; first += rows) {
    const int64_t last = std::min<int64_t>(first + rows, conv.out);
    block_gradient(conv, batch.value(op.input), batch.gradient(op.output), int32_t(first),
                   int32_t(last), gradient, scratch);
    next = offer_block(largest, gradient, first * conv.fan_in(), (last - first) * conv.fan_in(),
                       kept, stored, next);
  }
  growth.found = largest.take(growth.position, growth.value);
}

inline int32_t grow(const FsModel* model, const FsWork* work, const int64_t* rows,
                    int32_t count, FsGrowth* wanted, int32_t wanted_count) {
  if (!work->frozen && lacks_values(*model, count)) return FS_ONE_VALUE;
  const Batch batch(*model, *work, count);
  gather(work->x, rows, count, batch.value(model->input));
  batch.forward();
  loss(*work, batch.value(model->output), rows, count, batch.gradient(model->output));
  batch.backward([&](const FsOp& op) {
    for (int32_t i = 0; i < wanted_count; i++)
      if (model->ops + wanted[i].op == &op)
        grow_layer(*model, *work, op, count, wanted[i]);
    return true;
  });
  return FS_DONE;
}

}  // namespace FS_ISA
}  // namespace fedsparse
