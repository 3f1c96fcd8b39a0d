// SIM's search and what is read of it (Pi et al. 2020, sections 3.1 and 3.2.1) on CPUs, forward.
//
// Of each candidate's products with all events, the k largest are found, and two weighted sums of
// those events taken: by the softmax of their scores, and their mean. TensorFlow writes all scores
// to memory, keeps a heap of them row by row, and copies the events that it found. Here the scores
// of a few candidates are computed from events that lie in the first-level cache, and what is large
// enough is counted, not sorted: a pass over 1,000 scores takes 100 cycles.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

constexpr int kTogether = 4;  // candidates whose scores are computed together
constexpr int kBlock = 64;    // candidates of a user that are one thread's: it transposes for them
constexpr int kFew = 3;       // times k: so many scores are set apart before the search is over
constexpr float kLowest = -std::numeric_limits<float>::infinity();  // of what may not be found
constexpr int32_t kNever = -0x7f800001;  // its key, see Largest

struct Sizes {
  int length, width, items, k;  // events; floats of one, of them the item's; how many are sought
  int tiles() const { return (length + kLanes - 1) / kLanes; }
};

// The items of one user's events, 16 events side by side: [tiles, items, 16], zeros at the end.
void Transpose(const float* events, const Sizes& sizes, float* tiles) {
  for (int tile = 0; tile < sizes.tiles(); ++tile) {
    const int taken = std::min(kLanes, sizes.length - tile * kLanes);
    for (int lane = 0; lane < taken; ++lane) {
      const float* event = events + static_cast<int64_t>(tile * kLanes + lane) * sizes.width;
      for (int i = 0; i < sizes.items; ++i) tiles[i * kLanes + lane] = event[i];
    }
    tiles += sizes.items * kLanes;
  }
}

// Products of kTogether targets with all events: scores [kTogether, tiles * 16].
FOR_EACH_CPU void Scores(const float* const* targets, const float* tiles, const Sizes& sizes,
                         float* scores) {
  const int padded = sizes.tiles() * kLanes;
  for (int at = 0; at < padded; at += kLanes) {
    Half sums[kTogether][2] = {};
    for (int i = 0; i < sizes.items; ++i, tiles += kLanes) {
      Half one, two;
      Get(tiles, &one);
      Get(tiles + kHalf, &two);
      for (int c = 0; c < kTogether; ++c) {
        sums[c][0] += targets[c][i] * one;
        sums[c][1] += targets[c][i] * two;
      }
    }
    for (int c = 0; c < kTogether; ++c) {
      Put(sums[c][0], scores + c * padded + at);
      Put(sums[c][1], scores + c * padded + at + kHalf);
    }
  }
}

// The k-th largest of some keys is at least `low`, which `reach` of them are, and below `high`.
struct Bounds {
  int64_t low, high;
  int reach;
  bool open(int enough) const { return high - low > 1 && reach > enough; }
};

INLINE void Halve(const int32_t* keys, int length, int k, Bounds* bounds) {
  const int64_t middle = bounds->low + (bounds->high - bounds->low) / 2;
  const int32_t reached = static_cast<int32_t>(middle);
  int32_t count = 0;
  for (int j = 0; j < length; ++j) count += keys[j] >= reached;
  if (count < k) {
    bounds->high = middle;
  } else {
    bounds->low = middle;
    bounds->reach = count;
  }
}

