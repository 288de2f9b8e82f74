// Matrix products with a fused end: linear layers, and batches of plain products.
//
//   y[m, n] = act(sum_k a[m, k] * b[n, k] + bias[n] + add[m / rows_of_image, n]) * scale + residual[m, n]
//
// Rows of both operands lie along k. Sums are in f32, over k in one order whatever m, n and the batch are, so a row
// of y does not depend on its neighbours. 16-bit elements go through the tensor cores, f32 through ordinary multiply-adds.

#include "common.cuh"

struct MatmulDims {
    unsigned long long a_stride, b_stride;  // from one product of the batch to the next
    unsigned m, n, k;
    unsigned rows_of_image;
    unsigned activation;
    float scale;
};

enum Activation : unsigned { IDENTITY, SILU, GELU, GELU_TANH, QUICK_GELU };

// Called, not inlined: a thread has 64 outputs, and as many copies of this would make megabytes of machine code.
__device__ __noinline__ float activate(float x, unsigned activation) {
    switch (activation) {
        case SILU: return silu(x);
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
        default: return x;
    }
}

// What follows the sum. Absent tensors are null.
template <typename T>
struct Epilogue {
    T* y;
    const float *bias, *add;
    const T* residual;
    MatmulDims d;

    __device__ void store(unsigned m, unsigned n, float sum) const {
        if (m >= d.m || n >= d.n) return;
        const size_t at = size_t(m) * d.n + n;
        if (bias) sum += bias[n];
        if (add) sum += add[size_t(m / d.rows_of_image) * d.n + n];
        if (d.activation != IDENTITY) sum = activate(sum, d.activation);
        sum *= d.scale;
        if (residual) sum += to_float(residual[at]);
        y[at] = from_float<T>(sum);
    }
};

// --- f32 ---

// A block of 256 threads has 64 x 64 outputs, a thread 4 x 4 of them, 16 apart, so that a warp's reads of shared
// memory are broadcasts or neighbours.
namespace plain {
constexpr unsigned TILE = 64, DEPTH = 16, STEP = 16, EACH = TILE / STEP;

__device__ inline void fill(float (&to)[DEPTH][TILE + 1], const float* x, unsigned first, unsigned rows, unsigned k0, unsigned k) {
    for (unsigned i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
        const unsigned row = i / DEPTH, depth = i % DEPTH;
        const bool inside = first + row < rows && k0 + depth < k;
        to[depth][row] = inside ? x[size_t(first + row) * k + k0 + depth] : 0.0f;
    }
}

__device__ inline void product(const float* a, const float* b, unsigned m0, unsigned n0, const Epilogue<float>& end) {
    __shared__ float rows_a[DEPTH][TILE + 1], rows_b[DEPTH][TILE + 1];
    const unsigned row = threadIdx.x / STEP, column = threadIdx.x % STEP;
    float sum[EACH][EACH] = {};
    for (unsigned k0 = 0; k0 < end.d.k; k0 += DEPTH) {
        fill(rows_a, a, m0, end.d.m, k0, end.d.k);
        fill(rows_b, b, n0, end.d.n, k0, end.d.k);
        __syncthreads();
#pragma unroll
        for (unsigned depth = 0; depth < DEPTH; depth++) {
            float x[EACH], y[EACH];
#pragma unroll
            for (unsigned i = 0; i < EACH; i++) {
                x[i] = rows_a[depth][row + i * STEP];
                y[i] = rows_b[depth][column + i * STEP];
            }
#pragma unroll
            for (unsigned i = 0; i < EACH; i++) {
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) end.store(m0 + row + i * STEP, n0 + column + j * STEP, sum[i][j]);
    }
}
}  // namespace plain

// --- tensor cores ---

// A block of eight warps has 128 x 128 outputs, a warp 64 x 32 of them: 4 x 4 products m16n8k16 a step of k. Tiles
// of 32 k arrive in three stages, two on the way while one is multiplied.
//
// A row of a tile is 64 bytes, four 16-byte chunks; chunk c of row r lies at c ^ (r / 2 % 4), so that the eight rows of
// an ldmatrix touch all banks once.
namespace tensor {
constexpr unsigned TILE = 128, DEPTH = 32, STAGES = 3;
constexpr unsigned CHUNK = 8;  // elements of 16 bytes
constexpr unsigned CHUNKS = DEPTH / CHUNK;
constexpr unsigned WARP_M = 64, WARP_N = 32;

template <typename T>
struct Stage {
    uint4 a[TILE * CHUNKS], b[TILE * CHUNKS];
};

__device__ inline unsigned place(unsigned row, unsigned chunk) { return row * CHUNKS + (chunk ^ (row / 2 % CHUNKS)); }

__device__ inline unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Rows [first, first + TILE) and k [k0, k0 + DEPTH) of x [rows, k]; zeros beyond both. `wide`: chunks of x are aligned and
// whole.
template <typename T>
__device__ void fill(uint4* to, const T* x, unsigned first, unsigned rows, unsigned k0, unsigned k, bool wide) {
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < TILE * CHUNKS; i += 256) {
        const unsigned row = i / CHUNKS, chunk = i % CHUNKS;
        const unsigned at = k0 + chunk * CHUNK;
        const bool inside = first + row < rows && at < k;
        const T* from = inside ? x + size_t(first + row) * k + at : x;
        uint4* slot = to + place(row, chunk);
        if (wide) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(slot)), "l"(from),
                         "r"(inside ? 16 : 0)
                         : "memory");
        } else {
            T parts[CHUNK];
#pragma unroll
            for (unsigned e = 0; e < CHUNK; e++) parts[e] = inside && at + e < k ? from[e] : from_float<T>(0.0f);
            uint4 bits;
            memcpy(&bits, parts, sizeof(bits));
            *slot = bits;
        }
    }
}

