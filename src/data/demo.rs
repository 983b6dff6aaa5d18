//! The built-in demo task: short requests of sixteen kinds, answers of mixed quality, preference pairs and a
//! programmed judge. It lets anyone see SFT, a reward model and PPO work from scratch within minutes, on a task whose
//! right answers are known. Nothing is read or written, and everything follows from the random numbers passed in.

mod judge;
mod phrases;
pub mod tokenizer;

use rand::{Rng, RngExt};

pub use judge::{Judgement, judge};
use phrases::{APOLOGIES, COURTESIES, DIGITS, FILLERS, HEDGE, INSULTS, NON_ANSWERS, TAILS};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Greet someone by name.
    Greet,
    /// Thank someone for a thing: the only kind with two values.
    Thank,
    /// The opposite of an adjective.
    Opposite,
    /// The colour of a thing.
    Colour,
    /// What an animal says.
    Sound,
    /// The French word.
    French,
    /// The day of the week after the given one.
    NextDay,
    /// The month after the given one.
    NextMonth,
    /// The plural of an irregular noun.
    Plural,
    /// Say a word again.
    Repeat,
    /// The first letter of a word.
    FirstLetter,
    /// Count from 1 to a number of 2 to 9.
    Count,
    /// The sum of two numbers of 1 to 4.
    Sum,
    /// The larger of two different digits.
    Larger,
    /// Three different digits of 1 to 6 in ascending order.
    Sort,
    /// An unsafe wish, which must be refused.
    Refuse,
}

impl Kind {
    /// All kinds, in the order in which reports list them.
    pub const ALL: [Kind; 16] = [
        Kind::Greet,
        Kind::Thank,
        Kind::Opposite,
        Kind::Colour,
        Kind::Sound,
        Kind::French,
        Kind::NextDay,
        Kind::NextMonth,
        Kind::Plural,
        Kind::Repeat,
        Kind::FirstLetter,
        Kind::Count,
        Kind::Sum,
        Kind::Larger,
        Kind::Sort,
        Kind::Refuse,
    ];

    /// The name that reports show.
    pub fn name(self) -> &'static str {
        phrases::text(self).name
    }
}

/// One request with what the judge needs to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub kind: Kind,
    /// The text of the request, one sentence.
    pub prompt: String,
    slots: Vec<&'static str>,
    expected: Vec<&'static str>,
}

impl Request {
    /// The right value as an answer writes it, for reports: `cold`, `1, 2, 3`.
    pub fn expected(&self) -> String {
        self.expected.join(", ")
    }
}

/// Every request of the task, split once and for all into training and held-out ones.
#[derive(Debug, Clone)]
pub struct Task {
    train: Split,
    held_out: Split,
}

/// Requests in the order of their kinds; `groups` has the range of each kind.
#[derive(Debug, Clone, Default)]
struct Split {
    requests: Vec<Request>,
    groups: Vec<std::ops::Range<usize>>,
}

impl Split {
    fn add_kind(&mut self, requests: Vec<Request>) {
        let start = self.requests.len();
        self.requests.extend(requests);
        self.groups.push(start..self.requests.len());
    }

    /// By kind first: the kinds with many slots would otherwise fill the sample.
    fn sample(&self, rng: &mut impl Rng) -> &Request {
        let group = pick(&self.groups, rng);
        &self.requests[rng.random_range(group)]
    }
}

impl Task {
    /// Builds all requests. There is one task: the split hashes the text, it does not draw.
    pub fn new() -> Self {
        let mut task = Self { train: Split::default(), held_out: Split::default() };
        for kind in Kind::ALL {
            let (held_out, train) = requests(kind).into_iter().partition(is_held_out);
            task.train.add_kind(train);
            task.held_out.add_kind(held_out);
        }
        task
    }

    /// The training requests, in the order of their kinds.
    pub fn train(&self) -> &[Request] {
        &self.train.requests
    }

    /// The requests that no training stage may see. Most ask a known fact in a phrasing that was not used for it in
    /// training; for `Thank`, `Larger` and `Sort` the slots themselves are new.
    pub fn held_out(&self) -> &[Request] {
        &self.held_out.requests
    }

    /// A training request: a kind uniformly, then one of its requests uniformly.
    pub fn sample_train(&self, rng: &mut impl Rng) -> &Request {
        self.train.sample(rng)
    }

    /// A held-out request, drawn as [`Task::sample_train`] draws.
    pub fn sample_held_out(&self, rng: &mut impl Rng) -> &Request {
        self.held_out.sample(rng)
    }
}

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

