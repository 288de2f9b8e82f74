// Normalisations of NHWC images and of rows.
//
//   y = act((x - mean) * rstd * gamma + beta)      statistics in f32
//
// A mean is kept as two numbers, a centre near it and what is left to it: f32 would round a mean of thousands by
// more than what a deviation near one may lose. Differences of values from a centre close to them are exact.
//
// Group normalisation runs in two passes, since a group's channels (10 in Stable Diffusion's first
// level) are too narrow a slice of a pixel to be read alone: every block of the first pass reads
// whole pixels of one slab of an image and leaves three numbers per group; the
// second merges the slabs and writes. Both passes are one launch where all its blocks run at once and may
// wait for each other, else two. Slabs, threads and the order of merging follow from the shape
// of one image, so an image's result depends neither on its batch nor on the launches.

#include <cooperative_groups.h>

#include "common.cuh"

struct GroupNormDims {
    unsigned pixels, channels, groups;
    unsigned slabs, slab_pixels;  // slab s holds pixels [s * slab_pixels, ...), the last may be short
    float eps;
    unsigned silu;
    unsigned of_x;  // channels that lie in x; the others lie in a tensor of their own
};

// Images [batch, pixels, channels] whose first channels lie in one tensor, the others in another.
template <typename T>
struct Parts {
    const T *x, *rest;
    unsigned of_x, of_rest;

    __device__ Parts(const T* x, const T* rest, const GroupNormDims& d)
        : x(x), rest(rest), of_x(d.of_x), of_rest(d.channels - d.of_x) {}

    // Elements from one pixel to the next, of the part that has channel c.
    __device__ unsigned stride(unsigned c) const { return c < of_x ? of_x : of_rest; }

    // A pixel's channels from c on.
    __device__ const T* at(size_t pixel, unsigned c) const {
        return c < of_x ? x + pixel * of_x + c : rest + pixel * of_rest + (c - of_x);
    }

    __device__ bool are_aligned() const { return is_aligned(x) && is_aligned(rest); }

    // Whether runs of N channels lie in one part each.
    __device__ static bool divide(int n, const GroupNormDims& d) { return d.channels % n == 0 && d.of_x % n == 0; }
};

// Vectors of N floats in shared memory, four floats of each side by side: those of all vectors, then the second fours. So
// threads on neighbouring vectors have neighbouring fours, which lie in different banks.
template <int N>
struct Vectors {
    static constexpr int W = N < 4 ? N : 4;

    float* at;  // aligned to fours
    unsigned count;

    // Element i of vector v.
    __device__ float& operator()(unsigned v, unsigned i) const { return at[(i / W * count + v) * W + i % W]; }

    __device__ void put(unsigned v, const float (&x)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i += W) {
            if constexpr (W == 4) {
                reinterpret_cast<float4*>(at)[i / 4 * count + v] = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
            } else {
                (*this)(v, i) = x[i];
            }
        }
    }

    __device__ void get(unsigned v, float (&x)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i += W) {
            if constexpr (W == 4) {
                const float4 four = reinterpret_cast<const float4*>(at)[i / 4 * count + v];
                x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
            } else {
                x[i] = (*this)(v, i);
            }
        }
    }
};

struct LayerNormDims {
    unsigned rows, columns;
    float eps;
};

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

// Sum over a group of values [rows, channels], in every lane of the warp.
template <int N>
__device__ float group_sum(const Vectors<N>& values, unsigned g, unsigned rows, const GroupNormDims& d) {
    const unsigned width = d.channels / d.groups, vectors = d.channels / N;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP; i < rows * width; i += WARP) {
        const unsigned c = g * width + i % width;
        sum += values(i / width * vectors + c / N, c % N);
    }
    return warp_sum(sum);
}

// Where group g of an image's slab s leaves number i of three; neighbouring slabs lie side by side.
__device__ inline size_t place_of_stats(unsigned g, unsigned i, unsigned s, const GroupNormDims& d) {
    return ((size_t(blockIdx.y) * d.groups + g) * 3 + i) * d.slabs + s;
}

