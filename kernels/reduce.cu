// Sums, means and extremes of rows, in f32.
//
// A warp a row, or a block where rows are long: which of them, and so the order of a sum, follows from the
// length alone.

#include "common.cuh"

enum Reduction : unsigned { SUM, MEAN, LARGEST, LEAST };

struct ReduceDims {
    unsigned rows, columns;
    unsigned reduction;
};

struct ColumnDims {
    unsigned rows, columns;
    unsigned chunks, rows_of_chunk;
    float divisor;
};

// One step of a reduction. Extremes keep a NaN.
__device__ inline float combine(float a, float b, unsigned reduction) {
    if (reduction <= MEAN) return a + b;
    if (a != a || b != b) return a + b;
    return (reduction == LARGEST) == (a > b) ? a : b;
}

__device__ inline float start(unsigned reduction) {
    return reduction <= MEAN ? 0.0f : reduction == LARGEST ? -INFINITY : INFINITY;
}

__device__ inline float warp_combine(float x, unsigned reduction) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        x = combine(x, __shfl_xor_sync(FULL_WARP, x, step), reduction);
    }
    return x;
}

// The part of a row that begins at `first` and goes on every `step`.
template <typename T>
__device__ float reduce_part(const T* x, unsigned first, unsigned step, ReduceDims d) {
    constexpr int N = LANES<T>;
    const bool wide = is_aligned(x);
    float sum = start(d.reduction);
    const unsigned vectors = d.columns / N;
    for (unsigned v = first; v < vectors; v += step) {
        float a[N];
        load(a, x + size_t(v) * N, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum = combine(sum, a[i], d.reduction);
    }
    for (unsigned c = vectors * N + first; c < d.columns; c += step) {
        sum = combine(sum, to_float(x[c]), d.reduction);
    }
    return sum;
}

template <typename T>
__device__ void finish(T* y, float x, ReduceDims d) {
    *y = from_float<T>(d.reduction == MEAN ? x / float(d.columns) : x);
}

template <typename T>
__device__ void reduce_by_warps(T* y, const T* x, ReduceDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const unsigned lane = threadIdx.x % WARP;
    const float part = reduce_part(x + size_t(row) * d.columns, lane, WARP, d);
    const float all = warp_combine(part, d.reduction);
    if (lane == 0) finish(y + row, all, d);
}
FOR_EACH_FLOAT(reduce_by_warps, (T* y, const T* x, ReduceDims d), (y, x, d))

template <typename T>
__device__ void reduce_by_blocks(T* y, const T* x, ReduceDims d) {
    __shared__ float parts[WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const float part = reduce_part(x + size_t(blockIdx.x) * d.columns, threadIdx.x, blockDim.x, d);
    const float of_warp = warp_combine(part, d.reduction);
    if (lane == 0) parts[warp] = of_warp;
    __syncthreads();
    if (warp > 0) return;
    const float own = lane < blockDim.x / WARP ? parts[lane] : start(d.reduction);
    const float all = warp_combine(own, d.reduction);
    if (lane == 0) finish(y + blockIdx.x, all, d);
}
FOR_EACH_FLOAT(reduce_by_blocks, (T* y, const T* x, ReduceDims d), (y, x, d))

// Sums over the columns of matrices [rows, columns], for each chunk of their rows: y [matrices, chunks, columns]. A block
// has 32 columns, and each of its eight warps every eighth row. grid (tiles of columns * chunks, matrices)
template <typename T, typename U>
__device__ void sum_columns(U* y, const T* x, ColumnDims d) {
    constexpr unsigned WARPS = 8;
    __shared__ float parts[WARPS][WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned tiles = (d.columns + WARP - 1) / WARP;
    const unsigned column = blockIdx.x % tiles * WARP + lane, chunk = blockIdx.x / tiles;
    const bool inside = column < d.columns;
    const unsigned first = chunk * d.rows_of_chunk, end = min(d.rows, first + d.rows_of_chunk);
    const T* const matrix = x + size_t(blockIdx.y) * d.rows * d.columns + (inside ? column : 0);
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned row = first + warp; row < end; row += WARPS) sum += to_float(matrix[size_t(row) * d.columns]);
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || !inside) return;
    sum = parts[0][lane];
#pragma unroll
    for (unsigned i = 1; i < WARPS; i++) sum += parts[i][lane];
    y[(size_t(blockIdx.y) * d.chunks + chunk) * d.columns + column] = from_float<U>(sum / d.divisor);
}
FOR_EACH_PAIR(sum_columns, (U* y, const T* x, ColumnDims d), (y, x, d))

// The gradient of an extreme y [rows] of rows x [rows, columns], shared among those that are equal to it. A warp a row.
template <typename T>
__device__ void extreme_gradient(T* dx, const T* x, const T* y, const T* grad, ReduceDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;
    const unsigned lane = threadIdx.x % WARP;
    const float extreme = to_float(y[row]);
    const T* const from = x + size_t(row) * d.columns;
    float equal = 0.0f;
    for (unsigned c = lane; c < d.columns; c += WARP) equal += to_float(from[c]) == extreme;
    const float share = to_float(grad[row]) / warp_sum(equal);
    for (unsigned c = lane; c < d.columns; c += WARP) {
        dx[size_t(row) * d.columns + c] = from_float<T>(to_float(from[c]) == extreme ? share : 0.0f * share);
    }
}
FOR_EACH_FLOAT(extreme_gradient, (T* dx, const T* x, const T* y, const T* grad, ReduceDims d), (dx, x, y, grad, d))
