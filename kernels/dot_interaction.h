// The arithmetic of DLRM's dot interaction (Naumov et al. 2019, section 2): a sample's vectors are
// multiplied where they lie, while they are in the first-level cache.

#ifndef LOOKBACK_KERNELS_DOT_INTERACTION_H_
#define LOOKBACK_KERNELS_DOT_INTERACTION_H_

#include "cpu.h"

namespace lookback {

// The products of all pairs of `count` rows of `width` floats, a multiple of kLanes: the lower
// triangle without its diagonal, row by row.
using ProductsOfPairs = void(const float* const* rows, int count, int width, float* triangle);

// The gradients of `count` rows: ``sum_j weights[i][j] rows[j]``; weights ``[count, count]`` are
// symmetric, with zeros on the diagonal. To row 0, `first` is added.
using CombinationOfRows = void(const float* const* rows, int count, int width,
                               const float* weights, const float* first,
                               float* const* gradients);

// The versions for this CPU.
ProductsOfPairs* Products();
CombinationOfRows* Combine();

// A sample's gradients of its pairs as the weights of `Combine`, whose diagonal is zero already.
INLINE void SpreadPairs(const float* pairs, int count, float* weights) {
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < i; ++j) weights[i * count + j] = weights[j * count + i] = *pairs++;
  }
}

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_DOT_INTERACTION_H_
