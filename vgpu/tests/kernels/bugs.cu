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
  s[TID] = TID;
  data[GID] = s[(TID + 1) % 64];  // BUG WarpRace
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

// Races between the lanes of a warp: nothing but lockstep, which CUDA does not promise, lies between.

KERNEL(neighbour_without_syncwarp) {
  __shared__ int s[64];
  s[TID] = TID;
  data[GID] = s[TID ^ 1];  // BUG WarpRace
}

KERNEL(overwritten_before_it_is_read) {
  __shared__ int s[64];
  s[TID] = TID;
  __syncwarp();
  int value = s[TID ^ 3];
  s[TID] = value;  // BUG WarpRace
  __syncwarp();
  data[GID] = s[TID];
}

KERNEL(reduction_that_trusts_lockstep) {
  __shared__ int s[64];
  s[TID] = TID;
  __syncthreads();
  for (int offset = 16; offset > 0; offset /= 2) {
    if (TID % 32 < offset) s[TID] += s[TID + offset];  // BUG WarpRace
  }
  __syncthreads();
  data[GID] = s[TID / 32 * 32];
}

KERNEL(syncwarp_of_the_wrong_half) {
  __shared__ int s[64];
  s[TID] = TID;
  if (TID % 32 < 16)
    __syncwarp(0x0000ffffu);
  else
    __syncwarp(0xffff0000u);
  data[GID] = s[TID ^ 16];  // BUG WarpRace
}

KERNEL(syncwarp_before_instead_of_after) {
  __shared__ int s[64];
  int value = 0;
  for (int i = 0; i < 3; i++) {
    __syncwarp();
    s[TID] = TID + i;           // BUG WarpRace
    value += s[TID / 32 * 32 + (TID + 5) % 32];  // BUG WarpRace
  }
  data[GID] = value;
}

KERNEL(leader_writes_others_read) {
  __shared__ int chosen[2];
  if (TID % 32 == 0) chosen[TID / 32] = n;
  data[GID] = chosen[TID / 32];  // BUG WarpRace
}

KERNEL(matrix_rows_without_syncwarp) {
  __shared__ __align__(16) int s[64 * 4];
  for (int i = 0; i < 4; i++) s[TID * 4 + i] = TID;
  unsigned at = (unsigned)__cvta_generic_to_shared(s + TID / 32 * 32 * 4 + TID % 8 * 4), value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 %0, [%1];" : "=r"(value) : "r"(at) : "memory");  // BUG WarpRace
  data[GID] = value;
}

KERNEL(own_copy_waited_for_others_not) {
  __shared__ __align__(16) int s[256];
  unsigned to = (unsigned)__cvta_generic_to_shared(s + 4 * TID);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.wait_all;" ::"r"(to), "l"((int*)data + 4 * TID) : "memory");
  ((int*)data)[GID + 300] = s[4 * (TID ^ 1)];  // BUG WarpRace
}

KERNEL(histogram_read_too_early) {
  __shared__ int bins[8];
  if (TID < 8) bins[TID] = 0;
  __syncthreads();
  atomicAdd(&bins[TID % 8], 1);
  data[GID] = bins[(TID + 1) % 8];  // BUG WarpRace
}

KERNEL(histogram_read_by_the_other_warp) {
  __shared__ int bins[8];
  if (TID < 8) bins[TID] = 0;
  __syncthreads();
  if (TID < 32) atomicAdd(&bins[TID % 8], 1);  // BUG SharedRace
  if (TID >= 32) data[GID] = bins[TID % 8];    // BUG SharedRace
}

KERNEL(flag_without_a_barrier) {
  __shared__ int found;
  if (TID == 0) {
    found = 0;  // BUG SharedRace
    data[300 + GID] = 1;
  }
  if (TID == 40) {
    found = 1;  // BUG SharedRace
    data[300 + GID] = 2;
  }
  __syncthreads();
  data[GID] = found;
}

KERNEL(last_warp_leaves_before_it_is_read) {
  __shared__ int s[64];
  s[TID] = TID;
  if (TID >= 32) return;
  data[GID] = s[TID + 32];  // BUG SharedRace Undefined
}

// Memory that nobody wrote.

KERNEL(sum_into_fresh_memory) {
  atomicAdd((int*)&fresh[TID], 1);  // BUG Undefined
}

KERNEL(maximum_of_fresh_memory) {
  int old = atomicMax((int*)&fresh[TID], 1);  // BUG Undefined
  if (n < 0) data[GID] = old;
}

KERNEL(swap_into_fresh_memory) {
  int old = atomicCAS((int*)&fresh[GID], 0, 1);  // BUG Undefined
  if (n < 0) data[GID] = old;
}

KERNEL(counter_in_shared_never_cleared) {
  __shared__ int count;
  atomicAdd(&count, 1);  // BUG Undefined
  __syncthreads();
  data[GID] = count;
}

KERNEL(accumulator_never_cleared) {
  float sum;
  asm volatile("{ .reg .f32 t; add.f32 %0, t, 0f3F800000; }" : "=f"(sum));
  ((float*)data)[GID] = sum;  // BUG Undefined
}

KERNEL(shuffle_from_a_lane_that_left) {
  if (TID % 32 >= 16) return;
  data[GID] = __shfl_down_sync(0x0000ffffu, (int)TID, 8);  // BUG Undefined
}

KERNEL(undefined_argument_of_an_atomic) {
  atomicAdd((int*)&data[TID], fresh[TID]);  // BUG Undefined
}

KERNEL(tile_with_a_forgotten_edge) {
  __shared__ int s[66];
  s[TID + 1] = TID;
  __syncthreads();
  data[GID] = s[TID] + s[TID + 2];  // BUG Undefined
}

// Between blocks.

KERNEL(bytes_of_the_neighbour_block) {
  unsigned char* bytes = (unsigned char*)data;
  bytes[TID * 2 + blockIdx.x] = TID;                            // BUG GlobalRace
  __syncthreads();
  data[GID + 256] = bytes[TID * 2 + 1 - blockIdx.x];            // BUG GlobalRace
}

KERNEL(plain_counter_of_all_blocks) {
  int* count = (int*)data;
  if (TID == 0) *count = *count + 1;  // BUG GlobalRace
}

KERNEL(flag_without_fence) {
  int* plain = (int*)data;
  if (TID == 0 && blockIdx.x == 0) {
    plain[100] = 7;                       // BUG GlobalRace
    atomicExch(&plain[0], 1);
  }
  if (TID == 0 && blockIdx.x == 1) {
    while (atomicAdd(&plain[0], 0) == 0) {
    }
    plain[200] = plain[100];              // BUG GlobalRace
  }
}

KERNEL(cleared_by_one_counted_by_all) {
  int* plain = (int*)data;
  if (GID == 0) plain[5] = 1;                          // BUG GlobalRace
  if (blockIdx.x == 1) atomicAdd(&plain[5], 1);        // BUG GlobalRace
}
