// The next token of each row of logits: temperature, then top-k (of equal logits the lower ids stay), then top-p (the
// smallest set of most likely tokens whose mass reaches it, the first always), then one uniform number through the
// inverse of the cumulative distribution in vocabulary order; or the largest logit, the first of equals. Limit: one
// pass, 2 R V bytes (bf16); later passes find the row in cache: one for the sums, two (bf16) or four (f32) a threshold.
// A token's mass is the integer 2^44 exp((logit - largest) / temperature), so that a sum has the same bits in any
// order. Thresholds are found digit by digit in the bits of the logits, never by sorting.
#include "logits.cuh"

#define MASS_UNIT 17592186044416.0f
#define TWO_32 4294967296.0f
#define DIGITS 256

// A warp reads the tokens begin..end of the row.
template <typename T> struct Row {
    const T* logits;
    int width, begin, end;
    bool aligned;
    float largest, scale;
};

// What is left of a row: the tokens above `logit`, and of those equal to it the first `ties`.
struct Cut {
    float logit;
    u32 ties;
};

// Slices of the row, one a warp: the mass above a cut, and the number of tokens equal to it.
struct Slices {
    u64 mass[32];
    u32 equal[32];
};

// Unsigned numbers in the order of the logits, as wide as T; the zeros are one.
template <typename T> __device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    return (bits ^ ((u32)((int)bits >> 31) | 0x80000000u)) >> (32 - 8 * sizeof(T));
}
template <typename T> __device__ __forceinline__ float logit_of(u32 key) {
    const int UNUSED = 32 - 8 * sizeof(T);
    u32 ordered = key << UNUSED, bits = (int)ordered < 0 ? ordered ^ 0x80000000u : ~ordered;
    return __uint_as_float(bits >> UNUSED << UNUSED);
}

// 0 for NaN.
template <typename T> __device__ __forceinline__ u64 mass_of(const Row<T>& row, float x) {
    return (u64)fmaxf(exp2_fast((x - row.largest) * row.scale) * MASS_UNIT, 0.0f);
}

__device__ __forceinline__ void load8(const u32* at, u32 (&x)[8]) {
    uint4 v = *reinterpret_cast<const uint4*>(at), w = *reinterpret_cast<const uint4*>(at + 4);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w, x[4] = w.x, x[5] = w.y, x[6] = w.z, x[7] = w.w;
}

template <typename N> __device__ __forceinline__ N warp_total(N x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}
// The sum over this lane and those before it.
template <typename N> __device__ __forceinline__ N warp_prefix(N x) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        N below = __shfl_up_sync(FULL_MASK, x, step);
        if (threadIdx.x % WARP >= step) x += below;
    }
    return x;
}
__device__ __forceinline__ u64 block_largest(u64 x, u64* scratch) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(FULL_MASK, x, step));
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int w = 0; w < blockDim.x / WARP; w++) x = max(x, scratch[w]);
    __syncthreads();
    return x;
}

template <typename T, typename F> __device__ __forceinline__ void each(const Row<T>& row, F visit) {
    const int SIZE = Vector<T>::size;
    for (int at = row.begin + threadIdx.x % WARP * SIZE; at < row.end; at += WARP * SIZE) {
        float x[SIZE];
        load_logits(row.logits, at, row.width, row.aligned, x);
#pragma unroll
        for (int i = 0; i < SIZE; i++) visit(x[i], at + i);
    }
}

// The id of the largest logit, the first of equals (0 if none is above -inf), and of the first that is not finite (-1:
// none).
template <typename T>
__device__ __forceinline__ void find_largest(Row<T>& row, u64* scratch, int& best, int& bad) {
    const int SIZE = Vector<T>::size;
    // Ids stand inverted, so that the first is the largest; below the key, it is the first of equals.
    float largest = -infinity();
    u32 first = 0, not_finite = 0;
    for (int at = row.begin + threadIdx.x % WARP * SIZE; at < row.end; at += WARP * SIZE) {
        float x[SIZE], top = -infinity(), extreme = 0.0f;
        load_logits(row.logits, at, row.width, row.aligned, x);
#pragma unroll
        for (int i = 0; i < SIZE; i++) {
            top = fmaxf(top, x[i]);
            extreme = max_nan(extreme, fabsf(x[i]));
        }
        if (top > largest) {
            largest = top;
#pragma unroll
            for (int i = SIZE - 1; i >= 0; i--) first = x[i] == top ? ~(u32)(at + i) : first;
        }
        if (!(extreme < infinity()) && !not_finite) {
#pragma unroll
            for (int i = SIZE - 1; i >= 0; i--) {
                if (!(fabsf(x[i]) < infinity()) && at + i < row.width) not_finite = ~(u32)(at + i);
            }
        }
    }
    u64 none = ~(u32)0;
    u64 top = block_largest(largest > -infinity() ? (u64)key_of<float>(largest) << 32 | first : none, scratch);
    best = (int)~(u32)top;
    bad = (int)~(u32)block_largest(not_finite, scratch);
    row.largest = logit_of<float>((u32)(top >> 32));
}

