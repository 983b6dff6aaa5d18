//! A block's shared memory: red zones between variables, which bytes were written, copies in flight, and a race
//! detector that knows warps by vector clocks and the lanes of one warp by its warp-wide barriers.

use std::collections::HashMap;

use super::error::Kind;
use super::memory::{Agent, Cause};

/// Who touched a cell.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// clock 22 | warp 5 | lane 5 of the last writer; 0 for none.
    write: u32,
    /// The writer's sync count.
    write_sync: u32,
    /// Warps that read at clock `read_clock`.
    readers: u32,
    read_clock: u32,
    /// sync count << 6 | lane of the reader when it is a single warp; lane 63 stands for several.
    read_sync: u32,
}

const SEVERAL: u32 = 63;
/// Marks, in the writer's sync count, a write by an atomic.
const ATOMIC: u32 = 1 << 31;
const PENDING: u16 = 0x100;

/// Shared memory of one block.
pub(super) struct Shared {
    words: Vec<u32>,
    /// Per word: bits 0-3 written, 4-7 inside of a variable, 8 a copy in flight.
    state: Vec<u16>,
    cells: Vec<Cell>,
    shift: u32,
    /// Readers at several clocks, when barriers of part of a block leave them unordered: exact, and rare.
    mixed: HashMap<usize, Vec<(u32, u32)>>,
    valid: Vec<(u32, u32)>,
}

impl Shared {
    /// Memory whose variables lie at `valid`; `grain` is the narrowest access of the kernel.
    pub(super) fn new(valid: Vec<(u32, u32)>, grain: u8) -> Self {
        let bytes = valid.iter().map(|v| v.1).max().unwrap_or(0) as usize;
        let words = bytes.div_ceil(4);
        let shift = grain.trailing_zeros().min(2);
        Self {
            words: vec![0; words],
            state: vec![0; words],
            cells: vec![Cell::default(); words << (2 - shift)],
            shift,
            mixed: HashMap::new(),
            valid,
        }
    }

    /// Forgets everything: a new block starts.
    pub(super) fn reset(&mut self) {
        self.state.fill(0);
        for &(from, to) in &self.valid {
            (from..to).for_each(|at| self.state[at as usize >> 2] |= 0x10 << (at & 3));
        }
        self.cells.fill(Cell::default());
        self.mixed.clear();
    }

    #[inline(always)]
    pub(super) fn word(&self, at: u32) -> u32 {
        self.words[at as usize >> 2]
    }

    /// Up to four bytes.
    #[inline(always)]
    pub(super) fn put(&mut self, at: u32, value: u32, bytes: u32) {
        let index = at as usize >> 2;
        if bytes == 4 {
            self.words[index] = value;
            self.state[index] |= 15;
            return;
        }
        let shift = (at & 3) * 8;
        let mask = ((1u32 << (bytes * 8)) - 1) << shift;
        self.words[index] = self.words[index] & !mask | (value << shift & mask);
        self.state[index] |= ((1 << bytes) - 1) << (at & 3);
    }

    /// Bounds, pending copies, initialisation and races of an aligned access by a lane.
    #[inline(always)]
    pub(super) fn check(
        &mut self,
        agent: &Agent<'_>,
        lane: u32,
        at: u64,
        bytes: u32,
        write: bool,
    ) -> Result<(), Cause> {
        if at > u64::from(u32::MAX) {
            return Err(self.explain(at, bytes, write));
        }
        let (first, last) = ((at >> 2) as usize, ((at + u64::from(bytes) - 1) >> 2) as usize);
        let part = if bytes < 4 { ((1u16 << bytes) - 1) << (at & 3) } else { 15 };
        let need = part << 4 | if write { 0 } else { part };
        match self.state.get(first..=last) {
            Some(states) if states.iter().all(|&s| s & (need | PENDING) == need) => {}
            _ => return Err(self.explain(at, bytes, write)),
        }
        if agent.races {
            let (from, to) = ((at >> self.shift) as usize, ((at + u64::from(bytes) - 1) >> self.shift) as usize);
            for cell in from..=to {
                if write { self.write(agent, lane, cell)? } else { self.read(agent, lane, cell)? }
            }
        }
        Ok(())
    }

    #[cold]
    fn explain(&self, at: u64, bytes: u32, write: bool) -> Cause {
        if at > u64::from(u32::MAX) {
            let what = format!("{at:#x} is no address in shared memory (a generic one, perhaps)");
            return Cause(Kind::OutOfBounds, what);
        }
        let end = at + u64::from(bytes);
        let inside = |b: u64| self.state.get((b >> 2) as usize).is_some_and(|s| s & (0x10 << (b & 3)) != 0);
        if let Some(outside) = (at..end).find(|&b| !inside(b)) {
            let ranges: Vec<String> = self.valid.iter().map(|v| format!("{}..{}", v.0, v.1)).collect();
            let what = format!("shared byte {outside} is in no variable (variables at {})", ranges.join(", "));
            return Cause(Kind::OutOfBounds, what);
        }
        let pending = (at >> 2..=(end - 1) >> 2).any(|w| self.state[w as usize] & PENDING != 0);
        let verb = if write { "write to" } else { "read of" };
        if pending {
            return Cause(
                Kind::AsyncCopy,
                format!("{verb} shared bytes {at}..{end} while a cp.async to them is not waited for"),
            );
        }
        Cause(Kind::UninitialisedMemory, format!("shared bytes {at}..{end} were never written"))
    }

