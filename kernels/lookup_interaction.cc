// The dot interaction of vectors that are looked up (dot_interaction.h) on CPUs, and its gradient.
//
// Looked up by TensorFlow, the rows of a batch are copied out of their tables and read again, 54 MB
// for 4,096 samples of 26 features. Here they are read where they are, and those of the next sample
// are asked for while one is multiplied. In bfloat16 no more is converted than what a sample's
// products are made of.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bfloat16.h"
#include "cpu.h"
#include "dot_interaction.h"
#include "numbering.h"
#include "tables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

constexpr int kLine = 64 / sizeof(float);  // floats of a line of the caches

FOR_EACH_CPU void Convert(const bfloat16* from, int64_t count, float* to) { Copy(from, count, to); }
FOR_EACH_CPU void Convert(const float* from, int64_t count, bfloat16* to) { Copy(from, count, to); }

// The inputs of both operations: first [B, D], M tables [rows, D], and M times ids [B].
template <typename T, typename Index>
class Lookups {
 public:
  tensorflow::Status Read(OpKernelContext* context) {
    const Tensor* first = nullptr;
    OpInputList ids;
    TF_RETURN_IF_ERROR(context->input("first", &first));
    TF_RETURN_IF_ERROR(context->input_list("ids", &ids));
    TF_RETURN_IF_ERROR(tables_.Lock(context));
    if (!TensorShapeUtils::IsMatrix(first->shape()) || first->dim_size(1) % kLanes) {
      return InvalidArgument("Expected first vectors [B, D], D a multiple of ", kLanes,
                             ", received ", first->shape().DebugString());
    }
    samples_ = first->dim_size(0);
    width_ = first->dim_size(1);
    first_ = first->flat<T>().data();
    for (int i = 0; i < tables_.size(); ++i) {
      if (tables_[i].dim_size(1) != width_ || ids[i].shape() != TensorShape({samples_})) {
        return InvalidArgument("Expected tables [rows, ", width_, "] and ids [", samples_,
                               "] for each, received ", tables_[i].shape().DebugString(), " and ",
                               ids[i].shape().DebugString());
      }
      ids_.push_back(ids[i].flat<Index>().data());
      TF_RETURN_IF_ERROR(CheckIds(ids_[i], samples_, tables_[i].dim_size(0)));
      rows_.push_back(tables_[i].flat<float>().data());
    }
    return tensorflow::OkStatus();
  }

  int64_t samples() const { return samples_; }
  int width() const { return width_; }
  int count() const { return 1 + rows_.size(); }
  int pairs() const { return count() * (count() - 1) / 2; }
  const T* first(int64_t sample) const { return first_ + sample * width_; }

  // Where the vectors of a sample are. `room` [D] takes what has to be converted; what comes next
  // is asked for.
  void Find(int64_t sample, float* room, const float** vectors) const {
    if constexpr (std::is_same_v<T, float>) {
      vectors[0] = first(sample);
    } else {
      Convert(first(sample), width_, room);
      vectors[0] = room;
    }
    for (size_t i = 0; i < rows_.size(); ++i) {
      vectors[1 + i] = rows_[i] + static_cast<int64_t>(ids_[i][sample]) * width_;
      if (sample + 1 == samples_) continue;
      const float* next = rows_[i] + static_cast<int64_t>(ids_[i][sample + 1]) * width_;
      for (int k = 0; k < width_; k += kLine) __builtin_prefetch(next + k, 0, 2);
    }
  }

 private:
  LockedTables tables_;
  int64_t samples_ = 0;
  int width_ = 0;
  const T* first_ = nullptr;
  std::vector<const float*> rows_;  // of each table, the first
  std::vector<const Index*> ids_;
};

template <typename T, typename Index>
class LookupInteraction : public OpKernel {
 public:
  explicit LookupInteraction(OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(OpKernelContext* context) override {
    Lookups<T, Index> lookups;
    OP_REQUIRES_OK(context, lookups.Read(context));
    const int64_t width = lookups.width(), pairs = lookups.pairs();
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, TensorShape({lookups.samples(), width + pairs}), &output));
    T* to = output->flat<T>().data();
    const auto products = Products();
    ForAll(context, lookups.samples(), 2 * pairs * width / kLanes + 1,
           [&](int64_t begin, int64_t end) {
             std::vector<float> room(width + pairs);
             std::vector<const float*> vectors(lookups.count());
             for (int64_t sample = begin; sample < end; ++sample) {
               lookups.Find(sample, room.data(), vectors.data());
               T* result = to + sample * (width + pairs);
               std::memcpy(static_cast<void*>(result), lookups.first(sample), width * sizeof(T));
               if constexpr (std::is_same_v<T, float>) {
                 products(vectors.data(), lookups.count(), width, result + width);
               } else {
                 products(vectors.data(), lookups.count(), width, room.data() + width);
                 Convert(room.data() + width, pairs, result + width);
               }
             }
           });
  }
};

