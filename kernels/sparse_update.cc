// The optimizers of embedding tables on CPUs (embeddings/optimizers.py, which gives their sources).
//
// TensorFlow takes eight passes and more over the rows of a step: distinct ids, sums, a copy of the
// rows and of each slot, one operation a symbol of the formula, and what writes each back. Here
// rows are numbered as they occur, the gradients of those that repeat are added up, and then each
// row is read, updated and written once. Rows are shared among threads by the low bits of their
// ids, and each is summed in the order of its occurrences, so bits do not depend on the number of
// threads; nor do they on the kind of CPU, since products and sums are rounded one by one.

#define EIGEN_USE_THREADS  // before any header of Eigen; training_op_helpers.h needs it

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu.h"
#include "numbering.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/kernels/training_op_helpers.h"

#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace lookback {
namespace {

constexpr int kMostSlots = 2;
constexpr int kLine = 64 / sizeof(float);  // floats of a line of the caches
constexpr int64_t kLinesAhead = 64;        // so many are asked for before they are needed
constexpr int64_t kShared = 1 << 14;       // floats of gradient that are worth a thread
constexpr int64_t kMostParts = 16;         // each goes through all ids

// What follows is compiled without fused multiply-adds. GCC inlines no function that is compiled
// otherwise, and so none of the standard library's.
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

// --- the rules: one row with gradient `g`, weights `w` and up to two slots ---

struct Rule {
  static constexpr bool kByRow = false;     // whether slots have one value a row
  static constexpr bool kEveryRow = false;  // whether rows that no index names change, too
  float rate = 0;                           // the learning rate of this step
};

struct Sgd : Rule {
  static constexpr int kSlots = 0;
  explicit Sgd(OpKernelConstruction*) {}

  INLINE void operator()(const float* g, float* w, float*, float*, int width) const {
    INDEPENDENT
    for (int i = 0; i < width; ++i) w[i] -= rate * g[i];
  }
};

struct Momentum : Rule {
  static constexpr int kSlots = 1;
  float momentum;
  explicit Momentum(OpKernelConstruction* construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("momentum", &momentum));
  }

  INLINE void operator()(const float* g, float* w, float* velocity, float*, int width) const {
    INDEPENDENT
    for (int i = 0; i < width; ++i) {
      velocity[i] = momentum * velocity[i] - rate * g[i];
      w[i] += velocity[i];
    }
  }
};

struct Adagrad : Rule {
  static constexpr int kSlots = 1;
  float epsilon;
  explicit Adagrad(OpKernelConstruction* construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("epsilon", &epsilon));
  }

  INLINE void operator()(const float* g, float* w, float* accumulator, float*, int width) const {
    INDEPENDENT
    for (int i = 0; i < width; ++i) {
      accumulator[i] += g[i] * g[i];
      w[i] -= rate * g[i] / (__builtin_sqrtf(accumulator[i]) + epsilon);
    }
  }
};

struct RowwiseAdagrad : Adagrad {
  static constexpr bool kByRow = true;
  using Adagrad::Adagrad;

  INLINE void operator()(const float* g, float* w, float* accumulator, float*, int width) const {
    float squares[kLanes] = {};  // column i adds to lane i % kLanes, whatever the registers
    int begin = 0;
    for (; begin + kLanes <= width; begin += kLanes) {
      INDEPENDENT
      for (int i = 0; i < kLanes; ++i) squares[i] += g[begin + i] * g[begin + i];
    }
    for (int i = 0; begin + i < width; ++i) squares[i] += g[begin + i] * g[begin + i];
    float sum = 0;
    for (float of_lane : squares) sum += of_lane;
    *accumulator += sum / width;
    const float root = __builtin_sqrtf(*accumulator) + epsilon;
    INDEPENDENT
    for (int i = 0; i < width; ++i) w[i] -= rate * g[i] / root;
  }
};

