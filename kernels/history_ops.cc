// The operations that run SIM, DIEN and DIN in tiles: what goes in and what comes out.
//
// A Step computes the losses, the logits and all gradients of a batch in one go; a Score computes
// the logits alone. Their kernels are in history_step_ops.cc, their arithmetic in tiles/.
//
// B histories, C candidates, L and S events of the long and the short sequence. An item (E wide), an
// event (E'), a negative (E') and a user (E_u) are concatenations of parts, each D wide, a multiple
// of 16. A part is looked up in one of `tables` by the next of `ids`, or comes as the next of
// `vectors`; the lists `target_parts`, `long_parts`, `short_parts`, `negative_parts` and
// `user_parts` say it of each part in its order: the number of a table, or -1 for vectors. An event
// begins with the parts of its item; its time gap, where there is one, is its last part.
//   ids              int32: target [B, C], long [B, L], short and negatives [S, B], user [B]
//   vectors          the same shapes and D at their end
//   long_mask        [B, L], short_mask [S, B]: which events exist
//   target_category  [B, C] and long_category [B, L], what hard search compares; empty where `hard`
//                    is false
//   labels           [B, C]
//   scales           [3], of the losses of the head, of stage one (gsu) and of the auxiliary net; a
//                    loss that the model lacks is 0
//   dropout          none, or a factor for each output of the MLPs, rows [B * C, width]: of stage
//                    one (SIM) and of the last MLP
//   weights          the model's own variables; their order is that of tiles/sim.h, dien.h, din.h
//   total            sum of scales * sums; all gradients are its own
//   sums             [3], of the terms of the losses: a label's cross entropy, or a valid step's
//                    auxiliary loss
//   logits           [B, C]
//   table_gradients  [ids of that table, D]: of each id's row, in the order of `ids`

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lookback {
namespace {

using tensorflow::Status;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// The shape [B, C] of the candidates, as far as it is known: of their first part.
Status Candidates(InferenceContext* context, ShapeHandle* shape) {
  std::vector<int> parts;
  TF_RETURN_IF_ERROR(context->GetAttr("target_parts", &parts));
  std::vector<ShapeHandle> ids, vectors;
  TF_RETURN_IF_ERROR(context->input("ids", &ids));
  TF_RETURN_IF_ERROR(context->input("vectors", &vectors));
  *shape = context->UnknownShapeOfRank(2);
  if (parts.empty()) return tensorflow::errors::InvalidArgument("Expected a part of the target");
  if (parts[0] >= 0 && !ids.empty()) return context->WithRank(ids[0], 2, shape);
  if (parts[0] < 0 && !vectors.empty()) {
    ShapeHandle first;
    TF_RETURN_IF_ERROR(context->WithRank(vectors[0], 3, &first));
    return context->Subshape(first, 0, 2, shape);
  }
  return tensorflow::OkStatus();
}

Status ShapesOfStep(InferenceContext* context) {
  ShapeHandle logits;
  TF_RETURN_IF_ERROR(Candidates(context, &logits));
  TF_RETURN_IF_ERROR(context->set_output("total", {context->Scalar()}));
  TF_RETURN_IF_ERROR(context->set_output("sums", {context->Vector(3)}));
  TF_RETURN_IF_ERROR(context->set_output("logits", {logits}));
  std::vector<ShapeHandle> tables, vectors, weights;
  TF_RETURN_IF_ERROR(context->input("tables", &tables));
  TF_RETURN_IF_ERROR(context->input("vectors", &vectors));
  TF_RETURN_IF_ERROR(context->input("weights", &weights));
  for (ShapeHandle& table : tables) table = context->UnknownShapeOfRank(2);
  TF_RETURN_IF_ERROR(context->set_output("weight_gradients", weights));
  TF_RETURN_IF_ERROR(context->set_output("table_gradients", tables));
  return context->set_output("vector_gradients", vectors);
}

Status ShapesOfScore(InferenceContext* context) {
  ShapeHandle logits;
  TF_RETURN_IF_ERROR(Candidates(context, &logits));
  return context->set_output("logits", {logits});
}

}  // namespace
}  // namespace lookback

#define LISTS                 \
  Attr("T: int >= 0")         \
      .Attr("I: int >= 0")    \
      .Attr("V: int >= 0")    \
      .Attr("W: int >= 1")    \
      .Attr("precision: {'float32', 'bfloat16'} = 'float32'")

#define STEP_OUTPUTS                         \
  Output("total: float")                     \
      .Output("sums: float")                 \
      .Output("logits: float")               \
      .Output("weight_gradients: W * float") \
      .Output("table_gradients: T * float")  \
      .Output("vector_gradients: V * float") \
      .Attr("M: int >= 0")                   \
      .SetIsStateful()                       \
      .SetShapeFn(lookback::ShapesOfStep)

#define SCORE_OUTPUTS Output("logits: float").SetIsStateful().SetShapeFn(lookback::ShapesOfScore)

REGISTER_OP("LookbackSimStep")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("long_mask: bool")
    .Input("short_mask: bool")
    .Input("target_category: int32")
    .Input("long_category: int32")
    .Input("labels: float")
    .Input("scales: float")
    .Input("dropout: M * float")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("long_parts: list(int) >= 1")
    .Attr("short_parts: list(int) >= 1")
    .Attr("negative_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("k: int >= 1")
    .Attr("hard: bool = false")
    .Attr("time_features: bool = false")
    .Attr("auxiliary_layers: int >= 1")
    .Attr("stage_one_layers: int >= 1")
    .Attr("stage_two_layers: int >= 1")
    .STEP_OUTPUTS;

REGISTER_OP("LookbackSimScore")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("long_mask: bool")
    .Input("short_mask: bool")
    .Input("target_category: int32")
    .Input("long_category: int32")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("long_parts: list(int) >= 1")
    .Attr("short_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("k: int >= 1")
    .Attr("hard: bool = false")
    .Attr("time_features: bool = false")
    .Attr("stage_two_layers: int >= 1")
    .SCORE_OUTPUTS;

REGISTER_OP("LookbackDienStep")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("short_mask: bool")
    .Input("labels: float")
    .Input("scales: float")
    .Input("dropout: M * float")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("short_parts: list(int) >= 1")
    .Attr("negative_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("auxiliary_layers: int >= 1")
    .Attr("stage_two_layers: int >= 1")
    .STEP_OUTPUTS;

REGISTER_OP("LookbackDienScore")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("short_mask: bool")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("short_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("stage_two_layers: int >= 1")
    .SCORE_OUTPUTS;

REGISTER_OP("LookbackDinStep")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("long_mask: bool")
    .Input("labels: float")
    .Input("scales: float")
    .Input("dropout: M * float")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("long_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("interaction: {'dot', 'activation_unit'}")
    .Attr("stage_two_layers: int >= 1")
    .STEP_OUTPUTS;

REGISTER_OP("LookbackDinScore")
    .Input("tables: T * resource")
    .Input("ids: I * int32")
    .Input("vectors: V * float")
    .Input("long_mask: bool")
    .Input("weights: W * float")
    .LISTS.Attr("target_parts: list(int) >= 1")
    .Attr("long_parts: list(int) >= 1")
    .Attr("user_parts: list(int)")
    .Attr("interaction: {'dot', 'activation_unit'}")
    .Attr("stage_two_layers: int >= 1")
    .SCORE_OUTPUTS;
