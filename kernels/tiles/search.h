// SIM's search of the long sequence (models/sim.py, models/blocks/top_k_search.py): scores, the k
// best (soft) or the k latest of the candidate's category (hard), and three weighted sums of what
// is found. A weight of zero does what gathering would.

#ifndef LOOKBACK_KERNELS_TILES_SEARCH_H_
#define LOOKBACK_KERNELS_TILES_SEARCH_H_

#include "lookup.h"

namespace lookback {
namespace {

// The events of one history's long sequence, from its first to its last, and the same transposed.
// Padded to 16 events.
struct LongEvents {
  int64_t first;  // position of the first in whatever is [B, L]
  int count, padded, columns;
  float* rows;    // [padded, E'], zeros at the end
  float* across;  // [E', padded]
};

LongEvents LongOf(const Tile& tile, int64_t history) {
  const LookbackParts& parts = tile.step->long_;
  const int slots = tile.step->long_events, width = tile.step->width;
  const Span span = SpanOf(tile.step->long_mask + history * slots, slots, 1);
  const int count = span.count(), padded = static_cast<int>(Up(count, 16));
  const int columns = parts.count * width;
  const int64_t first = history * slots + span.from;
  LongEvents events = {first, count, padded, columns,
                       tile.arena->Floats(int64_t{padded} * columns),
                       tile.arena->Floats(int64_t{padded} * columns)};
  for (int l = 0; l < Min(kAhead, count); ++l) Prefetch(parts, width, first + l);
  for (int l = 0; l < count; ++l) {
    if (l + kAhead < count) Prefetch(parts, width, first + l + kAhead);
    Look(parts, width, first + l, events.rows + int64_t{l} * columns);
  }
  memset(events.rows + int64_t{count} * columns, 0, sizeof(float) * (padded - count) * columns);
  for (int l = 0; l < padded; l += kLanes) {
    for (int j = 0; j < columns; j += kLanes) {
      Vec block[kLanes];
      Transpose(events.rows + int64_t{l} * columns + j, columns, block);
      for (int i = 0; i < kLanes; ++i) {
        Store(events.across + int64_t{j + i} * padded + l, block[i]);
      }
    }
  }
  return events;
}

// Which events exist, 1 or 0: [padded].
INLINE void Existing(const Tile& tile, const LongEvents& events, float* exist) {
  for (int l = 0; l < events.padded; ++l) {
    exist[l] = l < events.count && tile.step->long_mask[events.first + l] ? 1.0f : 0.0f;
  }
}

// Where the gradients of a part go, and zeros to those of the slots that are padding: [count, D].
INLINE float* LongGradients(const Tile& tile, int64_t history, const LongEvents& events,
                            const LookbackPart& part) {
  const int slots = tile.step->long_events, width = tile.step->width;
  const int64_t begin = history * slots, end = events.first + events.count;
  memset(part.gradients + begin * width, 0, sizeof(float) * (events.first - begin) * width);
  memset(part.gradients + end * width, 0, sizeof(float) * (begin + slots - end) * width);
  return part.gradients + events.first * width;
}

// The softmax of those scores that are allowed (1, not 0), zero elsewhere: [count].
INLINE void MaskedSoftmax(int count, const float* scores, const float* allowed, float* weights) {
  const Vec lowest = All(-3e38f);
  Vec peaks = lowest, sums = All(0.0f);
  for (int l = 0; l < count; l += kLanes) {
    peaks = Larger(peaks, WhereZero(Load(allowed + l), lowest, Load(scores + l)));
  }
  const Vec peak = All(Largest(peaks));
  for (int l = 0; l < count; l += kLanes) {
    const Vec e = WhereZero(Load(allowed + l), All(0.0f), Exp(Load(scores + l) - peak));
    Store(weights + l, e);
    sums += e;
  }
  const float sum = Sum(sums);
  const Vec factor = All(sum > 0.0f ? 1.0f / sum : 0.0f);
  for (int l = 0; l < count; l += kLanes) Store(weights + l, Load(weights + l) * factor);
}
// gradients of the scores += those that gradients of the weights give.
INLINE void SoftmaxBack(int count, const float* weights, const float* of_weights,
                        float* of_scores) {
  const Vec sum = All(Dot(count, weights, of_weights));
  for (int l = 0; l < count; l += kLanes) {
    Store(of_scores + l, Fma(Load(weights + l), Load(of_weights + l) - sum, Load(of_scores + l)));
  }
}

// Marks the k largest scores that are allowed; among equal ones the earlier win.
INLINE void MarkLargest(int count, int k, const float* scores, const float* allowed, int32_t* keys,
                        float* marks) {
  // A float's bits, as a signed number of the same order; 0 is added to make -0 the same as 0.
  for (int l = 0; l < count; ++l) {
    const float score = scores[l] + 0.0f;
    int32_t bits;
    memcpy(&bits, &score, sizeof(bits));
    bits ^= (bits >> 31) & 0x7fffffff;
    keys[l] = allowed[l] != 0.0f ? bits : INT32_MIN;
  }
  uint32_t found = 0;  // the k-th largest key, bit by bit; its order is that of unsigned numbers
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t next = found | uint32_t{1} << bit;
    const int32_t least = static_cast<int32_t>(next ^ 0x80000000u);
    int reached = 0;
    for (int l = 0; l < count; ++l) reached += keys[l] >= least;
    if (reached >= k) found = next;
    if (reached == k) break;
  }
  const int32_t threshold = static_cast<int32_t>(found ^ 0x80000000u);
  int room = k;
  for (int l = 0; l < count; ++l) room -= keys[l] > threshold;
  for (int l = 0; l < count; ++l) {
    const bool tied = keys[l] == threshold && room > 0;
    room -= tied;
    marks[l] = keys[l] > threshold || tied ? 1.0f : 0.0f;
  }
}
INLINE void MarkLatest(int count, int k, const float* allowed, float* marks) {
  for (int l = count - 1; l >= 0; --l) {
    marks[l] = k > 0 ? allowed[l] : 0.0f;
    k -= allowed[l] != 0.0f;
  }
}

// Rows of a block of which only some columns are a sum's: at the candidate's row.
struct Sums {
  float *searched, *attended, *mean;  // searched null: not wanted
  int64_t searched_row, row;          // floats from one row of the tile to the next
};

struct Search {
  float* weights;  // [T, 4 N + 1, padded]: of the three sums; room for gradients of the scores
  int64_t each;    // floats of a history's, whose `padded` is the largest there can be
};

// The weights of one history's sums. `by_gap` [padded]: what is added to the ESU's scores, or null.
INLINE void SearchWeights(const Tile& tile, int64_t history, const LongEvents& events,
                          const float* scores, const float* by_gap, bool stage_one,
                          float* weights) {
  const LookbackStep& step = *tile.step;
  const int padded = events.padded, candidates = tile.candidates;
  Scope scope(tile.arena);
  float *exist = tile.arena->Floats(padded), *allowed = tile.arena->Floats(padded);
  float *marks = tile.arena->Floats(padded), *exact = tile.arena->Floats(padded);
  int32_t* keys = static_cast<int32_t*>(tile.arena->Bytes(sizeof(int32_t) * padded));
  Existing(tile, events, exist);
  for (int c = 0; c < candidates; ++c) {
    const float *own = scores + c * padded, *may = exist;
    if (step.hard) {
      const int32_t* categories = step.long_category + events.first;
      const int32_t wanted =
          step.target_category[history * step.candidates + tile.first_candidate + c];
      for (int l = 0; l < padded; ++l) {
        allowed[l] = l < events.count && categories[l] == wanted ? exist[l] : 0.0f;
      }
      may = allowed;
    }
    float existing = 0.0f, marked = 0.0f;
    for (int l = 0; l < padded; ++l) existing += may[l];
    const float* selected = may;
    if (existing > static_cast<float>(step.k)) {
      if (step.hard) {
        MarkLatest(padded, step.k, may, marks);
      } else {
        MarkLargest(padded, step.k, own, may, keys, marks);
      }
      selected = marks;
    }
    if (stage_one) MaskedSoftmax(padded, own, may, weights + c * padded);
    if (by_gap != nullptr) {
      for (int l = 0; l < padded; l += kLanes) Store(exact + l, Load(own + l) + Load(by_gap + l));
      own = exact;
    }
    MaskedSoftmax(padded, own, selected, weights + (candidates + c) * padded);
    for (int l = 0; l < padded; ++l) marked += selected[l];
    const Vec share = All(marked > 0.0f ? 1.0f / marked : 0.0f);
    for (int l = 0; l < padded; l += kLanes) {
      Store(weights + (2 * candidates + c) * padded + l, Load(selected + l) * share);
    }
  }
}

// Searches for targets [R, E]. `gap`: null without time features.
Search SearchForward(const Tile& tile, const Vector* gap, const float* targets, const Sums& sums) {
  const int candidates = tile.candidates, histories = tile.histories, width = tile.step->width;
  const int items = tile.step->target.count * width;
  Search run = {nullptr, (4 * candidates + 1) * Up(tile.step->long_events, 16)};
  run.weights = tile.arena->Floats(histories * run.each);
  for (int i = 0; i < histories; ++i) {
    Scope scope(tile.arena);
    const LongEvents events = LongOf(tile, tile.order[i]);
    const int padded = events.padded;
    float* scores = tile.arena->Floats(int64_t{candidates} * padded);
    float* weights = run.weights + i * run.each;
    const Strided own = {targets + int64_t{i} * items, int64_t{histories} * items, 1};
    Product(candidates, padded, items, own, events.across, padded, scores, padded, kNothing);
    float* by_gap = nullptr;
    if (gap != nullptr) {
      by_gap = tile.arena->Floats(padded);
      Product(1, padded, width, {gap->values, 0, 1},
              events.across + int64_t{events.columns - width} * padded, padded, by_gap, padded,
              kNothing);
    }
    SearchWeights(tile, tile.order[i], events, scores, by_gap, sums.searched != nullptr, weights);
    const auto sum = [&](int which, int columns, float* to, int64_t row) {
      Product(candidates, columns, events.count, {weights + which * candidates * padded, padded, 1},
              events.rows, events.columns, to + i * row, histories * row, kNothing);
    };
    if (sums.searched != nullptr) sum(0, items, sums.searched, sums.searched_row);
    sum(1, events.columns, sums.attended, sums.row);
    sum(2, events.columns, sums.mean, sums.row);
  }
  return run;
}

// Gradients of one history's scores, from those of its sums: [N, padded] of the items' part, then
// [padded] of the gap's.
INLINE void ScoresBack(const Tile& tile, const LongEvents& events, int i, const Sums& of,
                       const float* weights, float* of_scores) {
  const int candidates = tile.candidates, histories = tile.histories, padded = events.padded;
  const int items = tile.step->target.count * tile.step->width;
  Scope scope(tile.arena);
  float* of_weights = tile.arena->Floats(2 * int64_t{candidates} * padded);
  float* of_exact = of_weights + int64_t{candidates} * padded;
  float* of_gap = of_scores + int64_t{candidates} * padded;
  Product(candidates, padded, items,
          {of.searched + i * of.searched_row, histories * of.searched_row, 1}, events.across,
          padded, of_weights, padded, kNothing);
  Product(candidates, padded, events.columns, {of.attended + i * of.row, histories * of.row, 1},
          events.across, padded, of_exact, padded, kNothing);
  memset(of_scores, 0, sizeof(float) * (candidates + 1) * padded);
  for (int c = 0; c < candidates; ++c) {
    float* own = of_scores + c * padded;
    SoftmaxBack(padded, weights + (candidates + c) * padded, of_exact + c * padded, own);
    for (int l = 0; l < padded; l += kLanes) Store(of_gap + l, Load(of_gap + l) + Load(own + l));
    SoftmaxBack(padded, weights + c * padded, of_weights + c * padded, own);
  }
}

// The backward pass: gradients `of` the sums; writes those of the events into their parts, adds
// those of the targets [R, E].
void SearchBackward(const Tile& tile, const Vector* gap, const float* targets, const Search& run,
                    const Sums& of, float* of_targets) {
  const LookbackStep& step = *tile.step;
  const int candidates = tile.candidates, histories = tile.histories, width = step.width;
  const int items = step.target.count * width;
  for (int i = 0; i < histories; ++i) {
    Scope scope(tile.arena);
    const LongEvents events = LongOf(tile, tile.order[i]);
    const int columns = events.columns, padded = events.padded, rows = 4 * candidates + 1;
    float* weights = run.weights + i * run.each;
    float* of_scores = weights + 3 * int64_t{candidates} * padded;
    ScoresBack(tile, events, i, of, weights, of_scores);
    // An event's gradient is one sum: over the three sums' weights, the scores, and the gap's.
    float* terms = tile.arena->Zeros(int64_t{rows} * columns);
    for (int c = 0; c < candidates; ++c) {
      const int64_t r = int64_t{c} * histories + i;
      memcpy(terms + c * columns, of.searched + r * of.searched_row, sizeof(float) * items);
      memcpy(terms + (candidates + c) * columns, of.attended + r * of.row, sizeof(float) * columns);
      memcpy(terms + (2 * candidates + c) * columns, of.mean + r * of.row, sizeof(float) * columns);
      memcpy(terms + (3 * candidates + c) * columns, targets + r * items, sizeof(float) * items);
    }
    if (gap != nullptr) {
      const float* of_gap = of_scores + int64_t{candidates} * padded;
      memcpy(terms + 4 * candidates * columns + columns - width, gap->values,
             sizeof(float) * width);
      Product(1, width, events.count, {of_gap, 0, 1}, events.rows + columns - width, columns,
              tile.of(*gap), width, kThere);
    }
    for (int p = 0; p < step.long_.count; ++p) {
      float* to = LongGradients(tile, tile.order[i], events, step.long_.parts[p]);
      Product(events.count, width, rows - (gap == nullptr), {weights, 1, padded}, terms + p * width,
              columns, to, width, kNothing);
    }
    Product(candidates, items, events.count, {of_scores, padded, 1}, events.rows, columns,
            of_targets + int64_t{i} * items, int64_t{histories} * items, kThere);
  }
}

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_SEARCH_H_
