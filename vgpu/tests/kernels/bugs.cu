// One mistake a kernel. A marker `BUG kind` stands on each line where it may be found; `LAUNCH` gives what
// differs from two blocks of 64 threads without dynamic shared memory.
#include <assert.h>
#include <stdint.h>

#define KERNEL(name) extern "C" __global__ void name(volatile int* data, volatile int* freed, volatile int* fresh, int n)
#define TID threadIdx.x
#define GID (blockIdx.x * blockDim.x + threadIdx.x)

KERNEL(read_past_the_end) {
  int value = data[n + TID];  // BUG OutOfBounds
  data[GID] = value;
}

KERNEL(write_past_the_end) {
  data[GID + n - 100] = 1;  // BUG OutOfBounds
}

KERNEL(read_before_the_start) {
  int value = data[-1 - (int)TID];  // BUG OutOfBounds
  data[GID] = value;
}

KERNEL(read_freed) {
  int value = freed[TID];  // BUG UseAfterFree
  data[GID] = value;
}

KERNEL(write_freed) {
  freed[TID + 3] = 7;  // BUG UseAfterFree
}

KERNEL(misaligned_vector) {
  int2 value = *(int2*)(data + 1 + 2 * TID);  // BUG Misaligned
  data[GID] = value.x + value.y;
}

KERNEL(misaligned_word) {
  *(volatile int*)((char*)data + 4 * GID + 2) = 5;  // BUG Misaligned
}

KERNEL(undefined_condition) {
  if (fresh[TID] > 3) data[GID] = 1;  // BUG Undefined
}

KERNEL(undefined_index) {
  data[fresh[TID] & 15] = 1;  // BUG Undefined
}

KERNEL(undefined_store) {
  data[GID] = fresh[TID] * 3;  // BUG Undefined
}

KERNEL(undefined_shared) {  // LAUNCH shared=256
  extern __shared__ int s[];
  if (TID < 40) s[TID] = TID;
  __syncthreads();
  data[GID] = s[TID];  // BUG Undefined
}

KERNEL(race_without_barrier) {
  __shared__ int s[64];
  s[63 - TID] = n;
  __syncthreads();
  s[TID] = TID;                // BUG SharedRace
  data[GID] = s[63 - TID];     // BUG SharedRace
}

KERNEL(race_in_a_loop) {
  __shared__ int s[64];
  for (int i = 0; i < 4; i++) {
    s[TID] = TID + i;            // BUG SharedRace
    __syncthreads();
    data[GID] += s[63 - TID];    // BUG SharedRace
  }
}

KERNEL(race_of_bytes) {
  __shared__ unsigned char s[65];
  s[TID] = TID;                 // BUG SharedRace
  data[GID] = s[(TID + 1) % 64]; // BUG SharedRace
}

KERNEL(race_of_two_writers) {
  __shared__ int s[8];
  s[TID % 8] = TID;  // BUG SharedRace
  __syncthreads();
  data[GID] = s[TID % 8];
}

KERNEL(blocks_write_one_word) {
  *(int*)&data[TID] = blockIdx.x;  // BUG GlobalRace
}

KERNEL(blocks_read_neighbours) {
  int* plain = (int*)data;
  plain[GID] = TID;                                     // BUG GlobalRace
  __syncthreads();
  plain[GID + 256] = plain[(GID + blockDim.x) % 128];   // BUG GlobalRace
}