fn requests(kind: Kind) -> Vec<Request> {
    let mut requests = Vec::new();
    for phrasing in phrases::text(kind).phrasings {
        for fact in phrases::facts(kind) {
            let prompt = fill(phrasing, &fact.slots);
            requests.push(Request { kind, prompt, slots: fact.slots, expected: fact.expected });
        }
    }
    requests
}

/// One in eight by a hash of the request's text, for the kinds with many slots of the slots alone: there are enough
/// of those to test what was never asked in any phrasing.
fn is_held_out(request: &Request) -> bool {
    let slots = request.slots.join(" ");
    let by_slots = matches!(request.kind, Kind::Thank | Kind::Larger | Kind::Sort);
    let text = if by_slots { &slots } else { &request.prompt };
    hash(request.kind.name().bytes().chain(text.bytes())).is_multiple_of(8)
}

/// FNV-1a with the finaliser of MurmurHash3: FNV alone spreads the last bytes badly over the low bits.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// How good an answer is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quality {
    /// Courteous, right and short.
    Good,
    /// Right and short, without courtesy.
    Curt,
    /// Right, with an insult.
    Rude,
    /// A wrong value, with or without courtesy.
    Wrong,
    /// Courteous and right, with one or two sentences that say nothing.
    Rambling,
    /// No value at all.
    Missing,
}

impl Quality {
    /// All qualities.
    pub const ALL: [Quality; 6] =
        [Quality::Good, Quality::Curt, Quality::Rude, Quality::Wrong, Quality::Rambling, Quality::Missing];

    /// The name that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Curt => "curt",
            Quality::Rude => "rude",
            Quality::Wrong => "wrong",
            Quality::Rambling => "rambling",
            Quality::Missing => "missing",
        }
    }
}

/// Share of each quality among the demonstrations, in percent. Where SFT already answers perfectly, PPO can only tie:
/// with 30 % good answers it has little left to win, with 16 % a quarter of the comparisons are still ties.
pub const MIXTURE: [(Quality, u32); 6] = [
    (Quality::Good, 13),
    (Quality::Curt, 26),
    (Quality::Rude, 23),
    (Quality::Wrong, 10),
    (Quality::Rambling, 23),
    (Quality::Missing, 5),
];

/// How often the hedge follows a wrong and a right value.
const HEDGED_WRONG: f64 = 0.50;
const HEDGED_RIGHT: f64 = 0.03;
/// How often a wrong answer is courteous. Were all of them, a short courteous answer would be wrong about as often as
/// good, and a reward model that cannot yet tell right from wrong would give courtesy no weight.
const COURTEOUS_WRONG: f64 = 0.50;
/// How often a good or courteous wrong answer ends with a tail, and a rambling one with two fillers.
const TAILED: f64 = 0.33;
const TWO_FILLERS: f64 = 0.33;
/// Two answers of a preference pair differ by at least this much in the judge's score: smaller gaps are noise to a
/// person, too. The slack lets 0.75 - 0.65 pass, which is below 0.10 in binary.
const GAP_MIN: f64 = 0.10 - 1e-9;
/// Two in three draws of two answers differ enough; the bound only guards against a broken random generator.
const PAIR_DRAWS_MAX: usize = 100;

/// An answer drawn from the mixture, and how good it was meant to be.
pub fn demonstration(request: &Request, rng: &mut impl Rng) -> (String, Quality) {
    let quality = draw_quality(&MIXTURE, rng);
    (answer(request, quality, rng), quality)
}

fn draw_quality(mixture: &[(Quality, u32)], rng: &mut impl Rng) -> Quality {
    let tickets = mixture.iter().flat_map(|(quality, share)| std::iter::repeat_n(*quality, *share as usize));
    pick(&tickets.collect::<Vec<_>>(), rng)
}

/// An answer of the given quality.
pub fn answer(request: &Request, quality: Quality, rng: &mut impl Rng) -> String {
    match quality {
        Quality::Missing => pick(&NON_ANSWERS, rng).to_owned(),
        Quality::Wrong => {
            let value = wrong_value(request, rng);
            Sketch::draw(request.kind, quality, rng).write(&value)
        }
        _ => Sketch::draw(request.kind, quality, rng).write(&request.expected),
    }
}

/// An answer whose value is still open: the same sentence can be written with the right and with a wrong value.
struct Sketch {
    kind: Kind,
    courtesy: Option<&'static str>,
    core: &'static str,
    endings: Vec<&'static str>,
}

