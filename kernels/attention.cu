// Causal grouped-query attention, per head S = Q K^T scale, P = softmax(S over keys at or before the query), O = P V;
// backward dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K scale, dK = dS^T Q scale with P recomputed from
// lse = logsumexp(S). Limit: 2 NH HD sum(length^2) FLOPs forward and 2.5 times that backward (3.5 times as done here: S
// and dP are computed twice so that no block waits for another); decode reads 2 NKV HD length elements a sequence. A
// query's result is one chain of operations over keys in ascending order, in tiles aligned to position 0 of its
// sequence, so that training, prefill against a cache and decode give the same bits.
#include "mma.cuh"

// Positions in a tile, of queries and of keys; a warp of the tensor-core kernels owns 16 of its rows.
#define TILE 64
#define WARP_ROWS 16
#define THREADS 128

// Rows `from`..`to` of a matrix whose row i lies at data + i stride.
template <typename T> struct Rows {
    T* data;
    int stride, from, to;
    __device__ __forceinline__ T* at(int i) const { return data + (i64)i * stride; }
    __device__ __forceinline__ bool has(int i) const { return (u32)(i - from) < (u32)(to - from); }
};

// Heads are padded to PANELS panels of 64 columns; a tile in shared memory is PANELS times ROWS swizzled rows.
template <int ROWS> __device__ __forceinline__ u32 tile_offset(int row, int chunk) {
    return (chunk / 8) * ROWS * 128 + swizzled(row, chunk % 8);
}

// The address `pairs` pairs of chunks to the right of `at`, which lies in the first pair of a row: chunks are permuted
// by an exclusive or, and so is a step between pairs.
template <int ROWS> __device__ __forceinline__ u32 right_of(u32 at, int pairs) {
    return (at ^ pairs % 4 * 32) + pairs / 4 * ROWS * 128;
}

// Starts the copy of rows first..first + ROWS; zeros stand where no row or column exists, because even a probability of
// zero times the NaN of a foreign row would be NaN.
template <int PANELS, int ROWS, int BLOCK>
__device__ __forceinline__ void load_tile(u32 tile, Rows<const bf16> rows, int first, int hd) {
    const int CHUNKS = 8 * PANELS, STEP = BLOCK / CHUNKS;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const bf16* from = rows.at(first + row) + chunk * 8;
    bool inside = chunk * 8 < hd;
#pragma unroll 1
    for (int r = row; r < ROWS; r += STEP, from += (i64)STEP * rows.stride)
        cp_async16(tile + tile_offset<ROWS>(r, chunk), from, inside && rows.has(first + r));
}

// The same of two matrices with the same rows, the second tile behind the first.
template <int PANELS, int BLOCK>
__device__ __forceinline__ void load_pair(u32 tile, Rows<const bf16> a, Rows<const bf16> b, int first, int hd) {
    const int CHUNKS = 8 * PANELS, STEP = BLOCK / CHUNKS;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const bf16 *from_a = a.at(first + row) + chunk * 8, *from_b = b.at(first + row) + chunk * 8;
    bool inside = chunk * 8 < hd;
#pragma unroll 1
    for (int r = row; r < TILE; r += STEP) {
        bool valid = inside && a.has(first + r);
        u32 to = tile + tile_offset<TILE>(r, chunk);
        cp_async16(to, from_a, valid);
        cp_async16(to + TILE * 128 * PANELS, from_b, valid);
        from_a += (i64)STEP * a.stride, from_b += (i64)STEP * b.stride;
    }
}

// The A operand of rows row..row + 16, all columns.
template <int PANELS, int ROWS>
__device__ __forceinline__ void load_rows(u32 (&a)[4 * PANELS][4], u32 tile, int row) {
    int lane = threadIdx.x % WARP;
    u32 at = tile + tile_offset<ROWS>(row + lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < 4 * PANELS; k++) ldmatrix_x4(a[k], right_of<ROWS>(at, k));
}

// s[16, 16] += a b^T for the 16 rows b at `row` of a tile.
template <int PANELS>
__device__ __forceinline__ void dots(float (&s)[2][4], const u32 (&a)[4 * PANELS][4], u32 tile, int row) {
    int lane = threadIdx.x % WARP;
    u32 at = tile + tile_offset<TILE>(row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < 4 * PANELS; k++) {
        u32 b[4];
        ldmatrix_x4(b, right_of<TILE>(at, k));
        mma_16x8x16(s[0], a[k], b[0], b[1]);
        mma_16x8x16(s[1], a[k], b[2], b[3]);
    }
}