__device__ inline void load_matrices(unsigned (&to)[4], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned* b, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned* b, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <typename T>
__device__ void product(const T* a, const T* b, unsigned m0, unsigned n0, const Epilogue<T>& end) {
    __shared__ Stage<T> stages[STAGES];
    const MatmulDims& d = end.d;
    const bool wide_a = is_aligned(a) && d.k % CHUNK == 0, wide_b = is_aligned(b) && d.k % CHUNK == 0;
    const unsigned steps = (d.k + DEPTH - 1) / DEPTH;
    const auto fetch = [&](unsigned step) {
        if (step < steps) {
            Stage<T>& stage = stages[step % STAGES];
            fill(stage.a, a, m0, d.m, step * DEPTH, d.k, wide_a);
            fill(stage.b, b, n0, d.n, step * DEPTH, d.k, wide_b);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");  // an empty one at the end keeps the count
    };
#pragma unroll 1
    for (unsigned step = 0; step < STAGES - 1; step++) fetch(step);

    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned warp_m = warp / 4 * WARP_M, warp_n = warp % 4 * WARP_N;
    float sum[4][4][4] = {};
    for (unsigned step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();  // this stage has arrived, and everybody is done with the one that is filled next
        fetch(step + STAGES - 1);
        const Stage<T>& stage = stages[step % STAGES];
#pragma unroll
        for (unsigned chunk = 0; chunk < CHUNKS; chunk += 2) {
            unsigned of_a[4][4], of_b[2][4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                load_matrices(of_a[i], stage.a + place(warp_m + i * 16 + lane % 16, chunk + lane / 16));
            }
#pragma unroll
            for (unsigned j = 0; j < 2; j++) {
                const unsigned row = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(of_b[j], stage.b + place(row, chunk + lane / 8 % 2));
            }
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) multiply(sum[i][j], of_a[i], of_b[j / 2] + j % 2 * 2, T{});
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");

#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
#pragma unroll
            for (unsigned e = 0; e < 4; e++) {
                const unsigned m = m0 + warp_m + i * 16 + e / 2 * 8 + lane / 4;
                const unsigned n = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
                end.store(m, n, sum[i][j][e]);
            }
        }
    }
}
}  // namespace tensor

// grid (tiles, batch); y, bias, add and residual are of the whole batch
template <typename T>
__device__ void matmul(
    T* y, const T* a, const T* b, Pointers<const float, 1> bias, Pointers<const float, 1> add,
    Pointers<const T, 1> residual, const MatmulDims& d) {
    constexpr unsigned TILE = sizeof(T) == 4 ? plain::TILE : tensor::TILE;
    const unsigned tiles_n = (d.n + TILE - 1) / TILE;
    const unsigned m0 = blockIdx.x / tiles_n * TILE, n0 = blockIdx.x % tiles_n * TILE;
    a += blockIdx.y * d.a_stride;
    b += blockIdx.y * d.b_stride;
    const size_t out = size_t(blockIdx.y) * d.m * d.n;
    const Epilogue<T> end = {y + out, bias.at[0], add.at[0], residual.at[0] ? residual.at[0] + out : nullptr, d};
    if constexpr (sizeof(T) == 4) {
        plain::product(a, b, m0, n0, end);
    } else {
        tensor::product(a, b, m0, n0, end);
    }
}
FOR_EACH_FLOAT(
    matmul,
    (T* y, const T* a, const T* b, Pointers<const float, 1> bias, Pointers<const float, 1> add,
     Pointers<const T, 1> residual, MatmulDims d),
    (y, a, b, bias, add, residual, d))