// N consecutive channels a step. Shared: sums and squares, each [rows, channels]; centres [groups].
template <int N, typename T>
__device__ void slab_moments(float* stats, const Parts<T>& x, unsigned slab, float* shared, const GroupNormDims& d) {
    const bool wide = x.are_aligned();
    const unsigned begin = slab * d.slab_pixels;
    const unsigned pixels = min(d.slab_pixels, d.pixels - begin);
    const size_t first = size_t(blockIdx.y) * d.pixels + begin;
    const SlabThreads t(d.channels, N);
    const unsigned width = d.channels / d.groups;
    const Vectors<N> sums = {shared, t.rows * t.vectors}, squares = {shared + t.rows * d.channels, t.rows * t.vectors};
    float* const centres = shared + 2 * t.rows * d.channels;

    // 1. each group's mean, as f32 rounds it
    for (unsigned v = t.first; t.row < t.rows && v < t.vectors; v += t.step) {
        float sum[N] = {};
        const T* const run = x.at(first, v * N);
        const unsigned stride = x.stride(v * N);
        for (unsigned p = t.row; p < pixels; p += t.rows) {
            float a[N];
            load(a, run + size_t(p) * stride, wide);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += a[i];
        }
        sums.put(t.row * t.vectors + v, sum);
    }
    __syncthreads();
    for (unsigned g = threadIdx.x / WARP; g < d.groups; g += blockDim.x / WARP) {
        const float sum = group_sum(sums, g, t.rows, d);
        if (threadIdx.x % WARP == 0) centres[g] = sum / (float(pixels) * width);
    }
    __syncthreads();

    // 2. deviations from it, and their squares; the slab is in a cache by now
    for (unsigned v = t.first; t.row < t.rows && v < t.vectors; v += t.step) {
        float centre[N], sum[N] = {}, square[N] = {};
#pragma unroll
        for (int i = 0; i < N; i++) centre[i] = centres[(v * N + i) / width];
        const T* const run = x.at(first, v * N);
        const unsigned stride = x.stride(v * N);
        for (unsigned p = t.row; p < pixels; p += t.rows) {
            float a[N];
            load(a, run + size_t(p) * stride, wide);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float delta = a[i] - centre[i];
                sum[i] += delta;
                square[i] = fmaf(delta, delta, square[i]);
            }
        }
        sums.put(t.row * t.vectors + v, sum);
        squares.put(t.row * t.vectors + v, square);
    }
    __syncthreads();
    for (unsigned g = threadIdx.x / WARP; g < d.groups; g += blockDim.x / WARP) {
        const float sum = group_sum(sums, g, t.rows, d);
        const float square = group_sum(squares, g, t.rows, d);
        if (threadIdx.x % WARP == 0) {
            stats[place_of_stats(g, 0, slab, d)] = centres[g];
            stats[place_of_stats(g, 1, slab, d)] = sum;
            stats[place_of_stats(g, 2, slab, d)] = square;
        }
    }
}

template <typename T>
__device__ void slab_moments(float* stats, const Parts<T>& x, unsigned slab, float* shared, const GroupNormDims& d) {
    if (Parts<T>::divide(LANES<T>, d)) {
        slab_moments<LANES<T>>(stats, x, slab, shared, d);
    } else {
        slab_moments<1>(stats, x, slab, shared, d);
    }
}

// stats [batch, groups, 3, slabs]: centre, and sums of the deviations from it and of their squares; grid (slabs, batch)
template <typename T>
__device__ void group_norm_stats(float* stats, const T* x, GroupNormDims d) {
    extern __shared__ __align__(16) float shared[];
    slab_moments(stats, Parts<T>(x, nullptr, d), blockIdx.x, shared, d);
}
FOR_EACH_FLOAT(group_norm_stats, (float* stats, const T* x, GroupNormDims d), (stats, x, d))