template <typename T, typename Index>
class LookupInteractionGrad : public OpKernel {
 public:
  explicit LookupInteractionGrad(OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(OpKernelContext* context) override {
    Lookups<T, Index> lookups;
    OP_REQUIRES_OK(context, lookups.Read(context));
    const int count = lookups.count();
    const int64_t width = lookups.width(), upstream_width = width + lookups.pairs();
    const Tensor& upstream = context->input(0);
    const TensorShape expected({lookups.samples(), upstream_width});
    OP_REQUIRES(context, upstream.shape() == expected,
                InvalidArgument("Expected an upstream gradient ", expected.DebugString(),
                                ", received ", upstream.shape().DebugString()));
    const TensorShape shape({lookups.samples(), width});
    Tensor* of_first = nullptr;
    OpOutputList of_rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &of_first));
    OP_REQUIRES_OK(context, context->output_list("gradients", &of_rows));
    std::vector<float*> to(count, nullptr);
    for (int i = 1; i < count; ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, of_rows.allocate(i - 1, shape, &output));
      to[i] = output->flat<float>().data();
    }
    const T* from = upstream.flat<T>().data();
    T* first = of_first->flat<T>().data();
    const auto combine = Combine();
    ForAll(context, lookups.samples(), 4 * lookups.pairs() * width / kLanes + 1,
           [&](int64_t begin, int64_t end) {
             std::vector<float> room(width), first_room(width), converted(upstream_width);
             std::vector<const float*> vectors(count);
             std::vector<float*> gradients(count);
             std::vector<float> weights(count * count, 0.0f);
             for (int64_t sample = begin; sample < end; ++sample) {
               lookups.Find(sample, room.data(), vectors.data());
               for (int i = 1; i < count; ++i) gradients[i] = to[i] + sample * width;
               const float* of_sample = converted.data();
               if constexpr (std::is_same_v<T, float>) {
                 of_sample = from + sample * upstream_width;
                 gradients[0] = first + sample * width;
               } else {
                 Convert(from + sample * upstream_width, upstream_width, converted.data());
                 gradients[0] = first_room.data();
               }
               SpreadPairs(of_sample + width, count, weights.data());
               combine(vectors.data(), count, width, weights.data(), of_sample, gradients.data());
               if constexpr (!std::is_same_v<T, float>) {
                 Convert(first_room.data(), width, first + sample * width);
               }
             }
           });
  }
};

#define REGISTER_FOR(T, Index)                                              \
  REGISTER_KERNEL_BUILDER(Name("LookbackLookupInteraction")                 \
                              .Device(tensorflow::DEVICE_CPU)               \
                              .TypeConstraint<T>("T")                       \
                              .TypeConstraint<Index>("Tindices"),           \
                          LookupInteraction<T, Index>);                     \
  REGISTER_KERNEL_BUILDER(Name("LookbackLookupInteractionGrad")             \
                              .Device(tensorflow::DEVICE_CPU)               \
                              .TypeConstraint<T>("T")                       \
                              .TypeConstraint<Index>("Tindices"),           \
                          LookupInteractionGrad<T, Index>);
REGISTER_FOR(float, int32_t)
REGISTER_FOR(float, tensorflow::int64)
REGISTER_FOR(bfloat16, int32_t)
REGISTER_FOR(bfloat16, tensorflow::int64)

}  // namespace
}  // namespace lookback

#define LOOKUPS                      \
  Input("first: T")                  \
      .Input("tables: M * resource") \
      .Input("ids: M * Tindices")    \
      .Attr("M: int >= 1")           \
      .Attr("T: {float, bfloat16}")  \
      .Attr("Tindices: {int32, int64}")

REGISTER_OP("LookbackLookupInteraction")
    .LOOKUPS.Output("output: T")
    .SetIsStateful()  // it reads what others write
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      int count;
      TF_RETURN_IF_ERROR(context->GetAttr("M", &count));
      tensorflow::shape_inference::ShapeHandle first;
      tensorflow::shape_inference::DimensionHandle width;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 2, &first));
      TF_RETURN_IF_ERROR(context->Add(context->Dim(first, 1), count * (count + 1) / 2, &width));
      context->set_output(0, context->Matrix(context->Dim(first, 0), width));
      return tensorflow::OkStatus();
    });

REGISTER_OP("LookbackLookupInteractionGrad")
    .Input("upstream: T")
    .LOOKUPS.Output("of_first: T")
    .Output("gradients: M * float")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->input(1));
      return tensorflow::OkStatus();
    });
