// Matrix products, row-major: D = A B + bias, or D += A B, D [M, N], with A [M, K] or [K, M] and B [K, N] or [N, K]:
// NT is the linear layer y = x W^T + bias, NN its dx = dy W, TN its dW = dy^T x. Limit: 2 M N K FLOP at the rate of
// mma.sync (bf16) or of FMA (f32).
// An element of D is one chain over ascending K, of mma m16n8k16 in steps of 16 (bf16) or of fmaf (f32), from 0 and
// never split, and K is filled with zeros to the step; bias or the old value is added last, in f32. So its bits depend
// neither on M and N nor on the tile that it falls into.
#include "mma.cuh"

#define DEPTH 64

// The tile of block `index`: bands of eight tiles of rows, each walked along N, so that a band's rows of A stay in
// cache.
__device__ __forceinline__ void tile_of(int index, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
    const int BAND = 8;
    int first = index / (BAND * tiles_n) * BAND, within = index % (BAND * tiles_n);
    int height = min(tiles_m - first, BAND);
    tile_m = first + within % height;
    tile_n = within / height;
}

__device__ __forceinline__ void load4(const float* at, float (&x)[4]) { load16(at, x); }
__device__ __forceinline__ void load4(const bf16* at, float (&x)[4]) {
    uint2 v = *reinterpret_cast<const uint2*>(at);
    x[0] = low_bf16(v.x), x[1] = high_bf16(v.x), x[2] = low_bf16(v.y), x[3] = high_bf16(v.y);
}
__device__ __forceinline__ void store4(float* at, const float (&x)[4]) { store16(at, x); }
__device__ __forceinline__ void store4(bf16* at, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
}

// What a block adds to the sums and where it puts them.
template <typename D, typename T> struct Out {
    D* d;
    const T* bias;
    int m, n, ldd;
    bool accumulate, vectors;
};

// Writes D[row, column..column + 4] = sum + bias, or adds sum to it; what lies outside D is left out.
template <typename D, typename T>
__device__ __forceinline__ void write4(const Out<D, T>& out, int row, int column, float (&sum)[4],
                                       const float (&bias)[4]) {
    if (row >= out.m || column >= out.n) return;
    D* at = out.d + (i64)row * out.ldd + column;
    bool whole = out.vectors && column + 4 <= out.n;
    if (out.bias) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += bias[i];
    }
    if (out.accumulate) {
        float old[4] = {};
        if (whole) {
            load4(at, old);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) old[i] = column + i < out.n ? to_f32(at[i]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += old[i];
    }
    if (whole) {
        store4(at, sum);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (column + i < out.n) store(at + i, sum[i]);
        }
    }
}

template <typename D, typename T>
__device__ __forceinline__ void load_bias(const Out<D, T>& out, int column, float (&bias)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) bias[i] = out.bias && column + i < out.n ? to_f32(out.bias[column + i]) : 0.0f;
}

// bf16. A tile of ROWS x 64 elements at (row0, column0) of a matrix goes to shared memory in swizzled rows of 128
// bytes, zeros where the matrix ends.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(u8* tile, const bf16* matrix, int ld, int row0, int column0, int rows,
                                          int columns, bool aligned) {
    const int SHARE = THREADS / 8;
    int r = threadIdx.x / 8, chunk = threadIdx.x % 8, row = row0 + r, column = column0 + chunk * 8;
    const bf16* from = matrix + (i64)row * ld + column;
    u8* to = tile + swizzled(r, chunk);
    if (column >= columns || (aligned && column + 8 <= columns)) {
#pragma unroll
        for (int i = 0; i < ROWS / SHARE; i++) {
            bool inside = row + i * SHARE < rows && column < columns;
            cp_async16(shared_address(to) + i * SHARE * 128, from + (i64)(i * SHARE) * ld, inside);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / SHARE; i++) {
            u32 x[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                bool inside = row + i * SHARE < rows && column + j < columns;
                x[j] = inside ? from[(i64)(i * SHARE) * ld + j].bits : 0;
            }
            *reinterpret_cast<uint4*>(to + i * SHARE * 128) =
                make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
        }
    }
}

