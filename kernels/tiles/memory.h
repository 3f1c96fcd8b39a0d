// What a thread works in: memory that is taken in turn and given back in the reverse order.

#ifndef LOOKBACK_KERNELS_TILES_MEMORY_H_
#define LOOKBACK_KERNELS_TILES_MEMORY_H_

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

namespace lookback {
namespace {

INLINE void* Allocated(size_t bytes) {
  void* memory = aligned_alloc(64, Up(bytes, 64));
  if (memory == nullptr) {
    fprintf(stderr, "lookback: no memory for %zu bytes\n", bytes);
    abort();
  }
  return memory;
}

// Blocks never move, and stay until the end: the second tile allocates nothing.
class Arena {
 public:
  struct Mark {
    int block;
    size_t used;
  };

  Arena* next = nullptr;  // of a Pool

  Arena() = default;
  Arena(const Arena&) = delete;

  float* Floats(int64_t count) { return static_cast<float*>(Bytes(count * sizeof(float))); }
  float* Zeros(int64_t count) {
    float* floats = Floats(count);
    memset(floats, 0, count * sizeof(float));
    return floats;
  }
  void* Bytes(size_t size) {
    size = Up(size > 0 ? size : 1, 64);  // never null
    while (now_.used + size > blocks_[now_.block].size) {
      if (now_.used > 0) now_ = {now_.block + 1, 0};
      if (now_.block == kBlocks) {
        fputs("lookback: a tile needs too much memory\n", stderr);
        abort();
      }
      if (blocks_[now_.block].size < size) {  // nothing lies in it
        free(blocks_[now_.block].memory);
        const size_t whole = size > kLeast ? size : kLeast;
        blocks_[now_.block] = {static_cast<char*>(Allocated(whole)), whole};
      }
    }
    char* memory = blocks_[now_.block].memory + now_.used;
#ifdef LOOKBACK_POISON  // of a test: what is read before it was written is not a number
    memset(memory, 0xff, size);
#endif
    now_.used += size;
    return memory;
  }
  Mark mark() const { return now_; }
  void Release(Mark mark) { now_ = mark; }

 private:
  static constexpr int kBlocks = 64;
  static constexpr size_t kLeast = size_t{4} << 20;
  struct Block {
    char* memory;
    size_t size;
  };
  Block blocks_[kBlocks + 1] = {};
  Mark now_ = {0, 0};
};

// Gives back, at its end, what was taken since.
class Scope {
 public:
  explicit Scope(Arena* arena) : arena_(arena), mark_(arena->mark()) {}
  Scope(const Scope&) = delete;
  ~Scope() { arena_->Release(mark_); }

 private:
  Arena* arena_;
  Arena::Mark mark_;
};

// Arenas in which nobody works: there are as many as there have been at work at once. They are never
// freed, as a thread may still be at work while its process ends.
class Pool {
 public:
  Arena* Take() {
    pthread_mutex_lock(&mutex_);
    Arena* arena = free_;
    if (arena != nullptr) free_ = arena->next;
    pthread_mutex_unlock(&mutex_);
    return arena != nullptr ? arena : new Arena;
  }
  void Give(Arena* arena) {
    arena->Release({0, 0});
    pthread_mutex_lock(&mutex_);
    arena->next = free_;
    free_ = arena;
    pthread_mutex_unlock(&mutex_);
  }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Arena* free_ = nullptr;
};

}  // namespace
}  // namespace lookback

#endif  // LOOKBACK_KERNELS_TILES_MEMORY_H_
