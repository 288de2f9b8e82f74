// The matrix product that linear layers and convolutions share, with a fused end:
//
//   y[m, n] = act(sum_k a[m, k] * b[n, k] + bias[n] + add[m / rows_of_image, n]) * scale + residual[m, n]
//
// or, gated (GEGLU), half as many columns: y[m, n] = (value + bias) * gelu(gate + bias), whose rows of b alternate, as many
// of the value as fill 16 bytes of y, then those of its gate.
//
// Rows of both operands lie along k; where those of A come from is a loader's business: `Rows` here, patches of images
// in conv.cu. Sums are in f32, over k in one order whatever m, n, the tile and the batch are, so a row of y does not
// depend on its neighbours. 16-bit elements go through the tensor cores, f32 through ordinary multiply-adds.
//
// Where there are few tiles, blocks share out the k of each. The last of a tile's blocks to be done adds what all of them left
// in memory, in the order of their parts of k, and ends the sums: which block that is does not show.
//
// A block has a tile of y. Tiles of A and B arrive in three stages by cp.async, two on their way while one is multiplied.
// A row of a tile is 128 bytes of k, eight 16-byte chunks; chunk c of row r lies at c ^ (r % 8), so that eight
// neighbouring rows touch all banks once.

#pragma once

#include "mma.cuh"

namespace gemm {

constexpr unsigned THREADS = 128;
constexpr unsigned CHUNKS = 8;  // of a row of a tile
constexpr unsigned STAGES = 3;

// Elements of a row of a tile.
template <typename T>
constexpr unsigned DEPTH = CHUNKS * LANES<T>;

// M x N outputs of a block, WARP_M x WARP_N of them for each of its four warps.
template <unsigned M_, unsigned N_, unsigned WARP_M_, unsigned WARP_N_>
struct Tile {
    static constexpr unsigned M = M_, N = N_, WARP_M = WARP_M_, WARP_N = WARP_N_;
    static constexpr unsigned SIZE = M * N;
    static constexpr unsigned STAGE = (M + N) * CHUNKS;  // 16-byte chunks
    static_assert(M / WARP_M * (N / WARP_N) * WARP == THREADS, "four warps");
};
// 128 sums a thread are what the tensor cores need to be fed from shared memory; with multiply-adds a thread has to hold
// what it multiplies as well.
template <typename T>
struct Tiles {
    using Large = Tile<128, 128, 64, 64>;
    using Small = Tile<64, 64, 32, 32>;
};
template <>
struct Tiles<float> {
    using Large = Tile<128, 64, 64, 32>;
    using Small = Tile<64, 64, 32, 32>;
};

// --- the end ---

enum Activation : unsigned { IDENTITY, SILU, GELU, GELU_TANH, QUICK_GELU, GEGLU };

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

template <int N>
__device__ void activate(float (&x)[N], unsigned activation) {
    const auto each = [&](auto f) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = f(x[i]);
    };
    switch (activation) {
        case SILU: return each([](float x) { return silu(x); });
        case GELU: return each([](float x) { return gelu(x); });
        case GELU_TANH:
            return each([](float x) {
                return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
            });
        case QUICK_GELU: return each([](float x) { return x / (1.0f + expf(-1.702f * x)); });
        default: return;
    }
}

// What follows the sums. Absent tensors are null.
template <typename T>
struct Epilogue {
    static constexpr int N = LANES<T>;  // elements that are stored at a time

    T* y;
    const float *bias, *add;
    const T* residual;
    unsigned m, n;
    unsigned rows_of_image, activation;
    float scale;
    unsigned add_stride;  // from one row of `add` to the next
    bool wide = false;    // set by `aligned`

    // Whether all accesses can be of 16 bytes.
    __device__ Epilogue aligned() const {
        Epilogue end = *this;
        end.wide = n % N == 0 && add_stride % N == 0 && is_aligned(y) && is_aligned(bias) && is_aligned(add) &&
                   is_aligned(residual);
        return end;
    }

    template <typename E>
    __device__ void add_from(float (&sums)[N], const E* p, unsigned column) const {
        float x[N];
        if (wide) {
            load(x, p, true);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = column + i < n ? to_float(p[i]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] += x[i];
    }

    __device__ void write(T* p, const float (&x)[N], unsigned column) const {
        if (wide) {
            store(p, x, true);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (column + i < n) p[i] = from_float<T>(x[i]);
            }
        }
    }