// BM x BN of D by WM x WN warps, each of (MI * 16) x (NI * 8). A is [K, M] if TRANS_A; B is [N, K] if TRANS_B.
template <typename D, bool TRANS_A, bool TRANS_B, int WM, int WN, int MI, int NI, int STAGES>
__device__ __forceinline__ void gemm(const Out<D, bf16>& out, const bf16* a, const bf16* b, int k, int lda, int ldb) {
    const int BM = WM * MI * 16, BN = WN * NI * 8, THREADS = WM * WN * WARP;
    const int ROWS_A = TRANS_A ? DEPTH : BM, ROWS_B = TRANS_B ? BN : DEPTH;
    const int BYTES_A = ROWS_A * 128, STAGE = BYTES_A + ROWS_B * 128;
    static_assert((!TRANS_A || BM == 64) && (TRANS_B || BN == 64), "a row of a transposed tile is 64 elements");
    __shared__ __align__(1024) u8 stages[STAGES * STAGE];

    int tile_m, tile_n;
    tile_of(blockIdx.x, (out.m + BM - 1) / BM, (out.n + BN - 1) / BN, tile_m, tile_n);
    int m0 = tile_m * BM, n0 = tile_n * BN;
    bool aligned_a = is_aligned(a) && lda % 8 == 0, aligned_b = is_aligned(b) && ldb % 8 == 0;
    auto load = [&](int tile) {
        u8* stage = stages + tile % STAGES * STAGE;
        int k0 = tile * DEPTH;
        if (TRANS_A) {
            load_tile<ROWS_A, THREADS>(stage, a, lda, k0, m0, k, out.m, aligned_a);
        } else {
            load_tile<ROWS_A, THREADS>(stage, a, lda, m0, k0, out.m, k, aligned_a);
        }
        if (TRANS_B) {
            load_tile<ROWS_B, THREADS>(stage + BYTES_A, b, ldb, n0, k0, out.n, k, aligned_b);
        } else {
            load_tile<ROWS_B, THREADS>(stage + BYTES_A, b, ldb, k0, n0, k, out.n, aligned_b);
        }
    };

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int wm = warp / WN * MI * 16, wn = warp % WN * NI * 8;
    bool live = m0 + wm < out.m && n0 + wn < out.n;
    float sums[MI][NI][4];
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
        for (int j = 0; j < NI; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
    }

    auto multiply = [&](u32 tile_a, u32 tile_b, int step) {
        u32 ra[MI][4], rb[NI / 2][4];
#pragma unroll
        for (int i = 0; i < MI; i++) {
            int m = wm + i * 16;
            if (TRANS_A) {
                int row = step * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4_trans(ra[i], tile_a + swizzled(row, m / 8 + lane / 8 % 2));
            } else {
                ldmatrix_x4(ra[i], tile_a + swizzled(m + lane % 16, step * 2 + lane / 16));
            }
        }
#pragma unroll
        for (int j = 0; j < NI / 2; j++) {
            int n = wn + j * 16;
            if (TRANS_B) {
                int row = n + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(rb[j], tile_b + swizzled(row, step * 2 + lane / 8 % 2));
            } else {
                ldmatrix_x4_trans(rb[j], tile_b + swizzled(step * 16 + lane % 16, n / 8 + lane / 16));
            }
        }
#pragma unroll
        for (int i = 0; i < MI; i++) {
#pragma unroll
            for (int j = 0; j < NI; j++) {
                mma_16x8x16(sums[i][j], ra[i], rb[j / 2][j % 2 * 2], rb[j / 2][j % 2 * 2 + 1]);
            }
        }
    };

    // One tile of zeros at least, so that K = 0 needs no path of its own.
    int tiles = max((k + DEPTH - 1) / DEPTH, 1);
    load(0);
    cp_async_commit();
#pragma unroll
    for (int tile = 1; tile < STAGES - 1; tile++) {
        if (tile < tiles) load(tile);
        cp_async_commit();
    }
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (tile + STAGES - 1 < tiles) load(tile + STAGES - 1);
        cp_async_commit();
        if (!live) continue;
        u32 tile_a = shared_address(stages) + tile % STAGES * STAGE, tile_b = tile_a + BYTES_A;
        int depth = k - tile * DEPTH;
        if (depth >= DEPTH) {
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++) multiply(tile_a, tile_b, step);
        } else {
#pragma unroll 1
            for (int step = 0; step * 16 < depth; step++) multiply(tile_a, tile_b, step);
        }
    }
    if (!live) return;

    // A lane holds two neighbouring columns of each of two n8 tiles; it gives one pair to its neighbour and so gets
    // four columns of one tile.
    bool odd = lane % 2;
