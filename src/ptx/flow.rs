//! Control flow of a kernel: where divergent branches join again (immediate post-dominators), which registers some path
//! leaves unwritten, and a dense assignment of virtual registers to slots, so that a warp's registers fit the host's
//! nearest cache.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::error::Result;
use super::inst::{Inst, Kernel, Op, Slot};
use super::lower::{CLASS_SHIFT, FIXED};

/// A join that is the kernel's end.
pub(super) const NO_JOIN: u32 = u32::MAX;

struct Flow {
    /// First instruction of each block, and one past the last.
    starts: Vec<usize>,
    successors: Vec<Vec<usize>>,
}

impl Flow {
    fn new(code: &[Inst]) -> Self {
        let mut leader = vec![false; code.len() + 1];
        leader[0] = true;
        for (i, inst) in code.iter().enumerate() {
            match inst.op {
                Op::Bra { target, .. } => {
                    leader[target as usize] = true;
                    leader[i + 1] = true;
                }
                Op::Exit | Op::Trap => leader[i + 1] = true,
                _ => {}
            }
        }
        leader[code.len()] = false;
        let mut starts: Vec<usize> = (0..code.len()).filter(|&i| leader[i]).collect();
        let mut block_of = vec![0; code.len() + 1];
        for (b, &start) in starts.iter().enumerate() {
            let end = starts.get(b + 1).copied().unwrap_or(code.len());
            block_of[start..end].fill(b);
        }
        let blocks = starts.len();
        starts.push(code.len());
        let mut successors = vec![Vec::new(); blocks + 1];
        for b in 0..blocks {
            let last = &code[starts[b + 1] - 1];
            let falls = last.guard != 0 || !matches!(last.op, Op::Bra { .. } | Op::Exit | Op::Trap);
            if falls {
                successors[b].push(if b + 1 < blocks { b + 1 } else { blocks });
            }
            match last.op {
                Op::Bra { target, .. } => successors[b].push(block_of[target as usize]),
                Op::Exit | Op::Trap => successors[b].push(blocks),
                _ => {}
            }
        }
        Self { starts, successors }
    }

    fn blocks(&self) -> usize {
        self.successors.len() - 1
    }

    fn range(&self, b: usize) -> std::ops::Range<usize> {
        self.starts[b]..self.starts[b + 1]
    }

    /// Immediate post-dominators (Cooper, Harvey, Kennedy 2001, on the reversed graph).
    fn post_dominators(&self) -> Vec<Option<usize>> {
        let exit = self.blocks();
        let mut predecessors = vec![Vec::new(); exit + 1];
        for (b, list) in self.successors.iter().enumerate() {
            for &s in list {
                predecessors[s].push(b);
            }
        }
        let mut order = vec![usize::MAX; exit + 1];
        let (mut postorder, mut seen) = (Vec::new(), vec![false; exit + 1]);
        let mut stack = vec![(exit, 0)];
        seen[exit] = true;
        while let Some((b, next)) = stack.pop() {
            match predecessors[b].get(next) {
                Some(&p) => {
                    stack.push((b, next + 1));
                    if !seen[p] {
                        seen[p] = true;
                        stack.push((p, 0));
                    }
                }
                None => {
                    order[b] = postorder.len();
                    postorder.push(b);
                }
            }
        }
        let mut dominator = vec![None; exit + 1];
        dominator[exit] = Some(exit);
        let mut changed = true;
        while changed {
            changed = false;
            for &b in postorder.iter().rev().filter(|&&b| b != exit) {
                let mut found: Option<usize> = None;
                for &s in self.successors[b].iter().filter(|&&s| dominator[s].is_some()) {
                    found = Some(found.map_or(s, |f| intersect(f, s, &dominator, &order)));
                }
                if found.is_some() && dominator[b] != found {
                    dominator[b] = found;
                    changed = true;
                }
            }
        }
        dominator
    }
}

fn intersect(mut a: usize, mut b: usize, dominator: &[Option<usize>], order: &[usize]) -> usize {
    while a != b {
        while order[a] < order[b] {
            a = dominator[a].unwrap_or(b);
        }
        while order[b] < order[a] {
            b = dominator[b].unwrap_or(a);
        }
    }
    a
}

