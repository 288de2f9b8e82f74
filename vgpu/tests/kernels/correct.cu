// Correct kernels that look suspicious: no check may complain about them. Each writes 1 to out[i] for every
// thread whose result is right.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define KERNEL(name) extern "C" __global__ void name(int* out, int* data, int* fresh, int n)
#define TID threadIdx.x
#define GID (blockIdx.x * blockDim.x + threadIdx.x)

KERNEL(warp_synchronous_reduction) {
  __shared__ volatile int s[64];
  s[TID] = TID;
  __syncwarp();
  for (int offset = 16; offset > 0; offset /= 2) {
    int other = TID % 32 < offset ? s[TID + offset] : 0;
    __syncwarp();
    s[TID] = s[TID] + other;
    __syncwarp();
  }
  int base = TID / 32 * 32;
  out[GID] = s[base] == base * 32 + 496;
}

KERNEL(producer_and_consumer_barriers) {
  __shared__ int s[32];
  if (TID < 32) {
    s[TID] = TID * 3;
    asm volatile("bar.arrive 1, 64;" ::: "memory");
    out[GID] = 1;
  } else {
    asm volatile("bar.sync 1, 64;" ::: "memory");
    out[GID] = s[(TID + 7) % 32] == (TID + 7) % 32 * 3;
  }
}

KERNEL(half_a_block_at_a_barrier) {
  __shared__ int s[2][32];
  int half = TID / 32;
  s[half][TID % 32] = TID;
  asm volatile("bar.sync %0, 32;" ::"r"(half + 1) : "memory");
  out[GID] = s[half][31 - TID % 32] == half * 32 + 31 - TID % 32;
}

KERNEL(neighbouring_bytes_in_shared) {
  __shared__ unsigned char s[64];
  // Byte TID belongs to a thread of the other warp than byte TID + 1.
  int mine = TID < 32 ? TID * 2 : (TID - 32) * 2 + 1;
  s[mine] = mine;
  __syncthreads();
  out[GID] = s[63 - TID] == 63 - TID;
}

KERNEL(neighbouring_bytes_of_blocks) {
  unsigned char* bytes = (unsigned char*)data;
  bytes[TID * gridDim.x + blockIdx.x] = TID;
  out[GID] = bytes[TID * gridDim.x + blockIdx.x] == TID;
}

