// Normalisations of NHWC images and of rows.
//
//   y = act((x - mean) * rstd * gamma + beta)      statistics in f32
//
// Group normalisation runs in two passes, since a group's channels (10 in Stable Diffusion's first
// level) are too narrow a slice of a pixel to be read alone: every block of the first pass reads
// whole pixels of one slab of an image and leaves (mean, sum of squared deviations) per group; the
// second merges the slabs and writes. Slabs, threads and the order of merging follow from the shape
// of one image, so an image's result does not depend on its batch.

#include "common.cuh"

struct GroupNormDims {
    unsigned pixels, channels, groups;
    unsigned slabs, slab_pixels;  // slab s holds pixels [s * slab_pixels, ...), the last may be short
    float eps;
    unsigned silu;
};

struct LayerNormDims {
    unsigned rows, columns;
    float eps;
};

// Count, mean and sum of squared deviations of a set of values: merging two of these loses nothing
// to cancellation, unlike a sum and a sum of squares (Chan, Golub & LeVeque 1983).
struct Moments {
    float count, mean, m2;
};

__device__ inline Moments merge(Moments a, Moments b) {
    if (b.count == 0.0f) return a;
    if (a.count == 0.0f) return b;
    const float count = a.count + b.count;
    const float delta = b.mean - a.mean;
    const float share = b.count / count;
    return {count, fmaf(delta, share, a.mean), a.m2 + b.m2 + delta * delta * a.count * share};
}

// All lanes' moments, in lane 0. The tree's shape never changes.
__device__ inline Moments warp_merge(Moments m) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        const Moments other = {
            __shfl_down_sync(FULL_WARP, m.count, step),
            __shfl_down_sync(FULL_WARP, m.mean, step),
            __shfl_down_sync(FULL_WARP, m.m2, step),
        };
        m = merge(m, other);
    }
    return m;
}

// --- group normalisation, first pass ---

// How a block's threads share a slab: `rows` pixels side by side, a thread on one vector of each;
// a pixel wider than the block takes several turns.
struct SlabThreads {
    unsigned vectors, rows, row, first, step;

    __device__ SlabThreads(unsigned channels, int n) {
        vectors = channels / n;
        rows = vectors < blockDim.x ? blockDim.x / vectors : 1;
        row = rows > 1 ? threadIdx.x / vectors : 0;
        first = threadIdx.x - row * vectors;
        step = rows > 1 ? vectors : blockDim.x;
    }
};

