// Kernels in the usual style of the field: what a device has to execute right before anything else counts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// ---- GEMM: C[m][n] = sum_k A[m][k] B[n][k], bf16 in, f32 accumulators ----------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy16(void* to, const void* from, bool valid) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void load4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

__device__ __forceinline__ void load4_transposed(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

constexpr int TILE_M = 64, TILE_N = 64, TILE_K = 32, STAGES = 3;

// 16-byte pieces of a 64-byte row, permuted so that eight rows of one column hit different banks.
__device__ __forceinline__ int swizzle(int row, int piece) { return (piece ^ (row >> 1)) & 3; }

// 128 threads, 4 warps of 32x32; k is a multiple of 8, m and n are anything.
extern "C" __global__ void gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  __shared__ __align__(128) __nv_bfloat16 as[STAGES][TILE_M][TILE_K];
  __shared__ __align__(128) __nv_bfloat16 bs[STAGES][TILE_N][TILE_K];
  int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int wm = warp / 2 * 32, wn = warp % 2 * 32;
  float acc[2][4][4] = {};
  int steps = (k + TILE_K - 1) / TILE_K;
  auto fetch = [&](int step) {
    if (step < steps) {
      for (int i = threadIdx.x; i < TILE_M * 4; i += 128) {
        int row = i / 4, piece = i % 4, at = step * TILE_K + piece * 8;
        bool valid = m0 + row < m && at < k;
        copy16(&as[step % STAGES][row][swizzle(row, piece) * 8], valid ? a + (size_t)(m0 + row) * k + at : a, valid);
      }
      for (int i = threadIdx.x; i < TILE_N * 4; i += 128) {
        int row = i / 4, piece = i % 4, at = step * TILE_K + piece * 8;
        bool valid = n0 + row < n && at < k;
        copy16(&bs[step % STAGES][row][swizzle(row, piece) * 8], valid ? b + (size_t)(n0 + row) * k + at : b, valid);
      }
    }
    asm volatile("cp.async.commit_group;\n");
  };
  for (int s = 0; s < STAGES - 1; s++) fetch(s);
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2));
    __syncthreads();
    fetch(step + STAGES - 1);
    int stage = step % STAGES;
    for (int kk = 0; kk < TILE_K; kk += 16) {
      uint32_t fa[2][4], fb[2][4];
      for (int i = 0; i < 2; i++) {
        int row = wm + i * 16 + lane % 16, piece = kk / 8 + lane / 16;
        load4(fa[i], &as[stage][row][swizzle(row, piece) * 8]);
      }
      for (int j = 0; j < 2; j++) {
        int row = wn + j * 16 + lane % 8 + lane / 16 * 8, piece = kk / 8 + lane / 8 % 2;
        load4(fb[j], &bs[stage][row][swizzle(row, piece) * 8]);
      }
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) mma(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        int row = m0 + wm + i * 16 + lane / 4 + e / 2 * 8, column = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n) c[(size_t)row * n + column] = acc[i][j][e];
      }
}

// ---- Flash attention: one warp a tile of 16 queries, head dimension 64, bf16 -----------------------------

constexpr int D = 64;

__device__ __forceinline__ uint32_t pack(float low, float high) {
  __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&both);
}

