// The kernels of history_ops.cc: they check what comes, lock the tables, and share the pieces of a
// batch among TensorFlow's threads. tiles/ does the rest.

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cpu.h"
#include "tables.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tiles/tiles.h"

namespace lookback {
namespace {

using tensorflow::Status;

// Whose parts there are, in the order in which the operations take them.
constexpr std::array<const char*, 5> kGroups = {"target", "long", "short", "negative", "user"};

// Refuses ids that are no rows of their table.
Status CheckIds(const char* group, int part, const Tensor& ids, int64_t rows) {
  const auto* at = ids.flat<int32_t>().data();
  const auto* end = at + ids.NumElements();
  const auto limit = static_cast<uint32_t>(std::min<int64_t>(rows, 0x80000000LL));
  bool all = true;  // without a branch for each, so that many are compared at once
  for (const auto* id = at; id < end; ++id) all &= static_cast<uint32_t>(*id) < limit;
  if (all) return tensorflow::OkStatus();
  const auto* wrong =
      std::find_if(at, end, [&](int32_t id) { return static_cast<uint32_t>(id) >= limit; });
  return InvalidArgument("Expected ids of ", group, " part ", part, " in [0, ", rows,
                         "), received ", *wrong);
}

Status CheckShape(const char* name, const TensorShape& shape, const TensorShape& expected) {
  if (shape == expected) return tensorflow::OkStatus();
  return InvalidArgument("Expected ", name, " of shape ", expected.DebugString(), ", received ",
                         shape.DebugString());
}

class HistoryOp : public OpKernel {
 public:
  explicit HistoryOp(OpKernelConstruction* construction) : OpKernel(construction) {
    const std::string& name = construction->def().op();
    sizes_.model = name.find("Sim") != std::string::npos    ? LOOKBACK_SIM
                   : name.find("Dien") != std::string::npos ? LOOKBACK_DIEN
                                                            : LOOKBACK_DIN;
    sizes_.training = name.find("Step") != std::string::npos;
    for (size_t group = 0; group < kGroups.size(); ++group) {
      const std::string parts = std::string(kGroups[group]) + "_parts";
      if (!construction->HasAttr(parts)) continue;
      OP_REQUIRES_OK(construction, construction->GetAttr(parts, &parts_[group]));
    }
    for (auto& [attribute, value] : {std::pair{"k", &sizes_.k},
                                     {"auxiliary_layers", &sizes_.auxiliary_layers},
                                     {"stage_one_layers", &sizes_.stage_one_layers},
                                     {"stage_two_layers", &sizes_.stage_two_layers}}) {
      if (!construction->HasAttr(attribute)) continue;
      OP_REQUIRES_OK(construction, construction->GetAttr(attribute, value));
      OP_REQUIRES(construction, value == &sizes_.k || *value <= LOOKBACK_MOST_LAYERS,
                  InvalidArgument("Expected ", attribute, " up to ", LOOKBACK_MOST_LAYERS,
                                  ", received ", *value));
    }
    for (auto& [attribute, value] :
         {std::pair{"hard", &sizes_.hard}, {"time_features", &sizes_.time_features}}) {
      bool set = false;
      if (!construction->HasAttr(attribute)) continue;
      OP_REQUIRES_OK(construction, construction->GetAttr(attribute, &set));
      *value = set;
    }
    std::string precision, interaction = "dot";
    OP_REQUIRES_OK(construction, construction->GetAttr("precision", &precision));
    if (construction->HasAttr("interaction")) {
      OP_REQUIRES_OK(construction, construction->GetAttr("interaction", &interaction));
    }
    bfloat16_ = precision == "bfloat16";
    sizes_.activation_unit = interaction != "dot";
  }

