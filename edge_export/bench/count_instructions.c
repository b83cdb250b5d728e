/* A plugin of qemu's: adds up the guest instructions of each translated block that runs, and writes
 * the sum, a line each time, whenever the guest asks for its parent's process number.
 *
 * Distributions ship qemu without the header of its plugins; what is used of it stands here.
 * PLUGIN_API is 1 for qemu 4.2 to 8, where a sum is a plain integer, and 2 from qemu 9 on, where
 * each emulated processor has a sum of its own. The counts go to the file named by out=FILE. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;

extern void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t id, void (*see)(qemu_plugin_id_t id, struct qemu_plugin_tb* block));
extern void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t id,
    void (*see)(qemu_plugin_id_t id, unsigned processor, int64_t number, uint64_t a, uint64_t b,
                uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);

#define EXPORT __attribute__((visibility("default")))
#define ADD_U64 0   /* of enum qemu_plugin_op */
#define GETPPID 173 /* of aarch64 Linux */

#if PLUGIN_API == 1
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation,
                                                     void* sum, uint64_t value);
static uint64_t instructions;

static void begin(void) {}
static void add(struct qemu_plugin_tb* block, uint64_t value) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, value);
}
static uint64_t total(void) { return instructions; }
#else
struct qemu_plugin_scoreboard;
typedef struct {
  struct qemu_plugin_scoreboard* score;
  size_t offset;
} qemu_plugin_u64;

extern struct qemu_plugin_scoreboard* qemu_plugin_scoreboard_new(size_t bytes);
extern void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb* block,
                                                              int operation, qemu_plugin_u64 sum,
                                                              uint64_t value);
extern uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 sum);
static qemu_plugin_u64 instructions;

static void begin(void) { instructions.score = qemu_plugin_scoreboard_new(sizeof(uint64_t)); }
static void add(struct qemu_plugin_tb* block, uint64_t value) {
  qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD_U64, instructions, value);
}
static uint64_t total(void) { return qemu_plugin_u64_sum(instructions); }
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

static FILE* counts;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  add(block, qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned processor, int64_t number, uint64_t a, uint64_t b,
                   uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)processor, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != GETPPID) return;
  fprintf(counts, "%" PRIu64 "\n", total());
  fflush(counts);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t* info, int count,
                               char** words) {
  (void)info;
  for (int n = 0; n < count; n++)
    if (strncmp(words[n], "out=", 4) == 0) counts = fopen(words[n] + 4, "w");
  if (counts == NULL) return 1;
  begin();
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