// --- group normalisation, second pass ---

// Shared: y = (x - centre) * scale + shift, by channel.
template <int N>
struct Affine {
    Vectors<N> centre, scale, shift;

    __device__ Affine(float* shared, unsigned channels)
        : centre{shared, channels / N}, scale{shared + channels, channels / N}, shift{shared + 2 * channels, channels / N} {}
};

// `whole`, unless null, gets x as it is, its parts side by side.
template <int N, typename T>
__device__ void normalise(T* y, T* whole, const Parts<T>& x, const Affine<N>& by, const GroupNormDims& d) {
    const bool wide = x.are_aligned() && is_aligned(y) && is_aligned(whole);
    const unsigned vectors = d.channels / N;
    const size_t image = size_t(blockIdx.y) * d.pixels;
    const size_t len = size_t(d.pixels) * vectors;
    const unsigned stride = gridDim.x * blockDim.x;
    const unsigned jump = stride % vectors, jump_pixels = stride / vectors;
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    // Pixel and channel are carried along: a division per vector would cost more than the arithmetic.
    unsigned v = at % vectors, pixel = at / vectors;
    for (; at < len; at += stride) {
        const size_t to = image * d.channels + at * N;
        float a[N], centre[N], scale[N], shift[N];
        load(a, x.at(image + pixel, v * N), wide);
        if (whole) store(whole + to, a, wide);
        by.centre.get(v, centre), by.scale.get(v, scale), by.shift.get(v, shift);
#pragma unroll
        for (int i = 0; i < N; i++) {
            a[i] = fmaf(a[i] - centre[i], scale[i], shift[i]);
            if (d.silu) a[i] = silu(a[i]);
        }
        store(y + to, a, wide);
        v += jump, pixel += jump_pixels;
        if (v >= vectors) v -= vectors, pixel++;
    }
}

// The second pass. saved [batch, groups, 3]: centre, the mean about it, 1 / deviation; null unless a gradient reads them.
template <int N, typename T>
__device__ void merge_and_normalise(
    T* y, T* whole, float* saved, const Parts<T>& x, const float* gamma, const float* beta, const float* stats,
    float* shared, const GroupNormDims& d) {
    const Affine<N> by(shared, d.channels);
    const unsigned lane = threadIdx.x % WARP;
    const unsigned width = d.channels / d.groups;
    for (unsigned g = threadIdx.x / WARP; g < d.groups; g += blockDim.x / WARP) {
        // All slabs about the first one's centre. It is a part's mean, so that no variance is lost to
        // cancellation: with 128 slabs or fewer it lies within 12 deviations of the whole's.
        const float centre = stats[place_of_stats(g, 0, 0, d)];
        float sum = 0.0f, square = 0.0f;
        for (unsigned s = lane; s < d.slabs; s += WARP) {
            const float deviations = stats[place_of_stats(g, 1, s, d)], squares = stats[place_of_stats(g, 2, s, d)];
            const float count = float(min(d.slab_pixels, d.pixels - s * d.slab_pixels)) * width;
            const float delta = stats[place_of_stats(g, 0, s, d)] - centre;
            sum += fmaf(count, delta, deviations);
            square += fmaf(delta, fmaf(count, delta, 2.0f * deviations), squares);
        }
        const float count = float(d.pixels) * width;
        const float mean = warp_sum(sum) / count;  // about the centre
        const float variance = fmaf(-mean, mean, warp_sum(square) / count);
        const float rstd = 1.0f / sqrtf(variance + d.eps);
        if (saved && blockIdx.x == 0 && lane == 0) {
            float* const to = saved + 3 * (size_t(blockIdx.y) * d.groups + g);
            to[0] = centre, to[1] = mean, to[2] = rstd;
        }
        for (unsigned c = g * width + lane; c < (g + 1) * width; c += WARP) {
            const float scale = rstd * gamma[c];
            by.centre(c / N, c % N) = centre;
            by.scale(c / N, c % N) = scale;
            by.shift(c / N, c % N) = fmaf(-mean, scale, beta[c]);
        }
    }
    __syncthreads();
    normalise<N>(y, whole, x, by, d);
}

