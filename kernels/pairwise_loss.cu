// The Bradley-Terry loss of a reward model over pairs of scores, with its gradient and statistics, in one launch of one
// block: softplus(-(c - r - margin)) + centering (c + r)^2 a pair. Limit: 20 bytes a pair.
#include "sum.cuh"

// log(1 + exp(x)) without overflow, and to full precision where it is small.
__device__ __forceinline__ float softplus(float x) { return max_nan(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// dscores [2 pairs]: gradient of the loss; statistics [3]: sums over pairs of loss (with centering), 1 if chosen >
// rejected, chosen - rejected; loss [1] = scale statistics[0]. scores [2 pairs] (chosen, rejected, chosen, ...), margin
// [pairs]. All f32. scale = 1 / pairs of the optimizer batch. No pairs give zeros.
// Grid 1, block min(1024, 32 max(1, ceil(pairs / 32))): the order of the sums depends on it. Dynamic shared memory:
// none. No alignment is required.
extern "C" __global__ void __launch_bounds__(1024)
    pairwise_loss_f32(float* dscores, float* statistics, float* loss, const float* scores, const float* margin,
                      int pairs, float centering, float scale) {
    __shared__ float scratch[2][2][WARP];
    __shared__ int count;
    Sum sums[2] = {};
    int correct = 0;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
        float chosen = scores[2 * (i64)p], rejected = scores[2 * (i64)p + 1];
        float gap = chosen - rejected, total = chosen + rejected, lead = gap - margin[p];
        float pull = -1.0f / (1.0f + expf(lead)), center = 2.0f * centering * total;
        dscores[2 * (i64)p] = (pull + center) * scale;
        dscores[2 * (i64)p + 1] = (center - pull) * scale;
        add_to(sums[0], fmaf(centering * total, total, softplus(-lead)));
        add_to(sums[1], gap);
        correct += chosen > rejected;
    }
    atomicAdd(&count, correct);
    block_totals(sums, scratch);
    if (threadIdx.x == 0) {
        statistics[0] = value_of(sums[0]);
        statistics[1] = (float)count;
        statistics[2] = value_of(sums[1]);
        *loss = scale * statistics[0];
    }
}
