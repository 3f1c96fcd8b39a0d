// Which steps a sequence has from its first event to its last, and an order of the histories in
// which those beside each other have about the same ones.
//
// Most logs have more short histories than long ones, so most of a batch is padding. A tile goes
// over the steps that any of its histories has; a step that none has changes no state and no
// gradient, so leaving it out changes no bit of a history's results.

#ifndef LOOKBACK_KERNELS_TILES_SPANS_H_
#define LOOKBACK_KERNELS_TILES_SPANS_H_

#include "memory.h"

namespace lookback {
namespace {

// Steps [from, to).
struct Span {
  int from, to;

  int count() const { return to - from; }
};

// A mask of `steps` bytes, from one step to the next `stride`.
INLINE Span SpanOf(const uint8_t* mask, int steps, int64_t stride) {
  Span span = {0, steps};
  while (span.to > 0 && !mask[(span.to - 1) * stride]) --span.to;
  while (span.from < span.to && !mask[span.from * stride]) ++span.from;
  return span;
}

// All steps of either.
INLINE Span Together(Span a, Span b) {
  if (a.count() == 0) return b;
  if (b.count() == 0) return a;
  return {a.from < b.from ? a.from : b.from, a.to > b.to ? a.to : b.to};
}

// One pass of a radix sort, stable: `from` in the order of key(Span) in [0, keys).
template <typename Key>
INLINE void SortPass(Arena* arena, int64_t count, const Span* spans, int keys, Key key,
                     const int32_t* from, int32_t* to) {
  Scope scope(arena);
  int32_t* next = static_cast<int32_t*>(arena->Bytes(sizeof(int32_t) * (keys + 1)));
  memset(next, 0, sizeof(int32_t) * (keys + 1));
  for (int64_t i = 0; i < count; ++i) ++next[key(spans[i]) + 1];
  for (int k = 0; k < keys; ++k) next[k + 1] += next[k];
  for (int64_t i = 0; i < count; ++i) to[next[key(spans[from[i]])]++] = from[i];
}

// Writes the histories [count] in the order of their spans, first steps before last ones.
INLINE void OrderBySpan(Arena* arena, int64_t count, const uint8_t* mask, int steps,
                        int64_t step_stride, int64_t history_stride, int32_t* order) {
  Scope scope(arena);
  Span* spans = static_cast<Span*>(arena->Bytes(sizeof(Span) * count));
  int32_t* by_last = static_cast<int32_t*>(arena->Bytes(sizeof(int32_t) * count));
  for (int64_t i = 0; i < count; ++i) {
    spans[i] = SpanOf(mask + i * history_stride, steps, step_stride);
    order[i] = static_cast<int32_t>(i);
  }
  SortPass(arena, count, spans, steps + 1, [](Span span) { return span.to; }, order, by_last);
  SortPass(arena, count, spans, steps + 1, [](Span span) { return span.from; }, by_last, order);
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_SPANS_H_
