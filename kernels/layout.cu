// Copies between layouts: of strided views, of parts into a whole, transposes.
//
//   y[out_offset + sum(i[k] * out_strides[k])] = x[in_offset + sum(i[k] * in_strides[k])]   for all i in shape
//
// Nothing is computed, so elements travel as plain words. The host makes of neighbours that stay neighbours
// one wider word, and merges dimensions that are one in both layouts: what is left is either a walk over
// words, of which a warp's lie side by side in y, or a matrix whose rows become columns.

#include "common.cuh"

constexpr unsigned RANK = 6;

// Offsets and strides in words. Dimensions that are not needed come first, of length 1.
struct CopyDims {
    unsigned long long in_strides[RANK], out_strides[RANK];
    unsigned long long in_offset, out_offset;
    unsigned shape[RANK];
    unsigned len;  // words in all
    unsigned reserved;
};

template <typename W>
__device__ void copy_words(W* y, const W* x, const CopyDims& d) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        unsigned rest = unsigned(i);
        size_t from = d.in_offset, to = d.out_offset;
        // The loop has a constant count: a counter known only at run time would index the arguments through
        // local memory.
#pragma unroll
        for (int k = RANK - 1; k >= 0; k--) {
            if (d.shape[k] > 1) {
                const unsigned at = rest % d.shape[k];
                rest /= d.shape[k];
                from += at * d.in_strides[k];
                to += at * d.out_strides[k];
            }
        }
        y[to] = x[from];
    }
}

extern "C" __global__ void strided_copy_1(unsigned char* y, const unsigned char* x, CopyDims d) { copy_words(y, x, d); }
extern "C" __global__ void strided_copy_2(f16* y, const f16* x, CopyDims d) { copy_words(y, x, d); }
extern "C" __global__ void strided_copy_4(unsigned* y, const unsigned* x, CopyDims d) { copy_words(y, x, d); }
extern "C" __global__ void strided_copy_8(long long* y, const long long* x, CopyDims d) { copy_words(y, x, d); }
extern "C" __global__ void strided_copy_16(long long* y, const long long* x, CopyDims d) {
    copy_words(reinterpret_cast<uint4*>(y), reinterpret_cast<const uint4*>(x), d);
}

constexpr unsigned TILE = 32;
constexpr unsigned TILE_ROWS = 8;  // of threads; each has four rows of the tile

// The last two dimensions are a matrix whose columns lie side by side in x, its rows in y. One block a tile,
// read along one and written along the other. The odd row length spreads a column over the banks.
template <typename W>
__device__ void transpose_words(W* y, const W* x, const CopyDims& d) {
    __shared__ W tile[TILE][TILE + 1];
    constexpr int R = RANK - 2, C = RANK - 1;
    const unsigned tiles_c = (d.shape[C] + TILE - 1) / TILE, tiles_r = (d.shape[R] + TILE - 1) / TILE;
    unsigned rest = blockIdx.x;
    const unsigned first_c = rest % tiles_c * TILE;
    rest /= tiles_c;
    const unsigned first_r = rest % tiles_r * TILE;
    rest /= tiles_r;
    size_t from = d.in_offset, to = d.out_offset;
#pragma unroll
    for (int k = R - 1; k >= 0; k--) {
        from += rest % d.shape[k] * d.in_strides[k];
        to += rest % d.shape[k] * d.out_strides[k];
        rest /= d.shape[k];
    }
    const unsigned lane = threadIdx.x % TILE;
    const unsigned r = first_r + lane;
    for (unsigned j = threadIdx.x / TILE; j < TILE; j += TILE_ROWS) {
        const unsigned c = first_c + j;
        if (r < d.shape[R] && c < d.shape[C]) tile[lane][j] = x[from + r * d.in_strides[R] + c * d.in_strides[C]];
    }
    __syncthreads();
    const unsigned c = first_c + lane;
    for (unsigned j = threadIdx.x / TILE; j < TILE; j += TILE_ROWS) {
        const unsigned r = first_r + j;
        if (r < d.shape[R] && c < d.shape[C]) y[to + r * d.out_strides[R] + c * d.out_strides[C]] = tile[j][lane];
    }
}

extern "C" __global__ void transpose_1(unsigned char* y, const unsigned char* x, CopyDims d) { transpose_words(y, x, d); }
extern "C" __global__ void transpose_2(f16* y, const f16* x, CopyDims d) { transpose_words(y, x, d); }
extern "C" __global__ void transpose_4(unsigned* y, const unsigned* x, CopyDims d) { transpose_words(y, x, d); }
extern "C" __global__ void transpose_8(long long* y, const long long* x, CopyDims d) { transpose_words(y, x, d); }