/// A set of registers.
#[derive(Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize, full: bool) -> Self {
        Self(vec![if full { u64::MAX } else { 0 }; n.div_ceil(64)])
    }

    fn get(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn set(&mut self, i: usize, on: bool) {
        let bit = 1 << (i % 64);
        if on { self.0[i / 64] |= bit } else { self.0[i / 64] &= !bit }
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &bits)| {
            let mut left = bits;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let i = left.trailing_zeros() as usize;
                    left &= left - 1;
                    w * 64 + i
                })
            })
        })
    }
}

/// Numbers all virtual registers of the three classes in one row.
struct Names {
    base: [usize; 3],
    total: usize,
}

impl Names {
    fn of(&self, slot: Slot) -> Option<usize> {
        let id = (slot & (FIXED - 1)) as usize;
        (slot & FIXED == 0).then(|| self.base[(slot >> CLASS_SHIFT) as usize] + id)
    }

    fn uses<'a>(&'a self, inst: &'a Inst) -> impl Iterator<Item = usize> + 'a {
        let guard = (inst.guard != 0).then(|| inst.guard - 1);
        inst.src[..usize::from(inst.srcs)].iter().copied().chain(guard).filter_map(|s| self.of(s))
    }

    fn defs<'a>(&'a self, inst: &'a Inst) -> impl Iterator<Item = usize> + 'a {
        inst.dst[..usize::from(inst.dsts)].iter().filter_map(|&s| self.of(s))
    }
}

/// Joins, tracked registers and slots: the last step of loading a kernel.
pub(super) fn assign(kernel: &mut Kernel) -> Result<()> {
    let flow = Flow::new(&kernel.code);
    let dominators = flow.post_dominators();
    for (b, dominator) in dominators.iter().enumerate().take(flow.blocks()) {
        let last = flow.range(b).end - 1;
        if let Op::Bra { join, .. } = &mut kernel.code[last].op {
            *join = match *dominator {
                Some(d) if d < flow.blocks() => flow.starts[d] as u32,
                _ => NO_JOIN,
            };
        }
    }
    let base = [0, kernel.slots[0] as usize, (kernel.slots[0] + kernel.slots[1]) as usize];
    let names = Names { base, total: base[2] + kernel.slots[2] as usize };
    let tracked = unwritten(&kernel.code, &flow, &names);
    let intervals = intervals(&kernel.code, &flow, &names, &tracked);
    let fixed = [kernel.fixed[0].len() as u32, kernel.fixed[1].len() as u32, 0];
    let (slots, counts) = scan(&intervals, &names, fixed);
    for inst in &mut kernel.code {
        let watched = names.uses(inst).chain(names.defs(inst)).any(|r| tracked.get(r));
        inst.tracked = watched;
        let place = |slot: Slot| names.of(slot).map_or(slot & (FIXED - 1), |r| slots[r]);
        let (srcs, dsts) = (usize::from(inst.srcs), usize::from(inst.dsts));
        let class = |slot: Slot, at: usize| (slot >> CLASS_SHIFT) << (2 * at);
        let sources = inst.src[..srcs].iter().enumerate().map(|(i, &s)| class(s, i));
        let destinations = inst.dst[..dsts].iter().enumerate().map(|(i, &d)| class(d, 10 + i));
        inst.classes = sources.chain(destinations).fold(0, |all, c| all | c);
        inst.src[..srcs].iter_mut().for_each(|s| *s = place(*s));
        inst.dst[..dsts].iter_mut().for_each(|s| *s = place(*s));
        if inst.guard != 0 {
            inst.guard = place(inst.guard - 1) + 1;
        }
    }
    kernel.slots = counts;
    kernel.tracked = counts.map(|n| vec![false; n as usize]);
    for r in tracked.iter().filter(|&r| r < names.total) {
        let class = (0..3).rfind(|&c| r >= names.base[c] && spans_class(&names, c, r)).unwrap_or(0);
        kernel.tracked[class][slots[r] as usize] = true;
    }
    Ok(())
}

fn spans_class(names: &Names, class: usize, r: usize) -> bool {
    r < names.base.get(class + 1).copied().unwrap_or(names.total)
}

