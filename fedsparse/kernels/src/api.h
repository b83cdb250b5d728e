/* The C interface between Python and the kernels: plain structs and one table of functions.
 *
 * A model is a list of operations over tensors that lie in one arena. All its trainable values
 * lie in one array: of a dense layer the whole weight in torch's order, of a sparse layer the
 * kept weights alone, by ascending position. Gradients and optimizer state are arrays of the
 * same length. Every offset is in floats, save where it says otherwise.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FS_ABI = 7, FS_BLOCK = 16384 };

enum FsKind {
  FS_CONV = 0,     /* also linear layers: 1x1 over planes of one pixel */
  FS_NORM = 1,     /* BatchNorm, with the ReLU that follows it */
  FS_RELU = 2,     /* in place where input and output are one tensor */
  FS_MAX_POOL = 3, /* with the ReLU before it */
  FS_AVERAGE_POOL = 4,
  FS_ADD = 5,
  FS_COPY = 6      /* the same values in another shape or with another halo */
};

enum FsOptimizer { FS_SGD = 0, FS_MOMENTUM = 1, FS_ADAM = 2 };

/* What a function that can fail returns. */
enum FsStatus { FS_DONE = 0, FS_NOT_FINITE = 1, FS_ONE_VALUE = 2 };

typedef struct {
  int32_t channels, height, width;
  int32_t halo;          /* around the value's planes */
  int32_t gradient_halo; /* around its gradient's */
  int32_t plane;         /* pixels from a channel of the value to the next */
  int32_t gradient_plane;
  int32_t maker;         /* the FS_NORM that makes it again where it is read; -1: it is kept */
  int64_t value;         /* in the arena, in floats a lane, its halo included */
  int64_t gradient;      /* likewise; -1: none is needed. It may be where the value is. */
} FsTensor;

typedef struct {
  int32_t kind, input, other, output; /* tensors; other: the second summand of FS_ADD */
  int32_t input_first, other_first;   /* 1: nothing has written this gradient before */
  /* FS_CONV; kernel, stride and padding also FS_MAX_POOL */
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int32_t sparse;
  int64_t weight, bias; /* in the parameters; of FS_NORM gamma and beta; -1: none */
  int64_t kept;         /* kept weights: of a sparse layer those that are stored */
  int64_t positions;    /* where theirs begin; -1: nothing is pruned */
  int64_t index;        /* in the index, in 32-bit words: a sparse layer's, or pooling windows */
  /* FS_NORM */
  int64_t mean, variance; /* in the buffers */
  int64_t saved;          /* in the saved statistics: mean and 1/deviation of the batch */
  float epsilon, momentum;
  int32_t relu; /* with a ReLU: after FS_NORM, before FS_MAX_POOL */
  float cap;    /* of ReLU6; infinite if none */
} FsOp;

typedef struct {
  const FsTensor* tensors;
  const FsOp* ops;
  const int32_t* positions; /* flat positions of kept weights, ascending within a layer */
  int32_t* index;
  int32_t tensor_count, op_count, input, output;
  int64_t index_words;
  int64_t pixels;     /* floats a lane of all tensors */
  int64_t saved;      /* floats of saved statistics */
  int64_t parameters; /* trainable floats */
} FsModel;

typedef struct {
  int32_t optimizer;
  float lr, momentum, weight_decay, beta1, beta2, epsilon, proximal, l1;
} FsSettings;

/* What a pass over samples works on. */
typedef struct {
  float* arena;
  float* parameters;
  float* gradients;
  float* buffers;    /* running statistics */
  const float* x;    /* (samples, features) */
  const int64_t* y;  /* labels, or NULL: targets are numbers, the loss is squared error */
  const float* targets;
  int32_t lanes;     /* of the arena: the largest batch, rounded up to 16 */
  int32_t frozen;    /* BatchNorm uses its running statistics, and keeps them */
  int32_t track;     /* running statistics follow the batches */
} FsWork;

/* Sums over the samples of an epoch. */
typedef struct {
  double loss;
  int64_t correct;
} FsSums;

typedef struct {
  int32_t op;        /* a convolution: `wanted` largest gradients of its pruned weights */
  int32_t unused;
  int64_t wanted;
  void* entries;     /* room for `wanted` + FS_BLOCK entries of 8 bytes */
  int32_t* position; /* room for `wanted`; ascending afterwards */
  float* value;
  int64_t found;
} FsGrowth;

typedef struct {
  int32_t width; /* floats of a vector */

  /* Words of the index that a sparse operation needs. */
  int64_t (*index_words)(const FsModel*, int32_t op);
  /* Make the index of every sparse layer. */
  void (*compile)(const FsModel*);
  /* Floats of the arena for so many lanes; it must be all zeros before its first use. */
  int64_t (*arena_floats)(const FsModel*, int32_t lanes, int32_t training);

  /* One pass over the samples whose rows stand in `rows`, or over what lies in the arena
   * already if rows is NULL. */
  void (*forward)(const FsModel*, const FsWork*, const int64_t* rows, int32_t count);
  /* Gradients of all parameters, from the output's gradient in the arena. */
  void (*backward)(const FsModel*, const FsWork*, int32_t count);

  /* Train on batches first .. last - 1 of a round: an epoch has `batches` of them, and batch b
   * of an epoch is rows[epoch][edges[b] .. edges[b + 1]). `slots` holds momentum, or Adam's two
   * averages one after the other; `start` the weights of the proximal term or NULL; `steps`
   * Adam's step counter, advanced. `sums` are those of the epoch, across calls. Stops after the
   * epoch whose loss is not finite. */
  int32_t (*train)(const FsModel*, const FsWork*, const FsSettings*, float* slots,
                   const float* start, int64_t* steps, const int64_t* rows,
                   const int64_t* edges, int32_t batches, int64_t first, int64_t last,
                   FsSums* sums);
  /* Test on rows 0 .. samples - 1; outputs (samples, classes) or NULL. */
  void (*evaluate)(const FsModel*, const FsWork*, int64_t samples, FsSums* sums, float* outputs);
  /* The largest gradients of pruned weights on one batch. */
  int32_t (*grow)(const FsModel*, const FsWork*, const int64_t* rows, int32_t count,
                  FsGrowth* wanted, int32_t wanted_count);

  /* coarse and fine, the digits of an exact sum, += weights[i] * values[i]: `vectors` vectors of
   * `count` floats, each at any address. */
  void (*add_exact)(const void* const* values, const double* weights, int32_t vectors,
                    int64_t count, double* coarse, double* fine);
  /* The CRC-32 of a payload of `length` bytes, and the largest magnitude, as bits, of `count`
   * floats in it from byte `first` on: 0x7f800000 or more where one is not finite. */
  uint32_t (*check)(const void* payload, int64_t length, int64_t first, int64_t count,
                    uint32_t* largest);
} FsApi;

#ifdef __cplusplus
}
#endif
