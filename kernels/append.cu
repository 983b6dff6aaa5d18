// New tokens on their way into the cache of keys and values, in front of attention: queries and keys are normalised
// head by head where weights are given (y = x w / sqrt(mean(x^2) + eps), rounded) and turned by their positions' angles
// where a table is given; keys and values go into the cache, queries back to where they were. Bits are those of
// rms_norm.cu and rope.cu. Limit: qkv read once, everything written once, and the angles.
#include "flat.cuh"
#include "rms.cuh"
#include "rope.cuh"

// Heads that a thread turns by the same angles, which it reads once.
#define SHARED_ANGLES 4

template <typename T> struct Append {
    T *keys, *values, *qkv;
    const float* table;
    const int *slots, *positions;
    int nh, nkv, half, capacity;

    __device__ __forceinline__ int groups() const { return (nh + 2 * nkv + SHARED_ANGLES - 1) / SHARED_ANGLES; }

    // `index` counts the pairs of `groups` heads of all tokens; the heads `groups` further on take the same turn.
    template <int K> __device__ __forceinline__ void run(i64 index) const {
        int row = groups() * half;
        i64 token = index / row;
        int in_row = (int)(index - token * row), group = in_row / half, i = in_row - group * half;
        int position = positions[token];
        i64 slot = (i64)slots[token] * nkv;
        float cosine[K], sine[K];
        if (table) {
            const float* angles = table + (i64)position * 2 * half + i;
            load_run(angles, cosine);
            load_run(angles + half, sine);
        }
#pragma unroll 1
        for (int head = table ? group : nh + group; head < nh + 2 * nkv; head += groups()) {
            T* at = qkv + (token * (nh + 2 * nkv) + head) * 2 * half + i;
            float x[K], y[K];
            load_run(at, x);
            load_run(at + half, y);
            if (table && head < nh + nkv) {
                float a[K], b[K];
                turn(a, b, x, y, cosine, sine);
#pragma unroll
                for (int k = 0; k < K; k++) x[k] = a[k], y[k] = b[k];
            }
            if (head >= nh) {
                T* cache = head < nh + nkv ? keys : values;
                at = cache + ((slot + (head - nh) % nkv) * capacity + position) * 2 * half + i;
            }
            store_run(at, x);
            store_run(at + half, y);
        }
    }
};

template <typename T> __device__ __forceinline__ void append(i64 tokens, Append<T> work) {
    constexpr int V = Vector<T>::size;
    bool vectors = work.half % V == 0 && (!work.table || all_aligned(work.table));
    for_each<V>(tokens * work.groups() * work.half, vectors, work);
}

// A team a head; its threads hold KEPT elements each, half of them the partners of the others.
template <typename T>
__device__ __forceinline__ void append_normed(T* keys, T* values, T* qkv, const T* query_weight, const T* key_weight,
                                              const float* table, const int* slots, const int* positions, i64 tokens,
                                              int nh, int nkv, int hd, int capacity, float eps) {
    constexpr int V = Vector<T>::size, N = VECTORS<T>;
    Team team = team_of(hd);
    int heads = nh + 2 * nkv;
    i64 row = (i64)blockIdx.x * team.count + team.index;
    // A team without a row holds an empty one: all threads must reach the shuffles.
    bool live = row < tokens * heads;
    i64 token = live ? row / heads : 0;
    int head = live ? (int)(row - token * heads) : 0, position = positions[token];
    uint4 x_raw[N], w_raw[N];
    load_row(x_raw, qkv + (live ? row * hd : 0), team, live ? hd : 0, true);
    load_row(w_raw, head < nh ? query_weight : key_weight, team, hd, true);
    float x[N][V], w[N][V];
    unpack_row<T>(x, x_raw);
    float r = rms_scale(x, team, hd, eps, nullptr);
    if (!live) return;
    if (head < nh + nkv) {
        unpack_row<T>(w, w_raw);
        const float* angles = table + (i64)position * hd;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float a[V], b[V], cosine[V], sine[V];
            int at = (team.thread + i * team.size) * V;
            load_run(angles + at, cosine);
            load_run(angles + hd / 2 + at, sine);
#pragma unroll
            for (int j = 0; j < V; j++) {
                a[j] = rounded<T>(x[i][j] * r * w[i][j]);
                b[j] = rounded<T>(x[i + N / 2][j] * r * w[i + N / 2][j]);
            }
            turn(x[i], x[i + N / 2], a, b, cosine, sine);
        }
    }
    T* out = qkv + row * hd;
    if (head >= nh) {
        T* cache = head < nh + nkv ? keys : values;
        out = cache + (((i64)slots[token] * nkv + (head - nh) % nkv) * capacity + position) * hd;
    }
    store_row(out, x, team, hd, true);
}

// Common to all entries. Token n of qkv [tokens, (nh + 2 nkv) hd] goes to position positions[n] < capacity of slots[n];
// no two tokens have both in common. keys, values [slots, nkv, capacity, hd]. Queries are written back to qkv, its keys
// and values left as they were. table f32 [positions, hd]: hd / 2 cosines, then as many sines. hd a multiple of 8;
// every pointer to T and the table aligned to 16 bytes.

// table null: nothing is turned.
// Grid and block: any of one dimension; ceil(tokens ceil((nh + 2 nkv) / 4) hd / 2 / V / 256) blocks of 256 give each
// thread its vectors of four heads, V = 8 (bf16) or 4 (f32) where hd / 2 is a multiple of that, else 1. No shared
// memory.
#define APPEND(NAME, T)                                                                                                \
    extern "C" __global__ void NAME(T* __restrict__ keys, T* __restrict__ values, T* __restrict__ qkv,                 \
                                    const float* __restrict__ table, const int* __restrict__ slots,                    \
                                    const int* __restrict__ positions, i64 tokens, int nh, int nkv, int hd,            \
                                    int capacity) {                                                                    \
        append(tokens, Append<T>{keys, values, qkv, table, slots, positions, nh, nkv, hd / 2, capacity});              \
    }
APPEND(append_bf16, bf16)
APPEND(append_f32, float)

// Normalised by weights [hd] each, and turned. hd is 32, 64 or 128.
// Grid ceil(tokens (nh + 2 nkv) / teams(hd)), block 128 (see row.cuh); no dynamic shared memory.
#define APPEND_NORMED(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(NARROW_THREADS)                                                       \
        NAME(T* __restrict__ keys, T* __restrict__ values, T* __restrict__ qkv, const T* __restrict__ query_weight,    \
             const T* __restrict__ key_weight, const float* __restrict__ table, const int* __restrict__ slots,         \
             const int* __restrict__ positions, i64 tokens, int nh, int nkv, int hd, int capacity, float eps) {        \
        append_normed(keys, values, qkv, query_weight, key_weight, table, slots, positions, tokens, nh, nkv, hd,       \
                      capacity, eps);                                                                                  \
    }
APPEND_NORMED(append_normed_bf16, bf16)
APPEND_NORMED(append_normed_f32, float)
