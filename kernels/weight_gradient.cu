// Gradient of a convolution, or a linear layer, by its weight: of each output channel and each column (tap and input
// channel) the sum over all pixels of the result's gradient times what the tap saw there,
//
//   dw[o, i, tap] = sum_p grad[p, o] x[pixel of p under tap, i]
//
// in f32. A block has a tile of 32 or 64 output channels and 128 columns, and a share of the pixels, 16 at a time: those
// that come next are on their way to registers while these are multiplied. Shares are added up in their order afterwards.

#include "common.cuh"

struct WeightGradientDims {
    unsigned outputs, inputs;  // channels
    unsigned pixels, pixels_of_split;
    unsigned height, width;
    unsigned out_height, out_width;
    unsigned kernel_height, kernel_width;
    unsigned stride;
    unsigned top, left;  // padding
};

// A pixel of the result.
struct Place {
    unsigned image, y, x;

    __device__ Place(unsigned pixel, const WeightGradientDims& d)
        : image(pixel / d.out_width / d.out_height), y(pixel / d.out_width % d.out_height), x(pixel % d.out_width) {}

    __device__ void advance(unsigned by, const WeightGradientDims& d) {
        x += by;
        while (x >= d.out_width) x -= d.out_width, y++;
        while (y >= d.out_height) y -= d.out_height, image++;
    }
};

template <unsigned M, typename T>
struct Products {
    static constexpr unsigned N = 128, DEPTH = 16, WARPS = 8;
    static constexpr unsigned EACH_M = M / WARPS, EACH_N = N / WARP;  // outputs of a thread
    static constexpr unsigned EACH_X = DEPTH / WARPS;                 // pixels that a thread loads of x
    static constexpr unsigned VECTORS = M / 4;                        // of a pixel's gradient

    const T *grad, *x;
    const WeightGradientDims& d;
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned m0, n0, columns, end;
    bool wide_grad, wide_x;
    Place places[EACH_X];
    unsigned ky, kx, channel;  // of this thread's first column
    float of_grad[4], of_x[EACH_X][4];
    float sum[EACH_M][EACH_N] = {};

    __device__ Products(const T* grad, const T* x, unsigned begin, const WeightGradientDims& d)
        : grad(grad), x(x), d(d), places{Place(begin + threadIdx.x / WARP, d), Place(begin + threadIdx.x / WARP + WARPS, d)} {
        columns = d.inputs * d.kernel_height * d.kernel_width;
        const unsigned tiles = (columns + N - 1) / N;
        m0 = blockIdx.x / tiles * M;
        n0 = blockIdx.x % tiles * N;
        end = min(d.pixels, begin + d.pixels_of_split);
        wide_grad = d.outputs % 4 == 0 && is_aligned(grad);
        wide_x = d.inputs % 4 == 0 && is_aligned(x);
        const unsigned column = n0 + lane * 4, tap = column / d.inputs;
        channel = column % d.inputs;
        ky = tap / d.kernel_width;
        kx = tap % d.kernel_width;
    }

    // What the tap (ky, kx) saw; null outside of the image.
    __device__ const T* seen(const Place& at, unsigned ky, unsigned kx) const {
        // Above or left of the image these wrap around to huge values, which are outside as well.
        const unsigned y = at.y * d.stride + ky - d.top, x = at.x * d.stride + kx - d.left;
        const bool inside = y < d.height && x < d.width;
        return inside ? this->x + ((size_t(at.image) * d.height + y) * d.width + x) * d.inputs : nullptr;
    }

