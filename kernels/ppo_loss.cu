// PPO's policy and value loss over n response tokens, with both gradients and all statistics, in one launch of one
// block (formulas: ppo_loss.cuh): loss = scale (sum of policy losses + vf_coef sum of value losses).
// Limit: 32 bytes a token; one multiprocessor does it all, about 145 instructions a token.
#include "ppo_loss.cuh"
#include "sum.cuh"

// Sums of real numbers carry their errors; sums of ones are counted.
#define SUMS 6

// dlogprobs, dvalues [n]: gradients of the loss; statistics [9]: sums over tokens of policy loss, value loss,
// 1/2 (logprob - old_logprob)^2, 1 if the policy term is clipped, 1 if the value term is, ratio, ratio^2,
// |logprob - old_logprob|, and the largest of the last; loss [1]. logprobs, old_logprobs, advantages, values,
// old_values, returns [n]. All f32.
// ratio_low = 1 - cliprange_low and ratio_high = 1 + cliprange_high, rounded once; dual_clip infinite for none; scale
// = 1 / tokens of the optimizer batch. n = 0 gives zeros.
// Grid 1, block min(1024, 32 max(1, ceil(n / 32))): the order of the sums depends on it. Dynamic shared memory: none.
// No alignment is required.
extern "C" __global__ void __launch_bounds__(1024)
    ppo_loss_f32(float* dlogprobs, float* dvalues, float* statistics, float* loss, const float* logprobs,
                 const float* old_logprobs, const float* advantages, const float* values, const float* old_values,
                 const float* returns, int n, float ratio_low, float ratio_high, float cliprange_value,
                 float dual_clip, float vf_coef, float scale) {
    __shared__ float scratch[SUMS][2][WARP], largest_of[WARP];
    __shared__ int counts[2];
    Sum sums[SUMS] = {};
    float largest = 0.0f;
    int policy_clipped = 0, value_clipped = 0;
    if (threadIdx.x == 0) counts[0] = counts[1] = 0;
    __syncthreads();
    float value_scale = scale * vf_coef;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float logprob = logprobs[i], old_logprob = old_logprobs[i], delta = logprob - old_logprob;
        PolicyTerm policy = policy_term(logprob, old_logprob, advantages[i], ratio_low, ratio_high, dual_clip);
        ValueTerm value = value_term(values[i], old_values[i], returns[i], cliprange_value);
        dlogprobs[i] = policy.dlogprob * scale;
        dvalues[i] = value.dvalue * value_scale;
        add_to(sums[0], policy.loss);
        add_to(sums[1], value.loss);
        add_to(sums[2], 0.5f * delta * delta);
        add_to(sums[3], policy.ratio);
        add_to(sums[4], policy.ratio * policy.ratio);
        add_to(sums[5], fabsf(delta));
        largest = max_nan(largest, fabsf(delta));
        policy_clipped += policy.clipped, value_clipped += value.clipped;
    }
    atomicAdd(&counts[0], policy_clipped);
    atomicAdd(&counts[1], value_clipped);
    block_totals(sums, scratch);
    largest = block_max(largest, largest_of);
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < SUMS; s++) statistics[s < 3 ? s : s + 2] = value_of(sums[s]);
#pragma unroll
        for (int c = 0; c < 2; c++) statistics[3 + c] = (float)counts[c];
        statistics[8] = largest;
        *loss = scale * fmaf(vf_coef, value_of(sums[1]), value_of(sums[0]));
    }
}
