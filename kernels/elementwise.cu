// Element by element: arithmetic, activations, weighted sums, conversion.
//
// All of it is bound by memory, so each thread moves 16 bytes at a time and strides over the
// tensor by the grid. A tensor that does not start on 16 bytes (a view) and the last few elements
// go one at a time; no element's value depends on which way it went.

#include "common.cuh"

// The lengths come first and `reserved` fills what C would pad: Rust passes no uninitialised byte.

struct MapDims {
    unsigned long long len;
};

struct ZipDims {
    unsigned long long len;
    unsigned long long period;  // of the second operand, which repeats
};

struct ScaleDims {
    unsigned long long len;
    float factor;
    unsigned reserved;
};

struct ClampDims {
    unsigned long long len;
    float low, high;
};

struct LinearCombinationDims {
    unsigned long long len;
    float coefficients[8];
    unsigned terms;
    unsigned reserved;
};

struct GegluDims {
    unsigned long long rows;
    unsigned columns;  // of the output; the input has twice as many
    unsigned reserved;
};

__device__ inline size_t thread_index() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline size_t thread_count() { return size_t(gridDim.x) * blockDim.x; }

// y[i] = f(x[i])
template <typename U, typename T, typename F>
__device__ void map(U* y, const T* x, size_t len, F f) {
    constexpr int N = sizeof(T) < sizeof(U) ? LANES<T> : LANES<U>;  // the narrower type sets the step
    const bool wide = is_aligned(x) && is_aligned(y);
    const size_t vectors = wide ? len / N : 0;
    for (size_t v = thread_index(); v < vectors; v += thread_count()) {
        float a[N];
        load(a, x + v * N, true);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = f(a[i]);
        store(y + v * N, a, true);
    }
    for (size_t i = vectors * N + thread_index(); i < len; i += thread_count()) {
        y[i] = from_float<U>(f(to_float(x[i])));
    }
}

// y[i] = f(a[i], b[i % period])
template <typename T, typename F>
__device__ void zip(T* y, const T* a, const T* b, ZipDims d, F f) {
    constexpr int N = LANES<T>;
    // A vector must not run over the end of a period.
    const bool wide = d.period % N == 0 && is_aligned(a) && is_aligned(b) && is_aligned(y);
    const bool repeats = d.period != d.len;
    const size_t vectors = wide ? d.len / N : 0;
    for (size_t v = thread_index(); v < vectors; v += thread_count()) {
        const size_t at = v * N;
        float p[N], q[N];
        load(p, a + at, true);
        load(q, b + (repeats ? at % d.period : at), true);
#pragma unroll
        for (int i = 0; i < N; i++) p[i] = f(p[i], q[i]);
        store(y + at, p, true);
    }
    for (size_t i = vectors * N + thread_index(); i < d.len; i += thread_count()) {
        y[i] = from_float<T>(f(to_float(a[i]), to_float(b[repeats ? i % d.period : i])));
    }
}

// --- arithmetic ---

template <typename T>
__device__ void add(T* y, const T* a, const T* b, ZipDims d) {
    zip(y, a, b, d, [](float p, float q) { return p + q; });
}
FOR_EACH_FLOAT(add, (T* y, const T* a, const T* b, ZipDims d), (y, a, b, d))

template <typename T>
__device__ void sub(T* y, const T* a, const T* b, ZipDims d) {
    zip(y, a, b, d, [](float p, float q) { return p - q; });
}
FOR_EACH_FLOAT(sub, (T* y, const T* a, const T* b, ZipDims d), (y, a, b, d))

template <typename T>
__device__ void mul(T* y, const T* a, const T* b, ZipDims d) {
    zip(y, a, b, d, [](float p, float q) { return p * q; });
}
FOR_EACH_FLOAT(mul, (T* y, const T* a, const T* b, ZipDims d), (y, a, b, d))