    // Brings pixels from `first` on to registers, zeros behind the last.
    __device__ void fetch(unsigned first) {
        const unsigned row = threadIdx.x / VECTORS, m = m0 + threadIdx.x % VECTORS * 4;
        const T* const from = grad + size_t(first + row) * d.outputs + m;
        const bool inside = row < DEPTH && first + row < end;
        if (wide_grad && inside && m < d.outputs) {
            load(of_grad, from, true);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) of_grad[i] = inside && m + i < d.outputs ? to_float(from[i]) : 0.0f;
        }
#pragma unroll
        for (unsigned e = 0; e < EACH_X; e++) {
            const bool inside = first + warp + e * WARPS < end;
            if (wide_x) {
                const T* const from = inside && n0 + lane * 4 < columns ? seen(places[e], ky, kx) : nullptr;
                if (from) {
                    load(of_x[e], from + channel, true);
                } else {
#pragma unroll
                    for (int i = 0; i < 4; i++) of_x[e][i] = 0.0f;
                }
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const unsigned column = n0 + lane * 4 + i, tap = column / d.inputs;
                    const T* const from =
                        inside && column < columns ? seen(places[e], tap / d.kernel_width, tap % d.kernel_width) : nullptr;
                    of_x[e][i] = from ? to_float(from[column % d.inputs]) : 0.0f;
                }
            }
            places[e].advance(DEPTH, d);
        }
    }

    __device__ void put(float (*to_grad)[M], float (*to_x)[N]) const {
        const unsigned row = threadIdx.x / VECTORS;
        if (row < DEPTH) store(&to_grad[row][threadIdx.x % VECTORS * 4], of_grad, true);
#pragma unroll
        for (unsigned e = 0; e < EACH_X; e++) store(&to_x[warp + e * WARPS][lane * 4], of_x[e], true);
    }

    __device__ void multiply(const float (*from_grad)[M], const float (*from_x)[N]) {
#pragma unroll
        for (unsigned k = 0; k < DEPTH; k++) {
            float g[EACH_M], v[EACH_N];
            load(g, &from_grad[k][warp * EACH_M], true);
            load(v, &from_x[k][lane * EACH_N], true);
#pragma unroll
            for (unsigned i = 0; i < EACH_M; i++) {
#pragma unroll
                for (unsigned j = 0; j < EACH_N; j++) sum[i][j] = fmaf(g[i], v[j], sum[i][j]);
            }
        }
    }

    // y [outputs, inputs, taps]
    __device__ void write(float* y) const {
        const unsigned taps = d.kernel_height * d.kernel_width;
#pragma unroll
        for (unsigned j = 0; j < EACH_N; j++) {
            const unsigned column = n0 + lane * EACH_N + j;
            const size_t at = size_t(column % d.inputs) * taps + column / d.inputs;
#pragma unroll
            for (unsigned i = 0; i < EACH_M; i++) {
                const unsigned m = m0 + warp * EACH_M + i;
                if (m < d.outputs && column < columns) y[size_t(m) * columns + at] = sum[i][j];
            }
        }
    }
};

// grad [pixels, outputs], x [images, height, width, inputs]; y [splits, outputs, inputs, taps]. grid (tiles, splits)
template <unsigned M, typename T>
__device__ void weight_gradient(float* y, const T* grad, const T* x, const WeightGradientDims& d) {
    using P = Products<M, T>;
    __shared__ __align__(16) float of_grad[2][P::DEPTH][M];
    __shared__ __align__(16) float of_x[2][P::DEPTH][P::N];
    const unsigned begin = blockIdx.y * d.pixels_of_split;
    P products(grad, x, begin, d);
    products.fetch(begin);
    products.put(of_grad[0], of_x[0]);
    __syncthreads();
    unsigned current = 0;
    for (unsigned first = begin; first < products.end; first += P::DEPTH) {
        const bool more = first + P::DEPTH < products.end;
        if (more) products.fetch(first + P::DEPTH);
        products.multiply(of_grad[current], of_x[current]);
        if (more) products.put(of_grad[1 - current], of_x[1 - current]);
        __syncthreads();
        current = 1 - current;
    }
    products.write(y + size_t(blockIdx.y) * d.outputs * products.columns);
}

template <typename T>
__device__ void weight_gradient_narrow(float* y, const T* grad, const T* x, const WeightGradientDims& d) {
    weight_gradient<32>(y, grad, x, d);
}
FOR_EACH_FLOAT(weight_gradient_narrow, (float* y, const T* grad, const T* x, WeightGradientDims d), (y, grad, x, d))

template <typename T>
__device__ void weight_gradient_wide(float* y, const T* grad, const T* x, const WeightGradientDims& d) {
    weight_gradient<64>(y, grad, x, d);
}
FOR_EACH_FLOAT(weight_gradient_wide, (float* y, const T* grad, const T* x, WeightGradientDims d), (y, grad, x, d))
