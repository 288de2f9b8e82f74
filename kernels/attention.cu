// Attention whose scores never reach memory (Dao et al. 2022): for each head of each image
//
//   y[t] = sum_s w[t, s] v[s] / sum_s w[t, s]        w[t, s] = 2^(factor (q[t] . k[s]) - max)
//
// A block has 64 queries and goes through the keys a tile at a time; whenever a larger score turns up, what was summed
// so far is scaled down. Scores, weights and sums are f32; tensor cores multiply values by weights rounded to 16 bits.
// The order of every sum follows the head alone, never the batch.

#include "mma.cuh"

struct AttentionDims {
    unsigned long long q_strides[3], k_strides[3], v_strides[3];  // of image, token and head
    unsigned queries, keys, heads, channels;
    unsigned sharing;  // heads of queries that share one of keys and values
    unsigned causal;
    float factor;  // of the scores, times log2(e); above 0
    unsigned reserved;
};

constexpr unsigned QUERIES = 64;  // of a block

// One head of one image.
template <typename T>
struct Head {
    T* y;        // [queries, heads, channels] from here on
    float* lse;  // [queries], or null
    const T *q, *k, *v;
    size_t q_stride, k_stride, v_stride;  // from token to token
    unsigned keys;                        // that are there
};

// y [B, T, H, D] and lse [B, H, T] are contiguous.
template <typename T>
__device__ Head<T> head_of_block(T* y, float* lse, const T* q, const T* k, const T* v, const unsigned* lengths, const AttentionDims& d) {
    const unsigned image = blockIdx.y / d.heads, head = blockIdx.y % d.heads;
    const auto first = [&](const unsigned long long(&strides)[3], unsigned of) { return image * strides[0] + of * strides[2]; };
    Head<T> h;
    h.y = y + (size_t(image) * d.queries * d.heads + head) * d.channels;
    h.lse = lse ? lse + size_t(blockIdx.y) * d.queries : nullptr;
    h.q = q + first(d.q_strides, head);
    h.k = k + first(d.k_strides, head / d.sharing);
    h.v = v + first(d.v_strides, head / d.sharing);
    h.q_stride = d.q_strides[1];
    h.k_stride = d.k_strides[1];
    h.v_stride = d.v_strides[1];
    h.keys = lengths ? min(lengths[image], d.keys) : d.keys;
    return h;
}

// Keys that a query sees, of those that are there: the last query all of them, if there are more than queries.
__device__ inline unsigned seen_by_query(unsigned query, unsigned keys, const AttentionDims& d) {
    const unsigned beyond = keys > d.queries ? keys - d.queries : 0;
    return d.causal ? min(keys, beyond + query + 1) : keys;
}

// Keys that some query of a block from `first` on sees.
__device__ inline unsigned seen_by_block(unsigned first, unsigned keys, const AttentionDims& d) {
    return seen_by_query(first + QUERIES - 1, keys, d);
}

// What the maximum is scaled by for a row that has seen only scores of -infinity: any number will do.
__device__ inline float finite_or_zero(float max) { return max == -INFINITY ? 0.0f : max; }

// ln sum e^score, of a largest score and the sum of weights against it.
__device__ inline float log_sum_exp(float max, float sum, float factor) {
    return (finite_or_zero(max) * factor + log2f(sum)) * 0.69314718055994531f;
}

// --- f32 ---

