// RMS norm over bf16 rows, one warp a row, eight elements a lane: 16-byte accesses and butterfly shuffles.
typedef unsigned short bf16;
typedef unsigned int u32;
__device__ __forceinline__ float lo(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float hi(u32 x) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float l, float h) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(h), "f"(l));
    return r;
}
extern "C" __global__ void __launch_bounds__(128)
rms_norm_forward_bf16(bf16* __restrict__ out, float* __restrict__ rstd, const bf16* __restrict__ inp,
                      const bf16* __restrict__ weight, int n, int c, float eps) {
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= n) return;
    const uint4* x = reinterpret_cast<const uint4*>(inp + (long long)row * c);
    const uint4* w = reinterpret_cast<const uint4*>(weight);
    uint4* y = reinterpret_cast<uint4*>(out + (long long)row * c);
    float s = 0.f;
    for (int i = lane; i < c / 8; i += 32) {
        uint4 v = x[i];
        u32 p[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; k++) s = fmaf(lo(p[k]), lo(p[k]), fmaf(hi(p[k]), hi(p[k]), s));
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffffu, s, d);
    float r = rsqrtf(s / (float)c + eps);
    if (lane == 0) rstd[row] = r;
    for (int i = lane; i < c / 8; i += 32) {
        uint4 v = x[i], g = w[i];
        u32 p[4] = {v.x, v.y, v.z, v.w}, q[4] = {g.x, g.y, g.z, g.w};
#pragma unroll
        for (int k = 0; k < 4; k++) p[k] = pack(lo(p[k]) * r * lo(q[k]), hi(p[k]) * r * hi(q[k]));
        y[i] = make_uint4(p[0], p[1], p[2], p[3]);
    }
}