struct Adam : Rule {  // `rate` has the corrections of both moments in it
  static constexpr int kSlots = 2;
  float beta_1, beta_2, epsilon;
  explicit Adam(OpKernelConstruction* construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("beta_1", &beta_1));
    OP_REQUIRES_OK(construction, construction->GetAttr("beta_2", &beta_2));
    OP_REQUIRES_OK(construction, construction->GetAttr("epsilon", &epsilon));
  }

  INLINE void operator()(const float* g, float* w, float* m, float* v, int width) const {
    INDEPENDENT
    for (int i = 0; i < width; ++i) {
      m[i] = beta_1 * m[i] + (1 - beta_1) * g[i];
      v[i] = beta_2 * v[i] + (1 - beta_2) * (g[i] * g[i]);
      w[i] -= rate * m[i] / (__builtin_sqrtf(v[i]) + epsilon);
    }
  }
};

// Of all rows; most have no gradient. `epsilon` is this step's, an input.
struct FullAdam : Rule {
  static constexpr int kSlots = 2;
  static constexpr bool kEveryRow = true;
  float beta_1, beta_2, epsilon = 0;
  explicit FullAdam(OpKernelConstruction* construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("beta_1", &beta_1));
    OP_REQUIRES_OK(construction, construction->GetAttr("beta_2", &beta_2));
  }

  INLINE void operator()(const float* g, float* w, float* m, float* v, int width) const {
    INDEPENDENT
    for (int i = 0; i < width; ++i) {
      const float gradient = g == nullptr ? 0 : g[i];
      m[i] += (gradient - m[i]) * (1 - beta_1);
      v[i] += (gradient * gradient - v[i]) * (1 - beta_2);
      w[i] -= m[i] * rate / (__builtin_sqrtf(v[i]) + epsilon);
    }
  }
};

struct Ftrl : Rule {
  static constexpr int kSlots = 2;
  float power, l1, l2, beta;
  explicit Ftrl(OpKernelConstruction* construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("power", &power));
    OP_REQUIRES_OK(construction, construction->GetAttr("l1", &l1));
    OP_REQUIRES_OK(construction, construction->GetAttr("l2", &l2));
    OP_REQUIRES_OK(construction, construction->GetAttr("beta", &beta));
  }

  INLINE void operator()(const float* g, float* w, float* n, float* z, int width) const {
    if (power == 0.5f) {
      INDEPENDENT
      for (int i = 0; i < width; ++i) {
        const float before = __builtin_sqrtf(n[i]);
        n[i] += g[i] * g[i];
        Weight(g[i], before, __builtin_sqrtf(n[i]), &z[i], &w[i]);
      }
    } else {
      for (int i = 0; i < width; ++i) {
        const float before = std::pow(n[i], power);
        n[i] += g[i] * g[i];
        Weight(g[i], before, std::pow(n[i], power), &z[i], &w[i]);
      }
    }
  }

 private:
  INLINE void Weight(float g, float before, float after, float* z, float* w) const {
    *z = *z + g - (after - before) / rate * *w;
    const float clipped = *z > l1 ? l1 : *z < -l1 ? -l1 : *z;
    *w = (clipped - *z) / ((beta + after) / rate + 2 * l2);
  }
};

// --- the rows of a step ---

// What is updated, and with what.
struct Tables {
  float* table;              // [rows, width]
  float* slots[kMostSlots];  // [rows, slot_widths[.]]
  int width, slot_widths[kMostSlots];
  const float* values;  // the gradient's [N, width]
  float decay;          // of a weight, before the update: a share of it
};

// Rows of the table, and the sum of each one's gradients (null: none). Of every row, `rows` is
// null.
struct Sums {
  int64_t begin, end;
  const int64_t* rows;
  const float* const* sums;
};

INLINE void Prefetch(const float* row, int width) {
  for (int i = 0; i < width; i += kLine) __builtin_prefetch(row + i, 1);
}

