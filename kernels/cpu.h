// What the operations share: TensorFlow's names, registers, versions for each kind of CPU, threads.

#ifndef LOOKBACK_KERNELS_CPU_H_
#define LOOKBACK_KERNELS_CPU_H_

#include <cstdint>
#include <cstring>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/work_sharder.h"

// One version of a function for each kind of CPU; the loader takes the one that fits.
// ("arch=skylake-avx512" would be Intel's Skylake alone, not whatever has its instructions.)
// FOR_AVX512 has no version but that one, for what is called where `HasAvx512` says so.
#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define FOR_AVX512 __attribute__((target("arch=x86-64-v4")))
#elif defined(__x86_64__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#define FOR_AVX512 __attribute__((target("avx512f")))
#else
#define FOR_EACH_CPU
#define FOR_AVX512
#endif
#define INLINE inline __attribute__((always_inline))

namespace lookback {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::TensorShapeUtils;
using tensorflow::errors::InvalidArgument;

// 16 floats, for AVX-512. GCC keeps what is wider than a CPU's registers in memory: with AVX2, sums
// in two halves take a fifth to a fiftieth of the time (measured).
constexpr int kLanes = 16, kHalf = kLanes / 2;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef float Half __attribute__((vector_size(4 * kHalf)));

// Reading and writing one wherever it lies. Not by a type of less alignment: clang 14 forgets that
// where a function gives a reference to one, and GCC in templates. Not by value either: a vector
// that is wider than the registers of the function that takes it changes the calling convention.
INLINE void Get(const float* from, Lanes* values) { std::memcpy(values, from, sizeof *values); }
INLINE void Get(const float* from, Half* values) { std::memcpy(values, from, sizeof *values); }
INLINE void Put(const Lanes& values, float* to) { std::memcpy(to, &values, sizeof values); }
INLINE void Put(const Half& values, float* to) { std::memcpy(to, &values, sizeof values); }

inline bool HasAvx512() {
#if defined(__x86_64__) && !defined(LOOKBACK_WITHOUT_AVX512)  // for tests
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// Shares the samples among the threads; `cost` is of one, in cycles.
template <typename Work>
void ForAll(tensorflow::OpKernelContext* context, int64_t samples, int64_t cost,
            const Work& work) {
  const auto* threads = context->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(threads->num_threads, threads->workers, samples, cost, work);
}

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_CPU_H_
