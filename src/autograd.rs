//! The tape. It knows tensors, not operations: an operation hands over its outputs, its inputs, and a rule that maps
//! the gradients of the outputs to the gradients of the inputs. Activations' gradients are returned by the rule and
//! summed here; a parameter's gradient is written by the rule into its slot of the flat gradient buffer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{ELEMENTWISE, Kernel};
use crate::device::launch::Launch;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, floats};

const ADD: Kernel = Kernel::new(&ELEMENTWISE, "add_bf16", "add_f32");
const ADD_ASSIGN: Kernel = Kernel::new(&ELEMENTWISE, "add_assign_bf16", "add_assign_f32");
const ASSIGN: Kernel = Kernel::new(&ELEMENTWISE, "assign_bf16", "assign_f32");
const THREADS: usize = 256;

/// The rule of one recorded operation: gradients of its outputs in, gradients of its inputs out (`None` for an input
/// that has none, or that is a parameter and was written into its slot).
pub(crate) type Rule = Box<dyn Fn(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

/// Where a tensor came from, as far as gradients are concerned.
#[derive(Clone, Default)]
pub(crate) enum Origin {
    /// No gradient flows into it.
    #[default]
    None,
    /// Output number `output` of a recorded operation.
    Node { node: Arc<Node>, output: usize },
    /// A parameter, with the place of its gradient.
    Parameter(Arc<Grad>),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::None => f.write_str("None"),
            Origin::Node { node, output } => write!(f, "{}#{}.{output}", node.operation, node.id),
            Origin::Parameter(_) => f.write_str("Parameter"),
        }
    }
}

/// One operation on the tape. Ids grow with creation, so that decreasing id is an order of the backward walk.
pub(crate) struct Node {
    id: u64,
    operation: &'static str,
    outputs: usize,
    inputs: Vec<Origin>,
    rule: Rule,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// The place of one parameter's gradient: a view into the flat gradient buffer, and whether something was written
/// there since the last reset.
pub(crate) struct Grad {
    pub(crate) tensor: Tensor,
    written: AtomicBool,
}

impl Grad {
    /// A slot over `tensor`, which holds nothing of value yet.
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self { tensor, written: AtomicBool::new(false) }
    }

    /// Claims the slot for a write: false means overwrite what is there (beta 0), true means add to it (beta 1).
    pub(crate) fn claim(&self) -> bool {
        self.written.swap(true, Ordering::Relaxed)
    }

    /// Hands a zeroed or earlier gradient to `add`, which adds to it, on the host.
    pub(crate) fn add<T: crate::cpu::math::Real + crate::tensor::Element>(&self, add: impl FnOnce(&mut [T])) {
        let mut grad = self.tensor.write::<T>();
        if !self.claim() {
            grad.fill(T::ZERO);
        }
        add(&mut grad);
    }

    /// Forgets the contents: the next write overwrites.
    pub(crate) fn reset(&self) {
        self.written.store(false, Ordering::Relaxed);
    }

    /// Whether a gradient arrived since the last reset.
    pub(crate) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }
}

impl Tensor {
    /// Whether a gradient flows into this tensor.
    pub(crate) fn needs_grad(&self) -> bool {
        !matches!(self.origin, Origin::None)
    }

    /// Runs the rule of the operation that made this tensor and walks no further: what the benchmarks time.
    pub(crate) fn rule_alone(&self, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        match &self.origin {
            Origin::Node { node, .. } => (node.rule)(grads),
            _ => Err(Error::failure("no-rule", "no recorded operation made this tensor")),
        }
    }

    /// The gradient slot, if this tensor is a trained parameter; an error if it is an activation, whose gradient a rule
    /// for parameters would lose.
    pub(crate) fn slot(&self) -> Result<Option<Arc<Grad>>> {
        match &self.origin {
            Origin::Parameter(grad) => Ok(Some(grad.clone())),
            Origin::None => Ok(None),
            Origin::Node { node, .. } => {
                Err(Error::failure("not-a-parameter", format!("an output of {} is used as a weight", node.operation)))
            }
        }
    }
}

/// Puts an operation on the tape, unless no input has a gradient. `inputs` stands in the order of the rule's results.
pub(crate) fn record(operation: &'static str, outputs: &mut [Tensor], inputs: &[&Tensor], rule: Rule) {
    if !inputs.iter().any(|t| t.needs_grad()) {
        return;
    }
    let node = Arc::new(Node {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        operation,
        outputs: outputs.len(),
        inputs: inputs.iter().map(|t| t.origin.clone()).collect(),
        rule,
    });
    for (output, tensor) in outputs.iter_mut().enumerate() {
        tensor.origin = Origin::Node { node: node.clone(), output };
    }
}

