// Softmax over rows: y = e^(x - max) / sum e^(x - max), in f32.
//
// A warp a row, three sweeps over it. A row of attention scores is a few KB, so the second and third read the
// first-level cache; the exponential is computed twice rather than kept.

#include "common.cuh"

struct SoftmaxDims {
    unsigned rows, columns;
};

template <int N, typename T>
__device__ void softmax_row(T* y, const T* x, unsigned columns) {
    const bool wide = is_aligned(x) && is_aligned(y);
    const unsigned first = threadIdx.x % WARP * N;

    // A NaN need not reach the maximum: it reaches the sum.
    float largest = -INFINITY;
    for (unsigned c = first; c < columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) largest = a[i] > largest ? a[i] : largest;
    }
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, largest, step);
        largest = other > largest ? other : largest;
    }

    float sum = 0.0f;
    for (unsigned c = first; c < columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum += expf(a[i] - largest);
    }
    sum = warp_sum(sum);

    for (unsigned c = first; c < columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = expf(a[i] - largest) / sum;
        store(y + c, a, wide);
    }
}

template <typename T>
__device__ void softmax(T* y, const T* x, SoftmaxDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const size_t at = size_t(row) * d.columns;
    if (d.columns % LANES<T> == 0) {
        softmax_row<LANES<T>>(y + at, x + at, d.columns);
    } else {
        softmax_row<1>(y + at, x + at, d.columns);
    }
}
FOR_EACH_FLOAT(softmax, (T* y, const T* x, SoftmaxDims d), (y, x, d))

// --- gradient: dx = y (g - sum(y g)) ---

template <int N, typename T>
__device__ void softmax_gradient_row(T* dx, const T* y, const T* grad, unsigned columns) {
    const bool wide = is_aligned(dx) && is_aligned(y) && is_aligned(grad);
    const unsigned first = threadIdx.x % WARP * N;
    float sum = 0.0f;
    for (unsigned c = first; c < columns; c += WARP * N) {
        float weight[N], g[N];
        load(weight, y + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(weight[i], g[i], sum);
    }
    sum = warp_sum(sum);
    for (unsigned c = first; c < columns; c += WARP * N) {
        float weight[N], g[N];
        load(weight, y + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = weight[i] * (g[i] - sum);
        store(dx + c, g, wide);
    }
}

template <typename T>
__device__ void softmax_gradient(T* dx, const T* y, const T* grad, SoftmaxDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const size_t at = size_t(row) * d.columns;
    if (d.columns % LANES<T> == 0) {
        softmax_gradient_row<LANES<T>>(dx + at, y + at, grad + at, d.columns);
    } else {
        softmax_gradient_row<1>(dx + at, y + at, grad + at, d.columns);
    }
}
FOR_EACH_FLOAT(softmax_gradient, (T* dx, const T* y, const T* grad, SoftmaxDims d), (dx, y, grad, d))