// sum[16, all columns] += p b for p[16, 16] and the 16 rows b at `row` of a tile.
template <int PANELS>
__device__ __forceinline__ void add_product(float (&sum)[8 * PANELS][4], const float (&p)[2][4], u32 tile, int row) {
    int lane = threadIdx.x % WARP;
    u32 a[4] = {pack_bf16(p[0][0], p[0][1]), pack_bf16(p[0][2], p[0][3]), pack_bf16(p[1][0], p[1][1]),
                pack_bf16(p[1][2], p[1][3])};
    u32 at = tile + tile_offset<TILE>(row + lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < 4 * PANELS; n++) {
        u32 b[4];
        ldmatrix_x4_trans(b, right_of<TILE>(at, n));
        mma_16x8x16(sum[2 * n], a, b[0], b[1]);
        mma_16x8x16(sum[2 * n + 1], a, b[2], b[3]);
    }
}

// Writes a warp's 16 rows, rows first..first + 16 of `to`, times a factor for each half; `stage` is 2048 PANELS bytes
// of shared memory for this warp alone, through which fragments become 16-byte stores. Adding zero turns -0 into 0: the
// sign of a sum of zeros depends on what lies behind masked keys.
template <int PANELS>
__device__ __forceinline__ void store_rows(Rows<bf16> to, int first, const float (&sum)[8 * PANELS][4],
                                           const float (&factor)[2], u8* stage, int hd) {
    const int CHUNKS = 8 * PANELS;
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *reinterpret_cast<u32*>(stage + tile_offset<WARP_ROWS>(lane / 4 + 8 * r, n) + lane % 4 * 4) =
                pack_bf16(fmaf(sum[n][2 * r], factor[r], 0.0f), fmaf(sum[n][2 * r + 1], factor[r], 0.0f));
    __syncwarp();
#pragma unroll
    for (int i = lane; i < WARP_ROWS * CHUNKS; i += WARP) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        if (chunk * 8 < hd && to.has(first + row))
            *reinterpret_cast<uint4*>(to.at(first + row) + chunk * 8) =
                *reinterpret_cast<const uint4*>(stage + tile_offset<WARP_ROWS>(row, chunk));
    }
    __syncwarp();
}

// One tile of keys for a warp's 16 queries. `base` is the running maximum of S log2(e), `sum` this lane's share of the
// running sum of 2^(S log2(e) - base). On the diagonal, keys beyond visible[r] are masked and blocks of 16 keys beyond
// the last one that any of the rows sees are left out.
template <int PANELS, bool DIAGONAL>
__device__ __forceinline__ void attend_tile(float (&o)[8 * PANELS][4], float (&base)[2], float (&sum)[2],
                                            const u32 (&q)[4 * PANELS][4], u32 keys, u32 values, float c,
                                            const int (&visible)[2], int last) {
    int column = threadIdx.x % 4 * 2;
    float s[4][2][4] = {};
#pragma unroll
    for (int b = 0; b < 4; b++) {
        if (!DIAGONAL || b <= last) dots<PANELS>(s[b], q, keys, b * 16);
#pragma unroll
        for (int e = 0; e < 8; e++)
            if (DIAGONAL && b * 16 + e / 4 * 8 + column + e % 2 > visible[e / 2 % 2]) s[b][e / 4][e % 4] = -infinity();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = max_nan(s[0][0][2 * r], s[0][0][2 * r + 1]);
#pragma unroll
        for (int i = 1; i < 8; i++)
            largest = max_nan(largest, max_nan(s[i / 2][i % 2][2 * r], s[i / 2][i % 2][2 * r + 1]));
        largest = max_nan(largest, __shfl_xor_sync(FULL_MASK, largest, 1));
        largest = max_nan(largest, __shfl_xor_sync(FULL_MASK, largest, 2));
        float next = max_nan(base[r], largest * c), shrink = exp2_fast(base[r] - next);
        base[r] = next;
        sum[r] *= shrink;
#pragma unroll
        for (int n = 0; n < 8 * PANELS; n++) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float& x = s[i / 4][i / 2 % 2][2 * r + i % 2];
            x = exp2_fast(fmaf(x, c, -next));
            sum[r] += x;
        }
    }
#pragma unroll
    for (int b = 0; b < 4; b++)
        if (!DIAGONAL || b <= last) add_product<PANELS>(o, s[b], values, b * 16);
}

