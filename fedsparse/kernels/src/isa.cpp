// The kernels for one instruction set: compiled once for each, with FS_ISA its name, FS_WIDTH
// the floats of its vectors, and the compiler's flags for it.
#include "api.h"
#include "train.h"

#define FS_PASTE(left, right) left##right
#define FS_TABLE(isa) FS_PASTE(fs_api_, isa)

// Made by the compiler, not when the library is loaded: nothing of an instruction set may run
// before it is chosen.
extern "C" {
extern const FsApi FS_TABLE(FS_ISA);
constexpr FsApi FS_TABLE(FS_ISA) = {
    fedsparse::FS_ISA::WIDTH,   fedsparse::FS_ISA::index_words, fedsparse::FS_ISA::compile,
    fedsparse::FS_ISA::arena_floats, fedsparse::FS_ISA::forward, fedsparse::FS_ISA::backward,
    fedsparse::FS_ISA::train,   fedsparse::FS_ISA::evaluate,    fedsparse::FS_ISA::grow,
    fedsparse::FS_ISA::add_exact, fedsparse::FS_ISA::check,
};
}
