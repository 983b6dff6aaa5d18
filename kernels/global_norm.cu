// The Euclidean norm of a flat f32 buffer, whether all of it is finite, and the factor that clips it, all left on the
// device. Pieces of 16384 elements are squared and summed in f32, the pieces' sums in f64, in one order whatever the
// grid. Limit: 4 bytes an element.
#include "vector.cuh"

#define THREADS 256
#define PIECE (64 * THREADS)
#define FINISH_THREADS 1024

// partials [ceil(n / 16384)] f32: the sum of squares of each piece of inp [n]. Any alignment is correct; 16-byte
// accesses need inp on 16 bytes.
// Grid: any, at best min(ceil(n / 16384), 8 times the number of multiprocessors); block: 256; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS)
    global_norm_forward_f32(float* __restrict__ partials, const float* __restrict__ inp, i64 n) {
    __shared__ float scratch[THREADS / WARP];
    bool aligned = in_vectors<float>(0, inp);
    for (i64 piece = blockIdx.x; piece * PIECE < n; piece += gridDim.x) {
        const float* from = inp + piece * PIECE;
        int left = n - piece * PIECE < PIECE ? (int)(n - piece * PIECE) : PIECE;
        // Four sums, one for each element of a vector, shorten the chain of additions.
        float sum[4] = {};
#pragma unroll 4
        for (int at = threadIdx.x * 4; at < left; at += THREADS * 4) {
            float x[4];
            load_vector(x, from + at, left - at, aligned);
#pragma unroll
            for (int j = 0; j < 4; j++) sum[j] = fmaf(x[j], x[j], sum[j]);
        }
        float total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
        if (threadIdx.x == 0) partials[piece] = total;
    }
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        int low = __shfl_xor_sync(FULL_MASK, __double2loint(x), step);
        int high = __shfl_xor_sync(FULL_MASK, __double2hiint(x), step);
        x += __hiloint2double(high, low);
    }
    return x;
}

// clip [3] f32 = scale, flag, norm, from partials [count] of global_norm_forward_f32: norm = sqrt(their sum); flag = 1
// where the norm is finite, else 0; scale = min(1, max_grad_norm / (norm + 1e-6)), or 1 where max_grad_norm is 0. An
// element whose square overflows f32 makes the norm infinite. count may be 0.
// Grid: 1; block: 1024; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS)
    global_norm_finish_f32(float* __restrict__ clip, const float* __restrict__ partials, int count,
                           float max_grad_norm) {
    __shared__ double sums[FINISH_THREADS / WARP];
    double sum = 0.0;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += FINISH_THREADS) sum += partials[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    double norm = sqrt(warp_sum(sums[threadIdx.x]));
    if (threadIdx.x != 0) return;
    double ratio = max_grad_norm / (norm + 1e-6);
    // Written so that a NaN stays.
    clip[0] = max_grad_norm > 0.0f ? (float)(ratio > 1.0 ? 1.0 : ratio) : 1.0f;
    clip[1] = norm < (double)infinity() ? 1.0f : 0.0f;
    clip[2] = (float)norm;
}