// A block's tile of queries, rows first..first + 16 WARPS of q, against all keys at or before each. A row of q is its
// query's position, or in decode a head of the one query at `position`.
template <int PANELS, int WARPS, bool DECODE>
__device__ __forceinline__ void attend(Rows<bf16> out, Rows<float> lse, Rows<const bf16> q, Rows<const bf16> k,
                                       Rows<const bf16> v, int first, int position, int hd, float scale) {
    const int BLOCK = WARPS * WARP, ROWS = WARPS * WARP_ROWS, BYTES = TILE * 128 * PANELS;
    extern __shared__ __align__(1024) u8 shared[];
    u32 stages = shared_address(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = first + warp * WARP_ROWS;
    int tiles = (u32)position / TILE + 1;

    // The queries pass through the second stage to registers, before keys and values need it.
    load_tile<PANELS, ROWS, BLOCK>(stages + 2 * BYTES, q, first, hd);
    cp_async_commit();
    load_pair<PANELS, BLOCK>(stages, k, v, 0, hd);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    u32 fq[4 * PANELS][4];
    load_rows<PANELS, ROWS>(fq, stages + 2 * BYTES, warp * WARP_ROWS);

    float o[8 * PANELS][4] = {}, base[2] = {-infinity(), -infinity()}, sum[2] = {0.0f, 0.0f}, c = scale * LOG2_E;
    bool active = q.from < row + WARP_ROWS && row < q.to;
    int visible[2] = {}, last = 0;
    for (int j = 0; j + 1 < tiles; j++) {
        u32 stage = stages + j % 2 * 2 * BYTES, next = stages + (j + 1) % 2 * 2 * BYTES;
        cp_async_wait<0>();
        __syncthreads();
        load_pair<PANELS, BLOCK>(next, k, v, (j + 1) * TILE, hd);
        cp_async_commit();
        if (active) attend_tile<PANELS, false>(o, base, sum, fq, stage, stage + BYTES, c, visible, last);
    }
    cp_async_wait<0>();
    __syncthreads();
    u32 stage = stages + (tiles - 1) % 2 * 2 * BYTES;
    last = (u32)(DECODE ? position : row) % TILE / 16;
#pragma unroll
    for (int r = 0; r < 2; r++) visible[r] = (u32)(DECODE ? position : row + lane / 4 + 8 * r) % TILE;
    if (active) attend_tile<PANELS, true>(o, base, sum, fq, stage, stage + BYTES, c, visible, last);
    __syncthreads();
    if (!active) return;
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(FULL_MASK, sum[r], 1);
        sum[r] += __shfl_xor_sync(FULL_MASK, sum[r], 2);
        inverse[r] = 1.0f / sum[r];
        int at = row + lane / 4 + 8 * r;
        if (lane % 4 == 0 && lse.has(at)) *lse.at(at) = fmaf(base[r], LN_2, logf(sum[r]));
    }
    store_rows<PANELS>(out, row, o, inverse, shared + warp * WARP_ROWS * 128 * PANELS, hd);
}

// Sum of a[i] b[i]; hd is a multiple of 8 and both rows are aligned to 16 bytes.
__device__ __forceinline__ float dot(const float* a, const float* b, int hd) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < hd; i += 8) {
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            float x[4], y[4];
            load16(a + i + half, x);
            load16(b + i + half, y);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] = fmaf(x[e], y[e], sum[e]);
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Lanes that hold one row of a head, four columns each; a warp works on several rows where heads are small.
__device__ __forceinline__ int lanes_of(int hd) { return hd <= 16 ? 4 : hd <= 32 ? 8 : hd <= 64 ? 16 : 32; }

// sum += w[j] row j for j < count, where lane j holds w[j], zero from `count` on; each group of lanes adds up its rows.
__device__ __forceinline__ void add_weighted(float (&sum)[4], float w, const float* rows, int stride, int count,
                                             int hd) {
    int lane = threadIdx.x % WARP, width = lanes_of(hd);
    // Past the last row a group stays where it is, at weight zero.
    const float* at = rows + (i64)min(lane / width, count - 1) * stride + min(lane % width * 4, hd - 4);
    i64 step = (i64)(WARP / width) * stride;
    for (int j = lane / width; j < count + lane / width; j += WARP / width) {
        float x[4], weight = __shfl_sync(FULL_MASK, w, j);
        load16(at, x);
#pragma unroll
        for (int e = 0; e < 4; e++) sum[e] = fmaf(weight, x[e], sum[e]);
        at += j + WARP / width < count ? step : 0;
    }
}

// Adds up the groups of lanes and writes the row times `factor`.
__device__ __forceinline__ void store_scaled(float* to, float (&sum)[4], float factor, int hd) {
    int lane = threadIdx.x % WARP, width = lanes_of(hd);
    for (int step = WARP / 2; step >= width; step /= 2)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[e] += __shfl_xor_sync(FULL_MASK, sum[e], step);
    float x[4] = {sum[0] * factor, sum[1] * factor, sum[2] * factor, sum[3] * factor};
    if (lane < width && lane * 4 < hd) store16(to + lane * 4, x);
}

