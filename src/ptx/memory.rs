//! Device memory: allocations whose number stands in the top bits of an address, so that bounds are exact. Every byte
//! knows whether it was written; every cell knows who touched it in this launch. Words are atomics, because blocks run
//! on several threads.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::error::{Error, Kind, Result};

/// Addresses: 24 bits of tag, 40 bits of offset.
pub(super) const TAG_SHIFT: u32 = 40;
pub(super) const SHARED_TAG: u64 = 0xff_0001;
pub(super) const LOCAL_TAG: u64 = 0xff_0002;
pub(super) const CONST_TAG: u64 = 0xff_0003;
const OFFSET: u64 = (1 << TAG_SHIFT) - 1;
/// What fresh memory holds: NaN as f32, bf16 and f16.
const POISON: u32 = u32::MAX;

/// Why an access fails; the caller adds thread and place.
#[derive(Debug)]
pub(super) struct Cause(pub(super) Kind, pub(super) String);

/// Who accesses, and what has happened before it.
#[derive(Clone, Copy)]
pub(super) struct Agent<'a> {
    pub(super) block: u32,
    pub(super) warp: u32,
    /// The warp's own barrier clock, and its knowledge of the others'.
    pub(super) clock: u32,
    pub(super) seen: &'a [u32],
    /// Counts the points at which the warp's lanes were ordered.
    pub(super) sync: u32,
    pub(super) races: bool,
    /// One thread runs all blocks: no read-modify-write is needed in the shadow.
    pub(super) solo: bool,
    pub(super) launch: u16,
    pub(super) grain: u8,
}

/// Who wrote and who read a cell last, in this launch:
/// launch 16 | block 24 | warp 5 | clock 18 | flag 1 (writes: atomic, reads: several warps).
struct Shadow {
    write: AtomicU64,
    read: AtomicU64,
}

const MANY_BLOCKS: u64 = 0xff_ffff;
pub(super) const MAX_CLOCK: u32 = (1 << 18) - 1;

fn stamp(launch: u16, block: u64, warp: u32, clock: u32, flag: bool) -> u64 {
    u64::from(launch) << 48 | block << 24 | u64::from(warp) << 19 | u64::from(clock) << 1 | u64::from(flag)
}

fn stamp_block(stamp: u64) -> u64 {
    stamp >> 24 & 0xff_ffff
}

fn stamp_warp(stamp: u64) -> u32 {
    (stamp >> 19 & 31) as u32
}

fn stamp_clock(stamp: u64) -> u32 {
    (stamp >> 1) as u32 & MAX_CLOCK
}

impl Shadow {
    /// True when a stamp is of another block, or of a warp whose access nothing orders before this one.
    #[inline(always)]
    fn unordered(stamp: u64, agent: &Agent<'_>) -> bool {
        if stamp_block(stamp) != u64::from(agent.block) {
            return true;
        }
        let warp = stamp_warp(stamp);
        warp != agent.warp && agent.seen[warp as usize] < stamp_clock(stamp)
    }

    #[inline(always)]
    fn current(stamp: u64, agent: &Agent<'_>) -> bool {
        stamp >> 48 == u64::from(agent.launch)
    }