// N consecutive channels a step. Shared: means and squared deviations, each [rows, channels].
template <int N, typename T>
__device__ void slab_moments(float* stats, const T* x, float* shared, GroupNormDims d) {
    const bool wide = is_aligned(x);
    const unsigned begin = blockIdx.x * d.slab_pixels;
    const unsigned pixels = min(d.slab_pixels, d.pixels - begin);
    const T* slab = x + (size_t(blockIdx.y) * d.pixels + begin) * d.channels;
    const SlabThreads t(d.channels, N);
    float* means = shared;
    float* squares = shared + size_t(t.rows) * d.channels;

    // 1. each channel of each row of pixels (Welford)
    for (unsigned v = t.first; t.row < t.rows && v < t.vectors; v += t.step) {
        float mean[N] = {}, m2[N] = {};
        float count = 0.0f;
        for (unsigned p = t.row; p < pixels; p += t.rows) {
            float a[N];
            load(a, slab + size_t(p) * d.channels + v * N, wide);
            count += 1.0f;
            const float weight = 1.0f / count;
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float delta = a[i] - mean[i];
                mean[i] = fmaf(delta, weight, mean[i]);
                m2[i] = fmaf(delta, a[i] - mean[i], m2[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            means[t.row * d.channels + v * N + i] = mean[i];
            squares[t.row * d.channels + v * N + i] = m2[i];
        }
    }
    __syncthreads();

    // 2. a warp gathers a group's channels and rows
    const unsigned lane = threadIdx.x % WARP;
    const unsigned width = d.channels / d.groups;
    for (unsigned g = threadIdx.x / WARP; g < d.groups; g += blockDim.x / WARP) {
        Moments m = {};
        for (unsigned i = lane; i < t.rows * width; i += WARP) {
            const unsigned row = i / width;
            const unsigned at = row * d.channels + g * width + i % width;
            const unsigned count = row < pixels ? (pixels - row - 1) / t.rows + 1 : 0;
            m = merge(m, {float(count), means[at], squares[at]});
        }
        m = warp_merge(m);
        if (lane == 0) {
            const size_t at = (size_t(blockIdx.y) * d.slabs + blockIdx.x) * d.groups + g;
            stats[2 * at] = m.mean;
            stats[2 * at + 1] = m.m2;
        }
    }
}

// stats [batch, slabs, groups, 2]; grid (slabs, batch)
template <typename T>
__device__ void group_norm_stats(float* stats, const T* x, GroupNormDims d) {
    extern __shared__ float shared[];
    if (d.channels % LANES<T> == 0) {
        slab_moments<LANES<T>>(stats, x, shared, d);
    } else {
        slab_moments<1>(stats, x, shared, d);
    }
}
FOR_EACH_FLOAT(group_norm_stats, (float* stats, const T* x, GroupNormDims d), (stats, x, d))

// --- group normalisation, second pass ---

template <int N, typename T>
__device__ void normalise(T* y, const T* x, const float* factor, const float* offset, GroupNormDims d) {
    const bool wide = is_aligned(x) && is_aligned(y);
    const unsigned vectors = d.channels / N;
    const size_t image = size_t(blockIdx.y) * d.pixels * d.channels;
    const size_t len = size_t(d.pixels) * vectors;
    const size_t stride = size_t(gridDim.x) * blockDim.x;
    const unsigned jump = stride % vectors;
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    // The channel is carried along: a division per vector would cost more than the arithmetic.
    unsigned v = at % vectors;
    for (; at < len; at += stride) {
        float a[N];
        load(a, x + image + at * N, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            a[i] = fmaf(a[i], factor[v * N + i], offset[v * N + i]);
            if (d.silu) a[i] = silu(a[i]);
        }
        store(y + image + at * N, a, wide);
        v += jump;
        if (v >= vectors) v -= vectors;
    }
}

// grid (any, batch); shared: factor and offset of every channel, y = x * factor + offset
template <typename T>
__device__ void group_norm(
    T* y, const T* x, const float* gamma, const float* beta, const float* stats, GroupNormDims d) {
    extern __shared__ float shared[];
    float* factor = shared;
    float* offset = shared + d.channels;

    const unsigned lane = threadIdx.x % WARP;
    const unsigned width = d.channels / d.groups;
    for (unsigned g = threadIdx.x / WARP; g < d.groups; g += blockDim.x / WARP) {
        Moments m = {};
        for (unsigned s = lane; s < d.slabs; s += WARP) {
            const size_t at = (size_t(blockIdx.y) * d.slabs + s) * d.groups + g;
            const unsigned pixels = min(d.slab_pixels, d.pixels - s * d.slab_pixels);
            m = merge(m, {float(pixels) * width, stats[2 * at], stats[2 * at + 1]});
        }
        m = warp_merge(m);
        const float mean = __shfl_sync(FULL_WARP, m.mean, 0);
        const float rstd = 1.0f / sqrtf(__shfl_sync(FULL_WARP, m.m2 / m.count, 0) + d.eps);
        for (unsigned c = g * width + lane; c < (g + 1) * width; c += WARP) {
            factor[c] = rstd * gamma[c];
            offset[c] = fmaf(-mean, factor[c], beta[c]);
        }
    }
    __syncthreads();

    if (d.channels % LANES<T> == 0) {
        normalise<LANES<T>>(y, x, factor, offset, d);
    } else {
        normalise<1>(y, x, factor, offset, d);
    }
}
FOR_EACH_FLOAT(
    group_norm,
    (T* y, const T* x, const float* gamma, const float* beta, const float* stats, GroupNormDims d),
    (y, x, gamma, beta, stats, d))

// --- layer normalisation ---

// A warp a row, three sweeps over it: sum, squared deviations, result. A row is a few KB, so the
// second and third read the first-level cache.
template <int N, typename T>
__device__ void layer_norm_row(T* y, const T* x, const float* gamma, const float* beta, LayerNormDims d) {
    const bool wide = is_aligned(x) && is_aligned(y);
    const unsigned lane = threadIdx.x % WARP;

    float sum = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum += a[i];
    }
    const float mean = warp_sum(sum) / float(d.columns);

    float squares = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(a[i] - mean, a[i] - mean, squares);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / float(d.columns) + d.eps);

    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = fmaf((a[i] - mean) * rstd, gamma[c + i], beta[c + i]);
        store(y + c, a, wide);
    }
}

template <typename T>
__device__ void layer_norm(T* y, const T* x, const float* gamma, const float* beta, LayerNormDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const size_t at = size_t(row) * d.columns;
    if (d.columns % LANES<T> == 0) {
        layer_norm_row<LANES<T>>(y + at, x + at, gamma, beta, d);
    } else {
        layer_norm_row<1>(y + at, x + at, gamma, beta, d);
    }
}
FOR_EACH_FLOAT(
    layer_norm,
    (T* y, const T* x, const float* gamma, const float* beta, LayerNormDims d),
    (y, x, gamma, beta, d))
