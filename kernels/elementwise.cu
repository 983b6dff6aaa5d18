// What has no formula of its own: sums of equal shapes (the residual stream), gradients gathered in f32, sums of rows
// in a fixed order, and copies between tensors of different row lengths. Limit: each element read and written once.
#include "flat.cuh"
#include "sum.cuh"

// out = a + b, rounded to the dtype of out.
template <typename Out, typename A, typename B> struct Add {
    Out* out;
    const A* a;
    const B* b;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        float x[K], y[K];
        load_run(a + at, x);
        load_run(b + at, y);
#pragma unroll
        for (int k = 0; k < K; k++) x[k] += y[k];
        store_run(out + at, x);
    }
};

template <int V, typename Out, typename A, typename B>
__device__ __forceinline__ void add(Out* out, const A* a, const B* b, i64 n) {
    for_each<V>(n, all_aligned(out, a, b), Add<Out, A, B>{out, a, b});
}

template <typename In> struct Assign {
    float* out;
    const In* inp;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        float x[K];
        load_run(inp + at, x);
        store_run(out + at, x);
    }
};

template <typename In> __device__ __forceinline__ void assign(float* out, const In* inp, i64 n) {
    for_each<4>(n, all_aligned(out, inp), Assign<In>{out, inp});
}

template <typename T> struct CopyColumns {
    T* out;
    i64 out_stride;
    const T* inp;
    i64 inp_stride;
    int columns;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        i64 row = at / columns, column = at - row * columns;
        float x[K];
        load_run(inp + row * inp_stride + column, x);
        store_run(out + row * out_stride + column, x);
    }
};

template <typename T>
__device__ __forceinline__ void copy_columns(T* out, i64 out_stride, const T* inp, i64 inp_stride, int rows,
                                             int columns) {
    constexpr int V = Vector<T>::size;
    bool vectors = ((columns | out_stride | inp_stride) % V == 0) & all_aligned(out, inp);
    CopyColumns<T> work = {out, out_stride, inp, inp_stride, columns};
    for_each<V>((i64)rows * columns, vectors, work);
}

// Launch of every kernel here but row_sums: grid and block are any of one dimension; ceil(n / V / 256) blocks of 256
// threads give each thread one vector of V elements: 4 where an operand is f32, else 8. Dynamic shared memory: none.
// Vectors where all addresses are aligned to 16 bytes; else element by element.

// out = a + b: all [n]; out may be a or b.
extern "C" __global__ void add_bf16(bf16* out, const bf16* a, const bf16* b, i64 n) { add<8>(out, a, b, n); }
extern "C" __global__ void add_f32(float* out, const float* a, const float* b, i64 n) { add<4>(out, a, b, n); }

// out += inp, into an f32 gradient: out f32 [n], inp [n].
extern "C" __global__ void add_assign_bf16(float* out, const bf16* inp, i64 n) { add<4>(out, out, inp, n); }
extern "C" __global__ void add_assign_f32(float* out, const float* inp, i64 n) { add<4>(out, out, inp, n); }

// out = inp, the first term of an f32 gradient: out f32 [n], inp [n]. From bf16 this is the exact conversion to f32.
extern "C" __global__ void assign_bf16(float* out, const bf16* inp, i64 n) { assign(out, inp, n); }
extern "C" __global__ void assign_f32(float* out, const float* inp, i64 n) { assign(out, inp, n); }

// out[r * out_stride + c] = inp[r * inp_stride + c] for r < rows, c < columns; strides in elements, at least columns;
// n of the launch is rows columns. Vectors where columns and both strides are also multiples of V. No overlap.
extern "C" __global__ void copy_columns_bf16(bf16* out, i64 out_stride, const bf16* inp, i64 inp_stride, int rows,
                                             int columns) {
    copy_columns(out, out_stride, inp, inp_stride, rows, columns);
}
extern "C" __global__ void copy_columns_f32(float* out, i64 out_stride, const float* inp, i64 inp_stride, int rows,
                                            int columns) {
    copy_columns(out, out_stride, inp, inp_stride, rows, columns);
}

// out [R] = the sum of each row of inp [R, n]; n = 0 gives 0.
// Grid R, block min(1024, 32 max(1, ceil(n / 32))): the order of the sums depends on it. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(1024) row_sums_f32(float* out, const float* inp, i64 n) {
    __shared__ float scratch[1][2][WARP];
    const float* row = inp + blockIdx.x * n;
    Sum sum[1] = {};
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) add_to(sum[0], row[i]);
    block_totals(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = value_of(sum[0]);
}
