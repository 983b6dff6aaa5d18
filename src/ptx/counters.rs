//! What a launch did: instructions by class, traffic, bank conflicts. Exact and repeatable, so they can be golden
//! numbers.

use super::inst::{Inst, Work};

/// Requests of a memory space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp-wide requests.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// 32-byte sectors touched, counted per request.
    pub sectors: u64,
}

impl Traffic {
    /// Bytes that sectors move.
    pub fn moved(&self) -> u64 {
        self.sectors * 32
    }

    /// Sectors per request.
    pub fn sectors_per_request(&self) -> f64 {
        self.sectors as f64 / self.requests.max(1) as f64
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
    }
}

/// A line of the profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCount {
    /// Line of the PTX.
    pub line: u32,
    /// Warp instructions issued.
    pub warps: u64,
    /// Lanes that took part.
    pub lanes: u64,
}

/// Totals of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions issued.
    pub warp_instructions: u64,
    /// Lane instructions: warp instructions times lanes that took part.
    pub lane_instructions: u64,
    /// Warp instructions of each class, in the order of [`Work::ALL`].
    pub classes: [u64; 15],
    /// Global loads, `cp.async` included.
    pub global_load: Traffic,
    /// Global stores.
    pub global_store: Traffic,
    /// Warp-wide shared accesses.
    pub shared_requests: u64,
    /// Bytes that lanes asked of shared memory.
    pub shared_bytes: u64,
    /// Passes over the 32 banks that the accesses take.
    pub shared_wavefronts: u64,
    /// Passes that conflict-free accesses of the same distinct words would take.
    pub shared_wavefronts_ideal: u64,
    /// `mma` instructions of warps.
    pub mma: u64,
    /// Lane atomics.
    pub atomics: u64,
    /// Bytes copied by `cp.async`.
    pub async_bytes: u64,
    /// Conditional branches executed.
    pub branches: u64,
    /// Of these, with lanes going both ways.
    pub divergent_branches: u64,
    /// Barriers that warps arrived at.
    pub barriers: u64,
    /// Per instruction, in the order of the text.
    pub profile: Vec<LineCount>,
}

impl Counters {
    pub(super) fn new(code: &[Inst]) -> Self {
        let profile = code.iter().map(|i| LineCount { line: i.line, ..LineCount::default() }).collect();
        Self { profile, ..Self::default() }
    }

    /// Warp instructions of one class.
    pub fn class(&self, work: Work) -> u64 {
        Work::ALL.iter().position(|&w| w == work).map_or(0, |i| self.classes[i])
    }

    /// Adds another worker's part.
    pub(super) fn merge(&mut self, other: &Self) {
        self.global_load.add(&other.global_load);
        self.global_store.add(&other.global_store);
        self.shared_requests += other.shared_requests;
        self.shared_bytes += other.shared_bytes;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_wavefronts_ideal += other.shared_wavefronts_ideal;
        self.mma += other.mma;
        self.atomics += other.atomics;
        self.async_bytes += other.async_bytes;
        self.branches += other.branches;
        self.divergent_branches += other.divergent_branches;
        self.barriers += other.barriers;
        for (mine, theirs) in self.profile.iter_mut().zip(&other.profile) {
            mine.warps += theirs.warps;
            mine.lanes += theirs.lanes;
        }
    }

    /// Sums of the profile.
    pub(super) fn finish(&mut self, code: &[Inst]) {
        for (inst, count) in code.iter().zip(&self.profile) {
            self.warp_instructions += count.warps;
            self.lane_instructions += count.lanes;
            let class = Work::of(&inst.op);
            if let Some(i) = Work::ALL.iter().position(|&w| w == class) {
                self.classes[i] += count.warps;
            }
        }
    }

    /// Counts the wavefronts of a shared access: lanes go in groups that together ask for at most 128 bytes, a group
    /// takes as many passes as its busiest bank has distinct words.
    pub(super) fn shared(&mut self, mask: u32, addresses: &[u64; 32], bytes: u32) {
        self.shared_requests += 1;
        self.shared_bytes += u64::from(mask.count_ones() * bytes);
        let group = (128 / bytes.max(4)).min(32) as usize;
        for (g, part) in addresses.chunks(group).enumerate() {
            let lanes = mask >> (g * group) & if group == 32 { u32::MAX } else { (1 << group) - 1 };
            if lanes != 0 {
                let (passes, ideal) = wavefronts(lanes, part, bytes);
                self.shared_wavefronts += passes;
                self.shared_wavefronts_ideal += ideal;
            }
        }
    }
}

fn wavefronts(lanes: u32, addresses: &[u64], bytes: u32) -> (u64, u64) {
    // Fast path: no bank asked twice.
    let width = (bytes.max(4) / 4).min(4);
    let unit = (1u32 << width) - 1;
    let (mut busy, mut left) = (0u32, lanes);
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        let banks = unit << (addresses[lane] >> 2 & 31);
        if busy & banks != 0 {
            return conflicts(lanes, addresses, width);
        }
        busy |= banks;
    }
    (1, 1)
}

#[cold]
fn conflicts(lanes: u32, addresses: &[u64], width: u32) -> (u64, u64) {
    let (mut words, mut count) = ([0u64; 128], 0);
    for (lane, &address) in addresses.iter().enumerate().filter(|(l, _)| lanes >> l & 1 == 1) {
        let _ = lane;
        for w in 0..u64::from(width) {
            words[count] = (address >> 2) + w;
            count += 1;
        }
    }
    let words = &mut words[..count];
    words.sort_unstable();
    let (mut banks, mut distinct, mut last) = ([0u64; 32], 0u64, u64::MAX);
    for &word in words.iter().filter(|&&w| std::mem::replace(&mut last, w) != w) {
        banks[(word & 31) as usize] += 1;
        distinct += 1;
    }
    (banks.iter().copied().max().unwrap_or(1), distinct.div_ceil(32))
}

/// Distinct 32-byte sectors of a request.
pub(super) fn sectors(mask: u32, addresses: &[u64; 32], bytes: u32) -> u64 {
    let (mut count, mut last, mut sorted) = (0u64, u64::MAX, true);
    let mut left = mask;
    while left != 0 {
        let at = addresses[left.trailing_zeros() as usize];
        left &= left - 1;
        let sector = at >> 5;
        if last != u64::MAX && sector < last {
            sorted = false;
            break;
        }
        count += u64::from(sector != last);
        last = sector;
    }
    if sorted {
        return count;
    }
    let mut all = [u64::MAX; 32];
    (0..32).filter(|&l| mask >> l & 1 == 1).for_each(|l| all[l] = addresses[l] >> 5);
    all.sort_unstable();
    let _ = bytes;
    let mut last = u64::MAX;
    all.iter().filter(|&&s| s != u64::MAX && std::mem::replace(&mut last, s) != s).count() as u64
}