// 256 threads, 16 x 16. A thread has 4 x 4 scores, 16 apart both ways, and 4 queries' outputs in every 16th channel.
// WIDTH channels of the output are a block's, the next ones another block's, which computes the scores again.
namespace plain {
constexpr unsigned KEYS = 64, DEPTH = 32, STEP = 16, EACH = 4;

// Rows [first, first + 64) below `rows`, channels [c0, c0 + DEPTH) below `channels`; zeros beyond. A row of DEPTH + 1, so that
// neither a row's neighbours nor its elements share a bank.
__device__ inline void fill(float (&to)[64][DEPTH + 1], const float* x, size_t stride, unsigned first, unsigned rows, unsigned c0, unsigned channels) {
    for (unsigned i = threadIdx.x; i < 64 * DEPTH; i += blockDim.x) {
        const unsigned row = i / DEPTH, c = i % DEPTH;
        const bool inside = first + row < rows && c0 + c < channels;
        to[row][c] = inside ? x[(first + row) * stride + c0 + c] : 0.0f;
    }
}

// Over the 16 threads of a row.
template <typename F>
__device__ float reduce(float x, F f) {
#pragma unroll
    for (unsigned step = STEP / 2; step > 0; step /= 2) x = f(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

template <unsigned WIDTH>
__device__ void attend(const Head<float>& h, const AttentionDims& d, unsigned channels) {
    __shared__ float of_q[QUERIES][DEPTH + 1], of_k[KEYS][DEPTH + 1];
    // 16 beyond a multiple of 32: the two rows that a warp writes lie in different banks.
    __shared__ float weights[QUERIES][KEYS + 16];
    __shared__ float values[STEP][WIDTH];
    constexpr unsigned COLUMNS = WIDTH / STEP;
    const unsigned tiles = (d.queries + QUERIES - 1) / QUERIES;
    const unsigned first = blockIdx.x % tiles * QUERIES, column0 = blockIdx.x / tiles * WIDTH;
    const unsigned row = threadIdx.x / STEP, column = threadIdx.x % STEP;
    const unsigned seen = seen_by_block(first, h.keys, d);

    float max[EACH], sum[EACH], out[EACH][COLUMNS] = {};
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) max[i] = -INFINITY, sum[i] = 0.0f;

#pragma unroll 1
    for (unsigned key0 = 0; key0 < seen; key0 += KEYS) {
        // 1. scores
        float score[EACH][EACH] = {};
#pragma unroll 1
        for (unsigned c0 = 0; c0 < channels; c0 += DEPTH) {
            __syncthreads();
            fill(of_q, h.q, h.q_stride, first, d.queries, c0, channels);
            fill(of_k, h.k, h.k_stride, key0, seen, c0, channels);
            __syncthreads();
            const unsigned depth = min(DEPTH, channels - c0);
#pragma unroll 4
            for (unsigned c = 0; c < depth; c++) {
                float x[EACH], y[EACH];
#pragma unroll
                for (unsigned i = 0; i < EACH; i++) {
                    x[i] = of_q[row + i * STEP][c];
                    y[i] = of_k[column + i * STEP][c];
                }
#pragma unroll
                for (unsigned i = 0; i < EACH; i++) {
#pragma unroll
                    for (unsigned j = 0; j < EACH; j++) score[i][j] = fmaf(x[i], y[j], score[i][j]);
                }
            }
        }
        // 2. weights
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) {
            const unsigned query = first + row + i * STEP;
            const unsigned limit = seen_by_query(query, h.keys, d);
            float largest = max[i];
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                if (key0 + column + j * STEP >= limit) score[i][j] = -INFINITY;
                largest = fmaxf(largest, score[i][j]);  // a NaN reaches the sum instead
            }
            largest = reduce(largest, [](float a, float b) { return fmaxf(a, b); });
            const float top = finite_or_zero(largest) * d.factor;
            const float correction = exp2f(__fmul_rn(max[i], d.factor) - top);  // exactly 1 where nothing is larger
            max[i] = largest;
            sum[i] *= correction;
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                const float weight = exp2f(fmaf(score[i][j], d.factor, -top));
                weights[row + i * STEP][column + j * STEP] = weight;
                sum[i] += weight;
            }
#pragma unroll
            for (unsigned j = 0; j < COLUMNS; j++) out[i][j] *= correction;
        }
        // 3. values
        const unsigned keys = min(KEYS, seen - key0);
#pragma unroll 1
        for (unsigned k0 = 0; k0 < keys; k0 += STEP) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < STEP * WIDTH; i += blockDim.x) {
                const unsigned key = i / WIDTH, c = i % WIDTH;
                const bool inside = k0 + key < keys && column0 + c < channels;
                values[key][c] = inside ? h.v[(key0 + k0 + key) * h.v_stride + column0 + c] : 0.0f;
            }
            __syncthreads();
#pragma unroll 4
            for (unsigned key = 0; key < STEP; key++) {
                float weight[EACH];
#pragma unroll
                for (unsigned i = 0; i < EACH; i++) weight[i] = weights[row + i * STEP][k0 + key];
#pragma unroll
                for (unsigned j = 0; j < COLUMNS; j++) {
                    const float value = values[key][column + j * STEP];
#pragma unroll
                    for (unsigned i = 0; i < EACH; i++) out[i][j] = fmaf(weight[i], value, out[i][j]);
                }
            }
        }
    }

