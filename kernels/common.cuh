// What every family of kernels shares: element types, 16-byte access, reductions, instantiation.
//
// Elements are stored as f32, f16 or bf16; arithmetic is always f32, so a kernel is a template
// over the storage type T and reads as if everything were float.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(f16 x) { return __half2float(x); }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

// Rounds to nearest even, as the CPU does.
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <>
__device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// How many elements fill one 16-byte access, the widest that a thread has.
template <typename T>
constexpr int LANES = 16 / sizeof(T);

// N pointers as one by-value argument (`Array<In, N>` in a launcher's declaration).
template <typename P, int N>
struct Pointers {
    P* at[N];
};

__device__ inline bool is_aligned(const void* p) { return reinterpret_cast<size_t>(p) % 16 == 0; }

// Reads N consecutive elements as floats. `wide` promises that p is 16-byte aligned and N a multiple
// of LANES; the values, and so every sum over them, are the same either way.
template <int N, typename T>
__device__ void load(float (&to)[N], const T* p, bool wide) {
    constexpr int L = LANES<T>;
    if (N % L == 0 && wide) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            const uint4 bits = *reinterpret_cast<const uint4*>(p + first);
            T parts[L];
            memcpy(parts, &bits, sizeof(bits));
#pragma unroll
            for (int i = 0; i < L && first + i < N; i++) to[first + i] = to_float(parts[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = to_float(p[i]);
    }
}

// Rounds and writes N consecutive elements; `wide` as for `load`.
template <int N, typename T>
__device__ void store(T* p, const float (&from)[N], bool wide) {
    constexpr int L = LANES<T>;
    if (N % L == 0 && wide) {
#pragma unroll
        for (int first = 0; first < N; first += L) {
            T parts[L];
#pragma unroll
            for (int i = 0; i < L && first + i < N; i++) parts[i] = from_float<T>(from[first + i]);
            uint4 bits;
            memcpy(&bits, parts, sizeof(bits));
            *reinterpret_cast<uint4*>(p + first) = bits;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) p[i] = from_float<T>(from[i]);
    }
}

constexpr unsigned WARP = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;

// Sum over the warp in every lane. The butterfly adds in an order that never changes.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// NAME_f32, NAME_f16 and NAME_bf16 with C names, so that the host finds them. PARAMS is the
// parenthesised parameter list in terms of T, ARGS the names to pass on.
#define FOR_EACH_FLOAT(NAME, PARAMS, ARGS) \
    INSTANTIATE(NAME, f32, float, PARAMS, ARGS) \
    INSTANTIATE(NAME, f16, f16, PARAMS, ARGS) \
    INSTANTIATE(NAME, bf16, bf16, PARAMS, ARGS)

#define INSTANTIATE(NAME, SUFFIX, TYPE, PARAMS, ARGS) \
    namespace of_##SUFFIX { \
    using T = TYPE; \
    extern "C" __global__ void NAME##_##SUFFIX PARAMS { NAME<T> ARGS; } \
    } \
    using of_##SUFFIX::NAME##_##SUFFIX;

// NAME_f32_f32, NAME_f32_f16, ..., NAME_bf16_bf16: the same for kernels of two types, T and U in this order.
#define FOR_EACH_PAIR(NAME, PARAMS, ARGS) \
    FOR_EACH_SECOND(NAME, f32, float, PARAMS, ARGS) \
    FOR_EACH_SECOND(NAME, f16, f16, PARAMS, ARGS) \
    FOR_EACH_SECOND(NAME, bf16, bf16, PARAMS, ARGS)

#define FOR_EACH_SECOND(NAME, SUFFIX, TYPE, PARAMS, ARGS) \
    INSTANTIATE_PAIR(NAME, SUFFIX##_f32, TYPE, float, PARAMS, ARGS) \
    INSTANTIATE_PAIR(NAME, SUFFIX##_f16, TYPE, f16, PARAMS, ARGS) \
    INSTANTIATE_PAIR(NAME, SUFFIX##_bf16, TYPE, bf16, PARAMS, ARGS)

#define INSTANTIATE_PAIR(NAME, SUFFIX, FIRST, SECOND, PARAMS, ARGS) \
    namespace of_##SUFFIX { \
    using T = FIRST; \
    using U = SECOND; \
    extern "C" __global__ void NAME##_##SUFFIX PARAMS { NAME<T, U> ARGS; } \
    } \
    using of_##SUFFIX::NAME##_##SUFFIX;
