// SIM, DIEN and DIN in tiles: forward pass, losses and backward pass of a few histories at a time.
//
// TensorFlow computes a model operation by operation over the whole batch, so each intermediate
// tensor (24 MB for one gate of 4,096 rows) goes to memory and comes back. Here one thread takes a
// tile of at most 16 histories from the rows of the tables to the gradients; what the forward pass
// leaves for the backward pass (about 1.5 MB) stays in the core's second-level cache, and nothing
// that grows with the batch is made but the gradients of the rows.
//
// Files, each to be held against the Python of the same name in models/:
//   vector.h              a register of floats and functions of it
//   products.h            small matrix products; in bfloat16 by products_bf16.h
//   memory.h, weights.h   what a thread works in; the variables, packed once a step
//   spans.h               which steps of a history are no padding; histories alike side by side
//   lookup.h              rows of tables, concatenated, and their gradients
//   recurrent.h activation_unit.h auxiliary.h search.h mlp.h    blocks: forward, backward
//   evolution.h, sim.h, dien.h, din.h                           what is made of them
//   level.cc              all of it for one kind of CPU (a level): compiled once for each
//   levels.cc             which one runs
// Each level's code is in a namespace of its own and includes no header of C++ but ours: a template
// of the standard library compiled for AVX-512 must not be the copy that the linker keeps.
//
// A tile's rows: candidate c of its history i is row ``c * T + i``, T histories to the tile, so
// that a step of the histories is broadcast over blocks of T rows. Widths are padded to 16 columns,
// with zeros in the weights, so that what the padding holds never counts.
//
// Bits depend on the batch alone: its tiles go in turn to chunks, as many as its size asks for, each
// chunk sums the gradients of its own tiles in order, and the chunks are added in order, whoever
// computed them.

#ifndef LOOKBACK_KERNELS_TILES_TILES_H_
#define LOOKBACK_KERNELS_TILES_TILES_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOKBACK_MOST_LAYERS = 8 };  // of one MLP

// What becomes D columns of an item, event or user: rows of a table, or vectors.
typedef struct {
  const float* rows;
  const int32_t* ids;  // which rows, in the table's range; null: the vectors, one after another
  float* gradients;    // [positions, D]; null in scoring
} LookbackPart;

typedef struct {
  const LookbackPart* parts;
  int count;
} LookbackParts;

typedef struct {
  const float* values;  // [rows, columns]
  int rows, columns;    // of a vector [n]: 1, n
  float* gradients;     // the same; null in scoring
} LookbackWeight;

typedef struct {
  const float* values;  // [B C, columns]; null: no dropout
  int columns;
} LookbackFactors;

enum { LOOKBACK_SIM, LOOKBACK_DIEN, LOOKBACK_DIN };

// A batch and a model; history_ops.cc says what the fields are.
typedef struct {
  int model, training;
  int64_t histories;                                     // B
  int candidates, long_events, short_events, width;      // C, L, S, D
  int k, hard, time_features, activation_unit;
  int auxiliary_layers, stage_one_layers, stage_two_layers;
  LookbackParts target, long_, short_, negative, user;   // their positions: [B, C] or [B, L],
  const uint8_t *long_mask, *short_mask;                 // [S, B], [B]
  const int32_t *target_category, *long_category;        // null unless hard
  const float* labels;
  float scales[3];
  LookbackFactors stage_one_dropout, stage_two_dropout;
  const LookbackWeight* weights;
  int weight_count;
  float* logits;
  double sums[3];
} LookbackStep;

typedef struct LookbackNet LookbackNet;

// The code for one kind of CPU and one precision of products.
typedef struct {
  const char* name;
  // Packs the weights. Null: `error` says what is wrong with them.
  LookbackNet* (*prepare)(LookbackStep* step, char* error, size_t size);
  int64_t (*pieces)(const LookbackNet* net);
  // Pieces [begin, end), in any thread, each once.
  void (*run)(const LookbackNet* net, int64_t begin, int64_t end);
  // Adds the pieces' gradients and sums up, unless there are none; frees everything.
  void (*finish)(LookbackNet* net, int succeeded);
} LookbackLevel;

// The best level of this CPU for products in float32 or bfloat16; null: there is none. The
// environment's LOOKBACK_CPU_LEVEL, if it is set, names the only ones that may be taken.
const LookbackLevel* lookback_level(int bfloat16);
const char* lookback_level_name(int bfloat16);

#ifdef __cplusplus
}
#endif

#endif  // LOOKBACK_KERNELS_TILES_TILES_H_
