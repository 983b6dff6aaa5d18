// One step of decoding is over: each row takes its token, and becomes the next step's input. Per row: the token and its
// log-probability are kept, count and position go up by one, the row is finished after a stop token, at the largest
// count, or if a logit was not finite; and the next draw's uniform number is made, Philox4x32-10 of the counter (count,
// number, step, stage) under the seed (Salmon et al., SC 2011). Limit: 56 bytes a row; latency.
#include "common.cuh"

// What a row's random numbers depend on, besides its number and count.
struct Key {
    u32 low, high, step, stage;
};

__device__ __forceinline__ float uniform(u32 count, u32 number, Key key) {
    u32 c0 = count, c1 = number, c2 = key.step, c3 = key.stage << 24, k0 = key.low, k1 = key.high;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(b >> 32) ^ c1 ^ k0;
        c2 = (u32)(a >> 32) ^ c3 ^ k1;
        c1 = (u32)b;
        c3 = (u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (float)(c0 >> 8) * (1.0f / 16777216.0f);
}

// ids, positions, counts, finished, uniforms [rows]: read and written, those of finished rows left as they are. numbers
// [rows]: which random numbers a row draws. tokens i32 and kept f32 [window, rows]: element (count % window, row) is
// written, the others are left. drawn, bad, logprobs [rows]: from sample.cu and token_logprobs.cu. Where bad[row] >= 0
// the token kept is -1 - bad[row], and the row is finished. stop [stops]: tokens that end a row. A row is finished too
// when its count reaches `most`. seed in two words; step, stage: of the random numbers' counter.
// Grid and block: any of one dimension; ceil(rows / 128) blocks of 128 give each thread one row.
extern "C" __global__ void advance_f32(int* ids, int* positions, int* counts, int* finished, float* uniforms,
                                       int* tokens, float* kept, const int* numbers, const int* drawn, const int* bad,
                                       const float* logprobs, const int* stop, int rows, int stops, int window,
                                       int most, int seed_low, int seed_high, int step, int stage) {
    Key key = {(u32)seed_low, (u32)seed_high, (u32)step, (u32)stage};
    for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
        if (finished[row]) continue;
        int token = drawn[row], broken = bad[row], count = counts[row], place = count % window * rows + row;
        tokens[place] = broken >= 0 ? -1 - broken : token;
        kept[place] = logprobs[row];
        int stopped = count + 1 >= most;
        if (broken >= 0) stopped = 1;
        for (int i = 0; i < stops; i++) {
            if (stop[i] == token) stopped = 1;
        }
        counts[row] = count + 1;
        finished[row] = stopped;
        if (stopped) continue;
        ids[row] = token;
        positions[row] += 1;
        uniforms[row] = uniform(count + 1, numbers[row], key);
    }
}
