//! The memory plan of a run: what each group of buffers takes, the peak of each phase, and how many rows go into one
//! pass. Nothing here is a formula of the network: a plan is a rehearsal of the trainers' own functions, at the largest
//! shapes that the data can bring, on a device that counts and does not compute. A run that cannot fit into a GPU is
//! refused before it begins, with settings that were tried and would fit.

mod jobs;
mod work;

use serde_json::{Value, json};

use super::Learner;
pub(crate) use super::metrics::bytes_text as text;
use crate::config::{OptimizerArgs, ROWS_PER_PASS, Recompute};
use crate::device::Device;
use crate::error::{Code, Error, Result};
use crate::model::heads::Packed;
use crate::model::{Model, ModelConfig};
use crate::tensor::Tensor;

pub(crate) use jobs::{Ppo, Preferences, Sft};
pub(crate) use work::Work;

/// Why a pass has the rows that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The user asked for them.
    Asked,
    /// They are the most that fit.
    Fit,
    /// Nobody asked, and nothing was tried.
    Usual,
}

/// What a run takes of a device's memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemoryPlan {
    /// Bytes of each group of buffers. Groups of different phases do not live at once.
    pub(crate) groups: Vec<(String, usize)>,
    /// Bytes at once, at most, in each phase.
    pub(crate) phases: Vec<(&'static str, usize)>,
    /// Rows in one forward and backward pass.
    pub(crate) micro_batch: usize,
    /// Why these.
    pub(crate) rows: Rows,
}

impl MemoryPlan {
    /// Bytes at once, at most.
    pub(crate) fn peak(&self) -> usize {
        self.phases.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }

    /// The plan in two lines, before `usable` bytes.
    pub(crate) fn summary(&self, usable: usize) -> String {
        let phases: Vec<String> = self.phases.iter().map(|(name, bytes)| format!("{name} {}", text(*bytes))).collect();
        let rows = match self.rows {
            Rows::Asked => "as asked".to_owned(),
            Rows::Fit => format!("the largest share of {ROWS_PER_PASS} that fits"),
            Rows::Usual => "as by default".to_owned(),
        };
        format!(
            "memory: {} at the peak, of {} that can be used ({})\n  micro-batch: {} rows in a pass, {rows}",
            text(self.peak()),
            text(usable),
            phases.join(", "),
            self.micro_batch
        )
    }

    /// A table of all groups.
    pub(crate) fn table(&self) -> String {
        let rows: Vec<String> =
            self.groups.iter().map(|(name, bytes)| format!("  {name:<44} {:>10}", text(*bytes))).collect();
        rows.join("\n")
    }

    /// The same beside `bytes` more of something that is there all the time.
    pub(crate) fn beside(mut self, name: &str, bytes: usize) -> Self {
        self.groups.push((name.to_owned(), bytes));
        self.phases.iter_mut().for_each(|(_, peak)| *peak += bytes);
        self
    }

    /// For `run.json`: bytes.
    pub(crate) fn to_json(&self) -> Value {
        let groups: serde_json::Map<String, Value> = self.groups.iter().map(|(n, b)| (n.clone(), json!(b))).collect();
        let phases: serde_json::Map<String, Value> =
            self.phases.iter().map(|(n, b)| ((*n).to_owned(), json!(b))).collect();
        json!({ "groups": groups, "peaks": phases })
    }
}

/// Where a run is rehearsed, and what was seen of it.
pub(crate) struct Scene {
    device: Device,
    groups: Vec<(String, usize)>,
    phases: Vec<(&'static str, usize)>,
}

impl Scene {
    /// For a run on `device`.
    fn new(device: &Device) -> Result<Self> {
        let device = device.rehearsal();
        let workspace = match device.memory_used()? {
            0 => Vec::new(),
            bytes => vec![("workspace of the matrix library".to_owned(), bytes)],
        };
        Ok(Self { device, groups: workspace, phases: Vec::new() })
    }

    /// A model as it is when it was read.
    fn model(&self, config: &ModelConfig) -> Result<Model> {
        Model::zeros(&self.device, self.device.dtype(), config.clone())
    }

    fn used(&self) -> Result<usize> {
        self.device.memory_used()
    }

    fn group(&mut self, name: impl Into<String>, bytes: usize) {
        self.groups.push((name.into(), bytes));
    }

    /// The groups of a model that is not trained.
    fn frozen(&mut self, role: &str, model: &Model) {
        self.group(role, bytes(&model.params.flat));
    }

    /// The groups of a model that is trained.
    fn trained(&mut self, role: &str, learner: &Learner) {
        let params = &learner.model.params;
        self.group(format!("{role}parameters"), bytes(&params.flat));
        if params.rounded().is_some() {
            self.group(format!("{role}master weights"), bytes(params.masters()));
        }
        self.group(format!("{role}gradients"), bytes(&learner.grads.flat));
        self.group(format!("{role}moments"), learner.optimizer.moments().into_iter().map(bytes).sum());
    }

