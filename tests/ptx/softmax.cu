// Row softmax in f32 with a block of 128: online maximum and sum, shuffles, shared memory for the warps' partials.
extern "C" __global__ void __launch_bounds__(128) softmax_forward_f32(float* out, const float* inp, int c) {
    __shared__ float maxs[4], sums[4];
    const float* x = inp + (long long)blockIdx.x * c;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float m = __int_as_float(0xff800000), s = 0.f;
    for (int i = threadIdx.x; i < c; i += 128) {
        float v = x[i], n = fmaxf(m, v);
        s = s * __expf(m - n) + __expf(v - n);
        m = n;
    }
    for (int d = 16; d; d >>= 1) {
        float om = __shfl_xor_sync(~0u, m, d), os = __shfl_xor_sync(~0u, s, d);
        float n = fmaxf(m, om);
        float a = m == n ? 1.f : __expf(m - n), b = om == n ? 1.f : __expf(om - n);
        s = s * a + os * b;
        m = n;
    }
    if (lane == 0) { maxs[warp] = m; sums[warp] = s; }
    __syncthreads();
    float top = fmaxf(fmaxf(maxs[0], maxs[1]), fmaxf(maxs[2], maxs[3])), total = 0.f;
    for (int w = 0; w < 4; w++) total += sums[w] * __expf(maxs[w] - top);
    for (int i = threadIdx.x; i < c; i += 128) out[(long long)blockIdx.x * c + i] = __expf(x[i] - top) / total;
}
