// DIN's activation unit and the softmax of its scores (models/blocks/attention.py).
//
//   score = w . f(W2 f(i (W_i + W_d) + s (W_s - W_d) + (i * s) W_p + b1) + b2) + b3, f the sigmoid
//
// for each candidate i and each step s of its history. The product's part is the one that takes a
// row for each pair; pairs go through it a few steps at a time.

#ifndef LOOKBACK_KERNELS_TILES_ACTIVATION_UNIT_H_
#define LOOKBACK_KERNELS_TILES_ACTIVATION_UNIT_H_

#include "lookup.h"

namespace lookback {
namespace {

struct ActivationUnit {
  ActivationUnit() = default;
  ActivationUnit(Packer* packer, int width) : width(width) {
    const Variable kernel = packer->Next(4 * width, 0);
    packer->Quarters(kernel, width, &by_item, &by_step, &by_product);
    bias = packer->NextVector(kernel.columns);
    second = packer->NextKernel(kernel.columns);
    second_bias = packer->NextVector(second_columns = packer->last_columns());
    score = packer->NextColumn(second_columns);
    score_bias = packer->NextVector(1);
  }

  int width = 0, second_columns = 0;
  Kernel by_item, by_step, by_product, second;
  Vector bias, second_bias, score, score_bias;
};

// Items [R, width]; steps [S T, step_row], of which the first `width` columns count; R = N T.
struct Activation {
  int steps, histories, rows;
  const float *items, *of_steps;
  int64_t step_row, stride;
  float *first, *hidden;  // [S R, columns] of both layers: values, then their gradients
  float* weights;         // [S, stride]: attention
};

// How many steps' pairs are multiplied together.
INLINE int StepsTogether(int rows) { return Max(1, 96 / Max(1, rows)); }

// Items times steps, of steps [from, to): [(to - from) R, width].
INLINE void Pairs(const Activation& run, int width, int from, int to, float* pairs) {
  for (int s = from; s < to; ++s) {
    for (int r = 0; r < run.rows; ++r, pairs += width) {
      const int64_t own = int64_t{s} * run.histories + r % run.histories;
      const float* step = run.of_steps + own * run.step_row;
      const float* item = run.items + int64_t{r} * width;
      for (int j = 0; j < width; j += kLanes) Store(pairs + j, Load(item + j) * Load(step + j));
    }
  }
}

// In place, over the steps that `valid` [S, stride] allows: softmax of scores [S, stride].
INLINE void SoftmaxOverSteps(int steps, int64_t stride, const float* valid, float* scores) {
  const Vec lowest = All(-3e38f);
  for (int64_t r = 0; r < stride; r += kLanes) {
    Vec peak = lowest, sum = All(0.0f);
    for (int s = 0; s < steps; ++s) {
      const int64_t at = s * stride + r;
      peak = Larger(peak, WhereZero(Load(valid + at), lowest, Load(scores + at)));
    }
    for (int s = 0; s < steps; ++s) {
      const int64_t at = s * stride + r;
      const Vec e = WhereZero(Load(valid + at), All(0.0f), Exp(Load(scores + at) - peak));
      Store(scores + at, e);
      sum += e;
    }
    const Vec factor = WhereZero(sum, All(0.0f), All(1.0f) / sum);
    for (int s = 0; s < steps; ++s) {
      const int64_t at = s * stride + r;
      Store(scores + at, Load(scores + at) * factor);
    }
  }
}
// In place: gradients of the weights become those of the scores.
INLINE void SoftmaxOverStepsBack(int steps, int64_t stride, const float* weights,
                                 float* gradients) {
  for (int64_t r = 0; r < stride; r += kLanes) {
    Vec sum = All(0.0f);
    for (int s = 0; s < steps; ++s) {
      const int64_t at = s * stride + r;
      sum = Fma(Load(weights + at), Load(gradients + at), sum);
    }
    for (int s = 0; s < steps; ++s) {
      const int64_t at = s * stride + r;
      Store(gradients + at, Load(weights + at) * (Load(gradients + at) - sum));
    }
  }
}

// Attention of each item over its history's steps; `valid` as SoftmaxOverSteps takes it.
Activation ActivationForward(const Tile& tile, const ActivationUnit& net, int steps,
                             const float* items, const float* of_steps, int64_t step_row,
                             const float* valid) {
  const int rows = tile.rows(), histories = tile.histories, width = net.width;
  const int columns = net.by_item.forward.columns, second = net.second.forward.columns;
  Arena* arena = tile.arena;
  Activation run = {steps, histories, rows, items, of_steps, step_row, Up(rows, 16),
                    nullptr, nullptr, nullptr};
  run.first = arena->Floats(int64_t{steps} * rows * columns);
  run.hidden = arena->Floats(int64_t{steps} * rows * second);
  run.weights = arena->Zeros(steps * run.stride);
  Scope scope(arena);
  const int together = StepsTogether(rows);
  float* by_item = arena->Floats(int64_t{rows} * columns);
  float* by_step = arena->Floats(int64_t{steps} * histories * columns);
  float* pairs = arena->Floats(int64_t{together} * rows * width);
  Multiply(arena, rows, items, width, net.by_item.forward, by_item, columns, kBias,
           net.bias.values);
  Multiply(arena, steps * histories, of_steps, step_row, net.by_step.forward, by_step, columns);
  for (int s = 0; s < steps; s += together) {
    const int to = Min(steps, s + together), count = (to - s) * rows;
    float* first = run.first + int64_t{s} * rows * columns;
    float* hidden = run.hidden + int64_t{s} * rows * second;
    Pairs(run, width, s, to, pairs);
    Multiply(arena, count, pairs, width, net.by_product.forward, first, columns);
    for (int q = 0; q < count; ++q) {
      const int r = q % rows, step = (s + q / rows) * histories + r % histories;
      for (int j = 0; j < columns; j += kLanes) {
        float* at = first + q * columns + j;
        Store(at, Sigmoid(Load(at) + Load(by_step + int64_t{step} * columns + j) +
                          Load(by_item + r * columns + j)));
      }
    }
    Multiply(arena, count, first, columns, net.second.forward, hidden, second, kBias,
             net.second_bias.values);
    for (int q = 0; q < count; ++q) {
      Vec sum = All(0.0f);
      for (int j = 0; j < second; j += kLanes) {
        const Vec value = Sigmoid(Load(hidden + q * second + j));
        Store(hidden + q * second + j, value);
        sum = Fma(value, Load(net.score.values + j), sum);
      }
      run.weights[(s + q / rows) * run.stride + q % rows] = Sum(sum) + net.score_bias.values[0];
    }
  }
  SoftmaxOverSteps(steps, run.stride, valid, run.weights);
  return run;
}

// The second layer and the scores: `hidden` becomes the gradient of what its sigmoid is taken of.
INLINE void ActivationScoresBack(const Tile& tile, const ActivationUnit& net,
                                 const Activation& run, const float* of_scores) {
  const int columns = net.second.forward.columns;
  const int64_t pairs = int64_t{run.steps} * run.rows;
  float *of_score = tile.of(net.score), *of_bias = tile.of(net.second_bias);
  for (int j = 0; j < columns; j += kLanes) {
    const Vec score = Load(net.score.values + j);
    Vec sum = All(0.0f), bias = All(0.0f);
    for (int64_t q = 0; q < pairs; ++q) {
      float* at = run.hidden + q * columns + j;
      const Vec value = Load(at);
      const Vec d = All(of_scores[q / run.rows * run.stride + q % run.rows]);
      const Vec before = d * score * SigmoidSlope(value);
      sum = Fma(d, value, sum);
      bias += before;
      Store(at, before);
    }
    Store(of_score + j, Load(of_score + j) + sum);
    Store(of_bias + j, Load(of_bias + j) + bias);
  }
  float total = 0.0f;
  for (int64_t q = 0; q < pairs; ++q) total += of_scores[q / run.rows * run.stride + q % run.rows];
  tile.of(net.score_bias)[0] += total;
}

// The backward pass.
//   of_weights  [S, stride], gradients of the attention; destroyed
//   of_items    [R, width], set
//   of_steps    [S T, of_row], added to
void ActivationBackward(const Tile& tile, const ActivationUnit& net, const Activation& run,
                        float* of_weights, float* of_items, float* of_steps, int64_t of_row) {
  const int steps = run.steps, rows = run.rows, histories = run.histories, width = net.width;
  const int columns = net.by_item.forward.columns, second = net.second.forward.columns;
  Arena* arena = tile.arena;
  SoftmaxOverStepsBack(steps, run.stride, run.weights, of_weights);
  ActivationScoresBack(tile, net, run, of_weights);
  AddOuter(arena, steps * rows, columns, run.first, columns, second, run.hidden, second,
           tile.of(net.second));
  Scope scope(arena);
  const int together = StepsTogether(rows);
  float* pairs = arena->Floats(int64_t{together} * rows * Max(width, columns));
  float* by_item = arena->Zeros(int64_t{rows} * columns);
  float* by_step = arena->Zeros(int64_t{steps} * histories * columns);
  memset(of_items, 0, sizeof(float) * rows * width);
  for (int s = 0; s < steps; s += together) {
    const int to = Min(steps, s + together), count = (to - s) * rows;
    float* first = run.first + int64_t{s} * rows * columns;
    Multiply(arena, count, run.hidden + int64_t{s} * rows * second, second, net.second.backward,
             pairs, columns);
    for (int q = 0; q < count; ++q) {
      const int r = q % rows, step = (s + q / rows) * histories + r % histories;
      for (int j = 0; j < columns; j += kLanes) {
        float* at = first + q * columns + j;
        const Vec d = Load(pairs + q * columns + j) * SigmoidSlope(Load(at));
        float *item = by_item + r * columns + j, *own = by_step + int64_t{step} * columns + j;
        Store(at, d);
        Store(item, Load(item) + d);
        Store(own, Load(own) + d);
      }
    }
    Pairs(run, width, s, to, pairs);
    AddOuter(arena, count, width, pairs, width, columns, first, columns, tile.of(net.by_product));
    Multiply(arena, count, first, columns, net.by_product.backward, pairs, width);
    for (int q = 0; q < count; ++q) {
      const int r = q % rows;
      const int64_t step = (s + q / rows) * histories + r % histories;
      for (int j = 0; j < width; j += kLanes) {
        const Vec d = Load(pairs + q * width + j);
        float *item = of_items + int64_t{r} * width + j, *own = of_steps + step * of_row + j;
        Store(item, Fma(d, Load(run.of_steps + step * run.step_row + j), Load(item)));
        Store(own, Fma(d, Load(run.items + int64_t{r} * width + j), Load(own)));
      }
    }
  }
  AddColumnSums(rows, columns, by_item, columns, tile.of(net.bias));
  AddOuter(arena, rows, width, run.items, width, columns, by_item, columns, tile.of(net.by_item));
  AddOuter(arena, steps * histories, width, run.of_steps, run.step_row, columns, by_step, columns,
           tile.of(net.by_step));
  Multiply(arena, rows, by_item, columns, net.by_item.backward, of_items, width, kThere);
  Multiply(arena, steps * histories, by_step, columns, net.by_step.backward, of_steps, of_row,
           kThere);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_ACTIVATION_UNIT_H_
