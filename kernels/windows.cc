// Batches out of resident histories on CPUs: windows of events, and random numbers for negatives.
//
// A window is a run of events that lie side by side, so it is copied, where TensorFlow computes the
// number of each event, gathers them one by one, and sets to zero those that are another user's.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "splitmix.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

class Windows : public OpKernel {
 public:
  explicit Windows(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("length", &length_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &begins = context->input(0), &positions = context->input(1);
    OpInputList columns;
    OpOutputList windows;
    OP_REQUIRES_OK(context, context->input_list("columns", &columns));
    OP_REQUIRES_OK(context, context->output_list("windows", &windows));
    OP_REQUIRES(context,
                TensorShapeUtils::IsVector(begins.shape()) && begins.shape() == positions.shape(),
                InvalidArgument("Expected begins [B] and positions [B], received ",
                                begins.shape().DebugString(), " and ",
                                positions.shape().DebugString()));
    const int64_t rows = begins.NumElements();
    const auto of_begins = begins.flat<tensorflow::int64>();
    const auto of_positions = positions.flat<tensorflow::int64>();
    int64_t last = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t begin = of_begins(row), position = of_positions(row);
      OP_REQUIRES(context, begin >= 0 && position >= 0,
                  InvalidArgument("Window ", row, " begins at event ", begin, " and ends ",
                                  position, " later: neither may be negative"));
      last = std::max(last, begin + position);
    }
    std::vector<Column> copied;
    for (int c = 0; c < columns.size(); ++c) {
      const Tensor& column = columns[c];
      OP_REQUIRES(context,
                  TensorShapeUtils::IsVector(column.shape()) && column.NumElements() >= last,
                  InvalidArgument("Expected columns of at least ", last,
                                  " events (the last window's end), received ",
                                  column.shape().DebugString()));
      const int64_t size = tensorflow::DataTypeSize(column.dtype());
      OP_REQUIRES(context, size > 0,
                  InvalidArgument("Expected numbers, received ",
                                  tensorflow::DataTypeString(column.dtype())));
      Tensor* window = nullptr;
      OP_REQUIRES_OK(context, windows.allocate(c, TensorShape({rows, length_}), &window));
      copied.push_back({column.tensor_data().data(),
                        const_cast<char*>(window->tensor_data().data()), size});
    }
    ForAll(context, rows, 4 * length_ * columns.size() + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t taken = std::min<int64_t>(of_positions(row), length_);
        const int64_t from = of_begins(row) + of_positions(row) - taken, padded = length_ - taken;
        for (const Column& column : copied) {
          char* to = column.to + row * length_ * column.size;
          std::memset(to, 0, padded * column.size);
          std::memcpy(to + padded * column.size, column.from + from * column.size,
                      taken * column.size);
        }
      }
    });
  }

 private:
  struct Column {
    const char* from;
    char* to;
    int64_t size;  // bytes of a value
  };
  int length_;
};

class DrawBelow : public OpKernel {
 public:
  explicit DrawBelow(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("width", &width_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &keys = context->input(0), &bound = context->input(1);
    const int64_t rows = keys.NumElements();
    OP_REQUIRES(context,
                TensorShapeUtils::IsVector(keys.shape()) &&
                    (bound.NumElements() == 1 || bound.shape() == TensorShape({rows, 1})),
                InvalidArgument("Expected keys [B] and one bound or bounds [B, 1], received ",
                                keys.shape().DebugString(), " and ",
                                bound.shape().DebugString()));
    Tensor* drawn = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({rows, width_}), &drawn));
    const auto of_keys = keys.flat<tensorflow::int64>(), bounds = bound.flat<tensorflow::int64>();
    const bool one = bound.NumElements() == 1;
    for (int64_t row = 0; row < rows; ++row) {
      OP_REQUIRES(context, bounds(one ? 0 : row) > 0,
                  InvalidArgument("Expected a bound above 0, received ", bounds(one ? 0 : row)));
    }
    auto* to = drawn->flat<tensorflow::int64>().data();
    ForAll(context, rows, 40 * width_ + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const uint64_t key = of_keys(row), below = bounds(one ? 0 : row);
        for (int column = 0; column < width_; ++column) {
          to[row * width_ + column] = (Mix(key + kWeyl * column) >> 1) % below;
        }
      }
    });
  }

 private:
  int width_;
};

REGISTER_KERNEL_BUILDER(Name("LookbackWindows").Device(tensorflow::DEVICE_CPU), Windows);
REGISTER_KERNEL_BUILDER(Name("LookbackDrawBelow").Device(tensorflow::DEVICE_CPU), DrawBelow);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackWindows")
    .Input("begins: int64")
    .Input("positions: int64")
    .Input("columns: types")
    .Output("windows: types")
    .Attr("types: list(type) >= 1")
    .Attr("length: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      int length;
      TF_RETURN_IF_ERROR(context->GetAttr("length", &length));
      tensorflow::shape_inference::ShapeHandle begins;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 1, &begins));
      for (int i = 0; i < context->num_outputs(); ++i) {
        context->set_output(i, context->Matrix(context->Dim(begins, 0), length));
      }
      return tensorflow::OkStatus();
    });

REGISTER_OP("LookbackDrawBelow")
    .Input("keys: int64")
    .Input("bound: int64")
    .Output("drawn: int64")
    .Attr("width: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      int width;
      TF_RETURN_IF_ERROR(context->GetAttr("width", &width));
      tensorflow::shape_inference::ShapeHandle keys;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 1, &keys));
      context->set_output(0, context->Matrix(context->Dim(keys, 0), width));
      return tensorflow::OkStatus();
    });
