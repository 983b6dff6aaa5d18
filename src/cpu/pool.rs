//! Host buffers used again. A training step allocates the same few hundred buffers every time; fresh memory from the
//! operating system costs a page fault per 4 KiB, which at small sizes is a fifth of the step. Contents are
//! unspecified: every operation writes all that it returns. Debug builds hand out NaN, so that a forgotten element
//! shows.

#![forbid(unsafe_code)]

use std::sync::Mutex;

use super::math::Real;

/// Bytes that are kept at most.
const KEPT_BYTES: usize = 512 << 20;
/// Elements below which the allocator is fast enough.
const SMALL: usize = 1024;

/// Free buffers by size class: class c holds buffers of at least 2^c elements.
#[derive(Debug, Default)]
pub(crate) struct Shelf<T> {
    classes: Vec<Class<T>>,
    bytes: usize,
}

/// The buffers of one size. Some come back that were never taken (a tensor made of a caller's values), so no more are
/// kept than were in use at once: a run of a million steps would fill the shelf with the others.
#[derive(Debug)]
struct Class<T> {
    free: Vec<Vec<T>>,
    in_use: usize,
    in_use_most: usize,
}

impl<T> Default for Class<T> {
    fn default() -> Self {
        Self { free: Vec::new(), in_use: 0, in_use_most: 0 }
    }
}

/// A buffer of `n` elements whose contents are unspecified.
pub(crate) fn take<T: Real>(n: usize) -> Vec<T> {
    let mut buffer = if n < SMALL { Vec::new() } else { T::shelf(|shelf| shelf.take(n)) };
    if buffer.capacity() < n {
        buffer = Vec::with_capacity(if n < SMALL { n } else { n.next_power_of_two() });
    }
    buffer.resize(n, T::ZERO);
    if cfg!(debug_assertions) {
        buffer.fill(T::of(f64::NAN));
    }
    buffer
}

/// Puts a buffer back for the next [`take`].
pub(crate) fn give<T: Real>(buffer: Vec<T>) {
    if buffer.capacity() >= SMALL {
        T::shelf(|shelf| shelf.give(buffer));
    }
}

/// A buffer that goes back when it is dropped; contents unspecified at first.
pub(crate) struct Scratch<T: Real>(Vec<T>);

/// A [`Scratch`] of `n` elements.
pub(crate) fn scratch<T: Real>(n: usize) -> Scratch<T> {
    Scratch(take(n))
}

impl<T: Real> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Real> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Real> Drop for Scratch<T> {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

impl<T> Shelf<T> {
    pub(crate) const fn new() -> Self {
        Self { classes: Vec::new(), bytes: 0 }
    }

    fn take(&mut self, n: usize) -> Vec<T> {
        let class = self.class(n.next_power_of_two().trailing_zeros());
        class.in_use += 1;
        class.in_use_most = class.in_use_most.max(class.in_use);
        let found = class.free.pop().unwrap_or_default();
        self.bytes -= found.capacity() * size_of::<T>();
        found
    }

    fn give(&mut self, buffer: Vec<T>) {
        let bytes = buffer.capacity() * size_of::<T>();
        let has_room = self.bytes + bytes <= KEPT_BYTES;
        let class = self.class(buffer.capacity().ilog2());
        class.in_use = class.in_use.saturating_sub(1);
        if has_room && class.free.len() + class.in_use < class.in_use_most {
            class.free.push(buffer);
            self.bytes += bytes;
        }
    }

    fn class(&mut self, class: u32) -> &mut Class<T> {
        let class = class as usize;
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Class::default);
        }
        &mut self.classes[class]
    }
}

pub(super) static F32: Mutex<Shelf<f32>> = Mutex::new(Shelf::new());
pub(super) static F64: Mutex<Shelf<f64>> = Mutex::new(Shelf::new());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_was_in_use_at_once() {
        let mut shelf = Shelf::<f32>::new();
        let free = |shelf: &Shelf<f32>| shelf.classes.iter().map(|class| class.free.len()).sum::<usize>();
        for _ in 0..100 {
            let taken: Vec<_> = [4096, 3000].map(|n| (n, shelf.take(n))).into();
            for (n, buffer) in taken {
                shelf.give(if buffer.capacity() < n { Vec::with_capacity(4096) } else { buffer });
                // Those of a caller: of a size in use, and of another.
                shelf.give(Vec::with_capacity(5000));
                shelf.give(Vec::with_capacity(9000));
            }
        }
        assert_eq!((free(&shelf), shelf.bytes), (2, shelf.classes[12].free.iter().map(|b| 4 * b.capacity()).sum()));
        let [first, second, third] = [4096, 4096, 4096].map(|n| shelf.take(n).capacity() >= n);
        assert!(first && second && !third, "two are kept");
        assert_eq!(shelf.bytes, 0);
    }
}