// The same in f32: a warp takes one query at a time, a lane one of 32 keys.
template <int PANELS, int WARPS, bool DECODE>
__device__ __forceinline__ void attend(Rows<float> out, Rows<float> lse, Rows<const float> q, Rows<const float> k,
                                       Rows<const float> v, int first, int position, int hd, float scale) {
    int lane = threadIdx.x % WARP, begin = first + threadIdx.x / WARP * WARP_ROWS;
    float c = scale * LOG2_E;
    for (int row = max(begin, q.from); row < min(begin + WARP_ROWS, q.to); row++) {
        int keys = (DECODE ? position : row) + 1;
        float base = -infinity(), sum = 0.0f, o[4] = {};
        for (int key = 0; key < keys; key += WARP) {
            int count = min(WARP, keys - key);
            float s = dot(q.at(row), k.at(key + min(lane, count - 1)), hd) * c;
            if (lane >= count) s = -infinity();
            float next = max_nan(base, warp_max(s)), shrink = exp2_fast(base - next), p = exp2_fast(s - next);
            base = next;
            sum = fmaf(sum, shrink, p);
#pragma unroll
            for (int e = 0; e < 4; e++) o[e] *= shrink;
            add_weighted(o, p, v.at(key), v.stride, count, hd);
        }
        sum = warp_sum(sum);
        if (lane == 0 && lse.has(row)) *lse.at(row) = fmaf(base, LN_2, logf(sum));
        store_scaled(out.at(row), o, 1.0f / sum, hd);
    }
}

// The last position of the tile that starts at `first` in a sequence of `length`.
__device__ __forceinline__ int last_position(int first, int length) { return min(first + TILE, length) - 1; }

template <int PANELS, typename T>
__device__ __forceinline__ void forward(T* out, float* lse, const T* qkv, const int* offsets, const int* tiles, int nh,
                                        int nkv, int hd, float scale) {
    int head = blockIdx.x, sequence = tiles[2 * blockIdx.y], first = tiles[2 * blockIdx.y + 1] * TILE;
    int begin = offsets[sequence], length = offsets[sequence + 1] - begin, kv = head / (nh / nkv);
    int row = (nh + 2 * nkv) * hd, width = nh * hd;
    const T* data = qkv + (i64)begin * row;
    attend<PANELS, THREADS / WARP, false>(
        Rows<T>{out + (i64)begin * width + head * hd, width, 0, length},
        Rows<float>{lse + (i64)begin * nh + head, nh, 0, length}, Rows<const T>{data + head * hd, row, 0, length},
        Rows<const T>{data + (nh + kv) * hd, row, 0, length},
        Rows<const T>{data + (nh + nkv + kv) * hd, row, 0, length}, first, last_position(first, length), hd, scale);
}

template <int PANELS, typename T>
__device__ __forceinline__ void forward_cached(T* out, const T* qkv, const T* keys, const T* values, const int* offsets,
                                               const int* slots, const int* lengths, const int* tiles, int nh, int nkv,
                                               int hd, int capacity, float scale) {
    int head = blockIdx.x, sequence = tiles[2 * blockIdx.y], first = tiles[2 * blockIdx.y + 1] * TILE;
    int begin = offsets[sequence], cached = lengths[sequence], length = cached + offsets[sequence + 1] - begin;
    int row = (nh + 2 * nkv) * hd, width = nh * hd;
    i64 slot = ((i64)slots[sequence] * nkv + head / (nh / nkv)) * capacity * hd;
    // Row i of queries and results is position i, so their bases stand `cached` rows before the sequence's first.
    i64 base = (i64)begin - cached;
    attend<PANELS, THREADS / WARP, false>(
        Rows<T>{out + base * width + head * hd, width, cached, length}, Rows<float>{nullptr, 0, 0, 0},
        Rows<const T>{qkv + base * row + head * hd, row, cached, length}, Rows<const T>{keys + slot, hd, 0, length},
        Rows<const T>{values + slot, hd, 0, length}, first, last_position(first, length), hd, scale);
}

template <int PANELS, typename T>
__device__ __forceinline__ void forward_decode(T* out, const T* qkv, const T* keys, const T* values, const int* slots,
                                               const int* lengths, int nh, int nkv, int hd, int capacity,
                                               float scale) {
    int group = nh / nkv, parts = gridDim.x / nkv, kv = blockIdx.x / parts, sequence = blockIdx.y;
    int first = blockIdx.x % parts * WARP_ROWS, position = lengths[sequence];
    int row = (nh + 2 * nkv) * hd, width = nh * hd;
    i64 slot = ((i64)slots[sequence] * nkv + kv) * capacity * hd;
    attend<PANELS, 1, true>(Rows<T>{out + (i64)sequence * width + kv * group * hd, hd, 0, group},
                            Rows<float>{nullptr, 0, 0, 0},
                            Rows<const T>{qkv + (i64)sequence * row + kv * group * hd, hd, 0, group},
                            Rows<const T>{keys + slot, hd, 0, position + 1},
                            Rows<const T>{values + slot, hd, 0, position + 1}, first, position, hd, scale);
}

// What a backward block reads and writes of one sequence: rows are positions.
template <typename T> struct Sequence {
    Rows<const T> qkv, dout;
    Rows<const float> lse, delta;
    Rows<T> dqkv;
    int nh, nkv, hd;
    __device__ __forceinline__ Rows<const T> columns(int head) const {
        return {qkv.data + head * hd, qkv.stride, 0, qkv.to};
    }
    __device__ __forceinline__ Rows<const T> key(int kv) const { return columns(nh + kv); }
    __device__ __forceinline__ Rows<const T> value(int kv) const { return columns(nh + nkv + kv); }
    __device__ __forceinline__ Rows<const T> gradient(int head) const {
        return {dout.data + head * hd, dout.stride, 0, dout.to};
    }
    __device__ __forceinline__ Rows<T> result(int head) const {
        return {dqkv.data + head * hd, dqkv.stride, 0, dqkv.to};
    }
};