template <typename T>
__device__ void scale(T* y, const T* x, ScaleDims d) {
    map(y, x, d.len, [&](float a) { return a * d.factor; });
}
FOR_EACH_FLOAT(scale, (T* y, const T* x, ScaleDims d), (y, x, d))

template <typename T>
__device__ void clamp(T* y, const T* x, ClampDims d) {
    map(y, x, d.len, [&](float a) {
        a = a < d.low ? d.low : a;  // in this order, so that NaN passes
        return a > d.high ? d.high : a;
    });
}
FOR_EACH_FLOAT(clamp, (T* y, const T* x, ClampDims d), (y, x, d))

// The gradient of clamp: 1 at the bounds too.
template <typename T>
__device__ void clamp_gradient(T* dx, const T* x, const T* grad, ClampDims d) {
    zip(dx, x, grad, {d.len, d.len}, [&](float a, float g) { return g * float(d.low <= a && a <= d.high); });
}
FOR_EACH_FLOAT(clamp_gradient, (T* dx, const T* x, const T* grad, ClampDims d), (dx, x, grad, d))

// The gradient of relu by its result: a NaN is no zero.
template <typename T>
__device__ void relu_gradient(T* dx, const T* y, const T* grad, MapDims d) {
    zip(dx, y, grad, {d.len, d.len}, [](float a, float g) { return g * float(!(a <= 0.0f)); });
}
FOR_EACH_FLOAT(relu_gradient, (T* dx, const T* y, const T* grad, MapDims d), (dx, y, grad, d))

// sum + c * x with the product rounded too, as PyTorch and the CPU form round it.
__device__ inline float add_term(float sum, float c, float x) { return __fadd_rn(sum, __fmul_rn(c, x)); }

// y = c0 x0 + c1 x1 + ..., first to last: guidance and sampler steps in one pass over memory.
template <typename T>
__device__ void linear_combination(T* y, Pointers<const T, 8> x, LinearCombinationDims d) {
    constexpr int N = LANES<T>;
    // The loops over terms have a constant count: a counter known only at run time would index the
    // arguments through local memory.
    bool wide = is_aligned(y);
#pragma unroll
    for (int k = 0; k < 8; k++) wide = wide && (k >= d.terms || is_aligned(x.at[k]));

    const size_t vectors = wide ? d.len / N : 0;
    for (size_t v = thread_index(); v < vectors; v += thread_count()) {
        float sum[N];
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = -0.0f;  // what adding to changes nothing, not even -0
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (k < d.terms) {
                float a[N];
                load(a, x.at[k] + v * N, true);
#pragma unroll
                for (int i = 0; i < N; i++) sum[i] = add_term(sum[i], d.coefficients[k], a[i]);
            }
        }
        store(y + v * N, sum, true);
    }
    for (size_t i = vectors * N + thread_index(); i < d.len; i += thread_count()) {
        float sum = -0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (k < d.terms) sum = add_term(sum, d.coefficients[k], to_float(x.at[k][i]));
        }
        y[i] = from_float<T>(sum);
    }
}
FOR_EACH_FLOAT(linear_combination, (T* y, Pointers<const T, 8> x, LinearCombinationDims d), (y, x, d))

// --- activations ---

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ inline float gelu_slope(float x) {
    // The normal distribution's density is 1 / sqrt(2 pi) e^(-x^2 / 2).
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}

template <typename T>
__device__ void silu(T* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) { return silu(a); });
}
FOR_EACH_FLOAT(silu, (T* y, const T* x, MapDims d), (y, x, d))

template <typename T>
__device__ void gelu(T* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) { return gelu(a); });
}
FOR_EACH_FLOAT(gelu, (T* y, const T* x, MapDims d), (y, x, d))

// The tanh form of GELU: sqrt(2 / pi) (x + 0.044715 x^3).
template <typename T>
__device__ void gelu_tanh(T* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) {
        return 0.5f * a * (1.0f + tanhf(0.79788456080286536f * (a + 0.044715f * a * a * a)));
    });
}
FOR_EACH_FLOAT(gelu_tanh, (T* y, const T* x, MapDims d), (y, x, d))

