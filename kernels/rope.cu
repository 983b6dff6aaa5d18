// Rotary positions in the half-split form: the pair (x_i, x_(i + HD/2)) of a head is turned by the angle
// position * frequency_i, o_i = x_i cos - x_(i + HD/2) sin, o_(i + HD/2) = x_(i + HD/2) cos + x_i sin; the gradient is
// the turn the other way. Limit: 2 N heads HD elements read and written (in place: only the turned heads), and the
// N rows of the table that are used.
#include "flat.cuh"
#include "rope.cuh"

// Heads that a thread turns by the same angles, which it reads once.
#define SHARED_ANGLES 4

template <typename T> struct Rope {
    T* out;
    const T* inp;
    const float* table;
    const int* positions;
    int heads, turned, half, back;

    __device__ __forceinline__ int groups() const { return (heads + SHARED_ANGLES - 1) / SHARED_ANGLES; }

    // `index` counts the pairs of `groups` heads of all tokens; the heads `groups` further on take the same turn.
    template <int K> __device__ __forceinline__ void run(i64 index) const {
        int row = groups() * half;
        i64 token = index / row;
        int in_row = (int)(index - token * row), group = in_row / half, i = in_row - group * half;
        const float* angles = table + (i64)positions[token] * 2 * half + i;
        float cosine[K], sine[K];
        load_run(angles, cosine);
        load_run(angles + half, sine);
        if (back) {
#pragma unroll
            for (int k = 0; k < K; k++) sine[k] = -sine[k];
        }
        int head = group;
#pragma unroll 1
        for (; head < turned; head += groups()) {
            i64 at = (token * heads + head) * 2 * half + i;
            float a[K], b[K], x[K], y[K];
            load_run(inp + at, x);
            load_run(inp + at + half, y);
            turn(a, b, x, y, cosine, sine);
            store_run(out + at, a);
            store_run(out + at + half, b);
        }
        if (out == inp) return;
#pragma unroll 1
        for (; head < heads; head += groups()) {
            i64 at = (token * heads + head) * 2 * half + i;
            float x[K], y[K];
            load_run(inp + at, x);
            load_run(inp + at + half, y);
            store_run(out + at, x);
            store_run(out + at + half, y);
        }
    }
};

template <typename T>
__device__ __forceinline__ void rope(T* out, const T* inp, const float* table, const int* positions, int tokens,
                                     int heads, int turned, int size, int back) {
    constexpr int V = Vector<T>::size;
    int half = size / 2;
    bool vectors = (half % V == 0) & all_aligned(out, inp, table);
    Rope<T> work = {out, inp, table, positions, heads, turned, half, back};
    for_each<V>((i64)tokens * work.groups() * half, vectors, work);
}

// out, inp [tokens, heads, size] (out may be inp itself, else they do not overlap), table f32 [positions, size]
// (size / 2 cosines, then size / 2 sines), positions [tokens], each a row of the table. size is even; the first
// `turned` heads of a row are turned, the others copied; back = 1 turns the other way.
// Grid and block: any of one dimension; ceil(tokens ceil(heads / 4) size / 2 / V / 256) blocks of 256 threads give each
// thread its vectors of four heads, V = 8 (bf16) or 4 (f32). Dynamic shared memory: none. Vectors where size / 2 is a
// multiple of V and out, inp, table are aligned to 16 bytes; else element by element.
extern "C" __global__ void rope_bf16(bf16* out, const bf16* inp, const float* table, const int* positions, int tokens,
                                     int heads, int turned, int size, int back) {
    rope(out, inp, table, positions, tokens, heads, turned, size, back);
}
extern "C" __global__ void rope_f32(float* out, const float* inp, const float* table, const int* positions, int tokens,
                                    int heads, int turned, int size, int back) {
    rope(out, inp, table, positions, tokens, heads, turned, size, back);
}