// Adds up rows `places` of the gradient [., width], each to that of `sums` which its number says.
// One that is alone stays where it is; the sums of others are put into `room`.
FOR_EACH_CPU void AddUp(const float* values, int width, const int32_t* places,
                        const int32_t* numbers, int64_t count, float* room, const float** sums) {
  const float* const begin = room;
  for (int64_t n = 0; n < count; ++n) {
    if (n + kAhead < count) {
      Prefetch(values + int64_t{places[n + kAhead]} * width, width);
      const float* soon = sums[numbers[n + kAhead]];
      if (soon != nullptr) Prefetch(soon, width);
    }
    const float* gradient = values + int64_t{places[n]} * width;
    const float*& sum = sums[numbers[n]];
    if (sum == nullptr) {
      sum = gradient;
      continue;
    }
    float* to = const_cast<float*>(sum);
    if (sum < begin || sum >= room) {  // still the first gradient's
      to = room;
      room += width;
    }
    int i = 0;
    for (; i + kHalf <= width; i += kHalf) {
      Half one, other;
      Get(sum + i, &one);
      Get(gradient + i, &other);
      Put(one + other, to + i);
    }
    for (; i < width; ++i) to[i] = sum[i] + gradient[i];
    sum = to;
  }
}

// Updates rows; `kWidth` is their width, or 0: any.
template <int kWidth, typename Of>
INLINE void UpdateRows(const Of& rule, const Tables& tables, const Sums& found) {
  const int width = kWidth ? kWidth : tables.width;
  const int64_t lines = int64_t{width} * (1 + Of::kSlots) / kLine + 1;
  const int64_t ahead = lines < kLinesAhead ? kLinesAhead / lines : 1;  // rows
  for (int64_t k = found.begin; k < found.end; ++k) {
    if (!Of::kEveryRow && k + ahead < found.end) {
      const int64_t row = found.rows[k + ahead];
      Prefetch(tables.table + row * width, width);
      for (int s = 0; s < Of::kSlots; ++s) {
        Prefetch(tables.slots[s] + row * tables.slot_widths[s], tables.slot_widths[s]);
      }
    }
    const int64_t row = Of::kEveryRow ? k : found.rows[k];
    float* weights = tables.table + row * width;
    if (tables.decay != 0) {
      INDEPENDENT
      for (int i = 0; i < width; ++i) weights[i] -= tables.decay * weights[i];
    }
    float* slots[kMostSlots] = {};
    for (int s = 0; s < Of::kSlots; ++s) slots[s] = tables.slots[s] + row * tables.slot_widths[s];
    rule(found.sums[k], weights, slots[0], slots[1], width);
  }
}

// A function for each rule, since a template has no versions for kinds of CPUs.
#define UPDATE(Of)                                                                     \
  FOR_EACH_CPU void Update(const Of& rule, const Tables& tables, const Sums& found) { \
    if (tables.width == kLanes) {                                                      \
      UpdateRows<kLanes>(rule, tables, found);                                         \
    } else {                                                                           \
      UpdateRows<0>(rule, tables, found);                                              \
    }                                                                                  \
  }
UPDATE(Sgd)
UPDATE(Momentum)
UPDATE(Adagrad)
UPDATE(RowwiseAdagrad)
UPDATE(Adam)
UPDATE(FullAdam)
UPDATE(Ftrl)

#ifdef __clang__
#pragma clang fp contract(on)
#else
#pragma GCC pop_options
#endif

// The rows whose numbers end with the bits `part`, and their sums.
template <typename Index>
class PartSums {
 public:
  PartSums(const Tables& tables, const Index* ids, int64_t count, int64_t rows, int part,
           int bits) {
    const Index mask = (Index{1} << bits) - 1;
    std::vector<int32_t> places(count + 1);
    int64_t own = 0;
    for (int64_t i = 0; i < count; ++i) {  // without branches: half would be mispredicted
      places[own] = static_cast<int32_t>(i);
      own += (ids[i] & mask) == part;
    }
    Numbering<Index> numbering((rows >> bits) + 1, own);
    std::vector<int32_t> numbers(own);
    for (int64_t n = 0; n < own; ++n) {
      if (n + kAhead < own) numbering.Prefetch(ids[places[n + kAhead]] >> bits);
      const Index id = ids[places[n]];
      numbers[n] = numbering.Of(id >> bits, rows_.size());
      if (numbers[n] == static_cast<int64_t>(rows_.size())) rows_.push_back(id);
    }
    // As much as may be needed; what is not, is never touched. Rows alone need none.
    const int64_t repeated = std::min<int64_t>(rows_.size(), own - rows_.size());
    room_.reset(new float[repeated * tables.width]);
    sums_.resize(rows_.size(), nullptr);
    AddUp(tables.values, tables.width, places.data(), numbers.data(), own, room_.get(),
          sums_.data());
  }