    /// The one model of a run that is trained, on rows of up to `longest` tokens.
    fn learns(&mut self, learner: Learner, longest: usize) -> Result<Learner> {
        self.warm(&learner.model, longest)?;
        self.trained("", &learner);
        self.rest()?;
        Ok(learner)
    }

    /// What lies there beside the groups so far: tables of positions, and what is lost to rounding.
    fn rest(&mut self) -> Result<()> {
        let known: usize = self.groups.iter().map(|(_, bytes)| bytes).sum();
        let rest = self.used()?.saturating_sub(known);
        self.group("tables", rest);
        Ok(())
    }

    /// Ends a phase that began where the last one ended; returns its peak.
    fn ends(&mut self, phase: &'static str) -> Result<usize> {
        let peak = self.device.take_memory_peak()?;
        self.phases.push((phase, peak));
        Ok(peak)
    }

    /// Has a model's tables reach `length` positions, as they do from the first long row on.
    fn warm(&self, model: &Model, length: usize) -> Result<()> {
        let row = vec![0; length];
        model.hidden(&model.frozen()?, &Packed::new(model, [&row[..]])?)?;
        self.device.take_memory_peak().map(|_| ())
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.len() * tensor.dtype().bytes()
}

/// A run that can be rehearsed.
pub(crate) trait Job: Sized {
    /// What training begins with.
    type Ready;

    /// Steps and tokens.
    fn work(&self) -> &Work;

    /// The settings that all stages have.
    fn optimizer(&self) -> &OptimizerArgs;

    /// The same run under other such settings.
    fn with_optimizer(&self, optimizer: OptimizerArgs) -> Self;

    /// Everything up to the first pass with gradients.
    fn prepare(&self, scene: &mut Scene) -> Result<Self::Ready>;

    /// An optimizer step with a pass over the `rows` largest rows, and an evaluation.
    fn train(&self, ready: &mut Self::Ready, rows: usize, scene: &mut Scene) -> Result<()>;