    // The bias of N columns from `column` on.
    __device__ void bias_of(unsigned column, float (&to)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = 0.0f;
        if (bias && column < n) add_from(to, bias + column, column);
    }

    // Ends the sums of N columns from `column` on, a multiple of N, with what `bias_of` gave for them.
    __device__ void operator()(unsigned row, unsigned column, float (&sums)[N], const float (&offset)[N]) const {
        if (row >= m || column >= n) return;
        const size_t at = size_t(row) * n + column;
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] += offset[i];
        if (add) add_from(sums, add + size_t(row / rows_of_image) * add_stride + column, column);
        activate(sums, activation);
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] *= scale;
        if (residual) add_from(sums, residual + at, column);
        write(y + at, sums, column);
    }
};

// Reads fours of floats in shared memory, of each two the second one first if `swapped`. Where some of eight lanes do that, those
// two fours apart touch all banks together.
template <unsigned N>
__device__ void load_fours(float (&to)[N], const float* from, bool swapped) {
#pragma unroll
    for (unsigned i = 0; i < N; i += 8) {
        const float4 one = *reinterpret_cast<const float4*>(from + i + (swapped ? 4 : 0));
        const float4 other = *reinterpret_cast<const float4*>(from + i + (swapped ? 0 : 4));
        const float4 low = swapped ? other : one, high = swapped ? one : other;
        to[i] = low.x, to[i + 1] = low.y, to[i + 2] = low.z, to[i + 3] = low.w;
        to[i + 4] = high.x, to[i + 5] = high.y, to[i + 6] = high.z, to[i + 7] = high.w;
    }
}

// As `finish`, of values and their gates.
template <unsigned ROWS, unsigned COLUMNS, unsigned STRIDE, typename T>
__device__ void finish_gated(const float* sums, unsigned row, unsigned column, const Epilogue<T>& end) {
    constexpr unsigned N = LANES<T>, PAIRS = COLUMNS / (2 * N);
    static_assert(WARP % PAIRS == 0, "a lane stays in its columns");
    const unsigned lane = threadIdx.x % WARP, c = lane % PAIRS * 2 * N;
    const unsigned n = end.n / 2, to = (column + c) / 2;
    if (to >= n) return;
    float of_value[N] = {}, of_gate[N] = {};
    if (end.bias) {
        load(of_value, end.bias + to, is_aligned(end.bias));
        load(of_gate, end.bias + n + to, is_aligned(end.bias));
    }
#pragma unroll 1
    for (unsigned i = lane; i < ROWS * PAIRS; i += WARP) {
        const unsigned r = i / PAIRS;
        if (row + r >= end.m) return;
        float both[2 * N], value[N];
        load_fours(both, sums + r * STRIDE + c, lane & (PAIRS == 4 ? 2 : 4));
#pragma unroll
        for (unsigned e = 0; e < N; e++) value[e] = (both[e] + of_value[e]) * gelu(both[N + e] + of_gate[e]);
        store(end.y + size_t(row + r) * n + to, value, is_aligned(end.y));
    }
}

// Ends a warp's ROWS x COLUMNS sums, which lie in shared memory STRIDE apart. Rolled: there is one copy of the end in a kernel.
template <unsigned ROWS, unsigned COLUMNS, unsigned STRIDE, typename T>
__device__ void finish(const float* sums, unsigned row, unsigned column, const Epilogue<T>& end) {
    constexpr unsigned N = LANES<T>;
    static_assert(WARP % (COLUMNS / N) == 0, "a lane stays in its columns");
    if (end.activation == GEGLU) return finish_gated<ROWS, COLUMNS, STRIDE>(sums, row, column, end);
    const unsigned lane = threadIdx.x % WARP, c = lane % (COLUMNS / N) * N;
    float bias[N];
    end.bias_of(column + c, bias);
#pragma unroll 1
    for (unsigned i = lane; i < ROWS * COLUMNS / N; i += WARP) {
        const unsigned r = i / (COLUMNS / N);
        const float* const from = sums + r * STRIDE + c;
        float x[N];
        if constexpr (N == 8) {
            load_fours(x, from, i & 4);
        } else {
            load(x, from, true);
        }
        end(row + r, column + c, x, bias);
    }
}

// --- loading ---

__device__ inline unsigned place(unsigned row, unsigned chunk) { return row * CHUNKS + (chunk ^ (row % CHUNKS)); }

// A thread loads one chunk of every 16th row of a tile.
constexpr unsigned ROWS_APART = THREADS / CHUNKS;

