// The reciprocal root mean square of a row that a team holds in registers: 1 / sqrt(mean(x^2) + eps).
#pragma once
#include "row.cuh"

template <int N, int V>
__device__ __forceinline__ float rms_scale(const float (&x)[N][V], const Team& team, int width, float eps,
                                           float* scratch) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) squares = fmaf(x[i][j], x[i][j], squares);
    }
    return 1.0f / sqrtf(team_sum(team, squares, scratch) / width + eps);
}