template <typename T>
__device__ void merge_and_normalise(
    T* y, T* whole, float* saved, const Parts<T>& x, const float* gamma, const float* beta, const float* stats,
    float* shared, const GroupNormDims& d) {
    if (Parts<T>::divide(LANES<T>, d)) {
        merge_and_normalise<LANES<T>>(y, whole, saved, x, gamma, beta, stats, shared, d);
    } else {
        merge_and_normalise<1>(y, whole, saved, x, gamma, beta, stats, shared, d);
    }
}

// grid (any, batch)
template <typename T>
__device__ void group_norm(
    T* y, Pointers<float, 1> saved, const T* x, const float* gamma, const float* beta, const float* stats,
    GroupNormDims d) {
    extern __shared__ __align__(16) float shared[];
    merge_and_normalise(y, static_cast<T*>(nullptr), saved.at[0], Parts<T>(x, nullptr, d), gamma, beta, stats, shared, d);
}
FOR_EACH_FLOAT(
    group_norm,
    (T* y, Pointers<float, 1> saved, const T* x, const float* gamma, const float* beta, const float* stats,
     GroupNormDims d),
    (y, saved, x, gamma, beta, stats, d))

// Both passes, by blocks that all run at once. x [batch, pixels, of_x], `rest` [batch, pixels, the other channels], if there
// are any; `whole` [batch, pixels, channels], unless null, gets both side by side. stats as above: room between the passes.
// grid (any, batch)
template <typename T>
__device__ void group_norm_at_once(
    T* y, Pointers<T, 1> whole, float* stats, const T* x, Pointers<const T, 1> rest, const float* gamma,
    const float* beta, GroupNormDims d) {
    extern __shared__ __align__(16) float shared[];
    const Parts<T> parts(x, rest.at[0], d);
    for (unsigned slab = blockIdx.x; slab < d.slabs; slab += gridDim.x) {
        slab_moments(stats, parts, slab, shared, d);
        __syncthreads();
    }
    cooperative_groups::this_grid().sync();
    merge_and_normalise(y, whole.at[0], static_cast<float*>(nullptr), parts, gamma, beta, stats, shared, d);
}
FOR_EACH_FLOAT(
    group_norm_at_once,
    (T* y, Pointers<T, 1> whole, float* stats, const T* x, Pointers<const T, 1> rest, const float* gamma,
     const float* beta, GroupNormDims d),
    (y, whole, stats, x, rest, gamma, beta, d))

// --- layer normalisation ---

// A warp a row, three sweeps over it: sum, deviations and their squares, result. A row is a few KB, so the
// second and third read the first-level cache.
template <int N, typename T>
__device__ void layer_norm_row(T* y, const T* x, const float* gamma, const float* beta, LayerNormDims d) {
    const bool wide = is_aligned(x) && is_aligned(y), wide_by = is_aligned(gamma) && is_aligned(beta);
    const unsigned lane = threadIdx.x % WARP;

    float sum = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum += a[i];
    }
    const float centre = warp_sum(sum) / float(d.columns);  // the mean, as f32 rounds it

    float deviations = 0.0f, squares = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float delta = a[i] - centre;
            deviations += delta;
            squares = fmaf(delta, delta, squares);
        }
    }
    const float mean = warp_sum(deviations) / float(d.columns);  // about the centre
    const float variance = fmaf(-mean, mean, warp_sum(squares) / float(d.columns));
    const float rstd = 1.0f / sqrtf(variance + d.eps);

    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N], scale[N], shift[N];
        load(a, x + c, wide), load(scale, gamma + c, wide_by), load(shift, beta + c, wide_by);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = fmaf(((a[i] - centre) - mean) * rstd, scale[i], shift[i]);
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

