// Which of the compiled instruction sets runs: the widest that this processor has, or the one
// that is asked for. Compiled for the plainest processor, as it runs before the choice.
#include <cstdlib>
#include <cstring>

#include "api.h"

#define FS_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
extern const FsApi fs_api_baseline, fs_api_avx2, fs_api_avx512;
}

namespace {

struct Choice {
  const char* name;
  const FsApi* api;
};

const Choice NONE = {"off", nullptr};

#ifdef FS_HAVE_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("pclmul");
}
#endif

#ifdef FS_HAVE_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("pclmul");
}
#endif

// `wanted`: a name, or null or "" for $FEDSPARSE_KERNELS, else the widest.
Choice choose(const char* wanted) {
  if (wanted == nullptr || *wanted == 0) wanted = std::getenv("FEDSPARSE_KERNELS");
  const bool any = wanted == nullptr || *wanted == 0;
#if defined(FS_HAVE_AVX2) || defined(FS_HAVE_AVX512)
  __builtin_cpu_init();
#endif
#ifdef FS_HAVE_AVX512
  if ((any || std::strcmp(wanted, "avx512") == 0) && has_avx512())
    return {"avx512", &fs_api_avx512};
#endif
#ifdef FS_HAVE_AVX2
  if ((any || std::strcmp(wanted, "avx2") == 0) && has_avx2()) return {"avx2", &fs_api_avx2};
#endif
#ifdef FS_HAVE_BASELINE
  if (any || std::strcmp(wanted, "baseline") == 0) return {"baseline", &fs_api_baseline};
#endif
  return NONE;
}

}  // namespace

// The functions of an instruction set: of the one `wanted`, of $FEDSPARSE_KERNELS, or of the
// widest. Null where that is not compiled, not on this processor, or "off".
FS_EXPORT const FsApi* fs_api(const char* wanted) { return choose(wanted).api; }

// The name of the instruction set that fs_api(null) gives, "off" where it gives none.
FS_EXPORT const char* fs_isa() { return choose(nullptr).name; }

// What was compiled and how: a hash of the sources and one of compiler and flags.
FS_EXPORT const char* fs_version() { return FS_STAMP; }

// Which layout the structs of api.h have; Python refuses any other than its own.
FS_EXPORT int32_t fs_abi() { return FS_ABI; }

// The compiler that built this.
FS_EXPORT const char* fs_compiler() {
#ifdef __clang__
  return __VERSION__;
#else
  return "GCC " __VERSION__;
#endif
}
