// Convolution of NHWC images channel by channel, which keeps their size. A thread an element of the result: neighbours are
// neighbouring channels.

#include "common.cuh"

struct DepthwiseDims {
    unsigned long long len;  // of the result
    unsigned height, width, channels;
    unsigned kernel_height, kernel_width;
    unsigned dilation;
};

// x, y [B, H, W, C], w [KH, KW, C]. Zeros around the image keep its size. Sums in f32, taps in ascending order.
template <typename T>
__device__ void depthwise_conv2d(T* y, const T* x, const T* w, DepthwiseDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const unsigned c = i % d.channels;
        const size_t pixel = i / d.channels, line = pixel / d.width;
        const unsigned column = pixel % d.width, row = line % d.height;
        const T* const image = x + line / d.height * d.height * d.width * d.channels + c;
        float sum = 0.0f;
        for (unsigned ky = 0; ky < d.kernel_height; ky++) {
            // Above or left of the image these wrap around to huge values, which are outside as well.
            const unsigned from_row = row + ky * d.dilation - d.kernel_height / 2 * d.dilation;
            if (from_row >= d.height) continue;
            for (unsigned kx = 0; kx < d.kernel_width; kx++) {
                const unsigned from_column = column + kx * d.dilation - d.kernel_width / 2 * d.dilation;
                if (from_column >= d.width) continue;
                const float seen = to_float(image[(size_t(from_row) * d.width + from_column) * d.channels]);
                sum = fmaf(seen, to_float(w[(ky * d.kernel_width + kx) * d.channels + c]), sum);
            }
        }
        y[i] = from_float<T>(sum);
    }
}
FOR_EACH_FLOAT(depthwise_conv2d, (T* y, const T* x, const T* w, DepthwiseDims d), (y, x, w, d))