// --- gradient of group normalisation ---
//
// With x' the normalised x and g the gradient by the activation's argument:
//
//   dx = rstd (gamma g - mean(gamma g) - x' mean(gamma g x'))      means over the group
//
// The first pass leaves the sums of g and of g x' by slab and channel, the second reads those of the whole image. A thread
// keeps to its channels, whose parameters stay in registers.

template <int N>
struct Normal {
    float centre[N], mean[N], rstd[N], gamma[N], beta[N];

    // Of channels from `c` on; statistics [groups, 3] of an image.
    __device__ Normal(const float* statistics, const float* gamma_, const float* beta_, unsigned c, const GroupNormDims& d) {
        const unsigned width = d.channels / d.groups;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float* const of = statistics + 3 * ((c + i) / width);
            centre[i] = of[0], mean[i] = of[1], rstd[i] = of[2];
            gamma[i] = gamma_[c + i], beta[i] = beta_[c + i];
        }
    }

    __device__ float operator()(int i, float x) const { return ((x - centre[i]) - mean[i]) * rstd[i]; }

    // The gradient by the activation's argument.
    __device__ float before(int i, float normal, float grad, const GroupNormDims& d) const {
        if (!d.silu) return grad;
        const float argument = fmaf(normal, gamma[i], beta[i]);
        const float sigmoid = 1.0f / (1.0f + expf(-argument));
        return grad * (sigmoid * (1.0f + argument * (1.0f - sigmoid)));
    }
};

