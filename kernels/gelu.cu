// GELU in GPT-2's tanh form, y = x/2 (1 + tanh(z/2)) = x s, s = 1 / (1 + exp(-z)), z = 2 sqrt(2/pi) (x + 0.044715 x^3);
// backward: dx = dy (s + x s (1 - s) z'). Limit: 2 n elements forward, 3 n backward.
#include "flat.cuh"
#include "sigmoid.cuh"

#define CUBIC 0.044715f
// 2 sqrt(2/pi)
#define SCALE 1.5957691216057308f

__device__ __forceinline__ Sigmoid gate(float x) { return sigmoid(SCALE * fmaf(CUBIC * x * x, x, x)); }

template <typename T> struct Forward {
    T* out;
    const T* inp;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        float x[K];
        load_run(inp + at, x);
#pragma unroll
        for (int k = 0; k < K; k++) x[k] *= gate(x[k]).s;
        store_run(out + at, x);
    }
};

template <typename T> struct Backward {
    T* dinp;
    const T *dout, *inp;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        float x[K], dy[K];
        load_run(inp + at, x);
        load_run(dout + at, dy);
#pragma unroll
        for (int k = 0; k < K; k++) {
            auto [s, rest] = gate(x[k]);
            float bend = x[k] * s * rest;
            // Far out the bend is 0 and the slope may be infinite: their product is 0.
            if (bend != 0.0f) bend *= SCALE * fmaf(3.0f * CUBIC * x[k], x[k], 1.0f);
            dy[k] *= s + bend;
        }
        store_run(dinp + at, dy);
    }
};

template <typename T> __device__ __forceinline__ void forward(T* out, const T* inp, i64 n) {
    for_each<Vector<T>::size>(n, all_aligned(out, inp), Forward<T>{out, inp});
}
template <typename T> __device__ __forceinline__ void backward(T* dinp, const T* dout, const T* inp, i64 n) {
    for_each<Vector<T>::size>(n, all_aligned(dinp, dout, inp), Backward<T>{dinp, dout, inp});
}

// out, inp [n] (out may be inp itself).
// Grid and block: any of one dimension; ceil(n / V / 256) blocks of 256 threads, V = 8 (bf16) or 4 (f32). Dynamic
// shared memory: none. Vectors where all addresses are aligned to 16 bytes; else element by element.
extern "C" __global__ void gelu_forward_bf16(bf16* out, const bf16* inp, i64 n) { forward(out, inp, n); }
extern "C" __global__ void gelu_forward_f32(float* out, const float* inp, i64 n) { forward(out, inp, n); }

// dinp, dout, inp [n] (dinp may be dout or inp). Launch as forward.
extern "C" __global__ void gelu_backward_bf16(bf16* dinp, const bf16* dout, const bf16* inp, i64 n) {
    backward(dinp, dout, inp, n);
}
extern "C" __global__ void gelu_backward_f32(float* dinp, const float* dout, const float* inp, i64 n) {
    backward(dinp, dout, inp, n);
}
