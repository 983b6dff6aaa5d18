// The logistic function of activations, which are bound by memory only if it is short.
#pragma once
#include "common.cuh"

struct Sigmoid {
    float s, rest;
};

// s = 1 / (1 + exp(-x)) and rest = 1 - s, each with a relative error below 1e-7 (5 + |x|): the rounding of x log2(e),
// two functions of 2 ulp. 0 and 1 far out, NaN stays NaN.
__device__ __forceinline__ Sigmoid sigmoid(float x) {
    float e = exp2_fast(-LOG2_E * x), s;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0f + e));
    // 1 - s has no digits left where s is close to 1, and x (1 - s) of a large x shows it.
    return {s, x > 0.0f ? e * s : 1.0f - s};
}