  void Compute(OpKernelContext* context) override {
    const LookbackLevel* level = lookback_level(bfloat16_);
    OP_REQUIRES(context, level != nullptr,
                tensorflow::errors::Unimplemented("Expected a CPU with AVX2 and FMA or, for "
                                                  "bfloat16, with AVX512_BF16 or AMX"));
    Batch batch = {};
    batch.step = sizes_;
    OP_REQUIRES_OK(context, Read(context, &batch));
    char error[256];
    LookbackNet* net = level->prepare(&batch.step, error, sizeof(error));
    OP_REQUIRES(context, net != nullptr, InvalidArgument(error));
    constexpr int64_t kCost = 1000000;  // of a piece, in cycles, or more: worth a thread
    ForAll(context, level->pieces(net), kCost,
           [&](int64_t begin, int64_t end) { level->run(net, begin, end); });
    level->finish(net, true);
    if (!sizes_.training) return;
    double total = 0;
    for (int i = 0; i < 3; ++i) {
      batch.sums[i] = static_cast<float>(batch.step.sums[i]);
      total += batch.step.scales[i] * batch.step.sums[i];
    }
    *batch.total = static_cast<float>(total);
  }

 private:
  struct Batch {
    LookbackStep step;
    LockedTables tables;
    std::vector<LookbackPart> parts[kGroups.size()];
    std::vector<LookbackWeight> weights;
    float *total, *sums;
  };

  // B, C, L, S and D, from the inputs that have them first.
  Status ReadSizes(OpKernelContext* context, const OpInputList& ids, const OpInputList& vectors,
                   Batch* batch) const {
    LookbackStep& step = batch->step;
    const bool looked_up = parts_[0][0] >= 0;
    const OpInputList& from = looked_up ? ids : vectors;
    if (from.size() == 0 || from[0].dims() != (looked_up ? 2 : 3)) {
      return InvalidArgument("Expected first the target's ids [B, C] or vectors [B, C, D]");
    }
    step.histories = from[0].dim_size(0);
    step.candidates = from[0].dim_size(1);
    step.width = looked_up && batch->tables.size() > 0 ? batch->tables[0].dim_size(1)
                 : vectors.size() > 0                  ? vectors[0].dim_size(vectors[0].dims() - 1)
                                                       : 0;
    if (step.width <= 0 || step.width % kLanes) {
      return InvalidArgument("Expected parts whose width is a multiple of ", kLanes, ", received ",
                             step.width);
    }
    const int items = parts_[0].size(), events = parts_[step.model == LOOKBACK_DIEN ? 2 : 1].size();
    if (step.model != LOOKBACK_DIEN && events < items + step.time_features) {
      return InvalidArgument("Expected events of at least ", items + step.time_features,
                             " parts, received ", events);
    }
    if (step.training && parts_[3].size() != parts_[2].size()) {
      return InvalidArgument("Expected negatives of as many parts as events, ", parts_[2].size(),
                             ", received ", parts_[3].size());
    }
    const Tensor* mask = nullptr;
    if (step.model != LOOKBACK_DIEN) {
      TF_RETURN_IF_ERROR(context->input("long_mask", &mask));
      step.long_events = mask->dims() == 2 ? mask->dim_size(1) : 0;
      TF_RETURN_IF_ERROR(CheckShape("long_mask", mask->shape(), Shape(step, 1)));
      step.long_mask = reinterpret_cast<const uint8_t*>(mask->flat<bool>().data());
    }
    if (step.model != LOOKBACK_DIN) {
      TF_RETURN_IF_ERROR(context->input("short_mask", &mask));
      step.short_events = mask->dims() == 2 ? mask->dim_size(0) : 0;
      TF_RETURN_IF_ERROR(CheckShape("short_mask", mask->shape(), Shape(step, 2)));
      step.short_mask = reinterpret_cast<const uint8_t*>(mask->flat<bool>().data());
    }
    return tensorflow::OkStatus();
  }

  // Of the ids of a group's part.
  static TensorShape Shape(const LookbackStep& step, int group) {
    switch (group) {
      case 0: return TensorShape({step.histories, step.candidates});
      case 1: return TensorShape({step.histories, step.long_events});
      case 4: return TensorShape({step.histories});
      default: return TensorShape({step.short_events, step.histories});
    }
  }

