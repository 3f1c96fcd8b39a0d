// DIEN's path from the short sequence to one vector (models/blocks/evolution.py): GRU, attention,
// AUGRU, auxiliary loss.

#ifndef LOOKBACK_KERNELS_TILES_EVOLUTION_H_
#define LOOKBACK_KERNELS_TILES_EVOLUTION_H_

#include "activation_unit.h"
#include "auxiliary.h"
#include "recurrent.h"

namespace lookback {
namespace {

constexpr int kUnitsPerDim = 6;  // H / D, as in models/blocks/evolution.py

struct Evolution {
  Evolution() = default;
  // Weights: extractor's and AUGRU's kernel, recurrent kernel, bias; projection's kernel, bias and
  // slope; the activation unit's; in training the auxiliary net's.
  explicit Evolution(Packer* packer) {
    const LookbackStep& step = packer->step();
    const int events = step.short_.count * step.width;
    units = kUnitsPerDim * step.width;
    extractor = Recurrent(packer, events, units);
    evolution = Recurrent(packer, units, units);
    project = packer->NextKernel(step.target.count * step.width, units);
    project_bias = packer->NextVector(units);
    slope = packer->NextVector(units);
    attention = ActivationUnit(packer, units);
    if (step.training) auxiliary = Auxiliary(packer, units, events, step.auxiliary_layers);
  }

  int units = 0;  // H
  Recurrent extractor, evolution;
  Kernel project;
  Vector project_bias, slope;
  ActivationUnit attention;
  Auxiliary auxiliary;
};

struct EvolutionRun {
  float *targets, *events, *negatives;  // [R, E], [S T, E'] twice
  float *valid, *valid_pairs;           // which steps exist: [S, stride] of T and of R rows
  int64_t stride;                       // of T rows
  Recurrence extracted, evolved;
  float *projected, *items;  // [R, H], before and after PReLU
  Activation attention;
  AuxiliaryRun auxiliary;

  float* states(int units) const { return extracted.states + extracted.rows * units; }  // [S T, H]
};

// Which steps of the short sequence exist, for rows of which r is of history r % T: [S, stride].
INLINE float* ValidSteps(const Tile& tile, int rows) {
  const LookbackStep& step = *tile.step;
  const int64_t stride = Up(rows, 16);
  float* valid = tile.arena->Zeros(tile.steps() * stride);
  for (int s = 0; s < tile.steps(); ++s) {
    const uint8_t* mask = step.short_mask + (tile.span.from + s) * step.histories;
    for (int r = 0; r < rows; ++r) {
      valid[s * stride + r] = mask[tile.history(r)] ? 1.0f : 0.0f;
    }
  }
  return valid;
}

// What depends on the history alone.
void EvolutionOfHistories(const Tile& tile, const Evolution& net, EvolutionRun* run) {
  run->events = Steps(tile, tile.step->short_);
  run->valid = ValidSteps(tile, tile.histories);
  run->stride = Up(tile.histories, 16);
  run->extracted = RecurrentForward(tile, net.extractor, 1, run->events, run->valid, run->stride);
  if (!tile.step->training) return;
  run->negatives = Steps(tile, tile.step->negative);
  run->auxiliary = AuxiliaryForward(tile, net.auxiliary, run->states(net.units), run->events,
                                    run->negatives, run->valid, run->stride);
}

// What depends on the candidates, too: gives their final states [R, H].
const float* EvolutionOfCandidates(const Tile& tile, const Evolution& net, EvolutionRun* run) {
  const int rows = tile.rows(), units = net.units, items = net.project.forward.rows;
  run->targets = Targets(tile);
  run->valid_pairs = ValidSteps(tile, rows);
  run->projected = tile.arena->Floats(int64_t{rows} * units);
  run->items = tile.arena->Floats(int64_t{rows} * units);
  Multiply(tile.arena, rows, run->targets, items, net.project.forward, run->projected, units,
           kBias, net.project_bias.values);
  Prelu(rows, units, run->projected, net.slope.values, run->items);
  run->attention = ActivationForward(tile, net.attention, tile.steps(), run->items,
                                     run->states(units), units, run->valid_pairs);
  run->evolved = RecurrentForward(tile, net.evolution, tile.candidates, run->states(units),
                                  run->attention.weights, run->attention.stride);
  return run->evolved.last(units);
}

// The backward pass, from gradients of the final states [R, H], which it destroys. Adds those of
// the targets [R, E]; writes those of the events and negatives into their parts.
void EvolutionBackward(const Tile& tile, const Evolution& net, const EvolutionRun& run,
                       float* of_final, float* of_targets) {
  const int rows = tile.rows(), units = net.units, items = net.project.forward.rows;
  const int histories = tile.histories, steps = tile.steps();
  const int64_t states = int64_t{steps} * histories;
  Arena* arena = tile.arena;
  Scope scope(arena);
  float* of_states = arena->Floats(states * units);
  float* of_attention = arena->Zeros(steps * run.attention.stride);
  float* of_items = arena->Floats(int64_t{rows} * units);
  RecurrentBackward(tile, net.evolution, run.evolved, of_final, nullptr, of_states, kNothing,
                    of_attention);
  ActivationBackward(tile, net.attention, run.attention, of_attention, of_items, of_states, units);
  PreluBack(rows, units, run.projected, net.slope.values, of_items, tile.of(net.slope));
  AddColumnSums(rows, units, of_items, units, tile.of(net.project_bias));
  AddOuter(arena, rows, items, run.targets, items, units, of_items, units, tile.of(net.project));
  Multiply(arena, rows, of_items, units, net.project.backward, of_targets, items, kThere);
  float* of_events = arena->Floats(states * net.auxiliary.events);
  float* of_negatives = arena->Floats(states * net.auxiliary.events);
  AuxiliaryBackward(tile, net.auxiliary, run.auxiliary, of_states, of_events, of_negatives);
  float* of_last = arena->Zeros(int64_t{histories} * units);
  RecurrentBackward(tile, net.extractor, run.extracted, of_last, of_states, of_events, kThere,
                    nullptr);
  PutSteps(tile, tile.step->short_, of_events);
  PutSteps(tile, tile.step->negative, of_negatives);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_EVOLUTION_H_