// The mass of what the cut leaves, and by slice what stands above the cut and on it.
template <typename T>
__device__ __forceinline__ u64 sum_slices(const Row<T>& row, const Cut& cut, Slices& slices) {
    u64 mass = 0;
    u32 equal = 0;
    each(row, [&](float x, int) {
        mass += x > cut.logit ? mass_of(row, x) : 0;
        equal += x == cut.logit;
    });
    mass = warp_total(mass);
    equal = warp_total(equal);
    if (threadIdx.x % WARP == 0) {
        slices.mass[threadIdx.x / WARP] = mass;
        slices.equal[threadIdx.x / WARP] = equal;
    }
    __syncthreads();
    u64 total = cut.ties * mass_of(row, cut.logit);
    for (int w = 0; w < blockDim.x / WARP; w++) total += slices.mass[w];
    return total;
}

// The largest logit such that the tokens from it upwards, none below `floor`, measure at least `bound` (1 at least, and
// at most the measure of all): in mass, or in number. `above` is the measure of those above it.
template <bool BY_MASS, typename T>
__device__ __forceinline__ float find_threshold(const Row<T>& row, float floor, u64 bound, u64& above) {
    // The sums of a digit in two words, the largest digit first.
    __shared__ __align__(16) u32 low[DIGITS], high[DIGITS];
    __shared__ u32 found;
    __shared__ u64 found_above;
    u32 key = 0, known = 0;
    above = 0;
    for (int shift = 8 * sizeof(T) - 8; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) low[i] = high[i] = 0;
        __syncthreads();
        each(row, [&](float x, int) {
            u32 k = key_of<T>(x), digit = DIGITS - 1 - (k >> shift & (DIGITS - 1));
            if (x < floor || ((k ^ key) & known)) return;
            if (BY_MASS) {
                u64 mass = mass_of(row, x);
                u32 part = (u32)mass, rest = (u32)(mass >> 32);
                if (mass == 0) return;
                rest += atomicAdd(&low[digit], part) > ~part;
                if (rest) atomicAdd(&high[digit], rest);
            } else {
                atomicAdd(&low[digit], 1);
            }
        });
        __syncthreads();
        if (threadIdx.x < WARP) {
            const int OWN = DIGITS / WARP;
            u32 words[2][OWN];
            load8(low + threadIdx.x * OWN, words[0]);
            load8(high + threadIdx.x * OWN, words[1]);
            u64 own[OWN], sum = 0;
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                own[i] = (u64)words[1][i] << 32 | words[0][i];
                sum += own[i];
            }
            u64 before = above + warp_prefix(sum) - sum;
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                if (before < bound && bound <= before + own[i]) {
                    found = DIGITS - 1 - (threadIdx.x * OWN + i);
                    found_above = before;
                }
                before += own[i];
            }
        }
        __syncthreads();
        key |= found << shift;
        known |= (u32)(DIGITS - 1) << shift;
        above = found_above;
    }
    return logit_of<T>(key);
}

