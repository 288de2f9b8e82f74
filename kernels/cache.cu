// New rows for a cache of keys or values, each entry's behind those that it has. A block a token.

#include "common.cuh"

struct AppendDims {
    unsigned long long strides[3];  // of entry, token and head in x
    unsigned long long first;       // slot of the cache that belongs to the first entry
    unsigned tokens;                // of an entry
    unsigned heads, channels;
    unsigned capacity;  // rows of a slot
};

// cache [slots, capacity, heads, channels] is contiguous. What a slot has no room for is left out.
template <typename T>
__device__ void append(T* cache, const T* x, const unsigned* lengths, const AppendDims& d) {
    const unsigned entry = blockIdx.x / d.tokens, token = blockIdx.x % d.tokens;
    const unsigned length = lengths[entry];
    if (length >= d.capacity || token >= d.capacity - length) return;
    const unsigned width = d.heads * d.channels;
    const T* const from = x + entry * d.strides[0] + token * d.strides[1];
    T* const to = cache + ((d.first + entry) * d.capacity + length + token) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i / d.channels * d.strides[2] + i % d.channels];
}
FOR_EACH_FLOAT(append, (T* cache, const T* x, const unsigned* lengths, AppendDims d), (cache, x, lengths, d))
