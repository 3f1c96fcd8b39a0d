// DIEN (models/dien.py).

#ifndef LOOKBACK_KERNELS_TILES_DIEN_H_
#define LOOKBACK_KERNELS_TILES_DIEN_H_

#include "evolution.h"

namespace lookback {
namespace {

// Weights: the evolution's; the classifier's layers (kernel, bias, slope each), the head's kernel
// and bias.
struct Dien {
  explicit Dien(Packer* packer) {
    const LookbackStep& step = packer->step();
    items = step.target.count * step.width;
    users = step.user.count * step.width;
    evolution = Evolution(packer);
    classifier = Mlp(packer, items + evolution.units + users, step.stage_two_layers,
                     step.stage_two_dropout);
  }

  int items = 0, users = 0;  // E, E_u
  Evolution evolution;
  Mlp classifier;
};

struct DienRun {
  EvolutionRun evolution;
  MlpRun classifier;
};

void Forward(const Tile& tile, const Dien& net, DienRun* run) {
  const int items = net.items, units = net.evolution.units, inputs = net.classifier.inputs;
  const float* users = Users(tile);
  const float* final = EvolutionOfCandidates(tile, net.evolution, &run->evolution);
  float* input = MlpInput(tile, net.classifier);  // [e_a, evolved interest, e_user]
  for (int r = 0; r < tile.rows(); ++r) {
    Put(input, r, inputs, 0, run->evolution.targets + r * items, items);
    Put(input, r, inputs, items, final + int64_t{r} * units, units);
    Put(input, r, inputs, items + units, users + r % tile.histories * net.users, net.users);
  }
  run->classifier = MlpForward(tile, net.classifier, input, tile.step->stage_two_dropout);
}

void Backward(const Tile& tile, const Dien& net, DienRun* run) {
  const int items = net.items, units = net.evolution.units, inputs = net.classifier.inputs;
  CrossEntropy(tile, tile.step->scales[0], run->classifier.logits, &tile.sums[0]);
  const float* of_input = MlpBackward(tile, net.classifier, run->classifier);
  float* of_targets = tile.arena->Floats(int64_t{tile.rows()} * items);
  float* of_final = tile.arena->Floats(int64_t{tile.rows()} * units);
  for (int r = 0; r < tile.rows(); ++r) {
    Put(of_targets, r, items, 0, of_input + int64_t{r} * inputs, items);
    Put(of_final, r, units, 0, of_input + int64_t{r} * inputs + items, units);
  }
  PutUsers(tile, of_input + items + units, inputs, nullptr, 0);
  EvolutionBackward(tile, net.evolution, run->evolution, of_final, of_targets);
  PutTargets(tile, of_targets);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_DIEN_H_