template <typename T>
__device__ __forceinline__ Sequence<T> sequence_of(T* dqkv, const T* dout, const T* qkv, const float* lse,
                                                   const float* delta, const int* offsets, const int* tiles, int nh,
                                                   int nkv, int hd) {
    int sequence = tiles[2 * blockIdx.y], begin = offsets[sequence], length = offsets[sequence + 1] - begin;
    int row = (nh + 2 * nkv) * hd, width = nh * hd;
    i64 stat = (i64)begin * nh;
    return {Rows<const T>{qkv + (i64)begin * row, row, 0, length},
            Rows<const T>{dout + (i64)begin * width, width, 0, length},
            Rows<const float>{lse + stat, nh, 0, length},
            Rows<const float>{delta + stat, nh, 0, length},
            Rows<T>{dqkv + (i64)begin * row, row, 0, length},
            nh,
            nkv,
            hd};
}

// dQ of a warp's 16 queries from one tile of keys.
template <int PANELS>
__device__ __forceinline__ void queries_tile(float (&dq)[8 * PANELS][4], const u32 (&q)[4 * PANELS][4],
                                             const u32 (&dout)[4 * PANELS][4], u32 keys, u32 values, float c,
                                             const float (&lse)[2], const float (&delta)[2], bool diagonal) {
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int b = 0; b < (diagonal ? warp + 1 : TILE / 16); b++) {
        bool edge = diagonal && b == warp;
        float s[2][4] = {}, ds[2][4] = {};
        dots<PANELS>(s, q, keys, b * 16);
        dots<PANELS>(ds, dout, values, b * 16);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int r = e / 2 % 2;
            bool masked = edge && e / 4 * 8 + column + e % 2 > g + 8 * r;
            float p = masked ? 0.0f : exp2_fast(fmaf(s[e / 4][e % 4], c, -lse[r]));
            ds[e / 4][e % 4] = p * (ds[e / 4][e % 4] - delta[r]);
        }
        add_product<PANELS>(dq, ds, keys, b * 16);
    }
}

template <int PANELS>
__device__ __forceinline__ void backward_queries(Sequence<bf16> x, int first, int head, float scale) {
    const int BYTES = TILE * 128 * PANELS;
    extern __shared__ __align__(1024) u8 shared[];
    u32 stages = shared_address(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = first + warp * WARP_ROWS;
    int kv = head / (x.nh / x.nkv), tiles = first / TILE + 1;
    Rows<const bf16> k = x.key(kv), v = x.value(kv);

    load_pair<PANELS, THREADS>(stages + 2 * BYTES, x.columns(head), x.gradient(head), first, x.hd);
    cp_async_commit();
    load_pair<PANELS, THREADS>(stages, k, v, 0, x.hd);
    cp_async_commit();
    float lse[2], delta[2], c = scale * LOG2_E;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int at = row + lane / 4 + 8 * r;
        lse[r] = x.lse.has(at) ? x.lse.at(at)[head] * LOG2_E : 0.0f;
        delta[r] = x.delta.has(at) ? x.delta.at(at)[head] : 0.0f;
    }
    cp_async_wait<1>();
    __syncthreads();
    u32 fq[4 * PANELS][4], fdout[4 * PANELS][4];
    load_rows<PANELS, TILE>(fq, stages + 2 * BYTES, warp * WARP_ROWS);
    load_rows<PANELS, TILE>(fdout, stages + 3 * BYTES, warp * WARP_ROWS);

    float dq[8 * PANELS][4] = {};
    bool active = row < x.qkv.to;
    for (int j = 0; j < tiles; j++) {
        u32 stage = stages + j % 2 * 2 * BYTES, next = stages + (j + 1) % 2 * 2 * BYTES;
        cp_async_wait<0>();
        __syncthreads();
        if (j + 1 < tiles) {
            load_pair<PANELS, THREADS>(next, k, v, (j + 1) * TILE, x.hd);
            cp_async_commit();
        }
        if (active) queries_tile<PANELS>(dq, fq, fdout, stage, stage + BYTES, c, lse, delta, j + 1 == tiles);
    }
    __syncthreads();
    float factor[2] = {scale, scale};
    if (active) store_rows<PANELS>(x.result(head), row, dq, factor, shared + warp * WARP_ROWS * 128 * PANELS, x.hd);
}