#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
        const unsigned query = first + row + i * STEP;
        const float total = reduce(sum[i], [](float a, float b) { return a + b; });
        if (query >= d.queries) continue;
#pragma unroll
        for (unsigned j = 0; j < COLUMNS; j++) {
            const unsigned c = column0 + column + j * STEP;
            if (c < channels) h.y[size_t(query) * d.heads * channels + c] = out[i][j] / total;
        }
        if (h.lse && column == 0 && column0 == 0) h.lse[query] = log_sum_exp(max[i], total, d.factor);
    }
}
}  // namespace plain

// --- tensor cores ---

// Four warps, 16 queries each. The accumulators of two products of scores are the fragment of weights that multiplies 16
// keys' values, so weights stay in registers.
//
namespace tensor {
constexpr unsigned THREADS = 128;

// Rows of so many 16-byte chunks in shared memory. One chunk of eight rows, as an ldmatrix reads, and eight neighbours, as
// copies write, touch all banks once: rows are an odd number of chunks apart, or chunks trade places within twos or fours.
template <unsigned CHUNKS>
struct Lines {
    static constexpr unsigned STRIDE = CHUNKS % 8 == 0 ? CHUNKS + 1 : CHUNKS;
    static constexpr unsigned TRADING = STRIDE % 2 == 1 ? 1 : STRIDE % 4 == 2 ? 2 : 4;

    static __device__ unsigned place(unsigned row, unsigned chunk) {
        const unsigned among = chunk % TRADING ^ row / (8 / TRADING) % TRADING;
        return row * STRIDE + chunk / TRADING * TRADING + among;
    }
};

// 2^x to within 2^-22, and to 0 below the normal numbers: far less than weights lose when they are rounded to 16 bits.
__device__ inline float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Rows [first, first + ROWS) below `rows` and CHUNKS chunks of channels from c0 on, below `channels`; zeros beyond both.
// `wide`: chunks are aligned and whole.
template <unsigned ROWS, unsigned CHUNKS, typename T>
__device__ void fill(uint4* to, const T* x, size_t stride, unsigned first, unsigned rows, unsigned c0, unsigned channels, bool wide) {
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const unsigned row = i / CHUNKS, chunk = i % CHUNKS, c = c0 + chunk * CHUNK;
        if (c >= (channels + 15) / 16 * 16) continue;  // no product reads it
        const bool inside = first + row < rows && c < channels;
        const T* from = inside ? x + (first + row) * stride + c : x;
        uint4* slot = to + Lines<CHUNKS>::place(row, chunk);
        if (wide) {
            copy_async(slot, from, inside);
        } else {
            T parts[CHUNK];
#pragma unroll
            for (unsigned e = 0; e < CHUNK; e++) parts[e] = inside && c + e < channels ? from[e] : from_float<T>(0.0f);
            uint4 bits;
            memcpy(&bits, parts, sizeof(bits));
            *slot = bits;
        }
    }
}

// Largest score, and sum of weights against it, of a lane's two rows (its four lanes' share of the sum).
struct Rows {
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f};

    // Turns scores of KEYS keys from key0 on into weights, given what each row sees. Returns, for each row, the factor of
    // what was summed before.
    template <unsigned KEYS>
    __device__ void weigh(float (&score)[KEYS / 8][4], unsigned key0, const unsigned (&limit)[2], float factor, float (&correction)[2]) {
        const unsigned t = threadIdx.x % 4;
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            if (key0 + KEYS > limit[r]) {
#pragma unroll
                for (unsigned n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (unsigned e = 0; e < 2; e++) {
                        if (key0 + n * 8 + t * 2 + e >= limit[r]) score[n][r * 2 + e] = -INFINITY;
                    }
                }
            }
            float largest = max[r];
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n++) {
                largest = fmaxf(largest, fmaxf(score[n][r * 2], score[n][r * 2 + 1]));  // a NaN reaches the sum instead
            }
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
            const float top = finite_or_zero(largest) * factor;
            correction[r] = exp2_approximate(__fmul_rn(max[r], factor) - top);  // exactly 1 where nothing is larger
            max[r] = largest;
            sum[r] *= correction[r];
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (unsigned e = 0; e < 2; e++) {
                    float& x = score[n][r * 2 + e];
                    x = exp2_approximate(fmaf(x, factor, -top));
                    sum[r] += x;
                }
            }
        }
    }

    __device__ void finish() {
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 1);
            sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 2);
        }
    }
};

