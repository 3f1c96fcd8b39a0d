// SIM (models/sim.py).

#ifndef LOOKBACK_KERNELS_TILES_SIM_H_
#define LOOKBACK_KERNELS_TILES_SIM_H_

#include "evolution.h"
#include "search.h"

namespace lookback {
namespace {

// Weights: the evolution's; in training stage one's layers (kernel, bias, slope each), its head's
// kernel and bias; stage two's layers, the head's kernel and bias; with time features the gap's.
struct Sim {
  explicit Sim(Packer* packer) {
    const LookbackStep& step = packer->step();
    items = step.target.count * step.width;
    events = step.long_.count * step.width;
    users = step.user.count * step.width;
    evolution = Evolution(packer);
    if (step.training) {
      stage_one = Mlp(packer, 2 * items + users, step.stage_one_layers, step.stage_one_dropout);
    }
    const int inputs = 2 * events + items + evolution.units + users;
    stage_two = Mlp(packer, inputs, step.stage_two_layers, step.stage_two_dropout);
    if (step.time_features) gap_score = packer->NextColumn(step.width);
  }

  const Vector* gap() const { return gap_score.values == nullptr ? nullptr : &gap_score; }

  int items = 0, events = 0, users = 0;  // E, E', E_u
  Evolution evolution;
  Mlp stage_one, stage_two;
  Vector gap_score = {};
};

struct SimRun {
  EvolutionRun evolution;
  Search search;
  MlpRun stage_one, stage_two;
};

void Forward(const Tile& tile, const Sim& net, SimRun* run) {
  const LookbackStep& step = *tile.step;
  const int items = net.items, events = net.events, units = net.evolution.units;
  const float* users = Users(tile);
  const float* final = EvolutionOfCandidates(tile, net.evolution, &run->evolution);
  const float* targets = run->evolution.targets;
  // Stage one reads [e_a, s, e_user]; stage two [attention, mean, e_a, DIEN, e_user].
  float* one = step.training ? MlpInput(tile, net.stage_one) : nullptr;
  float* two = MlpInput(tile, net.stage_two);
  const int ones = net.stage_one.inputs, twos = net.stage_two.inputs;
  const Sums sums = {one == nullptr ? nullptr : one + items, two, two + events, ones, twos};
  run->search = SearchForward(tile, net.gap(), targets, sums);
  for (int r = 0; r < tile.rows(); ++r) {
    const float *target = targets + r * items, *user = users + r % tile.histories * net.users;
    if (one != nullptr) {
      Put(one, r, ones, 0, target, items);
      Put(one, r, ones, 2 * items, user, net.users);
    }
    Put(two, r, twos, 2 * events, target, items);
    Put(two, r, twos, 2 * events + items, final + int64_t{r} * units, units);
    Put(two, r, twos, 2 * events + items + units, user, net.users);
  }
  if (step.training) run->stage_one = MlpForward(tile, net.stage_one, one, step.stage_one_dropout);
  run->stage_two = MlpForward(tile, net.stage_two, two, step.stage_two_dropout);
}

void Backward(const Tile& tile, const Sim& net, SimRun* run) {
  const LookbackStep& step = *tile.step;
  const int items = net.items, events = net.events, units = net.evolution.units;
  const int ones = net.stage_one.inputs, twos = net.stage_two.inputs;
  CrossEntropy(tile, step.scales[1], run->stage_one.logits, &tile.sums[1]);
  CrossEntropy(tile, step.scales[0], run->stage_two.logits, &tile.sums[0]);
  float* one = MlpBackward(tile, net.stage_one, run->stage_one);
  float* two = MlpBackward(tile, net.stage_two, run->stage_two);
  float* of_targets = tile.arena->Floats(int64_t{tile.rows()} * items);
  float* of_final = tile.arena->Floats(int64_t{tile.rows()} * units);
  for (int r = 0; r < tile.rows(); ++r) {
    const float *by_one = one + int64_t{r} * ones, *by_two = two + int64_t{r} * twos + 2 * events;
    for (int j = 0; j < items; j += kLanes) {
      Store(of_targets + r * items + j, Load(by_one + j) + Load(by_two + j));
    }
    Put(of_final, r, units, 0, by_two + items, units);
  }
  PutUsers(tile, one + 2 * items, ones, two + 2 * events + items + units, twos);
  SearchBackward(tile, net.gap(), run->evolution.targets, run->search,
                 {one + items, two, two + events, ones, twos}, of_targets);
  EvolutionBackward(tile, net.evolution, run->evolution, of_final, of_targets);
  PutTargets(tile, of_targets);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_SIM_H_
