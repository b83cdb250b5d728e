// Carries out a model's operations, forward and backward, over its arena.
//
// The arena holds, one after another: tensors (values, then gradients that share room), the
// batch statistics of BatchNorm, and scratch. Nothing is allocated while it runs.
#pragma once

#include "api.h"
#include "dense.h"
#include "elementwise.h"
#include "largest.h"
#include "loss.h"
#include "norm.h"
#include "optimizer.h"
#include "pool.h"
#include "sparse.h"

namespace fedsparse {
namespace FS_ISA {

constexpr int64_t BLOCK = FS_BLOCK;  // weights whose gradient exists at one time while growing

inline int32_t round_up(int32_t count) { return (count + LANES - 1) / LANES * LANES; }

inline View view(const FsTensor& tensor, float* arena, int32_t lanes, int32_t active,
                 bool gradient) {
  const int64_t offset = gradient ? tensor.gradient : tensor.value;
  const int32_t halo = gradient ? tensor.gradient_halo : tensor.halo;
  const int64_t wide = tensor.width + 2 * halo;
  const int64_t plane = gradient ? tensor.gradient_plane : tensor.plane;
  float* data = nullptr;
  if (arena != nullptr && offset >= 0) data = arena + (offset + halo * wide + halo) * lanes;
  return {data,          plane * lanes, wide * lanes, tensor.channels, tensor.height,
          tensor.width, halo,                lanes,        active};
}

inline Conv geometry(const FsModel& model, const FsOp& op) {
  return {model.tensors[op.output].channels, model.tensors[op.input].channels, op.kernel_h,
          op.kernel_w, op.stride_h, op.stride_w, op.pad_h, op.pad_w, op.dilation_h,
          op.dilation_w, op.groups};
}

// The views of a convolution's input and its output's gradient, without memory: for sizes.
struct Shapes {
  Shapes(const FsModel& model, const FsOp& op, int32_t lanes)
      : x(view(model.tensors[op.input], nullptr, lanes, lanes, false)),
        y(view(model.tensors[op.output], nullptr, lanes, lanes, true)) {}
  View x, y;
};

// Rows whose gradient is taken at once: about a block, in the multiples that dense kernels like.
inline int64_t block_rows(const Conv& conv) {
  const int64_t rows = BLOCK / conv.fan_in() / 16 * 16;
  return std::min<int64_t>(std::max<int64_t>(rows, 16), conv.out);
}

// Zeroes the gradients of what is pruned of a layer that is computed as a dense one.
inline void prune(const Conv& conv, const int32_t* kept, int64_t count, float* gradient) {
  int64_t next = 0;
  for (int64_t i = 0; i <= count; i++) {
    const int64_t stop = i < count ? kept[i] : conv.weights();
    for (; next < stop; next++) gradient[next] = 0.0f;
    next = stop + 1;
  }
}

enum Purpose { EVALUATING = 0, TRAINING = 1, GROWING = 2 };

inline int64_t scratch_of(const FsModel& model, const FsOp& op, int32_t lanes, int32_t purpose) {
  const Shapes shapes(model, op, lanes);
  const Conv conv = geometry(model, op);
  int64_t floats = op.sparse ? sparse_scratch(conv, shapes.x, shapes.y, op.kept)
                             : dense_scratch(conv, shapes.x, shapes.y);
  if (purpose == GROWING) {
    const int64_t rows = block_rows(conv), entries = rows * conv.fan_in();
    // A grouped layer's gradient is taken as that of a sparse layer that keeps a whole block.
    const int64_t block = conv.groups == 1
                              ? dense_scratch(conv, shapes.x, shapes.y)
                              : sparse_scratch(conv, shapes.x, shapes.y, entries) +
                                    sparse_index_words(conv, entries) + entries;
    floats = std::max(floats, block + entries + 64);
  }
  return floats;
}

inline int64_t arena_floats(const FsModel* model, int32_t lanes, int32_t purpose) {
  int64_t scratch = 0;
  for (int32_t i = 0; i < model->op_count; i++)
    if (model->ops[i].kind == FS_CONV)
      scratch = std::max(scratch, scratch_of(*model, model->ops[i], lanes, purpose));
  return model->pixels * lanes + (model->saved + 15) / 16 * 16 + scratch;
}

inline int64_t index_words(const FsModel* model, int32_t op) {
  return sparse_index_words(geometry(*model, model->ops[op]), model->ops[op].kept);
}

inline void compile(const FsModel* model) {
  for (int32_t i = 0; i < model->op_count; i++) {
    const FsOp& op = model->ops[i];
    if (op.kind != FS_CONV || !op.sparse) continue;
    const Shapes shapes(*model, op, LANES);
    sparse_index(geometry(*model, op), shapes.x, shapes.y, model->positions + op.positions, op.kept,
                 model->index + op.index);
  }
}

// One batch on its way through the model and back.
class Batch {
 public:
  Batch(const FsModel& model, const FsWork& work, int32_t count)
      : model_(model),
        work_(work),
        count_(count),
        saved_(work.arena + model.pixels * work.lanes),
        scratch_(saved_ + (model.saved + 15) / 16 * 16) {}

  View value(int32_t tensor) const { return of(tensor, false); }
  View gradient(int32_t tensor) const { return of(tensor, true); }

  void forward() const {
    for (int32_t i = 0; i < model_.op_count; i++) forward(model_.ops[i]);
  }

  // Calls see(op) at each convolution once its output's gradient is whole, and its input made
  // again; the gradient of its weights is computed unless see returns true.
  template <class See>
  void backward(See see) const {
    for (int32_t i = model_.op_count - 1; i >= 0; i--) backward(model_.ops[i], see);
  }
  void backward() const {
    backward([](const FsOp&) { return false; });
  }