// Rows [first, first + ROWS) of x [rows, k], from column `begin` on; zeros beyond both.
template <typename T, unsigned ROWS>
struct Rows {
    const T* x;     // this thread's chunk of its first row
    unsigned row;   // of x
    unsigned rows;
    unsigned at, k; // this thread's column
    bool wide;

    __device__ Rows(const T* x, unsigned first, unsigned rows, unsigned begin, unsigned k)
        : row(first + threadIdx.x / CHUNKS), rows(rows), at(begin + threadIdx.x % CHUNKS * LANES<T>), k(k) {
        wide = is_aligned(x) && k % LANES<T> == 0;
        this->x = x + size_t(row) * k + at;
    }

    // Fills a tile and moves on by its depth.
    __device__ void fill(uint4* tile) {
        uint4* to = tile + place(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
        if (wide) {
#pragma unroll
            for (unsigned i = 0; i < ROWS; i += ROWS_APART) {
                const bool inside = row + i < rows && at < k;
                copy_async(to + i * CHUNKS, inside ? x + size_t(i) * k : x, inside);
            }
        } else {
#pragma unroll 1
            for (unsigned i = 0; i < ROWS; i += ROWS_APART) {
                T* const part = reinterpret_cast<T*>(to + i * CHUNKS);
#pragma unroll 1
                for (unsigned e = 0; e < LANES<T>; e++) {
                    part[e] = row + i < rows && at + e < k ? x[size_t(i) * k + e] : from_float<T>(0.0f);
                }
            }
        }
        x += DEPTH<T>;
        at += DEPTH<T>;
    }
};

// --- parts of k ---

// What the blocks of a tile that share out k leave for the last of them; `sums` is null where none do.
struct Parts {
    float* sums;        // [tiles, splits, outputs of a tile], these as threads have them: four of a thread, then its neighbour's
    unsigned* arrived;  // [tiles], zeros before and after
    unsigned split, splits;

    template <class Shape>
    __device__ float4* of(unsigned split) const {
        return reinterpret_cast<float4*>(sums) + (size_t(blockIdx.x) * splits + split) * (Shape::SIZE / 4) + threadIdx.x;
    }

    // Leaves a block's sums, and is true in the last block of the tile to do so.
    template <class Shape, class Sums>
    __device__ bool leave(const Sums& all) const {
        float4* const to = of<Shape>(split);
        all.each([&](unsigned i, const float(&x)[4]) { to[i * THREADS] = make_float4(x[0], x[1], x[2], x[3]); });
        __threadfence();
        __syncthreads();
        const bool is_last = threadIdx.x == 0 && atomicInc(arrived + blockIdx.x, splits - 1) == splits - 1;
        if (!__syncthreads_or(is_last)) return false;
        __threadfence();
        return true;
    }

    // N fours of this thread's sums from the given one on, of all parts in their order.
    template <class Shape, unsigned N>
    __device__ void add(float (&x)[N][4], unsigned first) const {
#pragma unroll
        for (unsigned i = 0; i < N; i++) x[i][0] = x[i][1] = x[i][2] = x[i][3] = 0.0f;
#pragma unroll 1
        for (unsigned split = 0; split < splits; split++) {
            const float4* const from = of<Shape>(split) + first * THREADS;
#pragma unroll
            for (unsigned i = 0; i < N; i++) {
                const float4 part = from[i * THREADS];
                x[i][0] += part.x, x[i][1] += part.y, x[i][2] += part.z, x[i][3] += part.w;
            }
        }
    }
};

// --- multiplying ---

// One warp's part of a tile by the tensor cores: products m16n8k16, four of them along a tile's depth. What is multiplied
// next is read from shared memory while the tensor cores are busy.
template <typename T, class Shape>
struct Multiplier {
    static constexpr unsigned FRAGMENTS_M = Shape::WARP_M / 16, FRAGMENTS_N = Shape::WARP_N / 8;
    static constexpr unsigned SLICES = CHUNKS / 2;
    static constexpr bool AHEAD = true;  // a slice is held in registers from `read` on
    static constexpr unsigned STRIDE = Shape::WARP_N + 8;  // of the strip of sums: rows of eight touch all banks
    static constexpr unsigned STRIP = 16 * STRIDE;

    float sum[FRAGMENTS_M][FRAGMENTS_N][4] = {};
    unsigned of_a[2][FRAGMENTS_M][4], of_b[2][FRAGMENTS_N / 2][4];
    unsigned warp_m, warp_n;

