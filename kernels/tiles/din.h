// DIN (models/din.py): over all history slots, which are the long sequence here.

#ifndef LOOKBACK_KERNELS_TILES_DIN_H_
#define LOOKBACK_KERNELS_TILES_DIN_H_

#include "activation_unit.h"
#include "mlp.h"
#include "search.h"

namespace lookback {
namespace {

// Weights: the activation unit's, unless scores are products; the classifier's layers (kernel,
// bias, slope each), the head's kernel and bias.
struct Din {
  explicit Din(Packer* packer) {
    const LookbackStep& step = packer->step();
    items = step.target.count * step.width;
    events = step.long_.count * step.width;
    users = step.user.count * step.width;
    unit = step.activation_unit != 0;
    if (unit) attention = ActivationUnit(packer, items);
    classifier = Mlp(packer, items + events + users, step.stage_two_layers,
                     step.stage_two_dropout);
  }

  int items = 0, events = 0, users = 0;  // E, E', E_u
  bool unit = false;
  ActivationUnit attention;
  Mlp classifier;
};

struct DinRun {
  float* targets;        // [R, E]
  float* weights;        // [T, N, padded], of products
  float* events;         // [L T, E'], of the unit
  Activation attention;
  MlpRun classifier;
};

// By products: each history's interests go to `interest`, a column of the classifier's input.
INLINE void AttendByProducts(const Tile& tile, const Din& net, DinRun* run, float* interest) {
  const int candidates = tile.candidates, histories = tile.histories;
  const int64_t row = net.classifier.inputs;
  const int64_t each = candidates * Up(tile.step->long_events, 16);
  run->weights = tile.arena->Floats(histories * each);
  for (int i = 0; i < histories; ++i) {
    Scope scope(tile.arena);
    const LongEvents events = LongOf(tile, tile.order[i]);
    const int padded = events.padded;
    float* exist = tile.arena->Floats(padded);
    float* weights = run->weights + i * each;
    Existing(tile, events, exist);
    Product(candidates, padded, net.items,
            {run->targets + int64_t{i} * net.items, int64_t{histories} * net.items, 1},
            events.across, padded, weights, padded, kNothing);
    for (int c = 0; c < candidates; ++c) {
      MaskedSoftmax(padded, weights + c * padded, exist, weights + c * padded);
    }
    Product(candidates, net.events, events.count, {weights, padded, 1}, events.rows, net.events,
            interest + i * row, histories * row, kNothing);
  }
}

INLINE void AttendByProductsBack(const Tile& tile, const Din& net, const DinRun& run,
                                 const float* of_interest, float* of_targets) {
  const LookbackStep& step = *tile.step;
  const int candidates = tile.candidates, histories = tile.histories, width = step.width;
  const int64_t row = net.classifier.inputs;
  const int64_t each = candidates * Up(step.long_events, 16);
  for (int i = 0; i < histories; ++i) {
    Scope scope(tile.arena);
    const LongEvents events = LongOf(tile, tile.order[i]);
    const int padded = events.padded;
    const float* weights = run.weights + i * each;
    const Strided of = {of_interest + i * row, histories * row, 1};
    float* of_weights = tile.arena->Floats(int64_t{candidates} * padded);
    float* of_scores = tile.arena->Zeros(int64_t{candidates} * padded);
    Product(candidates, padded, net.events, of, events.across, padded, of_weights, padded,
            kNothing);
    for (int c = 0; c < candidates; ++c) {
      SoftmaxBack(padded, weights + c * padded, of_weights + c * padded, of_scores + c * padded);
    }
    float* own = of_targets + int64_t{i} * net.items;
    const int64_t between = int64_t{histories} * net.items;
    for (int p = 0; p < step.long_.count; ++p) {
      float* to = LongGradients(tile, tile.order[i], events, step.long_.parts[p]);
      Product(events.count, width, candidates, {weights, 1, padded},
              of_interest + i * row + p * width, histories * row, to, width, kNothing);
      if (p >= step.target.count) continue;
      Product(events.count, width, candidates, {of_scores, 1, padded},
              run.targets + int64_t{i} * net.items + p * width, between, to, width, kThere);
    }
    Product(candidates, net.items, events.count, {of_scores, padded, 1}, events.rows, net.events,
            own, between, kThere);
  }
}

// Of step s of the tile's span, for its row r, in whatever is [B, L].
INLINE int64_t LongPosition(const Tile& tile, int r, int s) {
  return tile.history(r) * tile.step->long_events + tile.span.from + s;
}

// By the activation unit: the tile's histories step by step, as in the evolution of DIEN.
INLINE void AttendByUnit(const Tile& tile, const Din& net, DinRun* run, float* interest) {
  const LookbackStep& step = *tile.step;
  const int steps = tile.steps(), histories = tile.histories, rows = tile.rows();
  const int64_t stride = Up(rows, 16), row = net.classifier.inputs;
  run->events = tile.arena->Floats(int64_t{steps} * histories * net.events);
  float* valid = tile.arena->Zeros(steps * stride);
  for (int s = 0; s < steps; ++s) {
    for (int i = 0; i < histories; ++i) {
      Look(step.long_, step.width, LongPosition(tile, i, s),
           run->events + (int64_t{s} * histories + i) * net.events);
    }
    for (int r = 0; r < rows; ++r) {
      valid[s * stride + r] = step.long_mask[LongPosition(tile, r, s)] ? 1.0f : 0.0f;
    }
  }
  run->attention = ActivationForward(tile, net.attention, steps, run->targets, run->events,
                                     net.events, valid);
  for (int i = 0; i < histories; ++i) {
    Product(tile.candidates, net.events, steps, {run->attention.weights + i, histories, stride},
            run->events + int64_t{i} * net.events, int64_t{histories} * net.events,
            interest + i * row, histories * row, kNothing);
  }
}

INLINE void AttendByUnitBack(const Tile& tile, const Din& net, const DinRun& run,
                             const float* of_interest, float* of_targets) {
  const LookbackStep& step = *tile.step;
  const int steps = tile.steps(), histories = tile.histories, rows = tile.rows();
  const int events = net.events;
  const int64_t stride = run.attention.stride, row = net.classifier.inputs;
  Scope scope(tile.arena);
  float* of_weights = tile.arena->Zeros(steps * stride);
  float* of_events = tile.arena->Floats(int64_t{steps} * histories * events);
  float* of_items = tile.arena->Floats(int64_t{rows} * net.items);
  for (int s = 0; s < steps; ++s) {
    for (int r = 0; r < rows; ++r) {
      of_weights[s * stride + r] =
          Dot(events, of_interest + r * row,
              run.events + (int64_t{s} * histories + r % histories) * events);
    }
  }
  for (int i = 0; i < histories; ++i) {
    Product(steps, events, tile.candidates, {run.attention.weights + i, stride, histories},
            of_interest + i * row, histories * row, of_events + int64_t{i} * events,
            int64_t{histories} * events, kNothing);
  }
  ActivationBackward(tile, net.attention, run.attention, of_weights, of_items, of_events, events);
  for (int64_t j = 0; j < int64_t{rows} * net.items; j += kLanes) {
    Store(of_targets + j, Load(of_targets + j) + Load(of_items + j));
  }
  for (int i = 0; i < histories; ++i) {
    const int64_t begin = LongPosition(tile, i, 0), end = begin + steps;
    const int64_t all = tile.history(i) * step.long_events;
    PutZeros(step.long_, step.width, all, begin - all);
    PutZeros(step.long_, step.width, end, all + step.long_events - end);
    for (int s = 0; s < steps; ++s) {
      PutGradients(step.long_, step.width, begin + s,
                   of_events + (int64_t{s} * histories + i) * events);
    }
  }
}

void Forward(const Tile& tile, const Din& net, DinRun* run) {
  const int items = net.items, inputs = net.classifier.inputs;
  const float* users = Users(tile);
  run->targets = Targets(tile);
  float* input = MlpInput(tile, net.classifier);  // [e_a, interest, e_user]
  if (net.unit) {
    AttendByUnit(tile, net, run, input + items);
  } else {
    AttendByProducts(tile, net, run, input + items);
  }
  for (int r = 0; r < tile.rows(); ++r) {
    Put(input, r, inputs, 0, run->targets + r * items, items);
    Put(input, r, inputs, items + net.events, users + r % tile.histories * net.users, net.users);
  }
  run->classifier = MlpForward(tile, net.classifier, input, tile.step->stage_two_dropout);
}

void Backward(const Tile& tile, const Din& net, DinRun* run) {
  const int items = net.items, inputs = net.classifier.inputs;
  CrossEntropy(tile, tile.step->scales[0], run->classifier.logits, &tile.sums[0]);
  const float* of_input = MlpBackward(tile, net.classifier, run->classifier);
  float* of_targets = tile.arena->Floats(int64_t{tile.rows()} * items);
  for (int r = 0; r < tile.rows(); ++r) {
    Put(of_targets, r, items, 0, of_input + int64_t{r} * inputs, items);
  }
  PutUsers(tile, of_input + items + net.events, inputs, nullptr, 0);
  if (net.unit) {
    AttendByUnitBack(tile, net, *run, of_input + items, of_targets);
  } else {
    AttendByProductsBack(tile, net, *run, of_input + items, of_targets);
  }
  PutTargets(tile, of_targets);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_DIN_H_