  Sums found() const {
    return {0, static_cast<int64_t>(rows_.size()), rows_.data(), sums_.data()};
  }

 private:
  std::vector<int64_t> rows_;
  std::vector<const float*> sums_;
  std::unique_ptr<float[]> room_;
};

// Inputs: the table, the rule's slots, the gradient's indices and values, the rate, the decay, and
// the epsilon of a rule that has it as an input.
template <typename Of, typename Index>
class SparseUpdate : public OpKernel {
 public:
  explicit SparseUpdate(OpKernelConstruction* construction)
      : OpKernel(construction), rule_(construction) {}

  void Compute(OpKernelContext* context) override {
    std::vector<int> variables(1 + Of::kSlots);
    for (int i = 0; i <= Of::kSlots; ++i) variables[i] = i;
    const auto locks =
        tensorflow::MaybeLockVariableInputMutexesInOrder<Eigen::ThreadPoolDevice, float>(
            context, /*do_lock=*/true, /*sparse=*/true, variables);
    std::vector<Tensor> held(variables.size());
    for (int i : variables) {
      OP_REQUIRES_OK(context,
                     tensorflow::GetInputTensorFromVariable<Eigen::ThreadPoolDevice, float>(
                         context, i, /*lock_held=*/true, /*sparse=*/true, &held[i]));
      OP_REQUIRES(context,
                  held[i].dtype() == tensorflow::DT_FLOAT &&
                      TensorShapeUtils::IsMatrix(held[i].shape()) &&
                      held[i].dim_size(0) == held[0].dim_size(0) &&
                      held[i].dim_size(1) == (i && Of::kByRow ? 1 : held[0].dim_size(1)),
                  InvalidArgument("Expected a float table [rows, D] and slots ",
                                  Of::kByRow ? "[rows, 1]" : "of its shape", ", received ",
                                  held[0].DebugString(0), " and ", held[i].DebugString(0)));
    }
    const Tensor& indices = context->input(1 + Of::kSlots);
    const Tensor& values = context->input(2 + Of::kSlots);
    const Tensor& rate = context->input(3 + Of::kSlots);
    const Tensor& decay = context->input(4 + Of::kSlots);
    const int64_t count = indices.NumElements(), rows = held[0].dim_size(0);
    const int64_t width = held[0].dim_size(1);
    OP_REQUIRES(context, indices.dims() == 1 && values.shape() == TensorShape({count, width}),
                InvalidArgument("Expected indices [N] and values [N, ", width, "], received ",
                                indices.shape().DebugString(), " and ",
                                values.shape().DebugString()));
    OP_REQUIRES(context, count <= std::numeric_limits<int32_t>::max(),
                InvalidArgument("Expected fewer than 2^31 indices, received ", count));
    OP_REQUIRES(context, rate.NumElements() == 1 && decay.NumElements() == 1,
                InvalidArgument("Expected a rate and a decay, one number each"));
    const Index* ids = indices.flat<Index>().data();
    OP_REQUIRES_OK(context, CheckIds(ids, count, rows));
    Of rule = rule_;
    rule.rate = rate.flat<float>()(0);
    if constexpr (Of::kEveryRow) {
      const Tensor& epsilon = context->input(5 + Of::kSlots);
      OP_REQUIRES(context, epsilon.NumElements() == 1,
                  InvalidArgument("Expected an epsilon, one number"));
      rule.epsilon = epsilon.template flat<float>()(0);
    }
    Tables tables = {held[0].flat<float>().data()};
    tables.width = width;
    for (int s = 0; s < Of::kSlots; ++s) {
      tables.slots[s] = held[1 + s].flat<float>().data();
      tables.slot_widths[s] = held[1 + s].dim_size(1);
    }
    tables.values = values.flat<float>().data();
    tables.decay = decay.flat<float>()(0);
    Share(context, rule, tables, ids, count, rows);
  }