#pragma unroll
    for (int j = 0; j < NI; j += 2) {
        int column = n0 + wn + (j + odd) * 8 + lane % 4 / 2 * 4;
        float bias[4];
        load_bias(out, column, bias);
#pragma unroll
        for (int i = 0; i < MI * 2; i++) {
            const float *left = &sums[i / 2][j][i % 2 * 2], *right = &sums[i / 2][j + 1][i % 2 * 2];
            float got0 = __shfl_xor_sync(FULL_MASK, odd ? left[0] : right[0], 1);
            float got1 = __shfl_xor_sync(FULL_MASK, odd ? left[1] : right[1], 1);
            float four[4] = {odd ? got0 : left[0], odd ? got1 : left[1], odd ? right[0] : got0, odd ? right[1] : got1};
            write4(out, m0 + wm + i * 8 + lane / 4, column, four, bias);
        }
    }
}

// f32. A tile of 64 x 16 of a factor, with K as its rows; four neighbours along M or N are one 16-byte access.
#define STEP 16
typedef float Panel[STEP][64 + 4];

template <bool K_CONTIGUOUS>
__device__ __forceinline__ void load_panel(Panel& panel, const float* matrix, int ld, int k0, int first, int k,
                                           int extent, bool aligned) {
    int t = threadIdx.x;
    // Two lanes read one 32-byte sector of a row that runs along K, and no two lanes then store to one bank.
    int row = K_CONTIGUOUS ? first + t % WARP / 2 + t / 64 * 16 : k0 + t / 16;
    int column = K_CONTIGUOUS ? k0 + (t % 2 + t / WARP % 2 * 2) * 4 : first + t % 16 * 4;
    int rows = K_CONTIGUOUS ? extent : k, columns = K_CONTIGUOUS ? k : extent;
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row < rows) {
        const float* at = matrix + (i64)row * ld + column;
        if (aligned && column + 4 <= columns) {
            load4(at, x);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = column + i < columns ? at[i] : 0.0f;
        }
    }
    if (K_CONTIGUOUS) {
#pragma unroll
        for (int i = 0; i < 4; i++) panel[column - k0 + i][row - first] = x[i];
    } else {
        store4(&panel[row - k0][column - first], x);
    }
}

template <bool TRANS_A, bool TRANS_B>
__device__ __forceinline__ void gemm_f32(const Out<float, float>& out, const float* a, const float* b, int k, int lda,
                                         int ldb) {
    __shared__ __align__(16) Panel panel_a, panel_b;
    int tile_m, tile_n;
    tile_of(blockIdx.x, (out.m + 63) / 64, (out.n + 63) / 64, tile_m, tile_n);
    int m0 = tile_m * 64, n0 = tile_n * 64;
    int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
    bool live = m0 + m < out.m && n0 + n < out.n;
    bool aligned_a = is_aligned(a) && lda % 4 == 0, aligned_b = is_aligned(b) && ldb % 4 == 0;
    float sums[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += STEP) {
        __syncthreads();
        load_panel<!TRANS_A>(panel_a, a, lda, k0, m0, k, out.m, aligned_a);
        load_panel<TRANS_B>(panel_b, b, ldb, k0, n0, k, out.n, aligned_b);
        __syncthreads();
        if (!live) continue;
#pragma unroll
        for (int step = 0; step < STEP; step++) {
            float x[4], y[4];
            load4(&panel_a[step][m], x);
            load4(&panel_b[step][n], y);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
            }
        }
    }
    float bias[4];
    load_bias(out, n0 + n, bias);
