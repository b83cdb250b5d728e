// Trains one local round from a file, without Python: `node JOB RESULT [EPOCHS]`.
//
// JOB is the list of arrays below, in this order, each with its length in bytes as a 64-bit
// integer before it; structs are those of api.h as a 64-bit little-endian machine lays them
// out, with null pointers. RESULT holds the trained parameters, the running statistics, and
// the sums of the last epoch, in the same form. Ends with 0, with the status of training, or
// with 64 and a line that says what is wrong with the arguments, the file or the machine.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api.h"

extern "C" const FsApi* fs_api(const char* wanted);

namespace {

enum Part {
  MODEL,       // one FsModel
  TENSORS,     // FsTensor
  OPS,         // FsOp
  POSITIONS,   // int32
  WINDOWS,     // int32, of average pooling: what the index starts with
  PARAMETERS,  // float
  BUFFERS,     // float
  SETTINGS,    // one FsSettings
  X,           // float (samples, features)
  Y,           // int64, empty where the targets are numbers
  TARGETS,     // float, empty where there are labels
  ROWS,        // int64 (epochs, samples of an epoch)
  EDGES,       // int64 (batches + 1)
  ROUND,       // one Round
  PARTS
};

struct Round {
  int32_t lanes, frozen, track, epochs, slots, unused;
};

[[noreturn]] void refuse(const char* what, const char* which) {
  std::fprintf(stderr, "node: %s: %s\n", which, what);
  std::exit(64);
}

// Zeroed memory at a multiple of 64, as the kernels want it.
void* allocate(int64_t bytes) {
  const size_t room = (size_t(bytes) + 64) / 64 * 64;
  void* memory = std::aligned_alloc(64, room);
  if (memory == nullptr) refuse("no memory", "round");
  return std::memset(memory, 0, room);
}

template <class T>
T* zeros(int64_t count) {
  return static_cast<T*>(allocate(count * int64_t(sizeof(T))));
}

struct Array {
  int64_t bytes = 0;
  void* data = nullptr;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  T& one(const char* path) const {
    if (bytes != int64_t(sizeof(T))) refuse("a struct of another size", path);
    return *as<T>();
  }
  template <class T>
  T* or_null() const {
    return bytes ? as<T>() : nullptr;
  }
};

void read(const char* path, Array* parts) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) refuse("cannot be opened", path);
  for (int i = 0; i < PARTS; i++) {
    Array& part = parts[i];
    if (std::fread(&part.bytes, sizeof part.bytes, 1, file) != 1 || part.bytes < 0)
      refuse("is cut off", path);
    part.data = allocate(part.bytes);
    if (std::fread(part.data, 1, size_t(part.bytes), file) != size_t(part.bytes))
      refuse("is cut off", path);
  }
  std::fclose(file);
}

void write(std::FILE* file, const void* data, int64_t bytes) {
  std::fwrite(&bytes, sizeof bytes, 1, file);
  std::fwrite(data, 1, size_t(bytes), file);
}

// Gives every sparse layer its place in the index, behind the windows of pooling, and fills it.
void make_index(const FsApi& api, FsModel& model, const Array* parts) {
  FsOp* ops = parts[OPS].as<FsOp>();
  int64_t words = parts[WINDOWS].bytes / int64_t(sizeof(int32_t));
  for (int32_t i = 0; i < model.op_count; i++) {
    if (ops[i].kind != FS_CONV || !ops[i].sparse) continue;
    ops[i].index = words;
    words += api.index_words(&model, i);
  }
  model.index_words = words;
  model.index = zeros<int32_t>(words);
  std::memcpy(model.index, parts[WINDOWS].data, size_t(parts[WINDOWS].bytes));
  api.compile(&model);
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) refuse("expected JOB RESULT [EPOCHS]", "arguments");
  const FsApi* api = fs_api(nullptr);
  if (api == nullptr) refuse("no instruction set of this build runs here", "kernels");
  Array parts[PARTS];
  read(words[1], parts);

  FsModel& model = parts[MODEL].one<FsModel>(words[1]);
  model.tensors = parts[TENSORS].as<FsTensor>();
  model.ops = parts[OPS].as<FsOp>();
  model.positions = parts[POSITIONS].as<int32_t>();
  make_index(*api, model, parts);

  const Round& round = parts[ROUND].one<Round>(words[1]);
  const int32_t epochs = count > 3 ? std::atoi(words[3]) : round.epochs;
  if (epochs < 0 || epochs > round.epochs) refuse("more epochs than the file has", words[1]);
  FsWork work = {};
  work.arena = zeros<float>(api->arena_floats(&model, round.lanes, 1));
  work.parameters = parts[PARAMETERS].as<float>();
  work.gradients = zeros<float>(model.parameters);
  work.buffers = parts[BUFFERS].as<float>();
  work.x = parts[X].as<float>();
  work.y = parts[Y].or_null<int64_t>();
  work.targets = parts[TARGETS].or_null<float>();
  work.lanes = round.lanes;
  work.frozen = round.frozen;
  work.track = round.track;

  const int32_t batches = int32_t(parts[EDGES].bytes / int64_t(sizeof(int64_t))) - 1;
  FsSums sums = {};
  int64_t steps = 0;
  const int32_t status = api->train(
      &model, &work, &parts[SETTINGS].one<FsSettings>(words[1]),
      zeros<float>(round.slots * model.parameters), nullptr, &steps, parts[ROWS].as<int64_t>(),
      parts[EDGES].as<int64_t>(), batches, 0, int64_t(batches) * epochs, &sums);

  std::FILE* file = std::fopen(words[2], "wb");
  if (file == nullptr) refuse("cannot be written", words[2]);
  write(file, work.parameters, parts[PARAMETERS].bytes);
  write(file, work.buffers, parts[BUFFERS].bytes);
  write(file, &sums, sizeof sums);
  if (std::fclose(file) != 0) refuse("cannot be written", words[2]);
  return status;
}