 private:
  static void Share(OpKernelContext* context, const Of& rule, const Tables& tables,
                    const Index* ids, int64_t count, int64_t rows) {
    const int64_t floats = count * tables.width;
    const auto* threads = context->device()->tensorflow_cpu_worker_threads();
    int bits = 0;
    while ((1 << bits) < std::min<int64_t>({threads->num_threads, kMostParts, floats / kShared})) {
      ++bits;
    }
    const int64_t parts = int64_t{1} << bits;
    std::vector<std::unique_ptr<PartSums<Index>>> sums(Of::kEveryRow ? parts : 0);
    std::vector<const float*> of_rows(Of::kEveryRow ? rows : 0, nullptr);
    ForAll(context, parts, 4 * floats / parts + 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        auto of_part = std::make_unique<PartSums<Index>>(tables, ids, count, rows, part, bits);
        const Sums found = of_part->found();
        if (Of::kEveryRow) {
          for (int64_t k = 0; k < found.end; ++k) of_rows[found.rows[k]] = found.sums[k];
          sums[part] = std::move(of_part);
        } else {
          Update(rule, tables, found);
        }
      }
    });
    ForAll(context, of_rows.size(), 10 * tables.width, [&](int64_t begin, int64_t end) {
      Update(rule, tables, {begin, end, nullptr, of_rows.data()});
    });
  }

  Of rule_;
};

#define REGISTER(Of)                                                                    \
  REGISTER_KERNEL_BUILDER(Name("LookbackSparse" #Of)                                    \
                              .Device(tensorflow::DEVICE_CPU)                           \
                              .TypeConstraint<int32_t>("Tindices"),                     \
                          SparseUpdate<Of, int32_t>);                                   \
  REGISTER_KERNEL_BUILDER(Name("LookbackSparse" #Of)                                    \
                              .Device(tensorflow::DEVICE_CPU)                           \
                              .TypeConstraint<tensorflow::int64>("Tindices"),           \
                          SparseUpdate<Of, tensorflow::int64>);
REGISTER(Sgd)
REGISTER(Momentum)
REGISTER(Adagrad)
REGISTER(RowwiseAdagrad)
REGISTER(Adam)
REGISTER(FullAdam)
REGISTER(Ftrl)

}  // namespace
}  // namespace lookback

#define GRADIENT             \
  Input("indices: Tindices") \
      .Input("values: float") \
      .Input("rate: float")  \
      .Input("decay: float") \
      .Attr("Tindices: {int32, int64}") \
      .SetIsStateful()       \
      .SetShapeFn(tensorflow::shape_inference::NoOutputs)

REGISTER_OP("LookbackSparseSgd").Input("table: resource").GRADIENT;

REGISTER_OP("LookbackSparseMomentum")
    .Input("table: resource")
    .Input("velocity: resource")
    .Attr("momentum: float")
    .GRADIENT;

REGISTER_OP("LookbackSparseAdagrad")
    .Input("table: resource")
    .Input("accumulator: resource")
    .Attr("epsilon: float")
    .GRADIENT;

REGISTER_OP("LookbackSparseRowwiseAdagrad")
    .Input("table: resource")
    .Input("accumulator: resource")
    .Attr("epsilon: float")
    .GRADIENT;

REGISTER_OP("LookbackSparseAdam")
    .Input("table: resource")
    .Input("m: resource")
    .Input("v: resource")
    .Attr("beta_1: float")
    .Attr("beta_2: float")
    .Attr("epsilon: float")
    .GRADIENT;

REGISTER_OP("LookbackSparseFullAdam")
    .Input("table: resource")
    .Input("m: resource")
    .Input("v: resource")
    .Attr("beta_1: float")
    .Attr("beta_2: float")
    .GRADIENT.Input("epsilon: float");

REGISTER_OP("LookbackSparseFtrl")
    .Input("table: resource")
    .Input("accumulator: resource")
    .Input("linear: resource")
    .Attr("power: float")
    .Attr("l1: float")
    .Attr("l2: float")
    .Attr("beta: float")
    .GRADIENT;
