// Sum of n values into one float per block: a tree over shared memory with barriers, then warp shuffles.
extern "C" __global__ void __launch_bounds__(256) block_sum_forward_f32(float* out, const float* in, int n) {
    __shared__ float partial[256];
    int t = threadIdx.x;
    float sum = 0.f;
    for (int i = blockIdx.x * 256 + t; i < n; i += gridDim.x * 256) sum += in[i];
    partial[t] = sum;
    __syncthreads();
    for (int half = 128; half >= 32; half >>= 1) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    if (t < 32) {
        float v = partial[t];
        for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
        if (t == 0) out[blockIdx.x] = v;
    }
}