// 64 threads: two warps, 16 queries each; keys in tiles of 32. q, k, v, o: [heads][tokens][D].
extern "C" __global__ void attention(const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, float* o,
                                     int queries, int keys, float scale) {
  __shared__ __align__(16) __nv_bfloat16 qs[32][D + 8], ks[32][D + 8], vs[32][D + 8];
  int head = blockIdx.y, q0 = blockIdx.x * 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  q += (size_t)head * queries * D;
  k += (size_t)head * keys * D;
  v += (size_t)head * keys * D;
  o += (size_t)head * queries * D;
  for (int i = threadIdx.x; i < 32 * 8; i += 64) {
    int row = i / 8, column = i % 8 * 8;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (q0 + row < queries) value = *reinterpret_cast<const uint4*>(q + (size_t)(q0 + row) * D + column);
    *reinterpret_cast<uint4*>(&qs[row][column]) = value;
  }
  __syncthreads();
  uint32_t fq[4][4];
  for (int i = 0; i < 4; i++) load4(fq[i], &qs[warp * 16 + lane % 16][i * 16 + lane / 16 * 8]);
  float acc[8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int k0 = 0; k0 < keys; k0 += 32) {
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * 8; i += 64) {
      int row = i / 8, column = i % 8 * 8;
      bool valid = k0 + row < keys;
      size_t at = valid ? (size_t)(k0 + row) * D + column : 0;
      copy16(&ks[row][column], k + at, valid);
      copy16(&vs[row][column], v + at, valid);
    }
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n");
    __syncthreads();
    float s[4][4] = {};
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 2; j++) {
        uint32_t fk[4];
        load4(fk, &ks[j * 16 + lane % 8 + lane / 16 * 8][i * 16 + lane / 8 % 2 * 8]);
        mma(s[j * 2], fq[i], fk[0], fk[1]);
        mma(s[j * 2 + 1], fq[i], fk[2], fk[3]);
      }
    float high[2] = {top[0], top[1]};
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        bool valid = k0 + j * 8 + lane % 4 * 2 + e % 2 < keys;
        s[j][e] = valid ? s[j][e] * scale : -INFINITY;
        high[e / 2] = fmaxf(high[e / 2], s[j][e]);
      }
    for (int h = 0; h < 2; h++) {
      high[h] = fmaxf(high[h], __shfl_xor_sync(~0u, high[h], 1));
      high[h] = fmaxf(high[h], __shfl_xor_sync(~0u, high[h], 2));
      float factor = exp2f((top[h] - high[h]) * 1.44269504f);
      top[h] = high[h];
      sum[h] *= factor;
      for (int j = 0; j < 8; j++) {
        acc[j][h * 2] *= factor;
        acc[j][h * 2 + 1] *= factor;
      }
    }
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        s[j][e] = exp2f((s[j][e] - top[e / 2]) * 1.44269504f);
        sum[e / 2] += s[j][e];
      }
    for (int i = 0; i < 2; i++) {
      uint32_t p[4] = {pack(s[i * 2][0], s[i * 2][1]), pack(s[i * 2][2], s[i * 2][3]), pack(s[i * 2 + 1][0], s[i * 2 + 1][1]),
                       pack(s[i * 2 + 1][2], s[i * 2 + 1][3])};
      for (int j = 0; j < 4; j++) {
        uint32_t fv[4];
        load4_transposed(fv, &vs[i * 16 + lane % 16][j * 16 + lane / 16 * 8]);
        mma(acc[j * 2], p, fv[0], fv[1]);
        mma(acc[j * 2 + 1], p, fv[2], fv[3]);
      }
    }
  }
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    int row = q0 + warp * 16 + lane / 4 + h * 8;
    if (row < queries)
      for (int j = 0; j < 8; j++) {
        float2 out = make_float2(acc[j][h * 2] / sum[h], acc[j][h * 2 + 1] / sum[h]);
        *reinterpret_cast<float2*>(o + (size_t)row * D + j * 8 + lane % 4 * 2) = out;
      }
  }
}

// ---- Implicit GEMM convolution, NHWC, f32, 3x3 with padding and stride --------------------------------

struct Shape {
  int batch, height, width, channels, out_height, out_width, out_channels, stride;
};

