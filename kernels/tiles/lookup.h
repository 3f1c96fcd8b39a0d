// Rows of tables, concatenated into items, events and users, and where their gradients go.

#ifndef LOOKBACK_KERNELS_TILES_LOOKUP_H_
#define LOOKBACK_KERNELS_TILES_LOOKUP_H_

#include "spans.h"
#include "weights.h"

namespace lookback {
namespace {

// T histories and N of their candidates, at work in one thread. S are the steps of its span: the
// others of the short sequence (of DIN's long one) are padding in all T.
struct Tile {
  const LookbackStep* step;
  Arena* arena;
  float* gradients;  // the chunk's, of the weights
  double* sums;      // the chunk's, of the losses: head, stage one, auxiliary
  const int32_t* order;  // which histories: [T]
  int histories;         // T
  Span span;
  int first_candidate, candidates;  // N

  int rows() const { return candidates * histories; }
  int64_t history(int row) const { return order[row % histories]; }
  int steps() const { return span.count(); }
  // Of a row in whatever is [B, C].
  int64_t pair(int row) const {
    return history(row) * step->candidates + first_candidate + row / histories;
  }
  float* of(const Kernel& kernel) const { return gradients + kernel.gradient; }
  float* of(const Vector& vector) const { return gradients + vector.gradient; }
};

INLINE const float* PartRow(const LookbackPart& part, int width, int64_t position) {
  return part.rows + (part.ids == nullptr ? position : part.ids[position]) * int64_t{width};
}

constexpr int kAhead = 8;  // rows on their way from memory

// The concatenated parts of one position.
INLINE void Look(const LookbackParts& parts, int width, int64_t position, float* to) {
  for (int p = 0; p < parts.count; ++p) {
    const float* from = PartRow(parts.parts[p], width, position);
    for (int j = 0; j < width; j += kLanes) Store(to + j, Load(from + j));
    to += width;
  }
}
INLINE void Prefetch(const LookbackParts& parts, int width, int64_t position) {
  for (int p = 0; p < parts.count; ++p) {
    _mm_prefetch(reinterpret_cast<const char*>(PartRow(parts.parts[p], width, position)),
                 _MM_HINT_T0);
  }
}
INLINE void PutGradients(const LookbackParts& parts, int width, int64_t position,
                         const float* from) {
  for (int p = 0; p < parts.count; ++p) {
    float* to = parts.parts[p].gradients + position * width;
    for (int j = 0; j < width; j += kLanes) Store(to + j, Load(from + j));
    from += width;
  }
}
// Gradients of padding, of which no sum knows.
INLINE void PutZeros(const LookbackParts& parts, int width, int64_t position, int64_t count) {
  for (int p = 0; p < parts.count; ++p) {
    memset(parts.parts[p].gradients + position * width, 0, sizeof(float) * count * width);
  }
}

// Items of the candidates [N T, E].
float* Targets(const Tile& tile) {
  const LookbackParts& parts = tile.step->target;
  const int width = tile.step->width, items = parts.count * width;
  float* to = tile.arena->Floats(int64_t{tile.rows()} * items);
  for (int r = 0; r < tile.rows(); ++r) Look(parts, width, tile.pair(r), to + r * items);
  return to;
}
// Users [T, E_u].
float* Users(const Tile& tile) {
  const LookbackParts& parts = tile.step->user;
  const int width = tile.step->width, columns = parts.count * width;
  float* to = tile.arena->Floats(tile.histories * columns);
  for (int i = 0; i < tile.histories; ++i) Look(parts, width, tile.order[i], to + i * columns);
  return to;
}
// Events of the short sequence, or negatives: [S T, E'].
float* Steps(const Tile& tile, const LookbackParts& parts) {
  const int width = tile.step->width, columns = parts.count * width;
  float* to = tile.arena->Floats(int64_t{tile.steps()} * tile.histories * columns);
  const auto position = [&](int n) {
    const int64_t s = tile.span.from + n / tile.histories;
    return s * tile.step->histories + tile.order[n % tile.histories];
  };
  const int rows = tile.steps() * tile.histories;
  for (int n = 0; n < Min(kAhead, rows); ++n) Prefetch(parts, width, position(n));
  for (int n = 0; n < rows; ++n) {
    if (n + kAhead < rows) Prefetch(parts, width, position(n + kAhead));
    Look(parts, width, position(n), to + int64_t{n} * columns);
  }
  return to;
}

void PutTargets(const Tile& tile, const float* gradients) {
  const int width = tile.step->width, items = tile.step->target.count * width;
  for (int r = 0; r < tile.rows(); ++r) {
    PutGradients(tile.step->target, width, tile.pair(r), gradients + r * items);
  }
}
// Of the users, whose rows' gradients are in one or two blocks, from one row to the next `a_row`
// and `b_row`; b null: there is one.
void PutUsers(const Tile& tile, const float* a, int64_t a_row, const float* b, int64_t b_row) {
  const LookbackParts& parts = tile.step->user;
  const int width = tile.step->width;
  for (int p = 0; p < parts.count; ++p) {
    for (int i = 0; i < tile.histories; ++i) {
      float* to = parts.parts[p].gradients + int64_t{tile.order[i]} * width;
      for (int j = 0; j < width; j += kLanes) {
        Vec sum = All(0.0f);
        for (int r = i; r < tile.rows(); r += tile.histories) {
          sum += Load(a + r * a_row + p * width + j);
          if (b != nullptr) sum += Load(b + r * b_row + p * width + j);
        }
        Store(to + j, sum);
      }
    }
  }
}
void PutSteps(const Tile& tile, const LookbackParts& parts, const float* gradients) {
  const int width = tile.step->width, columns = parts.count * width;
  for (int s = 0; s < tile.step->short_events; ++s) {
    const bool inside = s >= tile.span.from && s < tile.span.to;
    for (int i = 0; i < tile.histories; ++i) {
      const int64_t position = s * tile.step->histories + tile.order[i];
      if (!inside) {
        PutZeros(parts, width, position, 1);
        continue;
      }
      PutGradients(parts, width, position, gradients);
      gradients += columns;
    }
  }
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_LOOKUP_H_