// dK and dV of a warp's 16 keys from one tile of queries: the products are transposed, a key is a row. `stats` holds
// lse and then delta of the tile's queries.
template <int PANELS>
__device__ __forceinline__ void keys_tile(float (&dk)[8 * PANELS][4], float (&dv)[8 * PANELS][4],
                                          const u32 (&k)[4 * PANELS][4], const u32 (&v)[4 * PANELS][4], u32 queries,
                                          u32 douts, float c, const float* stats, bool diagonal) {
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int b = diagonal ? warp : 0; b < TILE / 16; b++) {
        bool edge = diagonal && b == warp;
        float p[2][4] = {}, ds[2][4] = {};
        dots<PANELS>(p, k, queries, b * 16);
        dots<PANELS>(ds, v, douts, b * 16);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int at = b * 16 + n * 8 + column;
            float2 lse = *reinterpret_cast<const float2*>(stats + at);
            float2 delta = *reinterpret_cast<const float2*>(stats + TILE + at);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                bool masked = edge && n * 8 + column + e % 2 < g + e / 2 * 8;
                p[n][e] = masked ? 0.0f : exp2_fast(fmaf(p[n][e], c, (e % 2 ? lse.y : lse.x) * -LOG2_E));
                ds[n][e] = p[n][e] * (ds[n][e] - (e % 2 ? delta.y : delta.x));
            }
        }
        add_product<PANELS>(dv, p, douts, b * 16);
        add_product<PANELS>(dk, ds, queries, b * 16);
    }
}

// Starts the copy of lse and delta of a tile's queries to `stats`. A query that does not exist has dO = 0 and with the
// zeros that are written here adds nothing.
__device__ __forceinline__ void load_stats(u32 stats, Rows<const float> rows, int head, int query) {
    int at = query + threadIdx.x % TILE;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(stats + threadIdx.x * 4),
                 "l"(__cvta_generic_to_global(rows.at(at) + head)), "r"(rows.has(at) ? 4 : 0)
                 : "memory");
}

template <int PANELS>
__device__ __forceinline__ void backward_keys(Sequence<bf16> x, int first, int kv, float scale) {
    const int BYTES = TILE * 128 * PANELS;
    extern __shared__ __align__(1024) u8 shared[];
    u32 stages = shared_address(shared), stats = stages + 4 * BYTES;
    int warp = threadIdx.x / WARP, row = first + warp * WARP_ROWS, group = x.nh / x.nkv;
    int head = kv * group, heads = head + group, query = first;
    Rows<const float> own = threadIdx.x < TILE ? x.lse : x.delta;

    load_pair<PANELS, THREADS>(stages + 2 * BYTES, x.key(kv), x.value(kv), first, x.hd);
    cp_async_commit();
    load_pair<PANELS, THREADS>(stages, x.columns(head), x.gradient(head), query, x.hd);
    load_stats(stats, own, head, query);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    u32 fk[4 * PANELS][4], fv[4 * PANELS][4];
    load_rows<PANELS, TILE>(fk, stages + 2 * BYTES, warp * WARP_ROWS);
    load_rows<PANELS, TILE>(fv, stages + 3 * BYTES, warp * WARP_ROWS);

    float dk[8 * PANELS][4] = {}, dv[8 * PANELS][4] = {}, c = scale * LOG2_E;
    bool active = row < x.qkv.to;
    for (int i = 0; head < heads; i ^= 1) {
        u32 stage = stages + i * 2 * BYTES, next = stages + (i ^ 1) * 2 * BYTES;
        bool diagonal = query == first;
        cp_async_wait<0>();
        __syncthreads();
        query += TILE;
        if (query >= x.qkv.to) query = first, head++;
        if (head < heads) {
            load_pair<PANELS, THREADS>(next, x.columns(head), x.gradient(head), query, x.hd);
            load_stats(stats + (i ^ 1) * 8 * TILE, own, head, query);
            cp_async_commit();
        }
        const float* at = reinterpret_cast<const float*>(shared + 4 * BYTES) + i * 2 * TILE;
        if (active) keys_tile<PANELS>(dk, dv, fk, fv, stage, stage + BYTES, c, at, diagonal);
    }
    __syncthreads();
    if (!active) return;
    u8* stage = shared + warp * WARP_ROWS * 128 * PANELS;
    float scaled[2] = {scale, scale}, plain[2] = {1.0f, 1.0f};
    store_rows<PANELS>(x.result(x.nh + kv), row, dk, scaled, stage, x.hd);
    store_rows<PANELS>(x.result(x.nh + x.nkv + kv), row, dv, plain, stage, x.hd);
}