template <int N, typename T>
__device__ void slab_sums(
    float* sums, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta, float* shared,
    const GroupNormDims& d) {
    const bool wide = is_aligned(x) && is_aligned(grad);
    const unsigned begin = blockIdx.x * d.slab_pixels;
    const unsigned pixels = min(d.slab_pixels, d.pixels - begin);
    const size_t slab = (size_t(blockIdx.y) * d.pixels + begin) * d.channels;
    const SlabThreads t(d.channels, N);
    float* const products = shared + size_t(t.rows) * d.channels;
    for (unsigned v = t.first; t.row < t.rows && v < t.vectors; v += t.step) {
        const Normal<N> normal(statistics + size_t(blockIdx.y) * d.groups * 3, gamma, beta, v * N, d);
        float sum[N] = {}, product[N] = {};
        for (unsigned p = t.row; p < pixels; p += t.rows) {
            const size_t at = slab + size_t(p) * d.channels + v * N;
            float a[N], g[N];
            load(a, x + at, wide);
            load(g, grad + at, wide);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float n = normal(i, a[i]), before = normal.before(i, n, g[i], d);
                sum[i] += before;
                product[i] = fmaf(before, n, product[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            shared[t.row * d.channels + v * N + i] = sum[i];
            products[t.row * d.channels + v * N + i] = product[i];
        }
    }
    __syncthreads();
    const size_t images = gridDim.y, at = (size_t(blockIdx.y) * d.slabs + blockIdx.x) * d.channels;
    for (unsigned c = threadIdx.x; c < 2 * d.channels; c += blockDim.x) {
        const unsigned which = c / d.channels, channel = c % d.channels;
        const float* const from = (which ? products : shared) + channel;
        float sum = 0.0f;
        for (unsigned row = 0; row < t.rows; row++) sum += from[row * d.channels];
        sums[which * images * d.slabs * d.channels + at + channel] = sum;
    }
}

// sums [2, batch, slabs, channels]: of g, and of g x'. grid (slabs, batch). Shared: [2, rows, channels].
template <typename T>
__device__ void group_norm_gradient_sums(
    float* sums, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta,
    GroupNormDims d) {
    extern __shared__ float shared[];
    if (d.channels % LANES<T> == 0) {
        slab_sums<LANES<T>>(sums, x, grad, statistics, gamma, beta, shared, d);
    } else {
        slab_sums<1>(sums, x, grad, statistics, gamma, beta, shared, d);
    }
}
FOR_EACH_FLOAT(
    group_norm_gradient_sums,
    (float* sums, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta,
     GroupNormDims d),
    (sums, x, grad, statistics, gamma, beta, d))

template <int N, typename T>
__device__ void slab_gradient(
    T* dx, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta, const float* means,
    const GroupNormDims& d) {
    const bool wide = is_aligned(dx) && is_aligned(x) && is_aligned(grad);
    const unsigned begin = blockIdx.x * d.slab_pixels;
    const unsigned pixels = min(d.slab_pixels, d.pixels - begin);
    const size_t slab = (size_t(blockIdx.y) * d.pixels + begin) * d.channels;
    const SlabThreads t(d.channels, N);
    const unsigned width = d.channels / d.groups;
    for (unsigned v = t.first; t.row < t.rows && v < t.vectors; v += t.step) {
        const Normal<N> normal(statistics + size_t(blockIdx.y) * d.groups * 3, gamma, beta, v * N, d);
        float mean[N], product[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            mean[i] = means[(v * N + i) / width];
            product[i] = means[d.groups + (v * N + i) / width];
        }
        for (unsigned p = t.row; p < pixels; p += t.rows) {
            const size_t at = slab + size_t(p) * d.channels + v * N;
            float a[N], g[N];
            load(a, x + at, wide);
            load(g, grad + at, wide);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float n = normal(i, a[i]), before = normal.before(i, n, g[i], d);
                a[i] = normal.rstd[i] * (normal.gamma[i] * before - mean[i] - n * product[i]);
            }
            store(dx + at, a, wide);
        }
    }
}

// sums [2, batch, channels]; grid (slabs, batch). Shared: means [2, groups].
template <typename T>
__device__ void group_norm_gradient(
    T* dx, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta, const float* sums,
    GroupNormDims d) {
    extern __shared__ float means[];
    const unsigned width = d.channels / d.groups;
    for (unsigned m = threadIdx.x / WARP; m < 2 * d.groups; m += blockDim.x / WARP) {
        const unsigned which = m / d.groups, first = m % d.groups * width;
        const float* const from = sums + (size_t(which) * gridDim.y + blockIdx.y) * d.channels;
        float sum = 0.0f;
        for (unsigned c = first + threadIdx.x % WARP; c < first + width; c += WARP) sum = fmaf(gamma[c], from[c], sum);
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) means[m] = sum / (float(d.pixels) * width);
    }
    __syncthreads();
    if (d.channels % LANES<T> == 0) {
        slab_gradient<LANES<T>>(dx, x, grad, statistics, gamma, beta, means, d);
    } else {
        slab_gradient<1>(dx, x, grad, statistics, gamma, beta, means, d);
    }
}
FOR_EACH_FLOAT(
    group_norm_gradient,
    (T* dx, const T* x, const T* grad, const float* statistics, const float* gamma, const float* beta, const float* sums,
     GroupNormDims d),
    (dx, x, grad, statistics, gamma, beta, sums, d))

// --- gradient of layer normalisation ---

