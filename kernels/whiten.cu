// Whitening over all n elements: (x - mean) / sqrt(var + 1e-8), the variance unbiased, optionally with the mean put
// back. mean = sum_i c_i m_i / n and var = sum_i (q_i + c_i (m_i - mean)^2) / (n - 1) over groups of c_i elements with
// mean m_i and squared distances q_i: the groups that the statistics describe, else single elements. Every block
// computes both in the same order and then whitens its part, so that one launch needs no exchange between blocks.
// Limit: 8 bytes an element with statistics; without, each block reads all of inp twice, from L2.
#include "sum.cuh"

// out [n], inp [n], statistics [groups, 3] (count, mean, sum of squared distances; the counts add up to n) or null;
// keep_mean = 1 puts the mean back. n = 1 gives 0 (with keep_mean x).
// Grid: any, ceil(n / 4096) with statistics, without them 1 up to 4096 elements and ceil(n / 1024) beyond; no bit
// depends on it. Block min(1024, 32 max(1, ceil(n / 32))): the order of the sums depends on it. Dynamic shared memory:
// none. No alignment is required. out may be inp with statistics or in a grid of 1.
extern "C" __global__ void __launch_bounds__(1024)
    whiten_f32(float* out, const float* inp, const float* statistics, int n, int groups, int keep_mean) {
    __shared__ float scratch[1][2][WARP];
    int terms = statistics ? groups : n;
    Sum sum[1] = {};
    for (int i = threadIdx.x; i < terms; i += blockDim.x)
        add_to(sum[0], statistics ? statistics[3 * (i64)i] * statistics[3 * (i64)i + 1] : inp[i]);
    block_totals(sum, scratch);
    // The mean in two parts, so that its rounding does not shift elements that lie close together far from 0.
    float count = (float)n, mean = sum[0].high / count;
    float rest = (fmaf(-mean, count, sum[0].high) + sum[0].low) / count;

    Sum squares[1] = {};
    for (int i = threadIdx.x; i < terms; i += blockDim.x) {
        float distance = ((statistics ? statistics[3 * (i64)i + 1] : inp[i]) - mean) - rest;
        float square = distance * distance;
        if (statistics) square = fmaf(square, statistics[3 * (i64)i], statistics[3 * (i64)i + 2]);
        add_to(squares[0], square);
    }
    block_totals(squares, scratch);
    float variance = value_of(squares[0]) / max_nan(count - 1.0f, 1.0f);
    float inverse = 1.0f / sqrtf(variance + 1e-8f), shift = keep_mean ? mean + rest : 0.0f;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        out[i] = fmaf((inp[i] - mean) - rest, inverse, shift);
}