    #[inline(always)]
    fn read(&self, agent: &Agent<'_>, strong: bool) -> std::result::Result<(), u64> {
        let new = stamp(agent.launch, u64::from(agent.block), agent.warp, agent.clock, false);
        let mut old = self.read.load(Ordering::Relaxed);
        // A strong read is ordered by whoever wrote the protocol: it leaves no mark.
        while !strong && old != new {
            let next = Self::merge(old, new, agent);
            if next == old {
                break;
            }
            if agent.solo {
                self.read.store(next, Ordering::Relaxed);
                break;
            }
            match self.read.compare_exchange(old, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        let write = self.write.load(if agent.solo { Ordering::Relaxed } else { Ordering::SeqCst });
        let bad = Self::current(write, agent) && !(strong && write & 1 == 1) && Self::unordered(write, agent);
        if bad { Err(write) } else { Ok(()) }
    }

    /// The read mark after one more reader.
    fn merge(old: u64, new: u64, agent: &Agent<'_>) -> u64 {
        if !Self::current(old, agent) {
            return new;
        }
        if stamp_block(old) != u64::from(agent.block) {
            return stamp(agent.launch, MANY_BLOCKS, 0, 0, true);
        }
        let clock = stamp_clock(old);
        let several = old & 1 == 1;
        let known = if several { agent.seen.iter().all(|&c| c >= clock) } else { !Self::unordered(old, agent) };
        if known && clock < agent.clock {
            new
        } else {
            stamp(
                agent.launch,
                u64::from(agent.block),
                agent.warp,
                clock.max(agent.clock),
                several || stamp_warp(old) != agent.warp,
            )
        }
    }

    #[inline(always)]
    fn write(&self, agent: &Agent<'_>, atomic: bool) -> std::result::Result<(), u64> {
        let mut new = stamp(agent.launch, u64::from(agent.block), agent.warp, agent.clock, atomic);
        let old = if agent.solo {
            let old = self.write.load(Ordering::Relaxed);
            if atomic && Self::current(old, agent) && old & 1 == 1 && stamp_block(old) != u64::from(agent.block) {
                new = stamp(agent.launch, MANY_BLOCKS, 0, 0, true);
            }
            self.write.store(new, Ordering::Relaxed);
            old
        } else {
            let mut old = self.write.load(Ordering::SeqCst);
            loop {
                let others = atomic && Self::current(old, agent) && old & 1 == 1;
                let several = others && stamp_block(old) != u64::from(agent.block);
                let next = if several { stamp(agent.launch, MANY_BLOCKS, 0, 0, true) } else { new };
                match self.write.compare_exchange(old, next, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => break old,
                    Err(now) => old = now,
                }
            }
        };
        if Self::current(old, agent) && !(atomic && old & 1 == 1) && Self::unordered(old, agent) {
            return Err(old);
        }
        let read = self.read.load(if agent.solo { Ordering::Relaxed } else { Ordering::SeqCst });
        if !Self::current(read, agent) {
            return Ok(());
        }
        let several = read & 1 == 1 && stamp_block(read) == u64::from(agent.block);
        let clock = stamp_clock(read);
        let bad = if several {
            agent.seen.iter().enumerate().any(|(w, &c)| w as u32 != agent.warp && c < clock)
        } else {
            Self::unordered(read, agent)
        };
        if bad { Err(read) } else { Ok(()) }
    }
}

/// One allocation.
pub(super) struct Allocation {
    name: String,
    pub(super) bytes: u64,
    words: Vec<AtomicU32>,
    /// Four bits a word: which of its bytes were written.
    written: Vec<AtomicU8>,
    /// Ranges that the next launch must write.
    expected: Vec<(u64, u64)>,
    /// Race marks, by the size of a cell: 1, 2, 4 bytes. Made when first needed.
    shadow: [OnceLock<Box<[Shadow]>>; 3],
}

impl Allocation {
    fn new(name: &str, bytes: u64) -> Self {
        let words = bytes.div_ceil(4) as usize;
        Self {
            name: name.to_owned(),
            bytes,
            words: (0..words).map(|_| AtomicU32::new(POISON)).collect(),
            written: (0..words).map(|_| AtomicU8::new(0)).collect(),
            expected: Vec::new(),
            shadow: Default::default(),
        }
    }

    #[inline(always)]
    pub(super) fn word(&self, at: u64) -> u32 {
        self.words[(at >> 2) as usize].load(Ordering::Relaxed)
    }

    /// Stores up to four bytes; narrow stores leave their neighbours alone, even when another thread writes them.
    #[inline(always)]
    pub(super) fn put(&self, at: u64, value: u32, bytes: u32, solo: bool) {
        let (index, shift) = ((at >> 2) as usize, (at & 3) as u32 * 8);
        if bytes == 4 {
            self.words[index].store(value, Ordering::Relaxed);
            self.written[index].store(15, Ordering::Relaxed);
            return;
        }
        let mask = ((1u32 << (bytes * 8)) - 1) << shift;
        let bits = ((1u8 << bytes) - 1) << (at & 3);
        let merge = |old: u32| old & !mask | (value << shift & mask);
        if solo {
            self.words[index].store(merge(self.words[index].load(Ordering::Relaxed)), Ordering::Relaxed);
            self.written[index].store(self.written[index].load(Ordering::Relaxed) | bits, Ordering::Relaxed);
        } else {
            let _ = self.words[index].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(merge(old)));
            self.written[index].fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Bounds of an access; `offset` is inside of the tag's range.
    #[inline(always)]
    pub(super) fn check_bounds(&self, offset: u64, bytes: u64) -> std::result::Result<(), Cause> {
        if offset + bytes <= self.bytes {
            return Ok(());
        }
        let what = format!("bytes {offset}..{} of `{}`, which has {}", offset + bytes, self.name, self.bytes);
        Err(Cause(Kind::OutOfBounds, what))
    }

    #[inline(always)]
    pub(super) fn check_written(&self, offset: u64, bytes: u64) -> std::result::Result<(), Cause> {
        let need = if bytes < 4 { ((1u8 << bytes) - 1) << (offset & 3) } else { 15 };
        let (first, last) = ((offset >> 2) as usize, ((offset + bytes - 1) >> 2) as usize);
        if self.written[first..=last].iter().all(|w| w.load(Ordering::Relaxed) & need == need) {
            return Ok(());
        }
        Err(Cause(
            Kind::UninitialisedMemory,
            format!("bytes {offset}..{} of `{}` were never written", offset + bytes, self.name),
        ))
    }

    fn cells(&self, grain: u8) -> &[Shadow] {
        let shift = grain.trailing_zeros();
        self.shadow[(shift as usize).min(2)].get_or_init(|| {
            let n = self.bytes.div_ceil(u64::from(grain));
            (0..n).map(|_| Shadow { write: AtomicU64::new(0), read: AtomicU64::new(0) }).collect()
        })
    }

    /// Judges an access against all earlier ones of this launch, and marks it.
    #[inline(always)]
    pub(super) fn check_race(
        &self,
        agent: &Agent<'_>,
        offset: u64,
        bytes: u64,
        write: bool,
        strong: bool,
    ) -> std::result::Result<(), Cause> {
        if !agent.races {
            return Ok(());
        }
        let shift = agent.grain.trailing_zeros();
        let cells = self.cells(agent.grain);
        let (first, last) = ((offset >> shift) as usize, ((offset + bytes - 1) >> shift) as usize);
        for cell in &cells[first..=last] {
            let verdict = if write { cell.write(agent, strong) } else { cell.read(agent, strong) };
            if let Err(other) = verdict {
                return Err(self.race(agent, offset, write, other));
            }
        }
        Ok(())
    }

    #[cold]
    fn race(&self, agent: &Agent<'_>, offset: u64, write: bool, other: u64) -> Cause {
        let who = match stamp_block(other) {
            MANY_BLOCKS => "several blocks".to_owned(),
            block if block != u64::from(agent.block) => format!("block {block}"),
            _ => format!("warp {}", stamp_warp(other)),
        };
        let verb = if write { "write" } else { "read" };
        Cause(Kind::Race, format!("{verb} of byte {offset} of `{}` is not ordered with an access by {who}", self.name))
    }

    fn unwritten(&self, from: u64, to: u64) -> Option<u64> {
        (from..to).find(|at| self.written[(at >> 2) as usize].load(Ordering::Relaxed) >> (at & 3) & 1 == 0)
    }
}

/// The device's memory.
#[derive(Default)]
pub struct Memory {
    allocations: Vec<Option<Allocation>>,
    /// Allocations of which a part must be written by the next launch.
    expecting: Vec<usize>,
    allocated: u64,
    peak: u64,
    launch: u16,
    /// Atomics on global memory take turns here.
    pub(super) turn: Mutex<()>,
}

impl Memory {
    /// Empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates; the address is aligned to anything a kernel may ask. The name appears in reports.
    pub fn alloc(&mut self, name: &str, bytes: u64) -> Result<u64> {
        if bytes > 1 << 36 || self.allocations.len() as u64 >= SHARED_TAG - 1 {
            return Err(Error::at(Kind::Launch, 0, format!("cannot allocate {bytes} bytes for `{name}`")));
        }
        self.allocations.push(Some(Allocation::new(name, bytes)));
        self.allocated += bytes;
        self.peak = self.peak.max(self.allocated);
        Ok((self.allocations.len() as u64) << TAG_SHIFT)
    }

    /// Frees an allocation by its first address. A later access through it is reported.
    pub fn free(&mut self, address: u64) -> Result<()> {
        let (index, offset) = Self::split(address);
        match self.allocations.get_mut(index) {
            Some(slot @ Some(_)) if offset == 0 => {
                self.allocated -= slot.take().map_or(0, |allocation| allocation.bytes);
                Ok(())
            }
            _ => Err(Error::at(Kind::OutOfBounds, 0, format!("free of {address:#x}, which is no allocation"))),
        }
    }

    fn split(address: u64) -> (usize, u64) {
        (((address >> TAG_SHIFT) as usize).wrapping_sub(1), address & OFFSET)
    }

    /// The allocation behind an address and the offset in it.
    #[inline(always)]
    pub(super) fn find(&self, address: u64) -> std::result::Result<(&Allocation, u64), Cause> {
        let (index, offset) = Self::split(address);
        match self.allocations.get(index) {
            Some(Some(allocation)) => Ok((allocation, offset)),
            Some(None) => Err(Cause(Kind::OutOfBounds, format!("address {address:#x} was freed"))),
            None => Err(Cause(Kind::OutOfBounds, format!("address {address:#x} is in no allocation"))),
        }
    }

    fn range(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64)> {
        let at = |Cause(kind, what)| Error::at(kind, 0, what);
        let (allocation, offset) = self.find(address).map_err(at)?;
        allocation.check_bounds(offset, bytes).map_err(at)?;
        Ok((allocation, offset))
    }

    /// Copies bytes to the device.
    pub fn upload(&mut self, address: u64, data: &[u8]) -> Result<()> {
        let (allocation, offset) = self.range(address, data.len() as u64)?;
        let mut rest = data;
        let mut at = offset;
        while let Some(&first) = rest.first() {
            match rest {
                [a, b, c, d, tail @ ..] if at % 4 == 0 => {
                    allocation.put(at, u32::from_le_bytes([*a, *b, *c, *d]), 4, true);
                    rest = tail;
                    at += 4;
                }
                _ => {
                    allocation.put(at, u32::from(first), 1, true);
                    rest = &rest[1..];
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// Copies bytes from the device, written or not; see [`Memory::unwritten`].
    pub fn download(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let (allocation, offset) = self.range(address, out.len() as u64)?;
        for (i, byte) in out.iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = (allocation.word(at) >> ((at & 3) * 8)) as u8;
        }
        Ok(())
    }

    /// Sets bytes.
    pub fn fill(&mut self, address: u64, bytes: u64, value: u8) -> Result<()> {
        let (allocation, offset) = self.range(address, bytes)?;
        (offset..offset + bytes).for_each(|at| allocation.put(at, u32::from(value), 1, true));
        Ok(())
    }

    /// Makes bytes unwritten again and fills them with NaN.
    pub fn poison(&mut self, address: u64, bytes: u64) -> Result<()> {
        let (allocation, offset) = self.range(address, bytes)?;
        for at in offset..offset + bytes {
            allocation.put(at, 0xff, 1, true);
            let flags = &allocation.written[(at >> 2) as usize];
            flags.store(flags.load(Ordering::Relaxed) & !(1 << (at & 3)), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Poisons a range and makes the next launch fail unless it writes all of it.
    pub fn expect_written(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.poison(address, bytes)?;
        let (index, offset) = Self::split(address);
        if let Some(Some(allocation)) = self.allocations.get_mut(index) {
            allocation.expected.push((offset, offset + bytes));
            self.expecting.push(index);
        }
        Ok(())
    }

    /// The first byte in a range that nobody wrote.
    pub fn unwritten(&self, address: u64, bytes: u64) -> Result<Option<u64>> {
        let (allocation, offset) = self.range(address, bytes)?;
        Ok(allocation.unwritten(offset, offset + bytes).map(|at| at - offset))
    }

    /// Whether an allocation lies behind an address.
    pub fn is_allocated(&self, address: u64) -> bool {
        self.find(address).is_ok()
    }

    /// Bytes allocated now.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The most bytes allocated at once since the last call, which begins anew from what is allocated now.
    pub fn take_peak(&mut self) -> u64 {
        std::mem::replace(&mut self.peak, self.allocated)
    }

    /// A new launch: its number marks what it touches. When numbers run out the marks are dropped.
    pub(super) fn begin(&mut self) -> u16 {
        if self.launch == u16::MAX {
            self.launch = 0;
            self.allocations.iter_mut().flatten().for_each(|a| a.shadow = Default::default());
        }
        self.launch += 1;
        self.launch
    }

    /// The end of a launch: names an expected range that has unwritten bytes.
    pub(super) fn finish(&mut self) -> Option<Cause> {
        let mut found = None;
        for index in std::mem::take(&mut self.expecting) {
            let Some(Some(allocation)) = self.allocations.get_mut(index) else { continue };
            for (from, to) in std::mem::take(&mut allocation.expected) {
                if let Some(at) = allocation.unwritten(from, to) {
                    let what =
                        format!("byte {at} of `{}` ({from}..{to} must be written) was not written", allocation.name);
                    found = found.or(Some(Cause(Kind::Unwritten, what)));
                }
            }
        }
        found
    }
}
