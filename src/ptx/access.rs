//! Loads, stores and atomics in every space. An access is judged lane by lane (alignment, bounds, initialisation,
//! races) and performed; its bytes travel as up to four raw words a lane.

use super::ast::Space;
use super::counters::sectors;
use super::error::Kind;
use super::inst::{Access, Inst, Rmw, Slot};
use super::memory::{CONST_TAG, Cause, LOCAL_TAG, SHARED_TAG, TAG_SHIFT};
use super::run::{Run, Stop, halt};

const OFFSET: u64 = (1 << TAG_SHIFT) - 1;

/// Up to sixteen bytes of each lane.
type Raw = [[u32; 32]; 4];

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

/// The space of a generic address.
fn space_of(address: u64) -> Space {
    match address >> TAG_SHIFT {
        SHARED_TAG => Space::Shared,
        LOCAL_TAG => Space::Local,
        CONST_TAG => Space::Const,
        _ => Space::Global,
    }
}

impl Run<'_> {
    /// The addresses of all lanes.
    #[inline(always)]
    pub(super) fn addresses(&self, access: &Access, base: Slot) -> [u64; 32] {
        if access.wide {
            self.warp.long(base).map(|a| a.wrapping_add(access.offset as u64))
        } else {
            self.warp.word(base).map(|a| u64::from(a.wrapping_add(access.offset as u32)))
        }
    }

    #[cold]
    pub(super) fn misaligned(&self, at: u64, bytes: u32, lane: u32) -> Stop {
        halt(Cause(Kind::Misaligned, format!("address {at:#x} is no multiple of {bytes}")), Some(lane))
    }

    /// Splits lanes by the space their address lies in; one part unless a generic access mixes spaces.
    fn parts(access: &Access, address: &[u64; 32], mask: u32) -> [(Space, u32); 4] {
        let spaces = [Space::Global, Space::Shared, Space::Local, Space::Const];
        match access.space {
            Space::Generic => {
                spaces.map(|s| (s, lanes(mask).filter(|&l| space_of(address[l]) == s).fold(0, |m, l| m | 1 << l)))
            }
            // Initialised module variables are global by name and live with the constants.
            Space::Global => {
                let constant = lanes(mask).filter(|&l| address[l] >> TAG_SHIFT == CONST_TAG).fold(0, |m, l| m | 1 << l);
                [(Space::Global, mask & !constant), (Space::Const, constant), (Space::Local, 0), (Space::Shared, 0)]
            }
            space => [(space, mask), (space, 0), (space, 0), (space, 0)],
        }
    }

    /// Addresses inside of a window: a generic address loses its tag, one that already names its space must have none.
    fn rebase(access: &Access, space: Space, address: &[u64; 32]) -> [u64; 32] {
        if access.space == Space::Generic && matches!(space, Space::Shared | Space::Local) {
            address.map(|a| a & OFFSET)
        } else {
            *address
        }
    }

    /// ld
    pub(super) fn load(&mut self, i: &Inst, mask: u32, access: Access) -> Result<(), Stop> {
        let address = self.addresses(&access, i.src[0]);
        let total = u32::from(access.bytes) * u32::from(access.count);
        let mut raw: Raw = [[0; 32]; 4];
        for (space, part) in Self::parts(&access, &address, mask).into_iter().filter(|p| p.1 != 0) {
            let address = Self::rebase(&access, space, &address);
            self.aligned(&address, part, total)?;
            match space {
                Space::Shared => self.load_shared(&address, part, total, &mut raw)?,
                Space::Local => self.load_local(&address, part, total, &mut raw)?,
                Space::Const => self.load_const(&address, part, total, &mut raw)?,
                _ => self.load_global(&address, part, total, access.strong, &mut raw)?,
            }
        }
        self.spread(i, mask, access, &raw);
        Ok(())
    }

    #[inline(always)]
    fn aligned(&self, address: &[u64; 32], mask: u32, total: u32) -> Result<(), Stop> {
        let low = u64::from(total) - 1;
        let wrong = (0..32).fold(0, |m, l| m | u32::from(address[l] & low != 0) << l) & mask;
        if wrong == 0 {
            return Ok(());
        }
        let lane = wrong.trailing_zeros();
        Err(self.misaligned(address[lane as usize], total, lane))
    }

    /// Raw words to registers.
    fn spread(&mut self, i: &Inst, mask: u32, access: Access, raw: &Raw) {
        for e in 0..usize::from(access.count) {
            if access.bytes == 8 {
                let (lo, hi) = (&raw[2 * e], &raw[2 * e + 1]);
                let out: [u64; 32] = std::array::from_fn(|l| u64::from(hi[l]) << 32 | u64::from(lo[l]));
                self.warp.put_long(i.dst[e], mask, &out);
                continue;
            }
            let at = e * usize::from(access.bytes);
            let (word, shift) = (&raw[at / 4], 8 * (at % 4) as u32);
            let signed = access.signed;
            let out = match access.bytes {
                4 => *word,
                2 => word.map(|x| (x >> shift) as u16).map(|x| if signed { x as i16 as u32 } else { u32::from(x) }),
                _ => word.map(|x| (x >> shift) as u8).map(|x| if signed { x as i8 as u32 } else { u32::from(x) }),
            };
            if access.long {
                let wide = out.map(|x| if signed { x as i32 as u64 } else { u64::from(x) });
                self.warp.put_long(i.dst[e], mask, &wide);
            } else {
                self.warp.put(i.dst[e], mask, &out);
            }
        }
    }

    fn load_global(
        &mut self,
        address: &[u64; 32],
        mask: u32,
        total: u32,
        strong: bool,
        raw: &mut Raw,
    ) -> Result<(), Stop> {
        let (memory, agent) = (self.cx.memory, self.agent);
        let checked = self.cx.options.initialised;
        for l in lanes(mask) {
            let bytes = u64::from(total);
            let mut fetch = || {
                let (allocation, offset) = memory.find(address[l])?;
                allocation.check_bounds(offset, bytes)?;
                if checked {
                    allocation.check_written(offset, bytes)?;
                }
                allocation.check_race(&agent, offset, bytes, false, strong)?;
                if total < 4 {
                    raw[0][l] = allocation.word(offset) >> ((offset & 3) * 8);
                } else {
                    for (w, words) in raw.iter_mut().enumerate().take(total as usize / 4) {
                        words[l] = allocation.word(offset + 4 * w as u64);
                    }
                }
                Ok(())
            };
            fetch().map_err(|c| halt(c, Some(l as u32)))?;
        }
        if self.cx.options.count {
            let t = &mut self.tally.global_load;
            t.requests += 1;
            t.bytes += u64::from(mask.count_ones() * total);
            t.sectors += sectors(mask, address, total);
        }
        Ok(())
    }

    fn load_shared(&mut self, address: &[u64; 32], mask: u32, total: u32, raw: &mut Raw) -> Result<(), Stop> {
        let agent = self.agent;
        for l in lanes(mask) {
            let at = address[l];
            self.shared.check(&agent, l as u32, at, total, false).map_err(|c| halt(c, Some(l as u32)))?;
            if total < 4 {
                raw[0][l] = self.shared.word(at as u32) >> ((at & 3) * 8);
            } else {
                for (w, words) in raw.iter_mut().enumerate().take(total as usize / 4) {
                    words[l] = self.shared.word(at as u32 + 4 * w as u32);
                }
            }
        }
        if self.cx.options.count {
            self.tally.shared(mask, address, total);
        }
        Ok(())
    }

    fn local_range(&self, at: u64, total: u32, lane: usize) -> Result<usize, Stop> {
        if at.saturating_add(u64::from(total)) <= u64::from(self.cx.kernel.local_bytes) {
            return Ok(at as usize);
        }
        let what = format!("{total} local bytes from {at:#x} of {}", self.cx.kernel.local_bytes);
        Err(halt(Cause(Kind::OutOfBounds, what), Some(lane as u32)))
    }

    fn load_local(&mut self, address: &[u64; 32], mask: u32, total: u32, raw: &mut Raw) -> Result<(), Stop> {
        for l in lanes(mask) {
            let at = self.local_range(address[l], total, l)?;
            let need = if total < 4 { ((1u8 << total) - 1) << (at & 3) } else { 15 };
            for (w, words) in raw.iter_mut().enumerate().take(total.div_ceil(4) as usize) {
                let index = at / 4 + w;
                if self.warp.local_written[index][l] & need != need {
                    let what = format!("local bytes {at}..{} were never written", at + total as usize);
                    return Err(halt(Cause(Kind::UninitialisedMemory, what), Some(l as u32)));
                }
                words[l] = self.warp.local[index][l] >> ((at & 3) * 8);
            }
        }
        Ok(())
    }

    fn load_const(&mut self, address: &[u64; 32], mask: u32, total: u32, raw: &mut Raw) -> Result<(), Stop> {
        let data = &self.cx.kernel.constants;
        for l in lanes(mask) {
            let at = address[l].wrapping_sub(CONST_TAG << TAG_SHIFT) as usize;
            let Some(bytes) = at.checked_add(total as usize).and_then(|end| data.get(at..end)) else {
                let what = format!("{total} constant bytes from {at:#x} of {}", data.len());
                return Err(halt(Cause(Kind::OutOfBounds, what), Some(l as u32)));
            };
            for (b, &byte) in bytes.iter().enumerate() {
                raw[b / 4][l] |= u32::from(byte) << (8 * (b % 4));
            }
        }
        Ok(())
    }

    /// st
    pub(super) fn store(&mut self, i: &Inst, mask: u32, access: Access) -> Result<(), Stop> {
        let address = self.addresses(&access, i.src[0]);
        let total = u32::from(access.bytes) * u32::from(access.count);
        let mut raw: Raw = [[0; 32]; 4];
        for e in 0..usize::from(access.count) {
            let slot = i.src[1 + e];
            if access.bytes == 8 {
                let value = self.warp.long(slot);
                raw[2 * e] = value.map(|x| x as u32);
                raw[2 * e + 1] = value.map(|x| (x >> 32) as u32);
                continue;
            }
            let value = if access.long { self.warp.long(slot).map(|x| x as u32) } else { *self.warp.word(slot) };
            let at = e * usize::from(access.bytes);
            if access.bytes == 4 {
                raw[at / 4] = value;
            } else {
                let keep = (1u32 << (8 * access.bytes)) - 1;
                for l in 0..32 {
                    raw[at / 4][l] |= (value[l] & keep) << (8 * (at % 4));
                }
            }
        }
        for (space, part) in Self::parts(&access, &address, mask).into_iter().filter(|p| p.1 != 0) {
            let address = Self::rebase(&access, space, &address);
            self.aligned(&address, part, total)?;
            match space {
                Space::Shared => self.store_shared(&address, part, total, &raw)?,
                Space::Local => self.store_local(&address, part, total, &raw)?,
                Space::Const => {
                    let what = "write to a variable of the module, which the emulator keeps read-only".to_owned();
                    return Err(halt(Cause(Kind::OutOfBounds, what), Some(part.trailing_zeros())));
                }
                _ => self.store_global(&address, part, total, access.strong, &raw)?,
            }
        }
        Ok(())
    }

    fn store_global(
        &mut self,
        address: &[u64; 32],
        mask: u32,
        total: u32,
        strong: bool,
        raw: &Raw,
    ) -> Result<(), Stop> {
        let (memory, agent) = (self.cx.memory, self.agent);
        for l in lanes(mask) {
            let bytes = u64::from(total);
            let put = || {
                let (allocation, offset) = memory.find(address[l])?;
                allocation.check_bounds(offset, bytes)?;
                allocation.check_race(&agent, offset, bytes, true, strong)?;
                for (w, words) in raw.iter().enumerate().take(total.div_ceil(4) as usize) {
                    allocation.put(offset + 4 * w as u64, words[l], total.min(4), agent.solo);
                }
                Ok(())
            };
            put().map_err(|c| halt(c, Some(l as u32)))?;
        }
        if self.cx.options.count {
            let t = &mut self.tally.global_store;
            t.requests += 1;
            t.bytes += u64::from(mask.count_ones() * total);
            t.sectors += sectors(mask, address, total);
        }
        self.distinct(address, mask, total)
    }

    /// Two lanes of one store that write the same global cell: which value stays is anybody's guess.
    fn distinct(&self, address: &[u64; 32], mask: u32, total: u32) -> Result<(), Stop> {
        if !self.agent.races {
            return Ok(());
        }
        let mut last = None;
        let ascending = lanes(mask).all(|l| {
            let apart = last.is_none_or(|x: u64| address[l] >= x + u64::from(total));
            last = Some(address[l]);
            apart
        });
        if ascending {
            return Ok(());
        }
        let mut sorted: Vec<(u64, usize)> = lanes(mask).map(|l| (address[l], l)).collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|p| p[1].0 < p[0].0 + u64::from(total)) {
            Some(p) => {
                let what = format!("lanes {} and {} of one instruction write the same global bytes", p[0].1, p[1].1);
                Err(halt(Cause(Kind::Race, what), Some(p[1].1 as u32)))
            }
            None => Ok(()),
        }
    }

    fn store_shared(&mut self, address: &[u64; 32], mask: u32, total: u32, raw: &Raw) -> Result<(), Stop> {
        let agent = self.agent;
        for l in lanes(mask) {
            let at = address[l];
            self.shared.check(&agent, l as u32, at, total, true).map_err(|c| halt(c, Some(l as u32)))?;
            for (w, words) in raw.iter().enumerate().take(total.div_ceil(4) as usize) {
                self.shared.put(at as u32 + 4 * w as u32, words[l], total.min(4));
            }
        }
        if self.cx.options.count {
            self.tally.shared(mask, address, total);
        }
        Ok(())
    }

    fn store_local(&mut self, address: &[u64; 32], mask: u32, total: u32, raw: &Raw) -> Result<(), Stop> {
        for l in lanes(mask) {
            let at = self.local_range(address[l], total, l)?;
            for (w, words) in raw.iter().enumerate().take(total.div_ceil(4) as usize) {
                let (index, shift) = (at / 4 + w, (at as u32 & 3) * 8);
                let (keep, bits) = if total < 4 {
                    (((1u32 << (8 * total)) - 1) << shift, ((1u8 << total) - 1) << (at & 3))
                } else {
                    (u32::MAX, 15)
                };
                let old = &mut self.warp.local[index][l];
                *old = *old & !keep | words[l] << shift & keep;
                self.warp.local_written[index][l] |= bits;
            }
        }
        Ok(())
    }

    /// atom and red: one lane after the other, lowest first.
    pub(super) fn atomic(&mut self, i: &Inst, mask: u32, access: Access, rmw: Rmw, result: bool) -> Result<(), Stop> {
        let address = self.addresses(&access, i.src[0]);
        let total = u32::from(access.bytes);
        let value = |run: &Self, n: usize, l: usize| {
            let slot = i.src[n];
            if access.long { run.warp.long(slot)[l] } else { u64::from(run.warp.word(slot)[l]) }
        };
        let mut old = [0u64; 32];
        self.aligned(&address, mask, total)?;
        for l in lanes(mask) {
            let (a, b) = (value(self, 1, l), if rmw == Rmw::Cas { value(self, 2, l) } else { 0 });
            let shared = match access.space {
                Space::Shared => true,
                Space::Generic => space_of(address[l]) == Space::Shared,
                _ => false,
            };
            let update = |x: u64| modify(rmw, x, a, b, access.long);
            let done = if shared {
                self.atomic_shared(Self::rebase(&access, Space::Shared, &address)[l], l as u32, total, update)
            } else {
                self.atomic_global(address[l], total, update)
            };
            old[l] = done.map_err(|c| halt(c, Some(l as u32)))?;
        }
        self.tally.atomics += u64::from(mask.count_ones());
        if result && access.long {
            self.warp.put_long(i.dst[0], mask, &old);
        } else if result {
            self.warp.put(i.dst[0], mask, &old.map(|x| x as u32));
        }
        Ok(())
    }

    fn atomic_shared(&mut self, at: u64, lane: u32, total: u32, update: impl Fn(u64) -> u64) -> Result<u64, Cause> {
        let agent = self.agent;
        self.shared.check_atomic(&agent, lane, at, total)?;
        let at = at as u32;
        let high = if total == 8 { u64::from(self.shared.word(at + 4)) << 32 } else { 0 };
        let old = high | u64::from(self.shared.word(at));
        let new = update(old);
        self.shared.put(at, new as u32, 4);
        if total == 8 {
            self.shared.put(at + 4, (new >> 32) as u32, 4);
        }
        Ok(old)
    }

    fn atomic_global(&mut self, address: u64, total: u32, update: impl Fn(u64) -> u64) -> Result<u64, Cause> {
        let (memory, agent) = (self.cx.memory, self.agent);
        let (allocation, at) = memory.find(address)?;
        allocation.check_bounds(at, u64::from(total))?;
        allocation.check_written(at, u64::from(total))?;
        allocation.check_race(&agent, at, u64::from(total), true, true)?;
        // A poisoned lock still guards: its data is nothing.
        let _turn = memory.turn.lock().unwrap_or_else(|e| e.into_inner());
        let high = if total == 8 { u64::from(allocation.word(at + 4)) << 32 } else { 0 };
        let old = high | u64::from(allocation.word(at));
        let new = update(old);
        allocation.put(at, new as u32, 4, agent.solo);
        if total == 8 {
            allocation.put(at + 4, (new >> 32) as u32, 4, agent.solo);
        }
        Ok(old)
    }
}

