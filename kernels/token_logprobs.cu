// Log-softmax, gather and entropy of rows of logits, with z = logits * inverse_temperature:
// logprob = z_y - logsumexp(z), entropy = logsumexp(z) - sum softmax(z) z, in one pass with a running maximum. A loss
// that is a sum over rows of f(logprob, entropy) knows its slopes then, and a second pass overwrites the logits:
// dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy), dlogits = dz * inverse_temperature. Limits for
// bf16: 2 R V bytes, with the gradient 4 R V more. A logit of -inf is a masked token: its probability is 0 and so are
// its terms. A NaN shows in everything of its row but the hit.
#include "logits.cuh"
#include "ppo_loss.cuh"

// Sums over the tokens seen so far, relative to the largest logit: of e = 2^d and of e d, d = (x - largest) * scale.
struct Softmax {
    float largest, sum, weighted;
};

// Below every finite logit, and finite, so that a difference from it is never inf - inf.
#define LOWEST -3.402823466e38f

// Never -inf: where 2^d is 0 the product with d is 0 too.
__device__ __forceinline__ float exponent(float x, float largest, float scale) {
    return max_nan((x - largest) * scale, -1024.0f);
}

__device__ __forceinline__ void raise(Softmax& s, float largest, float scale) {
    float d = exponent(s.largest, largest, scale), e = exp2_fast(d);
    s.weighted = e * fmaf(d, s.sum, s.weighted);
    s.sum *= e;
    s.largest = largest;
}

template <int SIZE> __device__ __forceinline__ void add_chunk(Softmax& s, const float (&x)[SIZE], float scale) {
    float largest = x[0];
#pragma unroll
    for (int i = 1; i < SIZE; i++) largest = max_nan(largest, x[i]);
    if (!(largest <= s.largest)) raise(s, largest, scale);
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
        float d = exponent(x[i], s.largest, scale), e = exp2_fast(d);
        s.sum += e;
        s.weighted = fmaf(e, d, s.weighted);
    }
}

__device__ __forceinline__ void merge_warp(Softmax& s, float scale) {
    raise(s, warp_max(s.largest), scale);
    s.sum = warp_sum(s.sum);
    s.weighted = warp_sum(s.weighted);
}

// The block's sums, in the order of its warps; valid in thread 0.
__device__ __forceinline__ void merge_block(Softmax& s, float scale) {
    __shared__ float scratch[3][32];
    int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    if (threadIdx.x % WARP == 0) {
        scratch[0][warp] = s.largest;
        scratch[1][warp] = s.sum;
        scratch[2][warp] = s.weighted;
    }
    __syncthreads();
    if (warp > 0) return;
    bool used = threadIdx.x < warps;
    s.largest = used ? scratch[0][threadIdx.x] : LOWEST;
    s.sum = used ? scratch[1][threadIdx.x] : 0.0f;
    s.weighted = used ? scratch[2][threadIdx.x] : 0.0f;
    merge_warp(s, scale);
}

// What a row says about its target.
struct Row {
    float logprob, entropy, hit, lse;
};

// Valid in thread 0.
template <typename T>
__device__ __forceinline__ Row read_row(const T* row, int target, int vocabulary, bool aligned,
                                        float inverse_temperature) {
    const int SIZE = Vector<T>::size;
    float scale = inverse_temperature * LOG2_E;
    Softmax s = {LOWEST, 0.0f, 0.0f};
    int step = blockDim.x * SIZE;
    float next[SIZE];
    load_logits(row, threadIdx.x * SIZE, vocabulary, aligned, next);
    for (int at = threadIdx.x * SIZE; at < vocabulary; at += step) {
        float x[SIZE];
#pragma unroll
        for (int i = 0; i < SIZE; i++) x[i] = next[i];
        load_logits(row, at + step, vocabulary, aligned, next);
        add_chunk(s, x, scale);
    }
    merge_warp(s, scale);
    if (blockDim.x > WARP) merge_block(s, scale);
    if (threadIdx.x > 0) return {};
    float x = to_f32(row[target]), log_sum = logf(s.sum);
    return {(x - s.largest) * inverse_temperature - log_sum, log_sum - LN_2 * (s.weighted / s.sum),
            x == s.largest ? 1.0f : 0.0f, fmaf(s.largest, inverse_temperature, log_sum)};
}

// A row's part of the loss, and its slopes.
struct Term {
    float loss, dlogprob, dentropy;
};

// loss = -scale logprob.
struct Likelihood {
    static const bool has_entropy = false;
    float scale;

    __device__ __forceinline__ Term term(const Row& row) const { return {-scale * row.logprob, -scale, 0.0f}; }
};

// loss = scale (PPO's policy loss) - entropy_scale entropy.
struct Clipped {
    static const bool has_entropy = true;
    const float *old_logprobs, *advantages;
    float ratio_low, ratio_high, dual_clip, scale, entropy_scale;

    __device__ __forceinline__ Term term(const Row& row) const {
        int r = blockIdx.x;
        PolicyTerm policy =
            policy_term(row.logprob, old_logprobs[r], advantages[r], ratio_low, ratio_high, dual_clip);
        return {scale * policy.loss - entropy_scale * row.entropy, policy.dlogprob * scale, -entropy_scale};
    }
};

// What the threads of a block know of its row when they turn the logits into their gradient.
struct Slopes {
    float entropy, lse, up, spread;
};