    #[inline(always)]
    fn read(&mut self, agent: &Agent<'_>, lane: u32, index: usize) -> Result<(), Cause> {
        let cell = &mut self.cells[index];
        if cell.write != 0 && Self::write_unordered(cell, agent, lane) {
            return Err(self.race(index, "read", "a write"));
        }
        let me = 1u32 << agent.warp;
        let mark = agent.sync << 6 | lane;
        if cell.readers == me && cell.read_clock == agent.clock {
            if cell.read_sync != mark {
                cell.read_sync = if cell.read_sync >> 6 == agent.sync & 0x3ff_ffff { mark | SEVERAL } else { mark };
            }
        } else if cell.readers != 0 && cell.read_clock == agent.clock {
            cell.readers |= me;
        } else {
            self.replace_readers(agent, mark, index);
        }
        Ok(())
    }

    fn replace_readers(&mut self, agent: &Agent<'_>, mark: u32, index: usize) {
        let cell = &mut self.cells[index];
        for warp in 0..agent.seen.len() as u32 {
            if cell.readers >> warp & 1 == 1 && agent.seen[warp as usize] < cell.read_clock {
                self.mixed.entry(index).or_default().push((warp, cell.read_clock));
            }
        }
        cell.readers = 1 << agent.warp;
        cell.read_clock = agent.clock;
        cell.read_sync = mark;
    }

    #[inline(always)]
    fn write_unordered(cell: &Cell, agent: &Agent<'_>, lane: u32) -> bool {
        let (warp, writer) = (cell.write >> 5 & 31, cell.write & 31);
        if warp == agent.warp {
            return writer != lane && cell.write_sync & !ATOMIC == agent.sync;
        }
        agent.seen[warp as usize] < cell.write >> 10
    }

    #[inline(always)]
    fn write(&mut self, agent: &Agent<'_>, lane: u32, index: usize) -> Result<(), Cause> {
        let cell = &mut self.cells[index];
        if cell.write != 0 && Self::write_unordered(cell, agent, lane) {
            return Err(self.race(index, "write", "a write"));
        }
        let me = 1u32 << agent.warp;
        let mut bad = cell.readers & me != 0
            && cell.readers == me
            && cell.read_sync >> 6 == agent.sync & 0x3ff_ffff
            && cell.read_sync & 63 != lane;
        let mut others = cell.readers & !me;
        while others != 0 {
            bad |= agent.seen[others.trailing_zeros() as usize] < cell.read_clock;
            others &= others - 1;
        }
        cell.write = agent.clock << 10 | agent.warp << 5 | lane;
        cell.write_sync = agent.sync;
        cell.readers = 0;
        if !self.mixed.is_empty()
            && let Some(list) = self.mixed.remove(&index)
        {
            bad |= list.iter().any(|&(warp, clock)| warp != agent.warp && agent.seen[warp as usize] < clock);
        }
        if bad { Err(self.race(index, "write", "a read")) } else { Ok(()) }
    }

    #[cold]
    fn race(&self, index: usize, verb: &str, other: &str) -> Cause {
        let at = index << self.shift;
        let cell = &self.cells[index];
        let who = if other == "a write" {
            format!("{other} by warp {} lane {}", cell.write >> 5 & 31, cell.write & 31)
        } else {
            format!("{other} by another thread")
        };
        Cause(Kind::Race, format!("{verb} of shared byte {at} is not ordered with {who}"))
    }

    /// An atomic reads and writes at once. Atomics are ordered among themselves, so only the plain accesses before it
    /// count.
    pub(super) fn check_atomic(&mut self, agent: &Agent<'_>, lane: u32, at: u64, bytes: u32) -> Result<(), Cause> {
        let plain = Agent { races: false, ..*agent };
        self.check(&plain, lane, at, bytes, false)?;
        if !agent.races {
            return Ok(());
        }
        let (from, to) = ((at >> self.shift) as usize, ((at + u64::from(bytes) - 1) >> self.shift) as usize);
        for index in from..=to {
            if self.cells[index].write_sync & ATOMIC == 0 {
                self.write(agent, lane, index)?;
            } else {
                // After another atomic: readers since then are judged, the other atomic is not.
                self.cells[index].write = 0;
                self.write(agent, lane, index)?;
            }
            self.cells[index].write_sync |= ATOMIC;
        }
        Ok(())
    }

    /// The destination of a copy that starts: a write, from now on.
    pub(super) fn check_target(&mut self, agent: &Agent<'_>, lane: u32, at: u64, bytes: u32) -> Result<(), Cause> {
        self.check(agent, lane, at, bytes, true)
    }

    /// Marks the destination of a copy that starts.
    pub(super) fn start_copy(&mut self, at: u32, bytes: u32) {
        for word in at >> 2..(at + bytes) >> 2 {
            self.state[word as usize] |= PENDING;
        }
    }

    /// Lands a copy: the bytes count as written by the lane that waits, now.
    pub(super) fn land_copy(&mut self, agent: &Agent<'_>, lane: u32, at: u32, data: &[u32]) -> Result<(), Cause> {
        for (i, &value) in data.iter().enumerate() {
            let word = (at as usize >> 2) + i;
            self.words[word] = value;
            self.state[word] = self.state[word] & !PENDING | 15;
        }
        if agent.races {
            let (from, to) = (at as usize >> self.shift, (at as usize + data.len() * 4) >> self.shift);
            for index in from..to {
                self.write(agent, lane, index)?;
            }
        }
        Ok(())
    }
}