// out += weights [16, KEYS] values [KEYS, N * 8], of which the first `columns` channels are wanted.
template <unsigned KEYS, unsigned N, typename T>
__device__ void add_values(float (&out)[N][4], const float (&weight)[KEYS / 8][4], const uint4* values, unsigned columns, T type) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned k = 0; k < KEYS / 16; k++) {
        const float(&low)[4] = weight[k * 2], (&high)[4] = weight[k * 2 + 1];
        const unsigned a[4] = {
            pack(low[0], low[1], type), pack(low[2], low[3], type), pack(high[0], high[1], type), pack(high[2], high[3], type)};
        const auto chunk = [&](unsigned n) { return values + Lines<N>::place(k * 16 + lane % 16, n); };
#pragma unroll
        for (unsigned n = 0; n + 1 < N; n += 2) {
            if (n * 8 >= columns) break;
            unsigned b[4];
            load_transposed(b, chunk(n + lane / 16));
            multiply(out[n], a, b, type);
            multiply(out[n + 1], a, b + 2, type);
        }
        if (N % 2 == 1 && (N - 1) * 8 < columns) {
            unsigned b[2];
            load_transposed(b, chunk(N - 1));
            multiply(out[N - 1], a, b, type);
        }
    }
}

// score += q k^T over 16 channels from chunk c on, of which `a` is the fragment of q; keys have CHUNKS of them.
template <unsigned KEYS, unsigned CHUNKS, typename T>
__device__ void add_scores(float (&score)[KEYS / 8][4], const unsigned (&a)[4], const uint4* keys, unsigned c, T type) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned n = 0; n < KEYS / 8; n += 2) {
        unsigned b[4];
        load_matrices(b, keys + Lines<CHUNKS>::place(n * 8 + lane / 16 * 8 + lane % 8, c + lane / 8 % 2));
        multiply(score[n], a, b, type);
        multiply(score[n + 1], a, b + 2, type);
    }
}

template <unsigned N>
__device__ void scale_rows(float (&out)[N][4], const float (&factor)[2]) {
#pragma unroll
    for (unsigned n = 0; n < N; n++) {
#pragma unroll
        for (unsigned e = 0; e < 4; e++) out[n][e] *= factor[e / 2];
    }
}

// Divides by the sums and writes channels [column0, column0 + N * 8) of the warp's 16 queries from `first` on, by way of
// `scratch`, a warp's own 16 rows of N chunks.
template <unsigned N, typename T>
__device__ void write(const Head<T>& h, const AttentionDims& d, unsigned first, unsigned column0, const float (&out)[N][4], Rows& rows, uint4* scratch) {
    const unsigned lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    rows.finish();
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
#pragma unroll
        for (unsigned n = 0; n < N; n++) {
            unsigned* const chunk = reinterpret_cast<unsigned*>(scratch + Lines<N>::place(g + r * 8, n));
            chunk[t] = pack(out[n][r * 2] / rows.sum[r], out[n][r * 2 + 1] / rows.sum[r], T{});
        }
        const unsigned query = first + g + r * 8;
        if (h.lse && t == 0 && column0 == 0 && query < d.queries) h.lse[query] = log_sum_exp(rows.max[r], rows.sum[r], d.factor);
    }
    __syncwarp();
    const unsigned columns = min(N * 8, d.channels - column0);
    const size_t stride = size_t(d.heads) * d.channels;
    T* y = h.y + column0;
    if (is_aligned(y) && stride % CHUNK == 0 && d.channels % CHUNK == 0) {
        for (unsigned i = lane; i < 16 * N; i += WARP) {
            const unsigned row = i / N, chunk = i % N;
            if (first + row < d.queries && chunk * CHUNK < columns) {
                *reinterpret_cast<uint4*>(y + (first + row) * stride + chunk * CHUNK) = scratch[Lines<N>::place(row, chunk)];
            }
        }
    } else {
        for (unsigned i = lane; i < 16 * columns; i += WARP) {
            const unsigned row = i / columns, c = i % columns;
            if (first + row < d.queries) {
                const uint4* const chunk = scratch + Lines<N>::place(row, c / CHUNK);
                y[(first + row) * stride + c] = reinterpret_cast<const T*>(chunk)[c % CHUNK];
            }
        }
    }
}

