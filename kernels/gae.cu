// Rewards shaped by the KL to the reference and generalised advantage estimation, per episode of a packed batch. With
// d = logprob - ref_logprob: r_t = -kl_coef k(d_t), plus the episode's score at its last token;
// delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lam A_(t+1), V and A after the last token 0; returns
// A + V. A warp walks an episode from its end, 32 tokens a chunk: the recurrence inside a chunk is a shuffle scan with
// the powers of gamma lam, and one number is carried to the next chunk. (Cumulative sums divided by powers would
// underflow.) Limit: 24 bytes a token, 16 where the rewards are given, 12 for the rewards alone.
#include "common.cuh"

// Chunks under way at once: their loads and scans do not wait for each other, only the carry does.
#define CHUNKS 4

__device__ __forceinline__ float kl_estimate(int estimator, float d) {
    if (estimator == 1) return d;
    if (estimator == 2) return 0.5f * d * d;
    return expm1f(-d) + d;
}

// Count, mean and sum of squared distances from the mean.
struct Moments {
    float count, mean, squares;
};

__device__ __forceinline__ void insert(Moments& m, float x) {
    m.count += 1.0f;
    float distance = x - m.mean;
    m.mean += distance / m.count;
    m.squares = fmaf(distance, x - m.mean, m.squares);
}
__device__ __forceinline__ Moments merge(Moments a, Moments b) {
    float count = a.count + b.count, distance = b.mean - a.mean;
    float share = count == 0.0f ? 0.0f : b.count / count;
    return {count, fmaf(distance, share, a.mean),
            fmaf(distance * distance, a.count * share, a.squares + b.squares)};
}

struct Episode {
    int index, first, length;
};

// The episode of this warp; past the last one, an empty one with index = episodes.
__device__ __forceinline__ Episode episode_of_warp(const int* offsets, int episodes) {
    int index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (index >= episodes) return {episodes, 0, 0};
    return {index, offsets[index], offsets[index + 1] - offsets[index]};
}

// reward(t) gives the reward of token t and is called once for each token, by the thread that writes its advantage.
template <typename Reward>
__device__ __forceinline__ void estimate(float* advantages, float* returns, float* statistics, const float* values,
                                         Episode episode, float gamma, float lam, Reward reward) {
    int lane = threadIdx.x % WARP;
    float powers[5] = {gamma * lam};
    for (int s = 1; s < 5; s++) powers[s] = powers[s - 1] * powers[s - 1];
    // (gamma lam)^(lane + 1): what the advantage before a chunk weighs at this lane.
    float carried = powers[0];
    for (int s = 0; s < 5; s++)
        if (lane >> s & 1) carried *= powers[s];

    float next_value = 0.0f, next_advantage = 0.0f;
    Moments moments = {};
    for (int done = 0; done < episode.length; done += CHUNKS * WARP) {
        // Lane l of chunk j has the token that is done + 32 j + l places before the last.
        int last = episode.length - 1 - done - lane;
        float value[CHUNKS], scan[CHUNKS];
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            int t = last - j * WARP;
            value[j] = t >= 0 ? values[episode.first + t] : 0.0f;
            scan[j] = t >= 0 ? reward(episode.first + t) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            float next = __shfl_up_sync(FULL_MASK, value[j], 1);
            if (lane == 0) next = next_value;
            next_value = __shfl_sync(FULL_MASK, value[j], WARP - 1);
            scan[j] = fmaf(gamma, next, scan[j]) - value[j];
#pragma unroll
            for (int s = 0; s < 5; s++) {
                float before = __shfl_up_sync(FULL_MASK, scan[j], 1 << s);
                if (lane >= 1 << s) scan[j] = fmaf(powers[s], before, scan[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            int t = last - j * WARP;
            float advantage = fmaf(carried, next_advantage, scan[j]);
            next_advantage = __shfl_sync(FULL_MASK, advantage, WARP - 1);
            if (t >= 0) {
                advantages[episode.first + t] = advantage;
                returns[episode.first + t] = advantage + value[j];
                insert(moments, advantage);
            }
        }
    }
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        Moments other = {__shfl_xor_sync(FULL_MASK, moments.count, step),
                         __shfl_xor_sync(FULL_MASK, moments.mean, step),
                         __shfl_xor_sync(FULL_MASK, moments.squares, step)};
        moments = merge(moments, other);
    }
    if (lane == 0) {
        float* at = statistics + 3 * (i64)episode.index;
        at[0] = moments.count, at[1] = moments.mean, at[2] = moments.squares;
    }
}

// Launch of all three: grid ceil(episodes / 4), block 128 (a warp an episode; any whole number of warps is right, with
// episodes / warps blocks). Dynamic shared memory: none. No alignment is required. All data f32; episode b is tokens
// offsets[b] .. offsets[b + 1] (offsets [episodes + 1], ascending from 0 to the number of tokens N), and may be empty.

// advantages, returns, rewards [N], statistics [episodes, 3] (count, mean and sum of squared distances from the mean
// of the episode's advantages; 0, 0, 0 if empty); logprobs, ref_logprobs [N], scores [episodes], values [N];
// estimator 1, 2 or 3: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.
extern "C" __global__ void gae_forward_f32(float* advantages, float* returns, float* rewards, float* statistics,
                                           const float* logprobs, const float* ref_logprobs, const float* scores,
                                           const float* values, const int* offsets, int episodes, int estimator,
                                           float kl_coef, float gamma, float lam) {
    Episode episode = episode_of_warp(offsets, episodes);
    if (episode.index == episodes) return;
    int final = episode.first + episode.length - 1;
    float score = scores[episode.index];
    estimate(advantages, returns, statistics, values, episode, gamma, lam, [=](int t) {
        float reward = -kl_coef * kl_estimate(estimator, logprobs[t] - ref_logprobs[t]);
        if (t == final) reward += score;
        rewards[t] = reward;
        return reward;
    });
}

// The same from given rewards [N].
extern "C" __global__ void gae_from_rewards_f32(float* advantages, float* returns, float* statistics,
                                                const float* rewards, const float* values, const int* offsets,
                                                int episodes, float gamma, float lam) {
    Episode episode = episode_of_warp(offsets, episodes);
    if (episode.index == episodes) return;
    estimate(advantages, returns, statistics, values, episode, gamma, lam, [=](int t) { return rewards[t]; });
}

// The rewards [N] alone, the same to the bit as those of gae_forward.
extern "C" __global__ void rewards_f32(float* rewards, const float* logprobs, const float* ref_logprobs,
                                       const float* scores, const int* offsets, int episodes, int estimator,
                                       float kl_coef) {
    Episode episode = episode_of_warp(offsets, episodes);
    if (episode.index == episodes) return;
    for (int i = threadIdx.x % WARP; i < episode.length; i += WARP) {
        int t = episode.first + i;
        float reward = -kl_coef * kl_estimate(estimator, logprobs[t] - ref_logprobs[t]);
        rewards[t] = i == episode.length - 1 ? reward + scores[episode.index] : reward;
    }
}
