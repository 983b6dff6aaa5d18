//! cp.async: a copy starts when issued and lands, as late as the rules allow, when its thread waits for its group.
//! Between the two nobody may touch the destination.

use super::counters::sectors;
use super::error::Kind;
use super::inst::{Access, Inst};
use super::memory::Cause;
use super::run::{Run, Stop, halt};
use super::warp::Flight;

impl Run<'_> {
    /// cp.async.ca and .cg
    pub(super) fn copy(
        &mut self,
        i: &Inst,
        mask: u32,
        bytes: u32,
        to: Access,
        from: Access,
        sized: bool,
    ) -> Result<(), Stop> {
        let (target, source) = (self.addresses(&to, i.src[0]), self.addresses(&from, i.src[1]));
        let sizes = if sized { *self.warp.word(i.src[2]) } else { [bytes; 32] };
        let memory = self.cx.memory;
        let mut reading = 0u32;
        for l in (0..32u32).filter(|&l| mask >> l & 1 == 1) {
            let lane = l as usize;
            let (at, size) = (target[lane], sizes[lane]);
            if !at.is_multiple_of(u64::from(bytes)) {
                return Err(self.misaligned(at, bytes, l));
            }
            if size > bytes {
                return Err(halt(
                    Cause(Kind::OutOfBounds, format!("source size {size} of a copy of {bytes} bytes")),
                    Some(l),
                ));
            }
            let mut data = [0u32; 4];
            if size > 0 {
                reading |= 1 << l;
                self.fetch_source(source[lane], size, bytes, l, memory, &mut data)?;
            }
            let agent = self.agent;
            self.shared.check_target(&agent, l, at, bytes).map_err(|c| halt(c, Some(l)))?;
            self.shared.start_copy(at as u32, bytes);
            let group = self.warp.committed[lane];
            let flight = Flight { lane: l as u8, words: (bytes / 4) as u8, group, at: at as u32, data };
            self.warp.flights.push(flight);
        }
        self.tally.async_bytes += u64::from(mask.count_ones() * bytes);
        if self.cx.options.count {
            let t = &mut self.tally.global_load;
            t.requests += 1;
            t.bytes += (0..32).filter(|l| mask >> l & 1 == 1).map(|l| u64::from(sizes[l])).sum::<u64>();
            t.sectors += sectors(reading, &source, bytes);
            self.tally.shared(mask, &target, bytes);
        }
        Ok(())
    }

    fn fetch_source(
        &mut self,
        at: u64,
        size: u32,
        bytes: u32,
        lane: u32,
        memory: &super::memory::Memory,
        data: &mut [u32; 4],
    ) -> Result<(), Stop> {
        if !at.is_multiple_of(u64::from(bytes)) {
            return Err(self.misaligned(at, bytes, lane));
        }
        let agent = self.agent;
        let fetch = || {
            let (allocation, offset) = memory.find(at)?;
            allocation.check_bounds(offset, u64::from(size))?;
            allocation.check_written(offset, u64::from(size))?;
            allocation.check_race(&agent, offset, u64::from(size), false, false)?;
            Ok((allocation, offset))
        };
        let (allocation, offset) = fetch().map_err(|c| halt(c, Some(lane)))?;
        for (w, word) in data.iter_mut().enumerate().take(size.div_ceil(4) as usize) {
            let left = size - 4 * w as u32;
            let keep = if left >= 4 { u32::MAX } else { (1 << (8 * left)) - 1 };
            *word = allocation.word(offset + 4 * w as u64) & keep;
        }
        Ok(())
    }

    /// cp.async.commit_group
    pub(super) fn commit(&mut self, mask: u32) {
        (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| self.warp.committed[l] += 1);
    }

    /// cp.async.wait_group and wait_all: lands what must have landed, and nothing else.
    pub(super) fn wait(&mut self, mask: u32, pending: Option<u32>) -> Result<(), Stop> {
        let flights = std::mem::take(&mut self.warp.flights);
        let mut stay = Vec::with_capacity(flights.len());
        for flight in flights {
            let lane = usize::from(flight.lane);
            let done = pending.is_none_or(|n| flight.group.saturating_add(n) < self.warp.committed[lane]);
            if mask >> lane & 1 == 0 || !done {
                stay.push(flight);
                continue;
            }
            let agent = self.agent;
            let data = &flight.data[..usize::from(flight.words)];
            self.shared.land_copy(&agent, lane as u32, flight.at, data).map_err(|c| halt(c, Some(lane as u32)))?;
        }
        self.warp.flights = stay;
        Ok(())
    }
}