// 16x16 threads: a tile of 16 output pixels by 16 output channels.
extern "C" __global__ void convolution(const float* x, const float* w, const float* bias, float* y, Shape s) {
  __shared__ float xs[16][17], ws[16][17];
  int pixels = s.batch * s.out_height * s.out_width, depth = 9 * s.channels;
  int pixel = blockIdx.x * 16 + threadIdx.y, channel = blockIdx.y * 16 + threadIdx.x;
  int ox = pixel % s.out_width, oy = pixel / s.out_width % s.out_height, image = pixel / (s.out_width * s.out_height);
  float sum = 0;
  for (int k0 = 0; k0 < depth; k0 += 16) {
    int k = k0 + threadIdx.x, c = k % s.channels, tap = k / s.channels;
    int iy = oy * s.stride + tap / 3 - 1, ix = ox * s.stride + tap % 3 - 1;
    bool inside = pixel < pixels && k < depth && iy >= 0 && iy < s.height && ix >= 0 && ix < s.width;
    xs[threadIdx.y][threadIdx.x] = inside ? x[((image * s.height + iy) * s.width + ix) * s.channels + c] : 0.f;
    int kw = k0 + threadIdx.y;
    ws[threadIdx.y][threadIdx.x] = kw < depth && channel < s.out_channels ? w[kw * s.out_channels + channel] : 0.f;
    __syncthreads();
    for (int i = 0; i < 16; i++) sum += xs[threadIdx.y][i] * ws[i][threadIdx.x];
    __syncthreads();
  }
  if (pixel < pixels && channel < s.out_channels) {
    float value = sum + bias[channel];
    y[pixel * s.out_channels + channel] = value / (1.f + __expf(-value));
  }
}

// ---- Sum of squares: warp shuffles, shared memory, one atomic a block --------------------------------------

extern "C" __global__ void sum_of_squares(const float* x, double* total, int n) {
  __shared__ double partial[32];
  double sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += (double)x[i] * x[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    sum = lane < (blockDim.x + 31) / 32 ? partial[lane] : 0;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
    if (lane == 0) atomicAdd(total, sum);
  }
}

// ---- Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) ---------------

extern "C" __global__ void philox(uint32_t* out, uint64_t key, uint64_t stream, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i * 4 >= n) return;
  uint32_t c[4] = {(uint32_t)i, 0, (uint32_t)stream, (uint32_t)(stream >> 32)};
  uint32_t k[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
  for (int round = 0; round < 10; round++) {
    uint32_t h0 = __umulhi(0xD2511F53u, c[0]), l0 = 0xD2511F53u * c[0];
    uint32_t h1 = __umulhi(0xCD9E8D57u, c[2]), l1 = 0xCD9E8D57u * c[2];
    c[0] = h1 ^ c[1] ^ k[0];
    c[1] = l1;
    c[2] = h0 ^ c[3] ^ k[1];
    c[3] = l0;
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  for (int j = 0; j < 4 && i * 4 + j < n; j++) out[i * 4 + j] = c[j];
}

// ---- Mathematical functions of single and double precision ------------------------------------------------

extern "C" __global__ void functions(const float* x, float* y, double* z, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  float* row = y + i * 16;
  row[0] = expf(v);
  row[1] = logf(fabsf(v));
  row[2] = sinf(v * 1000.f);
  row[3] = cosf(v);
  row[4] = tanhf(v);
  row[5] = erff(v);
  row[6] = sqrtf(fabsf(v));
  row[7] = rsqrtf(fabsf(v));
  row[8] = v / 3.f;
  row[9] = powf(fabsf(v), 1.7f);
  row[10] = atan2f(v, 2.f);
  row[11] = fmodf(v, 0.3f);
  row[12] = cbrtf(v);
  row[13] = log1pf(fabsf(v));
  row[14] = sinf(v * 1e9f);
  row[15] = rintf(v * 10.f) + floorf(v) + ceilf(v) + truncf(v * 7.f);
  double d = v;
  double* wide = z + i * 8;
  wide[0] = exp(d);
  wide[1] = log(fabs(d));
  wide[2] = sin(d * 1e5);
  wide[3] = pow(fabs(d), 2.3);
  wide[4] = sqrt(fabs(d));
  wide[5] = d / 3.0;
  wide[6] = tanh(d);
  wide[7] = erf(d);
}