    __device__ Multiplier() {
        const unsigned warp = threadIdx.x / WARP;
        warp_m = warp / (Shape::N / Shape::WARP_N) * Shape::WARP_M;
        warp_n = warp % (Shape::N / Shape::WARP_N) * Shape::WARP_N;
    }

    // Reads a slice of the tiles.
    __device__ void read(const uint4* a, const uint4* b, unsigned slice) {
        const unsigned lane = threadIdx.x % WARP, chunk = slice * 2;
#pragma unroll
        for (unsigned i = 0; i < FRAGMENTS_M; i++) {
            load_matrices(of_a[slice % 2][i], a + place(warp_m + i * 16 + lane % 16, chunk + lane / 16));
        }
#pragma unroll
        for (unsigned j = 0; j < FRAGMENTS_N / 2; j++) {
            const unsigned row = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
            load_matrices(of_b[slice % 2][j], b + place(row, chunk + lane / 8 % 2));
        }
    }

    __device__ void multiply(unsigned slice) {
#pragma unroll
        for (unsigned i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
            for (unsigned j = 0; j < FRAGMENTS_N; j++) ::multiply(sum[i][j], of_a[slice % 2][i], of_b[slice % 2][j / 2] + j % 2 * 2, T{});
        }
    }

    // Calls f with four sums at a time, and which four they are.
    template <typename F>
    __device__ void each(F f) const {
#pragma unroll
        for (unsigned i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
            for (unsigned j = 0; j < FRAGMENTS_N; j++) f(i * FRAGMENTS_N + j, sum[i][j]);
        }
    }

    // In one access, which the compiler would take apart here and there.
    static __device__ void store_pair(float* to, float first, float second) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared_address(to)), "f"(first), "f"(second) : "memory");
    }

    // Ends the sums, those of `parts` where there are any, a strip of 16 rows at a time.
    __device__ void finish(float* strip, unsigned m0, unsigned n0, const Parts& parts, const Epilogue<T>& end) {
        const unsigned lane = threadIdx.x % WARP;
        const auto put = [&](const float(&x)[FRAGMENTS_N][4]) {
#pragma unroll
            for (unsigned j = 0; j < FRAGMENTS_N; j++) {
                float* const to = strip + lane / 4 * STRIDE + j * 8 + lane % 4 * 2;
                store_pair(to, x[j][0], x[j][1]);
                store_pair(to + 8 * STRIDE, x[j][2], x[j][3]);
            }
        };
#pragma unroll 1
        for (unsigned strip_at = 0; strip_at < FRAGMENTS_M; strip_at++) {
            __syncwarp();
            if (parts.sums) {
                float x[FRAGMENTS_N][4];
                parts.add<Shape>(x, strip_at * FRAGMENTS_N);
                put(x);
            } else {
#pragma unroll
                for (unsigned i = 0; i < FRAGMENTS_M; i++) {
                    if (i == strip_at) put(sum[i]);
                }
            }
            __syncwarp();
            gemm::finish<16, Shape::WARP_N, STRIDE>(strip, m0 + warp_m + strip_at * 16, n0 + warp_n, end);
        }
    }
};

// The same by ordinary multiply-adds: 8 x 16 threads, rows and columns of a thread 8 and 16 apart, so that a warp's reads of
// shared memory are broadcasts or neighbours.
template <class Shape>
struct Multiplier<float, Shape> {
    static constexpr unsigned STEP_M = 8, STEP_N = 16;
    static constexpr unsigned EACH_M = Shape::M / STEP_M, EACH_N = Shape::N / STEP_N;
    static constexpr unsigned SLICES = CHUNKS;
    static constexpr bool AHEAD = false;
    static constexpr unsigned STRIDE = Shape::N + 16;  // of the strip: the warp's two rows lie in different banks
    static constexpr unsigned STRIP = 2 * STRIDE;

    float sum[EACH_M][EACH_N] = {};
    const uint4 *a, *b;

    __device__ void read(const uint4* a, const uint4* b, unsigned slice) {
        if (slice == 0) this->a = a, this->b = b;
    }

    __device__ void multiply(unsigned slice) {
        const unsigned row = threadIdx.x / STEP_N, column = threadIdx.x % STEP_N;
        float4 y[EACH_N];
#pragma unroll
        for (unsigned j = 0; j < EACH_N; j++) {
            y[j] = *reinterpret_cast<const float4*>(b + place(column + j * STEP_N, slice));
        }
#pragma unroll
        for (unsigned i = 0; i < EACH_M; i++) {
            const float4 x = *reinterpret_cast<const float4*>(a + place(row + i * STEP_M, slice));
#pragma unroll
            for (unsigned j = 0; j < EACH_N; j++) {
                float s = sum[i][j];
                s = fmaf(x.x, y[j].x, s);
                s = fmaf(x.y, y[j].y, s);
                s = fmaf(x.z, y[j].z, s);
                sum[i][j] = fmaf(x.w, y[j].w, s);
            }
        }
    }