// A warp a row, as `layer_norm_row`; the row's statistics are left for the sums over rows.
template <int N, typename T>
__device__ void layer_norm_gradient_row(
    T* dx, float* statistics, const T* x, const float* gamma, const T* grad, const LayerNormDims& d) {
    const bool wide = is_aligned(dx) && is_aligned(x) && is_aligned(grad);
    const unsigned first = threadIdx.x % WARP * N;
    const float n = float(d.columns);

    float sum = 0.0f;
    for (unsigned c = first; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) sum += a[i];
    }
    const float centre = warp_sum(sum) / n;  // the mean, as f32 rounds it

    float deviations = 0.0f, squares = 0.0f;
    for (unsigned c = first; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float delta = a[i] - centre;
            deviations += delta;
            squares = fmaf(delta, delta, squares);
        }
    }
    const float mean = warp_sum(deviations) / n;  // about the centre
    const float variance = fmaf(-mean, mean, warp_sum(squares) / n);
    const float rstd = 1.0f / sqrtf(variance + d.eps);

    float weighted = 0.0f, products = 0.0f;
    for (unsigned c = first; c < d.columns; c += WARP * N) {
        float a[N], g[N];
        load(a, x + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float w = gamma[c + i] * g[i];
            weighted += w;
            products = fmaf(w, ((a[i] - centre) - mean) * rstd, products);
        }
    }
    weighted = warp_sum(weighted) / n;
    products = warp_sum(products) / n;

    for (unsigned c = first; c < d.columns; c += WARP * N) {
        float a[N], g[N];
        load(a, x + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float normal = ((a[i] - centre) - mean) * rstd;
            a[i] = rstd * (gamma[c + i] * g[i] - weighted - normal * products);
        }
        store(dx + c, a, wide);
    }
    if (threadIdx.x % WARP == 0) statistics[0] = centre, statistics[1] = mean, statistics[2] = rstd;
}

// statistics [rows, 3]: centre, the mean about it, 1 / deviation
template <typename T>
__device__ void layer_norm_gradient(
    T* dx, float* statistics, const T* x, const float* gamma, const T* grad, LayerNormDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const size_t at = size_t(row) * d.columns;
    statistics += 3 * size_t(row);
    if (d.columns % LANES<T> == 0) {
        layer_norm_gradient_row<LANES<T>>(dx + at, statistics, x + at, gamma, grad + at, d);
    } else {
        layer_norm_gradient_row<1>(dx + at, statistics, x + at, gamma, grad + at, d);
    }
}
FOR_EACH_FLOAT(
    layer_norm_gradient,
    (T* dx, float* statistics, const T* x, const float* gamma, const T* grad, LayerNormDims d),
    (dx, statistics, x, gamma, grad, d))

// Sums of g and of g x' over the rows of a chunk, 32 columns a block, every eighth row a warp: sums [2, chunks, columns].
// grid (tiles of columns, chunks)
constexpr unsigned ROWS_OF_CHUNK = 256;

template <typename T>
__device__ void layer_norm_gradient_sums(
    float* sums, const T* x, const T* grad, const float* statistics, LayerNormDims d) {
    constexpr unsigned WARPS = 8;
    __shared__ float parts[2][WARPS][WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned column = blockIdx.x * WARP + lane;
    const bool inside = column < d.columns;
    const unsigned first = blockIdx.y * ROWS_OF_CHUNK, end = min(d.rows, first + ROWS_OF_CHUNK);
    float sum = 0.0f, product = 0.0f;
    for (unsigned row = first + warp; row < end; row += WARPS) {
        const size_t at = size_t(row) * d.columns + (inside ? column : 0);
        const float* const of = statistics + 3 * size_t(row);
        const float g = to_float(grad[at]);
        sum += g;
        product = fmaf(g, ((to_float(x[at]) - of[0]) - of[1]) * of[2], product);
    }
    parts[0][warp][lane] = sum;
    parts[1][warp][lane] = product;
    __syncthreads();
    if (warp > 1 || !inside) return;
    sum = parts[warp][0][lane];
#pragma unroll
    for (unsigned i = 1; i < WARPS; i++) sum += parts[warp][i][lane];
    sums[(size_t(warp) * gridDim.y + blockIdx.y) * d.columns + column] = sum;
}
FOR_EACH_FLOAT(
    layer_norm_gradient_sums, (float* sums, const T* x, const T* grad, const float* statistics, LayerNormDims d),
    (sums, x, grad, statistics, d))

// --- batch norm by given moments ---

struct BatchNormDims {
    unsigned long long len;
    unsigned channels;
    float eps;
};

// y = (x - mean) / deviation * gamma + beta, by channel. A thread an element.
template <typename T>
__device__ void batch_norm_with(
    T* y, const T* x, const float* gamma, const float* beta, const float* mean, const float* variance, BatchNormDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const unsigned c = i % d.channels;
        const float scale = gamma[c] / sqrtf(variance[c] + d.eps);
        y[i] = from_float<T>(fmaf(to_float(x[i]) - mean[c], scale, beta[c]));
    }
}
FOR_EACH_FLOAT(
    batch_norm_with,
    (T* y, const T* x, const float* gamma, const float* beta, const float* mean, const float* variance,
     BatchNormDims d),
    (y, x, gamma, beta, mean, variance, d))

