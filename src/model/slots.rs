//! Which prompt is answered when, and in which slot of the cache. Prompts wait until slots are free; finished rows make
//! room, and the batch shrinks with the rows that are left, so that a long answer does not hold what others need.
//! Knows numbers of tokens alone.

use crate::error::Result;

/// How a device likes its decode steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Sequences in flight at most.
    pub(crate) slots: usize,
    /// Steps between two looks at what was drawn; a row that ends in between runs on for nothing until the look.
    pub(crate) steps: usize,
    /// Whether batches have one of a few sizes, each of which is recorded once.
    pub(crate) buckets: bool,
}

/// Rows of a batch that did something, and rows that were computed, over all decode steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct SlotUse {
    pub(crate) useful: usize,
    pub(crate) computed: usize,
}

impl SlotUse {
    /// The share of computed rows that drew a token; 1 where nothing was computed.
    pub(crate) fn share(self) -> f64 {
        if self.computed == 0 { 1.0 } else { self.useful as f64 / self.computed as f64 }
    }
}

/// A prompt that is being answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Flight {
    pub(crate) prompt: usize,
    pub(crate) slot: usize,
    /// Tokens drawn so far.
    pub(crate) count: usize,
}

/// Tokens of the prompts that are read at once at most, if there are several.
const PREFILL_TOKENS: usize = 1 << 14;
/// Prompts wait until this share of the slots is free, so that a few are read at once.
const ADMITTED_SHARE: usize = 8;
/// Sizes of a batch between a power of two and the next.
const BUCKETS_AN_OCTAVE: usize = 4;

/// Prompts waiting, in flight, and done.
#[derive(Debug)]
pub(crate) struct Slots {
    policy: Policy,
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// Tokens of an answer at most.
    most: usize,
    /// Prompts that were started.
    started: usize,
    free: Vec<usize>,
    flying: Vec<Flight>,
    used: SlotUse,
}

impl Slots {
    pub(crate) fn new(policy: Policy, prompts: Vec<usize>, most: usize) -> Self {
        let free = (0..policy.slots.min(prompts.len())).rev().collect();
        Self { policy, prompts, most, started: 0, free, flying: Vec::new(), used: SlotUse::default() }
    }

    /// Slots that exist.
    pub(crate) fn slots(&self) -> usize {
        self.policy.slots.min(self.prompts.len())
    }

    /// Prompts to read now, each with its slot; they fly from here on.
    pub(crate) fn admit(&mut self) -> Vec<Flight> {
        let waiting = self.prompts.len() - self.started;
        let enough = waiting.min((self.slots() / ADMITTED_SHARE).max(1));
        if waiting == 0 || (self.free.len() < enough && !self.flying.is_empty()) {
            return Vec::new();
        }
        let (mut admitted, mut tokens) = (Vec::new(), 0);
        while let (Some(length), Some(slot)) = (self.prompts.get(self.started), self.free.last()) {
            tokens += length;
            if tokens > PREFILL_TOKENS && !admitted.is_empty() {
                break;
            }
            admitted.push(Flight { prompt: self.started, slot: *slot, count: 0 });
            self.free.pop();
            self.started += 1;
        }
        self.flying.extend(&admitted);
        admitted
    }

    /// Prompts in flight.
    pub(crate) fn flying(&self) -> &[Flight] {
        &self.flying
    }

    /// Slots that nobody flies in.
    pub(crate) fn free(&self) -> &[usize] {
        &self.free
    }

    /// Rows of the next batch: those in flight, and as many idle ones as its size asks for.
    pub(crate) fn rows(&self) -> usize {
        let n = self.flying.len();
        if !self.policy.buckets || n < BUCKETS_AN_OCTAVE {
            return n;
        }
        let step = (n.next_power_of_two() / 2 / BUCKETS_AN_OCTAVE).max(1);
        n.next_multiple_of(step).min(self.slots())
    }

    /// Steps until the next look: no further than where a row is certain to end.
    pub(crate) fn steps(&self) -> usize {
        let left = self.flying.iter().map(|f| self.most - f.count).min().unwrap_or(0);
        left.min(self.policy.steps)
    }

