// How the kernels over rows of logits read a row: in chunks of 16 bytes' worth of elements. Which thread sums what does
// not depend on alignment, so neither do the bits of the sums.
#pragma once
#include "common.cuh"

// Elements at..at + size of a row of `width`, -inf beyond its end; `aligned` if every whole chunk is 16-byte aligned.
template <typename T>
__device__ __forceinline__ void load_logits(const T* row, int at, int width, bool aligned,
                                            float (&x)[Vector<T>::size]) {
    if (aligned && at + Vector<T>::size <= width) {
        load16(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < Vector<T>::size; i++) x[i] = at + i < width ? to_f32(row[at + i]) : -infinity();
    }
}

template <typename T> __device__ __forceinline__ bool rows_aligned(const T* logits, int stride) {
    return is_aligned(logits) && stride % Vector<T>::size == 0;
}