/// Registers that some path reads before it writes them: those alone are checked when the kernel runs.
fn unwritten(code: &[Inst], flow: &Flow, names: &Names) -> Bits {
    let blocks = flow.blocks();
    let mut before = vec![Bits::new(names.total, true); blocks + 1];
    before[0] = Bits::new(names.total, false);
    let mut work: Vec<usize> = vec![0];
    let mut visited = vec![false; blocks + 1];
    while let Some(b) = work.pop() {
        if b == blocks {
            continue;
        }
        visited[b] = true;
        let mut set = before[b].clone();
        for inst in code[flow.range(b)].iter().filter(|i| i.guard == 0) {
            names.defs(inst).for_each(|d| set.set(d, true));
        }
        for &s in &flow.successors[b] {
            let mut merged = before[s].clone();
            merged.0.iter_mut().zip(&set.0).for_each(|(m, s)| *m &= s);
            if merged != before[s] || !visited[s] {
                before[s] = merged;
                visited[s] = true;
                work.push(s);
            }
        }
    }
    let mut tracked = Bits::new(names.total, false);
    for b in (0..blocks).filter(|&b| visited[b]) {
        let mut set = before[b].clone();
        for inst in &code[flow.range(b)] {
            for u in names.uses(inst).filter(|&u| !set.get(u)) {
                tracked.set(u, true);
            }
            if inst.guard == 0 {
                names.defs(inst).for_each(|d| set.set(d, true));
            }
        }
    }
    tracked
}

/// For each register, the stretch of the text from its first to its last live point.
fn intervals(code: &[Inst], flow: &Flow, names: &Names, tracked: &Bits) -> Vec<(u32, u32)> {
    let blocks = flow.blocks();
    let mut before = vec![Bits::new(names.total, false); blocks + 1];
    let mut after = before.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            let mut set = Bits::new(names.total, false);
            for &s in &flow.successors[b] {
                set.0.iter_mut().zip(&before[s].0).for_each(|(m, s)| *m |= s);
            }
            after[b] = set.clone();
            for inst in code[flow.range(b)].iter().rev() {
                if inst.guard == 0 {
                    names.defs(inst).for_each(|d| set.set(d, false));
                }
                names.uses(inst).for_each(|u| set.set(u, true));
            }
            if set != before[b] {
                before[b] = set;
                changed = true;
            }
        }
    }
    let mut spans = vec![(u32::MAX, 0u32); names.total];
    let mut touch = |r: usize, at: usize| {
        let span: &mut (u32, u32) = &mut spans[r];
        *span = (span.0.min(at as u32), span.1.max(at as u32));
    };
    for b in 0..blocks {
        let range = flow.range(b);
        before[b].iter().for_each(|r| touch(r, 2 * range.start));
        after[b].iter().for_each(|r| touch(r, 2 * range.end));
        for i in range {
            names.uses(&code[i]).for_each(|r| touch(r, 2 * i));
            names.defs(&code[i]).for_each(|r| touch(r, 2 * i + 1));
        }
    }
    for r in tracked.iter().filter(|&r| r < names.total) {
        spans[r] = (0, u32::MAX);
    }
    spans
}

/// Linear scan: slots of each class, the fixed ones first. A register that dies where another is born may share its
/// slot, because an instruction reads all of its sources before it writes.
fn scan(spans: &[(u32, u32)], names: &Names, fixed: [u32; 3]) -> (Vec<u32>, [u32; 3]) {
    let mut slots = vec![0; names.total];
    let mut counts = fixed;
    for (class, count) in counts.iter_mut().enumerate() {
        let first = names.base[class];
        let last = names.base.get(class + 1).copied().unwrap_or(names.total);
        let mut order: Vec<usize> = (first..last).filter(|&r| spans[r].0 != u32::MAX).collect();
        order.sort_by_key(|&r| spans[r]);
        let mut active: BinaryHeap<Reverse<(u32, u32)>> = BinaryHeap::new();
        let mut free: Vec<u32> = Vec::new();
        for r in order {
            while let Some(&Reverse((end, slot))) = active.peek() {
                if end >= spans[r].0 {
                    break;
                }
                active.pop();
                free.push(slot);
            }
            let slot = free.pop().unwrap_or_else(|| {
                *count += 1;
                *count - 1
            });
            slots[r] = slot;
            active.push(Reverse((spans[r].1, slot)));
        }
        // A file without registers still has one slot, so that an index of zero is always valid.
        *count = (*count).max(1);
    }
    (slots, counts)
}
