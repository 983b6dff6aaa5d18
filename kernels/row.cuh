// Rows in registers. A team of threads holds a row, KEPT elements a thread, so that a row is read once however often
// its elements are needed. A team is part of a warp for rows up to 1024 elements and a whole block for wider ones:
//   lanes(width)   = next_power_of_two(ceil(width / 32))
//   threads(width) = lanes <= 32 ? 128 : lanes          threads of a block
//   teams(width)   = threads / lanes                    rows that a block holds at once
// Sums over rows are taken over chunks of rows whose borders the row numbers alone fix:
//   chunk(width)   = lanes <= 32 ? 8 * teams : 16       rows of a chunk
#pragma once
#include "vector.cuh"

#define KEPT 32
#define NARROW_THREADS 128
#define NARROW_PASSES 8
#define WIDE_PASSES 16
// The widest row that a team of one warp holds, and the widest at all.
#define TILE (WARP * KEPT)
#define MAX_THREADS 256

// Vectors of T that a thread holds of a row.
template <typename T> constexpr int VECTORS = KEPT / Vector<T>::size;

struct Team {
    int size;    // threads of a team
    int count;   // teams of the block
    int index;   // this thread's team in the block
    int thread;  // this thread in its team
};

__device__ __forceinline__ Team team_of(int width) {
    int size = 1 << (32 - __clz((width - 1) / KEPT));
    return {size, (int)blockDim.x / size, (int)threadIdx.x / size, (int)threadIdx.x % size};
}

// Rows that a block sums into one partial sum.
__device__ __forceinline__ int chunk_rows(const Team& team) {
    return team.count * (team.size <= WARP ? NARROW_PASSES : WIDE_PASSES);
}

// What a block of a grid (chunks, tiles) takes of [rows, width]: a chunk of rows, and of these a tile of columns, so
// that rows of any width are summed by teams of one warp.
struct Strip {
    Team team;
    int first, end;
    int column, span;
};
__device__ __forceinline__ Strip strip_of(int rows, int width) {
    Team team = team_of(min(width, TILE));
    int chunk = chunk_rows(team), first = blockIdx.x * chunk, column = blockIdx.y * TILE;
    return {team, first, min(first + chunk, rows), column, min(width - column, TILE)};
}

// The sum over a team, known to all its threads. All threads of the block call it; `scratch` as in block_sum.
__device__ __forceinline__ float team_sum(const Team& team, float x, float* scratch) {
    if (team.size > WARP) return block_sum(x, scratch);
    for (int step = team.size / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

// The first `count` elements at `at` as they would lie in 16 bytes, zeros after them.
__device__ __forceinline__ uint4 collect(const float* at, int count) {
    float x[4];
    load_vector(x, at, count, false);
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
}
__device__ __forceinline__ uint4 collect(const bf16* at, int count) {
    u32 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u32 low = 2 * j < count ? at[2 * j].bits : 0, high = 2 * j + 1 < count ? at[2 * j + 1].bits : 0;
        pairs[j] = low | high << 16;
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// This thread's part of a row as it lies in memory: vectors thread, thread + size, ...; zeros from `width` on. A kernel
// loads all its rows before it unpacks the first, so that all loads are in flight together.
template <typename T, int N>
__device__ __forceinline__ void load_row(uint4 (&raw)[N], const T* row, const Team& team, int width, bool aligned) {
    constexpr int V = Vector<T>::size;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = (team.thread + i * team.size) * V;
            raw[i] = make_uint4(0, 0, 0, 0);
            if (at < width) raw[i] = *reinterpret_cast<const uint4*>(row + at);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = (team.thread + i * team.size) * V;
            raw[i] = collect(row + at, width - at);
        }
    }
}

template <typename T, int N, int V>
__device__ __forceinline__ void unpack_row(float (&x)[N][V], const uint4 (&raw)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) load16(reinterpret_cast<const T*>(&raw[i]), x[i]);
}

template <typename T, int N, int V>
__device__ __forceinline__ void store_row(T* row, const float (&x)[N][V], const Team& team, int width, bool aligned) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = (team.thread + i * team.size) * V;
        if (at < width) store_vector(row + at, x[i], width - at, aligned);
    }
}

// The residual sum: x += delta, rounded as it is stored.
template <typename T>
__device__ __forceinline__ void add_row(float (&x)[VECTORS<T>][Vector<T>::size], const uint4 (&delta)[VECTORS<T>]) {
    float d[VECTORS<T>][Vector<T>::size];
    unpack_row<T>(d, delta);
#pragma unroll
    for (int i = 0; i < VECTORS<T>; i++) {
#pragma unroll
        for (int j = 0; j < Vector<T>::size; j++) x[i][j] = rounded<T>(x[i][j] + d[i][j]);
    }
}

// out[0..width] = the sum over the block's teams, in their order, of the row that each holds in x. `sums` has
// FOLD_FLOATS floats a thread; a barrier stands before its first and after its last use.
#define FOLD_FLOATS (KEPT + 4)
template <int N, int V>
__device__ __forceinline__ void fold_teams(float* out, const float (&x)[N][V], const Team& team, int width,
                                           float* sums) {
    // Four floats of padding after every 32 spread the lanes' 32-byte strides over all banks.
    float* own = sums + team.index * team.size * FOLD_FLOATS;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = (team.thread + i * team.size) * V;
#pragma unroll
        for (int j = 0; j < V; j += 4) {
            float quad[4] = {x[i][j], x[i][j + 1], x[i][j + 2], x[i][j + 3]};
            store16(own + at + j + at / 32 * 4, quad);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0.0f;
        for (int t = 0; t < team.count; t++) sum += sums[t * team.size * FOLD_FLOATS + c + c / 32 * 4];
        out[c] = sum;
    }
    __syncthreads();
}