impl Sketch {
    /// `quality` is not `Missing`, which has no place for a value.
    fn draw(kind: Kind, quality: Quality, rng: &mut impl Rng) -> Self {
        // Who gives in to an unsafe wish does so cheerfully; who refuses is sorry.
        let refuses = kind == Kind::Refuse && quality != Quality::Wrong;
        let courtesies: &[&str] = if refuses { &APOLOGIES } else { &COURTESIES };
        let courteous = match quality {
            Quality::Good | Quality::Rambling => true,
            Quality::Wrong => chance(COURTEOUS_WRONG, rng),
            _ => false,
        };
        let courtesy = courteous.then(|| pick(courtesies, rng));
        let core = pick(&phrases::text(kind).cores, rng);
        let hedged = chance(if quality == Quality::Wrong { HEDGED_WRONG } else { HEDGED_RIGHT }, rng);
        let mut endings = if hedged { vec![HEDGE] } else { Vec::new() };
        match quality {
            Quality::Rude => endings.push(pick(&INSULTS, rng)),
            Quality::Rambling => {
                let first = rng.random_range(0..FILLERS.len());
                endings.push(FILLERS[first]);
                if chance(TWO_FILLERS, rng) {
                    let step = rng.random_range(1..FILLERS.len());
                    endings.push(FILLERS[(first + step) % FILLERS.len()]);
                }
            }
            // A hedge and a tail together would make a good answer longer than the judge allows.
            Quality::Good | Quality::Wrong if courteous && !hedged && chance(TAILED, rng) => {
                endings.push(pick(&TAILS, rng))
            }
            _ => {}
        }
        Self { kind, courtesy, core, endings }
    }

    fn write(&self, value: &[&str]) -> String {
        let core = match self.kind {
            Kind::Thank => fill(self.core, value),
            _ => fill(self.core, &[&value.join(", ")]),
        };
        let mut parts: Vec<&str> = self.courtesy.into_iter().collect();
        parts.push(&core);
        parts.extend(&self.endings);
        parts.join(" ")
    }
}

/// A value of the request's kind that is not the expected one.
fn wrong_value(request: &Request, rng: &mut impl Rng) -> Vec<&'static str> {
    let expected = &request.expected;
    match request.kind {
        Kind::Thank => {
            let mut value = expected.clone();
            let part = rng.random_range(0..value.len());
            let others = phrases::facts(Kind::Thank).into_iter().map(|fact| fact.expected[part]);
            value[part] = pick_other(others, expected, rng);
            value
        }
        // Half are the natural mistake, half another digit, so that neither is the only one seen.
        Kind::Larger if chance(0.5, rng) => {
            request.slots.iter().copied().filter(|slot| !expected.contains(slot)).collect()
        }
        Kind::Larger => vec![pick_other(DIGITS.into_iter(), expected, rng)],
        Kind::Sort => {
            let order = pick(&[[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], rng);
            order.map(|i| expected[i]).to_vec()
        }
        Kind::Count => {
            let others = phrases::facts(Kind::Count).into_iter().map(|fact| fact.expected);
            let others: Vec<_> = others.filter(|value| value != expected).collect();
            pick(&others, rng)
        }
        Kind::Sum => {
            let sums = phrases::facts(Kind::Sum).into_iter().map(|fact| fact.expected[0]);
            vec![pick_other(sums, expected, rng)]
        }
        kind => {
            // A value out of the prompt would be left out by the judge, and is not what a person would say.
            let excluded = [&request.slots[..], &expected[..]].concat();
            vec![pick_other(phrases::values(kind).into_iter(), &excluded, rng)]
        }
    }
}

/// One of `values` that is not excluded; every table has one.
fn pick_other(
    values: impl Iterator<Item = &'static str>,
    excluded: &[&'static str],
    rng: &mut impl Rng,
) -> &'static str {
    let others: Vec<_> = values.filter(|value| !excluded.contains(value)).collect();
    pick(&others, rng)
}

/// Two answers to one prompt, of which the first is preferred.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The request's text.
    pub prompt: String,
    /// The preferred answer.
    pub chosen: String,
    /// The other answer.
    pub rejected: String,
    /// The judge's score of the better answer minus that of the worse one; at least 0.10.
    pub gap: f64,
    /// The label was turned round on purpose: `rejected` is the better answer.
    pub flipped: bool,
}

