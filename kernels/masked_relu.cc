// ReLU and dropout on CPUs: ``relu(x + b) * mask`` with a mask drawn by a counter-based generator.
//
// TensorFlow makes the mask first, word by word, octet by octet, unit by unit, as large as x, and
// then takes a pass for each of sum, ReLU and product. Here a sample's words are drawn where they
// are used, and x is read and written once.

#include <algorithm>
#include <cstdint>
#include <cstring>

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

// One sample. What is no number stays so, as in TensorFlow.
INLINE void MaskSample(const float* x, const float* bias, int width, uint64_t key,
                       const Mask& mask, float* to) {
  const Half zero = {};
  const int units_a_word = mask.keep == 0 ? 64 : 8;
  for (int begin = 0, number = mask.first; begin < width; begin += units_a_word, ++number) {
    uint64_t word = Mix(key + kWeyl * number);
    const int end = std::min(width, begin + units_a_word);
    for (int i = begin; i < end; i += kHalf, word >>= kHalf) {
      Integers kept;
      Keep(word, mask, &kept);
      if (i + kHalf <= end) {
        const Half sum = LoadHalf(x + i) + LoadHalf(bias + i);
        StoreHalf(to + i) = (sum < 0 ? zero : sum) * __builtin_convertvector(-kept, Half);
      } else {
        for (int j = i; j < end; ++j) {
          const float sum = x[j] + bias[j];
          to[j] = (sum < 0 ? 0 : sum) * -kept[j - i];
        }
      }
    }
  }
}

// Samples `begin` to `end`; each `together` of them have a bias of their own.
FOR_EACH_CPU void MaskSamples(const float* x, const float* bias, const int64_t* keys, int width,
                              int64_t together, const Mask& mask, int64_t begin, int64_t end,
                              float* to) {
  for (int64_t n = begin; n < end; ++n) {
    MaskSample(x + n * width, bias + n / together * width, width, keys[n], mask, to + n * width);
  }
}

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
    const float *from = x.flat<float>().data(), *added = bias.flat<float>().data();
    const auto of_keys = keys.flat<tensorflow::int64>();
    float* to = output->flat<float>().data();
    ForAll(context, samples, 2 * width + 20, [&](int64_t begin, int64_t end) {
      MaskSamples(from, added, reinterpret_cast<const int64_t*>(of_keys.data()), width, together,
                  mask_, begin, end, to);
    });
  }

 private:
  Mask mask_;
};

REGISTER_KERNEL_BUILDER(Name("LookbackMaskedRelu").Device(tensorflow::DEVICE_CPU), MaskedRelu);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackMaskedRelu")
    .Input("x: float")
    .Input("bias: float")
    .Input("keys: int64")
    .Output("output: float")
    .Attr("first_word: int >= 0")
    .Attr("keep: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->input(0));
      return tensorflow::OkStatus();
    });
