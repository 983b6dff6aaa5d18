// Sixteen bytes of elements at a time, whether or not their address is aligned. Which elements a thread takes does not
// depend on the alignment, so neither does the order of a sum.
#pragma once
#include "common.cuh"

// Whether rows of `width` elements of T at these addresses lie on 16-byte borders; null does. With several widths, give
// their bitwise or.
template <typename T, typename... P> __device__ __forceinline__ bool in_vectors(i64 width, const P*... at) {
    return (((u64)width * sizeof(T) | ... | (u64)at) & 15) == 0;
}

// x = the first `count` elements at `at` (at most V), zeros after them.
template <typename T, int V>
__device__ __forceinline__ void load_vector(float (&x)[V], const T* at, int count, bool aligned) {
    static_assert(V == Vector<T>::size, "a vector is 16 bytes");
    if (aligned && count >= V) {
        load16(at, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; j++) x[j] = j < count ? to_f32(at[j]) : 0.0f;
}

// The first `count` elements of x (at most V) to `at`.
template <typename T, int V>
__device__ __forceinline__ void store_vector(T* at, const float (&x)[V], int count, bool aligned) {
    static_assert(V == Vector<T>::size, "a vector is 16 bytes");
    if (aligned && count >= V) {
        store16(at, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (j < count) store(at + j, x[j]);
    }
}

// Four elements as they lie in memory, for a thread that holds four columns in either type.
template <typename T> struct Quad;
template <> struct Quad<float> {
    typedef float4 Raw;
};
template <> struct Quad<bf16> {
    typedef uint2 Raw;
};

__device__ __forceinline__ void unpack(float4 raw, float (&x)[4]) {
    x[0] = raw.x, x[1] = raw.y, x[2] = raw.z, x[3] = raw.w;
}
__device__ __forceinline__ void unpack(uint2 raw, float (&x)[4]) {
    x[0] = low_bf16(raw.x), x[1] = high_bf16(raw.x), x[2] = low_bf16(raw.y), x[3] = high_bf16(raw.y);
}

__device__ __forceinline__ void store_quad(float* at, const float (&x)[4]) { store16(at, x); }
__device__ __forceinline__ void store_quad(bf16* at, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
}

// The first `count` of four elements; `aligned`: `at` is on the border of a quad.
template <typename T>
__device__ __forceinline__ void store_quad(T* at, const float (&x)[4], int count, bool aligned) {
    if (aligned && count >= 4) {
        store_quad(at, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (j < count) store(at + j, x[j]);
    }
}
