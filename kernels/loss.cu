// Losses: one number for each entry of dimension 0, and their gradients. All in f32.

#include "common.cuh"

struct LossDims {
    unsigned each;  // elements of an entry
    unsigned kind;
};

struct GaussianDims {
    unsigned long long len;
    unsigned each;
    unsigned formula;
};

// The sum of f(i) over the elements of an entry, a block an entry, in thread 0.
template <typename F>
__device__ float sum_of_entry(unsigned each, F f) {
    __shared__ float parts[WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const size_t entry = size_t(blockIdx.x) * each;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < each; i += blockDim.x) sum += f(entry + i);
    sum = warp_sum(sum);
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? parts[lane] : 0.0f);
}

// --- distances ---

enum Kind : unsigned { SQUARED, ABSOLUTE };

// loss [B]: mean of squares or absolute values of x - target. grid (B)
template <typename T>
__device__ void distance(float* loss, const T* x, const T* target, LossDims d) {
    const float sum = sum_of_entry(d.each, [&](size_t i) {
        const float difference = to_float(x[i]) - to_float(target[i]);
        return d.kind == SQUARED ? difference * difference : fabsf(difference);
    });
    if (threadIdx.x == 0) loss[blockIdx.x] = sum / float(d.each);
}
FOR_EACH_FLOAT(distance, (float* loss, const T* x, const T* target, LossDims d), (loss, x, target, d))

// grad [B]. grid (any, B)
template <typename T>
__device__ void distance_gradient(T* dx, const T* x, const T* target, const float* grad, LossDims d) {
    const float factor = grad[blockIdx.y] / float(d.each);
    const size_t entry = size_t(blockIdx.y) * d.each;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < d.each; i += gridDim.x * blockDim.x) {
        const float difference = to_float(x[entry + i]) - to_float(target[entry + i]);
        float slope = difference;  // 0 and NaN remain
        if (d.kind == SQUARED) slope = 2.0f * difference;
        else if (difference > 0.0f) slope = 1.0f;
        else if (difference < 0.0f) slope = -1.0f;
        dx[entry + i] = from_float<T>(factor * slope);
    }
}
FOR_EACH_FLOAT(
    distance_gradient, (T* dx, const T* x, const T* target, const float* grad, LossDims d), (dx, x, target, grad, d))

// --- Gaussians ---

// loss [B]. grid (B)
template <typename T>
__device__ void kl_divergence(float* loss, const T* mean, const T* logvar, LossDims d) {
    const float sum = sum_of_entry(d.each, [&](size_t i) {
        const float m = to_float(mean[i]), l = to_float(logvar[i]);
        return m * m + (expm1f(l) - l);
    });
    if (threadIdx.x == 0) loss[blockIdx.x] = 0.5f * sum;
}
FOR_EACH_FLOAT(kl_divergence, (float* loss, const T* mean, const T* logvar, LossDims d), (loss, mean, logvar, d))

enum Formula : unsigned { DIVERGENCE_BY_MEAN, DIVERGENCE_BY_LOGVAR, SAMPLE, SAMPLE_BY_LOGVAR, SAMPLE_BY_NOISE };

__device__ inline float gaussian(float a, float b, float c, unsigned formula) {
    switch (formula) {
        case DIVERGENCE_BY_MEAN: return a;
        case DIVERGENCE_BY_LOGVAR: return 0.5f * expm1f(b);
        case SAMPLE: return a + expf(0.5f * b) * c;
        case SAMPLE_BY_LOGVAR: return a * c * 0.5f * expf(0.5f * b);
        default: return a * expf(0.5f * b);
    }
}

// A formula of each element of a, b and c, times its entry's factor [B], if there are factors.
template <typename T>
__device__ void gaussian_by_element(
    T* y, const T* a, const T* b, const T* c, Pointers<const float, 1> factors, GaussianDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        float value = gaussian(to_float(a[i]), to_float(b[i]), to_float(c[i]), d.formula);
        if (factors.at[0]) value *= factors.at[0][i / d.each];
        y[i] = from_float<T>(value);
    }
}
FOR_EACH_FLOAT(
    gaussian_by_element,
    (T* y, const T* a, const T* b, const T* c, Pointers<const float, 1> factors, GaussianDims d),
    (y, a, b, c, factors, d))