KERNEL(threadfence_reduction) {
  __shared__ bool last;
  int* partial = data + 16;
  if (TID == 0) {
    partial[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    last = atomicInc((unsigned*)data, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  int right = 1;
  if (last) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += partial[i];
    right = sum == gridDim.x * (gridDim.x + 1) / 2;
  }
  out[GID] = right;
}

KERNEL(lock_of_every_thread) {
  // Volta and later promise that the holder runs although its neighbours spin.
  bool done = false;
  while (!done) {
    if (atomicCAS(&data[0], 0, 1) == 0) {
      __threadfence();
      data[1] += 1;
      __threadfence();
      atomicExch(&data[0], 0);
      done = true;
    }
  }
  out[GID] = 1;
}

KERNEL(lock_of_every_block) {
  if (TID == 0) {
    while (atomicCAS(&data[0], 0, 1) != 0) __nanosleep(20);
    __threadfence();
    data[1] = data[1] + 1;
    __threadfence();
    atomicExch(&data[0], 0);
  }
  out[GID] = 1;
}

KERNEL(bits_through_a_union) {
  union { float f; unsigned u; unsigned short h[2]; unsigned char b[4]; } x;
  x.f = (float)TID;
  x.b[0] = (unsigned char)TID;
  x.h[1] ^= 0x8000;
  unsigned expected = (__float_as_uint((float)TID) & 0xffffff00u | TID & 255) ^ 0x80000000u;
  out[GID] = x.u == expected;
}

struct Hollow { char a; int b; short c; double d; };

KERNEL(structures_with_holes) {
  __shared__ Hollow s[64];
  Hollow mine;
  mine.a = TID;
  mine.b = TID * 2;
  mine.c = TID * 3;
  mine.d = TID * 0.5;
  s[TID] = mine;
  __syncthreads();
  Hollow* rows = (Hollow*)data + blockIdx.x * 64;
  rows[TID] = s[63 - TID];
  out[GID] = rows[TID].d == (63 - TID) * 0.5 && rows[TID].c == (63 - TID) * 3;
}

KERNEL(deliberate_nan) {
  float zero = (float)(n - 256);
  float nan = zero / zero;
  float* floats = (float*)data;
  floats[GID] = nan;
  out[GID] = floats[GID] != floats[GID] && !(nan > 0.f) && fmaxf(nan, 2.f) == 2.f;
}

KERNEL(shuffles_in_halves) {
  unsigned mask = TID % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  int value;
  if (TID % 32 < 16)
    value = __shfl_xor_sync(mask, (int)TID, 3);
  else
    value = __shfl_xor_sync(mask, (int)TID, 5);
  out[GID] = value == (TID ^ (TID % 32 < 16 ? 3 : 5));
}

KERNEL(one_barrier_a_step) {
  __shared__ int s[2][64];
  int sum = 0;
  for (int i = 0; i < 9; i++) {
    s[i & 1][TID] = TID + i;
    __syncthreads();
    sum += s[i & 1][63 - TID];
  }
  out[GID] = sum == 9 * (63 - TID) + 36;
}

KERNEL(shared_histogram) {
  __shared__ int bins[8];
  if (TID < 8) bins[TID] = 0;
  __syncthreads();
  atomicAdd(&bins[TID % 8], 1);
  __syncthreads();
  out[GID] = bins[TID % 8] == 8;
}

KERNEL(global_histogram) {
  atomicAdd(&data[TID % 8], 1);
  out[GID] = 1;
}

KERNEL(chained_blocks) {
  // Each block waits for its predecessor's sum: a scan in one pass.
  volatile int* flags = data;
  volatile int* sums = data + 64;
  __shared__ int before;
  if (TID == 0) {
    int ticket = atomicAdd(&data[200], 1);
    int sum = 0;
    if (ticket > 0) {
      while (flags[ticket - 1] == 0) {
      }
      __threadfence();
      sum = sums[ticket - 1];
    }
    before = ticket - sum;
    sums[ticket] = sum + 1;
    __threadfence();
    flags[ticket] = 1;
  }
  __syncthreads();
  out[GID] = before == 0;
}

__device__ __noinline__ int fibonacci(int i) { return i < 2 ? i : fibonacci(i - 1) + fibonacci(i - 2); }

KERNEL(recursion) { out[GID] = fibonacci(TID % 4 + 6) == (TID % 4 == 0 ? 8 : TID % 4 == 1 ? 13 : TID % 4 == 2 ? 21 : 34); }

KERNEL(async_double_buffer) {
  __shared__ __align__(16) int s[2][64 * 4];
  int* source = fresh;  // written below before it is read
  for (int i = 0; i < 4; i++) source[(GID * 4 + i)] = GID * 4 + i;
  __syncthreads();
  auto fetch = [&](int i) {
    unsigned to = (unsigned)__cvta_generic_to_shared(&s[i & 1][TID * 4]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(to), "l"(source + GID * 4) : "memory");
  };
  int right = 1;
  fetch(0);
  for (int i = 0; i < 5; i++) {
    fetch(i + 1);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    right &= s[i & 1][255 - TID * 4] == blockIdx.x * 256 + 255 - TID * 4;
    __syncthreads();
  }
  out[GID] = right;
}

KERNEL(barrier_object) {
  __shared__ uint64_t barrier;
  __shared__ int s[64];
  unsigned at = (unsigned)__cvta_generic_to_shared(&barrier);
  if (TID == 0) asm volatile("mbarrier.init.shared.b64 [%0], 64;" ::"r"(at) : "memory");
  __syncthreads();
  int right = 1;
  for (int phase = 0; phase < 3; phase++) {
    s[TID] = TID + phase;
    asm volatile(
        "{\n.reg .b64 t;\n.reg .pred p;\nmbarrier.arrive.shared.b64 t, [%0];\nagain:\nmbarrier.test_wait.shared.b64 p, [%0], t;\n@!p bra "
        "again;\n}" ::"r"(at)
        : "memory");
    right &= s[63 - TID] == 63 - TID + phase;
    asm volatile(
        "{\n.reg .b64 t;\n.reg .pred p;\nmbarrier.arrive.shared.b64 t, [%0];\nagain:\nmbarrier.test_wait.shared.b64 p, [%0], t;\n@!p bra "
        "again;\n}" ::"r"(at)
        : "memory");
  }
  out[GID] = right;
}

KERNEL(undefined_but_unused) {
  int value = fresh[TID];
  // The product is only looked at where it is defined.
  int picked = TID < 1000 ? (int)TID : value * 3;
  out[GID] = picked == TID;
}

KERNEL(local_array) {
  int a[16];
  for (int i = 0; i < 16; i++) a[(i * 5 + n) & 15] = i;
  int sum = 0;
  for (int i = 0; i < 16; i++) sum += a[(i + TID) & 15];
  out[GID] = sum == 120;
}

KERNEL(pointer_to_either_space) {
  __shared__ int s[64];
  s[TID] = TID;
  data[GID] = TID + 1;
  __syncthreads();
  int* p = TID & 1 ? &s[TID] : &data[GID];
  out[GID] = *p == (TID & 1 ? TID : TID + 1);
}

KERNEL(everyone_writes_the_same) {
  __shared__ int flag;
  if (TID < 32) flag = 5;
  __syncthreads();
  out[GID] = flag == 5;
}

KERNEL(counting_barriers) {
  int count = __syncthreads_count(TID % 3 == 0);
  int any = __syncthreads_or(TID == 40);
  int all = __syncthreads_and(TID < 64);
  out[GID] = count == 22 && any && all;
}

KERNEL(jump_table) {
  int value;
  switch ((TID + n) % 8) {
    case 0: value = TID * 3; break;
    case 1: value = TID + 77; break;
    case 2: value = TID ^ 21; break;
    case 3: value = TID - 9; break;
    case 4: value = TID << 3; break;
    case 5: value = ~TID; break;
    case 6: value = TID * TID; break;
    default: value = -(int)TID;
  }
  int expected[8] = {(int)TID * 3, (int)TID + 77, (int)TID ^ 21, (int)TID - 9, (int)TID << 3, (int)~TID, (int)(TID * TID), -(int)TID};
  out[GID] = value == expected[(TID + n) % 8];
}

KERNEL(warp_collectives) {
  unsigned same = __match_any_sync(~0u, TID % 4);
  int total = __reduce_add_sync(~0u, (int)TID % 32);
  unsigned votes = __ballot_sync(~0u, TID % 2);
  out[GID] = same == 0x11111111u << (TID % 4) && total == 496 && votes == 0xaaaaaaaau && __all_sync(~0u, total == 496);
}

KERNEL(half_of_a_pair) {
  // The other half is never written and never looked at.
  __half2 pair;
  pair.x = __float2half((float)TID);
  __half2 sum = __hadd2(pair, pair);
  out[GID] = __half2float(sum.x) == 2.f * TID;
}

KERNEL(grid_wide_barrier) {  // LAUNCH cooperative
  volatile int* arrived = data;
  data[16 + GID] = GID;
  __syncthreads();
  if (TID == 0) {
    __threadfence();
    atomicAdd(&data[0], 1);
    while (*arrived < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();
  int other = (GID + blockDim.x) % (gridDim.x * blockDim.x);
  out[GID] = data[16 + other] == other;
}

// Neighbours within a word.

KERNEL(own_bytes_read_and_written) {
  unsigned char* bytes = (unsigned char*)data;
  int mine = TID * gridDim.x + blockIdx.x;
  for (int i = 0; i < 5; i++) bytes[mine] = bytes[mine] + 1;
  out[GID] = bytes[mine] == 5;
}

KERNEL(own_halves_read_and_written) {
  __half* halves = (__half*)data;
  int mine = TID * gridDim.x + blockIdx.x;
  __half before = halves[mine];
  halves[mine] = __hadd(before, __float2half(2.f));
  out[GID] = __half2float(halves[mine]) == 2.f;
}

KERNEL(rows_of_an_odd_number_of_halves) {
  // Rows of 65 halves: the last of one shares its word with the first of the next.
  __nv_bfloat16* row = (__nv_bfloat16*)data + blockIdx.x * 65;
  row[TID] = __float2bfloat16((float)TID);
  if (TID == 0) row[64] = __float2bfloat16(64.f);
  __syncthreads();
  out[GID] = __bfloat162float(row[63 - TID]) == 63.f - TID && __bfloat162float(row[64]) == 64.f;
}

// Loops around a compare-and-swap.

__device__ float add_by_swapping(float* address, float value) {
  // As in the CUDA C++ Programming Guide: the first read is a plain one.
  int* words = (int*)address;
  int old = *words, assumed;
  do {
    assumed = old;
    old = atomicCAS(words, assumed, __float_as_int(value + __int_as_float(assumed)));
  } while (assumed != old);
  return __int_as_float(old);
}

KERNEL(sum_by_swapping) {
  float before = add_by_swapping((float*)data + TID % 4, 1.f);
  out[GID] = before >= 0.f && before < 64.f;
}

KERNEL(sum_in_shared_by_swapping) {
  __shared__ float sum;
  if (TID == 0) sum = 0.f;
  __syncthreads();
  add_by_swapping(&sum, 2.f);
  __syncthreads();
  out[GID] = sum == 128.f;
}

KERNEL(sum_of_bf16) {
  __nv_bfloat16 before = atomicAdd((__nv_bfloat16*)data + TID % 7, __float2bfloat16(1.f));
  out[GID] = __bfloat162float(before) < 40.f;
}

KERNEL(sum_of_bf16_pairs) {
  atomicAdd((__nv_bfloat162*)data + TID % 3, __floats2bfloat162_rn(1.f, 2.f));
  out[GID] = 1;
}

KERNEL(maximum_that_leaves_early) {
  // Whoever sees a larger value already need not swap.
  int value = (GID * 37) % 256, old = data[0];
  while (old < value) {
    int seen = atomicCAS(&data[0], old, value);
    if (seen == old) break;
    old = seen;
  }
  out[GID] = 1;
}

KERNEL(stack_of_free_slots) {
  // Push and pop by compare-and-swap; the head carries a count against ABA.
  unsigned long long* head = (unsigned long long*)data;
  unsigned long long old = *head, seen;
  while ((seen = atomicCAS(head, old, ((old >> 32) + 1) << 32 | GID)) != old) old = seen;
  out[GID] = (unsigned)old < 256;
}

// Messages, queues, tickets.

KERNEL(message_by_flag_between_blocks) {
  volatile int* flag = data;
  int* message = data + 64;
  if (blockIdx.x == 0) {
    message[TID] = TID * 5;
    __threadfence();
    __syncthreads();
    if (TID == 0) *flag = 1;
    out[GID] = 1;
  } else {
    while (*flag == 0) {
    }
    __threadfence();
    out[GID] = message[63 - TID] == (63 - TID) * 5;
  }
}

KERNEL(message_by_flag_between_warps) {
  __shared__ volatile int flag;
  __shared__ int message[32];
  if (TID == 0) flag = 0;
  __syncthreads();
  if (TID < 32) {
    message[TID] = TID + 9;
    __threadfence_block();
    __syncwarp();
    if (TID == 0) flag = 1;
    out[GID] = 1;
  } else {
    while (flag == 0) {
    }
    __threadfence_block();
    out[GID] = message[63 - TID] == 63 - TID + 9;
  }
}

KERNEL(release_and_acquire) {
  int *flag = data, *message = data + 32;
  if (blockIdx.x == 1 && TID == 0) {
    *message = 77;
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
  }
  int seen = 0;
  if (TID == 0 && blockIdx.x != 1) {
    while (seen == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    seen = *message;
  }
  out[GID] = TID != 0 || blockIdx.x == 1 || seen == 77;
}

KERNEL(queue_of_work) {
  __shared__ int item;
  int* queue = data;
  int mine = 0;
  while (true) {
    if (TID == 0) item = atomicAdd(queue, 1);
    __syncthreads();
    int now = item;
    __syncthreads();
    if (now >= 20) break;
    data[64 + now * 64 + TID] = now + 1;
    mine++;
  }
  out[GID] = mine <= 20;
}

KERNEL(queue_looked_at_first) {
  // A plain look saves the atomic; what it sees may be old.
  int taken = 0;
  if (TID == 0)
    while (data[3] < 12)
      if (atomicAdd(&data[3], 1) < 12) taken++;
  out[GID] = taken <= 12;
}

KERNEL(lock_in_shared_of_every_thread) {
  __shared__ int lock, count;
  if (TID == 0) lock = 0, count = 0;
  __syncthreads();
  for (bool done = false; !done;) {
    if (atomicCAS(&lock, 0, 1) == 0) {
      __threadfence_block();
      count++;
      __threadfence_block();
      atomicExch(&lock, 0);
      done = true;
    }
  }
  __syncthreads();
  out[GID] = count == 64;
}

// Threads that leave.

KERNEL(first_warp_leaves) {
  __shared__ int s[64];
  s[TID] = TID;
  out[GID] = 1;
  if (TID < 32) return;
  __syncthreads();
  out[GID] = s[TID - 32] == TID - 32;
}

KERNEL(half_of_each_warp_leaves) {
  __shared__ int s[64];
  s[TID] = TID;
  out[GID] = 1;
  if (TID % 32 >= 16) return;
  __syncthreads();
  out[GID] = s[TID + 16] == TID + 16 && s[TID ^ 32] == (TID ^ 32);
}

KERNEL(tail_of_the_grid_leaves) {
  __shared__ int s[64];
  if (GID >= 200) {
    out[GID] = 1;
    return;
  }
  s[TID] = GID;
  __syncthreads();
  out[GID] = s[TID & 7] == blockIdx.x * 64 + (TID & 7);
}

// Warp-synchronous code with what it needs.

KERNEL(scan_of_a_warp) {
  __shared__ int s[64];
  int lane = TID % 32;
  s[TID] = 1;
  __syncwarp();
  for (int step = 1; step < 32; step *= 2) {
    int other = lane >= step ? s[TID - step] : 0;
    __syncwarp();
    s[TID] += other;
    __syncwarp();
  }
  out[GID] = s[TID] == lane + 1;
}

KERNEL(transposition_within_a_warp) {
  __shared__ int tile[2][8][5];
  int warp = TID / 32, lane = TID % 32;
  for (int round = 0; round < 3; round++) {
    tile[warp][lane / 4][lane % 4] = lane + round;
    __syncwarp();
    int value = tile[warp][lane % 8][lane / 8];
    __syncwarp();
    out[GID] = value == lane % 8 * 4 + lane / 8 + round;
  }
}

KERNEL(leader_tells_its_warp) {
  __shared__ int told[2];
  if (TID % 32 == 5) told[TID / 32] = TID * 2;
  __syncwarp();
  out[GID] = told[TID / 32] == (TID / 32 * 32 + 5) * 2;
}

KERNEL(halves_of_a_warp_apart) {
  __shared__ int s[64];
  unsigned mask = TID % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int i = 0; i < 4; i++) {
    s[TID] = TID + i;
    __syncwarp(mask);
    int value = s[TID ^ 15];
    __syncwarp(mask);
    if (value != (TID ^ 15) + i) return;
  }
  out[GID] = 1;
}

KERNEL(matrix_after_syncwarp) {
  __shared__ __align__(16) int s[64 * 4];
  for (int i = 0; i < 4; i++) s[TID * 4 + i] = TID % 8 * 4 + i;
  __syncwarp();
  unsigned at = (unsigned)__cvta_generic_to_shared(s + TID / 32 * 32 * 4 + TID % 8 * 4), value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
  out[GID] = value == TID % 32;
}

namespace cg = cooperative_groups;

KERNEL(tiles_of_eight) {
  __shared__ int s[64];
  auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  s[TID] = TID;
  tile.sync();
  int other = s[TID ^ 7];
  tile.sync();
  s[TID] = other + 1;
  tile.sync();
  int sum = 0;
  for (int i = 0; i < 8; i++) sum += s[TID / 8 * 8 + i];
  out[GID] = sum == TID / 8 * 64 + 28 + 8;
}

KERNEL(tiles_that_diverge) {
  __shared__ int s[64];
  auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  int rounds = TID / 16 + 1, value = TID;
  for (int i = 0; i < rounds; i++) {
    s[TID] = value;
    tile.sync();
    value = s[TID / 16 * 16 + (tile.thread_rank() + 1) % 16];
    tile.sync();
  }
  out[GID] = value == TID / 16 * 16 + (TID + rounds) % 16;
}

KERNEL(tile_reduction_by_shuffles) {
  auto tile = cg::tiled_partition<4>(cg::this_thread_block());
  int value = TID;
  for (int i = tile.size() / 2; i > 0; i /= 2) value += tile.shfl_xor(value, i);
  out[GID] = value == TID / 4 * 16 + 6;
}

KERNEL(lanes_that_happen_to_be_here) {
  __shared__ int count[2];
  if (TID < 2) count[TID] = 0;
  __syncthreads();
  if (TID % 3 == 0) {
    auto here = cg::coalesced_threads();
    int before = 0;
    if (here.thread_rank() == 0) before = atomicAdd(&count[TID / 32], here.size());
    before = here.shfl(before, 0) + here.thread_rank();
    out[GID] = before < 11;
  } else {
    out[GID] = 1;
  }
}

// Fences, sums, flags.

KERNEL(threadfence_sum_of_all_threads) {
  __shared__ int partial[64];
  __shared__ bool last;
  int* sums = data + 32;
  partial[TID] = GID;
  __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    if (TID < step) partial[TID] += partial[TID + step];
    __syncthreads();
  }
  if (TID == 0) {
    sums[blockIdx.x] = partial[0];
    __threadfence();
    last = atomicAdd(data, 1) == gridDim.x - 1;
  }
  __syncthreads();
  int total = 32640;
  if (last) {
    __threadfence();
    total = 0;
    for (int i = 0; i < gridDim.x; i++) total += ((volatile int*)sums)[i];
  }
  out[GID] = total == 32640;
}

KERNEL(counter_that_the_last_one_resets) {
  if (TID == 0 && atomicAdd(&data[9], 1) == gridDim.x - 1) data[9] = 0;
  out[GID] = 1;
}

KERNEL(blocks_raise_the_same_flag) {  // WARNS
  data[7] = 1;
  out[GID] = 1;
}

KERNEL(warps_raise_the_same_flag) {  // WARNS
  __shared__ int raised;
  if (TID == 0) raised = 0;
  __syncthreads();
  if (TID % 5 == 0) raised = 1;
  __syncthreads();
  out[GID] = raised == 1;
}

KERNEL(any_lane_may_win) {  // WARNS
  __shared__ int winner[2];
  winner[TID / 32] = TID;
  __syncwarp();
  out[GID] = winner[TID / 32] / 32 == TID / 32;
}

KERNEL(shuffle_between_write_and_read) {  // WARNS
  __shared__ int s[64];
  s[TID] = TID;
  int value = __shfl_xor_sync(~0u, (int)TID, 1);
  out[GID] = s[TID ^ 1] == value;
}

KERNEL(exchange_makes_memory_defined) {
  int old = atomicExch(&fresh[GID], 4);
  out[GID] = fresh[GID] == 4;
  if (n < 0) out[0] = old;
}

KERNEL(grid_synchronisation_of_cooperative_groups) {  // LAUNCH cooperative
  auto grid = cg::this_grid();
  for (int i = 0; i < 3; i++) {
    data[16 + i * 256 + GID] = GID + i;
    grid.sync();
    int other = (GID + blockDim.x * (i + 1)) % (gridDim.x * blockDim.x);
    if (data[16 + i * 256 + other] != other + i) return;
  }
  out[GID] = 1;
}
