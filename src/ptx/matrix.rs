//! ldmatrix and mma.sync. Fragments are the ISA's: with g = lane / 4 and t = lane % 4, a lane holds of A rows g and g +
//! 8, columns 2t, 2t + 1 (and + 8); of B rows 2t, 2t + 1 (and + 8), column g; of C and D rows g and g + 8, columns 2t,
//! 2t + 1.
//!
//! The sum of one output is d = c + a0 b0 + a1 b1 + .. in ascending k, every addition rounded to f32; the products are
//! exact. Hardware adds groups of products with fewer roundings in an order of its own: tolerances must allow for that.

use super::collective::whole;
use super::float::{canon, from_f16};
use super::inst::{Access, Element, Inst};
use super::run::{Run, Stop, halt};

/// Two elements of a register.
#[inline(always)]
fn both(x: u32, element: Element) -> (f32, f32) {
    match element {
        Element::BF16 => (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000)),
        Element::F16 => (from_f16(x as u16), from_f16((x >> 16) as u16)),
    }
}

impl Run<'_> {
    /// ldmatrix.sync.aligned.m8n8
    pub(super) fn ldmatrix(&mut self, i: &Inst, mask: u32, count: u8, trans: bool, access: Access) -> Result<(), Stop> {
        whole(self.warp, mask)?;
        let rows = 8 * usize::from(count);
        let address = self.addresses(&access, i.src[0]);
        let mut data = [[0u32; 4]; 32];
        let agent = self.agent;
        for lane in 0..rows {
            let at = address[lane];
            if !at.is_multiple_of(16) {
                return Err(self.misaligned(at, 16, lane as u32));
            }
            self.shared.check(&agent, lane as u32, at, 16, false).map_err(|c| halt(c, Some(lane as u32)))?;
            for (w, word) in data[lane].iter_mut().enumerate() {
                *word = self.shared.word(at as u32 + 4 * w as u32);
            }
        }
        if self.cx.options.count {
            let lanes = if rows == 32 { u32::MAX } else { (1 << rows) - 1 };
            self.tally.shared(lanes, &address, 16);
        }
        for m in 0..usize::from(count) {
            let matrix = &data[8 * m..8 * m + 8];
            let mut out = [0u32; 32];
            for (l, word) in out.iter_mut().enumerate() {
                let (g, t) = (l / 4, l % 4);
                *word = if trans {
                    let pick = |row: usize| matrix[row][g / 2] >> (16 * (g & 1)) & 0xffff;
                    pick(2 * t + 1) << 16 | pick(2 * t)
                } else {
                    matrix[g][t]
                };
            }
            self.warp.put(i.dst[m], mask, &out);
        }
        Ok(())
    }

    /// mma.sync.aligned.m16n8k16 and k8, f32 accumulation
    pub(super) fn mma(&mut self, i: &Inst, mask: u32, element: Element, k: usize) -> Result<(), Stop> {
        whole(self.warp, mask)?;
        let w = &mut *self.warp;
        let words = k / 4;
        let (mut a, mut b, mut c) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
        for r in 0..words {
            // Registers of A go down the rows first, then along k.
            let (down, along) = (8 * (r & 1), 8 * (r >> 1));
            for (l, &x) in w.word(i.src[r]).iter().enumerate() {
                let (lo, hi) = both(x, element);
                a[l / 4 + down][2 * (l % 4) + along] = lo;
                a[l / 4 + down][2 * (l % 4) + along + 1] = hi;
            }
        }
        for r in 0..words / 2 {
            for (l, &x) in w.word(i.src[words + r]).iter().enumerate() {
                let (lo, hi) = both(x, element);
                b[2 * (l % 4) + 8 * r][l / 4] = lo;
                b[2 * (l % 4) + 8 * r + 1][l / 4] = hi;
            }
        }
        let first = words + words / 2;
        for r in 0..4 {
            for (l, &x) in w.word(i.src[first + r]).iter().enumerate() {
                c[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)] = f32::from_bits(x);
            }
        }
        for (row, a) in c.iter_mut().zip(&a) {
            let mut sum = *row;
            for (&x, b) in a[..k].iter().zip(&b) {
                for n in 0..8 {
                    sum[n] += x * b[n];
                }
            }
            *row = sum;
        }
        for r in 0..4 {
            let out: [u32; 32] = std::array::from_fn(|l| canon(c[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)]));
            w.put(i.dst[r], mask, &out);
        }
        self.tally.mma += 1;
        Ok(())
    }
}
