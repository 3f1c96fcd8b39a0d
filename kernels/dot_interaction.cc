// The dot interaction of DLRM (Naumov et al. 2019, section 2) on CPUs, and its gradient.
//
// TensorFlow needs the vectors in one tensor, multiplies all pairs twice (V V^T is symmetric, and
// half of it is thrown away), and cuts the triangle out of the result. Here each sample's vectors
// are multiplied where they lie, while they are in the first-level cache.

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "dot_interaction.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

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
    const auto products = Products();
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
    const auto combine = Combine();
    ForAll(context, samples, 4 * pairs * width / kLanes + 1, [&](int64_t begin, int64_t end) {
      std::vector<const float*> rows(count);
      std::vector<float*> gradients(count);
      std::vector<float> weights(count * count, 0.0f);
      for (int64_t sample = begin; sample < end; ++sample) {
        const float* first = from + sample * (width + pairs);
        for (int i = 0; i < count; ++i) {
          rows[i] = data[i] + sample * width;
          gradients[i] = to[i] + sample * width;
        }
        SpreadPairs(first + width, count, weights.data());
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
