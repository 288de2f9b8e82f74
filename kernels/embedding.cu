// Rows of a table, by ids that the host has checked.

#include "common.cuh"

struct EmbeddingDims {
    unsigned ids, channels;
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

template <typename T>
__device__ void embedding(T* y, const long long* ids, const T* table, EmbeddingDims d) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= d.ids) return;
    T* to = y + size_t(row) * d.channels;
    const T* from = table + ids[row] * d.channels;
    if (d.channels % LANES<T> == 0) {
        copy_row<LANES<T>>(to, from, d.channels);
    } else {
        copy_row<1>(to, from, d.channels);
    }
}
FOR_EACH_FLOAT(embedding, (T* y, const long long* ids, const T* table, EmbeddingDims d), (y, ids, table, d))