// The row from its end to its beginning: what was read last is nearest.
template <bool HAS_ENTROPY, typename T>
__device__ __forceinline__ void overwrite(T* row, int target, int vocabulary, bool aligned, float inverse_temperature,
                                          const Slopes& slopes) {
    const int SIZE = Vector<T>::size;
    auto gradient = [&](float x, int j) {
        float logp = max_nan(fmaf(x, inverse_temperature, -slopes.lse), -1024.0f);
        float p = exp2_fast(logp * LOG2_E);
        float up = HAS_ENTROPY ? fmaf(slopes.spread, logp + slopes.entropy, slopes.up) : slopes.up;
        float dz = -p * up;
        return j == target ? dz + slopes.up : dz;
    };
    int whole = aligned ? vocabulary / SIZE * SIZE : 0;
    for (int at = vocabulary - 1 - threadIdx.x; at >= whole; at -= blockDim.x) {
        store(row + at, gradient(to_f32(row[at]), at));
    }
    for (int at = whole - SIZE - (int)threadIdx.x * SIZE; at >= 0; at -= blockDim.x * SIZE) {
        float x[SIZE];
        load16(row + at, x);
#pragma unroll
        for (int i = 0; i < SIZE; i++) x[i] = gradient(x[i], at + i);
        store16(row + at, x);
    }
}

template <typename T, typename Objective>
__device__ __forceinline__ void with_gradient(T* logits, float* logprobs, float* entropy, float* hits, float* losses,
                                              const int* targets, int vocabulary, int stride,
                                              float inverse_temperature, const Objective& objective) {
    __shared__ Slopes shared;
    i64 r = blockIdx.x;
    T* row = logits + r * stride;
    int target = targets[r];
    bool aligned = rows_aligned(logits, stride);
    Row read = read_row(row, target, vocabulary, aligned, inverse_temperature);
    if (threadIdx.x == 0) {
        Term term = objective.term(read);
        logprobs[r] = read.logprob;
        entropy[r] = read.entropy;
        hits[r] = read.hit;
        losses[r] = term.loss;
        shared = {read.entropy, read.lse, term.dlogprob * inverse_temperature, term.dentropy * inverse_temperature};
    }
    __syncthreads();
    overwrite<Objective::has_entropy>(row, target, vocabulary, aligned, inverse_temperature, shared);
}

// logprobs, entropy, hits: [R] each, written; hits is 1 if the target is one of the largest, else 0.
// logits: [R, stride], of which the first `vocabulary` columns are read (stride >= vocabulary >= 1). targets: [R], each
// in 0..vocabulary.
// Grid R; block 32 if vocabulary <= 1024, 128 if vocabulary <= 8192, else 512 (the order of summation follows from it);
// no dynamic shared memory. 16-byte loads if `logits` is 16-byte aligned and stride * sizeof(T) a multiple of 16; else
// one element a load, with the same bits.
#define FORWARD(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        NAME(float* logprobs, float* entropy, float* hits, const T* logits, const int* targets, int vocabulary,        \
             int stride, float inverse_temperature) {                                                                  \
        i64 r = blockIdx.x;                                                                                            \
        Row row = read_row(logits + r * stride, targets[r], vocabulary, rows_aligned(logits, stride),                  \
                           inverse_temperature);                                                                       \
        if (threadIdx.x > 0) return;                                                                                   \
        logprobs[r] = row.logprob;                                                                                     \
        entropy[r] = row.entropy;                                                                                      \
        hits[r] = row.hit;                                                                                             \
    }
FORWARD(token_logprobs_forward_bf16, bf16)
FORWARD(token_logprobs_forward_f32, float)

// The same numbers to the bit, losses [R]: each row's -scale logprob, and the first `vocabulary` columns of the logits
// overwritten by the gradient of their sum. Grid, block and alignment as forward.
#define LIKELIHOOD(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        NAME(T* logits, float* logprobs, float* entropy, float* hits, float* losses, const int* targets,               \
             int vocabulary, int stride, float inverse_temperature, float scale) {                                     \
        with_gradient(logits, logprobs, entropy, hits, losses, targets, vocabulary, stride, inverse_temperature,       \
                      Likelihood{scale});                                                                              \
    }
LIKELIHOOD(token_logprobs_likelihood_bf16, bf16)
LIKELIHOOD(token_logprobs_likelihood_f32, float)

// As above with losses [R]: each row's scale (policy loss of ppo_loss.cuh) - entropy_scale entropy. old_logprobs,
// advantages: [R]. ratio_low = 1 - cliprange_low and ratio_high = 1 + cliprange_high, rounded once; dual_clip infinite
// for none; scale = 1 / tokens of the optimizer batch, entropy_scale that times the entropy's coefficient.
#define CLIPPED(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        NAME(T* logits, float* logprobs, float* entropy, float* hits, float* losses, const int* targets,               \
             const float* old_logprobs, const float* advantages, int vocabulary, int stride,                           \
             float inverse_temperature, float ratio_low, float ratio_high, float dual_clip, float scale,               \
             float entropy_scale) {                                                                                    \
        Clipped clipped = {old_logprobs, advantages, ratio_low, ratio_high, dual_clip, scale, entropy_scale};          \
        with_gradient(logits, logprobs, entropy, hits, losses, targets, vocabulary, stride, inverse_temperature,       \
                      clipped);                                                                                        \
    }
CLIPPED(token_logprobs_clipped_bf16, bf16)
CLIPPED(token_logprobs_clipped_f32, float)