// What rows of a lane see.
__device__ inline void limits(unsigned (&limit)[2], unsigned first, unsigned keys, const AttentionDims& d) {
    const unsigned query = first + threadIdx.x % WARP / 4;
#pragma unroll
    for (unsigned r = 0; r < 2; r++) limit[r] = seen_by_query(query + r * 8, keys, d);
}

template <typename T>
__device__ bool is_wide(const T* x, size_t stride, unsigned channels) {
    return is_aligned(x) && stride % CHUNK == 0 && channels % CHUNK == 0;
}

// D channels, a multiple of 8: a query's fragments stay in registers, and the next tile of keys and values is on its way
// while one is used.
template <unsigned D, typename T>
__device__ void attend(const Head<T>& h, const AttentionDims& d) {
    constexpr unsigned CHUNKS = D / CHUNK, STRIDE = Lines<CHUNKS>::STRIDE;
    constexpr unsigned KEYS = D <= 80 ? 64 : 32;  // two stages in the 48 KB that every block may have
    __shared__ uint4 stages[2][2][KEYS * STRIDE];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned first = blockIdx.x * QUERIES, mine = first + warp * 16;
    const unsigned seen = seen_by_block(first, h.keys, d);
    const bool wide_q = is_wide(h.q, h.q_stride, D), wide_k = is_wide(h.k, h.k_stride, D), wide_v = is_wide(h.v, h.v_stride, D);
    const auto fetch = [&](unsigned key0) {
        if (key0 < seen) {
            uint4(&stage)[2][KEYS * STRIDE] = stages[key0 / KEYS % 2];
            fill<KEYS, CHUNKS>(stage[0], h.k, h.k_stride, key0, seen, 0, D, wide_k);
            fill<KEYS, CHUNKS>(stage[1], h.v, h.v_stride, key0, seen, 0, D, wide_v);
        }
        commit_copies();  // an empty one at the end keeps the count
    };

    // Queries come by way of the second stage, which is free until the first tile is used.
    uint4* queries = stages[1][0];
    fill<QUERIES, CHUNKS>(queries, h.q, h.q_stride, first, d.queries, 0, D, wide_q);
    commit_copies();
    fetch(0);
    wait_for_copies<1>();
    __syncthreads();
    unsigned of_q[D / 16][4], of_q_end[2];  // the last 8 channels of 40
#pragma unroll
    for (unsigned c = 0; c < D / 16; c++) load_matrices(of_q[c], queries + Lines<CHUNKS>::place(warp * 16 + lane % 16, c * 2 + lane / 16));
    if constexpr (D % 16 != 0) load_matrices(of_q_end, queries + Lines<CHUNKS>::place(warp * 16 + lane % 16, CHUNKS - 1));

    Rows rows;
    unsigned limit[2];
    limits(limit, mine, h.keys, d);
    float out[CHUNKS][4] = {};
#pragma unroll 1
    for (unsigned key0 = 0; key0 < seen; key0 += KEYS) {
        __syncthreads();  // everybody is done with the stage that is filled next
        fetch(key0 + KEYS);
        wait_for_copies<1>();
        __syncthreads();
        const uint4(&stage)[2][KEYS * STRIDE] = stages[key0 / KEYS % 2];
        float score[KEYS / 8][4] = {};
#pragma unroll
        for (unsigned c = 0; c < D / 16; c++) add_scores<KEYS, CHUNKS>(score, of_q[c], stage[0], c * 2, T{});
        if constexpr (D % 16 != 0) {
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n += 4) {
                unsigned b[4];
                load_matrices(b, stage[0] + Lines<CHUNKS>::place(n * 8 + lane, CHUNKS - 1));
#pragma unroll
                for (unsigned i = 0; i < 4; i++) multiply_half(score[n + i], of_q_end, b[i], T{});
            }
        }
        float correction[2];
        rows.weigh<KEYS>(score, key0, limit, d.factor, correction);
        scale_rows(out, correction);
        add_values<KEYS>(out, score, stage[1], D, T{});
    }
    wait_for_copies<0>();
    __syncthreads();
    write(h, d, mine, 0, out, rows, stages[0][0] + warp * 16 * STRIDE);
}