// In f32 a warp takes one query at a time and a lane one of 32 keys, then the other way round.
template <int PANELS>
__device__ __forceinline__ void backward_queries(Sequence<float> x, int first, int head, float scale) {
    int lane = threadIdx.x % WARP, begin = first + threadIdx.x / WARP * WARP_ROWS, kv = head / (x.nh / x.nkv);
    float c = scale * LOG2_E;
    Rows<const float> k = x.key(kv), v = x.value(kv), q = x.columns(head), dout = x.gradient(head);
    for (int row = begin; row < min(begin + WARP_ROWS, x.qkv.to); row++) {
        float lse = x.lse.at(row)[head] * LOG2_E, delta = x.delta.at(row)[head], dq[4] = {};
        for (int key = 0; key <= row; key += WARP) {
            int count = min(WARP, row + 1 - key), at = key + min(lane, count - 1);
            float p = exp2_fast(fmaf(dot(q.at(row), k.at(at), x.hd), c, -lse));
            float ds = p * (dot(dout.at(row), v.at(at), x.hd) - delta);
            if (lane >= count) ds = 0.0f;
            add_weighted(dq, ds, k.at(key), k.stride, count, x.hd);
        }
        store_scaled(x.result(head).at(row), dq, scale, x.hd);
    }
}

template <int PANELS>
__device__ __forceinline__ void backward_keys(Sequence<float> x, int first, int kv, float scale) {
    int lane = threadIdx.x % WARP, begin = first + threadIdx.x / WARP * WARP_ROWS, group = x.nh / x.nkv;
    float c = scale * LOG2_E;
    Rows<const float> k = x.key(kv), v = x.value(kv);
    for (int row = begin; row < min(begin + WARP_ROWS, x.qkv.to); row++) {
        float dk[4] = {}, dv[4] = {};
        for (int head = kv * group; head < (kv + 1) * group; head++) {
            Rows<const float> q = x.columns(head), dout = x.gradient(head);
            for (int query = row; query < x.qkv.to; query += WARP) {
                int count = min(WARP, x.qkv.to - query), at = query + min(lane, count - 1);
                float lse = x.lse.at(at)[head] * LOG2_E, delta = x.delta.at(at)[head];
                float p = exp2_fast(fmaf(dot(k.at(row), q.at(at), x.hd), c, -lse));
                float ds = p * (dot(v.at(row), dout.at(at), x.hd) - delta);
                if (lane >= count) p = ds = 0.0f;
                add_weighted(dk, ds, q.at(query), q.stride, count, x.hd);
                add_weighted(dv, p, dout.at(query), dout.stride, count, x.hd);
            }
        }
        store_scaled(x.result(x.nh + kv).at(row), dk, scale, x.hd);
        store_scaled(x.result(x.nh + x.nkv + kv).at(row), dv, 1.0f, x.hd);
    }
}

// Eight lanes a row.
template <typename T>
__device__ __forceinline__ void backward_delta(float* delta, const T* dout, const T* out, i64 rows, int hd) {
    const int SIZE = Vector<T>::size, LANES = 8;
    i64 row = (i64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    float sum = 0.0f;
    if (row < rows)
#pragma unroll 1
        for (int i = threadIdx.x % LANES * SIZE; i < hd; i += LANES * SIZE) {
            float x[SIZE], y[SIZE];
            load16(dout + row * hd + i, x);
            load16(out + row * hd + i, y);
#pragma unroll
            for (int e = 0; e < SIZE; e++) sum = fmaf(x[e], y[e], sum);
        }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, step);
    if (row < rows && threadIdx.x % LANES == 0) delta[row] = sum;
}

// Common to all entries. T is bf16 or float. qkv [N, (nh + 2 nkv) hd]: queries, keys, values of a token side by side;
// out [N, nh hd]; hd a multiple of 8, at most 64 in the entries named 64 and at most 128 in the others; nh a multiple
// of nkv; every pointer to T aligned to 16 bytes. scale = 1 / sqrt(hd). offsets [B + 1]: sequence b is rows
// offsets[b]..offsets[b + 1]; rows from offsets[B] on are neither read nor written.
//
// tiles [tiles, 2] names the work as (b, t): the new positions of sequence b among 64 t..64 (t + 1). The host lists
// every pair that holds a new position, largest t first: with first = lengths[b] (0 where nothing is cached) and n new
// tokens t = first / 64 .. (first + n - 1) / 64, and none where n = 0.
//
// Dynamic shared bytes: as stated for the entries 64 and 128 in bf16; 0 in f32.

// out and lse [N, nh] f32 = log(sum over visible keys of exp(S)).
// Grid (nh, tiles), block 128; shared 32768 in 64, 65536 in 128.
#define FORWARD(NAME, T, PANELS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 4 - PANELS)                                                  \
    NAME(T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ qkv, const int* __restrict__ offsets,     \
         const int* __restrict__ tiles, int nh, int nkv, int hd, float scale) {                                        \
        forward<PANELS>(out, lse, qkv, offsets, tiles, nh, nkv, hd, scale);                                            \
    }
FORWARD(attention_forward_64_bf16, bf16, 1)
FORWARD(attention_forward_128_bf16, bf16, 2)
FORWARD(attention_forward_f32, float, 1)

