// Pooling of NHWC images. A thread an element of the result: neighbours are neighbouring channels.

#include "common.cuh"

struct PoolDims {
    unsigned long long len;  // of the result
    unsigned channels;
    unsigned height, width;            // of the result
    unsigned from_height, from_width;  // of what is read
    unsigned size, stride, padding;
    unsigned back;  // from windows to pixels
    unsigned within;  // whether the mean is over pixels within the image
};

struct Span {
    unsigned begin, end;
};

// The positions among n that window i covers.
__device__ inline Span window(unsigned i, unsigned n, PoolDims d) {
    const unsigned start = i * d.stride, end = start + d.size;
    return {start > d.padding ? start - d.padding : 0, min(end > d.padding ? end - d.padding : 0, n)};
}

// The windows, of `count`, that cover position `at`.
__device__ inline Span covering(unsigned at, unsigned count, PoolDims d) {
    at += d.padding;
    const unsigned first = at + 1 > d.size ? at + 1 - d.size : 0;
    return {(first + d.stride - 1) / d.stride, min(at / d.stride + 1, count)};
}

struct Place {
    unsigned c, x, y;
    size_t image;
};

__device__ inline Place place_of(size_t i, PoolDims d) {
    const unsigned c = i % d.channels;
    const size_t pixel = i / d.channels, row = pixel / d.width;
    return {c, unsigned(pixel % d.width), unsigned(row % d.height), row / d.height};
}

// The element of what is read, in channel p.c of the image.
__device__ inline size_t at(Place p, unsigned y, unsigned x, PoolDims d) {
    return ((p.image * d.from_height + y) * d.from_width + x) * d.channels + p.c;
}

// y, and where in its image each largest element stands, if there is memory for it. Of equal elements the first.
template <typename T>
__device__ void max_pool2d(T* y, Pointers<unsigned, 1> places, const T* x, PoolDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const Place p = place_of(i, d);
        const Span rows = window(p.y, d.from_height, d), columns = window(p.x, d.from_width, d);
        float largest = 0.0f;
        unsigned from = ~0u;
        for (unsigned row = rows.begin; row < rows.end; row++) {
            for (unsigned column = columns.begin; column < columns.end; column++) {
                const float value = to_float(x[at(p, row, column, d)]);
                if (from == ~0u || value > largest || (isnan(value) && !isnan(largest))) {
                    largest = value;
                    from = row * d.from_width + column;
                }
            }
        }
        y[i] = from_float<T>(largest);
        if (places.at[0]) places.at[0][i] = from;
    }
}
FOR_EACH_FLOAT(max_pool2d, (T* y, Pointers<unsigned, 1> places, const T* x, PoolDims d), (y, places, x, d))

// A pixel's is the sum of those of the windows that it is the largest element of.
template <typename T>
__device__ void max_pool2d_gradient(T* dx, const T* grad, const unsigned* places, PoolDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const Place p = place_of(i, d);
        const Span rows = covering(p.y, d.from_height, d), columns = covering(p.x, d.from_width, d);
        float sum = 0.0f;
        for (unsigned row = rows.begin; row < rows.end; row++) {
            for (unsigned column = columns.begin; column < columns.end; column++) {
                const size_t from = at(p, row, column, d);
                if (places[from] == p.y * d.width + p.x) sum += to_float(grad[from]);
            }
        }
        dx[i] = from_float<T>(sum);
    }
}
FOR_EACH_FLOAT(
    max_pool2d_gradient, (T* dx, const T* grad, const unsigned* places, PoolDims d), (dx, grad, places, d))

// The sum over a window by its area or by its pixels within the image, or, back, over the windows that cover a pixel.
template <typename T>
__device__ void mean_pool2d(T* y, const T* x, PoolDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const Place p = place_of(i, d);
        const Span rows = d.back ? covering(p.y, d.from_height, d) : window(p.y, d.from_height, d);
        const Span columns = d.back ? covering(p.x, d.from_width, d) : window(p.x, d.from_width, d);
        const unsigned pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
        const float area = float(d.within ? pixels : d.size * d.size);
        float sum = 0.0f;
        for (unsigned row = rows.begin; row < rows.end; row++) {
            for (unsigned column = columns.begin; column < columns.end; column++) {
                sum += to_float(x[at(p, row, column, d)]);
            }
        }
        y[i] = from_float<T>(sum / area);
    }
}
FOR_EACH_FLOAT(mean_pool2d, (T* y, const T* x, PoolDims d), (y, x, d))