    template <typename F>
    __device__ void each(F f) const {
        static_assert(EACH_N == 4, "four sums at a time");
#pragma unroll
        for (unsigned i = 0; i < EACH_M; i++) f(i, sum[i]);
    }

    __device__ void finish(float* strip, unsigned m0, unsigned n0, const Parts& parts, const Epilogue<float>& end) {
        if (parts.sums) parts.add<Shape>(sum, 0);
        const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll 1
        for (unsigned strip_at = 0; strip_at < EACH_M; strip_at++) {
            __syncwarp();
#pragma unroll
            for (unsigned i = 0; i < EACH_M; i++) {
                if (i != strip_at) continue;
#pragma unroll
                for (unsigned j = 0; j < EACH_N; j++) strip[lane / STEP_N * STRIDE + lane % STEP_N + j * STEP_N] = sum[i][j];
            }
            __syncwarp();
            gemm::finish<2, Shape::N, STRIDE>(strip, m0 + strip_at * STEP_M + warp * 2, n0, end);
        }
    }
};

// Where a block's tile lies, and its share of k.
template <class Shape, typename T>
struct Share {
    unsigned m0, n0, begin, steps;

    __device__ Share(unsigned n, unsigned k, unsigned split, unsigned splits) {
        const unsigned tiles_n = (n + Shape::N - 1) / Shape::N;
        m0 = blockIdx.x / tiles_n * Shape::M;
        n0 = blockIdx.x % tiles_n * Shape::N;
        const unsigned all = (k + DEPTH<T> - 1) / DEPTH<T>, each = (all + splits - 1) / splits;
        const unsigned first = min(split * each, all);
        begin = first * DEPTH<T>;
        steps = min(each, all - first);
    }
};

// A block's tile of y, from where the loaders stand.
template <class Shape, typename T, class A>
__device__ void product(A a, Rows<T, Shape::N> b, const Share<Shape, T>& share, const Parts& parts, const Epilogue<T>& end) {
    extern __shared__ uint4 memory[];
    static_assert(THREADS / WARP * Multiplier<T, Shape>::STRIP <= STAGES * Shape::STAGE * 4, "strips fit");
    unsigned fetched = 0, free = 0;
    const auto fetch = [&] {
        if (fetched < share.steps) {
            uint4* const stage = memory + free * Shape::STAGE;
            a.fill(stage);
            b.fill(stage + Shape::M * CHUNKS);
            free = free + 1 == STAGES ? 0 : free + 1;
            fetched++;
        }
        commit_copies();  // none at the end, which keeps the count
    };
    const auto arrive = [&] {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
    };
#pragma unroll 1
    for (unsigned i = 0; i < STAGES - 1; i++) fetch();

    Multiplier<T, Shape> multiplier;
    constexpr unsigned SLICES = Multiplier<T, Shape>::SLICES;
    constexpr bool AHEAD = Multiplier<T, Shape>::AHEAD;
    const uint4* stage = memory;
    const auto read = [&](unsigned slice) { multiplier.read(stage, stage + Shape::M * CHUNKS, slice); };
    const auto next = [&] {
        stage += Shape::STAGE;
        if (stage == memory + STAGES * Shape::STAGE) stage = memory;
        arrive();
        read(0);
    };
    arrive();
    read(0);
#pragma unroll 1
    for (unsigned step = 0; step < share.steps; step++) {
        fetch();  // over the stage before this one, which everybody has done with
#pragma unroll
        for (unsigned slice = 0; slice < SLICES; slice++) {
            if (slice + 1 < SLICES) {
                read(slice + 1);
            } else if (AHEAD) {
                next();
            }
            multiplier.multiply(slice);
        }
        if (!AHEAD) next();
    }
    if (parts.sums && !parts.leave<Shape>(multiplier)) return;
    wait_for_copies<0>();
    __syncthreads();
    float* const strip = reinterpret_cast<float*>(memory) + threadIdx.x / WARP * Multiplier<T, Shape>::STRIP;
    multiplier.finish(strip, share.m0, share.n0, parts, end.aligned());
}

}  // namespace gemm
