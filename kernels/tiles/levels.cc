// Which level this CPU runs: the best one that was built, that it has, and that may be taken.

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "tiles.h"

// A level that the compiler had no instructions for is not there.
extern "C" {
extern const LookbackLevel lookback_level_avx2 __attribute__((weak));
extern const LookbackLevel lookback_level_avx512 __attribute__((weak));
extern const LookbackLevel lookback_level_avx512_bf16 __attribute__((weak));
extern const LookbackLevel lookback_level_amx __attribute__((weak));
}

namespace {

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// The operating system's part is in __builtin_cpu_supports, which knows no newer instructions.
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && HasAvx2();
}

// A bit of a register of CPUID's leaf 7. Asked once: in a virtual machine it takes microseconds.
bool Bit(unsigned subleaf, int register_, int bit) {
  unsigned r[4] = {};
  return __get_cpuid_count(7, subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[register_] >> bit & 1);
}

bool HasAvx512Bf16() {
  static const bool there = HasAvx512() && Bit(1, 0, 5);
  return there;
}

// Linux lets a process use AMX's registers when it asks, once.
bool HasAmx() {
#ifdef __linux__
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = HasAvx512Bf16() && Bit(0, 3, 22) && Bit(0, 3, 24) &&  // BF16, TILE
                              syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// Whether a list of names, one comma between two, holds this one.
bool Holds(const char* names, const char* name) {
  const size_t length = strlen(name);
  while (names != nullptr) {
    if (strncmp(names, name, length) == 0 && (names[length] == ',' || names[length] == '\0')) {
      return true;
    }
    names = strchr(names, ',');
    if (names != nullptr) ++names;
  }
  return false;
}

const LookbackLevel* Usable(const LookbackLevel* level, bool (*has)()) {
  if (level == nullptr || !has()) return nullptr;
  const char* wanted = getenv("LOOKBACK_CPU_LEVEL");
  return wanted == nullptr || Holds(wanted, level->name) ? level : nullptr;
}

}  // namespace

const LookbackLevel* lookback_level(int bfloat16) {
  if (bfloat16) {
    const LookbackLevel* amx = Usable(&lookback_level_amx, HasAmx);
    return amx != nullptr ? amx : Usable(&lookback_level_avx512_bf16, HasAvx512Bf16);
  }
  const LookbackLevel* wide = Usable(&lookback_level_avx512, HasAvx512);
  return wide != nullptr ? wide : Usable(&lookback_level_avx2, HasAvx2);
}

const char* lookback_level_name(int bfloat16) {
  const LookbackLevel* level = lookback_level(bfloat16);
  return level == nullptr ? nullptr : level->name;
}
