// The head of reward and value models: one number per row, s = h . w; dh = ds w, dw = sum over rows of ds h. Limits in
// bytes for N rows of C elements of b bytes: forward N C b, backward 2 N C b, and 4 N / chunk C for partial sums of dw.
#include "row.cuh"

template <typename T>
__device__ __forceinline__ void forward(float* out, const T* inp, const T* weight, int rows, int width) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    Team team = team_of(min(width, TILE));
    int row = blockIdx.x * team.count + team.index;
    bool inside = row < rows;
    bool aligned = in_vectors<T>(width, inp, weight);
    float dot = 0.0f;
    for (int column = 0; column < width; column += TILE) {
        uint4 x_raw[N], w_raw[N];
        // A team without a row holds an empty one: all threads must reach the shuffles.
        load_row(x_raw, inp + (i64)row * width + column, team, inside ? width - column : 0, aligned);
        load_row(w_raw, weight + column, team, width - column, aligned);
        float x[N][V], w[N][V];
        unpack_row<T>(x, x_raw);
        unpack_row<T>(w, w_raw);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) dot = fmaf(x[i][j], w[i][j], dot);
        }
    }
    dot = team_sum(team, dot, nullptr);
    if (inside && team.thread == 0) out[row] = dot;
}

template <typename T>
__device__ __forceinline__ void backward(T* dinp, float* partials, const float* dout, const T* inp, const T* weight,
                                         int rows, int width) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    extern __shared__ float4 dynamic[];
    Strip strip = strip_of(rows, width);
    Team team = strip.team;
    int column = strip.column, span = strip.span;
    bool aligned = in_vectors<T>(width, dinp, inp, weight);
    uint4 w_raw[N];
    load_row(w_raw, weight + column, team, span, aligned);
    float w[N][V], dweight[N][V] = {};
    unpack_row<T>(w, w_raw);
    for (int row = strip.first + team.index; row < strip.end; row += team.count) {
        i64 start = (i64)row * width + column;
        float ds = dout[row];
        uint4 x_raw[N] = {};
        if (partials) load_row(x_raw, inp + start, team, span, aligned);
        float x[N][V], dx[N][V];
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) dx[i][j] = ds * w[i][j];
        }
        store_row(dinp + start, dx, team, span, aligned);
        unpack_row<T>(x, x_raw);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) dweight[i][j] = fmaf(ds, x[i][j], dweight[i][j]);
        }
    }
    if (partials) {
        float* sums = reinterpret_cast<float*>(dynamic);
        fold_teams(partials + (i64)blockIdx.x * width + column, dweight, team, span, sums);
    }
}

// out [rows] f32 from inp [rows, width], weight [width]. Any width and alignment is correct; 16-byte accesses need
// bases on 16 bytes and width divisible by 16 / sizeof(T). With w = min(width, 1024), teams and threads as in row.cuh:
// Grid: ceil(rows / teams(w)); block: threads(w) = 128; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    scalar_head_forward_bf16(float* __restrict__ out, const bf16* __restrict__ inp, const bf16* __restrict__ weight,
                             int rows, int width) {
    forward(out, inp, weight, rows, width);
}
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    scalar_head_forward_f32(float* __restrict__ out, const float* __restrict__ inp, const float* __restrict__ weight,
                            int rows, int width) {
    forward(out, inp, weight, rows, width);
}

// dinp [rows, width] = dout w, and the partial sums of dout inp: partials [ceil(rows / chunk(w)), width] f32 for
// column_sum_f32, or null where dweight is not wanted (inp is then not read and may be null). dout [rows] f32, inp
// [rows, width], weight [width]; alignment as in the forward. With w = min(width, 1024), chunk and threads as in
// row.cuh:
// Grid: (ceil(rows / chunk(w)), ceil(width / 1024)); block: threads(w) = 128; dynamic shared bytes: 144 * 128, or 0
// where partials is null.
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    scalar_head_backward_bf16(bf16* __restrict__ dinp, float* __restrict__ partials, const float* __restrict__ dout,
                              const bf16* __restrict__ inp, const bf16* __restrict__ weight, int rows, int width) {
    backward(dinp, partials, dout, inp, weight, rows, width);
}
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    scalar_head_backward_f32(float* __restrict__ dinp, float* __restrict__ partials, const float* __restrict__ dout,
                             const float* __restrict__ inp, const float* __restrict__ weight, int rows, int width) {
    backward(dinp, partials, dout, inp, weight, rows, width);
}
