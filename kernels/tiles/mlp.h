// Dense layers with PReLU, dropout after the last, one logit (models/blocks/mlp.py, logit_head.py),
// and the cross entropy of clicks.

#ifndef LOOKBACK_KERNELS_TILES_MLP_H_
#define LOOKBACK_KERNELS_TILES_MLP_H_

#include <math.h>

#include "lookup.h"

namespace lookback {
namespace {

INLINE Vec Prelu(Vec x, Vec slope) { return WhereNegative(x, x * slope, x); }
INLINE void Prelu(int rows, int columns, const float* x, const float* slopes, float* y) {
  for (int64_t at = 0; at < int64_t{rows} * columns; at += columns) {
    for (int j = 0; j < columns; j += kLanes) {
      Store(y + at + j, Prelu(Load(x + at + j), Load(slopes + j)));
    }
  }
}
// In place: gradients of the output become those of x. Adds those of the slopes.
INLINE void PreluBack(int rows, int columns, const float* x, const float* slopes, float* gradients,
                      float* of_slopes) {
  for (int j = 0; j < columns; j += kLanes) {
    const Vec slope = Load(slopes + j);
    Vec sum = All(0.0f);
    for (int r = 0; r < rows; ++r) {
      const Vec at = Load(x + int64_t{r} * columns + j);
      float* to = gradients + int64_t{r} * columns + j;
      const Vec d = Load(to);
      sum += WhereNegative(at, d * at, All(0.0f));
      Store(to, WhereNegative(at, d * slope, d));
    }
    Store(of_slopes + j, Load(of_slopes + j) + sum);
  }
}

// log(1 + exp(x)), and the logistic function, of single numbers: in float64 nothing overflows.
INLINE double Softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
INLINE float Logistic(float x) { return static_cast<float>(1.0 / (1.0 + exp(-double{x}))); }

struct Mlp {
  Mlp() = default;
  Mlp(Packer* packer, int inputs, int layers, const LookbackFactors& dropout)
      : inputs(inputs), layers(layers) {
    for (int k = 0; k < layers; ++k) {
      kernels[k] = packer->NextKernel(inputs);
      inputs = packer->last_columns();
      biases[k] = packer->NextVector(inputs);
      slopes[k] = packer->NextVector(inputs);
    }
    outputs = inputs;
    packer->CheckDropout(dropout, outputs);
    head = packer->NextColumn(outputs);
    head_bias = packer->NextVector(1);
  }

