// DIEN's auxiliary loss (models/blocks/auxiliary.py): of each state and the next event, clicked or
// drawn. The state's half of the first layer is computed once for both.

#ifndef LOOKBACK_KERNELS_TILES_AUXILIARY_H_
#define LOOKBACK_KERNELS_TILES_AUXILIARY_H_

#include "mlp.h"

namespace lookback {
namespace {

struct Auxiliary {
  Auxiliary() = default;
  Auxiliary(Packer* packer, int units, int events, int layers)
      : units(units), events(events), layers(layers) {
    const Variable kernel = packer->Next(units + events, 0);
    by_state = packer->Rows(kernel, 0, units);
    by_event = packer->Rows(kernel, units, events);
    int columns = kernel.columns;
    biases[0] = packer->NextVector(columns);
    for (int k = 1; k < layers; ++k) {
      kernels[k] = packer->NextKernel(columns);
      columns = packer->last_columns();
      biases[k] = packer->NextVector(columns);
    }
    logit = packer->NextColumn(columns);
    logit_bias = packer->NextVector(1);
  }

  int units = 0, events = 0, layers = 0;
  Kernel by_state, by_event, kernels[kMostLayers];  // of the layers but the first
  Vector biases[kMostLayers], logit, logit_bias;
};

struct AuxiliaryRun {
  int rows;                    // of (S - 1) T states; twice as many pairs, the clicked ones first
  const float *states, *clicks, *negatives;  // [S T, ...]
  float* hidden[kMostLayers];  // [2 rows, columns]: values, after the backward pass gradients
  float* of_logits;            // [2 rows]
};

// The loss, added to tile.sums[2].
//   states     [S T, H]
//   clicks     events [S T, E'], and negatives
//   valid      [S, stride], which steps exist
AuxiliaryRun AuxiliaryForward(const Tile& tile, const Auxiliary& net, const float* states,
                              const float* clicks, const float* negatives, const float* valid,
                              int64_t stride) {
  const int histories = tile.histories, rows = Max(0, tile.steps() - 1) * histories;
  Arena* arena = tile.arena;
  AuxiliaryRun run = {rows, states, clicks, negatives, {}, arena->Floats(2 * rows)};
  int columns = net.by_state.forward.columns;
  run.hidden[0] = arena->Floats(2 * int64_t{rows} * columns);
  {
    Scope scope(arena);
    float* by_state = arena->Floats(int64_t{rows} * columns);
    Multiply(arena, rows, states, net.units, net.by_state.forward, by_state, columns, kBias,
             net.biases[0].values);
    for (int drawn = 0; drawn < 2; ++drawn) {
      float* to = run.hidden[0] + drawn * int64_t{rows} * columns;
      const float* events = (drawn ? negatives : clicks) + int64_t{histories} * net.events;
      Multiply(arena, rows, events, net.events, net.by_event.forward, to, columns);
      for (int64_t i = 0; i < int64_t{rows} * columns; i += kLanes) {
        Store(to + i, Sigmoid(Load(to + i) + Load(by_state + i)));
      }
    }
  }
  for (int k = 1; k < net.layers; ++k) {
    const Matrix& kernel = net.kernels[k].forward;
    float* to = run.hidden[k] = arena->Floats(2 * int64_t{rows} * kernel.columns);
    Multiply(arena, 2 * rows, run.hidden[k - 1], kernel.rows, kernel, to, kernel.columns, kBias,
             net.biases[k].values);
    for (int64_t i = 0; i < 2 * int64_t{rows} * kernel.columns; i += kLanes) {
      Store(to + i, Sigmoid(Load(to + i)));
    }
    columns = kernel.columns;
  }
  const float scale = tile.step->scales[2];
  for (int r = 0; r < rows; ++r) {
    const int s = r / histories, i = r % histories;
    const bool exists = valid[s * stride + i] != 0 && valid[(s + 1) * stride + i] != 0;
    for (int drawn = 0; drawn < 2; ++drawn) {
      float* of_logit = run.of_logits + drawn * rows + r;
      *of_logit = 0.0f;
      if (!exists) continue;
      const float* last = run.hidden[net.layers - 1] + (drawn * int64_t{rows} + r) * columns;
      const float logit = Dot(columns, last, net.logit.values) + net.logit_bias.values[0];
      tile.sums[2] += Softplus(drawn ? logit : -logit);
      *of_logit = scale * (drawn ? Logistic(logit) : -Logistic(-logit));
    }
  }
  return run;
}

// The backward pass: adds to the gradients of the states [S T, H], sets those of the clicks and
// negatives [S T, E'].
void AuxiliaryBackward(const Tile& tile, const Auxiliary& net, const AuxiliaryRun& run,
                       float* of_states, float* of_clicks, float* of_negatives) {
  const int rows = run.rows, last = net.layers - 1, histories = tile.histories;
  Arena* arena = tile.arena;
  Scope scope(arena);
  int columns = net.logit.columns;
  float *of_logit = tile.of(net.logit), *of_bias = tile.of(net.biases[last]);
  for (int j = 0; j < columns; j += kLanes) {
    const Vec weight = Load(net.logit.values + j);
    Vec sum = All(0.0f), bias = All(0.0f);
    for (int r = 0; r < 2 * rows; ++r) {
      float* at = run.hidden[last] + int64_t{r} * columns + j;
      const Vec value = Load(at), d = All(run.of_logits[r]);
      const Vec before = d * weight * SigmoidSlope(value);
      sum = Fma(d, value, sum);
      bias += before;
      Store(at, before);
    }
    Store(of_logit + j, Load(of_logit + j) + sum);
    Store(of_bias + j, Load(of_bias + j) + bias);
  }
  for (int r = 0; r < 2 * rows; ++r) tile.of(net.logit_bias)[0] += run.of_logits[r];
  for (int k = last; k > 0; --k) {
    const Kernel& kernel = net.kernels[k];
    const int inputs = kernel.forward.rows;
    AddOuter(arena, 2 * rows, inputs, run.hidden[k - 1], inputs, columns, run.hidden[k], columns,
             tile.of(kernel));
    float* before = arena->Floats(2 * int64_t{rows} * inputs);
    Multiply(arena, 2 * rows, run.hidden[k], columns, kernel.backward, before, inputs);
    for (int64_t i = 0; i < 2 * int64_t{rows} * inputs; i += kLanes) {
      float* at = run.hidden[k - 1] + i;
      Store(at, Load(before + i) * SigmoidSlope(Load(at)));
    }
    AddColumnSums(2 * rows, inputs, run.hidden[k - 1], inputs, tile.of(net.biases[k - 1]));
    columns = inputs;
  }
  float* first = run.hidden[0];
  const int64_t half = int64_t{rows} * columns;
  float* both = arena->Floats(half);
  for (int64_t i = 0; i < half; i += kLanes) {
    Store(both + i, Load(first + i) + Load(first + half + i));
  }
  AddOuter(arena, rows, net.units, run.states, net.units, columns, both, columns,
           tile.of(net.by_state));
  Multiply(arena, rows, both, columns, net.by_state.backward, of_states, net.units, kThere);
  // The first step is nobody's next.
  const int64_t skipped = tile.steps() > 0 ? int64_t{histories} * net.events : 0;
  for (int drawn = 0; drawn < 2; ++drawn) {
    const float* events = (drawn ? run.negatives : run.clicks) + skipped;
    float* of_events = drawn ? of_negatives : of_clicks;
    memset(of_events, 0, sizeof(float) * skipped);
    AddOuter(arena, rows, net.events, events, net.events, columns, first + drawn * half, columns,
             tile.of(net.by_event));
    Multiply(arena, rows, first + drawn * half, columns, net.by_event.backward, of_events + skipped,
             net.events);
  }
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_AUXILIARY_H_