#pragma unroll
    for (int i = 0; i < 4; i++) write4(out, m0 + m + i, n0 + n, sums[i], bias);
}

template <typename D, typename T>
__device__ __forceinline__ Out<D, T> into(D* d, const T* bias, int m, int n, int ldd, int accumulate) {
    return {d, bias, m, n, ldd, accumulate != 0, is_aligned(d) && ldd % 4 == 0};
}

// All entries. Sizes m, n >= 1 and k >= 0 in elements, leading dimensions (elements from a row to the next) at least
// the row's length; D must not overlap A or B. Any alignment of T is legal; wide accesses where a pointer is 16-byte
// aligned and its leading dimension a multiple of 8 (bf16 A, B) or of 4 (f32 A, B; any D), with the same bits.
// Grid ceil(m / BM) * ceil(n / BN), with BM x BN = 64 x 64 (16 x 32 for gemm_nt_skinny_bf16); block 128 (bf16), 64
// (gemm_nt_skinny_bf16), 256 (f32); no dynamic shared memory.

// d [m, n] = a [m, k] b [n, k]^T + bias [n]; bias null: none. gemm_nt_skinny_bf16 has the bits of gemm_nt_bf16 and is
// for few rows (m <= 64); gemm_nt_wide_bf16 writes the sum unrounded.
#define NT(NAME, THREADS, D, T, ...)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        NAME(D* d, const T* a, const T* b, const T* bias, int m, int n, int k, int lda, int ldb, int ldd) {            \
        __VA_ARGS__(into(d, bias, m, n, ldd, 0), a, b, k, lda, ldb);                                                   \
    }
NT(gemm_nt_bf16, 128, bf16, bf16, gemm<bf16, false, true, 2, 2, 2, 4, 2>)
NT(gemm_nt_skinny_bf16, 64, bf16, bf16, gemm<bf16, false, true, 1, 2, 1, 2, 4>)
NT(gemm_nt_wide_bf16, 128, float, bf16, gemm<float, false, true, 2, 2, 2, 4, 2>)
NT(gemm_nt_f32, 256, float, float, gemm_f32<false, true>)

// d [m, n] = a [m, k] b [k, n].
#define NN(NAME, THREADS, D, T, ...)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        NAME(D* d, const T* a, const T* b, int m, int n, int k, int lda, int ldb, int ldd) {                           \
        __VA_ARGS__(into<D, T>(d, nullptr, m, n, ldd, 0), a, b, k, lda, ldb);                                          \
    }
NN(gemm_nn_bf16, 128, bf16, bf16, gemm<bf16, false, false, 2, 2, 2, 4, 2>)
NN(gemm_nn_f32, 256, float, float, gemm_f32<false, false>)

// d [m, n] = a [k, m]^T b [k, n], or d += it if accumulate; d is f32 always.
#define TN(NAME, THREADS, T, ...)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        NAME(float* d, const T* a, const T* b, int m, int n, int k, int lda, int ldb, int ldd, int accumulate) {       \
        __VA_ARGS__(into<float, T>(d, nullptr, m, n, ldd, accumulate), a, b, k, lda, ldb);                             \
    }
TN(gemm_tn_bf16, 128, bf16, gemm<float, true, false, 2, 2, 2, 4, 2>)
TN(gemm_tn_f32, 256, float, gemm_f32<true, false>)
