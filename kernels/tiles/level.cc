// The models' code for one kind of CPU, which is that of this file's flags; build.py compiles it
// once for each level, with LOOKBACK_LEVEL its name and, where products are in bfloat16,
// LOOKBACK_BFLOAT16 or LOOKBACK_AMX.

#if defined(LOOKBACK_AMX) && !defined(LOOKBACK_BFLOAT16)
#define LOOKBACK_BFLOAT16
#endif

#include "dien.h"
#include "din.h"
#include "sim.h"

namespace lookback {
namespace {

Pool pool;

// The batch and the model, packed: what others know as a LookbackNet.
struct AnyNet {
  virtual ~AnyNet() = default;
  virtual void Run(Arena* arena, int64_t begin, int64_t end) const = 0;
  virtual int64_t pieces() const = 0;
  virtual void Finish() = 0;
};

constexpr int kMostHistories = 16;   // of a tile
constexpr int kMostCandidates = 64;  // of a tile, in scoring
constexpr int kPairs = 320;          // of steps and candidates' rows, whose state fits the cache
// Chunks have 4 tiles until there are 16 of them, then 16 tiles until there are 64: enough for the
// threads, and seldom enough that their gradients are zeroed and added.
constexpr int kFewTiles = 4, kFewChunks = 16, kManyTiles = 16, kMostChunks = 64;

INLINE int64_t Smallest(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE void OfHistories(const Tile& tile, const Sim& net, SimRun* run) {
  EvolutionOfHistories(tile, net.evolution, &run->evolution);
}
INLINE void OfHistories(const Tile& tile, const Dien& net, DienRun* run) {
  EvolutionOfHistories(tile, net.evolution, &run->evolution);
}
INLINE void OfHistories(const Tile&, const Din&, DinRun*) {}

// Steps that have a row for each candidate.
INLINE int PairedSteps(const LookbackStep& step) {
  if (step.model != LOOKBACK_DIN) return step.short_events;
  return step.activation_unit ? step.long_events / 5 : 1;  // of fewer and narrower tensors
}

// Of the sequence whose steps a tile goes over; strides from one step and one history to the next.
struct Mask {
  const uint8_t* at;
  int steps;
  int64_t step, history;
};
INLINE Mask MaskOf(const LookbackStep& step) {
  if (step.model != LOOKBACK_DIN) return {step.short_mask, step.short_events, step.histories, 1};
  return {step.long_mask, step.long_events, 1, step.long_events};
}

template <typename Model, typename ModelRun>
class Net final : public AnyNet {
 public:
  Net(LookbackStep* step, char* error, size_t size)
      : step_(step), arena_(pool.Take()), packer_(*step, arena_, error, size), model_(&packer_) {
    const int candidates = Max(1, step->candidates);
    blocks_ = step->training ? 1 : (candidates + kMostCandidates - 1) / kMostCandidates;
    histories_ = Max(1, Min(kMostHistories, kPairs / Max(1, PairedSteps(*step)) / candidates));
    if (blocks_ > 1) histories_ = 1;
    tiles_ = (step->histories + histories_ - 1) / histories_;
    order_ = static_cast<int32_t*>(arena_->Bytes(sizeof(int32_t) * step->histories));
    const Mask mask = MaskOf(*step);
    OrderBySpan(arena_, step->histories, mask.at, mask.steps, mask.step, mask.history, order_);
    if (!step->training) {
      chunks_ = tiles_ * blocks_;
      return;
    }
    const int64_t tiles = (step->histories + kMostHistories - 1) / kMostHistories;
    const int64_t few = Smallest(tiles / kFewTiles, kFewChunks), many = tiles / kManyTiles;
    chunks_ = Smallest(kMostChunks, few > many ? few : many);
    if (chunks_ == 0) chunks_ = 1;
    gradients_ = arena_->Floats(chunks_ * packer_.gradients());
    sums_ = static_cast<double*>(arena_->Bytes(sizeof(double) * 3 * chunks_));
  }
  ~Net() override { pool.Give(arena_); }

  bool ok() { return packer_.Done(); }
  int64_t pieces() const override { return chunks_; }

  void Run(Arena* arena, int64_t begin, int64_t end) const override {
    if (step_->training) {
      for (int64_t chunk = begin; chunk < end; ++chunk) Train(arena, chunk);
    } else {
      Score(arena, begin, end);
    }
  }

  void Finish() override {
    if (!step_->training) return;
    packer_.Unpack(gradients_, chunks_);
    for (int i = 0; i < 3; ++i) {
      step_->sums[i] = 0;
      for (int64_t c = 0; c < chunks_; ++c) step_->sums[i] += sums_[3 * c + i];
    }
  }

 private:
  Tile TileOf(Arena* arena, int64_t tile, int block) const {
    const int64_t first = tile * histories_;
    const int histories = static_cast<int>(Smallest(step_->histories - first, histories_));
    const int candidate = block * kMostCandidates;
    const int candidates = step_->candidates - candidate;
    const Mask mask = MaskOf(*step_);
    Span span = {0, 0};
    for (int i = 0; i < histories; ++i) {
      const uint8_t* own = mask.at + order_[first + i] * mask.history;
      span = Together(span, SpanOf(own, mask.steps, mask.step));
    }
    return {step_, arena, nullptr, nullptr, order_ + first, histories, span, candidate,
            step_->training ? candidates : Min(kMostCandidates, candidates)};
  }
  // The shortest histories' tile, the longest's, and so on inwards: equal shares are equal work.
  int64_t Folded(int64_t t) const { return t % 2 == 0 ? t / 2 : tiles_ - 1 - t / 2; }
  void PutLogits(const Tile& tile, const float* logits) const {
    for (int r = 0; r < tile.rows(); ++r) step_->logits[tile.pair(r)] = logits[r];
  }

  void Train(Arena* arena, int64_t chunk) const {
    float* gradients = gradients_ + chunk * packer_.gradients();
    double* sums = sums_ + 3 * chunk;
    memset(gradients, 0, sizeof(float) * packer_.gradients());
    sums[0] = sums[1] = sums[2] = 0;
    for (int64_t t = chunk; t < tiles_; t += chunks_) {  // short histories and long ones to each
      Scope scope(arena);
      Tile tile = TileOf(arena, t, 0);
      tile.gradients = gradients;
      tile.sums = sums;
      ModelRun run = {};
      OfHistories(tile, model_, &run);
      Forward(tile, model_, &run);
      PutLogits(tile, LogitsOf(run));
      Backward(tile, model_, &run);
    }
  }

  // A history's own part is computed once for those of its blocks that are here.
  void Score(Arena* arena, int64_t begin, int64_t end) const {
    for (int64_t piece = begin; piece < end;) {
      Scope scope(arena);
      const int64_t t = piece / blocks_, tile_of_all = Folded(t);
      ModelRun run = {};
      OfHistories(TileOf(arena, tile_of_all, 0), model_, &run);
      for (; piece < end && piece / blocks_ == t; ++piece) {
        Scope block(arena);
        const Tile tile = TileOf(arena, tile_of_all, static_cast<int>(piece % blocks_));
        Forward(tile, model_, &run);
        PutLogits(tile, LogitsOf(run));
      }
    }
  }

  static const float* LogitsOf(const SimRun& run) { return run.stage_two.logits; }
  static const float* LogitsOf(const DienRun& run) { return run.classifier.logits; }
  static const float* LogitsOf(const DinRun& run) { return run.classifier.logits; }

  LookbackStep* step_;
  Arena* arena_;
  Packer packer_;
  Model model_;
  int histories_, blocks_;  // of a tile; of a history's candidates
  int32_t* order_;          // of the histories [B]
  int64_t tiles_, chunks_;
  float* gradients_ = nullptr;  // [chunks, gradients]
  double* sums_ = nullptr;      // [chunks, 3]
};

template <typename Model, typename ModelRun>
LookbackNet* Made(LookbackStep* step, char* error, size_t size) {
  auto* net = new Net<Model, ModelRun>(step, error, size);
  if (net->ok()) return reinterpret_cast<LookbackNet*>(static_cast<AnyNet*>(net));
  delete net;
  return nullptr;
}

LookbackNet* Prepare(LookbackStep* step, char* error, size_t size) {
  switch (step->model) {
    case LOOKBACK_SIM: return Made<Sim, SimRun>(step, error, size);
    case LOOKBACK_DIEN: return Made<Dien, DienRun>(step, error, size);
    default: return Made<Din, DinRun>(step, error, size);
  }
}

int64_t Pieces(const LookbackNet* net) { return reinterpret_cast<const AnyNet*>(net)->pieces(); }

void Run(const LookbackNet* net, int64_t begin, int64_t end) {
  Arena* arena = pool.Take();
  BeginProducts();
  reinterpret_cast<const AnyNet*>(net)->Run(arena, begin, end);
  EndProducts();
  pool.Give(arena);
}

void Finish(LookbackNet* net, int succeeded) {
  AnyNet* any = reinterpret_cast<AnyNet*>(net);
  if (succeeded) any->Finish();
  delete any;
}

}  // namespace
}  // namespace lookback

#define NAME_OF(level) #level
#define QUOTED(level) NAME_OF(level)
#define SYMBOL_OF(level) lookback_level_##level
#define SYMBOL(level) SYMBOL_OF(level)

extern "C" {
extern const LookbackLevel SYMBOL(LOOKBACK_LEVEL);
const LookbackLevel SYMBOL(LOOKBACK_LEVEL) = {QUOTED(LOOKBACK_LEVEL), lookback::Prepare,
                                              lookback::Pieces, lookback::Run, lookback::Finish};
}
