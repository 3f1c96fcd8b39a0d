// A model's variables, packed once a step, and where a chunk sums their gradients up.

#ifndef LOOKBACK_KERNELS_TILES_WEIGHTS_H_
#define LOOKBACK_KERNELS_TILES_WEIGHTS_H_

#include "products.h"
#include "tiles.h"

namespace lookback {
namespace {

constexpr int kMostLayers = LOOKBACK_MOST_LAYERS;
constexpr int kMostWeights = 128;  // of a model

// A matrix of a layer, or some rows of it; gradients [rows, columns] at `gradient` of a chunk's.
struct Kernel {
  Matrix forward, backward;  // the second is the transpose
  int64_t gradient;
};

// A bias, a slope, or a layer of one output; the padding is zero.
struct Vector {
  const float* values;
  int columns;
  int64_t gradient;
};

// A variable [rows, columns], padded, and its gradient's place in a chunk's.
struct Variable {
  int rows, columns, padded_rows, padded_columns;
  const float* values;  // [padded_rows, padded_columns]; the model's own, if nothing is padded
  int64_t gradient;
  int quarter;  // of an activation unit's kernel, the rows of one of its four parts; else 0
};

// Takes the weights one after another, as a model's constructor asks for them.
class Packer {
 public:
  Packer(const LookbackStep& step, Arena* arena, char* error, size_t size)
      : step_(step), arena_(arena), error_(error), error_size_(size) {
    error_[0] = '\0';
  }

  const LookbackStep& step() const { return step_; }
  int64_t gradients() const { return gradients_; }
  bool failed() const { return error_[0] != '\0'; }

  // Whether no weight is left and none was missing or of another shape.
  bool Done() {
    if (!failed() && taken_ != step_.weight_count) {
      snprintf(error_, error_size_, "Expected %d weights, received %d", taken_, step_.weight_count);
    }
    return !failed();
  }

  // The next variable; columns = 0: any number of them.
  Variable Next(int rows, int columns, bool vector = false) {
    static const float kZero = 0.0f;
    LookbackWeight weight = {&kZero, 1, 1, nullptr};  // in place of one that is missing
    if (taken_ < step_.weight_count && taken_ < kMostWeights) {
      weight = step_.weights[taken_];
      if (!failed() && (weight.rows != rows || (columns > 0 && weight.columns != columns))) {
        snprintf(error_, error_size_, "Expected weight %d to be [%d, %d], received [%d, %d]",
                 taken_, rows, columns > 0 ? columns : weight.columns, weight.rows,
                 weight.columns);
      }
    } else if (!failed()) {
      snprintf(error_, error_size_, "Expected more than %d weights, and at most %d", taken_,
               kMostWeights);
    }
    Variable next = {weight.rows, weight.columns, vector ? 1 : static_cast<int>(Up(rows, 16)),
                     static_cast<int>(Up(weight.columns, 16)), nullptr, gradients_, 0};
    if (failed()) return next;
    const int64_t size = static_cast<int64_t>(next.padded_rows) * next.padded_columns;
    next.values = weight.values;
    if (next.padded_rows != next.rows || next.padded_columns != next.columns) {
      float* values = arena_->Zeros(size);
      for (int r = 0; r < next.rows; ++r) {
        memcpy(values + r * next.padded_columns, weight.values + r * next.columns,
               next.columns * sizeof(float));
      }
      next.values = values;
    }
    gradients_ += size;
    variables_[taken_++] = next;
    return next;
  }

  Kernel NextKernel(int rows, int columns = 0) {
    const Variable whole = Next(rows, columns);
    return Rows(whole, 0, whole.padded_rows);
  }
  Vector NextVector(int columns) {
    const Variable whole = Next(1, columns, true);
    return {whole.values, whole.padded_columns, whole.gradient};
  }
  // A layer of one output, [columns, 1].
  Vector NextColumn(int rows) {
    const Variable whole = Next(rows, 1);  // padded: a row of 16 for each
    if (failed()) return {};
    float* values = arena_->Zeros(whole.padded_rows);
    for (int r = 0; r < whole.rows; ++r) values[r] = whole.values[r * whole.padded_columns];
    variables_[taken_ - 1].padded_columns = 1;
    gradients_ = whole.gradient + whole.padded_rows;
    return {values, whole.padded_rows, whole.gradient};
  }

  void CheckDropout(const LookbackFactors& dropout, int columns) {
    if (failed() || dropout.values == nullptr || dropout.columns == columns) return;
    snprintf(error_, error_size_, "Expected dropout of %d columns, received %d", columns,
             dropout.columns);
  }

  int last_columns() const { return taken_ > 0 ? variables_[taken_ - 1].columns : 0; }

  // Rows `first` to `first + rows` of a variable.
  Kernel Rows(const Variable& whole, int first, int rows) {
    if (failed()) return {};
    return Pack(whole, first, whole.values + int64_t{first} * whole.padded_columns, rows);
  }
  // The kernel of an activation unit, [4 width, columns], as its three sums are multiplied: the
  // item's part and the difference's, the step's part less the difference's, the product's part.
  void Quarters(const Variable& whole, int width, Kernel* item, Kernel* step, Kernel* product) {
    if (failed()) return;
    const int64_t size = int64_t{width} * whole.padded_columns;
    const float* difference = whole.values + 2 * size;
    float *sum = arena_->Floats(size), *rest = arena_->Floats(size);
    for (int64_t i = 0; i < size; ++i) {
      sum[i] = whole.values[i] + difference[i];
      rest[i] = whole.values[size + i] - difference[i];
    }
    *item = Pack(whole, 0, sum, width);
    *step = Pack(whole, width, rest, width);
    *product = Rows(whole, 3 * width, width);
    variables_[taken_ - 1].quarter = width;
  }

  // Adds the chunks' gradients [chunks, gradients] up, in order, into the model's layout.
  void Unpack(float* chunks, int64_t count) const {
    for (int64_t c = 1; c < count; ++c) {
      for (int64_t i = 0; i < gradients_; ++i) chunks[i] += chunks[c * gradients_ + i];
    }
    for (int w = 0; w < step_.weight_count; ++w) {
      const Variable& variable = variables_[w];
      float* sums = chunks + variable.gradient;
      const int64_t quarter = int64_t{variable.quarter} * variable.padded_columns;
      for (int64_t i = 0; i < quarter; ++i) sums[2 * quarter + i] = sums[i] - sums[quarter + i];
      for (int r = 0; r < variable.rows; ++r) {
        memcpy(step_.weights[w].gradients + int64_t{r} * variable.columns,
               sums + int64_t{r} * variable.padded_columns, variable.columns * sizeof(float));
      }
    }
  }

 private:
  Kernel Pack(const Variable& whole, int first, const float* values, int rows) {
    const int columns = whole.padded_columns;
    Kernel kernel = {};
    kernel.gradient = whole.gradient + int64_t{first} * columns;
    kernel.forward = Packed(arena_, values, rows, columns);
    if (step_.training) {
      float* transposed = arena_->Floats(int64_t{rows} * columns);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) transposed[c * rows + r] = values[r * columns + c];
      }
      kernel.backward = Packed(arena_, transposed, columns, rows);
    }
    return kernel;
  }

  const LookbackStep& step_;
  Arena* arena_;
  char* error_;
  size_t error_size_;
  Variable variables_[kMostWeights] = {};
  int taken_ = 0;
  int64_t gradients_ = 0;
};

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_WEIGHTS_H_
