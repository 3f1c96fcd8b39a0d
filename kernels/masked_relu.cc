// ReLU and dropout on CPUs: ``relu(x + b) * mask`` with a mask drawn by a counter-based generator.
//
// TensorFlow makes the mask first, word by word, octet by octet, unit by unit, as large as x, and
// then takes a pass for each of sum, ReLU and product. Here a sample's words are drawn where they
// are used, and x is read and written once.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "cpu.h"
#include "splitmix.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

struct Mask {
  int first;  // of the words that are this layer's
  int keep;   // of the 256 values of a byte, those that keep a unit; 0: a bit a unit, half of them
};

typedef int32_t Integers __attribute__((vector_size(4 * kHalf)));  // beside a Half
typedef uint8_t Octets __attribute__((vector_size(kHalf)));

// Which of kHalf units stay: -1; else 0. By their bits in `word`, the lowest the first's, or bytes.
INLINE void Keep(uint64_t word, const Mask& mask, Integers* kept) {
  if (mask.keep == 0) {
    const Integers bits = {1, 2, 4, 8, 16, 32, 64, 128};
    *kept = (bits & static_cast<int32_t>(word & 255)) != 0;
  } else {
    Octets octets;
    std::memcpy(&octets, &word, sizeof octets);
    *kept = __builtin_convertvector(octets, Integers) < mask.keep;
  }
}

// kHalf units of which some stay. What is no number stays so, as in TensorFlow; in bfloat16 the sum
// is rounded, as there.
template <typename T>
INLINE void MaskUnits(const T* x, const T* bias, const Integers& kept, T* to) {
  const Half zero = {};
  Half sum, added;
  Get(x, &sum);
  Get(bias, &added);
  sum += added;
  Put((sum < 0 ? zero : sum) * __builtin_convertvector(-kept, Half), to);
}

// One sample.
template <typename T>
INLINE void MaskSample(const T* x, const T* bias, int width, uint64_t key, const Mask& mask,
                       T* to) {
  const int units_a_word = mask.keep == 0 ? 64 : 8;
  for (int begin = 0, number = mask.first; begin < width; begin += units_a_word, ++number) {
    uint64_t word = Mix(key + kWeyl * number);
    const int end = std::min(width, begin + units_a_word);
    for (int i = begin; i < end; i += kHalf, word >>= kHalf) {
      Integers kept;
      Keep(word, mask, &kept);
      if (i + kHalf <= end) {
        MaskUnits(x + i, bias + i, kept, to + i);
        continue;
      }
      T rest[3][kHalf] = {};
      const size_t bytes = (end - i) * sizeof(T);
      std::memcpy(static_cast<void*>(rest[0]), x + i, bytes);
      std::memcpy(static_cast<void*>(rest[1]), bias + i, bytes);
      MaskUnits(rest[0], rest[1], kept, rest[2]);
      std::memcpy(static_cast<void*>(to + i), rest[2], bytes);
    }
  }
}

// Samples `begin` to `end`; each `together` of them have a bias of their own. A function for each
// type, since a template has no versions for kinds of CPUs.
#define MASK(T)                                                                                   \
  FOR_EACH_CPU void MaskSamples(const T* x, const T* bias, const int64_t* keys, int width,        \
                                int64_t together, const Mask& mask, int64_t begin, int64_t end,   \
                                T* to) {                                                          \
    for (int64_t n = begin; n < end; ++n) {                                                       \
      MaskSample(x + n * width, bias + n / together * width, width, keys[n], mask,                \
                 to + n * width);                                                                 \
    }                                                                                             \
  }
MASK(float)
MASK(bfloat16)

template <typename T>
class MaskedRelu : public OpKernel {
 public:
  explicit MaskedRelu(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("first_word", &mask_.first));
    OP_REQUIRES_OK(construction, construction->GetAttr("keep", &mask_.keep));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &bias = context->input(1), &keys = context->input(2);
    const int64_t samples = x.dims() ? x.dim_size(0) : 0;
    const int64_t biases = bias.dims() ? bias.dim_size(0) : 0;
    OP_REQUIRES(context,
                TensorShapeUtils::IsMatrix(x.shape()) && TensorShapeUtils::IsMatrix(bias.shape()) &&
                    x.dim_size(1) == bias.dim_size(1) &&
                    samples % std::max<int64_t>(1, biases) == 0 && (biases > 0 || samples == 0) &&
                    TensorShapeUtils::IsVector(keys.shape()) && keys.NumElements() == samples,
                InvalidArgument("Expected x [N, D], biases [M, D] with N a multiple of M, and keys "
                                "[N]; received ", x.shape().DebugString(), ", ",
                                bias.shape().DebugString(), " and ", keys.shape().DebugString()));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, x.shape(), &output));
    const int64_t width = x.dim_size(1), together = samples / std::max<int64_t>(1, biases);
    const T *from = x.flat<T>().data(), *added = bias.flat<T>().data();
    const auto of_keys = keys.flat<tensorflow::int64>();
    T* to = output->flat<T>().data();
    ForAll(context, samples, 2 * width + 20, [&](int64_t begin, int64_t end) {
      MaskSamples(from, added, reinterpret_cast<const int64_t*>(of_keys.data()), width, together,
                  mask_, begin, end, to);
    });
  }

 private:
  Mask mask_;
};

REGISTER_KERNEL_BUILDER(
    Name("LookbackMaskedRelu").Device(tensorflow::DEVICE_CPU).TypeConstraint<float>("T"),
    MaskedRelu<float>);
REGISTER_KERNEL_BUILDER(
    Name("LookbackMaskedRelu").Device(tensorflow::DEVICE_CPU).TypeConstraint<bfloat16>("T"),
    MaskedRelu<bfloat16>);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackMaskedRelu")
    .Input("x: T")
    .Input("bias: T")
    .Input("keys: int64")
    .Output("output: T")
    .Attr("T: {float, bfloat16} = DT_FLOAT")
    .Attr("first_word: int >= 0")
    .Attr("keep: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->input(0));
      return tensorflow::OkStatus();
    });
