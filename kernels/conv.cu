// Convolutions of NHWC images: products of their patches [B * OH * OW, KH * KW * C] by weights [O, KH * KW * C], of
// which only the weights are ever in memory.

#include "gemm.cuh"

struct ConvDims {
    unsigned m, n, k;
    unsigned splits;  // of k
    unsigned rows_of_image;
    unsigned activation;
    float scale;
    unsigned add_stride;
    unsigned height, width, channels;  // of the image under the kernel
    unsigned doubled;                  // whether that image is x with every pixel four times
    unsigned out_width;
    unsigned kernel_height, kernel_width;
    unsigned stride;
    unsigned top, left;  // padding
};

// The patches under the kernel, one a row, in (row, column, channel) order; zeros outside of the images.
template <typename T, unsigned ROWS>
struct Patches {
    static constexpr unsigned EACH = ROWS / gemm::ROWS_APART;

    const T* x;
    const ConvDims& d;
    // Of each of this thread's rows: the patch's first pixel, counted over all images (its image's, of doubled ones), and its
    // coordinates.
    int pixel[EACH], y0[EACH], x0[EACH];
    unsigned ky, kx, channel;  // where this thread's chunk begins
    bool wide;

    __device__ Patches(const T* x, unsigned first, unsigned begin, const ConvDims& d) : x(x), d(d) {
        wide = is_aligned(x) && d.channels % LANES<T> == 0;
        const unsigned k = begin + threadIdx.x % gemm::CHUNKS * LANES<T>;
        channel = k % d.channels;
        kx = k / d.channels % d.kernel_width;
        ky = k / d.channels / d.kernel_width;
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) {
            const unsigned row = first + threadIdx.x / gemm::CHUNKS + i * gemm::ROWS_APART;
            const unsigned image = row / d.rows_of_image, place = row % d.rows_of_image;
            y0[i] = int(place / d.out_width * d.stride) - int(d.top);
            x0[i] = int(place % d.out_width * d.stride) - int(d.left);
            pixel[i] = d.doubled ? int(image * (d.height / 2) * (d.width / 2))
                                 : int(image * d.height * d.width) + y0[i] * int(d.width) + x0[i];
            if (row >= d.m) y0[i] = INT_MIN / 2;  // outside, whatever is added
        }
    }

    // Whether the pixel of row i under tap (ky, kx) is inside. A negative coordinate becomes a huge one.
    __device__ bool inside(unsigned i, unsigned ky, unsigned kx) const {
        return ky < d.kernel_height && unsigned(y0[i]) + ky < d.height && unsigned(x0[i]) + kx < d.width;
    }

    __device__ const T* at(unsigned i, unsigned ky, unsigned kx, unsigned channel) const {
        return x + size_t(pixel[i] + int(ky * d.width + kx)) * d.channels + channel;
    }

    // As `at`, of a doubled image.
    __device__ const T* at_doubled(unsigned i, unsigned ky, unsigned kx, unsigned channel) const {
        const unsigned y = (unsigned(y0[i]) + ky) / 2, x = (unsigned(x0[i]) + kx) / 2;
        return this->x + size_t(unsigned(pixel[i]) + y * (d.width / 2) + x) * d.channels + channel;
    }

    __device__ void fill(uint4* tile) {
        uint4* to = tile + gemm::place(threadIdx.x / gemm::CHUNKS, threadIdx.x % gemm::CHUNKS);
        if (wide && d.doubled) {
#pragma unroll
            for (unsigned i = 0; i < EACH; i++) {
                const bool in = inside(i, ky, kx);
                copy_async(to + i * gemm::ROWS_APART * gemm::CHUNKS, in ? at_doubled(i, ky, kx, channel) : x, in);
            }
        } else if (wide) {
#pragma unroll
            for (unsigned i = 0; i < EACH; i++) {
                const bool in = inside(i, ky, kx);
                copy_async(to + i * gemm::ROWS_APART * gemm::CHUNKS, in ? at(i, ky, kx, channel) : x, in);
            }
        } else {
            // A chunk may cover several taps.
            unsigned c = channel, column = kx, line = ky;
#pragma unroll 1
            for (unsigned e = 0; e < LANES<T>; e++) {
#pragma unroll
                for (unsigned i = 0; i < EACH; i++) {
                    T* const part = reinterpret_cast<T*>(to + i * gemm::ROWS_APART * gemm::CHUNKS);
                    const bool in = inside(i, line, column);
                    const T* const from = d.doubled ? at_doubled(i, line, column, c) : at(i, line, column, c);
                    part[e] = in ? *from : from_float<T>(0.0f);
                }
                advance(1, line, column, c);
            }
        }
        advance(gemm::DEPTH<T>, ky, kx, channel);
    }

    // Moves on by some k.
    __device__ void advance(unsigned by, unsigned& ky, unsigned& kx, unsigned& channel) const {
        channel += by;
        while (channel >= d.channels) {
            channel -= d.channels;
            if (++kx == d.kernel_width) kx = 0, ky++;
        }
    }
};

// x [B, H, W, C], or [B, H / 2, W / 2, C] to be doubled, w [O, KH, KW, C], y and residual [B, OH, OW, O]; sums and arrived as in
// gemm::Parts.
// grid (tiles, splits)
template <class Shape, typename T>
__device__ void convolve(
    T* y, const T* x, const T* w, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const ConvDims& d) {
    const gemm::Epilogue<T> end = {
        y, bias.at[0], add.at[0], residual.at[0], d.m, d.n, d.rows_of_image, d.activation, d.scale, d.add_stride};
    const gemm::Share<Shape, T> share(d.n, d.k, blockIdx.y, d.splits);
    const Patches<T, Shape::M> patches(x, share.m0, share.begin, d);
    const gemm::Rows<T, Shape::N> weights(w, share.n0, d.n, share.begin, d.k);
    gemm::product<Shape>(patches, weights, share, {sums.at[0], arrived.at[0], blockIdx.y, d.splits}, end);
}

template <typename T>
__device__ void conv2d_large(
    T* y, const T* x, const T* w, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const ConvDims& d) {
    convolve<typename gemm::Tiles<T>::Large>(y, x, w, sums, arrived, bias, add, residual, d);
}
FOR_EACH_FLOAT(
    conv2d_large,
    (T* y, const T* x, const T* w, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
     Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, ConvDims d),
    (y, x, w, sums, arrived, bias, add, residual, d))

template <typename T>
__device__ void conv2d_small(
    T* y, const T* x, const T* w, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const ConvDims& d) {
    convolve<typename gemm::Tiles<T>::Small>(y, x, w, sums, arrived, bias, add, residual, d);
}
FOR_EACH_FLOAT(
    conv2d_small,
    (T* y, const T* x, const T* w, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
     Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, ConvDims d),
    (y, x, w, sums, arrived, bias, add, residual, d))
