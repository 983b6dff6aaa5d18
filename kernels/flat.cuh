// Loops over flat arrays: 16 bytes a thread where addresses and widths allow it, else one element at a time.
#pragma once
#include "common.cuh"

// Whether vectors can be read and written at all these addresses.
template <typename... At> __device__ __forceinline__ bool all_aligned(At... at) {
    return ((((u64)at) | ...) & 15) == 0;
}

// Calls work.run<K>(i) for elements i .. i + K - 1 until each of n elements had its turn: V at a time if `vectors`,
// with a rest of fewer than V one at a time. Right for every grid and block (of one dimension);
// ceil(n / V / 256) blocks of 256 give each thread one vector.
template <int V, typename Work> __device__ __forceinline__ void for_each(i64 n, bool vectors, Work work) {
    i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x, threads = (i64)gridDim.x * blockDim.x;
    i64 whole = vectors ? n / V : 0;
    // Unrolled, a loop would begin with a division of 64 bits, to save nothing where it has one turn.
#pragma unroll 1
    for (i64 i = thread; i < whole; i += threads) work.template run<V>(i * V);
#pragma unroll 1
    for (i64 i = whole * V + thread; i < n; i += threads) work.template run<1>(i);
}

// One element, or K neighbouring ones that start at a multiple of 16 bytes (four bfloat16: of 8).
template <int K> __device__ __forceinline__ void load_run(const float* at, float (&x)[K]) {
    if constexpr (K == 1) {
        x[0] = *at;
    } else {
#pragma unroll
        for (int i = 0; i < K; i += 4) {
            float4 v = *reinterpret_cast<const float4*>(at + i);
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
    }
}
template <int K> __device__ __forceinline__ void load_run(const bf16* at, float (&x)[K]) {
    if constexpr (K == 1) {
        x[0] = to_f32(*at);
    } else if constexpr (K == 4) {
        uint2 v = *reinterpret_cast<const uint2*>(at);
        x[0] = low_bf16(v.x), x[1] = high_bf16(v.x), x[2] = low_bf16(v.y), x[3] = high_bf16(v.y);
    } else {
        load16(at, x);
    }
}

// One store: what is written as a struct the compiler takes apart, and does not always put together again.
__device__ __forceinline__ void store_quad(void* at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
template <int K> __device__ __forceinline__ void store_run(float* at, const float (&x)[K]) {
    if constexpr (K == 1) {
        *at = x[0];
    } else {
        store_quad(at, __float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
    }
}
template <int K> __device__ __forceinline__ void store_run(bf16* at, const float (&x)[K]) {
    if constexpr (K == 1) {
        store(at, x[0]);
    } else if constexpr (K == 4) {
        *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
    } else {
        store_quad(at, pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
    }
}
