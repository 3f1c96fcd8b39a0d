// Runs the models' tiles without TensorFlow, for sanitizers: every array is as long as it must be
// and no longer, and memory that was not written holds no numbers. All results must be finite, and
// the same bits in another order of the pieces and in two threads.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tiles.h"

#define SYMBOL_OF(level) lookback_level_##level
#define SYMBOL(level) SYMBOL_OF(level)
extern "C" const LookbackLevel SYMBOL(LOOKBACK_LEVEL);

namespace {

constexpr int kRows = 11, kWidth = 16;

struct Shape {
  int model, users, candidates, slots, steps, k;
  bool hard, time, unit, dropout;
};

class Batch {
 public:
  Batch(const Shape& shape, bool training) : shape_(shape), table_(Floats(kRows * kWidth)) {
    step.model = shape.model;
    step.training = training;
    step.histories = shape.users;
    step.candidates = shape.candidates;
    step.long_events = shape.slots;
    step.short_events = shape.steps;
    step.width = kWidth;
    step.k = shape.k;
    step.hard = shape.hard;
    step.time_features = shape.time;
    step.activation_unit = shape.unit;
    step.auxiliary_layers = 2;
    step.stage_one_layers = 1;
    step.stage_two_layers = 2;
    const int pairs = shape.users * shape.candidates, events = 2 + shape.time;
    step.target = Parts(2, pairs);
    step.user = Parts(1, shape.users);
    step.long_ = Parts(events, shape.users * shape.slots);
    step.short_ = Parts(events, shape.users * shape.steps);
    step.negative = Parts(events, shape.users * shape.steps);
    step.long_mask = Mask(shape.slots, 1, shape.slots);
    step.short_mask = Mask(shape.steps, shape.users, 1);
    if (shape.hard) {
      step.target_category = Ids(pairs);
      step.long_category = Ids(shape.users * shape.slots);
    }
    step.labels = Floats(pairs);
    step.scales[0] = step.scales[1] = step.scales[2] = 0.1f;
    if (shape.dropout) {
      step.stage_one_dropout = {Floats(pairs * 20), 20};
      step.stage_two_dropout = {Floats(pairs * 17), 17};
    }
    Weights(training);
    step.weights = weights_.data();
    step.weight_count = static_cast<int>(weights_.size());
    step.logits = Floats(pairs);
  }

  LookbackStep step = {};

  // All results, one after another.
  std::vector<float> Results() const {
    std::vector<float> all(step.sums, step.sums + 3);
    for (const auto& [values, size] : results_) all.insert(all.end(), values, values + size);
    all.insert(all.end(), step.logits, step.logits + shape_.users * shape_.candidates);
    return all;
  }

 private:
  float* Floats(int count) {
    floats_.emplace_back(new float[count]);
    for (int i = 0; i < count; ++i) floats_.back()[i] = normal_(random_);
    return floats_.back().get();
  }
  int32_t* Ids(int count) {
    ids_.emplace_back(new int32_t[count]);
    for (int i = 0; i < count; ++i) ids_.back()[i] = static_cast<int32_t>(random_() % kRows);
    return ids_.back().get();
  }
  // Each user's steps, from one to the next `stride`: some have gaps, some padding before, after or
  // alone.
  uint8_t* Mask(int steps, int stride, int user_stride) {
    bytes_.emplace_back(new uint8_t[shape_.users * steps]());
    for (int user = 0; user < shape_.users; ++user) {
      const int a = random_() % (steps + 1), b = random_() % (steps + 1), kind = random_() % 4;
      const int from = kind == 0 ? 0 : std::min(a, b), to = kind == 1 ? steps : std::max(a, b);
      for (int s = from; s < to; ++s) {
        bytes_.back()[user * user_stride + s * stride] = kind != 2 || random_() % 4 != 0;
      }
    }
    return bytes_.back().get();
  }
  float* Result(int count) {
    results_.emplace_back(Floats(count), count);
    return results_.back().first;
  }
  LookbackParts Parts(int count, int positions) {
    parts_.emplace_back(new LookbackPart[count]);
    for (int p = 0; p < count; ++p) {
      float* gradients = step.training ? Result(positions * kWidth) : nullptr;
      if (p == 0) parts_.back()[p] = {Floats(positions * kWidth), nullptr, gradients};
      if (p > 0) parts_.back()[p] = {table_, Ids(positions), gradients};
    }
    return {parts_.back().get(), count};
  }
  void Weight(int rows, int columns) {
    float* gradients = step.training ? Result(rows * columns) : nullptr;
    weights_.push_back({Floats(rows * columns), rows, columns, gradients});
  }
  void Dense(int rows, int columns) {
    Weight(rows, columns);
    Weight(1, columns);
  }
  void Mlp(int inputs, std::vector<int> widths) {
    for (int width : widths) {
      Dense(inputs, width);
      Weight(1, width);
      inputs = width;
    }
    Dense(inputs, 1);
  }
  void Unit(int width) {
    Dense(4 * width, 80);
    Dense(80, 40);
    Dense(40, 1);
  }
  void Weights(bool training) {
    const int items = 2 * kWidth, events = step.long_.count * kWidth, units = 6 * kWidth;
    if (step.model != LOOKBACK_DIN) {
      for (int inputs : {events, units}) {
        Weight(inputs, 3 * units);
        Dense(units, 3 * units);
      }
      Dense(items, units);
      Weight(1, units);
      Unit(units);
      if (training) {
        Dense(units + events, 50);
        Dense(50, 33);
        Dense(33, 1);
      }
    } else if (step.activation_unit) {
      Unit(items);
    }
    if (step.model == LOOKBACK_SIM) {
      if (training) Mlp(2 * items + kWidth, {20});
      Mlp(2 * events + items + units + kWidth, {40, 17});
      if (step.time_features) Weight(kWidth, 1);
    } else {
      Mlp(items + kWidth + (step.model == LOOKBACK_DIN ? events : units), {40, 17});
    }
  }

