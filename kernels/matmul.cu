// Matrix products: linear layers, and batches of plain products. The product itself is in gemm.cuh.

#include "gemm.cuh"

struct MatmulDims {
    unsigned long long a_stride, b_stride;  // from one product of the batch to the next
    unsigned m, n, k;
    unsigned splits;  // of k
    unsigned rows_of_image;
    unsigned activation;
    float scale;
    unsigned add_stride;
};

// a [batch, M, K], b [batch, N, K], y and residual [batch, M, N]; sums and arrived as in gemm::Parts.
// grid (tiles, batch * splits), one of which is 1
template <class Shape, typename T>
__device__ void multiply(
    T* y, const T* a, const T* b, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const MatmulDims& d) {
    const unsigned split = d.splits > 1 ? blockIdx.y : 0, entry = d.splits > 1 ? 0 : blockIdx.y;
    const size_t out = size_t(entry) * d.m * d.n;
    if (residual.at[0]) residual.at[0] += out;
    const gemm::Epilogue<T> end = {
        y + out, bias.at[0], add.at[0], residual.at[0], d.m, d.n, d.rows_of_image, d.activation, d.scale, d.add_stride};
    const gemm::Share<Shape, T> share(d.n, d.k, split, d.splits);
    const gemm::Rows<T, Shape::M> rows_a(a + entry * d.a_stride, share.m0, d.m, share.begin, d.k);
    const gemm::Rows<T, Shape::N> rows_b(b + entry * d.b_stride, share.n0, d.n, share.begin, d.k);
    gemm::product<Shape>(rows_a, rows_b, share, {sums.at[0], arrived.at[0], split, d.splits}, end);
}

template <typename T>
__device__ void matmul_large(
    T* y, const T* a, const T* b, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const MatmulDims& d) {
    multiply<typename gemm::Tiles<T>::Large>(y, a, b, sums, arrived, bias, add, residual, d);
}
FOR_EACH_FLOAT(
    matmul_large,
    (T* y, const T* a, const T* b, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
     Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, MatmulDims d),
    (y, a, b, sums, arrived, bias, add, residual, d))

template <typename T>
__device__ void matmul_small(
    T* y, const T* a, const T* b, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
    Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, const MatmulDims& d) {
    multiply<typename gemm::Tiles<T>::Small>(y, a, b, sums, arrived, bias, add, residual, d);
}
FOR_EACH_FLOAT(
    matmul_small,
    (T* y, const T* a, const T* b, Pointers<float, 1> sums, Pointers<unsigned, 1> arrived,
     Pointers<const float, 1> bias, Pointers<const float, 1> add, Pointers<const T, 1> residual, MatmulDims d),
    (y, a, b, sums, arrived, bias, add, residual, d))