KERNEL(last_block_without_fence) {
  int* plain = (int*)data;
  __shared__ bool last;
  if (TID == 0) {
    plain[1 + blockIdx.x] = blockIdx.x;                  // BUG GlobalRace
    last = atomicAdd(&plain[0], 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && TID == 0) plain[100] = plain[1] + plain[2];  // BUG GlobalRace
}

KERNEL(barrier_in_both_branches) {
  if (TID & 1) {
    data[GID] = 1;
    asm volatile("bar.sync 0;" ::: "memory");  // BUG BarrierDivergence
    data[GID] = 2;
  } else {
    data[GID] = 3;
    asm volatile("bar.sync 0;" ::: "memory");  // BUG BarrierDivergence
    data[GID] = 4;
  }
}

KERNEL(barrier_in_an_uneven_loop) {
  for (int i = 0; i <= (int)TID % 3; i++) {
    data[GID] = i;
    __syncthreads();  // BUG BarrierDivergence
  }
  __syncthreads();    // BUG BarrierDivergence
  data[GID] = 9;
}

KERNEL(shuffle_in_a_branch) {
  int value = TID;
  if (TID % 32 < 16) {
    value = __shfl_xor_sync(~0u, value, 1);  // BUG BarrierDivergence
    data[GID] = value;
  } else {
    __syncwarp();                             // BUG BarrierDivergence
    data[GID] = value;
  }
}

KERNEL(barrier_for_too_many) {
  asm volatile("bar.sync 1, 128;" ::: "memory");  // BUG Deadlock
  data[GID] = 1;
}

KERNEL(warps_at_different_barriers) {
  if (TID < 32) {
    asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG Deadlock
    data[GID] = 1;
  } else {
    asm volatile("bar.sync 2, 64;" ::: "memory");  // BUG Deadlock
    data[GID] = 2;
  }
}

KERNEL(wait_for_a_flag_nobody_sets) {
  while (data[0] == 0) {  // BUG Spinning
  }
  data[GID] = 1;
}

KERNEL(lock_never_released) {
  while (atomicCAS((int*)&data[0], 0, 1) != 0) {  // BUG Spinning
  }
  data[GID + 1] = 1;
}

KERNEL(async_copy_without_wait) {
  __shared__ __align__(16) int s[256];
  unsigned to = (unsigned)__cvta_generic_to_shared(s + 4 * TID);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(to), "l"((int*)data + 4 * TID) : "memory");
  __syncthreads();
  ((int*)data)[GID + 300] = s[TID];  // BUG AsyncCopy
}

KERNEL(async_copy_of_the_wrong_group) {
  __shared__ __align__(16) int s[2][256];
  for (int i = 0; i < 2; i++) {
    unsigned to = (unsigned)__cvta_generic_to_shared(s[i] + 4 * TID);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(to), "l"((int*)data + 4 * TID) : "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  ((int*)data)[GID + 300] = s[1][TID * 4];  // BUG AsyncCopy
}

KERNEL(dynamic_shared_too_small) {  // LAUNCH shared=256
  extern __shared__ int s[];
  s[TID + 1] = TID;  // BUG SharedOutOfBounds
  __syncthreads();
  data[GID] = s[TID + 1];
}

KERNEL(static_shared_too_small) {
  __shared__ int s[64];
  s[TID * n / 128] = TID;  // BUG SharedOutOfBounds
  __syncthreads();
  data[GID] = s[TID];
}

KERNEL(null_pointer) {
  int* nothing = (int*)(uint64_t)(n - 512);
  data[GID] = nothing[TID];  // BUG NullPointer
}

KERNEL(null_structure) {
  struct Node { int value[10]; Node* next; }* node = (Node*)(uint64_t)(n - 512);
  data[GID] = (int)(uint64_t)node->next;  // BUG NullPointer
}

KERNEL(failed_assertion) {
  assert(n > (int)GID + 500);  // BUG Assert
  data[GID] = 1;
}

KERNEL(trap_in_the_second_block) {
  if (blockIdx.x == 1 && TID == 5) __trap();  // BUG Trap
  data[GID] = 1;
}

KERNEL(mask_without_itself) {
  int value = __shfl_sync(0x0000ffffu, (int)TID, 3);  // BUG IllegalInstruction
  data[GID] = value;
}

KERNEL(mbarrier_never_initialised) {
  __shared__ uint64_t barrier;
  unsigned at = (unsigned)__cvta_generic_to_shared(&barrier);
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(at) : "memory");  // BUG IllegalInstruction
  data[GID] = 1;
}
