// The products of products.h with factors rounded to bfloat16 and sums in float32: by AMX where
// LOOKBACK_AMX is defined, else by AVX512_BF16.
//
// Both multiply pairs of terms at once. The left factor is cut into blocks of 16 rows and 32 terms,
// [row blocks, term blocks, 16, 32]; the right one into as large blocks, whose 16 rows are pairs of
// terms and whose columns lie pair by pair: [column blocks, term blocks, 16, 16, 2]. What is
// missing at the ends is zero.

#ifndef LOOKBACK_KERNELS_TILES_PRODUCTS_BF16_H_
#define LOOKBACK_KERNELS_TILES_PRODUCTS_BF16_H_

namespace lookback {
namespace {

constexpr int kBlock = 512;  // numbers of a block

INLINE int TermBlocks(int terms) { return (terms + 31) / 32; }
INLINE uint16_t* Halves(Arena* arena, int64_t count) {
  return static_cast<uint16_t*>(arena->Bytes(sizeof(uint16_t) * count));
}
// Two registers of floats, rounded, the first in the lower half.
INLINE __m512i ToHalves(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The right factor [terms, columns]; columns are a multiple of 16.
uint16_t* RightBlocks(Arena* arena, int terms, int columns, const float* from, int64_t row) {
  alignas(64) static const uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                  21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                  11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kPairs);
  const int blocks = TermBlocks(terms);
  uint16_t* to = Halves(arena, int64_t{columns} / 16 * blocks * kBlock);
  uint16_t* at = to;
  for (int j = 0; j < columns; j += 16) {
    for (int k = 0; k < 32 * blocks; k += 2, at += 32) {
      const Vec low = k < terms ? Load(from + k * row + j) : All(0.0f);
      const Vec high = k + 1 < terms ? Load(from + (k + 1) * row + j) : All(0.0f);
      _mm512_store_si512(at, _mm512_permutexvar_epi16(order, ToHalves(low, high)));
    }
  }
  return to;
}

// The left factor [rows, terms]; terms are a multiple of 16.
uint16_t* LeftBlocks(Arena* arena, int rows, int terms, const float* from, int64_t row) {
  const int blocks = TermBlocks(terms);
  uint16_t* to = Halves(arena, Up(rows, 16) * 32 * blocks);
  for (int i = 0; i < Up(rows, 16); ++i) {
    uint16_t* at = to + (int64_t{i} / 16 * blocks * 16 + i % 16) * 32;
    for (int k = 0; k < terms; k += 32, at += kBlock) {
      const bool there = i < rows;
      const Vec low = there ? Load(from + i * row + k) : All(0.0f);
      const Vec high = there && k + 16 < terms ? Load(from + i * row + k + 16) : All(0.0f);
      _mm512_store_si512(at, ToHalves(low, high));
    }
  }
  return to;
}

// The left factor [columns, rows] that is the transpose of [rows, columns]; columns are a multiple
// of 16.
uint16_t* LeftBlocksOfTranspose(Arena* arena, int rows, int columns, const float* from,
                                int64_t row) {
  const int blocks = TermBlocks(rows);
  uint16_t* to = Halves(arena, int64_t{columns} * 32 * blocks);
  const auto square = [&](int r, int c, Vec* block) {
    alignas(64) float rest[16 * 16] = {};
    if (r + 16 <= rows) {
      Transpose(from + r * row + c, row, block);
      return;
    }
    for (int i = 0; r + i < rows; ++i) Store(rest + 16 * i, Load(from + (r + i) * row + c));
    Transpose(rest, 16, block);
  };
  uint16_t* at = to;
  for (int c = 0; c < columns; c += 16) {
    for (int r = 0; r < 32 * blocks; r += 32) {
      Vec low[16], high[16];
      square(r, c, low);
      square(r + 16, c, high);
      for (int i = 0; i < 16; ++i, at += 32) _mm512_store_si512(at, ToHalves(low[i], high[i]));
    }
  }
  return to;
}

#ifdef LOOKBACK_AMX

// kRows by kColumns tiles of 16 x 16 sums, in registers 0 to 3; factors in 4 to 7.
template <int kRows, int kColumns>
INLINE void Tiles(int blocks, const uint16_t* a, const uint16_t* b, float* c, int64_t c_row,
                  bool add) {
  const int64_t next = int64_t{blocks} * kBlock, c_bytes = c_row * sizeof(float);
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if (kColumns > 1) _tile_loadd(1, c + 16, c_bytes);
    if (kRows > 1) _tile_loadd(2, c + 16 * c_row, c_bytes);
    if (kRows > 1 && kColumns > 1) _tile_loadd(3, c + 16 * c_row + 16, c_bytes);
  } else {
    _tile_zero(0);
    if (kColumns > 1) _tile_zero(1);
    if (kRows > 1) _tile_zero(2);
    if (kRows > 1 && kColumns > 1) _tile_zero(3);
  }
  for (int q = 0; q < blocks; ++q) {
    _tile_loadd(4, a + q * kBlock, 64);
    _tile_loadd(6, b + q * kBlock, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kColumns > 1) {
      _tile_loadd(7, b + next + q * kBlock, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kRows > 1) {
      _tile_loadd(5, a + next + q * kBlock, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if (kColumns > 1) _tile_stored(1, c + 16, c_bytes);
  if (kRows > 1) _tile_stored(2, c + 16 * c_row, c_bytes);
  if (kRows > 1 && kColumns > 1) _tile_stored(3, c + 16 * c_row + 16, c_bytes);
}

// c [rows, columns], multiples of 16, from the blocks of both factors.
void BlockProduct(int rows, int columns, int terms, const uint16_t* a, const uint16_t* b, float* c,
                  int64_t c_row, bool add) {
  const int blocks = TermBlocks(terms);
  for (int j = 0; j < columns; j += 32) {
    for (int i = 0; i < rows; i += 32) {
      const uint16_t *left = a + int64_t{i} / 16 * blocks * kBlock;
      const uint16_t *right = b + int64_t{j} / 16 * blocks * kBlock;
      float* to = c + i * c_row + j;
      const bool tall = i + 32 <= rows, wide = j + 32 <= columns;
      if (tall && wide) {
        Tiles<2, 2>(blocks, left, right, to, c_row, add);
      } else if (tall) {
        Tiles<2, 1>(blocks, left, right, to, c_row, add);
      } else if (wide) {
        Tiles<1, 2>(blocks, left, right, to, c_row, add);
      } else {
        Tiles<1, 1>(blocks, left, right, to, c_row, add);
      }
    }
  }
}

// The tiles' registers keep their shape for all products of a thread's share. They are released at
// its end, because other libraries of the process have shapes of their own.
INLINE void BeginProducts() {
  struct __attribute__((packed)) {
    uint8_t palette, start, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  } shapes;
  memset(&shapes, 0, sizeof(shapes));
  shapes.palette = 1;
  for (int i = 0; i < 8; ++i) {
    shapes.column_bytes[i] = 64;
    shapes.rows[i] = 16;
  }
  // GCC 12's _tile_loadconfig tells the compiler of 8 of these 64 bytes.
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
INLINE void EndProducts() { asm volatile("tilerelease" ::: "memory"); }

#else  // AVX512_BF16

// kRows rows of a block of 16 and kColumns blocks of columns, each sum in a register.
template <int kRows, int kColumns>
NOINLINE void PairPanel(int pairs, const uint16_t* a, const uint16_t* b, int64_t b_block, float* c,
                        int64_t c_row, bool add) {
  Vec sums[kRows][kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) sums[i][j] = add ? Load(c + i * c_row + 16 * j) : All(0.0f);
  }
  for (int from = 0; from < pairs; from += 16, a += kBlock, b += kBlock) {
    const int count = Min(16, pairs - from);
    for (int p = 0; p < count; ++p) {
      __m512bh columns[kColumns];
#pragma GCC unroll 16
      for (int j = 0; j < kColumns; ++j) {
        columns[j] = (__m512bh)_mm512_loadu_si512(b + j * b_block + 32 * p);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        int32_t pair;
        memcpy(&pair, a + 32 * i + 2 * p, sizeof(pair));
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
        for (int j = 0; j < kColumns; ++j) {
          sums[i][j] = _mm512_dpbf16_ps(sums[i][j], factor, columns[j]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) Store(c + i * c_row + 16 * j, sums[i][j]);
  }
}

template <int kRows, int kColumns>
void PairPanels(int rows, int terms, const uint16_t* a, const uint16_t* b, float* c, int64_t c_row,
                bool add) {
  const int64_t next = int64_t{TermBlocks(terms)} * kBlock;
  for (int i = 0; i < rows; i += kRows) {
    PairPanel<kRows, kColumns>((terms + 1) / 2, a + i / 16 * next + i % 16 * 32, b, next,
                               c + i * c_row, c_row, add);
  }
}

// c [rows, columns], multiples of 16, from the blocks of both factors.
void BlockProduct(int rows, int columns, int terms, const uint16_t* a, const uint16_t* b, float* c,
                  int64_t c_row, bool add) {
  for (int j = 0; j < columns;) {
    const int left = (columns - j) / 16, now = left == 7 || left == 8 ? 4 : left > 6 ? 6 : left;
    const uint16_t* right = b + int64_t{j} / 16 * TermBlocks(terms) * kBlock;
    switch (now) {
      case 6: PairPanels<4, 6>(rows, terms, a, right, c + j, c_row, add); break;
      case 5: PairPanels<4, 5>(rows, terms, a, right, c + j, c_row, add); break;
      case 4: PairPanels<4, 4>(rows, terms, a, right, c + j, c_row, add); break;
      case 3: PairPanels<8, 3>(rows, terms, a, right, c + j, c_row, add); break;
      case 2: PairPanels<8, 2>(rows, terms, a, right, c + j, c_row, add); break;
      default: PairPanels<16, 1>(rows, terms, a, right, c + j, c_row, add); break;
    }
    j += 16 * now;
  }
}

INLINE void BeginProducts() {}
INLINE void EndProducts() {}

#endif

INLINE Matrix Packed(Arena* arena, const float* values, int rows, int columns) {
  return {rows, columns, values, RightBlocks(arena, rows, columns, values, columns)};
}

// c [rows, b.columns] = start + a [rows, b.rows] b.
void Multiply(Arena* arena, int rows, const float* a, int64_t a_row, const Matrix& b, float* c,
              int64_t c_row, Start start = kNothing, const float* bias = nullptr) {
  Scope scope(arena);
  const uint16_t* left = LeftBlocks(arena, rows, b.rows, a, a_row);
  if (start == kBias) {
    for (int r = 0; r < rows; ++r) memcpy(c + r * c_row, bias, sizeof(float) * b.columns);
  }
  const int whole = rows / 16 * 16, last = rows - whole;
  BlockProduct(whole, b.columns, b.rows, left, b.pairs, c, c_row, start != kNothing);
  if (last == 0) return;
  float* block = arena->Zeros(int64_t{16} * b.columns);
  float* to = c + whole * c_row;
  if (start != kNothing) {
    for (int r = 0; r < last; ++r) {
      memcpy(block + r * b.columns, to + r * c_row, sizeof(float) * b.columns);
    }
  }
  BlockProduct(16, b.columns, b.rows, left + int64_t{whole} * 32 * TermBlocks(b.rows), b.pairs,
               block, b.columns, true);
  for (int r = 0; r < last; ++r) {
    memcpy(to + r * c_row, block + r * b.columns, sizeof(float) * b.columns);
  }
}

// w [a_columns, d_columns] += a [rows, a_columns]^T d [rows, d_columns].
void AddOuter(Arena* arena, int rows, int a_columns, const float* a, int64_t a_row, int d_columns,
              const float* d, int64_t d_row, float* w) {
  Scope scope(arena);
  const uint16_t* left = LeftBlocksOfTranspose(arena, rows, a_columns, a, a_row);
  const uint16_t* right = RightBlocks(arena, rows, d_columns, d, d_row);
  BlockProduct(a_columns, d_columns, rows, left, right, w, d_columns, true);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_PRODUCTS_BF16_H_