    /// For each of the stage's own settings that make the run smaller: the values to try, as they stand on a command
    /// line, the best first.
    fn smaller(&self) -> Vec<Vec<(String, Self)>>;
}

/// The same optimizer's batch in smaller passes, the largest first.
fn smaller_passes<J: Job>(job: &J) -> Vec<(String, J)> {
    let args = job.optimizer();
    let given = args.per_device_train_batch_size.unwrap_or(1);
    let cut = |rows: usize| {
        let steps = args.gradient_accumulation_steps.saturating_mul(given / rows);
        let words = format!("--per-device-train-batch-size {rows} --gradient-accumulation-steps {steps}");
        let (rows, steps) = (Some(rows), steps);
        let args =
            OptimizerArgs { per_device_train_batch_size: rows, gradient_accumulation_steps: steps, ..args.clone() };
        (words, job.with_optimizer(args))
    };
    (1..given).rev().filter(|rows| given.is_multiple_of(*rows)).map(cut).collect()
}

/// The plan of `job` on the GPU `device`, of which `usable` bytes can be planned with.
///
/// # Errors
/// `memory-plan` where the run does not fit.
pub(crate) fn make<J: Job>(job: &J, device: &Device, usable: usize) -> Result<MemoryPlan> {
    let plan = attempt(job, device, usable)?;
    if plan.peak() <= usable {
        return Ok(plan);
    }
    Err(refusal(&plan, "the GPU's memory", usable, &fitting(job, device, usable)?))
}

/// The host's memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// What the process has taken beside models: its code, tokenizers, data.
    pub(crate) taken: usize,
    /// What can be had now.
    pub(crate) free: usize,
    /// What there is at all.
    pub(crate) total: usize,
}

/// The plan of `job` on the CPU, with the rows that the user asked for or the usual ones: a pass is never cut there,
/// because what is free changes by the minute and the result would with it. Beside the plan, where it does not fit
/// into what is free, settings that would.
///
/// # Errors
/// `memory-plan` where the run cannot fit whatever else ends: it takes more than there is.
pub(crate) fn on_host<J: Job>(job: &J, host: Host) -> Result<(MemoryPlan, Option<Vec<String>>)> {
    let mut plan = attempt(job, &Device::Cpu, usize::MAX)?.beside("program, tokenizers and data", host.taken);
    if plan.rows == Rows::Fit {
        plan.rows = Rows::Usual;
    }
    if plan.peak() <= host.free {
        return Ok((plan, None));
    }
    let advice = fitting(job, &Device::Cpu, host.free.saturating_sub(host.taken))?;
    if plan.peak() > host.total {
        return Err(refusal(&plan, "the machine's memory", host.total, &advice));
    }
    Ok((plan, Some(advice)))
}

/// The plan with the rows that the user asked for; else with the most that fit, or with one.
fn attempt<J: Job>(job: &J, device: &Device, usable: usize) -> Result<MemoryPlan> {
    let mut scene = Scene::new(device)?;
    let mut ready = job.prepare(&mut scene)?;
    let (groups, phases) = (scene.groups.clone(), scene.phases.clone());
    let given = job.optimizer().per_device_train_batch_size;
    let mut rows = given.unwrap_or(ROWS_PER_PASS);
    loop {
        (scene.groups, scene.phases) = (groups.clone(), phases.clone());
        job.train(&mut ready, rows, &mut scene)?;
        let (groups, phases) = (scene.groups.clone(), scene.phases.clone());
        let why = if given.is_some() { Rows::Asked } else { Rows::Fit };
        let plan = MemoryPlan { groups, phases, micro_batch: rows, rows: why };
        if plan.peak() <= usable || given.is_some() || rows == 1 {
            return Ok(plan);
        }
        // Passes of equal size, which options can ask for again on a machine with other memory.
        rows = (1..rows).rev().find(|fewer| ROWS_PER_PASS.is_multiple_of(*fewer)).unwrap_or(1);
    }
}

/// How many settings a refusal names.
const SETTINGS: usize = 2;

/// Settings that would fit, the least change of each: alone, and where that does not help, with smaller passes.
fn fitting<J: Job>(job: &J, device: &Device, usable: usize) -> Result<Vec<String>> {
    let fits = |(_, job): &(String, J)| Ok::<_, Error>(attempt(job, device, usable)?.peak() <= usable);
    let passes = first(smaller_passes(job), fits)?;
    // Passes that fit alone need no other setting beside them.
    let together = smaller_passes(job).into_iter().take_while(|(words, _)| passes.as_ref() != Some(words));
    let together = together.flat_map(|(passes, job)| {
        settings(&job).into_iter().map(move |values| {
            let values = values.into_iter().filter(|(words, _)| !names_again(words, &passes));
            values.map(|(words, job)| (format!("{passes} {words}"), job)).collect()
        })
    });
    let mut found: Vec<String> = passes.clone().into_iter().collect();
    for values in settings(job).into_iter().chain(together) {
        if found.len() < SETTINGS {
            found.extend(first(values, fits)?);
        }
    }
    Ok(found)
}

/// The same run with more computed again in the backward pass, the least first.
fn lighter<J: Job>(job: &J) -> Vec<(String, J)> {
    let now = job.optimizer().recompute;
    let with = |(recompute, word): (Recompute, &str)| {
        (format!("--recompute {word}"), job.with_optimizer(OptimizerArgs { recompute, ..job.optimizer().clone() }))
    };
    let more = [(Recompute::Cheap, "cheap"), (Recompute::Full, "full")];
    more.into_iter().filter(|(recompute, _)| *recompute > now).map(with).collect()
}

/// What may be tried beside smaller passes, one list a setting.
fn settings<J: Job>(job: &J) -> Vec<Vec<(String, J)>> {
    std::iter::once(lighter(job)).chain(job.smaller()).collect()
}

/// Whether the option that `words` begin with stands in `others` too.
fn names_again(words: &str, others: &str) -> bool {
    words.split(' ').next().is_some_and(|option| others.contains(option))
}

/// The first of `values` that fits, in words, where all behind one that fits do.
fn first<J>(mut values: Vec<(String, J)>, fits: impl Fn(&(String, J)) -> Result<bool>) -> Result<Option<String>> {
    let Some(last) = values.last() else { return Ok(None) };
    if !fits(last)? {
        return Ok(None);
    }
    // All before `from` are too large; the one at `to` fits.
    let (mut from, mut to) = (0, values.len() - 1);
    while from < to {
        let middle = (from + to) / 2;
        if fits(&values[middle])? {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    Ok(Some(values.swap_remove(to).0))
}

fn refusal(plan: &MemoryPlan, what: &str, usable: usize, fitting: &[String]) -> Error {
    let (phase, peak) = plan.phases.iter().max_by_key(|(_, bytes)| *bytes).copied().unwrap_or_default();
    let rows = plan.micro_batch;
    let mut groups = plan.groups.clone();
    groups.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let largest: Vec<String> = groups.iter().take(3).map(|(name, bytes)| format!("{name} {}", text(*bytes))).collect();
    Error::new(Code::Resources, "memory-plan", format!("the run does not fit into {what}"))
        .because(format!(
            "with {rows} row{} in a pass, {phase} takes {}, and {} can be used; the largest parts are {}",
            if rows == 1 { "" } else { "s" },
            text(peak),
            text(usable),
            largest.join(", ")
        ))
        .fix(match fitting {
            [] if what.contains("GPU") => "use a GPU with more memory, or a smaller model".to_owned(),
            [] => "use a machine with more memory, or a smaller model".to_owned(),
            settings => format!("use {}", settings.join(", or ")),
        })
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