// Finds the k largest scores of those that are allowed, among equals the earlier ones.
// Writes their places, in order, and gives their number: fewer than k if fewer are allowed.
//
// A float's bits, but for those of negative ones turned round, are in the order of the floats; a
// threshold among these keys is found by halves, from the number of scores that reach it: first of
// all, then of the few that are left.
FOR_EACH_CPU int Largest(const float* scores, const float* allowed, const Sizes& sizes,
                         int32_t* keys, int32_t* places) {
  const int length = sizes.length, k = sizes.k;
  int32_t possible = 0, most = kNever;
  for (int j = 0; j < length; ++j) {
    const float score = scores[j] + allowed[j];  // and -0 is 0 then, as their bits are not
    int32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);
    keys[j] = key;
    possible += key > kNever;
    most = std::max(most, key);
  }
  Bounds bounds = {kNever + 1, static_cast<int64_t>(most) + 1, possible};
  while (bounds.open(kFew * k)) Halve(keys, length, k, &bounds);
  const int32_t least = static_cast<int32_t>(bounds.low);
  int left = 0;
  for (int j = 0; j < length; ++j) {
    const int32_t key = keys[j];
    places[left] = j;
    keys[left] = key;  // never ahead of what is read
    left += key >= least;
  }
  while (bounds.open(k)) Halve(keys, left, k, &bounds);
  const int32_t threshold = static_cast<int32_t>(bounds.low);
  int above = 0, kept = 0;
  for (int n = 0; n < left; ++n) above += keys[n] > threshold;
  int room = k - above;  // for those that are equal to the threshold
  for (int n = 0; n < left; ++n) {  // without branches: a third of them would be mispredicted
    const bool tied = keys[n] == threshold;
    places[kept] = places[n];
    kept += (keys[n] > threshold) | (tied & (room > 0));
    room -= tied;
  }
  return kept;
}

// Sums of the events at `places`, by `weights` and by one weight for all of them.
FOR_EACH_CPU void Sums(const float* events, const int32_t* places, const float* weights, int count,
                       const Sizes& sizes, float* attended, float* mean) {
  const float share = count ? 1.0f / count : 0.0f;
  int at = 0;
  for (; at + kLanes <= sizes.width; at += kLanes) {
    Half weighted[2] = {}, plain[2] = {};
    for (int n = 0; n < count; ++n) {
      const float* event = events + static_cast<int64_t>(places[n]) * sizes.width + at;
      for (int half = 0; half < 2; ++half) {
        Half values;
        Get(event + half * kHalf, &values);
        weighted[half] += weights[n] * values;
        plain[half] += values;
      }
    }
    for (int half = 0; half < 2; ++half) {
      Put(weighted[half], attended + at + half * kHalf);
      Put(share * plain[half], mean + at + half * kHalf);
    }
  }
  for (; at < sizes.width; ++at) {
    float weighted = 0, plain = 0;
    for (int n = 0; n < count; ++n) {
      const float event = events[static_cast<int64_t>(places[n]) * sizes.width + at];
      weighted += weights[n] * event;
      plain += event;
    }
    attended[at] = weighted;
    mean[at] = share * plain;
  }
}

// Softmax of scores and biases at `places`.
void Softmax(const float* scores, const float* bias, const int32_t* places, int count,
             float* weights) {
  float peak = std::numeric_limits<float>::lowest(), sum = 0;
  for (int n = 0; n < count; ++n) {
    weights[n] = scores[places[n]] + bias[places[n]];
    peak = std::max(peak, weights[n]);
  }
  for (int n = 0; n < count; ++n) sum += weights[n] = std::exp(weights[n] - peak);
  for (int n = 0; n < count; ++n) weights[n] /= sum;  // at least 1: the peak's own
}

