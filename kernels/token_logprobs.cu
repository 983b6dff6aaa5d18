// Log-softmax, gather and entropy of rows of logits, with z = logits * inverse_temperature:
// logprob = z_y - logsumexp(z), entropy = logsumexp(z) - sum softmax(z) z, in one pass with a running maximum. Backward
// overwrites the logits: dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy), dlogits = dz *
// inverse_temperature. Limits for bf16: 2 R V bytes forward, 4 R V bytes backward. A logit of -inf is a masked token:
// its probability is 0 and so are its terms. A NaN shows in everything of its row but the hit.
#include "logits.cuh"

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

template <typename T>
__device__ __forceinline__ void forward(float* logprobs, float* entropy, float* hits, float* lse, const T* logits,
                                        const int* targets, int vocabulary, int stride, float inverse_temperature) {
    const int SIZE = Vector<T>::size;
    i64 r = blockIdx.x;
    const T* row = logits + r * stride;
    bool aligned = rows_aligned(logits, stride);
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
    if (threadIdx.x > 0) return;
    float target = to_f32(row[targets[r]]), log_sum = logf(s.sum);
    logprobs[r] = (target - s.largest) * inverse_temperature - log_sum;
    entropy[r] = log_sum - LN_2 * (s.weighted / s.sum);
    hits[r] = target == s.largest ? 1.0f : 0.0f;
    lse[r] = fmaf(s.largest, inverse_temperature, log_sum);
}

template <typename T>
__device__ __forceinline__ void backward(T* logits, const int* targets, const float* dlogprobs, const float* dentropy,
                                         const float* entropy, const float* lse, int vocabulary, int stride,
                                         float inverse_temperature) {
    const int SIZE = Vector<T>::size;
    i64 r = blockIdx.x;
    T* row = logits + r * stride;
    int target = targets[r];
    float up = dlogprobs[r] * inverse_temperature;
    float spread = dentropy ? dentropy[r] * inverse_temperature : 0.0f;
    float row_entropy = entropy[r], row_lse = lse[r];
    auto gradient = [&](float x, int j) {
        float logp = max_nan(fmaf(x, inverse_temperature, -row_lse), -1024.0f);
        float p = exp2_fast(logp * LOG2_E);
        float dz = -p * fmaf(spread, logp + row_entropy, up);
        return j == target ? dz + up : dz;
    };
    int whole = rows_aligned(logits, stride) ? vocabulary / SIZE * SIZE : 0;
    for (int at = threadIdx.x * SIZE; at < whole; at += blockDim.x * SIZE) {
        float x[SIZE];
        load16(row + at, x);
#pragma unroll
        for (int i = 0; i < SIZE; i++) x[i] = gradient(x[i], at + i);
        store16(row + at, x);
    }
    for (int at = whole + threadIdx.x; at < vocabulary; at += blockDim.x) {
        store(row + at, gradient(to_f32(row[at]), at));
    }
}

// logprobs, entropy, hits, lse: [R] each, written; hits is 1 if the target is one of the largest, else 0.
// logits: [R, stride], of which the first `vocabulary` columns are read (stride >= vocabulary >= 1). targets: [R], each
// in 0..vocabulary.
// Grid R; block 32 if vocabulary <= 1024, 128 if vocabulary <= 8192, else 512 (the order of summation follows from it);
// no dynamic shared memory. 16-byte loads if `logits` is 16-byte aligned and stride * sizeof(T) a multiple of 16; else
// one element a load, with the same bits.
#define FORWARD(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        NAME(float* logprobs, float* entropy, float* hits, float* lse, const T* logits, const int* targets,            \
             int vocabulary, int stride, float inverse_temperature) {                                                  \
        forward(logprobs, entropy, hits, lse, logits, targets, vocabulary, stride, inverse_temperature);               \
    }
FORWARD(token_logprobs_forward_bf16, bf16)
FORWARD(token_logprobs_forward_f32, float)

// logits: [R, stride], read, and the first `vocabulary` columns overwritten by their gradient. targets: [R].
// dlogprobs: [R]; dentropy: [R] or null (0). entropy, lse: [R], from forward. Grid, block and alignment as forward, but
// any block of whole warps up to 512 gives the same bits.
#define BACKWARD(NAME, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        NAME(T* logits, const int* targets, const float* dlogprobs, const float* dentropy, const float* entropy,       \
             const float* lse, int vocabulary, int stride, float inverse_temperature) {                                \
        backward(logits, targets, dlogprobs, dentropy, entropy, lse, vocabulary, stride, inverse_temperature);         \
    }
BACKWARD(token_logprobs_backward_bf16, bf16)
BACKWARD(token_logprobs_backward_f32, float)
