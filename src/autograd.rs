//! The tape. It knows tensors, not operations: an operation hands over its outputs, its inputs, and a rule that maps
//! the gradients of the outputs to the gradients of the inputs. Activations' gradients are returned by the rule and
//! summed here; a parameter's gradient is written by the rule into its slot of the flat gradient buffer. Memory can be
//! had for time: a tensor may carry a recipe by which a rule makes it again instead of keeping it, and a segment of the
//! tape may be run a second time in backward instead of being kept ([`checkpoint`]; Chen et al., "Training deep nets
//! with sublinear memory cost", 2016).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

/// How a tensor is made again, to the bit. It holds detached tensors, which are kept anyway.
pub(crate) type Recipe = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// Where a tensor came from, as far as gradients are concerned.
#[derive(Clone, Default)]
pub(crate) enum Origin {
    /// No gradient flows into it.
    #[default]
    None,
    /// Output number `output` of a recorded operation, and how rules that need its elements make them again.
    Node { node: Arc<Node>, output: usize, again: Option<Recipe> },
    /// A parameter, with the place of its gradient.
    Parameter(Arc<Grad>),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::None => f.write_str("None"),
            Origin::Node { node, output, .. } => write!(f, "{}#{}.{output}", node.operation, node.id),
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

/// What a rule keeps of a tensor.
pub(crate) enum Kept {
    /// Its elements.
    Elements(Tensor),
    /// The way to make them again, and their shape.
    Recipe(Recipe, Vec<usize>),
}

impl Kept {
    /// The tensor, without a gradient.
    pub(crate) fn get(&self) -> Result<Tensor> {
        match self {
            Self::Elements(tensor) => Ok(tensor.clone()),
            Self::Recipe(again, shape) => again()?.detach().reshape(shape),
        }
    }
}

impl Tensor {
    /// The tensor with a recipe: rules keep that instead of the elements. Without a gradient nothing is kept, and the
    /// recipe is forgotten.
    pub(crate) fn again(mut self, recipe: impl Fn() -> Result<Self> + Send + Sync + 'static) -> Self {
        if let Origin::Node { again, .. } = &mut self.origin {
            *again = Some(Arc::new(recipe));
        }
        self
    }

    /// What a rule that needs the elements keeps: the recipe where there is one.
    pub(crate) fn keep(&self) -> Kept {
        match &self.origin {
            Origin::Node { again: Some(again), .. } => Kept::Recipe(again.clone(), self.shape().to_vec()),
            _ => Kept::Elements(self.detach()),
        }
    }

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
    if inputs.iter().any(|t| t.needs_grad()) {
        put_on_tape(operation, outputs, inputs, rule);
    }
}

fn put_on_tape(operation: &'static str, outputs: &mut [Tensor], inputs: &[&Tensor], rule: Rule) {
    let node = Arc::new(Node {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        operation,
        outputs: outputs.len(),
        inputs: inputs.iter().map(|t| t.origin.clone()).collect(),
        rule,
    });
    for (output, tensor) in outputs.iter_mut().enumerate() {
        tensor.origin = Origin::Node { node: node.clone(), output, again: None };
    }
}

/// The outputs of `segment` for `inputs`, of which the inputs alone are kept: in backward the segment runs a second
/// time, and must give the same bits. It may use parameters, whose gradients go into their slots as ever; activations
/// must come through `inputs`, or backward refuses them.
pub(crate) fn checkpoint(
    inputs: &[&Tensor],
    segment: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Vec<Tensor>> {
    let saved: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let inside = segment(&saved)?;
    let records = inside.iter().chain(inputs.iter().copied()).any(Tensor::needs_grad);
    // What the segment's operations saved dies with its own nodes, here.
    let mut outputs: Vec<Tensor> = inside.into_iter().map(|t| t.detach()).collect();
    if !records {
        return Ok(outputs);
    }
    let needs_grad: Vec<bool> = inputs.iter().map(|t| t.needs_grad()).collect();
    let rule = move |grads: &[Option<Tensor>]| {
        let first = NEXT_ID.load(Ordering::Relaxed);
        let leaves: Vec<Leaf> = saved.iter().zip(&needs_grad).map(|(t, needed)| Leaf::new(t, *needed)).collect();
        let tensors: Vec<Tensor> = leaves.iter().map(|leaf| leaf.tensor.clone()).collect();
        let outputs = segment(&tensors)?;
        drop(tensors);
        let outputs = outputs.into_iter().zip(grads).filter_map(|(out, grad)| Some((out.origin, grad.clone()?)));
        walk(outputs.collect(), first)?;
        Ok(leaves.into_iter().map(Leaf::take).collect())
    };
    put_on_tape("checkpoint", &mut outputs, inputs, Box::new(rule));
    Ok(outputs)
}

/// A tensor at which a walk ends and leaves the gradient.
struct Leaf {
    tensor: Tensor,
    grad: Arc<Mutex<Option<Tensor>>>,
}

impl Leaf {
    fn new(tensor: &Tensor, needs_grad: bool) -> Self {
        let mut leaf = Self { tensor: tensor.detach(), grad: Arc::default() };
        if needs_grad {
            let grad = leaf.grad.clone();
            let rule = move |grads: &[Option<Tensor>]| {
                *grad.lock().unwrap_or_else(PoisonError::into_inner) = grads.first().cloned().flatten();
                Ok(Vec::new())
            };
            put_on_tape("leaf", std::slice::from_mut(&mut leaf.tensor), &[], Box::new(rule));
        }
        leaf
    }

    fn take(self) -> Option<Tensor> {
        self.grad.lock().unwrap_or_else(PoisonError::into_inner).take()
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

/// Where a walk back begins: a loss whose operation made the gradients of its inputs together with its value. It is not
/// on the tape and nothing can be computed from it, so that its gradient in itself is always 1.
#[must_use = "a loss trains nothing until its root is walked back from"]
pub(crate) struct Root(Vec<(Origin, Tensor)>);

impl Root {
    /// The inputs of a loss, each with its gradient.
    pub(crate) fn new<const N: usize>(inputs: [(&Tensor, Tensor); N]) -> Self {
        Self(inputs.map(|(input, grad)| (input.origin.clone(), grad)).into())
    }

    /// Walks the tape back and fills the gradient slots of all parameters on the way; frees each node and what it saved
    /// as soon as it was used.
    pub(crate) fn backward(self) -> Result<()> {
        walk(self.0, 0)
    }
}

/// Walks back from `loss` (one element on the tape, gradient 1), which it takes, so that its node is freed on the way.
pub(crate) fn backward(loss: Tensor) -> Result<()> {
    let seed = Tensor::from_f64(loss.device(), loss.dtype(), loss.shape(), &vec![1.0; loss.len()])?;
    let root = Root::new([(&loss, seed)]);
    drop(loss);
    root.backward()
}

/// Walks back from outputs with their gradients, over nodes of which none may be older than number `first`.
fn walk(outputs: Vec<(Origin, Tensor)>, first: u64) -> Result<()> {
    let mut waiting: BTreeMap<u64, Pending> = BTreeMap::new();
    for (origin, grad) in outputs {
        deliver(&mut waiting, origin, grad)?;
    }
    while let Some((id, Pending { node, grads })) = waiting.pop_last() {
        if id < first {
            let what = format!("a segment uses an output of {}, which is not among its inputs", node.operation);
            return Err(Error::failure("checkpoint-input", what));
        }
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
        Origin::Node { node, output, .. } => {
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
