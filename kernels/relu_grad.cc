// The gradients of a dense layer's ReLU and bias on CPUs: what of a gradient passes, and its sum
// over the samples.
//
// TensorFlow takes a pass for each, and in bfloat16 converts number by number. Here it is one.
// Samples are cut into chunks by their number alone, and the chunks' sums added in order, so bits
// do not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bfloat16.h"
#include "cpu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

constexpr int64_t kSamples = 128;    // of a chunk at least
constexpr int64_t kMostChunks = 64;

// As many of TensorFlow's ReluGrad, which multiplies by 0 or 1, and adds them to `sums`.
template <typename T>
INLINE void Pass(const T* upstream, const T* outputs, T* active, float* sums) {
  Half passed, output, sum;
  Get(upstream, &passed);
  Get(outputs, &output);
  passed *= __builtin_convertvector(-(output > 0), Half);
  Put(passed, active);
  Get(sums, &sum);
  Put(sum + passed, sums);
}

// `samples` of `width`; `sums` has room for as many and a register.
template <typename T>
INLINE void PassAll(const T* upstream, const T* outputs, int64_t samples, int64_t width, T* active,
                    float* sums) {
  for (int64_t n = 0; n < samples; ++n, upstream += width, outputs += width, active += width) {
    int64_t i = 0;
    for (; i + kHalf <= width; i += kHalf) Pass(upstream + i, outputs + i, active + i, sums + i);
    if (i == width) continue;
    T rest[3][kHalf] = {};
    const size_t bytes = (width - i) * sizeof(T);
    std::memcpy(static_cast<void*>(rest[0]), upstream + i, bytes);
    std::memcpy(static_cast<void*>(rest[1]), outputs + i, bytes);
    Pass(rest[0], rest[1], rest[2], sums + i);
    std::memcpy(static_cast<void*>(active + i), rest[2], bytes);
  }
}

// A function for each type, since a template has no versions for kinds of CPUs.
#define PASS(T)                                                                                  \
  FOR_EACH_CPU void PassSamples(const T* upstream, const T* outputs, int64_t samples,            \
                                int64_t width, T* active, float* sums) {                         \
    PassAll(upstream, outputs, samples, width, active, sums);                                    \
  }
PASS(float)
PASS(bfloat16)

template <typename T>
class ReluBiasGrad : public OpKernel {
 public:
  explicit ReluBiasGrad(OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &upstream = context->input(0), &outputs = context->input(1);
    OP_REQUIRES(context,
                TensorShapeUtils::IsMatrix(upstream.shape()) && upstream.shape() == outputs.shape(),
                InvalidArgument("Expected a gradient [N, D] and outputs of its shape, received ",
                                upstream.shape().DebugString(), " and ",
                                outputs.shape().DebugString()));
    const int64_t samples = upstream.dim_size(0), width = upstream.dim_size(1);
    Tensor *active = nullptr, *bias = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, upstream.shape(),
                                                                      &active));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({width}), &bias));
    const int64_t chunks = std::min(kMostChunks, (samples + kSamples - 1) / kSamples);
    const int64_t room = width + kHalf;
    std::vector<float> sums(chunks * room, 0.0f), total(room, 0.0f);
    const T *from = upstream.flat<T>().data(), *of = outputs.flat<T>().data();
    T* to = active->flat<T>().data();
    ForAll(context, chunks, samples * width / std::max<int64_t>(1, chunks),
           [&](int64_t begin, int64_t end) {
             for (int64_t c = begin; c < end; ++c) {
               const int64_t first = samples * c / chunks, last = samples * (c + 1) / chunks;
               PassSamples(from + first * width, of + first * width, last - first, width,
                           to + first * width, sums.data() + c * room);
             }
           });
    for (int64_t c = 0; c < chunks; ++c) {
      for (int64_t i = 0; i < width; ++i) total[i] += sums[c * room + i];
    }
    Copy(total.data(), width, bias->flat<T>().data());
  }
};

REGISTER_KERNEL_BUILDER(
    Name("LookbackReluBiasGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),
    ReluBiasGrad<float>);
REGISTER_KERNEL_BUILDER(
    Name("LookbackReluBiasGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<bfloat16>("T"),
    ReluBiasGrad<bfloat16>);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackReluBiasGrad")
    .Input("upstream: T")
    .Input("outputs: T")
    .Output("active: T")
    .Output("bias: T")
    .Attr("T: {float, bfloat16}")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle outputs;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 2, &outputs));
      context->set_output(0, outputs);
      context->set_output(1, context->Vector(context->Dim(outputs, 1)));
      return tensorflow::OkStatus();
    });