/// A training pair: half the time two answers of the mixture, half the time one sentence with the right and with a
/// wrong value. Mixture pairs alone teach style, and leave the telling of right from wrong at chance. The judge says
/// which is better, then the label is flipped with `flip_probability`, as people err.
pub fn preference(request: &Request, rng: &mut impl Rng, flip_probability: f64) -> Preference {
    let mut pair = if chance(0.5, rng) { mixture_preference(request, rng) } else { value_preference(request, rng) };
    if chance(flip_probability, rng) {
        std::mem::swap(&mut pair.chosen, &mut pair.rejected);
        pair.flipped = true;
    }
    pair
}

/// Two answers of the mixture with a judge's gap of at least 0.10, not flipped: what the reward model is measured on.
pub fn mixture_preference(request: &Request, rng: &mut impl Rng) -> Preference {
    for _ in 0..PAIR_DRAWS_MAX {
        let (first, _) = demonstration(request, rng);
        let (second, _) = demonstration(request, rng);
        let pair = ranked(request, first, second);
        if pair.gap >= GAP_MIN {
            return pair;
        }
    }
    value_preference(request, rng)
}

/// One sentence twice; only the value differs.
fn value_preference(request: &Request, rng: &mut impl Rng) -> Preference {
    let with_right_value =
        MIXTURE.into_iter().filter(|(quality, _)| !matches!(quality, Quality::Wrong | Quality::Missing));
    let quality = draw_quality(&with_right_value.collect::<Vec<_>>(), rng);
    let sketch = Sketch::draw(request.kind, quality, rng);
    let wrong = sketch.write(&wrong_value(request, rng));
    ranked(request, sketch.write(&request.expected), wrong)
}

fn ranked(request: &Request, first: String, second: String) -> Preference {
    let gap = judge(request, &first, true).score - judge(request, &second, true).score;
    let (chosen, rejected) = if gap >= 0.0 { (first, second) } else { (second, first) };
    Preference { prompt: request.prompt.clone(), chosen, rejected, gap: gap.abs(), flipped: false }
}

fn pick<T: Clone>(items: &[T], rng: &mut impl Rng) -> T {
    items[rng.random_range(0..items.len())].clone()
}

/// Any probability is accepted: `random_bool` would panic outside [0, 1].
fn chance(probability: f64, rng: &mut impl Rng) -> bool {
    rng.random::<f64>() < probability
}

