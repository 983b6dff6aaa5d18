// Attention forward, head size 64, [T, NH, 64] bf16: 64 x 64 tiles, 4 warps, online softmax, K and V by cp.async in two
// stages.
#include "mma.cuh"
__device__ __forceinline__ void load_rows(u32 s, const bf16* g, int row0, int t, int stride) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int idx = threadIdx.x + i * 128, r = idx >> 3, c = idx & 7;
        bool in = row0 + r < t;
        cp16(s + swz(r, c), g + (in ? (long long)(row0 + r) * stride + c * 8 : 0), in);
    }
}
__device__ __forceinline__ float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
extern "C" __global__ void __launch_bounds__(128)
attention_forward_bf16(bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ q,
                       const bf16* __restrict__ k, const bf16* __restrict__ v, int t, int nh, int nkv, int causal, float scale) {
    extern __shared__ __align__(128) unsigned char smem[];
    u32 sq = saddr(smem), skv = sq + 8192;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, h = blockIdx.y, q0 = blockIdx.x * 64, hk = h / (nh / nkv);
    const bf16 *gq = q + h * 64, *gk = k + hk * 64, *gv = v + hk * 64;
    int tiles = (t + 63) / 64;
    if (causal) tiles = min(tiles, (int)blockIdx.x + 1);
    load_rows(sq, gq, q0, t, nh * 64);
    load_rows(skv, gk, 0, t, nkv * 64);
    load_rows(skv + 8192, gv, 0, t, nkv * 64);
    cp_commit();
    float o[8][4] = {}, m[2], l[2] = {0.f, 0.f};
    m[0] = m[1] = __int_as_float(0xff800000);
    u32 fq[4][4];
    float c2 = scale * 1.44269504f;
    for (int j = 0; j < tiles; j++) {
        u32 sk = skv + (j & 1) * 16384, sv = sk + 8192, nx = skv + ((j + 1) & 1) * 16384;
        if (j + 1 < tiles) {
            load_rows(nx, gk, (j + 1) * 64, t, nkv * 64);
            load_rows(nx + 8192, gv, (j + 1) * 64, t, nkv * 64);
        }
        cp_commit();
        cp_wait<1>();
        __syncthreads();
        if (j == 0) {
#pragma unroll
            for (int kk = 0; kk < 4; kk++) ldsm4(fq[kk], sq + swz(warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
        }
        float s[8][4] = {};
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                u32 fb[4];
                ldsm4(fb, sk + swz(n * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
                mma16816(s[2 * n], fq[kk], fb[0], fb[1]);
                mma16816(s[2 * n + 1], fq[kk], fb[2], fb[3]);
            }
        int row = q0 + warp * 16 + (lane >> 2), col = j * 64 + (lane & 3) * 2;
        if ((causal && j == (int)blockIdx.x) || (j + 1) * 64 > t) {
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int cc = col + n * 8 + (e & 1), rr = row + (e >> 1) * 8;
                    if (cc >= t || (causal && cc > rr)) s[n][e] = __int_as_float(0xff800000);
                }
        }
        float alpha[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float mx = m[r];
#pragma unroll
            for (int n = 0; n < 8; n++) mx = fmaxf(mx, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
            mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 2));
            base[r] = mx == __int_as_float(0xff800000) ? 0.f : mx * c2;
            alpha[r] = ex2(fmaf(m[r], c2, -base[r]));
            m[r] = mx;
            l[r] *= alpha[r];
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] = ex2(fmaf(s[n][e], c2, -base[e >> 1]));
                l[e >> 1] += s[n][e];
                o[n][e] *= alpha[e >> 1];
            }
#pragma unroll
        for (int kk = 0; kk < 4; kk++) {
            u32 p[4] = {pack(s[2 * kk][0], s[2 * kk][1]), pack(s[2 * kk][2], s[2 * kk][3]),
                        pack(s[2 * kk + 1][0], s[2 * kk + 1][1]), pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                u32 fb[4];
                ldsm4t(fb, sv + swz(kk * 16 + (lane & 15), n * 2 + (lane >> 4)));
                mma16816(o[2 * n], p, fb[0], fb[1]);
                mma16816(o[2 * n + 1], p, fb[2], fb[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += __shfl_xor_sync(~0u, l[r], 1);
        l[r] += __shfl_xor_sync(~0u, l[r], 2);
        int row = q0 + warp * 16 + (lane >> 2) + r * 8;
        float inv = l[r] == 0.f ? 0.f : 1.f / l[r];
        if (row < t) {
            if ((lane & 3) == 0) lse[h * t + row] = m[r] * scale + __logf(l[r]);
#pragma unroll
            for (int n = 0; n < 8; n++)
                *(u32*)(out + (long long)row * nh * 64 + h * 64 + n * 8 + (lane & 3) * 2) = pack(o[n][2 * r] * inv, o[n][2 * r + 1] * inv);
        }
    }
}
