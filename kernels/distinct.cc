// Each id once, in the order in which ids come, and where each is among those: `tf.unique`, knowing
// how many rows the table has (numbering.h).

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu.h"
#include "numbering.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

template <typename Index>
class Distinct : public OpKernel {
 public:
  explicit Distinct(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("rows", &rows_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& indices = context->input(0);
    const int64_t count = indices.NumElements();
    OP_REQUIRES(context,
                TensorShapeUtils::IsVector(indices.shape()) &&
                    count <= std::numeric_limits<int32_t>::max(),
                InvalidArgument("Expected fewer than 2^31 ids [N], received ",
                                indices.shape().DebugString()));
    const Index* ids = indices.flat<Index>().data();
    OP_REQUIRES_OK(context, CheckIds(ids, count, rows_));
    Tensor *values = nullptr, *positions = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(1, indices.shape(), &positions));
    int32_t* numbers = positions->flat<int32_t>().data();
    std::vector<Index> found;
    Numbering<Index> numbering(rows_, count);
    for (int64_t n = 0; n < count; ++n) {
      if (n + kAhead < count) numbering.Prefetch(ids[n + kAhead]);
      numbers[n] = numbering.Of(ids[n], found.size());
      if (numbers[n] == static_cast<int64_t>(found.size())) found.push_back(ids[n]);
    }
    const TensorShape shape({static_cast<int64_t>(found.size())});
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &values));
    std::copy(found.begin(), found.end(), values->flat<Index>().data());
  }

 private:
  tensorflow::int64 rows_;
};

REGISTER_KERNEL_BUILDER(
    Name("LookbackDistinct").Device(tensorflow::DEVICE_CPU).TypeConstraint<int32_t>("T"),
    Distinct<int32_t>);
REGISTER_KERNEL_BUILDER(
    Name("LookbackDistinct").Device(tensorflow::DEVICE_CPU).TypeConstraint<tensorflow::int64>("T"),
    Distinct<tensorflow::int64>);

}  // namespace
}  // namespace lookback

REGISTER_OP("LookbackDistinct")
    .Input("ids: T")
    .Output("values: T")
    .Output("positions: int32")
    .Attr("T: {int32, int64}")
    .Attr("rows: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->Vector(context->UnknownDim()));
      context->set_output(1, context->input(0));
      return tensorflow::OkStatus();
    });