template <typename T>
__device__ void quick_gelu(T* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) { return a / (1.0f + expf(-1.702f * a)); });
}
FOR_EACH_FLOAT(quick_gelu, (T* y, const T* x, MapDims d), (y, x, d))

template <typename T>
__device__ void tanh(T* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) { return tanhf(a); });
}
FOR_EACH_FLOAT(tanh, (T* y, const T* x, MapDims d), (y, x, d))

// y = value * gelu(gate) where a row of x is [value | gate]. A block walks whole rows, so no
// element pays for a division.
template <typename T>
__device__ void geglu(T* y, const T* x, GegluDims d) {
    constexpr int N = LANES<T>;
    const bool wide = d.columns % N == 0 && is_aligned(x) && is_aligned(y);
    const unsigned vectors = wide ? d.columns / N : 0;
    for (size_t row = blockIdx.x; row < d.rows; row += gridDim.x) {
        const T* value = x + row * 2 * d.columns;
        const T* gate = value + d.columns;
        T* out = y + row * d.columns;
        for (unsigned v = threadIdx.x; v < vectors; v += blockDim.x) {
            float a[N], g[N];
            load(a, value + size_t(v) * N, true);
            load(g, gate + size_t(v) * N, true);
#pragma unroll
            for (int i = 0; i < N; i++) a[i] *= gelu(g[i]);
            store(out + size_t(v) * N, a, true);
        }
        for (unsigned c = vectors * N + threadIdx.x; c < d.columns; c += blockDim.x) {
            out[c] = from_float<T>(to_float(value[c]) * gelu(to_float(gate[c])));
        }
    }
}
FOR_EACH_FLOAT(geglu, (T* y, const T* x, GegluDims d), (y, x, d))

// The gradient of x, a row of which is [value | gate], from that of y.
template <typename T>
__device__ void geglu_gradient(T* dx, const T* x, const T* grad, GegluDims d) {
    constexpr int N = LANES<T>;
    const bool wide = d.columns % N == 0 && is_aligned(dx) && is_aligned(x) && is_aligned(grad);
    const unsigned vectors = wide ? d.columns / N : 0;
    for (size_t row = blockIdx.x; row < d.rows; row += gridDim.x) {
        const T* value = x + row * 2 * d.columns;
        const T* gate = value + d.columns;
        const T* of_y = grad + row * d.columns;
        T* of_value = dx + row * 2 * d.columns;
        T* of_gate = of_value + d.columns;
        for (unsigned v = threadIdx.x; v < vectors; v += blockDim.x) {
            float a[N], b[N], g[N];
            load(a, value + size_t(v) * N, true);
            load(b, gate + size_t(v) * N, true);
            load(g, of_y + size_t(v) * N, true);
#pragma unroll
            for (int i = 0; i < N; i++) {
                a[i] = g[i] * a[i] * gelu_slope(b[i]);
                b[i] = g[i] * gelu(b[i]);
            }
            store(of_value + size_t(v) * N, b, true);
            store(of_gate + size_t(v) * N, a, true);
        }
        for (unsigned c = vectors * N + threadIdx.x; c < d.columns; c += blockDim.x) {
            const float a = to_float(value[c]), b = to_float(gate[c]), g = to_float(of_y[c]);
            of_value[c] = from_float<T>(g * gelu(b));
            of_gate[c] = from_float<T>(g * a * gelu_slope(b));
        }
    }
}
FOR_EACH_FLOAT(geglu_gradient, (T* dx, const T* x, const T* grad, GegluDims d), (dx, x, grad, d))

// --- conversion ---

template <typename T, typename U>
__device__ void cast(U* y, const T* x, MapDims d) {
    map(y, x, d.len, [](float a) { return a; });
}
FOR_EACH_PAIR(cast, (U* y, const T* x, MapDims d), (y, x, d))
