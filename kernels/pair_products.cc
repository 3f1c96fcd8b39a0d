// The arithmetic of dot_interaction.h, in a file of its own: clang 14 cannot link versions of one
// function for several CPUs (FOR_EACH_CPU) that two files define each for itself.

#include "dot_interaction.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace lookback {
namespace {

constexpr int kBlock = 4;  // rows and columns whose products are summed in registers together

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE
#endif
#endif

// Registers of AVX-512, and of AVX2.
struct Wide {
  typedef Lanes Vector;
  static constexpr int kWidth = kLanes;
};
struct Narrow {
  typedef Half Vector;
  static constexpr int kWidth = kHalf;
};

#ifdef HAS_SHUFFLE
// Sums of neighbours at a distance: of `a` where that bit of the lane's number is 0, else of `b`.
#define ADD_PAIRS(a, b, ...) \
  (__builtin_shufflevector(a, b, __VA_ARGS__))
INLINE void AddPairs1(const Lanes& a, const Lanes& b, Lanes* sum) {
  *sum = ADD_PAIRS(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         ADD_PAIRS(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
INLINE void AddPairs2(const Lanes& a, const Lanes& b, Lanes* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         ADD_PAIRS(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
INLINE void AddPairs4(const Lanes& a, const Lanes& b, Lanes* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
         ADD_PAIRS(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}
INLINE void AddPairs8(const Lanes& a, const Lanes& b, Lanes* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         ADD_PAIRS(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE void AddPairs1(const Half& a, const Half& b, Half* sum) {
  *sum = ADD_PAIRS(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + ADD_PAIRS(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
}
INLINE void AddPairs2(const Half& a, const Half& b, Half* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + ADD_PAIRS(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
INLINE void AddPairs4(const Half& a, const Half& b, Half* sum) {
  *sum = ADD_PAIRS(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + ADD_PAIRS(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif

// The sums over the lanes of each of 16 registers.
template <typename Of>
INLINE void SumLanes(typename Of::Vector* v, float* sums) {
#ifdef HAS_SHUFFLE
  for (int i = 0; i < 8; ++i) AddPairs1(v[2 * i], v[2 * i + 1], &v[i]);
  for (int i = 0; i < 4; ++i) AddPairs2(v[2 * i], v[2 * i + 1], &v[i]);
  for (int i = 0; i < 2; ++i) AddPairs4(v[2 * i], v[2 * i + 1], &v[i]);
  if constexpr (Of::kWidth == kLanes) {
    AddPairs8(v[0], v[1], &v[0]);
    Put(v[0], sums);
  } else {
    for (int i = 0; i < 2; ++i) Put(v[i], sums + i * kHalf);
  }
#else
  for (int i = 0; i < kBlock * kBlock; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < Of::kWidth; ++lane) sums[i] += v[i][lane];
  }
#endif
}

template <typename Of>
INLINE void ProductsBy(const float* const* rows, int count, int width, float* triangle) {
  for (int i0 = 0; i0 < count; i0 += kBlock) {
    const float* left[kBlock];
    for (int a = 0; a < kBlock; ++a) left[a] = rows[std::min(i0 + a, count - 1)];
    for (int j0 = 0; j0 <= i0; j0 += kBlock) {
      const float* right[kBlock];
      for (int b = 0; b < kBlock; ++b) right[b] = rows[std::min(j0 + b, count - 1)];
      typename Of::Vector products[kBlock * kBlock] = {};
      for (int k = 0; k < width; k += Of::kWidth) {
        typename Of::Vector column[kBlock], row;
        for (int b = 0; b < kBlock; ++b) Get(right[b] + k, &column[b]);
        for (int a = 0; a < kBlock; ++a) {
          Get(left[a] + k, &row);
          for (int b = 0; b < kBlock; ++b) products[a * kBlock + b] += row * column[b];
        }
      }
      float sums[kBlock * kBlock];
      SumLanes<Of>(products, sums);
      for (int a = 0; a < kBlock && i0 + a < count; ++a) {
        const int i = i0 + a, taken = std::min(kBlock, i - j0);  // j < i
        if (taken <= 0) continue;
        std::memcpy(triangle + i * (i - 1) / 2 + j0, sums + a * kBlock, taken * sizeof(float));
      }
    }
  }
}

template <typename Of>
INLINE void CombineBy(const float* const* rows, int count, int width, const float* weights,
                      const float* first, float* const* gradients) {
  for (int i0 = 0; i0 < count; i0 += kBlock) {
    const float* of[kBlock];
    for (int a = 0; a < kBlock; ++a) of[a] = weights + std::min(i0 + a, count - 1) * count;
    int k = 0;
    for (; k + 2 * Of::kWidth <= width; k += 2 * Of::kWidth) {
      typename Of::Vector sums[kBlock][2] = {};
      if (i0 == 0) {
        Get(first + k, &sums[0][0]);
        Get(first + k + Of::kWidth, &sums[0][1]);
      }
      for (int j = 0; j < count; ++j) {
        typename Of::Vector one, two;
        Get(rows[j] + k, &one);
        Get(rows[j] + k + Of::kWidth, &two);
        for (int a = 0; a < kBlock; ++a) {
          sums[a][0] += of[a][j] * one;
          sums[a][1] += of[a][j] * two;
        }
      }
      for (int a = 0; a < kBlock && i0 + a < count; ++a) {
        Put(sums[a][0], gradients[i0 + a] + k);
        Put(sums[a][1], gradients[i0 + a] + k + Of::kWidth);
      }
    }
    for (; k < width; k += Of::kWidth) {
      typename Of::Vector sums[kBlock] = {};
      if (i0 == 0) Get(first + k, &sums[0]);
      for (int j = 0; j < count; ++j) {
        typename Of::Vector row;
        Get(rows[j] + k, &row);
        for (int a = 0; a < kBlock; ++a) sums[a] += of[a][j] * row;
      }
      for (int a = 0; a < kBlock && i0 + a < count; ++a) Put(sums[a], gradients[i0 + a] + k);
    }
  }
}

FOR_AVX512 void WideProducts(const float* const* rows, int count, int width, float* triangle) {
  ProductsBy<Wide>(rows, count, width, triangle);
}
FOR_EACH_CPU void NarrowProducts(const float* const* rows, int count, int width, float* triangle) {
  ProductsBy<Narrow>(rows, count, width, triangle);
}
FOR_AVX512 void WideCombine(const float* const* rows, int count, int width, const float* weights,
                            const float* first, float* const* gradients) {
  CombineBy<Wide>(rows, count, width, weights, first, gradients);
}
FOR_EACH_CPU void NarrowCombine(const float* const* rows, int count, int width,
                                const float* weights, const float* first,
                                float* const* gradients) {
  CombineBy<Narrow>(rows, count, width, weights, first, gradients);
}

}  // namespace

ProductsOfPairs* Products() { return HasAvx512() ? WideProducts : NarrowProducts; }
CombinationOfRows* Combine() { return HasAvx512() ? WideCombine : NarrowCombine; }

}  // namespace lookback
