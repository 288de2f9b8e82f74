// Kernels whose reports are read word by word. Markers name the lines that reports have to name.

#define KERNEL(name) extern "C" __global__ void name(volatile int* data, volatile int* fresh)
#define TID threadIdx.x

KERNEL(warps) {
  __shared__ int s[64];
  if (TID < 32) {
    s[TID] = data[TID];  // warp writes
  } else {
    data[TID] = s[TID ^ 32];
  }
}

KERNEL(readers) {
  __shared__ int s[64];
  s[TID] = data[TID];
  __syncthreads();
  if (TID >= 32) {
    data[TID] = s[TID];  // warp reads
  } else {
    s[TID ^ 32] = 1;
  }
}

KERNEL(lanes) {
  __shared__ int s[32];
  s[TID] = data[TID];  // lane writes
  data[TID] = s[TID ^ 1];
}

KERNEL(blocks) {
  ((int*)data)[TID] = blockIdx.x;  // block writes
}

KERNEL(shared_input) {
  int* plain = (int*)data;
  if (blockIdx.x == 0) {
    plain[100 + TID] = plain[TID];  // block reads
  } else {
    plain[TID] = 3;
  }
}

namespace report {
template <typename T, int N>
__global__ void templated(T* data, T* fresh) {
  data[TID] = fresh[TID] * N;
}
template __global__ void templated<float, 3>(float*, float*);
}  // namespace report

KERNEL(loaded) {
  int* global = (int*)__cvta_generic_to_global((void*)fresh);
  int value;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(global + TID));  // loads fresh
  value = value * 3 + 1;
  if (value > 5) data[TID] = 1;
}

KERNEL(parked) {
  __shared__ int s[64];
  if (TID == 40) s[TID] = 1;
  __syncthreads();
  int value = s[TID];  // loads parked
  data[value] = 1;
}

KERNEL(register_that_is_empty) {
  int value;
  asm volatile("{ .reg .b32 t; add.s32 %0, t, 1; }" : "=r"(value));
  data[TID] = value;
}

KERNEL(shuffled) {
  if (TID >= 16) return;
  int value = __shfl_down_sync(0xffffu, (int)TID, 8);  // shuffles
  data[TID] = value;
}
