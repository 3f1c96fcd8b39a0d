// GRU and AUGRU (models/blocks/recurrent.py): the first is the second with one candidate, whose
// attention is 1 where the step exists.
//
//   u = sigmoid(x W_u + b_u + h U_u),  r = sigmoid(x W_r + b_r + h U_r)
//   c = tanh(x W_c + b_c + r * (h U_c)),  h' = h + a u * (c - h)

#ifndef LOOKBACK_KERNELS_TILES_RECURRENT_H_
#define LOOKBACK_KERNELS_TILES_RECURRENT_H_

#include "lookup.h"

namespace lookback {
namespace {

struct Recurrent {
  Recurrent() = default;
  Recurrent(Packer* packer, int inputs, int units)
      : units(units),
        input(packer->NextKernel(inputs, 3 * units)),
        state(packer->NextKernel(units, 3 * units)),
        bias(packer->NextVector(3 * units)) {}

  int units = 0;  // H
  Kernel input, state;
  Vector bias;
};

// R = N T rows, r of them of history r % T.
struct Recurrence {
  int steps, histories, rows;
  const float* x;          // [S T, K]
  const float* attention;  // [S, stride]
  int64_t stride;
  float *gates;      // [S, R, 3 H]: u, r, h U_c; after the backward pass, gradients of these sums
  float *proposals;  // [S, R, H]: c; afterwards, the gradient of what tanh is taken of
  float *states;     // [S + 1, R, H], zeros first

  float* last(int units) const { return states + int64_t{steps} * rows * units; }
};

Recurrence RecurrentForward(const Tile& tile, const Recurrent& net, int candidates, const float* x,
                            const float* attention, int64_t stride) {
  const int steps = tile.steps(), histories = tile.histories, units = net.units;
  const int rows = candidates * histories, width = 3 * units;
  Arena* arena = tile.arena;
  Recurrence run = {steps, histories, rows, x, attention, stride, nullptr, nullptr, nullptr};
  run.gates = arena->Floats(int64_t{steps} * rows * width);
  run.proposals = arena->Floats(int64_t{steps} * rows * units);
  run.states = arena->Floats(int64_t{steps + 1} * rows * units);
  memset(run.states, 0, sizeof(float) * rows * units);
  Scope scope(arena);
  float* projected = arena->Floats(int64_t{steps} * histories * width);
  Multiply(arena, steps * histories, x, net.input.forward.rows, net.input.forward, projected, width,
           kBias, net.bias.values);
  for (int s = 0; s < steps; ++s) {
    float* gates = run.gates + int64_t{s} * rows * width;
    float* proposals = run.proposals + int64_t{s} * rows * units;
    const float* before = run.states + int64_t{s} * rows * units;
    float* after = run.states + int64_t{s + 1} * rows * units;
    if (s == 0) {
      memset(gates, 0, sizeof(float) * rows * width);
    } else {
      Multiply(arena, rows, before, units, net.state.forward, gates, width);
    }
    for (int r = 0; r < rows; ++r) {
      const float* p = projected + int64_t{s * histories + r % histories} * width;
      float* g = gates + r * width;
      const Vec weight = All(attention[s * stride + r]);
      for (int j = 0; j < units; j += kLanes) {
        const Vec update = Sigmoid(Load(p + j) + Load(g + j));
        const Vec reset = Sigmoid(Load(p + units + j) + Load(g + units + j));
        const Vec proposal = Tanh(Fma(reset, Load(g + 2 * units + j), Load(p + 2 * units + j)));
        const Vec h = Load(before + r * units + j);
        Store(g + j, update);
        Store(g + units + j, reset);
        Store(proposals + r * units + j, proposal);
        Store(after + r * units + j, Fma(weight * update, proposal - h, h));
      }
    }
  }
  return run;
}

// One step's gates and its gradients, in their places; `of_state` [R, H] becomes the gradient of
// the state before, without what comes through the gates.
INLINE void RecurrentStepBack(const Recurrence& run, int units, int s, const float* of_states,
                              float* of_state, float* of_attention) {
  for (int r = 0; r < run.rows; ++r) {
    const int64_t row = int64_t{s} * run.rows + r;
    float *g = run.gates + row * 3 * units, *c = run.proposals + row * units;
    const float* before = run.states + row * units;
    const Vec weight = All(run.attention[s * run.stride + r]);
    Vec sum = All(0.0f);
    for (int j = 0; j < units; j += kLanes) {
      const Vec update = Load(g + j), reset = Load(g + units + j);
      const Vec by_state = Load(g + 2 * units + j), proposal = Load(c + j);
      Vec d = Load(of_state + r * units + j);
      if (of_states != nullptr) d += Load(of_states + row * units + j);
      const Vec weighted = weight * update, of_update = d * (proposal - Load(before + j));
      const Vec of_proposal = d * weighted;
      sum = Fma(of_update, update, sum);
      const Vec of_tanh = of_proposal * Subtract(proposal, proposal, All(1.0f));
      Store(of_state + r * units + j, d - of_proposal);
      Store(g + j, of_update * weighted * (All(1.0f) - update));
      Store(g + units + j, of_tanh * by_state * SigmoidSlope(reset));
      Store(g + 2 * units + j, of_tanh * reset);
      Store(c + j, of_tanh);
    }
    if (of_attention != nullptr) of_attention[s * run.stride + r] = Sum(sum);
  }
}

// The backward pass.
//   of_last      [R, H], the gradient of the last state; destroyed
//   of_states    [S, R, H], those of all states; null: there are none
//   of_x         [S T, K], starts from `start`
//   of_attention [S, stride]; null: not wanted
void RecurrentBackward(const Tile& tile, const Recurrent& net, const Recurrence& run,
                       float* of_last, const float* of_states, float* of_x, Start start,
                       float* of_attention) {
  const int steps = run.steps, histories = run.histories, rows = run.rows, units = net.units;
  const int width = 3 * units, inputs = net.input.forward.rows;
  Arena* arena = tile.arena;
  if (steps == 0) return;
  for (int s = steps - 1; s >= 0; --s) {
    RecurrentStepBack(run, units, s, of_states, of_last, of_attention);
    if (s > 0) {
      Multiply(arena, rows, run.gates + int64_t{s} * rows * width, width, net.state.backward,
               of_last, units, kThere);
    }
  }
  AddOuter(arena, (steps - 1) * rows, units, run.states + int64_t{rows} * units, units, width,
           run.gates + int64_t{rows} * width, width, tile.of(net.state));
  // The projected input is the same for all candidates of a history.
  Scope scope(arena);
  float* projected = arena->Floats(int64_t{steps} * histories * width);
  for (int s = 0; s < steps; ++s) {
    for (int i = 0; i < histories; ++i) {
      float* to = projected + int64_t{s * histories + i} * width;
      for (int j = 0; j < width; j += kLanes) {
        Vec sum = All(0.0f);
        for (int r = i; r < rows; r += histories) {
          const int64_t row = int64_t{s} * rows + r;
          sum += j < 2 * units ? Load(run.gates + row * width + j)
                               : Load(run.proposals + row * units + j - 2 * units);
        }
        Store(to + j, sum);
      }
    }
  }
  Multiply(arena, steps * histories, projected, width, net.input.backward, of_x, inputs, start);
  AddOuter(arena, steps * histories, inputs, run.x, inputs, width, projected, width,
           tile.of(net.input));
  AddColumnSums(steps * histories, width, projected, width, tile.of(net.bias));
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_RECURRENT_H_
