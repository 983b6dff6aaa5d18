//! Which examples share a row, and in which order an epoch takes them. Both depend on lengths, seed and epoch alone,
//! so a resumed run sees what the first one would have seen.

use std::collections::BTreeMap;

use rand::Rng;

use crate::error::{Error, Result};

/// Packs examples into rows of at most `max_length` tokens by best-fit decreasing: the longest first, each into the
/// row where it leaves the least room (Johnson, "Near-optimal bin packing algorithms", 1973: at most 11/9 of the best
/// number of rows, and 4). Equal lengths go in the order of their indices. Returns the indices in each row.
///
/// Errors: `packing-length` for an example that is empty or longer than a row.
pub fn pack(lengths: &[usize], max_length: usize) -> Result<Vec<Vec<usize>>> {
    if let Some((index, length)) = lengths.iter().enumerate().find(|(_, length)| !(1..=max_length).contains(*length)) {
        let what = format!("example {index} has {length} tokens, and a row holds 1 to {max_length}");
        return Err(Error::failure("packing-length", what));
    }
    let mut order: Vec<(usize, usize)> = lengths.iter().copied().enumerate().collect();
    order.sort_by_key(|(index, length)| (std::cmp::Reverse(*length), *index));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // The rows by the room they have left; of several with the same room the last one opened is taken.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, length) in order {
        let found = by_room.range_mut(length..).next().map(|(room, same)| (*room, same.pop(), same.is_empty()));
        let (room, row) = match found {
            Some((room, Some(row), is_last)) => {
                if is_last {
                    by_room.remove(&room);
                }
                (room, row)
            }
            _ => {
                rows.push(Vec::new());
                (max_length, rows.len() - 1)
            }
        };
        if let Some(members) = rows.get_mut(row) {
            members.push(index);
        }
        if room > length {
            by_room.entry(room - length).or_default().push(row);
        }
    }
    Ok(rows)
}

/// The order in which one epoch takes its examples: a permutation that the random numbers decide, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    order: Vec<usize>,
}

impl EpochOrder {
    /// A uniformly drawn permutation of 0..n (Fisher-Yates, from the end). `random` must be keyed by seed and epoch.
    ///
    /// The shuffle is written out here because `rand` does not promise that its own draws the same numbers in its next
    /// version, and a run is resumed by drawing the order again.
    pub fn new(n: usize, random: &mut impl Rng) -> Self {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last, below(last + 1, random));
        }
        Self { order }
    }

    /// The examples in file order, for evaluation.
    pub fn in_file_order(n: usize) -> Self {
        Self { order: (0..n).collect() }
    }

    /// The indices in their order.
    pub fn as_slice(&self) -> &[usize] {
        &self.order
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// A uniform number below `bound` (Lemire, "Fast random integer generation in an interval", 2019): the high half of a
/// product; the rare draws that would favour some numbers are drawn again.
fn below(bound: usize, random: &mut impl Rng) -> usize {
    let bound = bound as u64;
    let favoured = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(random.next_u64()) * u128::from(bound);
        if product as u64 >= favoured {
            return (product >> 64) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// SplitMix64, enough to draw with.
    struct Random(u64);

    impl rand::TryRng for Random {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
            Ok((self.try_next_u64()? >> 32) as u32)
        }

        fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            Ok(mixed ^ (mixed >> 31))
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Infallible> {
            bytes.iter_mut().try_for_each(|byte| self.try_next_u64().map(|word| *byte = word as u8))
        }
    }

    #[test]
    fn rows_are_full_and_nothing_is_lost() {
        assert_eq!(pack(&[3, 7, 5, 5, 2, 8], 10).unwrap(), vec![vec![5, 4], vec![1, 0], vec![2, 3]]);
        assert_eq!(pack(&[], 10).unwrap(), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[10, 10], 10).unwrap(), vec![vec![0], vec![1]]);
        let lengths: Vec<usize> = (0..2000_usize).map(|i| 1 + i * 7919 % 300).collect();
        let rows = pack(&lengths, 512).unwrap();
        let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..2000));
        let filled = |row: &Vec<usize>| row.iter().map(|index| lengths[*index]).sum::<usize>();
        assert!(rows.iter().all(|row| filled(row) <= 512));
        let fewest = lengths.iter().sum::<usize>().div_ceil(512);
        assert!(rows.len() <= fewest + 1, "{} rows where {fewest} would do at best", rows.len());
        assert_eq!(rows, pack(&lengths, 512).unwrap());
    }

    #[test]
    fn lengths_that_fit_no_row_are_refused() {
        assert_eq!(pack(&[11], 10).unwrap_err().id(), "packing-length");
        assert_eq!(pack(&[0], 10).unwrap_err().id(), "packing-length");
    }

    #[test]
    fn an_order_is_a_permutation_that_the_key_decides() {
        let order = |n, seed| EpochOrder::new(n, &mut Random(seed));
        assert_eq!(order(100, 1), order(100, 1));
        assert_ne!(order(100, 1), order(100, 2));
        let mut sorted = order(100, 1).as_slice().to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, EpochOrder::in_file_order(100).as_slice());
        assert!(order(0, 1).is_empty() && order(1, 1).len() == 1);
    }

    #[test]
    fn every_place_is_equally_likely() {
        let mut random = Random(7);
        let mut counts = [[0_i32; 5]; 5];
        for _ in 0..10_000 {
            for (place, index) in EpochOrder::new(5, &mut random).as_slice().iter().enumerate() {
                counts[place][*index] += 1;
            }
        }
        // 2000 expected, standard deviation 40.
        assert!(counts.iter().flatten().all(|count| (count - 2000).abs() < 200), "{counts:?}");
    }
}
