// Tables that operations read by handle.

#ifndef LOOKBACK_KERNELS_TABLES_H_
#define LOOKBACK_KERNELS_TABLES_H_

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cpu.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace lookback {

// The variables of the input `tables`, locked for reading: nobody updates a row of them meanwhile.
class LockedTables {
 public:
  tensorflow::Status Lock(OpKernelContext* context) {
    OpInputList handles;
    TF_RETURN_IF_ERROR(context->input_list("tables", &handles));
    std::vector<tensorflow::Var*> in_order;
    for (const Tensor& handle : handles) {
      tensorflow::core::RefCountPtr<tensorflow::Var> variable;
      TF_RETURN_IF_ERROR(tensorflow::LookupResource(
          context, handle.scalar<tensorflow::ResourceHandle>()(), &variable));
      in_order.push_back(variable.get());
      variables_.push_back(std::move(variable));
    }
    // In one order everywhere: who waits for one lock never holds one that comes after it.
    std::sort(in_order.begin(), in_order.end());
    in_order.erase(std::unique(in_order.begin(), in_order.end()), in_order.end());
    for (tensorflow::Var* variable : in_order) {
      locks_.push_back(std::make_unique<tensorflow::tf_shared_lock>(*variable->mu()));
    }
    for (const auto& variable : variables_) {
      const Tensor& table = *variable->tensor();
      if (!table.IsInitialized() || table.dtype() != tensorflow::DT_FLOAT || table.dims() != 2) {
        return InvalidArgument("Expected tables of float32 [rows, D], received ",
                               table.DebugString(0));
      }
    }
    return tensorflow::OkStatus();
  }

  int size() const { return variables_.size(); }
  const Tensor& operator[](int i) const { return *variables_[i]->tensor(); }

 private:
  std::vector<tensorflow::core::RefCountPtr<tensorflow::Var>> variables_;  // outlive the locks
  std::vector<std::unique_ptr<tensorflow::tf_shared_lock>> locks_;
};

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TABLES_H_
