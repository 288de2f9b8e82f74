// Rows of a table, by ids. One outside of the table, where the host has not looked, gives a row of NaN.

#include "common.cuh"

struct EmbeddingDims {
    unsigned ids, rows, channels;
};

// A warp a row.
template <int N, typename T>
__device__ void copy_row(T* y, const T* x, unsigned channels) {
    const bool wide = is_aligned(x) && is_aligned(y);
    for (unsigned c = threadIdx.x % WARP * N; c < channels; c += WARP * N) {
        float a[N];
        load(a, x + c, wide);
        store(y + c, a, wide);
    }
}

template <typename Id, typename T>
__device__ void look_up(T* y, const Id* ids, const T* table, EmbeddingDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.ids) return;
    T* to = y + size_t(row) * d.channels;
    const long long id = (long long)ids[row];
    if (id < 0 || id >= d.rows) {
        for (unsigned c = threadIdx.x % WARP; c < d.channels; c += WARP) to[c] = from_float<T>(NAN);
        return;
    }
    const T* from = table + id * d.channels;
    if (d.channels % LANES<T> == 0) {
        copy_row<LANES<T>>(to, from, d.channels);
    } else {
        copy_row<1>(to, from, d.channels);
    }
}

template <typename T>
__device__ void embedding(T* y, const long long* ids, const T* table, EmbeddingDims d) {
    look_up(y, ids, table, d);
}
FOR_EACH_FLOAT(embedding, (T* y, const long long* ids, const T* table, EmbeddingDims d), (y, ids, table, d))

template <typename T>
__device__ void embedding_u32(T* y, const unsigned* ids, const T* table, EmbeddingDims d) {
    look_up(y, ids, table, d);
}
FOR_EACH_FLOAT(embedding_u32, (T* y, const unsigned* ids, const T* table, EmbeddingDims d), (y, ids, table, d))

struct EmbeddingGradientDims {
    unsigned ids, rows, channels;
    unsigned chunks, ids_of_chunk;
};

// Sums of the gradients of equal ids, in their order, for each chunk of ids: y [chunks, rows, channels]. A block a row of the
// table; its threads have a channel each. grid (rows, chunks)
template <typename T>
__device__ void embedding_gradient(float* y, const long long* ids, const T* grad, EmbeddingGradientDims d) {
    __shared__ unsigned found[WARP];  // a bit for each of 32 x 32 ids
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned begin = blockIdx.y * d.ids_of_chunk, end = min(d.ids, begin + d.ids_of_chunk);
    float* const to = y + (size_t(blockIdx.y) * d.rows + blockIdx.x) * d.channels;
    for (unsigned c0 = 0; c0 < d.channels; c0 += blockDim.x) {
        const unsigned channel = c0 + threadIdx.x;
        float sum = 0.0f;
        for (unsigned first = begin; first < end; first += WARP * WARP) {
            __syncthreads();
            for (unsigned w = warp; w < WARP; w += blockDim.x / WARP) {
                const unsigned i = first + w * WARP + lane;
                const unsigned bits = __ballot_sync(FULL_WARP, i < end && ids[i] == blockIdx.x);
                if (lane == 0) found[w] = bits;
            }
            __syncthreads();
            for (unsigned w = 0; w < WARP; w++) {
                for (unsigned bits = found[w]; bits; bits &= bits - 1) {
                    const unsigned i = first + w * WARP + __ffs(bits) - 1;
                    if (channel < d.channels) sum += to_float(grad[size_t(i) * d.channels + channel]);
                }
            }
        }
        if (channel < d.channels) to[channel] = sum;
    }
}
FOR_EACH_FLOAT(
    embedding_gradient, (float* y, const long long* ids, const T* grad, EmbeddingGradientDims d), (y, ids, grad, d))
