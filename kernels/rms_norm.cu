// RMS normalisation, alone or with the residual sum before it: r = 1 / sqrt(mean(x^2) + eps), y = x r w. Rows may be
// heads inside a wider row. Limits in bytes for N rows of C elements of b bytes: forward 2 N C b (with the residual sum
// 4 N C b), backward 3 N C b (with the residual's gradient 4 N C b), and 4 N / chunk C for partial sums of dweight.
#include "rms.cuh"

// Where row `row` begins: `groups` rows stand side by side in each outer row of `stride` elements.
__device__ __forceinline__ i64 start_of(int row, int groups, i64 stride, int width) {
    return row / groups * stride + (i64)(row % groups) * width;
}

template <typename T>
__device__ __forceinline__ void forward(T* out, float* rstd, T* sum, const T* inp, const T* delta, const T* weight,
                                        int rows, int width, int groups, i64 stride, float eps) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    __shared__ float scratch[MAX_THREADS / WARP];
    Team team = team_of(width);
    int row = blockIdx.x * team.count + team.index;
    // A team without a row holds an empty one: all threads must reach the shuffles.
    int span = row < rows ? width : 0;
    i64 start = start_of(row, groups, stride, width);
    bool aligned = in_vectors<T>(width | stride, inp, out, weight, delta, sum);
    uint4 x_raw[N], d_raw[N], w_raw[N];
    load_row(x_raw, inp + start, team, span, aligned);
    if (delta) load_row(d_raw, delta + start, team, span, aligned);
    load_row(w_raw, weight, team, width, aligned);
    float x[N][V], w[N][V];
    unpack_row<T>(x, x_raw);
    if (delta) {
        add_row<T>(x, d_raw);
        store_row(sum + start, x, team, span, aligned);
    }
    float r = rms_scale(x, team, width, eps, scratch);
    unpack_row<T>(w, w_raw);
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) x[i][j] = x[i][j] * r * w[i][j];
    }
    store_row(out + start, x, team, span, aligned);
    if (span && team.thread == 0) rstd[row] = r;
}

template <typename T>
__device__ __forceinline__ void backward(T* dinp, float* partials, const T* dout, const T* dresidual, const T* inp,
                                         const T* weight, const float* rstd, int rows, int width, int groups,
                                         i64 stride) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    __shared__ float scratch[MAX_THREADS / WARP];
    extern __shared__ float4 dynamic[];
    Team team = team_of(width);
    int chunk = chunk_rows(team);
    int first = blockIdx.x * chunk;
    int end = min(first + chunk, rows);
    bool aligned = in_vectors<T>(width | stride, dinp, dout, dresidual, inp, weight);
    uint4 w_raw[N];
    load_row(w_raw, weight, team, width, aligned);
    float w[N][V], dweight[N][V] = {};
    unpack_row<T>(w, w_raw);
    for (; first < end; first += team.count) {
        int row = first + team.index;
        int span = row < end ? width : 0;
        i64 start = start_of(row, groups, stride, width);
        uint4 x_raw[N], dy_raw[N], dx_raw[N] = {};
        load_row(x_raw, inp + start, team, span, aligned);
        load_row(dy_raw, dout + start, team, span, aligned);
        if (dresidual) load_row(dx_raw, dresidual + start, team, span, aligned);
        float r = span ? rstd[row] : 0.0f;
        float x[N][V], dy[N][V], dx[N][V];
        unpack_row<T>(x, x_raw);
        unpack_row<T>(dy, dy_raw);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                x[i][j] *= r;
                dweight[i][j] = fmaf(dy[i][j], x[i][j], dweight[i][j]);
                dy[i][j] *= w[i][j];
                dot = fmaf(dy[i][j], x[i][j], dot);
            }
        }
        dot = team_sum(team, dot, scratch) / width;
        unpack_row<T>(dx, dx_raw);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) dx[i][j] = fmaf(r, fmaf(-x[i][j], dot, dy[i][j]), dx[i][j]);
        }
        store_row(dinp + start, dx, team, span, aligned);
    }
    if (partials) {
        float* sums = reinterpret_cast<float*>(dynamic);
        fold_teams(partials + (i64)blockIdx.x * width, dweight, team, width, sums);
    }
}

// out, rstd [rows] (row-major over outer rows and groups), and where delta is given sum = inp + delta rounded to T, of
// which the norm is taken. inp, out, delta, sum: row h of outer row n starts at n * stride + h * width, h < groups;
// elements between are neither read nor written. Plain rows: groups = 1, stride = width. weight [width]. sum and delta
// are both null or neither. 1 <= width <= 8192, groups >= 1 divides rows. Any alignment of elements is correct; 16-byte
// accesses need bases on 16 bytes and width and stride divisible by 16 / sizeof(T). No array overlaps another.
// Grid: ceil(rows / teams(width)); block: threads(width), see row.cuh; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_forward_bf16(bf16* __restrict__ out, float* __restrict__ rstd, bf16* __restrict__ sum,
                          const bf16* __restrict__ inp, const bf16* __restrict__ delta,
                          const bf16* __restrict__ weight, int rows, int width, int groups, i64 stride, float eps) {
    forward(out, rstd, sum, inp, delta, weight, rows, width, groups, stride, eps);
}
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_forward_f32(float* __restrict__ out, float* __restrict__ rstd, float* __restrict__ sum,
                         const float* __restrict__ inp, const float* __restrict__ delta,
                         const float* __restrict__ weight, int rows, int width, int groups, i64 stride, float eps) {
    forward(out, rstd, sum, inp, delta, weight, rows, width, groups, stride, eps);
}

// dinp = r (w dout - x r mean(w dout x r)) + dresidual (null: nothing is added), and the partial sums of dout x r:
// partials [ceil(rows / chunk(width)), width] f32 for column_sum_f32, or null where dweight is not wanted. Rows of
// dinp, dout, dresidual and inp lie as in the forward; dinp may be dout or dresidual itself. weight [width], rstd
// [rows]. Sizes and alignment as in the forward.
// Grid: ceil(rows / chunk(width)); block: threads(width), see row.cuh; dynamic shared bytes: 144 * threads(width), or 0
// where partials is null.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_backward_bf16(bf16* dinp, float* __restrict__ partials, const bf16* dout, const bf16* dresidual,
                           const bf16* __restrict__ inp, const bf16* __restrict__ weight,
                           const float* __restrict__ rstd, int rows, int width, int groups, i64 stride) {
    backward(dinp, partials, dout, dresidual, inp, weight, rstd, rows, width, groups, stride);
}
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_backward_f32(float* dinp, float* __restrict__ partials, const float* dout, const float* dresidual,
                          const float* __restrict__ inp, const float* __restrict__ weight,
                          const float* __restrict__ rstd, int rows, int width, int groups, i64 stride) {
    backward(dinp, partials, dout, dresidual, inp, weight, rstd, rows, width, groups, stride);
}
