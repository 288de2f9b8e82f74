// NHWC images at another size: the nearest pixel, or a weighted mean of four.
//
// Positions are computed as the CPU computes them, every operation rounded to f32, so that both take the same
// pixels.

#include "common.cuh"

struct ResizeDims {
    unsigned from_height, from_width, height, width;
    float scale_y, scale_x;       // pixels of the input from one of the output to the next
    unsigned repeat_y, repeat_x;  // to / from where that is whole, 0 elsewhere
    float offset;                 // of a pixel's centre from its number: 1/2, or 0 where corners stay where they are
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

__device__ inline Between between(unsigned i, unsigned from, float scale, float offset) {
    const float at = fmaxf(__fsub_rn(__fmul_rn(scale, float(i) + offset), offset), 0.0f);
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
        const Between v = between(row, d.from_height, d.scale_y, d.offset);
        const Between h = between(column, d.from_width, d.scale_x, d.offset);
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

// --- gradients: the sum over all pixels that were taken from one, each by its weight ---

// The first of `count` positions that was taken from `at` or one behind it; positions rise with what they were taken from.
__device__ inline unsigned first_from(unsigned at, unsigned count, unsigned from, float scale, unsigned repeat) {
    if (repeat > 0) return at * repeat;
    unsigned low = 0, high = count;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (nearest(middle, from, scale, repeat) < at) low = middle + 1;
        else high = middle;
    }
    return low;
}

// The first of `count` positions whose point lies behind pixel `at` or one behind that; likewise.
__device__ inline unsigned first_behind(unsigned at, unsigned count, unsigned from, float scale, float offset) {
    unsigned low = 0, high = count;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (between(middle, from, scale, offset).low < at) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Positions that took from a pixel are neighbours.
struct Positions {
    unsigned begin, end;
};

struct Nearest {
    static __device__ Positions of(unsigned at, unsigned count, unsigned from, float scale, unsigned repeat, float) {
        return {first_from(at, count, from, scale, repeat), first_from(at + 1, count, from, scale, repeat)};
    }
    static __device__ float weight(unsigned, unsigned, unsigned, float, float) { return 1.0f; }
};

struct Bilinear {
    static __device__ Positions of(unsigned at, unsigned count, unsigned from, float scale, unsigned, float offset) {
        const unsigned before = at > 0 ? at - 1 : 0;
        return {first_behind(before, count, from, scale, offset), first_behind(at + 1, count, from, scale, offset)};
    }
    // Of pixel `at` for position i.
    static __device__ float weight(unsigned i, unsigned at, unsigned from, float scale, float offset) {
        const Between b = between(i, from, scale, offset);
        return (b.low == at ? 1.0f - b.fraction : 0.0f) + (b.high == at ? b.fraction : 0.0f);
    }
};

template <typename F, int N, typename T>
__device__ void add_pixels(T* dx, const T* grad, const ResizeDims& d) {
    const bool wide = is_aligned(dx) && is_aligned(grad);
    const unsigned vectors = d.channels / N;
    const size_t len = size_t(d.pixels) * vectors;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += size_t(gridDim.x) * blockDim.x) {
        const unsigned pixel = i / vectors, channel = i % vectors * N;
        const unsigned row = pixel / d.from_width % d.from_height, column = pixel % d.from_width;
        const T* image = grad + size_t(pixel / d.from_width / d.from_height) * d.height * d.width * d.channels;
        const Positions ys = F::of(row, d.height, d.from_height, d.scale_y, d.repeat_y, d.offset);
        const Positions xs = F::of(column, d.width, d.from_width, d.scale_x, d.repeat_x, d.offset);
        float sum[N] = {};
        for (unsigned y = ys.begin; y < ys.end; y++) {
            const float by_row = F::weight(y, row, d.from_height, d.scale_y, d.offset);
            for (unsigned x = xs.begin; x < xs.end; x++) {
                const float weight = by_row * F::weight(x, column, d.from_width, d.scale_x, d.offset);
                float g[N];
                load(g, image + (size_t(y) * d.width + x) * d.channels + channel, wide);
#pragma unroll
                for (int k = 0; k < N; k++) sum[k] = fmaf(weight, g[k], sum[k]);
            }
        }
        store(dx + i * N, sum, wide);
    }
}

// dims are those of the resize, but for `pixels`: those before it.
template <typename T>
__device__ void resize_nearest_gradient(T* dx, const T* grad, ResizeDims d) {
    if (d.channels % LANES<T> == 0) {
        add_pixels<Nearest, LANES<T>>(dx, grad, d);
    } else {
        add_pixels<Nearest, 1>(dx, grad, d);
    }
}
FOR_EACH_FLOAT(resize_nearest_gradient, (T* dx, const T* grad, ResizeDims d), (dx, grad, d))

template <typename T>
__device__ void resize_bilinear_gradient(T* dx, const T* grad, ResizeDims d) {
    if (d.channels % LANES<T> == 0) {
        add_pixels<Bilinear, LANES<T>>(dx, grad, d);
    } else {
        add_pixels<Bilinear, 1>(dx, grad, d);
    }
}
FOR_EACH_FLOAT(resize_bilinear_gradient, (T* dx, const T* grad, ResizeDims d), (dx, grad, d))
