// Cross entropy of logits [rows, C] and its gradient; targets are classes, which the host has checked. All in f32.

#include "common.cuh"

struct CrossEntropyDims {
    unsigned rows, classes;
    unsigned ignores;  // whether some target counts for nothing,
    unsigned ignored;  // this one
    float own, every;  // shares of the target's class and of each class
};

__device__ inline bool counts(unsigned target, CrossEntropyDims d) { return !(d.ignores && target == d.ignored); }

__device__ inline float warp_max(float x) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

struct LogSumExp {
    float largest, rest;  // the sum of exponentials, by that of the largest: 1 + rest
};

// Of a warp's row. One of the largest stands apart, so that the logarithm keeps its digits where it is nearly 0.
template <typename T>
__device__ LogSumExp log_sum_exp(const T* x, unsigned classes) {
    const unsigned lane = threadIdx.x % WARP;
    float largest = -INFINITY;
    for (unsigned c = lane; c < classes; c += WARP) largest = fmaxf(largest, to_float(x[c]));
    largest = warp_max(largest);  // passes a NaN by; the sum does not
    float rest = 0.0f, equal = 0.0f;
    for (unsigned c = lane; c < classes; c += WARP) {
        const float a = to_float(x[c]);
        if (a == largest) equal += 1.0f;
        else rest += expf(a - largest);
    }
    return {largest, warp_sum(rest) + (warp_sum(equal) - 1.0f)};
}

// losses [rows]: a warp a row.
template <typename T>
__device__ void cross_entropy_rows(float* losses, const T* logits, const unsigned* targets, CrossEntropyDims d) {
    const unsigned lane = threadIdx.x % WARP;
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;
    const unsigned target = targets[row];
    float loss = 0.0f;
    if (counts(target, d)) {
        const T* const x = logits + size_t(row) * d.classes;
        const LogSumExp of = log_sum_exp(x, d.classes);
        const float log_sum = log1pf(of.rest);  // by the largest
        loss = d.own * ((of.largest - to_float(x[target])) + log_sum);
        if (d.every > 0.0f) {
            float sum = 0.0f;
            for (unsigned c = lane; c < d.classes; c += WARP) sum += (of.largest - to_float(x[c])) + log_sum;
            loss += d.every * warp_sum(sum);
        }
    }
    if (lane == 0) losses[row] = loss;
}
FOR_EACH_FLOAT(
    cross_entropy_rows, (float* losses, const T* logits, const unsigned* targets, CrossEntropyDims d),
    (losses, logits, targets, d))

// The mean loss [] of the rows that count, and their number [], if there is memory for it. One block.
extern "C" __global__ void cross_entropy_mean(
    float* mean, Pointers<float, 1> count, const float* losses, const unsigned* targets, CrossEntropyDims d) {
    __shared__ float parts[2][WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    float sum = 0.0f, number = 0.0f;
    for (unsigned row = threadIdx.x; row < d.rows; row += blockDim.x) {
        sum += losses[row];
        number += counts(targets[row], d);
    }
    sum = warp_sum(sum);
    number = warp_sum(number);
    if (lane == 0) {
        parts[0][warp] = sum;
        parts[1][warp] = number;
    }
    __syncthreads();
    if (warp > 0) return;
    sum = warp_sum(lane < warps ? parts[0][lane] : 0.0f);
    number = warp_sum(lane < warps ? parts[1][lane] : 0.0f);
    if (lane > 0) return;
    *mean = sum / number;
    if (count.at[0]) *count.at[0] = number;
}

// (softmax(logits) - q) grad / count: a warp a row.
template <typename T>
__device__ void cross_entropy_gradient(
    T* dx, const T* logits, const unsigned* targets, const float* grad, const float* count, CrossEntropyDims d) {
    const unsigned lane = threadIdx.x % WARP;
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.rows) return;
    const unsigned target = targets[row];
    const T* const x = logits + size_t(row) * d.classes;
    T* const out = dx + size_t(row) * d.classes;
    if (!counts(target, d)) {
        for (unsigned c = lane; c < d.classes; c += WARP) out[c] = from_float<T>(0.0f);
        return;
    }
    const LogSumExp of = log_sum_exp(x, d.classes);
    const float factor = *grad / *count;
    for (unsigned c = lane; c < d.classes; c += WARP) {
        const float softmax = expf(to_float(x[c]) - of.largest) / (1.0f + of.rest);
        const float share = d.every + (c == target ? d.own : 0.0f);
        out[c] = from_float<T>((softmax - share) * factor);
    }
}
FOR_EACH_FLOAT(
    cross_entropy_gradient,
    (T* dx, const T* logits, const unsigned* targets, const float* grad, const float* count, CrossEntropyDims d),
    (dx, logits, targets, grad, count, d))
