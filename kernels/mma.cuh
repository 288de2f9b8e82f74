// Tensor cores and what feeds them: asynchronous copies, matrices from shared memory, products of 16-bit fragments.
//
// Fragments are those of the PTX ISA: of a warp's lane, g = lane / 4 and t = lane % 4,
//
//   a, 16 x 16 (row, k):    (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8), each with its neighbour along k
//   b, 16 x 8 (k, column):  (2t, g) (2t + 8, g), each with its neighbour along k
//   c, 16 x 8:              (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)

#pragma once

#include "common.cuh"

// Elements of 16 bits in 16 bytes: what one asynchronous copy moves, and a row of a matrix of ldmatrix.
constexpr unsigned CHUNK = 8;

__device__ inline unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// 16 bytes, or zeros where `inside` is not true; `from` is an aligned address of the tensor all the same.
__device__ inline void copy_async(uint4* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All but the last N groups have arrived.
template <int N>
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four (two) matrices of 8 x 8, the address of each row in one lane: lanes 0-7 those of the first, 8-15 of the second, ...
__device__ inline void load_matrices(unsigned (&to)[4], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

__device__ inline void load_matrices(unsigned (&to)[2], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(from))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_transposed(unsigned (&to)[4], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

__device__ inline void load_transposed(unsigned (&to)[2], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(from))
                 : "memory");
}

// c += a b over 16 k.
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned* b, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned* b, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c += a b over 8 k: the first halves of the fragments.
__device__ inline void multiply_half(float (&c)[4], const unsigned (&a)[2], unsigned b, f16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ inline void multiply_half(float (&c)[4], const unsigned (&a)[2], unsigned b, bf16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Two floats, rounded, as one register of a fragment.
__device__ inline unsigned pack(float first, float second, f16) {
    const __half2 pair = __floats2half2_rn(first, second);
    unsigned bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

__device__ inline unsigned pack(float first, float second, bf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    unsigned bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}
