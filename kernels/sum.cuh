// Sums that carry their own rounding errors (Knuth's two-sum): the result is as if added in twice the precision and
// rounded once, so that a mean over 100 000 terms of both signs keeps its digits without f64 arithmetic, which most
// cards do at 1/64 of the f32 rate.
#pragma once
#include "common.cuh"

// The sum so far is high + low.
struct Sum {
    float high, low;
};

// Symmetric in a and b to the bit.
__device__ __forceinline__ Sum merge(Sum a, Sum b) {
    float high = a.high + b.high, part = high - a.high;
    float error = (a.high - (high - part)) + (b.high - part);
    return {high, (a.low + b.low) + error};
}
__device__ __forceinline__ void add_to(Sum& sum, float x) { sum = merge(sum, {x, 0.0f}); }

// The rounding errors of an infinite sum are NaN and mean nothing.
__device__ __forceinline__ float value_of(Sum sum) {
    return fabsf(sum.high) == infinity() ? sum.high : sum.high + sum.low;
}

__device__ __forceinline__ Sum warp_total(Sum sum) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        Sum other = {__shfl_xor_sync(FULL_MASK, sum.high, step), __shfl_xor_sync(FULL_MASK, sum.low, step)};
        sum = merge(sum, other);
    }
    return sum;
}

// The totals of K sums over a block of whole warps, known to all its threads. A barrier stands before the first and
// after the last use of `scratch`.
template <int K> __device__ __forceinline__ void block_totals(Sum (&sums)[K], float (&scratch)[K][2][WARP]) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int k = 0; k < K; k++) {
        sums[k] = warp_total(sums[k]);
        if (lane == 0) {
            scratch[k][0][threadIdx.x / WARP] = sums[k].high;
            scratch[k][1][threadIdx.x / WARP] = sums[k].low;
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) {
        Sum part = {0.0f, 0.0f};
        if (lane < warps) part = {scratch[k][0][lane], scratch[k][1][lane]};
        sums[k] = warp_total(part);
    }
    __syncthreads();
}
