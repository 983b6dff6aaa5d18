// The gated activation y = silu(g) u = g s u, s = 1 / (1 + exp(-g)), with gate g and up u side by side in one input of
// 2 F columns; backward: dg = dy u s (1 + g (1 - s)), du = dy g s.
// Limit: 3 N F elements forward, 5 N F backward.
#include "flat.cuh"
#include "sigmoid.cuh"

template <typename T> struct Forward {
    T* out;
    const T* inp;
    int width;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        const T* gate = inp + at + at / width * width;
        float g[K], u[K];
        load_run(gate, g);
        load_run(gate + width, u);
#pragma unroll
        for (int k = 0; k < K; k++) u[k] *= g[k] * sigmoid(g[k]).s;
        store_run(out + at, u);
    }
};

template <typename T> struct Backward {
    T* dinp;
    const T *dout, *inp;
    int width;

    template <int K> __device__ __forceinline__ void run(i64 at) const {
        i64 gate = at + at / width * width;
        float g[K], u[K], dy[K];
        load_run(inp + gate, g);
        load_run(inp + gate + width, u);
        load_run(dout + at, dy);
#pragma unroll
        for (int k = 0; k < K; k++) {
            auto [s, rest] = sigmoid(g[k]);
            float dgate = dy[k] * u[k] * (s * fmaf(g[k], rest, 1.0f));
            u[k] = dy[k] * (g[k] * s);
            g[k] = dgate;
        }
        store_run(dinp + gate, g);
        store_run(dinp + gate + width, u);
    }
};

template <typename T> __device__ __forceinline__ void forward(T* out, const T* inp, int rows, int width) {
    constexpr int V = Vector<T>::size;
    bool vectors = (width % V == 0) & all_aligned(out, inp);
    for_each<V>((i64)rows * width, vectors, Forward<T>{out, inp, width});
}

template <typename T>
__device__ __forceinline__ void backward(T* dinp, const T* dout, const T* inp, int rows, int width) {
    constexpr int V = Vector<T>::size;
    bool vectors = (width % V == 0) & all_aligned(dinp, dout, inp);
    for_each<V>((i64)rows * width, vectors, Backward<T>{dinp, dout, inp, width});
}

// out [rows, width], inp [rows, 2 width] (gate left, up right).
// Grid and block: any of one dimension; ceil(rows width / V / 256) blocks of 256 threads, V = 8 (bf16) or 4 (f32).
// Dynamic shared memory: none. Vectors where width is a multiple of V and all addresses are aligned to 16 bytes; else
// element by element.
extern "C" __global__ void swiglu_forward_bf16(bf16* out, const bf16* inp, int rows, int width) {
    forward(out, inp, rows, width);
}
extern "C" __global__ void swiglu_forward_f32(float* out, const float* inp, int rows, int width) {
    forward(out, inp, rows, width);
}

// dinp [rows, 2 width] (may be inp itself), dout [rows, width], inp [rows, 2 width]. Launch as forward.
extern "C" __global__ void swiglu_backward_bf16(bf16* dinp, const bf16* dout, const bf16* inp, int rows, int width) {
    backward(dinp, dout, inp, rows, width);
}
extern "C" __global__ void swiglu_backward_f32(float* dinp, const float* dout, const float* inp, int rows, int width) {
    backward(dinp, dout, inp, rows, width);
}
