// What every kernel stands on: integer names, bfloat16 as a storage type, 16-byte accesses, and reductions over a warp
// and a block in one fixed order. No toolkit header is included, so that NVRTC alone compiles the kernels.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A bfloat16 in memory; all arithmetic is f32.
struct bf16 {
    u16 bits;
};

#define WARP 32
#define FULL_MASK 0xffffffffu

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Two floats as packed bfloat16, round to nearest even, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ float low_bf16(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

__device__ __forceinline__ void store(float* at, float x) { *at = x; }
__device__ __forceinline__ void store(bf16* at, float x) { at->bits = (u16)pack_bf16(x, 0.0f); }

// x as it will be read back from a tensor of T.
template <typename T> __device__ __forceinline__ float rounded(float x);
template <> __device__ __forceinline__ float rounded<float>(float x) { return x; }
template <> __device__ __forceinline__ float rounded<bf16>(float x) { return low_bf16(pack_bf16(x, 0.0f)); }

// Elements of T in 16 bytes.
template <typename T> struct Vector;
template <> struct Vector<float> {
    static const int size = 4;
};
template <> struct Vector<bf16> {
    static const int size = 8;
};

__device__ __forceinline__ bool is_aligned(const void* at) { return ((u64)at & 15) == 0; }

// 16 bytes at an aligned address, as floats.
__device__ __forceinline__ void load16(const float* at, float (&out)[4]) {
    float4 v = *reinterpret_cast<const float4*>(at);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
__device__ __forceinline__ void load16(const bf16* at, float (&out)[8]) {
    uint4 v = *reinterpret_cast<const uint4*>(at);
    out[0] = low_bf16(v.x), out[1] = high_bf16(v.x), out[2] = low_bf16(v.y), out[3] = high_bf16(v.y);
    out[4] = low_bf16(v.z), out[5] = high_bf16(v.z), out[6] = low_bf16(v.w), out[7] = high_bf16(v.w);
}
__device__ __forceinline__ void store16(float* at, const float (&x)[4]) {
    *reinterpret_cast<float4*>(at) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void store16(bf16* at, const float (&x)[8]) {
    uint4 v = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
    *reinterpret_cast<uint4*>(at) = v;
}

// The larger of two; NaN if either is, so that a NaN cannot vanish in a reduction.
__device__ __forceinline__ float max_nan(float a, float b) {
    float c;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}
__device__ __forceinline__ float min_nan(float a, float b) {
    float c;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}

// 2^x and log2(x) of the special function unit, 2 ulp; subnormals are zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = max_nan(x, __shfl_xor_sync(FULL_MASK, x, step));
    return x;
}

// The sum over a block of whole warps, known to all its threads. `scratch` holds one float a warp; a barrier stands
// before its first and after its last use, so that calls may follow each other.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    int warps = blockDim.x / WARP;
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < warps; w++) sum += scratch[w];
    __syncthreads();
    return sum;
}
__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    int warps = blockDim.x / WARP;
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float largest = scratch[0];
    for (int w = 1; w < warps; w++) largest = max_nan(largest, scratch[w]);
    __syncthreads();
    return largest;
}
