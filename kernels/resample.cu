// NHWC images at another size: the nearest pixel, or a weighted mean of four.
//
// Positions are computed as the CPU computes them, every operation rounded to f32, so that both take the same
// pixels.

#include "common.cuh"

struct ResizeDims {
    unsigned from_height, from_width, height, width;
    float scale_y, scale_x;       // from / to
    unsigned repeat_y, repeat_x;  // to / from where that is whole, 0 elsewhere
    unsigned channels;
    unsigned pixels;  // of all output images
};

__device__ inline unsigned nearest(unsigned i, unsigned from, float scale, unsigned repeat) {
    if (repeat > 0) return i / repeat;
    return min(unsigned(__fmul_rn(float(i), scale)), from - 1);
}

// A point between two pixels.
struct Between {
    unsigned low, high;
    float fraction;  // 0 at low, 1 at high
};

__device__ inline Between between(unsigned i, unsigned from, float scale) {
    const float at = fmaxf(__fsub_rn(__fmul_rn(scale, float(i) + 0.5f), 0.5f), 0.0f);
    const unsigned low = min(unsigned(at), from - 1);
    return {low, min(low + 1, from - 1), at - float(low)};
}

// Calls f(to, from, y, x, channel) for every step of N channels of every output pixel (y, x); `from` is its image.
template <int N, typename T, typename F>
__device__ void for_each_step(T* y, const T* x, ResizeDims d, F f) {
    const unsigned vectors = d.channels / N;
    const size_t len = size_t(d.pixels) * vectors;
    const size_t image = size_t(d.from_height) * d.from_width * d.channels;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += size_t(gridDim.x) * blockDim.x) {
        const unsigned pixel = i / vectors, channel = i % vectors * N;
        const unsigned row = pixel / d.width;
        f(y + i * N, x + row / d.height * image, row % d.height, pixel % d.width, channel);
    }
}

template <int N, typename T>
__device__ void nearest_pixels(T* y, const T* x, ResizeDims d) {
    const bool wide = is_aligned(x) && is_aligned(y);
    for_each_step<N>(y, x, d, [&](T* to, const T* from, unsigned row, unsigned column, unsigned channel) {
        const unsigned v = nearest(row, d.from_height, d.scale_y, d.repeat_y);
        const unsigned h = nearest(column, d.from_width, d.scale_x, d.repeat_x);
        const size_t pixel = size_t(v) * d.from_width + h;
        float a[N];
        load(a, from + pixel * d.channels + channel, wide);
        store(to, a, wide);
    });
}

template <typename T>
__device__ void resize_nearest(T* y, const T* x, ResizeDims d) {
    if (d.channels % LANES<T> == 0) {
        nearest_pixels<LANES<T>>(y, x, d);
    } else {
        nearest_pixels<1>(y, x, d);
    }
}
FOR_EACH_FLOAT(resize_nearest, (T* y, const T* x, ResizeDims d), (y, x, d))

template <int N, typename T>
__device__ void weighted_pixels(T* y, const T* x, ResizeDims d) {
    const bool wide = is_aligned(x) && is_aligned(y);
    for_each_step<N>(y, x, d, [&](T* to, const T* from, unsigned row, unsigned column, unsigned channel) {
        const Between v = between(row, d.from_height, d.scale_y), h = between(column, d.from_width, d.scale_x);
        float sum[N] = {};
#pragma unroll
        for (int corner = 0; corner < 4; corner++) {
            const bool bottom = corner >= 2, right = corner % 2;
            const size_t pixel = size_t(bottom ? v.high : v.low) * d.from_width + (right ? h.high : h.low);
            const float weight = (bottom ? v.fraction : 1.0f - v.fraction) * (right ? h.fraction : 1.0f - h.fraction);
            float a[N];
            load(a, from + pixel * d.channels + channel, wide);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = fmaf(weight, a[i], sum[i]);
        }
        store(to, sum, wide);
    });
}

template <typename T>
__device__ void resize_bilinear(T* y, const T* x, ResizeDims d) {
    if (d.channels % LANES<T> == 0) {
        weighted_pixels<LANES<T>>(y, x, d);
    } else {
        weighted_pixels<1>(y, x, d);
    }
}
FOR_EACH_FLOAT(resize_bilinear, (T* y, const T* x, ResizeDims d), (y, x, d))
