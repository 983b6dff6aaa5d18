// The tensor-core instructions of compute_80 as functions: cp.async from global to shared memory, ldmatrix from shared
// memory to registers, mma.sync on bf16 with f32 accumulation; and the layout of shared memory they want, rows of 64
// bf16 whose 16-byte chunks are permuted so that eight rows of one column touch all 32 banks once.
#pragma once
#include "common.cuh"

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Byte offset of the 16-byte chunk `chunk` (0..8) of row `row` in a tile of rows of 128 bytes, based at a multiple of
// 1024 bytes.
__device__ __forceinline__ u32 swizzled(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// Copies 16 bytes without waiting; writes zeros where not `valid`, and then `from` need only be some address.
__device__ __forceinline__ void cp_async16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` of this thread's latest groups are still under way.
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of bf16: lane l gives the address of row l % 8 of matrix l / 8 and receives in r[i], of matrix i,
// row l / 4, columns 2 (l % 4) and the next. Transposed: column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8]. With g = lane / 4 and c = 2 (lane % 4): d = (g, c), (g, c + 1), (g + 8, c),
// (g + 8, c + 1); a = pairs from (g, c), (g + 8, c), (g, c + 8), (g + 8, c + 8); b0, b1 = column g, rows c, c + 1 and
// c + 8, c + 9.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
