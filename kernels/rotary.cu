// Rotary position embeddings: channel pairs of a head (c, c + half) turned by an angle that grows with the position.
//
//   y[c] = x[c] cos - x[c + half] sin        y[c + half] = x[c + half] cos + x[c] sin        c < half
//
// The channels behind 2 half are copied. A block a token; a thread has a pair, or a channel that is copied.

#include "common.cuh"

struct RotaryDims {
    unsigned long long strides[3];  // of sequence, token and head in x
    unsigned tokens;                // of a sequence
    unsigned heads, channels, half;
    unsigned positions;  // rows of the table
    float direction;     // 1, or -1 to turn back
};

// y [B, T, H, D] is contiguous; a row of the table has `half` cosines, then as many sines.
template <typename T>
__device__ void rotary(T* y, const T* x, const unsigned* positions, const float* table, const RotaryDims& d) {
    const unsigned token = blockIdx.x, position = positions[token];
    const float* const row = table + size_t(position) * 2 * d.half;
    const bool known = position < d.positions;
    const unsigned width = d.channels - d.half;  // a head's threads
    const T* const from = x + token / d.tokens * d.strides[0] + token % d.tokens * d.strides[1];
    T* const to = y + size_t(token) * d.heads * d.channels;
    for (unsigned i = threadIdx.x; i < d.heads * width; i += blockDim.x) {
        const unsigned head = i / width, c = i % width;
        const T* const in = from + head * d.strides[2];
        T* const out = to + head * d.channels;
        if (c >= d.half) {
            out[c + d.half] = known ? in[c + d.half] : from_float<T>(NAN);
            continue;
        }
        const float cosine = known ? row[c] : NAN, sine = known ? row[c + d.half] * d.direction : NAN;
        const float a = to_float(in[c]), b = to_float(in[c + d.half]);
        out[c] = from_float<T>(a * cosine - b * sine);
        out[c + d.half] = from_float<T>(b * cosine + a * sine);
    }
}
FOR_EACH_FLOAT(
    rotary, (T* y, const T* x, const unsigned* positions, const float* table, RotaryDims d), (y, x, positions, table, d))
