// Layer normalisation, alone or with the residual sum before it: xh = (x - mean) r, r = 1 / sqrt(var + eps),
// y = xh w + b. Mean and variance are two passes over registers. Limits in bytes for N rows of C elements of b bytes:
// forward 2 N C b (with the residual sum 4 N C b), backward 3 N C b (with the residual's gradient 4 N C b), and
// 8 N / chunk C for partial sums of dweight and dbias.
#include "row.cuh"

template <typename T>
__device__ __forceinline__ void forward(T* out, float* stats, T* sum, const T* inp, const T* delta, const T* weight,
                                        const T* bias, int rows, int width, float eps) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    __shared__ float scratch[MAX_THREADS / WARP];
    Team team = team_of(width);
    int row = blockIdx.x * team.count + team.index;
    // A team without a row holds an empty one: all threads must reach the shuffles.
    int span = row < rows ? width : 0;
    i64 start = (i64)row * width;
    bool aligned = in_vectors<T>(width, inp, out, weight, bias, delta, sum);
    uint4 x_raw[N], d_raw[N], w_raw[N], b_raw[N];
    load_row(x_raw, inp + start, team, span, aligned);
    if (delta) load_row(d_raw, delta + start, team, span, aligned);
    load_row(w_raw, weight, team, width, aligned);
    load_row(b_raw, bias, team, width, aligned);
    float x[N][V];
    unpack_row<T>(x, x_raw);
    if (delta) {
        add_row<T>(x, d_raw);
        store_row(sum + start, x, team, span, aligned);
    }
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) total += x[i][j];
    }
    float mean = team_sum(team, total, scratch) / width;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int left = width - (team.thread + i * team.size) * V;
#pragma unroll
        for (int j = 0; j < V; j++) {
            x[i][j] = j < left ? x[i][j] - mean : 0.0f;
            squares = fmaf(x[i][j], x[i][j], squares);
        }
    }
    float r = 1.0f / sqrtf(team_sum(team, squares, scratch) / width + eps);
    float w[N][V], b[N][V];
    unpack_row<T>(w, w_raw);
    unpack_row<T>(b, b_raw);
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) x[i][j] = fmaf(x[i][j] * r, w[i][j], b[i][j]);
    }
    store_row(out + start, x, team, span, aligned);
    if (span && team.thread == 0) {
        stats[2 * (i64)row] = mean;
        stats[2 * (i64)row + 1] = r;
    }
}

template <typename T>
__device__ __forceinline__ void backward(T* dinp, float* partials, const T* dout, const T* dresidual, const T* inp,
                                         const T* weight, const float* stats, int rows, int width) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    __shared__ float scratch[MAX_THREADS / WARP];
    extern __shared__ float4 dynamic[];
    Team team = team_of(width);
    int chunk = chunk_rows(team);
    int first = blockIdx.x * chunk;
    int end = min(first + chunk, rows);
    bool aligned = in_vectors<T>(width, dinp, dout, dresidual, inp, weight);
    uint4 w_raw[N];
    load_row(w_raw, weight, team, width, aligned);
    float w[N][V], dweight[N][V] = {}, dbias[N][V] = {};
    unpack_row<T>(w, w_raw);
    for (; first < end; first += team.count) {
        int row = first + team.index;
        int span = row < end ? width : 0;
        i64 start = (i64)row * width;
        uint4 x_raw[N], dy_raw[N], dx_raw[N] = {};
        load_row(x_raw, inp + start, team, span, aligned);
        load_row(dy_raw, dout + start, team, span, aligned);
        if (dresidual) load_row(dx_raw, dresidual + start, team, span, aligned);
        float mean = span ? stats[2 * (i64)row] : 0.0f, r = span ? stats[2 * (i64)row + 1] : 0.0f;
        float x[N][V], dy[N][V], dx[N][V];
        unpack_row<T>(x, x_raw);
        unpack_row<T>(dy, dy_raw);
        float sum = 0.0f, dot = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                x[i][j] = (x[i][j] - mean) * r;
                dweight[i][j] = fmaf(dy[i][j], x[i][j], dweight[i][j]);
                dbias[i][j] += dy[i][j];
                dy[i][j] *= w[i][j];
                sum += dy[i][j];
                dot = fmaf(dy[i][j], x[i][j], dot);
            }
        }
        sum = team_sum(team, sum, scratch) / width;
        dot = team_sum(team, dot, scratch) / width;
        unpack_row<T>(dx, dx_raw);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                dx[i][j] = fmaf(r, fmaf(-x[i][j], dot, dy[i][j] - sum), dx[i][j]);
            }
        }
        store_row(dinp + start, dx, team, span, aligned);
    }
    if (partials) {
        float* sums = reinterpret_cast<float*>(dynamic);
        fold_teams(partials + (i64)blockIdx.x * width, dweight, team, width, sums);
        fold_teams(partials + (i64)(gridDim.x + blockIdx.x) * width, dbias, team, width, sums);
    }
}

// out [rows, width], stats [rows, 2] f32 (mean, r), and where delta is given sum [rows, width] = inp + delta rounded to
// T, of which the norm is taken. inp, delta [rows, width], weight, bias [width]. sum and delta are both null or
// neither. 1 <= width <= 8192. Any alignment of elements is correct; 16-byte accesses need bases on 16 bytes and width
// divisible by 16 / sizeof(T). No array overlaps another.
// Grid: ceil(rows / teams(width)); block: threads(width), see row.cuh; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_forward_bf16(bf16* __restrict__ out, float* __restrict__ stats, bf16* __restrict__ sum,
                            const bf16* __restrict__ inp, const bf16* __restrict__ delta,
                            const bf16* __restrict__ weight, const bf16* __restrict__ bias, int rows, int width,
                            float eps) {
    forward(out, stats, sum, inp, delta, weight, bias, rows, width, eps);
}
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_forward_f32(float* __restrict__ out, float* __restrict__ stats, float* __restrict__ sum,
                           const float* __restrict__ inp, const float* __restrict__ delta,
                           const float* __restrict__ weight, const float* __restrict__ bias, int rows, int width,
                           float eps) {
    forward(out, stats, sum, inp, delta, weight, bias, rows, width, eps);
}

// dinp = r (g - mean(g) - xh mean(g xh)) + dresidual (null: nothing is added), g = w dout, and the partial sums of
// dout xh and of dout: partials [2, ceil(rows / chunk(width)), width] f32, the first half for dweight and the second
// for dbias by column_sum_f32, or null where neither is wanted. dinp, dout, dresidual, inp [rows, width]; dinp may be
// dout or dresidual itself. weight [width], stats [rows, 2]. Sizes and alignment as in the forward.
// Grid: ceil(rows / chunk(width)); block: threads(width), see row.cuh; dynamic shared bytes: 144 * threads(width), or 0
// where partials is null.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_backward_bf16(bf16* dinp, float* __restrict__ partials, const bf16* dout, const bf16* dresidual,
                             const bf16* __restrict__ inp, const bf16* __restrict__ weight,
                             const float* __restrict__ stats, int rows, int width) {
    backward(dinp, partials, dout, dresidual, inp, weight, stats, rows, width);
}
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_backward_f32(float* dinp, float* __restrict__ partials, const float* dout, const float* dresidual,
                            const float* __restrict__ inp, const float* __restrict__ weight,
                            const float* __restrict__ stats, int rows, int width) {
    backward(dinp, partials, dout, dresidual, inp, weight, stats, rows, width);
}