class TopKAttention : public OpKernel {
 public:
  explicit TopKAttention(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("k", &k_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &target = context->input(0), &events = context->input(1);
    const Tensor &mask = context->input(2), &bias = context->input(3);
    OP_REQUIRES(context, target.dims() == 3 && events.dims() == 3,
                InvalidArgument("Expected a target [B, C, E] and events [B, L, E'], received ",
                                target.shape().DebugString(), " and ",
                                events.shape().DebugString()));
    const int64_t users = target.dim_size(0), candidates = target.dim_size(1);
    const Sizes sizes = {static_cast<int>(events.dim_size(1)),
                         static_cast<int>(events.dim_size(2)),
                         static_cast<int>(target.dim_size(2)), k_};
    OP_REQUIRES(context, events.dim_size(0) == users && sizes.items <= sizes.width,
                InvalidArgument("Expected events [B, L, E'] with the target's B and E' at least its "
                                "E, received ", events.shape().DebugString(), " with a target ",
                                target.shape().DebugString()));
    const TensorShape of_events({users, events.dim_size(1)});
    OP_REQUIRES(context, mask.shape() == of_events && bias.shape() == of_events,
                InvalidArgument("Expected a mask and a bias ", of_events.DebugString(),
                                ", received ", mask.shape().DebugString(), " and ",
                                bias.shape().DebugString()));
    Tensor *attended = nullptr, *mean = nullptr;
    const TensorShape shape({users, candidates, events.dim_size(2)});
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &attended));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &mean));
    const float* from = events.flat<float>().data();
    const int64_t blocks = (candidates + kBlock - 1) / kBlock;
    const auto row = [&](int64_t block) {
      return block / blocks * candidates + block % blocks * kBlock;
    };
    const auto work = [&](int64_t begin, int64_t end) {
      Read(target.flat<float>().data(), from, mask.flat<bool>().data(), bias.flat<float>().data(),
           sizes, candidates, row(begin), row(end), attended->flat<float>().data(),
           mean->flat<float>().data());
    };
    // A lane's time is that of a product, and of a pass in search of the threshold.
    const int64_t cost = static_cast<int64_t>(sizes.length) * (sizes.items + 32) / kLanes + 1000;
    ForAll(context, users * blocks, cost * std::min<int64_t>(candidates, kBlock), work);
  }

 private:
  // Rows `begin` to `end` of the [B * C] there are; each is computed alike, wherever a share ends.
  static void Read(const float* target, const float* events, const bool* mask, const float* bias,
                   const Sizes& sizes, int64_t candidates, int64_t begin, int64_t end,
                   float* attended, float* mean) {
    const int padded = sizes.tiles() * kLanes;
    std::vector<float> tiles(padded * sizes.items, 0.0f), scores(padded * kTogether);
    std::vector<int32_t> keys(sizes.length), places(sizes.length + 1);
    std::vector<float> weights(std::min(sizes.k, sizes.length)), allowed(sizes.length);
    int64_t transposed = -1;
    for (int64_t row = begin; row < end;) {
      const int64_t user = row / candidates;
      const int64_t last = std::min({end, (user + 1) * candidates, row + kTogether});
      const float* own = events + user * sizes.length * sizes.width;
      if (user != transposed) {
        Transpose(own, sizes, tiles.data());
        for (int j = 0; j < sizes.length; ++j) {
          allowed[j] = mask[user * sizes.length + j] ? 0.0f : kLowest;
        }
        transposed = user;
      }
      const float* targets[kTogether];
      for (int c = 0; c < kTogether; ++c) {
        targets[c] = target + std::min(row + c, last - 1) * sizes.items;
      }
      Scores(targets, tiles.data(), sizes, scores.data());
      for (const float* found = scores.data(); row < last; ++row, found += padded) {
        const int count = Largest(found, allowed.data(), sizes, keys.data(), places.data());
        Softmax(found, bias + user * sizes.length, places.data(), count, weights.data());
        Sums(own, places.data(), weights.data(), count, sizes, attended + row * sizes.width,
             mean + row * sizes.width);
      }
    }
  }

  int k_;
};

REGISTER_KERNEL_BUILDER(Name("LookbackTopKAttention").Device(tensorflow::DEVICE_CPU),
                        TopKAttention);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackTopKAttention")
    .Input("target: float")
    .Input("events: float")
    .Input("mask: bool")
    .Input("bias: float")
    .Output("attended: float")
    .Output("mean: float")
    .Attr("k: int >= 1")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle target, events, shape;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 3, &target));
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 3, &events));
      TF_RETURN_IF_ERROR(context->ReplaceDim(target, 2, context->Dim(events, 2), &shape));
      context->set_output(0, shape);
      context->set_output(1, shape);
      return tensorflow::OkStatus();
    });
