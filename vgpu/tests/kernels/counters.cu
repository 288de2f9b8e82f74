// Kernels whose counters are known by hand.
#include <cuda_bf16.h>
#include <stdint.h>

#define TID threadIdx.x

extern "C" __global__ void copy_coalesced(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + TID;
  y[i] = x[i];
}

extern "C" __global__ void copy_strided(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + TID;
  y[i * 8] = x[i * 8];
}

extern "C" __global__ void copy_offset(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + TID;
  y[i] = x[i + 1];
}

extern "C" __global__ void copy_vectors(const float4* x, float4* y) {
  int i = blockIdx.x * blockDim.x + TID;
  y[i] = x[i];
}

extern "C" __global__ void broadcast(const float* x, float* y) { y[blockIdx.x * blockDim.x + TID] = x[0]; }

// 32x32 threads.
extern "C" __global__ void transpose_conflicts(const float* x, float* y) {
  __shared__ float s[32][32];
  s[threadIdx.y][TID] = x[threadIdx.y * 32 + TID];
  __syncthreads();
  y[threadIdx.y * 32 + TID] = s[TID][threadIdx.y];
}

extern "C" __global__ void transpose_padded(const float* x, float* y) {
  __shared__ float s[32][33];
  s[threadIdx.y][TID] = x[threadIdx.y * 32 + TID];
  __syncthreads();
  y[threadIdx.y * 32 + TID] = s[TID][threadIdx.y];
}

__device__ void matrices(const void* p, float* y) {
  uint32_t r[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((uint32_t)__cvta_generic_to_shared(p)));
  y[TID] = __uint_as_float(r[0] ^ r[1] ^ r[2] ^ r[3]);
}

// Rows of 128 bytes: eight rows of one column lie in the same four banks.
extern "C" __global__ void ldmatrix_plain(float* y) {
  __shared__ __align__(128) uint4 s[32][8];
  for (int i = 0; i < 8; i++) s[TID][i] = make_uint4(i, 0, 0, 0);
  __syncwarp();
  matrices(&s[TID][0], y);
}

// The same with the columns exchanged by row: no conflict.
extern "C" __global__ void ldmatrix_swizzled(float* y) {
  __shared__ __align__(128) uint4 s[32][8];
  for (int i = 0; i < 8; i++) s[TID][i] = make_uint4(i, 0, 0, 0);
  __syncwarp();
  matrices(&s[TID][TID & 7], y);
}

extern "C" __global__ void diverging(int* y) {
  int i = blockIdx.x * blockDim.x + TID;
  if (TID % 2 == 0) {
    atomicAdd(&y[0], 1);
  } else {
    __syncwarp(0xaaaaaaaau);
    atomicAdd(&y[1], 1);
  }
  __syncthreads();
  atomicMax(&y[2], i);
}
