// SplitMix64 (core/splitmix.py): number n of the stream with key k is ``Mix(k + kWeyl * n)``.

#ifndef LOOKBACK_KERNELS_SPLITMIX_H_
#define LOOKBACK_KERNELS_SPLITMIX_H_

#include <cstdint>

#include "cpu.h"

namespace lookback {

constexpr uint64_t kWeyl = 0x9e3779b97f4a7c15;

INLINE uint64_t Mix(uint64_t z) {
  z += kWeyl;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_SPLITMIX_H_
