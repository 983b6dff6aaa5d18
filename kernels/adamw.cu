// AdamW over one flat buffer: g = scale grad, m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
// w = keep w - rate m / (sqrt(v) / root + eps), where keep = 1 - lr decay for the elements that decay and 1 for the
// others. Limit: 30 bytes an element (28 without the bf16 copy).
#include "vector.cuh"

// weights, m, v [n] f32 are updated in place from grads [n] f32; copy [n] bf16 (or null) gets the rounded weights.
// clip [2] f32 on the device: scale, and a flag; where the flag is 0 nothing is changed (global_norm_finish_f32 writes
// both). Elements before `decayed` (0..n) are multiplied by keep. Scalars, computed in f64 and rounded, for step t from
// 1: rest1 = 1 - beta1, rest2 = 1 - beta2, rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t),
// keep = 1 - lr weight_decay. The arithmetic is that of cpu/adamw.rs without fused operations, to the bit.
// Any alignment is correct; 16-byte accesses need all bases on 16 bytes. No array overlaps another.
// Grid: any, at best min(ceil(n / 1024), 16 times the number of multiprocessors); block: 256; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
    adamw_f32(float* __restrict__ weights, bf16* __restrict__ copy, float* __restrict__ m, float* __restrict__ v,
              const float* __restrict__ grads, const float* __restrict__ clip, i64 n, i64 decayed, float beta1,
              float beta2, float rest1, float rest2, float rate, float root, float eps, float keep) {
    if (clip[1] == 0.0f) return;
    float scale = clip[0];
    bool aligned = in_vectors<float>(0, weights, copy, m, v, grads);
    i64 stride = (i64)gridDim.x * blockDim.x * 4;
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += stride) {
        int count = n - i < 4 ? (int)(n - i) : 4;
        float w[4], first[4], second[4], g[4];
        load_vector(w, weights + i, count, aligned);
        load_vector(first, m + i, count, aligned);
        load_vector(second, v + i, count, aligned);
        load_vector(g, grads + i, count, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float grad = g[j] * scale;
            first[j] = beta1 * first[j] + rest1 * grad;
            second[j] = beta2 * second[j] + rest2 * grad * grad;
            float kept = i + j < decayed ? w[j] * keep : w[j];
            w[j] = kept - rate * first[j] / (sqrtf(second[j]) / root + eps);
        }
        store_vector(weights + i, w, count, aligned);
        store_vector(m + i, first, count, aligned);
        store_vector(v + i, second, count, aligned);
        if (copy) store_quad(copy + i, w, count, aligned);
    }
}