    /// After a look at `rows` rows that took `steps` steps (0: the prompts' own draws): `drew` says how many tokens a
    /// flight drew in them, and whether it is over.
    ///
    /// # Errors
    /// Those of `drew`; then nothing has changed.
    pub(crate) fn look(
        &mut self,
        rows: usize,
        steps: usize,
        drew: impl FnMut(&Flight) -> Result<(usize, bool)>,
    ) -> Result<()> {
        let drawn = self.flying.iter().map(drew).collect::<Result<Vec<_>>>()?;
        self.used.computed += rows * steps;
        for (flight, (tokens, over)) in self.flying.iter_mut().zip(&drawn) {
            self.used.useful += if steps > 0 { *tokens } else { 0 };
            flight.count += tokens;
            self.free.extend(over.then_some(flight.slot));
        }
        let mut over = drawn.iter().map(|(_, over)| *over);
        self.flying.retain(|_| over.next() != Some(true));
        Ok(())
    }

    /// What was useful so far.
    pub(crate) fn used(&self) -> SlotUse {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Policy = Policy { slots: 128, steps: 8, buckets: true };

    /// Flies answers of these lengths; returns the use of slots and the steps that it took.
    fn fly(policy: Policy, lengths: &[usize], most: usize) -> (SlotUse, usize) {
        let mut slots = Slots::new(policy, vec![100; lengths.len()], most);
        let (mut done, mut taken) = (vec![0; lengths.len()], 0);
        loop {
            let admitted = slots.admit();
            let (rows, steps) = match (admitted.is_empty(), slots.flying().is_empty()) {
                (false, _) => (0, 0),
                (true, true) => break,
                (true, false) => (slots.rows(), slots.steps()),
            };
            assert!(rows <= slots.slots() && rows <= slots.flying().len() + slots.free().len());
            let mut held: Vec<usize> = slots.flying().iter().map(|f| f.slot).chain(slots.free().to_vec()).collect();
            held.sort_unstable();
            assert_eq!(held, (0..slots.slots()).collect::<Vec<_>>(), "each slot once");
            let new = |f: &Flight| if steps > 0 { steps } else { usize::from(admitted.contains(f)) };
            slots
                .look(rows, steps, |f| {
                    let drew = new(f).min(lengths[f.prompt] - done[f.prompt]);
                    done[f.prompt] += drew;
                    Ok((drew, done[f.prompt] == lengths[f.prompt]))
                })
                .unwrap();
            taken += steps;
        }
        assert_eq!(done, lengths, "every prompt is answered to its end");
        (slots.used(), taken)
    }

    /// Lengths spread over 1..=512, in no order.
    fn spread(n: usize) -> Vec<usize> {
        (0..n).map(|i| 1 + (i * 7919 + i * i * 31) % 512).collect()
    }

    #[test]
    fn slots_do_useful_work() {
        for (n, computed) in [(128, 38_671), (256, 73_984), (1024, 279_335)] {
            let lengths = spread(n);
            let (used, steps) = fly(GPU, &lengths, 512);
            println!("{n} prompts: {:.1} % of {} rows, {steps} steps", 100.0 * used.share(), used.computed);
            assert!(used.share() >= 0.85, "{n} prompts: {used:?}, {}", used.share());
            assert_eq!(used.computed, computed, "rows that {n} prompts cost");
            assert_eq!(used.useful, lengths.iter().sum::<usize>() - n, "the first token comes from the prompt");
            // The control: in waves, where a batch keeps its size until its last row ends, half is waste.
            let waves: usize = lengths.chunks(128).map(|wave| (wave.iter().max().unwrap() - 1) * wave.len()).sum();
            assert!(used.useful as f64 / (waves as f64) < 0.6);
            assert!(n < 256 || steps < lengths.chunks(128).map(|wave| wave.iter().max().unwrap()).sum(), "{steps}");
        }
    }

    #[test]
    fn a_device_that_looks_at_each_step_wastes_nothing() {
        let (used, _) = fly(Policy { slots: 5, steps: 1, buckets: false }, &spread(40), 512);
        assert_eq!(used.share(), 1.0);
    }

    #[test]
    fn small_and_odd_flights_end() {
        for (slots, lengths, most) in [(1, vec![3, 1, 2], 3), (3, vec![1; 7], 1), (9, vec![5, 1], 5), (2, vec![], 4)] {
            let (used, _) = fly(Policy { slots, ..GPU }, &lengths, most);
            assert!(used.useful <= used.computed);
        }
    }
}
