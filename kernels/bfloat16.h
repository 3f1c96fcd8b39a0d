// Numbers as float32, eight at a time, that lie in memory as float32 or bfloat16, its upper half.

#ifndef LOOKBACK_KERNELS_BFLOAT16_H_
#define LOOKBACK_KERNELS_BFLOAT16_H_

#include <cstring>

#include "cpu.h"

namespace lookback {

using tensorflow::bfloat16;

typedef uint16_t UpperHalves __attribute__((vector_size(2 * kHalf)));
typedef uint32_t Bits __attribute__((vector_size(4 * kHalf)));

INLINE void Get(const bfloat16* from, Half* values) {
  UpperHalves halves;
  std::memcpy(&halves, from, sizeof halves);
  *values = (Half)(__builtin_convertvector(halves, Bits) << 16);
}
// To the nearest, of two as near to the even one, as tf.cast does; what is no number stays so.
INLINE void Put(const Half& values, bfloat16* to) {
  const Bits bits = (Bits)values;
  const Bits nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const Bits no_number = {0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000,
                          0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000};
  const Bits kept = values == values ? nearest : no_number;
  const UpperHalves halves = __builtin_convertvector(kept >> 16, UpperHalves);
  std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
}

// Eight numbers of one type as those of the other.
template <typename From, typename To>
INLINE void CopyHalf(const From* from, To* to) {
  Half values;
  Get(from, &values);
  Put(values, to);
}

// `count` of them.
template <typename From, typename To>
INLINE void Copy(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + kHalf <= count; i += kHalf) CopyHalf(from + i, to + i);
  if (i == count) return;
  From rest[kHalf] = {};
  To copied[kHalf];
  std::memcpy(static_cast<void*>(rest), from + i, (count - i) * sizeof(From));
  CopyHalf(rest, copied);
  std::memcpy(static_cast<void*>(to + i), copied, (count - i) * sizeof(To));
}

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_BFLOAT16_H_