// out of new tokens against a cache that already holds them: keys and values [slots, nkv, capacity, hd], slots [B],
// lengths [B] the positions cached before these tokens.
// Grid (nh, tiles), block 128; shared 32768 in 64, 65536 in 128.
#define FORWARD_CACHED(NAME, T, PANELS)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 4 - PANELS)                                                  \
    NAME(T* __restrict__ out, const T* __restrict__ qkv, const T* __restrict__ keys, const T* __restrict__ values,     \
         const int* __restrict__ offsets, const int* __restrict__ slots, const int* __restrict__ lengths,              \
         const int* __restrict__ tiles, int nh, int nkv, int hd, int capacity, float scale) {                          \
        forward_cached<PANELS>(out, qkv, keys, values, offsets, slots, lengths, tiles, nh, nkv, hd, capacity, scale);  \
    }
FORWARD_CACHED(attention_forward_cached_64_bf16, bf16, 1)
FORWARD_CACHED(attention_forward_cached_128_bf16, bf16, 2)
FORWARD_CACHED(attention_forward_cached_f32, float, 1)

// The same where each of B sequences has exactly one new token, row b of qkv and out: no offsets, no tiles.
// Grid (nkv ceil(nh / nkv / 16), B), block 32; shared 32768 in 64, 65536 in 128.
#define FORWARD_DECODE(NAME, T, PANELS)                                                                                \
    extern "C" __global__ void __launch_bounds__(WARP, 8)                                                              \
    NAME(T* __restrict__ out, const T* __restrict__ qkv, const T* __restrict__ keys, const T* __restrict__ values,     \
         const int* __restrict__ slots, const int* __restrict__ lengths, int nh, int nkv, int hd, int capacity,        \
         float scale) {                                                                                                \
        forward_decode<PANELS>(out, qkv, keys, values, slots, lengths, nh, nkv, hd, capacity, scale);                  \
    }
FORWARD_DECODE(attention_forward_decode_64_bf16, bf16, 1)
FORWARD_DECODE(attention_forward_decode_128_bf16, bf16, 2)
FORWARD_DECODE(attention_forward_decode_f32, float, 1)

// delta [rows] f32 = sum of dout out over a head, rows = N nh (dout, out [rows, hd]).
// Grid ceil(rows / 16), block 128, no shared memory.
#define BACKWARD_DELTA(NAME, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    NAME(float* __restrict__ delta, const T* __restrict__ dout, const T* __restrict__ out, i64 rows, int hd) {         \
        backward_delta(delta, dout, out, rows, hd);                                                                    \
    }
BACKWARD_DELTA(attention_backward_delta_bf16, bf16)
BACKWARD_DELTA(attention_backward_delta_f32, float)

// The query columns of dqkv [N, (nh + 2 nkv) hd], from dout [N, nh hd], lse and delta [N, nh].
// Grid (nh, tiles), block 128; shared 32768 in 64, 65536 in 128.
#define BACKWARD_QUERIES(NAME, T, PANELS)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 6 - 2 * PANELS)                                              \
    NAME(T* __restrict__ dqkv, const T* __restrict__ dout, const T* __restrict__ qkv, const float* __restrict__ lse,   \
         const float* __restrict__ delta, const int* __restrict__ offsets, const int* __restrict__ tiles, int nh,      \
         int nkv, int hd, float scale) {                                                                               \
        auto sequence = sequence_of(dqkv, dout, qkv, lse, delta, offsets, tiles, nh, nkv, hd);                         \
        backward_queries<PANELS>(sequence, tiles[2 * blockIdx.y + 1] * TILE, blockIdx.x, scale);                       \
    }
BACKWARD_QUERIES(attention_backward_queries_64_bf16, bf16, 1)
BACKWARD_QUERIES(attention_backward_queries_128_bf16, bf16, 2)
BACKWARD_QUERIES(attention_backward_queries_f32, float, 1)

// The key and value columns of dqkv. The tile (b, t) stands here for the t-th tile of keys from the end, so that the
// list's order is again the longest work first.
// Grid (nkv, tiles), block 128; shared 33792 in 64, 66560 in 128.
#define BACKWARD_KEYS(NAME, T, PANELS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 4 - PANELS)                                                  \
    NAME(T* __restrict__ dqkv, const T* __restrict__ dout, const T* __restrict__ qkv, const float* __restrict__ lse,   \
         const float* __restrict__ delta, const int* __restrict__ offsets, const int* __restrict__ tiles, int nh,      \
         int nkv, int hd, float scale) {                                                                               \
        auto sequence = sequence_of(dqkv, dout, qkv, lse, delta, offsets, tiles, nh, nkv, hd);                         \
        int last = (sequence.qkv.to - 1) / TILE;                                                                       \
        backward_keys<PANELS>(sequence, (last - tiles[2 * blockIdx.y + 1]) * TILE, blockIdx.x, scale);                 \
    }
BACKWARD_KEYS(attention_backward_keys_64_bf16, bf16, 1)
BACKWARD_KEYS(attention_backward_keys_128_bf16, bf16, 2)
BACKWARD_KEYS(attention_backward_keys_f32, float, 1)
