// A register of floats, and functions of all of its lanes.

#ifndef LOOKBACK_KERNELS_TILES_VECTOR_H_
#define LOOKBACK_KERNELS_TILES_VECTOR_H_

#include <immintrin.h>
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

namespace lookback {
namespace {

INLINE int Min(int a, int b) { return a < b ? a : b; }
INLINE int Max(int a, int b) { return a > b ? a : b; }
INLINE int64_t Up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

#ifdef __AVX512F__

constexpr int kLanes = 16;
typedef __m512 Vec;

INLINE Vec Load(const float* from) { return _mm512_loadu_ps(from); }
INLINE void Store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
INLINE Vec All(float x) { return _mm512_set1_ps(x); }
INLINE Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }       // a b + c
INLINE Vec Subtract(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
INLINE Vec Larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINE Vec Smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
INLINE float Sum(Vec v) { return _mm512_reduce_add_ps(v); }
INLINE float Largest(Vec v) { return _mm512_reduce_max_ps(v); }
INLINE Vec Rounded(Vec x) { return _mm512_roundscale_ps(x, 8); }
INLINE Vec TimesPowerOf2(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
INLINE Vec RoughReciprocal(Vec x) { return _mm512_rcp14_ps(x); }

// `a` where x < 0, else `b`.
INLINE Vec WhereNegative(Vec x, Vec a, Vec b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), a);
}
// `a` where x is 0, else `b`.
INLINE Vec WhereZero(Vec x, Vec a, Vec b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_EQ_OQ), a);
}

// A square of kLanes rows, transposed.
INLINE void Transpose(const float* from, int64_t row, Vec* to) {
  Vec t[16], r[16];
  for (int i = 0; i < 16; ++i) r[i] = Load(from + i * row);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i + 0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    to[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    to[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

#else  // AVX2 and FMA

constexpr int kLanes = 8;
typedef __m256 Vec;

INLINE Vec Load(const float* from) { return _mm256_loadu_ps(from); }
INLINE void Store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
INLINE Vec All(float x) { return _mm256_set1_ps(x); }
INLINE Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec Subtract(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE Vec Larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
INLINE Vec Smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
INLINE float Sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
INLINE float Largest(Vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
INLINE Vec Rounded(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | 8); }
INLINE Vec TimesPowerOf2(Vec x, Vec n) {  // -126 <= n <= 127
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
INLINE Vec RoughReciprocal(Vec x) { return _mm256_rcp_ps(x); }
INLINE Vec WhereNegative(Vec x, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
INLINE Vec WhereZero(Vec x, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_EQ_OQ));
}
INLINE void Transpose(const float* from, int64_t row, Vec* to) {
  Vec t[8], r[8];
  for (int i = 0; i < 8; ++i) r[i] = Load(from + i * row);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i + 0] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    to[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    to[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}

#endif

// exp, with the polynomial of Cephes' expf: 2 units in the last place.
INLINE Vec Exp(Vec x) {
  x = Larger(Smaller(x, All(88.0f)), All(-87.0f));
  const Vec n = Rounded(x * All(1.44269504f));
  Vec r = Subtract(n, All(0.693359375f), x);
  r = Subtract(n, All(-2.12194440e-4f), r);
  Vec p = All(1.9875691500e-4f);
  p = Fma(p, r, All(1.3981999507e-3f));
  p = Fma(p, r, All(8.3334519073e-3f));
  p = Fma(p, r, All(4.1665795894e-2f));
  p = Fma(p, r, All(1.6666665459e-1f));
  p = Fma(p, r, All(5.0000001201e-1f));
  p = Fma(p * r, r, r + All(1.0f));
  return TimesPowerOf2(p, n);
}
INLINE Vec Reciprocal(Vec x) {
  const Vec y = RoughReciprocal(x);
  return y * Subtract(x, y, All(2.0f));
}
INLINE Vec Sigmoid(Vec x) { return Reciprocal(All(1.0f) + Exp(All(0.0f) - x)); }
INLINE Vec Tanh(Vec x) {
  return Subtract(All(2.0f), Reciprocal(All(1.0f) + Exp(x + x)), All(1.0f));
}
// What a gradient is multiplied by, from the value of the sigmoid.
INLINE Vec SigmoidSlope(Vec y) { return y * (All(1.0f) - y); }

// Of `columns`, a multiple of kLanes.
INLINE float Dot(int columns, const float* a, const float* b) {
  Vec sum = All(0.0f);
  for (int j = 0; j < columns; j += kLanes) sum = Fma(Load(a + j), Load(b + j), sum);
  return Sum(sum);
}
// to += the sum over rows of [rows, columns].
INLINE void AddColumnSums(int64_t rows, int columns, const float* from, int64_t row, float* to) {
  for (int j = 0; j < columns; j += kLanes) {
    Vec sum = All(0.0f);
    for (int64_t r = 0; r < rows; ++r) sum += Load(from + r * row + j);
    Store(to + j, Load(to + j) + sum);
  }
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_VECTOR_H_