  int inputs = 0, layers = 0, outputs = 0;
  Kernel kernels[kMostLayers];
  Vector biases[kMostLayers], slopes[kMostLayers], head, head_bias;
};

struct MlpRun {
  float* input;               // [R, inputs], which its owner fills
  float* before[kMostLayers];  // [R, columns]: what PReLU is taken of
  float* dropout;             // [R, columns of the last]; null: none
  float* logits;              // [R]; after the loss, their gradients
};

// A row for each of the tile's; its owner fills them.
INLINE float* MlpInput(const Tile& tile, const Mlp& net) {
  return tile.arena->Floats(int64_t{tile.rows()} * net.inputs);
}

// Columns [at, at + count) of one of its rows.
INLINE void Put(float* to, int row, int64_t columns, int at, const float* from, int count) {
  memcpy(to + row * columns + at, from, sizeof(float) * count);
}

// The last layer's output [R, columns].
INLINE void MlpLast(const Tile& tile, const Mlp& net, const MlpRun& run, float* output) {
  const int rows = tile.rows(), last = net.layers - 1, columns = net.head.columns;
  Prelu(rows, columns, run.before[last], net.slopes[last].values, output);
  if (run.dropout == nullptr) return;
  for (int64_t i = 0; i < int64_t{rows} * columns; i += kLanes) {
    Store(output + i, Load(output + i) * Load(run.dropout + i));
  }
}

// Logits.
MlpRun MlpForward(const Tile& tile, const Mlp& net, float* input, const LookbackFactors& dropout) {
  const int rows = tile.rows();
  Arena* arena = tile.arena;
  MlpRun run = {input, {}, nullptr, arena->Floats(rows)};
  for (int k = 0; k < net.layers; ++k) {
    run.before[k] = arena->Floats(int64_t{rows} * net.kernels[k].forward.columns);
  }
  if (dropout.values != nullptr) {
    run.dropout = arena->Zeros(int64_t{rows} * net.head.columns);
    for (int r = 0; r < rows; ++r) {
      memcpy(run.dropout + int64_t{r} * net.head.columns,
             dropout.values + tile.pair(r) * net.outputs, sizeof(float) * net.outputs);
    }
  }
  for (int k = 0; k < net.layers; ++k) {
    Scope scope(arena);
    const Matrix& kernel = net.kernels[k].forward;
    const float* from = input;
    if (k > 0) {
      float* after = arena->Floats(int64_t{rows} * kernel.rows);
      Prelu(rows, kernel.rows, run.before[k - 1], net.slopes[k - 1].values, after);
      from = after;
    }
    Multiply(arena, rows, from, kernel.rows, kernel, run.before[k], kernel.columns, kBias,
             net.biases[k].values);
  }
  Scope scope(arena);
  const int columns = net.head.columns;
  float* last = arena->Floats(int64_t{rows} * columns);
  MlpLast(tile, net, run, last);
  for (int r = 0; r < rows; ++r) {
    run.logits[r] = Dot(columns, last + int64_t{r} * columns, net.head.values) +
                    net.head_bias.values[0];
  }
  return run;
}

// Adds the cross entropy of the labels to `sum`; the logits become the gradients of scale * sum.
INLINE void CrossEntropy(const Tile& tile, float scale, float* logits, double* sum) {
  for (int r = 0; r < tile.rows(); ++r) {
    const float logit = logits[r], label = tile.step->labels[tile.pair(r)];
    *sum += Softplus(logit) - static_cast<double>(logit) * label;
    logits[r] = scale * (Logistic(logit) - label);
  }
}

// The backward pass, from the gradients in run.logits: gradients of the input [R, inputs].
float* MlpBackward(const Tile& tile, const Mlp& net, const MlpRun& run) {
  const int rows = tile.rows();
  Arena* arena = tile.arena;
  float* of_input = arena->Floats(int64_t{rows} * net.inputs);
  Scope scope(arena);
  int columns = net.head.columns;
  float* gradients = arena->Floats(int64_t{rows} * columns);
  MlpLast(tile, net, run, gradients);
  float *of_head = tile.of(net.head), *of_bias = tile.of(net.head_bias);
  for (int j = 0; j < columns; j += kLanes) {
    const Vec weight = Load(net.head.values + j);
    Vec sum = All(0.0f);
    for (int r = 0; r < rows; ++r) {
      float* at = gradients + int64_t{r} * columns + j;
      const Vec d = All(run.logits[r]);
      sum = Fma(d, Load(at), sum);
      Vec to = d * weight;
      if (run.dropout != nullptr) to *= Load(run.dropout + int64_t{r} * columns + j);
      Store(at, to);
    }
    Store(of_head + j, Load(of_head + j) + sum);
  }
  for (int r = 0; r < rows; ++r) of_bias[0] += run.logits[r];
  for (int k = net.layers - 1; k >= 0; --k) {
    const Kernel& kernel = net.kernels[k];
    const int inputs = kernel.forward.rows;
    PreluBack(rows, columns, run.before[k], net.slopes[k].values, gradients,
              tile.of(net.slopes[k]));
    AddColumnSums(rows, columns, gradients, columns, tile.of(net.biases[k]));
    float* from = run.input;
    if (k > 0) {
      from = arena->Floats(int64_t{rows} * inputs);
      Prelu(rows, inputs, run.before[k - 1], net.slopes[k - 1].values, from);
    }
    AddOuter(arena, rows, inputs, from, inputs, columns, gradients, columns, tile.of(kernel));
    float* before = k > 0 ? arena->Floats(int64_t{rows} * inputs) : of_input;
    Multiply(arena, rows, gradients, columns, kernel.backward, before, inputs);
    gradients = before;
    columns = inputs;
  }
  return of_input;
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_MLP_H_
