// The dot interaction of DLRM (Naumov et al. 2019, section 2) on CPUs, and its gradient.
//
// TensorFlow needs the vectors in one tensor, multiplies all pairs twice (V V^T is symmetric, and
// half of it is thrown away), and cuts the triangle out of the result. Here each sample's vectors
// are multiplied where they lie, while they are in the first-level cache.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::TensorShapeUtils;
using tensorflow::errors::InvalidArgument;

constexpr int kBlock = 4;  // rows and columns whose products are summed in registers together

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE
#endif
#endif

// Registers of AVX-512, and of AVX2. Their alignment is their size: templates and `auto` would
// forget another. `At` reads and writes one wherever it lies.
typedef float Vector16 __attribute__((vector_size(4 * kLanes)));
typedef float Vector8 __attribute__((vector_size(4 * kHalf)));
struct Wide {
  typedef Vector16 Vector;
  static constexpr int kWidth = kLanes;
  static INLINE const Lanes& At(const float* from) { return Load(from); }
  static INLINE Lanes& At(float* to) { return Store(to); }
};
struct Narrow {
  typedef Vector8 Vector;
  static constexpr int kWidth = kHalf;
  static INLINE const Half& At(const float* from) { return LoadHalf(from); }
  static INLINE Half& At(float* to) { return StoreHalf(to); }
};

#ifdef HAS_SHUFFLE
// Sums of neighbours at a distance: of `a` where that bit of the lane's number is 0, else of `b`.
#define ADD_PAIRS(a, b, ...) \
  (__builtin_shufflevector(a, b, __VA_ARGS__))
