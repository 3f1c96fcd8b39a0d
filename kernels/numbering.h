// Ids that repeat, numbered: 0 for the first of them, 1 for the next that is another, and so on.

#ifndef LOOKBACK_KERNELS_NUMBERING_H_
#define LOOKBACK_KERNELS_NUMBERING_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace lookback {

constexpr int kAhead = 16;     // ids: what they lead to is asked for so long before it is needed
constexpr int kRowsAnId = 4;   // so many rows cost no more to be zeroed than an id to be hashed

// The numbers of ids in [0, rows), of which at most `ids` come. Of a table that is large beside
// them, ids are hashed, so that the cost is that of the ids, whatever the rows.
template <typename Index>
class Numbering {
 public:
  Numbering(int64_t rows, int64_t ids) {
    if (rows <= kRowsAnId * ids) {
      numbers_.assign(rows, 0);
    } else {
      while ((int64_t{1} << bits_) < 2 * ids) ++bits_;
      entries_.assign(int64_t{1} << bits_, Entry{0, 0});
    }
  }

  void Prefetch(Index id) const {
    if (entries_.empty()) {
      __builtin_prefetch(&numbers_[id]);
    } else {
      __builtin_prefetch(&entries_[Home(id)]);
    }
  }

  // The number of `id`: `next` if it is new.
  int32_t Of(Index id, int32_t next) {
    if (entries_.empty()) {
      if (numbers_[id] == 0) numbers_[id] = next + 1;
      return numbers_[id] - 1;
    }
    uint64_t at = Home(id);
    while (entries_[at].number != 0 && entries_[at].id != id) at = (at + 1) & (entries_.size() - 1);
    if (entries_[at].number == 0) entries_[at] = {id, next + 1};
    return entries_[at].number - 1;
  }

 private:
  struct Entry {
    Index id;
    int32_t number;  // and 1; 0: nobody's
  };

  // Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4).
  uint64_t Home(Index id) const {
    return (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15) >> (64 - bits_);
  }

  std::vector<int32_t> numbers_;  // and 1, by row; 0: nobody's
  std::vector<Entry> entries_;
  int bits_ = 1;
};

// Refuses ids outside of [0, rows).
template <typename Index>
tensorflow::Status CheckIds(const Index* ids, int64_t count, int64_t rows) {
  Index least = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, ids[i]);
    most = std::max(most, ids[i]);
  }
  if (count == 0 || (least >= 0 && most < rows)) return tensorflow::OkStatus();
  const Index* wrong =
      std::find_if(ids, ids + count, [rows](Index id) { return id < 0 || id >= rows; });
  return tensorflow::errors::InvalidArgument("indices[", wrong - ids, "] = ", *wrong,
                                             " is not in [0, ", rows, ")");
}

}  // namespace lookback

#endif  // LOOKBACK_KERNELS_NUMBERING_H_
