// Products of small matrices: sums in registers, everything else in the nearest caches.
//
// The sum of a dot product runs over its terms in order, whatever the other sizes are, so a row's
// bits do not depend on the rows beside it.

#ifndef LOOKBACK_KERNELS_TILES_PRODUCTS_H_
#define LOOKBACK_KERNELS_TILES_PRODUCTS_H_

#include "memory.h"
#include "vector.h"

namespace lookback {
namespace {

// What a product is added to: nothing, what is there, or a bias for each column.
enum Start { kNothing, kThere, kBias };

// A matrix wherever its elements lie.
struct Strided {
  const float* at;
  int64_t row, column;
};

// kRows rows and kColumns registers of columns, each sum in a register.
template <int kRows, int kColumns>
NOINLINE void Panel(int terms, Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                    Start start, const float* bias) {
  Vec sums[kRows][kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      sums[i][j] = start == kNothing ? All(0.0f)
                   : start == kThere ? Load(c + i * c_row + j * kLanes)
                                     : Load(bias + j * kLanes);
    }
  }
  for (int k = 0; k < terms; ++k) {
    Vec columns[kColumns];
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) columns[j] = Load(b + k * b_row + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = All(a.at[i * a.row + k * a.column]);
#pragma GCC unroll 16
      for (int j = 0; j < kColumns; ++j) sums[i][j] = Fma(factor, columns[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) Store(c + i * c_row + j * kLanes, sums[i][j]);
  }
}

// The rows that are left, fewer than kRows + 1.
template <int kRows, int kColumns>
INLINE void LastPanel(int rows, int terms, Strided a, const float* b, int64_t b_row, float* c,
                      int64_t c_row, Start start, const float* bias) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      Panel<kRows, kColumns>(terms, a, b, b_row, c, c_row, start, bias);
    } else {
      LastPanel<kRows - 1, kColumns>(rows, terms, a, b, b_row, c, c_row, start, bias);
    }
  }
}

template <int kRows, int kColumns>
void Panels(int rows, int terms, Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
            Start start, const float* bias) {
  int i = 0;
  for (; i + kRows <= rows; i += kRows) {
    const Strided from = {a.at + i * a.row, a.row, a.column};
    Panel<kRows, kColumns>(terms, from, b, b_row, c + i * c_row, c_row, start, bias);
  }
  const Strided from = {a.at + i * a.row, a.row, a.column};
  LastPanel<kRows - 1, kColumns>(rows - i, terms, from, b, b_row, c + i * c_row, c_row, start,
                                 bias);
}

// c [rows, columns] = start + a [rows, terms] b [terms, columns] in float32; columns, in memory one
// after another in b and c, are a multiple of 16.
void Product(int rows, int columns, int terms, Strided a, const float* b, int64_t b_row, float* c,
             int64_t c_row, Start start, const float* bias = nullptr) {
#define PANELS(kRows, kColumns)                                              \
  Panels<kRows, kColumns>(rows, terms, a, b + j, b_row, c + j, c_row, start, \
                          bias == nullptr ? nullptr : bias + j)
#ifdef __AVX512F__  // 32 registers: as many sums as leave room for a row of b
  for (int j = 0; j < columns;) {
    const int left = (columns - j) / kLanes, now = left > 8 ? 6 : left > 6 ? 4 : left;
    switch (now) {
      case 6: PANELS(4, 6); break;
      case 5: PANELS(5, 5); break;
      case 4: PANELS(6, 4); break;
      case 3: PANELS(8, 3); break;
      case 2: PANELS(12, 2); break;
      default: PANELS(12, 1); break;
    }
    j += now * kLanes;
  }
#else  // 16 registers
  for (int j = 0; j < columns; j += 2 * kLanes) PANELS(6, 2);
#endif
#undef PANELS
}

// A weight, packed: `rows` terms of each sum and `columns` sums, both multiples of 16.
struct Matrix {
  int rows, columns;
  const float* values;    // [rows, columns]
  const uint16_t* pairs;  // see products_bf16.h; null in float32
};

#ifdef LOOKBACK_BFLOAT16
}  // namespace
}  // namespace lookback
#include "products_bf16.h"
namespace lookback {
namespace {
#else

INLINE Matrix Packed(Arena*, const float* values, int rows, int columns) {
  return {rows, columns, values, nullptr};
}

// c [rows, b.columns] = start + a [rows, b.rows] b.
INLINE void Multiply(Arena*, int rows, const float* a, int64_t a_row, const Matrix& b, float* c,
                     int64_t c_row, Start start = kNothing, const float* bias = nullptr) {
  Product(rows, b.columns, b.rows, {a, a_row, 1}, b.values, b.columns, c, c_row, start, bias);
}

// w [a_columns, d_columns] += a [rows, a_columns]^T d [rows, d_columns].
INLINE void AddOuter(Arena*, int rows, int a_columns, const float* a, int64_t a_row, int d_columns,
                     const float* d, int64_t d_row, float* w) {
  constexpr int kTogether = 320;  // rows of a and d that stay in the second-level cache
  for (int r = 0; r < rows; r += kTogether) {
    Product(a_columns, d_columns, Min(kTogether, rows - r), {a + r * a_row, 1, a_row},
            d + r * d_row, d_row, w, d_columns, kThere);
  }
}

INLINE void BeginProducts() {}
INLINE void EndProducts() {}

#endif

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_PRODUCTS_H_