INLINE void AddPairs1(const Vector16& a, const Vector16& b, Vector16* sum) {
  *sum = ADD_PAIRS(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         ADD_PAIRS(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
INLINE void AddPairs2(const Vector16& a, const Vector16& b, Vector16* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         ADD_PAIRS(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
INLINE void AddPairs4(const Vector16& a, const Vector16& b, Vector16* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
         ADD_PAIRS(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}
INLINE void AddPairs8(const Vector16& a, const Vector16& b, Vector16* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         ADD_PAIRS(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE void AddPairs1(const Vector8& a, const Vector8& b, Vector8* sum) {
  *sum = ADD_PAIRS(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + ADD_PAIRS(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
}
INLINE void AddPairs2(const Vector8& a, const Vector8& b, Vector8* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + ADD_PAIRS(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
INLINE void AddPairs4(const Vector8& a, const Vector8& b, Vector8* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + ADD_PAIRS(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif

// The sums over the lanes of each of 16 registers.
template <typename Of>
INLINE void SumLanes(typename Of::Vector* v, float* sums) {
#ifdef HAS_SHUFFLE
  for (int i = 0; i < 8; ++i) AddPairs1(v[2 * i], v[2 * i + 1], &v[i]);
  for (int i = 0; i < 4; ++i) AddPairs2(v[2 * i], v[2 * i + 1], &v[i]);
  for (int i = 0; i < 2; ++i) AddPairs4(v[2 * i], v[2 * i + 1], &v[i]);
  if constexpr (Of::kWidth == kLanes) {
    AddPairs8(v[0], v[1], &v[0]);
    Of::At(sums) = v[0];
  } else {
    for (int i = 0; i < 2; ++i) Of::At(sums + i * kHalf) = v[i];
  }
#else
  for (int i = 0; i < kBlock * kBlock; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < Of::kWidth; ++lane) sums[i] += v[i][lane];
  }
#endif
}

// The products of all pairs of `count` rows of `width` floats, a multiple of kLanes: the lower
// triangle without its diagonal, row by row.
template <typename Of>
INLINE void ProductsBy(const float* const* rows, int count, int width, float* triangle) {
  for (int i0 = 0; i0 < count; i0 += kBlock) {
    const float* left[kBlock];
    for (int a = 0; a < kBlock; ++a) left[a] = rows[std::min(i0 + a, count - 1)];
    for (int j0 = 0; j0 <= i0; j0 += kBlock) {
      const float* right[kBlock];
      for (int b = 0; b < kBlock; ++b) right[b] = rows[std::min(j0 + b, count - 1)];
      typename Of::Vector products[kBlock * kBlock] = {};
      for (int k = 0; k < width; k += Of::kWidth) {
        for (int a = 0; a < kBlock; ++a) {
          for (int b = 0; b < kBlock; ++b) {
            products[a * kBlock + b] += Of::At(left[a] + k) * Of::At(right[b] + k);
          }
        }
      }
      float sums[kBlock * kBlock];
      SumLanes<Of>(products, sums);
      for (int a = 0; a < kBlock && i0 + a < count; ++a) {
        const int i = i0 + a, taken = std::min(kBlock, i - j0);  // j < i
        if (taken <= 0) continue;
        std::memcpy(triangle + i * (i - 1) / 2 + j0, sums + a * kBlock, taken * sizeof(float));
      }
    }
  }
}

// The gradients of `count` rows: ``sum_j weights[i][j] rows[j]``; weights ``[count, count]`` are
// symmetric, with zeros on the diagonal. To row 0, `first` is added.
template <typename Of>
INLINE void CombineBy(const float* const* rows, int count, int width, const float* weights,
                      const float* first, float* const* gradients) {
  for (int i0 = 0; i0 < count; i0 += kBlock) {
    const float* of[kBlock];
    for (int a = 0; a < kBlock; ++a) of[a] = weights + std::min(i0 + a, count - 1) * count;
    int k = 0;
    for (; k + 2 * Of::kWidth <= width; k += 2 * Of::kWidth) {
      typename Of::Vector sums[kBlock][2] = {};
      if (i0 == 0) {
        sums[0][0] = Of::At(first + k);
        sums[0][1] = Of::At(first + k + Of::kWidth);
      }
      for (int j = 0; j < count; ++j) {
        const typename Of::Vector one = Of::At(rows[j] + k), two = Of::At(rows[j] + k + Of::kWidth);
        for (int a = 0; a < kBlock; ++a) {
          sums[a][0] += of[a][j] * one;
          sums[a][1] += of[a][j] * two;
        }
      }
      for (int a = 0; a < kBlock && i0 + a < count; ++a) {
        Of::At(gradients[i0 + a] + k) = sums[a][0];
        Of::At(gradients[i0 + a] + k + Of::kWidth) = sums[a][1];
      }
    }
    for (; k < width; k += Of::kWidth) {
      typename Of::Vector sums[kBlock] = {};
      if (i0 == 0) sums[0] = Of::At(first + k);
      for (int j = 0; j < count; ++j) {
        for (int a = 0; a < kBlock; ++a) sums[a] += of[a][j] * Of::At(rows[j] + k);
      }
      for (int a = 0; a < kBlock && i0 + a < count; ++a) Of::At(gradients[i0 + a] + k) = sums[a];
    }
  }
}

FOR_AVX512 void WideProducts(const float* const* rows, int count, int width, float* triangle) {
  ProductsBy<Wide>(rows, count, width, triangle);
}
FOR_EACH_CPU void NarrowProducts(const float* const* rows, int count, int width, float* triangle) {
  ProductsBy<Narrow>(rows, count, width, triangle);
}
FOR_AVX512 void WideCombine(const float* const* rows, int count, int width, const float* weights,
                            const float* first, float* const* gradients) {
  CombineBy<Wide>(rows, count, width, weights, first, gradients);
}
FOR_EACH_CPU void NarrowCombine(const float* const* rows, int count, int width,
                                const float* weights, const float* first,
                                float* const* gradients) {
  CombineBy<Narrow>(rows, count, width, weights, first, gradients);
}

// Checks that all inputs are [B, D] with D a multiple of kLanes; gives their data.
bool Checked(OpKernelContext* context, const OpInputList& inputs,
             std::vector<const float*>* data) {
  for (const Tensor& input : inputs) {
    if (!TensorShapeUtils::IsMatrix(input.shape()) || input.shape() != inputs[0].shape() ||
        input.dim_size(1) % kLanes) {
      context->CtxFailure(InvalidArgument("Expected inputs [B, D] of one shape, D a multiple of ",
                                          kLanes, "; received ", input.shape().DebugString(),
                                          " beside ", inputs[0].shape().DebugString()));
      return false;
    }
    data->push_back(input.flat<float>().data());
  }
  return true;
}

class DotInteraction : public OpKernel {
 public:
  explicit DotInteraction(OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(OpKernelContext* context) override {
    OpInputList inputs;
    OP_REQUIRES_OK(context, context->input_list("inputs", &inputs));
    std::vector<const float*> data;
    if (!Checked(context, inputs, &data)) return;
    const int count = inputs.size(), width = inputs[0].dim_size(1);
    const int64_t samples = inputs[0].dim_size(0), pairs = count * (count - 1) / 2;
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({samples, width + pairs}),
                                                     &output));
    float* to = output->flat<float>().data();
    const auto products = HasAvx512() ? WideProducts : NarrowProducts;
    ForAll(context, samples, 2 * pairs * width / kLanes + 1, [&](int64_t begin, int64_t end) {
      std::vector<const float*> rows(count);
      for (int64_t sample = begin; sample < end; ++sample) {
        for (int i = 0; i < count; ++i) rows[i] = data[i] + sample * width;
        float* result = to + sample * (width + pairs);
        std::memcpy(result, rows[0], width * sizeof(float));
        products(rows.data(), count, width, result + width);
      }
    });
  }
};

class DotInteractionGrad : public OpKernel {
 public:
  explicit DotInteractionGrad(OpKernelConstruction* construction) : OpKernel(construction) {}

  void Compute(OpKernelContext* context) override {
    OpInputList inputs;
    OpOutputList outputs;
    OP_REQUIRES_OK(context, context->input_list("inputs", &inputs));
    OP_REQUIRES_OK(context, context->output_list("gradients", &outputs));
    const Tensor& upstream = context->input(0);
    std::vector<const float*> data;
    if (!Checked(context, inputs, &data)) return;
    const int count = inputs.size(), width = inputs[0].dim_size(1);
    const int64_t samples = inputs[0].dim_size(0), pairs = count * (count - 1) / 2;
    OP_REQUIRES(context, upstream.shape() == TensorShape({samples, width + pairs}),
                InvalidArgument("Expected an upstream gradient [", samples, ", ", width + pairs,
                                "], received ", upstream.shape().DebugString()));
    std::vector<float*> to(count);
    for (int i = 0; i < count; ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, outputs.allocate(i, inputs[i].shape(), &output));
      to[i] = output->flat<float>().data();
    }
    const float* from = upstream.flat<float>().data();
    const auto combine = HasAvx512() ? WideCombine : NarrowCombine;
    ForAll(context, samples, 4 * pairs * width / kLanes + 1, [&](int64_t begin, int64_t end) {
      std::vector<const float*> rows(count);
      std::vector<float*> gradients(count);
      std::vector<float> weights(count * count, 0.0f);
      for (int64_t sample = begin; sample < end; ++sample) {
        const float* first = from + sample * (width + pairs);
        const float* pair = first + width;
        for (int i = 0; i < count; ++i) {
          rows[i] = data[i] + sample * width;
          gradients[i] = to[i] + sample * width;
          for (int j = 0; j < i; ++j) weights[i * count + j] = weights[j * count + i] = *pair++;
        }
        combine(rows.data(), count, width, weights.data(), first, gradients.data());
      }
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("LookbackDotInteraction").Device(tensorflow::DEVICE_CPU),
                        DotInteraction);
REGISTER_KERNEL_BUILDER(Name("LookbackDotInteractionGrad").Device(tensorflow::DEVICE_CPU),
                        DotInteractionGrad);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackDotInteraction")
    .Input("inputs: N * float")
    .Output("output: float")
    .Attr("N: int >= 1")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      const int count = context->num_inputs();
      tensorflow::shape_inference::ShapeHandle input;
      tensorflow::shape_inference::DimensionHandle width;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 2, &input));
      TF_RETURN_IF_ERROR(context->Add(context->Dim(input, 1), count * (count - 1) / 2, &width));
      context->set_output(0, context->Matrix(context->Dim(input, 0), width));
      return tensorflow::OkStatus();
    });

REGISTER_OP("LookbackDotInteractionGrad")
    .Input("upstream: float")
    .Input("inputs: N * float")
    .Output("gradients: N * float")
    .Attr("N: int >= 1")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      for (int i = 0; i < context->num_outputs(); ++i) {
        context->set_output(i, context->input(i + 1));
      }
      return tensorflow::OkStatus();
    });
