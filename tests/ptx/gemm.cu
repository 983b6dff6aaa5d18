// C[m, n] = A[m, k] * B[n, k]^T, bf16 in, f32 out: 64 x 64 tiles, 4 warps, K in steps of 64, cp.async double buffering.
#include "mma.cuh"
__device__ __forceinline__ void load_tile(u32 s, const bf16* g, int row0, int rows, int k0, int k) {
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
        int r = i >> 3, c = i & 7;
        bool in = row0 + r < rows && k0 + c * 8 < k;
        cp16(s + swz(r, c), g + (in ? (long long)(row0 + r) * k + k0 + c * 8 : 0), in);
    }
}
extern "C" __global__ void __launch_bounds__(128)
gemm_nt_forward_bf16(float* __restrict__ out, const bf16* __restrict__ a, const bf16* __restrict__ b, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char smem[];
    u32 base = saddr(smem);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    float acc[8][4] = {};
    int steps = (k + 63) / 64;
    load_tile(base, a, m0, m, 0, k);
    load_tile(base + 8192, b, n0, n, 0, k);
    cp_commit();
    for (int s = 0; s < steps; s++) {
        u32 cur = base + (s & 1) * 16384, nxt = base + ((s + 1) & 1) * 16384;
        if (s + 1 < steps) {
            load_tile(nxt, a, m0, m, (s + 1) * 64, k);
            load_tile(nxt + 8192, b, n0, n, (s + 1) * 64, k);
        }
        cp_commit();
        cp_wait<1>();
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < 4; kk++) {
            u32 fa[4];
            ldsm4(fa, cur + swz(warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 fb[4];
                ldsm4(fb, cur + 8192 + swz(j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
                mma16816(acc[2 * j], fa, fb[0], fb[1]);
                mma16816(acc[2 * j + 1], fa, fb[2], fb[3]);
            }
        }
        __syncthreads();
    }
    int r = m0 + warp * 16 + (lane >> 2), c = n0 + (lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int rr = r + (e >> 1) * 8, cc = c + j * 8 + (e & 1);
            if (rr < m && cc < n) out[(long long)rr * n + cc] = acc[j][e];
        }
}
