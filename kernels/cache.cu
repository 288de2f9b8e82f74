// A cache of keys or values: new rows, each entry's behind those that it has, and how many it has then.

#include "common.cuh"

struct AppendDims {
    unsigned long long strides[3];  // of entry, token and head in x
    unsigned long long first;       // slot of the cache that belongs to the first entry
    unsigned tokens;                // of an entry
    unsigned heads, channels;
    unsigned capacity;  // rows of a slot
};

// cache [slots, heads, capacity, channels] is contiguous. What a slot has no room for is left out. A block a token.
template <typename T>
__device__ void append(T* cache, const T* x, const unsigned* lengths, const AppendDims& d) {
    const unsigned entry = blockIdx.x / d.tokens, token = blockIdx.x % d.tokens;
    const unsigned length = lengths[entry];
    if (length >= d.capacity || token >= d.capacity - length) return;
    const unsigned width = d.heads * d.channels;
    const T* const from = x + entry * d.strides[0] + token * d.strides[1];
    const unsigned long long first = (d.first + entry) * d.heads;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const unsigned head = i / d.channels, c = i % d.channels;
        cache[((first + head) * d.capacity + length + token) * d.channels + c] = from[head * d.strides[2] + c];
    }
}
FOR_EACH_FLOAT(append, (T* cache, const T* x, const unsigned* lengths, AppendDims d), (cache, x, lengths, d))

struct AdvanceDims {
    unsigned first;  // slot that belongs to the first entry
    unsigned tokens;
};

// Where an entry's new tokens stand: positions [B, tokens], from starts[b] up to ends[b], which its slot's length becomes. A
// block an entry.
extern "C" __global__ void advance(
    unsigned* lengths, unsigned* positions, unsigned* starts, unsigned* ends, AdvanceDims d) {
    const unsigned entry = blockIdx.x, length = lengths[d.first + entry];
    for (unsigned i = threadIdx.x; i < d.tokens; i += blockDim.x) positions[entry * d.tokens + i] = length + i;
    __syncthreads();  // all have read the length
    if (threadIdx.x > 0) return;
    starts[entry] = length;
    ends[entry] = lengths[d.first + entry] = length + d.tokens;
}
