//! Keys and values of new tokens into the cache, in the layout that attention's tiles want.

#![forbid(unsafe_code)]

use super::attention::{Cached, Heads, padded};
use super::math::Real;

/// Writes the batch's keys and values behind what is cached: keys [slots, NKV, HD, capacity], values
/// [slots, NKV, capacity, padded HD].
pub(crate) fn append<T: Real>(keys: &mut [T], values: &mut [T], qkv: &[T], cached: Cached<'_>, heads: Heads) {
    let (size, wide, capacity) = (heads.size, padded(heads.size), cached.capacity);
    for (b, rows) in cached.sequences.windows(2).enumerate() {
        for n in rows[0]..rows[1] {
            let row = &qkv[n * heads.row()..][..heads.row()];
            let position = cached.lengths[b] + n - rows[0];
            for h in 0..heads.kv_heads {
                let slot = cached.slots[b] * heads.kv_heads + h;
                for (i, k) in row[heads.key(h)..][..size].iter().enumerate() {
                    keys[(slot * size + i) * capacity + position] = *k;
                }
                let value = &row[heads.value(h)..][..size];
                values[(slot * capacity + position) * wide..][..size].copy_from_slice(value);
            }
        }
    }
}