  Shape shape_;
  std::mt19937 random_{7};
  std::normal_distribution<float> normal_{0.0f, 0.2f};
  std::vector<std::unique_ptr<float[]>> floats_;
  std::vector<std::unique_ptr<int32_t[]>> ids_;
  std::vector<std::unique_ptr<uint8_t[]>> bytes_;
  std::vector<std::unique_ptr<LookbackPart[]>> parts_;
  std::vector<LookbackWeight> weights_;
  std::vector<std::pair<float*, int>> results_;
  float* table_;
};

enum Order { kForward, kBackward, kThreads };

std::vector<float> Run(const Shape& shape, bool training, Order order) {
  const LookbackLevel& level = SYMBOL(LOOKBACK_LEVEL);
  Batch batch(shape, training);
  char error[256];
  LookbackNet* net = level.prepare(&batch.step, error, sizeof(error));
  if (net == nullptr) {
    std::fprintf(stderr, "refused: %s\n", error);
    std::exit(1);
  }
  const int64_t pieces = level.pieces(net);
  if (order == kForward) {
    level.run(net, 0, pieces);
  } else if (order == kBackward) {
    for (int64_t piece = pieces; piece-- > 0;) level.run(net, piece, piece + 1);
  } else {
    std::thread other([&] { level.run(net, pieces / 2, pieces); });
    level.run(net, 0, pieces / 2);
    other.join();
  }
  level.finish(net, 1);
  return batch.Results();
}

void Check(const Shape& shape, bool training) {
  const std::vector<float> once = Run(shape, training, kForward);
  for (float value : once) {
    if (!std::isfinite(value)) {
      std::fprintf(stderr, "not finite: model %d\n", shape.model);
      std::exit(1);
    }
  }
  for (Order order : {kBackward, kThreads}) {
    const std::vector<float> again = Run(shape, training, order);
    for (size_t i = 0; i < once.size(); ++i) {
      if (once[i] != again[i]) {
        std::fprintf(stderr, "other bits: model %d, value %zu\n", shape.model, i);
        std::exit(1);
      }
    }
  }
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {LOOKBACK_SIM, 150, 2, 19, 4, 5, false, false, false, false},
      {LOOKBACK_SIM, 21, 3, 33, 1, 40, false, true, false, true},
      {LOOKBACK_SIM, 5, 70, 16, 3, 2, true, true, false, false},
      {LOOKBACK_SIM, 0, 2, 7, 3, 2, false, false, false, true},
      {LOOKBACK_DIEN, 140, 1, 1, 5, 1, false, true, false, true},
      {LOOKBACK_DIN, 131, 2, 23, 1, 1, false, false, false, false},
      {LOOKBACK_DIN, 33, 3, 50, 1, 1, false, true, true, true},
  };
  for (const Shape& shape : shapes) {
    Check(shape, true);
    Check(shape, false);
  }
  std::puts("fine");
  return 0;
}
