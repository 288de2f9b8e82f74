// Slopes of activations: dx = grad * f'(x).

#include "common.cuh"

struct ActivationDims {
    unsigned long long len;
    unsigned activation;
    unsigned reserved;
};

// As `Activation` in Rust counts them.
enum Activation : unsigned { IDENTITY, SILU, GELU, GELU_TANH, QUICK_GELU };

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float slope(float x, unsigned activation) {
    switch (activation) {
        case SILU: {
            const float s = sigmoid(x);
            return s * (1.0f + x * (1.0f - s));
        }
        case GELU: {
            // The normal distribution's density is 1 / sqrt(2 pi) e^(-x^2 / 2).
            const float density = 0.39894228040143268f * expf(-0.5f * x * x);
            return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * density;
        }
        case GELU_TANH: {
            const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
            const float of_inner = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * x * x);
            const float t = tanhf(inner);
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * of_inner;
        }
        case QUICK_GELU: {
            const float s = sigmoid(1.702f * x);
            return s * (1.0f + 1.702f * x * (1.0f - s));
        }
        default: return 1.0f;
    }
}

template <typename T>
__device__ void activation_gradient(T* dx, const T* x, const T* grad, ActivationDims d) {
    constexpr int N = LANES<T>;
    const bool wide = is_aligned(dx) && is_aligned(x) && is_aligned(grad);
    const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x, step = size_t(gridDim.x) * blockDim.x;
    const size_t vectors = wide ? d.len / N : 0;
    for (size_t v = first; v < vectors; v += step) {
        float a[N], g[N];
        load(a, x + v * N, true);
        load(g, grad + v * N, true);
#pragma unroll
        for (int i = 0; i < N; i++) g[i] *= slope(a[i], d.activation);
        store(dx + v * N, g, true);
    }
    for (size_t i = vectors * N + first; i < d.len; i += step) {
        dx[i] = from_float<T>(to_float(grad[i]) * slope(to_float(x[i]), d.activation));
    }
}
FOR_EACH_FLOAT(activation_gradient, (T* dx, const T* x, const T* grad, ActivationDims d), (dx, x, grad, d))