struct MomentsDims {
    unsigned channels;
    float eps;
    float unbiased;  // n / (n - 1)
    unsigned reserved;
};

// Mean and unbiased variance [C] of each channel from what group_norm leaves: centre, mean about it, 1 / deviation [C, 3]. A
// thread a channel.
extern "C" __global__ void batch_moments(float* mean, float* variance, const float* statistics, MomentsDims d) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= d.channels) return;
    const float* const of = statistics + 3 * size_t(c);
    const float rstd = of[2];
    mean[c] = of[0] + of[1];
    // NaN remains; the mean of squares is not negative, though its last digits may be lost beside eps.
    const float biased = 1.0f / (rstd * rstd) - d.eps;
    variance[c] = (biased < 0.0f ? 0.0f : biased) * d.unbiased;
}

// --- root mean square ---

// A warp a row.
template <int N, typename T>
__device__ void rms_norm_row(T* y, const T* x, const float* gamma, const LayerNormDims& d) {
    const bool wide = is_aligned(x) && is_aligned(y);
    const unsigned lane = threadIdx.x % WARP;
    float squares = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(a[i], a[i], squares);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / float(d.columns) + d.eps);
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = a[i] * scale * gamma[c + i];
        store(y + c, a, wide);
    }
}

template <typename T>
__device__ void rms_norm(T* y, const T* x, const float* gamma, LayerNormDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;  // a whole warp leaves together
    const size_t at = size_t(row) * d.columns;
    if (d.columns % LANES<T> == 0) {
        rms_norm_row<LANES<T>>(y + at, x + at, gamma, d);
    } else {
        rms_norm_row<1>(y + at, x + at, gamma, d);
    }
}
FOR_EACH_FLOAT(rms_norm, (T* y, const T* x, const float* gamma, LayerNormDims d), (y, x, gamma, d))

// dx = r (gamma g - x r^2 mean(gamma g x)), r as above.
template <int N, typename T>
__device__ void rms_norm_gradient_row(T* dx, const T* x, const float* gamma, const T* grad, const LayerNormDims& d) {
    const bool wide = is_aligned(dx) && is_aligned(x) && is_aligned(grad);
    const unsigned lane = threadIdx.x % WARP;
    const float n = float(d.columns);
    float squares = 0.0f, products = 0.0f;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N], g[N];
        load(a, x + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) {
            squares = fmaf(a[i], a[i], squares);
            products = fmaf(g[i] * gamma[c + i], a[i], products);
        }
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / n + d.eps);
    const float along = warp_sum(products) / n * scale * scale;
    for (unsigned c = lane * N; c < d.columns; c += WARP * N) {
        float a[N], g[N];
        load(a, x + c, wide);
        load(g, grad + c, wide);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = scale * (g[i] * gamma[c + i] - a[i] * along);
        store(dx + c, a, wide);
    }
}

template <typename T>
__device__ void rms_norm_gradient(T* dx, const T* x, const float* gamma, const T* grad, LayerNormDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;
    const size_t at = size_t(row) * d.columns;
    if (d.columns % LANES<T> == 0) {
        rms_norm_gradient_row<LANES<T>>(dx + at, x + at, gamma, grad + at, d);
    } else {
        rms_norm_gradient_row<1>(dx + at, x + at, gamma, grad + at, d);
    }
}
FOR_EACH_FLOAT(
    rms_norm_gradient, (T* dx, const T* x, const float* gamma, const T* grad, LayerNormDims d),
    (dx, x, gamma, grad, d))
