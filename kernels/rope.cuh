// The turn of a pair of a head's elements by an angle; the training path and the cache both take it from here, so that
// both have the same bits.
#pragma once
#include "common.cuh"

template <int K>
__device__ __forceinline__ void turn(float (&a)[K], float (&b)[K], const float (&x)[K], const float (&y)[K],
                                     const float (&cosine)[K], const float (&sine)[K]) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        a[k] = fmaf(x[k], cosine[k], -(y[k] * sine[k]));
        b[k] = fmaf(y[k], cosine[k], x[k] * sine[k]);
    }
}