/// The new value of a read-modify-write.
fn modify(rmw: Rmw, x: u64, a: u64, b: u64, long: bool) -> u64 {
    let signed = |v: u64| if long { v as i64 } else { i64::from(v as u32 as i32) };
    let (word, other) = (x as u32, a as u32);
    match rmw {
        Rmw::Add if long => x.wrapping_add(a),
        Rmw::Add => u64::from(word.wrapping_add(other)),
        Rmw::FAdd => u64::from(super::float::canon(f32::from_bits(word) + f32::from_bits(other))),
        Rmw::DAdd => (f64::from_bits(x) + f64::from_bits(a)).to_bits(),
        Rmw::MinU => x.min(a),
        Rmw::MaxU => x.max(a),
        Rmw::MinS => {
            if signed(x) <= signed(a) {
                x
            } else {
                a
            }
        }
        Rmw::MaxS => {
            if signed(x) >= signed(a) {
                x
            } else {
                a
            }
        }
        Rmw::And => x & a,
        Rmw::Or => x | a,
        Rmw::Xor => x ^ a,
        Rmw::Exch => a,
        Rmw::Cas => {
            if x == a {
                b
            } else {
                x
            }
        }
        Rmw::Inc => {
            if word >= other {
                0
            } else {
                x + 1
            }
        }
        Rmw::Dec => {
            if word == 0 || word > other {
                a
            } else {
                x - 1
            }
        }
    }
}
