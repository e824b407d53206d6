// A block of CUDA threads on one CPU thread: every thread is a fiber, a scheduler picks the next one at random.
//
// A fiber runs until it needs others: at a barrier, or at a warp collective (mma, ldmatrix, shuffle), which is computed for
// all 32 lanes by the last lane to arrive. Random order makes a missing barrier visible as a wrong result on most
// seeds. Copies of cp.async land either at once or only when waited for (a coin decides), and an outstanding one holds
// poison, so that both a missing wait and a stage that is overwritten too early give wrong results. Shared memory starts as
// poison in every block and has a guard behind it. A lane missing at a collective is reported as a deadlock. The copy
// engine (hopper_machine.hpp) works between the fibers' turns, or in other blocks only when every fiber waits.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

namespace simt {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t PAGE = 4096;
constexpr size_t SIGNAL_STACK_BYTES = 64 << 10;
constexpr unsigned char POISON = 0xCD;
constexpr unsigned SHARED_BASE = 2048;  // addresses of shared memory do not start at 0 on a GPU either

struct Index { unsigned x, y, z; };

struct Config {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  unsigned seed;
};

struct Statistics {
  uint64_t ldmatrix_rows_of_eight, ldmatrix_conflicts, barriers, collectives, copies;
};

struct Result {
  char message[480];
  uint64_t fault_address;
  Statistics statistics;
};

struct Copy {
  unsigned char* destination;
  const unsigned char* source;
  unsigned size, valid;
};

enum class State { ready, at_barrier, at_collective, at_mbarrier, done };

struct Thread {
  Index index;
  unsigned rank;
  State state;
  bool started;
  ucontext_t start;
  jmp_buf resume;
  const char* where;
  std::vector<std::vector<Copy>> groups;  // closed ones in order; the last entry is still open
  const void* in;
  void* out;
  unsigned lanes;  // of the collective it waits at
  unsigned barrier, barrier_count;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> ready;
  Index block_index, block_dim, grid_dim;
  unsigned char* shared;
  unsigned shared_bytes;
  uint64_t random;
  jmp_buf scheduler, failure;
  void (*body)(void*);
  void* body_data;
  Result* result;
  Statistics statistics;
  std::vector<std::function<void()>> engine;  // copies that are ordered and not done
  void (*at_start)();                         // forgets what a block before left behind
};

inline Block block;
inline Thread* current;
inline std::vector<unsigned char*> stacks;
inline sigjmp_buf fault_exit;

inline uint64_t random_bits() {
  block.random ^= block.random << 13;
  block.random ^= block.random >> 7;
  block.random ^= block.random << 17;
  return block.random;
}

[[noreturn]] inline void fail(const char* format, ...) {
  char text[320];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  snprintf(block.result->message, sizeof block.result->message, "%s (block %u,%u,%u thread %u,%u,%u)", text,
           block.block_index.x, block.block_index.y, block.block_index.z, current ? current->index.x : 0,
           current ? current->index.y : 0, current ? current->index.z : 0);
  _longjmp(block.failure, 1);
}

inline void suspend(State state, const char* where) {
  current->state = state;
  current->where = where;
  if (!_setjmp(current->resume)) _longjmp(block.scheduler, 1);
}

inline void make_ready(Thread& thread) {
  thread.state = State::ready;
  block.ready.push_back(thread.rank);
}

// Barrier `id` among `count` threads; 0 and all of them is __syncthreads.
inline void barrier(unsigned id, unsigned count) {
  current->barrier = id;
  current->barrier_count = count;
  unsigned arrived = 1;
  for (Thread& thread : block.threads) {
    if (&thread == current || thread.state != State::at_barrier || thread.barrier != id) continue;
    if (thread.barrier_count != count) fail("barrier %u expects %u and %u threads", id, count, thread.barrier_count);
    ++arrived;
  }
  if (arrived < count) return suspend(State::at_barrier, "a barrier");
  ++block.statistics.barriers;
  for (Thread& thread : block.threads)
    if (&thread != current && thread.state == State::at_barrier && thread.barrier == id) make_ready(thread);
  make_ready(*current);
  suspend(State::ready, "a barrier");  // the last to arrive is not always the first to go on
}

// All LANES lanes of this group hand in `in`; the last one computes all of `out`. `name` must be the same for all.
template <unsigned LANES = WARP, class In, class Out>
void collective(const char* name, const In& in, Out& out, void (*compute)(const In*, Out*)) {
  const unsigned first = current->rank / LANES * LANES;
  if (first + LANES > block.threads.size()) fail("%s in an incomplete warp", name);
  current->in = &in;
  current->out = &out;
  current->lanes = LANES;
  unsigned arrived = 1;
  for (unsigned i = first; i < first + LANES; ++i) {
    Thread& thread = block.threads[i];
    if (&thread == current || thread.state != State::at_collective || thread.lanes != LANES) continue;
    if (strcmp(thread.where, name)) fail("lanes of one warp are at %s and at %s", name, thread.where);
    ++arrived;
  }
  if (arrived < LANES) return suspend(State::at_collective, name);
  ++block.statistics.collectives;
  In ins[LANES];
  Out outs[LANES];
  for (unsigned i = 0; i < LANES; ++i) {
    ins[i] = *static_cast<const In*>(block.threads[first + i].in);
    outs[i] = *static_cast<Out*>(block.threads[first + i].out);
  }
  compute(ins, outs);
  for (unsigned i = 0; i < LANES; ++i) {
    *static_cast<Out*>(block.threads[first + i].out) = outs[i];
    if (&block.threads[first + i] != current) make_ready(block.threads[first + i]);
  }
}

inline unsigned shared_offset(const void* pointer, const char* what) {
  const unsigned char* p = static_cast<const unsigned char*>(pointer);
  if (p < block.shared || p > block.shared + block.shared_bytes) fail("%s: not an address of dynamic shared memory", what);
  return static_cast<unsigned>(p - block.shared) + SHARED_BASE;
}

inline unsigned char* shared_pointer(unsigned address, unsigned size, unsigned alignment, const char* what) {
  if (address % alignment) fail("%s: shared address %u is not a multiple of %u", what, address - SHARED_BASE, alignment);
  if (address < SHARED_BASE || address - SHARED_BASE + size > block.shared_bytes)
    fail("%s: %u bytes at %d lie outside %u bytes of shared memory", what, size,
         static_cast<int>(address - SHARED_BASE), block.shared_bytes);
  return block.shared + (address - SHARED_BASE);
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

inline void perform(const Copy& copy) {
  memcpy(copy.destination, copy.source, copy.valid);
  memset(copy.destination + copy.valid, 0, copy.size - copy.valid);
}

inline void cp_async(unsigned destination, const void* source, unsigned size, unsigned valid) {
  if (valid > size) fail("cp.async: %u valid bytes of %u", valid, size);
  if (reinterpret_cast<uintptr_t>(source) % size) fail("cp.async: source is not aligned to %u bytes", size);
  Copy copy{shared_pointer(destination, size, size, "cp.async"), static_cast<const unsigned char*>(source), size, valid};
  ++block.statistics.copies;
  if (random_bits() & 64) return perform(copy);
  memset(copy.destination, POISON, size);
  current->groups.back().push_back(copy);
}

inline void cp_async_commit() { current->groups.emplace_back(); }

inline void cp_async_wait(unsigned pending) {
  while (current->groups.size() > pending + 1) {
    for (const Copy& copy : current->groups.front()) perform(copy);
    current->groups.erase(current->groups.begin());
  }
}

// ---- running --------------------------------------------------------------------------------------------------------

inline void fiber_main() {
  block.body(block.body_data);
  for (auto& group : current->groups)
    if (!group.empty()) fail("the thread ends with cp.async copies under way");
  current->state = State::done;
  _longjmp(block.scheduler, 1);
}

// Lets the copy engine finish one of its copies, in any order.
inline void run_engine() {
  const size_t chosen = random_bits() % block.engine.size();
  const std::function<void()> copy = std::move(block.engine[chosen]);
  block.engine.erase(block.engine.begin() + chosen);
  copy();
}

inline void run_block() {
  if (block.at_start) block.at_start();
  for (Thread& thread : block.threads) {
    thread.state = State::ready;
    thread.started = false;
    thread.groups.assign(1, {});
    block.ready.push_back(thread.rank);
  }
  memset(block.shared, POISON, block.shared_bytes);
  size_t left = block.threads.size();
  const bool quick_engine = random_bits() & 64;  // the other kind copies when all threads wait
  while (left) {
    if (!block.engine.empty() && (block.ready.empty() || (quick_engine && random_bits() % 16 == 0))) {
      run_engine();
      continue;
    }
    if (block.ready.empty()) {
      current = nullptr;
      char text[256] = "";
      unsigned shown = 0;
      for (Thread& t : block.threads)
        if (t.state != State::done && shown++ < 4)
          snprintf(text + strlen(text), sizeof text - strlen(text), " thread %u waits at %s;", t.rank, t.where);
      fail("deadlock, %zu threads never end:%s", left, text);
    }
    std::swap(block.ready[random_bits() % block.ready.size()], block.ready.back());
    current = &block.threads[block.ready.back()];
    block.ready.pop_back();
    if (!_setjmp(block.scheduler)) {
      if (current->started) _longjmp(current->resume, 1);
      current->started = true;
      getcontext(&current->start);
      current->start.uc_stack.ss_sp = stacks[current->rank];
      current->start.uc_stack.ss_size = STACK_BYTES;
      current->start.uc_link = nullptr;
      makecontext(&current->start, fiber_main, 0);
      setcontext(&current->start);
    }
    if (current->state == State::done) --left;
  }
  if (!block.engine.empty()) fail("the block ends with copies of the engine under way");
  for (unsigned i = block.shared_bytes; i % PAGE; ++i)
    if (block.shared[i] != POISON) fail("a write beyond the %u bytes of shared memory, at %u", block.shared_bytes, i);
}

inline void on_fault(int, siginfo_t* info, void*) {
  block.result->fault_address = reinterpret_cast<uint64_t>(info->si_addr);
  siglongjmp(fault_exit, 1);
}

inline void run_grid(const Config& config) {
  for (unsigned z = 0; z < config.grid[2]; ++z)
    for (unsigned y = 0; y < config.grid[1]; ++y)
      for (unsigned x = 0; x < config.grid[0]; ++x) {
        block.block_index = {x, y, z};
        run_block();
      }
}

inline void prepare(const Config& config, Result& result) {
  const unsigned count = config.block[0] * config.block[1] * config.block[2];
  block.result = &result;
  block.statistics = {};
  block.block_dim = {config.block[0], config.block[1], config.block[2]};
  block.grid_dim = {config.grid[0], config.grid[1], config.grid[2]};
  block.random = 0x9E3779B97F4A7C15ull * (config.seed + 1);
  block.shared_bytes = config.shared_bytes;
  block.ready.clear();
  block.engine.clear();
  block.threads.assign(count, Thread{});
  for (unsigned rank = 0; rank < count; ++rank) {
    Thread& thread = block.threads[rank];
    thread.rank = rank;
    thread.index = {rank % config.block[0], rank / config.block[0] % config.block[1],
                    rank / (config.block[0] * config.block[1])};
  }
  while (stacks.size() < count)
    stacks.push_back(static_cast<unsigned char*>(
        mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
}

// Runs the whole grid; the message of `result` stays empty when all went well.
inline void launch(const Config& config, void (*body)(void*), void* data, Result& result) {
  prepare(config, result);
  block.body = body;
  block.body_data = data;
  const size_t span = (config.shared_bytes / PAGE + 1) * PAGE;
  block.shared = static_cast<unsigned char*>(
      mmap(nullptr, span + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(block.shared, POISON, span);
  mprotect(block.shared + span, PAGE, PROT_NONE);

  static unsigned char signal_stack[SIGNAL_STACK_BYTES];
  stack_t ours{signal_stack, 0, SIGNAL_STACK_BYTES}, before;
  sigaltstack(&ours, &before);
  struct sigaction action = {}, old_segv, old_bus;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  if (sigsetjmp(fault_exit, 1)) {
    snprintf(result.message, sizeof result.message, "illegal access (block %u,%u,%u thread %u,%u,%u)",
             block.block_index.x, block.block_index.y, block.block_index.z, current ? current->index.x : 0,
             current ? current->index.y : 0, current ? current->index.z : 0);
  } else if (!_setjmp(block.failure)) {
    run_grid(config);
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&before, nullptr);
  munmap(block.shared, span + PAGE);
  current = nullptr;
  result.statistics = block.statistics;
}

template <class... Parameters, size_t... Is>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Is...>) {
  kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[Is])...);
}

template <class... Parameters>
int launch_kernel(void (*kernel)(Parameters...), const Config* config, void** arguments, const unsigned* sizes,
                  unsigned count, Result* result) {
  const unsigned expected[] = {static_cast<unsigned>(sizeof(Parameters))...};
  if (count != sizeof...(Parameters)) {
    snprintf(result->message, sizeof result->message, "the kernel takes %zu arguments, not %u", sizeof...(Parameters), count);
    return 1;
  }
  for (unsigned i = 0; i < count; ++i)
    if (sizes[i] != expected[i]) {
      snprintf(result->message, sizeof result->message, "argument %u has %u bytes, the kernel takes %u", i, sizes[i], expected[i]);
      return 1;
    }
  auto data = std::make_pair(kernel, arguments);
  launch(*config, [](void* p) {
    auto& pair = *static_cast<decltype(data)*>(p);
    call(pair.first, pair.second, std::index_sequence_for<Parameters...>());
  }, &data, *result);
  return result->message[0] != 0;
}

}  // namespace simt