// The token at which the cumulative mass of what the cut leaves passes `target` (below the mass of all). One lane of
// the block writes it.
template <typename T>
__device__ __forceinline__ void pick(int* token, const Row<T>& row, const Cut& cut, const Slices& slices, u64 target) {
    const int SIZE = Vector<T>::size;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 each_tie = mass_of(row, cut.logit), before = 0, own = 0;
    u32 ties = cut.ties;
    for (int w = 0; w <= warp; w++) {
        u32 taken = min(ties, slices.equal[w]);
        before += own;
        own = slices.mass[w] + taken * each_tie;
        if (w < warp) ties -= taken;
    }
    if (target < before || target >= before + own) return;

    for (int base = row.begin; base < row.end; base += WARP * SIZE) {
        int at = base + lane * SIZE;
        float x[SIZE];
        load_logits(row.logits, at, row.width, row.aligned, x);
        u32 equal = 0, taken = 0;
        if (ties) {
#pragma unroll
            for (int i = 0; i < SIZE; i++) equal += x[i] == cut.logit;
            u32 rank = warp_prefix(equal);
            taken = rank - equal;
            equal = __shfl_sync(FULL_MASK, rank, WARP - 1);
        }
        u64 mass[SIZE], sum = 0;
#pragma unroll
        for (int i = 0; i < SIZE; i++) {
            bool tie = x[i] == cut.logit, kept = x[i] > cut.logit || (tie && taken < ties);
            taken += tie;
            mass[i] = kept ? mass_of(row, x[i]) : 0;
            sum += mass[i];
        }
        u64 prefix = warp_prefix(sum), running = before + prefix - sum;
#pragma unroll
        for (int i = 0; i < SIZE; i++) {
            if (running <= target && target < running + mass[i]) *token = at + i;
            running += mass[i];
        }
        before += __shfl_sync(FULL_MASK, prefix, WARP - 1);
        ties -= min(ties, equal);
        if (target < before) return;
    }
}

template <typename T>
__device__ __forceinline__ void sample(int* tokens, int* bad, const T* logits, const float* uniforms, int vocabulary,
                                       int stride, float inverse_temperature, int greedy, int top_k, float top_p) {
    __shared__ u64 scratch[32];
    __shared__ Slices slices;
    i64 r = blockIdx.x;
    int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, step = WARP * Vector<T>::size;
    int slice = (vocabulary + warps * step - 1) / (warps * step) * step;
    Row<T> row = {logits + r * stride, vocabulary, min(warp * slice, vocabulary), min((warp + 1) * slice, vocabulary),
                  rows_aligned(logits, stride), 0.0f, inverse_temperature * LOG2_E};
    int best, not_finite;
    find_largest(row, scratch, best, not_finite);
    if (threadIdx.x == 0) {
        bad[r] = not_finite;
        tokens[r] = best;
    }
    if (greedy) return;

    Cut cut = {-infinity(), 0};
    u64 above;
    if (top_k > 0 && top_k < vocabulary) {
        cut.logit = find_threshold<false>(row, cut.logit, top_k, above);
        cut.ties = top_k - (u32)above;
    }
    u64 total = sum_slices(row, cut, slices);
    if (total == 0) return;
    if (top_p < 1.0f) {
        // An f32 may lie above the decimal number that it was given as, such as 0.1: without the last factor, masses
        // that reach that number exactly would fall short of it.
        u64 share = (u64)(fmaxf(top_p, 0.0f) * (TWO_32 * (1.0f - 1.0f / (1 << 22))));
        u64 bound = max(__umul64hi(total, share << 32), (u64)1);
        cut.logit = find_threshold<true>(row, cut.logit, bound, above);
        u64 each_tie = mass_of(row, cut.logit);
        cut.ties = (u32)((bound - above + each_tie - 1) / each_tie);
        total = sum_slices(row, cut, slices);
    }
    u64 uniform = (u64)(u32)fminf(uniforms[r] * TWO_32, TWO_32 - 256.0f);
    pick(tokens + r, row, cut, slices, __umul64hi(total, uniform << 32));
}

// tokens: [R], written. bad: [R], written: the id of the row's first logit that is not finite, or -1. A token of -inf
// is never drawn unless all are (then it is id 0); after NaN or +inf the token is some id of the vocabulary.
// logits: [R, stride], of which the first `vocabulary` columns are read (stride >= vocabulary, 1 <= vocabulary <=
// 2^19). uniforms: [R], in [0, 1). greedy: if not 0 the largest logit, whatever follows. top_k: <= 0 or >= vocabulary:
// all; top_p: >= 1: all.
// Grid R; block 32 if vocabulary <= 1024, 128 if vocabulary <= 8192, else 1024 (any block of whole warps gives the same
// tokens); no dynamic shared memory. 16-byte loads if `logits` is 16-byte aligned and stride * sizeof(T) a multiple of
// 16; else one element a load, with the same tokens.
#define SAMPLE(NAME, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        NAME(int* tokens, int* bad, const T* logits, const float* uniforms, int vocabulary, int stride,                \
             float inverse_temperature, int greedy, int top_k, float top_p) {                                          \
        sample(tokens, bad, logits, uniforms, vocabulary, stride, inverse_temperature, greedy, top_k, top_p);          \
    }
SAMPLE(sample_bf16, bf16)
SAMPLE(sample_f32, float)