  // Where the parts' rows are, and their gradients go.
  Status ReadParts(OpKernelContext* context, const OpInputList& ids, const OpInputList& vectors,
                   Batch* batch) const {
    LookbackStep& step = batch->step;
    int next_ids = 0, next_vectors = 0;
    std::vector<int64_t> slots(batch->tables.size(), 0);
    std::vector<std::pair<LookbackPart*, int>> looked_up;  // and its table
    std::vector<LookbackPart*> given;
    LookbackParts* groups[] = {&step.target, &step.long_, &step.short_, &step.negative, &step.user};
    for (size_t group = 0; group < kGroups.size(); ++group) {
      std::vector<LookbackPart>& parts = batch->parts[group];
      parts.resize(parts_[group].size());
      *groups[group] = {parts.data(), static_cast<int>(parts.size())};
      TensorShape shape = Shape(step, group);
      for (size_t p = 0; p < parts.size(); ++p) {
        const int table = parts_[group][p];
        if (table < -1 || table >= batch->tables.size() ||
            (table < 0 ? next_vectors >= vectors.size() : next_ids >= ids.size())) {
          return InvalidArgument("Expected ids and a table, or vectors, for ", kGroups[group],
                                 " part ", p);
        }
        if (table >= 0) {
          const Tensor& rows = batch->tables[table];
          const Tensor& own = ids[next_ids++];
          TF_RETURN_IF_ERROR(CheckShape("ids", own.shape(), shape));
          TF_RETURN_IF_ERROR(
              CheckShape("a table", rows.shape(), TensorShape({rows.dim_size(0), step.width})));
          TF_RETURN_IF_ERROR(CheckIds(kGroups[group], p, own, rows.dim_size(0)));
          parts[p] = {rows.flat<float>().data(), own.flat<int32_t>().data(), nullptr};
          looked_up.emplace_back(&parts[p], table);
          slots[table] += own.NumElements();
        } else {
          const Tensor& own = vectors[next_vectors++];
          TensorShape whole = shape;
          whole.AddDim(step.width);
          TF_RETURN_IF_ERROR(CheckShape("vectors", own.shape(), whole));
          parts[p] = {own.flat<float>().data(), nullptr, nullptr};
          given.push_back(&parts[p]);
        }
      }
    }
    if (next_ids != ids.size() || next_vectors != vectors.size()) {
      return InvalidArgument("Expected ", next_ids, " ids and ", next_vectors,
                             " vectors, received ", ids.size(), " and ", vectors.size());
    }
    if (!step.training) return tensorflow::OkStatus();
    OpOutputList of_tables, of_vectors;
    TF_RETURN_IF_ERROR(context->output_list("table_gradients", &of_tables));
    TF_RETURN_IF_ERROR(context->output_list("vector_gradients", &of_vectors));
    std::vector<float*> next(slots.size());
    Tensor* output = nullptr;
    for (size_t t = 0; t < slots.size(); ++t) {
      TF_RETURN_IF_ERROR(of_tables.allocate(t, TensorShape({slots[t], step.width}), &output));
      next[t] = output->flat<float>().data();
    }
    for (size_t i = 0; i < looked_up.size(); ++i) {
      auto& [part, table] = looked_up[i];
      part->gradients = next[table];
      next[table] += ids[i].NumElements() * step.width;
    }
    for (size_t i = 0; i < given.size(); ++i) {
      TF_RETURN_IF_ERROR(of_vectors.allocate(i, vectors[i].shape(), &output));
      given[i]->gradients = output->flat<float>().data();
    }
    return tensorflow::OkStatus();
  }

  Status ReadWeights(OpKernelContext* context, Batch* batch) const {
    OpInputList weights;
    OpOutputList gradients;
    TF_RETURN_IF_ERROR(context->input_list("weights", &weights));
    if (sizes_.training) {
      TF_RETURN_IF_ERROR(context->output_list("weight_gradients", &gradients));
    }
    for (int i = 0; i < weights.size(); ++i) {
      const Tensor& weight = weights[i];
      if (weight.dims() < 1 || weight.dims() > 2) {
        return InvalidArgument("Expected weight ", i, " of one or two dimensions, received ",
                               weight.shape().DebugString());
      }
      const int columns = weight.dim_size(weight.dims() - 1);
      Tensor* output = nullptr;
      if (sizes_.training) TF_RETURN_IF_ERROR(gradients.allocate(i, weight.shape(), &output));
      batch->weights.push_back({weight.flat<float>().data(),
                                weight.dims() == 2 ? static_cast<int>(weight.dim_size(0)) : 1,
                                columns,
                                output == nullptr ? nullptr : output->flat<float>().data()});
    }
    batch->step.weights = batch->weights.data();
    batch->step.weight_count = weights.size();
    return tensorflow::OkStatus();
  }

