// PPO's clipped losses of one token, with their slopes. The comparisons and their operands are those of the CPU's loop,
// so that a ratio at a border of its range takes the same branch.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float clamp_nan(float x, float low, float high) { return min_nan(max_nan(x, low), high); }

struct PolicyTerm {
    float ratio, loss, dlogprob;
    bool clipped;
};

// loss = max(-A ratio, -A clip(ratio, ratio_low, ratio_high)), ratio = exp(clamp(logprob - old_logprob, -20, 20)), and
// at most -A dual_clip where A < 0 (dual_clip infinite: no such bound).
__device__ __forceinline__ PolicyTerm policy_term(float logprob, float old_logprob, float advantage, float ratio_low,
                                                  float ratio_high, float dual_clip) {
    float delta = logprob - old_logprob;
    float ratio = expf(clamp_nan(delta, -20.0f, 20.0f));
    float plain = -advantage * ratio, limited = -advantage * clamp_nan(ratio, ratio_low, ratio_high);
    bool clipped = limited > plain;
    // A log-ratio beyond its bounds does not move with the logprob; neither does a clipped ratio.
    bool saturated = fabsf(delta) >= 20.0f;
    PolicyTerm term = {ratio, max_nan(plain, limited), clipped || saturated ? 0.0f : plain, clipped};
    float bound = -advantage * dual_clip;
    if (advantage < 0.0f && term.loss > bound) term.loss = bound, term.dlogprob = 0.0f;
    return term;
}

struct ValueTerm {
    float loss, dvalue;
    bool clipped;
};

// loss = 1/2 max((V - R)^2, (clip(V, V_old - range, V_old + range) - R)^2).
__device__ __forceinline__ ValueTerm value_term(float value, float old_value, float target, float range) {
    float error = value - target, near = clamp_nan(value, old_value - range, old_value + range) - target;
    float square = error * error, near_square = near * near;
    bool clipped = near_square > square;
    // Where the clipped error is the larger, the value lies outside its range and does not move it.
    return {0.5f * max_nan(square, near_square), clipped ? 0.0f : error, clipped};
}