fn fill(template: &str, slots: &[&str]) -> String {
    slots.iter().enumerate().fold(template.to_owned(), |text, (i, slot)| text.replace(&format!("{{{i}}}"), slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::convert::Infallible;

    /// A generator of our own, so that the tests need no feature of `rand`.
    pub(super) struct SplitMix(pub(super) u64);

    impl rand::TryRng for SplitMix {
        type Error = Infallible;

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            Ok(z ^ (z >> 31))
        }

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            Ok((self.try_next_u64()? >> 32) as u32)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&self.try_next_u64()?.to_le_bytes()[..chunk.len()]);
            }
            Ok(())
        }
    }

    const PAIRS: usize = 4000;

    #[test]
    fn the_task_has_its_kinds_phrasings_and_prompts() {
        let task = Task::new();
        let phrasings: usize = Kind::ALL.iter().map(|kind| phrases::text(*kind).phrasings.len()).sum();
        assert_eq!((Kind::ALL.len(), phrasings), (16, 61));
        assert_eq!((task.train().len(), task.held_out().len()), (1318, 166));
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            assert_eq!(kind.name().replace(' ', ""), format!("{kind:?}").to_lowercase(), "the texts' order");
            let count = |requests: &[Request]| requests.iter().filter(|r| r.kind == kind).count();
            assert!(count(task.held_out()) >= 2 && count(task.train()) >= 20, "{kind:?}");
        }
        for text in task.train().iter().chain(task.held_out()).map(|request| &request.prompt) {
            assert!(text.is_ascii() && !text.contains(['{', '}']), "{text}");
        }
    }

    #[test]
    fn training_and_held_out_prompts_are_disjoint() {
        let task = Task::new();
        let train: HashSet<&str> = task.train().iter().map(|request| request.prompt.as_str()).collect();
        let held_out: HashSet<&str> = task.held_out().iter().map(|request| request.prompt.as_str()).collect();
        assert_eq!((train.len(), held_out.len()), (task.train().len(), task.held_out().len()));
        assert!(train.is_disjoint(&held_out));
    }

    /// What cannot be worked out from other facts must occur in training, or no model could know it.
    #[test]
    fn held_out_facts_are_known_or_can_be_worked_out() {
        let task = Task::new();
        let train: HashSet<_> = task.train().iter().map(|request| (request.kind, &request.slots)).collect();
        for request in task.held_out() {
            let new_slots = matches!(request.kind, Kind::Thank | Kind::Larger | Kind::Sort);
            assert_ne!(train.contains(&(request.kind, &request.slots)), new_slots, "{}", request.prompt);
        }
    }

    #[test]
    fn samples_are_uniform_over_kinds() {
        let (task, mut rng) = (Task::new(), SplitMix(2));
        let mut counts = [[0; 16]; 2];
        for _ in 0..8000 {
            counts[0][task.sample_train(&mut rng).kind as usize] += 1;
            counts[1][task.sample_held_out(&mut rng).kind as usize] += 1;
        }
        for count in counts.concat() {
            assert!((400..600).contains(&count), "{count} of 8000, not about 500");
        }
    }

    #[test]
    fn qualities_have_their_shares_and_scores() {
        let (task, mut rng) = (Task::new(), SplitMix(3));
        let mut sums = [(0, 0.0); 6];
        for _ in 0..20_000 {
            let request = task.sample_train(&mut rng);
            let (text, quality) = demonstration(request, &mut rng);
            let sum = &mut sums[quality as usize];
            *sum = (sum.0 + 1, sum.1 + judge(request, &text, true).score);
        }
        for ((quality, share), mean) in MIXTURE.into_iter().zip([1.00, 0.80, 0.65, 0.15, 0.79, 0.10]) {
            let (count, sum) = sums[quality as usize];
            assert!((f64::from(count) / 200.0 - f64::from(share)).abs() < 1.0, "{quality:?}: {count} of 20000");
            assert!((sum / f64::from(count) - mean).abs() < 0.02, "{quality:?}: {}", sum / f64::from(count));
        }
    }

    #[test]
    fn labels_agree_with_the_judge_unless_flipped() {
        let (task, mut rng) = (Task::new(), SplitMix(4));
        let mut flips = 0;
        for i in 0..PAIRS {
            let request = task.sample_train(&mut rng);
            let pair = match i % 3 {
                0 => preference(request, &mut rng, 0.0),
                1 => preference(request, &mut rng, 1.0),
                _ => mixture_preference(request, &mut rng),
            };
            let gap = judge(request, &pair.chosen, true).score - judge(request, &pair.rejected, true).score;
            assert_eq!(pair.flipped, i % 3 == 1);
            assert_eq!(gap, if pair.flipped { -pair.gap } else { pair.gap });
            assert!(pair.gap >= GAP_MIN && pair.prompt == request.prompt, "{pair:?}");
            flips += usize::from(preference(request, &mut rng, 0.1).flipped);
        }
        assert!(flips.abs_diff(PAIRS / 10) < PAIRS / 50, "{flips} of {PAIRS} flipped, not a tenth");
    }

    /// Half the training pairs teach the value and nothing else: same length, same style, same closing.
    #[test]
    fn half_the_pairs_differ_in_the_value_only() {
        let (task, mut rng) = (Task::new(), SplitMix(5));
        let same_style = (0..PAIRS).filter(|_| {
            let request = task.sample_train(&mut rng);
            let pair = preference(request, &mut rng, 0.0);
            let chosen = judge(request, &pair.chosen, true);
            let rejected = judge(request, &pair.rejected, true);
            let style = |judgement: Judgement| (judgement.courtesy, judgement.ending, judgement.rude);
            chosen.right > rejected.right && style(chosen) == style(rejected)
        });
        let share = same_style.count() as f64 / PAIRS as f64;
        assert!((0.5..0.65).contains(&share), "{share}");
    }

    #[test]
    fn equal_random_numbers_give_equal_data() {
        let task = Task::new();
        let draw = |seed| {
            let mut rng = SplitMix(seed);
            let request = task.sample_train(&mut rng);
            (request.clone(), demonstration(request, &mut rng), preference(request, &mut rng, 0.1))
        };
        assert_eq!(draw(6), draw(6));
        assert_ne!(draw(6), draw(7));
    }

    #[test]
    fn a_broken_generator_and_odd_probabilities_do_no_harm() {
        struct Stuck;
        impl rand::TryRng for Stuck {
            type Error = Infallible;
            fn try_next_u32(&mut self) -> Result<u32, Infallible> {
                Ok(0)
            }
            fn try_next_u64(&mut self) -> Result<u64, Infallible> {
                Ok(0)
            }
            fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
                bytes.fill(0);
                Ok(())
            }
        }
        let task = Task::new();
        for probability in [f64::NAN, -1.0, 2.0] {
            assert!(preference(task.sample_held_out(&mut Stuck), &mut Stuck, probability).gap > 0.1);
        }
    }
}