// Any number of channels: queries and keys come 64 channels at a time, and 128 channels of the output are a block's, the
// next ones another block's, which computes the scores again.
template <typename T>
__device__ void attend_any(const Head<T>& h, const AttentionDims& d) {
    constexpr unsigned KEYS = 64, DEPTH = 8, WIDTH = 16;  // the last two in chunks
    constexpr unsigned STRIDE = Lines<DEPTH>::STRIDE, WIDE_STRIDE = Lines<WIDTH>::STRIDE;
    __shared__ uint4 of_q[QUERIES * STRIDE], of_k[KEYS * STRIDE], of_v[KEYS * WIDE_STRIDE];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned tiles = (d.queries + QUERIES - 1) / QUERIES;
    const unsigned first = blockIdx.x % tiles * QUERIES, mine = first + warp * 16;
    const unsigned column0 = blockIdx.x / tiles * WIDTH * CHUNK;
    const unsigned seen = seen_by_block(first, h.keys, d);
    const bool wide_q = is_wide(h.q, h.q_stride, d.channels), wide_k = is_wide(h.k, h.k_stride, d.channels);
    const bool wide_v = is_wide(h.v, h.v_stride, d.channels);

    Rows rows;
    unsigned limit[2];
    limits(limit, mine, h.keys, d);
    float out[WIDTH][4] = {};
#pragma unroll 1
    for (unsigned key0 = 0; key0 < seen; key0 += KEYS) {
        float score[KEYS / 8][4] = {};
#pragma unroll 1
        for (unsigned c0 = 0; c0 < d.channels; c0 += DEPTH * CHUNK) {
            __syncthreads();
            fill<QUERIES, DEPTH>(of_q, h.q, h.q_stride, first, d.queries, c0, d.channels, wide_q);
            fill<KEYS, DEPTH>(of_k, h.k, h.k_stride, key0, seen, c0, d.channels, wide_k);
            if (c0 == 0) fill<KEYS, WIDTH>(of_v, h.v, h.v_stride, key0, seen, column0, d.channels, wide_v);
            commit_copies();
            wait_for_copies<0>();
            __syncthreads();
#pragma unroll 1
            for (unsigned c = 0; c < DEPTH && c0 + c * CHUNK < d.channels; c += 2) {
                unsigned a[4];
                load_matrices(a, of_q + Lines<DEPTH>::place(warp * 16 + lane % 16, c + lane / 16));
                add_scores<KEYS, DEPTH>(score, a, of_k, c, T{});
            }
        }
        float correction[2];
        rows.weigh<KEYS>(score, key0, limit, d.factor, correction);
        scale_rows(out, correction);
        add_values<KEYS>(out, score, of_v, d.channels - column0, T{});
    }
    __syncthreads();
    write(h, d, mine, column0, out, rows, of_v + warp * 16 * WIDE_STRIDE);
}
}  // namespace tensor

// grid (tiles of queries, images x heads)
template <unsigned D, typename T>
__device__ void attend(T* y, float* lse, const T* q, const T* k, const T* v, const unsigned* lengths, const AttentionDims& d) {
    const Head<T> h = head_of_block(y, lse, q, k, v, lengths, d);
    if constexpr (sizeof(T) == 4) {
        plain::attend<(D + 15) / 16 * 16>(h, d, D);
    } else {
        tensor::attend<D>(h, d);
    }
}

// grid (tiles of queries x slices of 128 channels, images x heads)
template <typename T>
__device__ void attention_any(T* y, float* lse, const T* q, const T* k, const T* v, const unsigned* lengths, const AttentionDims& d) {
    const Head<T> h = head_of_block(y, lse, q, k, v, lengths, d);
    if constexpr (sizeof(T) == 4) {
        plain::attend<128>(h, d, d.channels);
    } else {
        tensor::attend_any(h, d);
    }
}

#define ATTENTION(NAME) \
    FOR_EACH_FLOAT( \
        NAME, \
        (T* y, Pointers<float, 1> lse, const T* q, const T* k, const T* v, Pointers<const unsigned, 1> lengths, AttentionDims d), \
        (y, lse.at[0], q, k, v, lengths.at[0], d))

#define ATTENTION_OF(D) \
    template <typename T> \
    __device__ void attention_##D(T* y, float* lse, const T* q, const T* k, const T* v, const unsigned* lengths, const AttentionDims& d) { \
        attend<D>(y, lse, q, k, v, lengths, d); \
    } \
    ATTENTION(attention_##D)

ATTENTION_OF(40)
ATTENTION_OF(64)
ATTENTION_OF(80)
ATTENTION_OF(128)
ATTENTION_OF(160)
ATTENTION(attention_any)