/// Marks the output of an operation that has no backward rule: using it where a gradient would flow is an error, never
/// a gradient that is silently cut.
pub(crate) fn refuse_grad(operation: &'static str, inputs: &[&Tensor]) -> Result<()> {
    if inputs.iter().any(|t| t.needs_grad()) {
        return Err(Error::failure("no-backward", format!("{operation} has no backward rule")));
    }
    Ok(())
}

/// The gradients that wait for a node's turn, one place for each of its outputs.
struct Pending {
    node: Arc<Node>,
    grads: Vec<Option<Tensor>>,
}

/// Walks the tape back from `loss` (one element, gradient 1) and fills the gradient slots of all parameters on the way.
/// Takes the loss, so that each node and what it saved is freed as soon as it was used.
pub(crate) fn backward(loss: Tensor) -> Result<()> {
    let seed = Tensor::from_f64(loss.device(), loss.dtype(), loss.shape(), &vec![1.0; loss.len()])?;
    let mut waiting: BTreeMap<u64, Pending> = BTreeMap::new();
    deliver(&mut waiting, loss.origin.clone(), seed)?;
    drop(loss);
    while let Some((_, Pending { node, grads })) = waiting.pop_last() {
        let results = (node.rule)(&grads)?;
        drop(grads);
        if results.len() != node.inputs.len() {
            return Err(Error::failure(
                "rule-arity",
                format!("{} returned {} gradients", node.operation, results.len()),
            ));
        }
        let inputs: Vec<Origin> = match Arc::try_unwrap(node) {
            Ok(node) => node.inputs,
            Err(shared) => shared.inputs.clone(),
        };
        for (origin, grad) in inputs.into_iter().zip(results) {
            if let Some(grad) = grad {
                deliver(&mut waiting, origin, grad)?;
            }
        }
    }
    Ok(())
}

/// Adds `grad` to what waits at `origin`.
fn deliver(waiting: &mut BTreeMap<u64, Pending>, origin: Origin, grad: Tensor) -> Result<()> {
    match origin {
        Origin::None => Ok(()),
        Origin::Parameter(slot) => accumulate(&slot, &grad),
        Origin::Node { node, output } => {
            let outputs = node.outputs;
            let pending = waiting.entry(node.id).or_insert_with(|| Pending { node, grads: vec![None; outputs] });
            match pending.grads.get_mut(output) {
                Some(Some(sum)) => add_into(sum, &grad),
                Some(place) => {
                    *place = Some(grad);
                    Ok(())
                }
                None => Err(Error::failure("rule-output", "a gradient for an output that does not exist")),
            }
        }
    }
}

/// Writes a returned gradient into a parameter's slot, for rules that do not write there themselves.
fn accumulate(slot: &Grad, grad: &Tensor) -> Result<()> {
    match slot.tensor.device() {
        Device::Gpu(gpu) => {
            let accumulate = slot.claim();
            let kernel = if accumulate { ADD_ASSIGN } else { ASSIGN };
            Launch::new(gpu, kernel.of(grad.dtype())?)
                .blocks(grad.len().div_ceil(4 * THREADS), THREADS)
                .sum(&slot.tensor, accumulate)
                .tensor(grad)
                .long(grad.len())
                .run()
        }
        Device::Cpu => floats!(grad, T => {
            let (mut out, inp) = (slot.tensor.write::<T>(), grad.read::<T>());
            if slot.claim() { cpu::elementwise::add_assign(&mut out, &inp) } else { out.copy_from_slice(&inp) }
            Ok(())
        }),
    }
}

/// sum += grad, in place where the sum is held by nobody else (a rule may hand the same gradient to two inputs).
fn add_into(sum: &mut Tensor, grad: &Tensor) -> Result<()> {
    match sum.device() {
        Device::Gpu(gpu) => {
            let out =
                if sum.is_unique() { sum.clone() } else { Tensor::empty(sum.device(), sum.dtype(), sum.shape())? };
            Launch::new(gpu, ADD.of(grad.dtype())?)
                .blocks(grad.len().div_ceil(4 * THREADS), THREADS)
                .tensor(&out)
                .tensor(sum)
                .tensor(grad)
                .long(grad.len())
                .run()?;
            *sum = out;
            Ok(())
        }
        Device::Cpu => floats!(grad, T => {
            if !sum.is_unique() {
                let copy = sum.read::<T>().to_vec();
                *sum = Tensor::new(grad.device(), grad.shape(), copy)?;
            }
            cpu::elementwise::add_assign(&mut sum.write::<T>(), &grad.read::<T>());
            Ok(())
        }),
    }
}
