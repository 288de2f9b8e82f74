// What the program in C launches.
__constant__ float table[4] = {1, 2, 3, 4};

extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * factor;
}

extern "C" __global__ void needs_dynamic_shared(float* y) {
  extern __shared__ float s[];
  s[threadIdx.x * 512] = table[threadIdx.x & 3];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x * 512];
}

extern "C" __global__ void out_of_bounds(float* y, int n) { y[n + threadIdx.x] = 1; }
