// Sums over rows in two steps and one fixed order: partial sums over chunks of rows, then their sum, written or added.
// bias_backward takes the first step for the bias of a linear layer (db = sum over rows of dout); norms and the scalar
// head take it in their own backward. Limit in bytes for N rows of C elements of b bytes: N C b, and 8 N / chunk C for
// the partial sums.
#include "row.cuh"

template <typename T>
__device__ __forceinline__ void partial_sums(float* partials, const T* dout, int rows, int width) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    extern __shared__ float4 dynamic[];
    Strip strip = strip_of(rows, width);
    Team team = strip.team;
    int column = strip.column, span = strip.span;
    bool aligned = in_vectors<T>(width, dout);
    float sum[N][V] = {};
    for (int row = strip.first + team.index; row < strip.end; row += 2 * team.count) {
        uint4 raw[2][N];
        int other = row + team.count;
        load_row(raw[0], dout + (i64)row * width + column, team, span, aligned);
        load_row(raw[1], dout + (i64)other * width + column, team, other < strip.end ? span : 0, aligned);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float x[N][V];
            unpack_row<T>(x, raw[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
#pragma unroll
                for (int j = 0; j < V; j++) sum[i][j] += x[i][j];
            }
        }
    }
    fold_teams(partials + (i64)blockIdx.x * width + column, sum, team, span, reinterpret_cast<float*>(dynamic));
}

// partials [ceil(rows / chunk(w)), width] f32 for column_sum_f32, from dout [rows, width]; w = min(width, 1024), chunk
// and threads as in row.cuh. Any width and alignment is correct; 16-byte accesses need dout on 16 bytes and width
// divisible by 16 / sizeof(T).
// Grid: (ceil(rows / chunk(w)), ceil(width / 1024)); block: threads(w) = 128; dynamic shared bytes: 144 * 128.
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    bias_backward_bf16(float* __restrict__ partials, const bf16* __restrict__ dout, int rows, int width) {
    partial_sums(partials, dout, rows, width);
}
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    bias_backward_f32(float* __restrict__ partials, const float* __restrict__ dout, int rows, int width) {
    partial_sums(partials, dout, rows, width);
}

#define SUM_WARPS 16

// out [width] = (accumulate ? out : 0) + the sum over rows of partials [count, width]; count may be 0. Warp g adds the
// rows g, g + 16, ... in ascending order, then the 16 sums are added in ascending order.
// Grid: ceil(width / 32); block: 512; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(SUM_WARPS* WARP)
    column_sum_f32(float* __restrict__ out, const float* __restrict__ partials, int count, int width, int accumulate) {
    __shared__ float sums[SUM_WARPS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 4
        for (int row = warp; row < count; row += SUM_WARPS) sum += partials[(i64)row * width + column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        float total = accumulate ? out[column] : 0.0f;
        sum = 0.0f;
        for (int g = 0; g < SUM_WARPS; g++) sum += sums[g][lane];
        out[column] = total + sum;
    }
}