  float* scratch() const { return scratch_; }

 private:
  View of(int32_t tensor, bool gradient) const {
    return view(model_.tensors[tensor], work_.arena, work_.lanes, round_up(count_), gradient);
  }
  const float* weight(int64_t offset) const {
    return offset < 0 ? nullptr : work_.parameters + offset;
  }

  Norm norm(const FsOp& op) const {
    const int32_t channels = model_.tensors[op.input].channels;
    return {weight(op.weight), weight(op.bias), work_.buffers + op.mean,
            work_.buffers + op.variance, saved_ + op.saved, saved_ + op.saved + channels,
            op.epsilon, op.momentum, op.cap, op.relu != 0};
  }

  static Pool pool(const FsOp& op) {
    return {op.kernel_h, op.kernel_w, op.stride_h, op.stride_w,   op.pad_h,
            op.pad_w,    op.relu != 0, op.cap};
  }

  // Values that BatchNorm makes need not be kept: they share room, and are made again from what
  // they were made of where the way back reads them.
  void refresh(int32_t tensor) const {
    const int32_t maker = model_.tensors[tensor].maker;
    if (maker >= 0) apply(model_.ops[maker]);
  }

  void apply(const FsOp& op) const {
    const View y = value(op.output);
    if (model_.tensors[op.output].maker >= 0) clear_halo(y);
    norm_apply(norm(op), value(op.input), y);
  }

  void forward(const FsOp& op) const {
    const View x = value(op.input), y = value(op.output);
    switch (op.kind) {
      case FS_CONV: {
        const Conv conv = geometry(model_, op);
        if (op.sparse)
          sparse_forward(conv, model_.index + op.index, weight(op.weight), weight(op.bias), x, y);
        else
          dense_forward(conv, weight(op.weight), weight(op.bias), x, y, scratch_);
        break;
      }
      case FS_NORM:
        norm_statistics(norm(op), x, count_, work_.frozen, work_.track);
        apply(op);
        break;
      case FS_RELU:
        if (op.input != op.output) hand_on(x, y, false);
        relu_forward(y, op.cap);
        break;
      case FS_MAX_POOL:
        max_pool_forward(pool(op), x, y);
        break;
      case FS_AVERAGE_POOL:
        average_pool_forward(model_.index + op.index, x, y);
        break;
      case FS_ADD:
        add_forward(x, value(op.other), y);
        break;
      case FS_COPY:
        reshape(x, y, false);
        break;
    }
  }

  template <class See>
  void backward(const FsOp& op, See see) const {
    const View x = value(op.input), dy = gradient(op.output), dx = gradient(op.input);
    const bool add = !op.input_first;
    if (op.input_first && op.input != op.output && dx.data != nullptr) clear_halo(dx);
    switch (op.kind) {
      case FS_CONV:
        refresh(op.input);
        convolution_backward(op, x, dy, dx, add, see(op));
        break;
      case FS_NORM:
        norm_backward(norm(op), x, dy, dx, count_, work_.frozen, add,
                      work_.gradients + op.weight, work_.gradients + op.bias);
        break;
      case FS_RELU:
        relu_backward(value(op.output), dy, op.cap);
        if (op.input != op.output && dx.data != nullptr) hand_on(dy, dx, add);
        break;
      case FS_MAX_POOL:
        if (dx.data == nullptr) break;
        refresh(op.input);
        max_pool_backward(pool(op), x, value(op.output), dy, dx, add);
        break;
      case FS_AVERAGE_POOL:
        if (dx.data == nullptr) break;
        if (!add) clear_interior(dx);
        average_pool_backward(model_.index + op.index, dy, dx);
        break;
      case FS_ADD: {
        const View other = gradient(op.other);
        if (dx.data != nullptr) hand_on(dy, dx, add);
        if (other.data == nullptr) break;
        if (op.other_first) clear_halo(other);
        hand_on(dy, other, !op.other_first);
        break;
      }
      case FS_COPY:
        if (dx.data != nullptr) reshape(dy, dx, add);
        break;
    }
  }

  void convolution_backward(const FsOp& op, const View& x, const View& dy, const View& dx,
                            bool add, bool seen) const {
    const Conv conv = geometry(model_, op);
    const int32_t* index = model_.index + op.index;
    const float* values = weight(op.weight);
    float* gradient = work_.gradients + op.weight;
    if (!seen && op.bias >= 0) bias_gradient(dy, work_.gradients + op.bias);
    if (op.sparse && !seen && dx.data != nullptr) {
      sparse_backward(conv, index, values, x, dy, dx, add, gradient, scratch_);
      return;
    }
    if (!seen) {
      if (op.sparse)
        sparse_weight_gradient(conv, index, x, dy, gradient, scratch_);
      else
        dense_weight_gradient(conv, x, dy, 0, conv.out, gradient, scratch_);
      if (!op.sparse && op.positions >= 0)
        prune(conv, model_.positions + op.positions, op.kept, gradient);
    }
    if (dx.data == nullptr) return;
    if (op.sparse)
      sparse_input_gradient(conv, index, values, dy, dx, add);
    else
      dense_input_gradient(conv, values, dy, dx, add, scratch_);
  }

  const FsModel& model_;
  const FsWork& work_;
  int32_t count_;
  float* saved_;
  float* scratch_;
};

inline void forward(const FsModel* model, const FsWork* work, const int64_t* rows,
                    int32_t count) {
  const Batch batch(*model, *work, count);
  if (rows != nullptr) gather(work->x, rows, count, batch.value(model->input));
  batch.forward();
}

inline void backward(const FsModel* model, const FsWork* work, int32_t count) {
  Batch(*model, *work, count).backward();
}

}  // namespace FS_ISA
}  // namespace fedsparse
