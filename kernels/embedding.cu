// Rows gathered by index, and the gradient scattered back: token embeddings, learned positions, and the rows that carry
// a loss. The host sorts the row numbers by index once, so that one thread adds the rows of one index in ascending
// order, without atomics. Limits in bytes for N rows of C elements of b bytes and U different indices: forward 2 N C b,
// gradient of a table N C b + 8 U C, gradient of an activation N C b + U C b.
#include "vector.cuh"

#define THREADS 128
// Vectors that a thread has in flight at once.
#define IN_FLIGHT 4

// Threads that share a row of `parts` parts: a power of two, at most a warp.
__device__ __forceinline__ int lanes_of(int parts) { return min(WARP, 1 << (32 - __clz(parts - 1))); }

template <typename T>
__device__ __forceinline__ void gather(T* out, const T* table, const int* index, int rows, int width) {
    constexpr int V = Vector<T>::size;
    int lanes = lanes_of((width + WARP - 1) / WARP);
    int row = blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes, lane = threadIdx.x % lanes;
    if (row >= rows) return;
    const T* from = table + (i64)index[row] * width;
    T* to = out + (i64)row * width;
    if (in_vectors<T>(width, table, out)) {
        int step = lanes * V;
        // Not unrolled further: four vectors are in flight already.
#pragma unroll 1
        for (int c = lane * V; c < width; c += IN_FLIGHT * step) {
            uint4 raw[IN_FLIGHT] = {};
#pragma unroll
            for (int b = 0; b < IN_FLIGHT; b++) {
                if (c + b * step < width) raw[b] = *reinterpret_cast<const uint4*>(from + c + b * step);
            }
#pragma unroll
            for (int b = 0; b < IN_FLIGHT; b++) {
                if (c + b * step < width) *reinterpret_cast<uint4*>(to + c + b * step) = raw[b];
            }
        }
    } else {
        for (int c = lane; c < width; c += lanes) to[c] = from[c];
    }
}

// sum = the rows order[first..end] of dout, one after the other, in four columns from `column` on.
template <typename T>
__device__ __forceinline__ void sum_in_order(float (&sum)[4], const T* dout, const int* order, int first, int end,
                                             int column, int width) {
    typedef typename Quad<T>::Raw Raw;
    bool aligned = width % 4 == 0 && is_aligned(dout);
    const T* from = dout + column;
    for (int k = first; k < end; k += IN_FLIGHT) {
        Raw raw[IN_FLIGHT] = {};
        if (aligned) {
#pragma unroll
            for (int b = 0; b < IN_FLIGHT; b++) {
                if (k + b < end) raw[b] = *reinterpret_cast<const Raw*>(from + (i64)order[k + b] * width);
            }
        }
#pragma unroll
        for (int b = 0; b < IN_FLIGHT; b++) {
            if (k + b >= end) break;
            float x[4];
            unpack(raw[b], x);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (!aligned && column + j < width) x[j] = to_f32(from[(i64)order[k + b] * width + j]);
                sum[j] += x[j];
            }
        }
    }
}

// One thread takes four columns of one index: dinp[id] = sum, or dinp[id] += sum.
template <bool ADD, typename G, typename T>
__device__ __forceinline__ void scatter(G* dinp, const T* dout, const int* order, const int* ids, const int* starts,
                                        int unique, int width) {
    int lanes = lanes_of((width + 3) / 4);
    int slot = blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    int column = (blockIdx.y * lanes + threadIdx.x % lanes) * 4;
    if (slot >= unique || column >= width) return;
    float sum[4] = {};
    sum_in_order(sum, dout, order, starts[slot], starts[slot + 1], column, width);
    G* at = dinp + (i64)ids[slot] * width + column;
    int count = min(width - column, 4);
    bool aligned = width % 4 == 0 && is_aligned(dinp);
    if constexpr (ADD) {
        float x[4];
        load_vector(x, at, count, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j] += x[j];
    }
    store_quad(at, sum, count, aligned);
}

// out [rows, width] = rows index [rows] (i32, each in 0..V) of table [V, width]. Any width >= 1 and alignment is
// correct; 16-byte accesses need bases on 16 bytes and width divisible by 16 / sizeof(T).
// Grid: ceil(rows / (128 / lanes)), lanes = min(32, next_power_of_two(ceil(width / 32))); block: 128; no dynamic shared
// memory.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward_bf16(bf16* __restrict__ out, const bf16* __restrict__ table, const int* __restrict__ index,
                           int rows, int width) {
    gather(out, table, index, rows, width);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward_f32(float* __restrict__ out, const float* __restrict__ table, const int* __restrict__ index,
                          int rows, int width) {
    gather(out, table, index, rows, width);
}

// dtable [V, width] f32: row ids[u] gets the sum of the rows order[starts[u]..starts[u + 1]] of dout [N, width] added,
// other rows are not touched. Prepared by the host from the indices of the forward: order [N] (row numbers, sorted by
// index, ascending inside one index), ids [unique] (the different indices), starts [unique + 1] (where each begins in
// order, and N). Any width >= 1 and alignment is correct; vector accesses (four elements) need bases on 16 bytes and
// width divisible by 4.
// Grid: (ceil(unique / (128 / lanes)), ceil(width / (4 * lanes))), lanes = min(32, next_power_of_two(ceil(width / 4)));
// block: 128; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward_bf16(float* __restrict__ dtable, const bf16* __restrict__ dout, const int* __restrict__ order,
                            const int* __restrict__ ids, const int* __restrict__ starts, int unique, int width) {
    scatter<true>(dtable, dout, order, ids, starts, unique, width);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward_f32(float* __restrict__ dtable, const float* __restrict__ dout, const int* __restrict__ order,
                           const int* __restrict__ ids, const int* __restrict__ starts, int unique, int width) {
    scatter<true>(dtable, dout, order, ids, starts, unique, width);
}

// The same for the rows of an activation: dinp [M, width] T, row ids[u] = the sum, rounded once; the other rows, which
// the host has zeroed, are not touched. order, ids, starts, alignment, grid and block as in embedding_backward.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_scatter_bf16(bf16* __restrict__ dinp, const bf16* __restrict__ dout, const int* __restrict__ order,
                           const int* __restrict__ ids, const int* __restrict__ starts, int unique, int width) {
    scatter<false>(dinp, dout, order, ids, starts, unique, width);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_scatter_f32(float* __restrict__ dinp, const float* __restrict__ dout, const int* __restrict__ order,
                          const int* __restrict__ ids, const int* __restrict__ starts, int unique, int width) {
    scatter<false>(dinp, dout, order, ids, starts, unique, width);
}