  // What there is in training alone.
  Status ReadLabels(OpKernelContext* context, Batch* batch) const {
    LookbackStep& step = batch->step;
    const Tensor *labels = nullptr, *scales = nullptr;
    OpInputList dropout;
    TF_RETURN_IF_ERROR(context->input("labels", &labels));
    TF_RETURN_IF_ERROR(context->input("scales", &scales));
    TF_RETURN_IF_ERROR(context->input_list("dropout", &dropout));
    TF_RETURN_IF_ERROR(CheckShape("labels", labels->shape(), Shape(step, 0)));
    TF_RETURN_IF_ERROR(CheckShape("scales", scales->shape(), TensorShape({3})));
    step.labels = labels->flat<float>().data();
    std::copy_n(scales->flat<float>().data(), 3, step.scales);
    std::vector<LookbackFactors*> factors = {&step.stage_two_dropout};
    if (step.model == LOOKBACK_SIM) factors.insert(factors.begin(), &step.stage_one_dropout);
    if (dropout.size() != 0 && dropout.size() != static_cast<int>(factors.size())) {
      return InvalidArgument("Expected dropout of none or ", factors.size(), " MLPs, received ",
                             dropout.size());
    }
    const int64_t rows = step.histories * step.candidates;
    for (int i = 0; i < dropout.size(); ++i) {
      const int columns = dropout[i].dims() == 2 ? dropout[i].dim_size(1) : 0;
      TF_RETURN_IF_ERROR(
          CheckShape("dropout", dropout[i].shape(), TensorShape({rows, columns})));
      *factors[i] = {dropout[i].flat<float>().data(), columns};
    }
    Tensor *total = nullptr, *sums = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output("total", TensorShape({}), &total));
    TF_RETURN_IF_ERROR(context->allocate_output("sums", TensorShape({3}), &sums));
    batch->total = total->flat<float>().data();
    batch->sums = sums->flat<float>().data();
    return tensorflow::OkStatus();
  }

  Status Read(OpKernelContext* context, Batch* batch) const {
    LookbackStep& step = batch->step;
    OpInputList ids, vectors;
    TF_RETURN_IF_ERROR(batch->tables.Lock(context));
    TF_RETURN_IF_ERROR(context->input_list("ids", &ids));
    TF_RETURN_IF_ERROR(context->input_list("vectors", &vectors));
    TF_RETURN_IF_ERROR(ReadSizes(context, ids, vectors, batch));
    TF_RETURN_IF_ERROR(ReadParts(context, ids, vectors, batch));
    TF_RETURN_IF_ERROR(ReadWeights(context, batch));
    if (step.hard) {
      const Tensor *targets = nullptr, *events = nullptr;
      TF_RETURN_IF_ERROR(context->input("target_category", &targets));
      TF_RETURN_IF_ERROR(context->input("long_category", &events));
      TF_RETURN_IF_ERROR(CheckShape("target_category", targets->shape(), Shape(step, 0)));
      TF_RETURN_IF_ERROR(CheckShape("long_category", events->shape(), Shape(step, 1)));
      step.target_category = targets->flat<int32_t>().data();
      step.long_category = events->flat<int32_t>().data();
    }
    if (step.training) TF_RETURN_IF_ERROR(ReadLabels(context, batch));
    Tensor* logits = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output("logits", Shape(step, 0), &logits));
    step.logits = logits->flat<float>().data();
    return tensorflow::OkStatus();
  }

  LookbackStep sizes_ = {};
  std::vector<int> parts_[kGroups.size()];
  bool bfloat16_ = false;
};

#define REGISTER(name) \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU), HistoryOp)

REGISTER("LookbackSimStep");
REGISTER("LookbackSimScore");
REGISTER("LookbackDienStep");
REGISTER("LookbackDienScore");
REGISTER("LookbackDinStep");
REGISTER("LookbackDinScore");

#undef REGISTER

}  // namespace
}  // namespace lookback
