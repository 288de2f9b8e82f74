// One step of AdamW with the moving average of the weights, and the lengths of gradients. f32 all.

#include "common.cuh"

struct AdamWDims {
    unsigned long long len;
    float step_size, root, kept;
    float share1, share2, beta2;
    float epsilon, gradient_scale;
    float ema_share;
    unsigned reserved;
};

struct SquaresDims {
    unsigned long long lens[16];
    unsigned first;
    unsigned reserved;
};

// The average is absent where `ema` is null.
extern "C" __global__ void adamw(
    float* new_weight, float* new_first, float* new_second, Pointers<float, 1> new_ema, const float* weight,
    const float* gradient, const float* first, const float* second, Pointers<const float, 1> ema, AdamWDims d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        const float g = gradient[i] * d.gradient_scale;
        const float m = first[i] + d.share1 * (g - first[i]);
        const float v = d.beta2 * second[i] + d.share2 * (g * g);
        const float w = weight[i] * d.kept - d.step_size * (m / (sqrtf(v) / d.root + d.epsilon));
        new_weight[i] = w;
        new_first[i] = m;
        new_second[i] = v;
        if (ema.at[0]) new_ema.at[0][i] = ema.at[0][i] + d.ema_share * (w - ema.at[0][i]);
    }
}

// Of up to 16 tensors, from place `first` of y [tensors, blocks] on: the sums of squares of what each block sees.
// grid (blocks, tensors)
extern "C" __global__ void squares(float* y, Pointers<const float, 16> x, SquaresDims d) {
    __shared__ float parts[WARP];
    const float* from = nullptr;
    unsigned long long len = 0;
    // Constant indices: others would take the arguments through local memory. The empty statement hides what is read from
    // the compiler, which would make one such index of all.
#pragma unroll
    for (unsigned i = 0; i < 16; i++) {
        const float* at = x.at[i];
        unsigned long long count = d.lens[i];
        asm volatile("" : "+l"(at), "+l"(count));
        if (i == blockIdx.y) from = at, len = count;
    }
    float sum = 0.0f;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += size_t(gridDim.x) * blockDim.x) {
        sum = fmaf(from[i], from[i], sum);
    }
    sum = warp_sum(sum);
    const unsigned lane = threadIdx.x % WARP;
    if (lane == 0) parts[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = warp_sum(lane < blockDim.x / WARP ? parts[lane] : 0.0f);
    if (threadIdx.x == 0) y[size_t(d.first + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}
