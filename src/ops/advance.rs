//! Rows that decode a token a step, as they lie on the device, and the end of a step. Nothing here waits for the device
//! but the reading of what was drawn. Formulas in `cpu/advance.rs`. No gradient.

use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{ADVANCE, Entry};
use crate::device::launch::Launch;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::ops::sample::Drawn;
use crate::random::{Stage, uniform};
use crate::tensor::Tensor;

const ADVANCE_F32: Entry = Entry::new(&ADVANCE, "advance_f32");

/// How a row starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// The token that is fed next.
    pub(crate) id: i32,
    /// Where it stands.
    pub(crate) position: usize,
    /// Where its keys and values are.
    pub(crate) slot: usize,
    /// Tokens drawn so far.
    pub(crate) count: usize,
    /// Which random numbers the row draws.
    pub(crate) number: u32,
    /// A row that draws nothing and only fills its place.
    pub(crate) finished: bool,
}

/// What is the same for all rows of a generation.
#[derive(Debug)]
pub(crate) struct Rule {
    /// [stops], i32: tokens that end a row.
    pub(crate) stop: Tensor,
    /// Tokens of a row at most.
    pub(crate) most: usize,
    pub(crate) seed: u64,
    pub(crate) stage: Stage,
    pub(crate) step: u32,
}

/// B rows that decode.
#[derive(Debug)]
pub(crate) struct Rows {
    /// [B], i32 each, views of one tensor: see [`Start`].
    pub(crate) ids: Tensor,
    pub(crate) positions: Tensor,
    pub(crate) slots: Tensor,
    counts: Tensor,
    finished: Tensor,
    numbers: Tensor,
    /// [B]: decide the next draw.
    pub(crate) uniforms: Tensor,
    /// [window, B]: what was drawn in the last steps, a row's count modulo the window its place.
    tokens: Tensor,
    logprobs: Tensor,
}

impl Rows {
    /// Rows of which `window` draws are kept.
    pub(crate) fn new(device: &Device, starts: &[Start], window: usize, rule: &Rule) -> Result<Self> {
        let b = starts.len();
        let columns: [fn(&Start) -> i32; 6] = [
            |s| s.id,
            |s| s.position as i32,
            |s| s.slot as i32,
            |s| s.count as i32,
            |s| i32::from(s.finished),
            |s| s.number as i32,
        ];
        let state = Tensor::changing(
            device,
            &[columns.len(), b],
            columns.iter().flat_map(|column| starts.iter().map(column)).collect(),
        )?;
        let column = |i: usize| state.view(i * b, &[b]);
        let draw = |s: &Start| uniform(rule.seed, rule.stage, rule.step, s.number, s.count as u32);
        Ok(Self {
            ids: column(0)?,
            positions: column(1)?,
            slots: column(2)?,
            counts: column(3)?,
            finished: column(4)?,
            numbers: column(5)?,
            uniforms: Tensor::new(device, &[b], starts.iter().map(draw).collect())?,
            tokens: Tensor::zeros(device, DType::I32, &[window, b])?,
            logprobs: Tensor::zeros(device, DType::F32, &[window, b])?,
        })
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// What `row` drew as its draw number `count`, if that is among the last that are kept: `read` comes from
    /// [`Rows::read`]. A negative token says that a logit was not finite, that of token -1 - id.
    pub(crate) fn draw(&self, read: &Read, row: usize, count: usize) -> (i32, f32) {
        let place = count % self.tokens.rows() * self.len() + row;
        (read.tokens[place], read.logprobs[place])
    }

    /// What [`advance`] changes, by name, but for the log-probabilities and the uniforms.
    pub(crate) fn columns(&self) -> [(&'static str, &Tensor); 5] {
        let Self { ids, positions, counts, finished, tokens, .. } = self;
        [("ids", ids), ("positions", positions), ("counts", counts), ("finished", finished), ("tokens", tokens)]
    }

    /// [window, B].
    pub(crate) fn logprobs(&self) -> &Tensor {
        &self.logprobs
    }

    /// Waits for the device.
    pub(crate) fn read(&self) -> Result<Read> {
        Ok(Read { tokens: self.tokens.to_i32()?, logprobs: self.logprobs.to_f32()? })
    }
}

/// What was drawn lately, on the host.
#[derive(Debug)]
pub(crate) struct Read {
    tokens: Vec<i32>,
    logprobs: Vec<f32>,
}

/// The end of a step in which `drawn` came with `logprobs` [B].
pub(crate) fn advance(rows: &Rows, drawn: &Drawn, logprobs: &Tensor, rule: &Rule) -> Result<()> {
    let n = rows.len();
    let shapes = [drawn.tokens.len(), drawn.bad.len(), logprobs.len()] == [n; 3];
    check("advance", shapes, &[&rows.ids, &drawn.tokens, &drawn.bad, logprobs])?;
    match rows.ids.device() {
        Device::Cpu => {
            advance_on_host(rows, drawn, &logprobs.to_f32()?, rule);
            Ok(())
        }
        Device::Gpu(gpu) => {
            let words = [rule.seed as u32, (rule.seed >> 32) as u32, rule.step, rule.stage as u32];
            let launch = Launch::new(gpu, ADVANCE_F32)
                .blocks(n.div_ceil(128), 128)
                .tensor(&rows.ids)
                .tensor(&rows.positions)
                .tensor(&rows.counts)
                .tensor(&rows.finished)
                .tensor(&rows.uniforms)
                .tensor(&rows.tokens)
                .tensor(&rows.logprobs)
                .tensor(&rows.numbers)
                .tensor(&drawn.tokens)
                .tensor(&drawn.bad)
                .tensor(logprobs)
                .tensor(&rule.stop)
                .sizes([n, rule.stop.len(), rows.tokens.rows(), rule.most]);
            words.into_iter().fold(launch, Launch::word).run()
        }
    }
}

fn advance_on_host(rows: &Rows, drawn: &Drawn, logprobs: &[f32], rule: &Rule) {
    // The columns are views of one tensor, of which the host hands out one at a time.
    let columns = [&rows.ids, &rows.positions, &rows.counts, &rows.finished];
    let [mut ids, mut positions, mut counts, mut finished] = columns.map(|t| t.read::<i32>().to_vec());
    let numbers = rows.numbers.read::<i32>().to_vec();
    cpu::advance::advance(
        &mut cpu::advance::Rows {
            ids: &mut ids,
            positions: &mut positions,
            counts: &mut counts,
            finished: &mut finished,
            uniforms: &mut rows.uniforms.write(),
            tokens: &mut rows.tokens.write(),
            logprobs: &mut rows.logprobs.write(),
            numbers: &numbers,
        },
        &drawn.tokens.read(),
        &drawn.bad.read(),
        logprobs,
        cpu::advance::Rule {
            stop: &rule.stop.read(),
            most: rule.most,
            seed: rule.seed,
            stage: rule.stage as u32,
            step: rule.step,
        },
    );
    for (column, values) in columns.into_iter().zip([ids, positions, counts, finished]) {
        column.write::<i32>().copy_from_slice(&values);
    }
}
