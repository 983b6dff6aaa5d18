//! All parameters of a model in one flat buffer, with named views. Matrices come first and vectors after them, because
//! weight decay spares vectors; tensors that one GEMM reads together stand side by side. Gradients and the optimizer's
//! moments are flat buffers of the same layout.

use std::sync::Arc;

use crate::autograd::{Grad, Origin};
use crate::config::Recompute;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Elements that every group's start is a multiple of: 256 bytes of f32.
const ALIGN: usize = 64;

/// One tensor of the checkpoint inside a group.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The checkpoint's name.
    pub(crate) name: String,
    /// Its shape in memory: [out, in], or [n] for a vector.
    pub(crate) shape: Vec<usize>,
    /// Whether the checkpoint stores it as [in, out].
    pub(crate) transposed: bool,
}

impl Part {
    /// A matrix [out, in], stored as it is.
    pub(crate) fn matrix(name: impl Into<String>, out: usize, inp: usize) -> Self {
        Self { name: name.into(), shape: vec![out, inp], transposed: false }
    }

    /// A vector.
    pub(crate) fn vector(name: impl Into<String>, n: usize) -> Self {
        Self { name: name.into(), shape: vec![n], transposed: false }
    }

    /// A matrix whose checkpoint form is [in, out].
    pub(crate) fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// The shape in the checkpoint.
    pub(crate) fn stored_shape(&self) -> Vec<usize> {
        if self.transposed { self.shape.iter().rev().copied().collect() } else { self.shape.clone() }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Which group of a model; handed out by [`LayoutBuilder::add`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(usize);

#[derive(Debug, Clone)]
struct Group {
    offset: usize,
    shape: Vec<usize>,
    parts: Vec<Part>,
}

/// Where every parameter stands in the flat buffer.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    groups: Vec<Group>,
    /// Elements before this one are matrices, which decay; those from here on are vectors, which do not.
    matrices: usize,
    len: usize,
}

/// Collects groups; the order of addition is the order in memory, matrices before vectors.
#[derive(Debug, Default)]
pub(crate) struct LayoutBuilder {
    groups: Vec<Vec<Part>>,
}

impl LayoutBuilder {
    /// Adds tensors that stand side by side and are read as one: matrices of equal width stacked, or vectors joined.
    pub(crate) fn add(&mut self, parts: impl IntoIterator<Item = Part>) -> Id {
        self.groups.push(parts.into_iter().collect());
        Id(self.groups.len() - 1)
    }

    /// The finished layout.
    pub(crate) fn build(self) -> Layout {
        let mut groups: Vec<Group> = self
            .groups
            .into_iter()
            .map(|parts| {
                let rows = parts.iter().map(|p| p.shape[0]).sum();
                let shape = std::iter::once(rows).chain(parts[0].shape.iter().skip(1).copied()).collect();
                Group { offset: 0, shape, parts }
            })
            .collect();
        let (mut at, mut matrices) = (0, 0);
        for vectors in [false, true] {
            for group in groups.iter_mut().filter(|g| (g.shape.len() == 1) == vectors) {
                group.offset = at;
                at = (at + group.shape.iter().product::<usize>()).next_multiple_of(ALIGN);
            }
            if !vectors {
                matrices = at;
            }
        }
        Layout { groups, matrices, len: at }
    }
}

impl Layout {
    /// Elements of the flat buffer, padding included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the vectors begin.
    pub(crate) fn matrices(&self) -> usize {
        self.matrices
    }

    /// Fills every tensor in each of `flats`, buffers of this layout, with what `source(part)` returns, in the
    /// checkpoint's form.
    ///
    /// # Errors
    /// What `source` answers, or a wrong number of elements.
    pub(crate) fn fill(&self, flats: &[&Tensor], source: &mut dyn FnMut(&Part) -> Result<Vec<f32>>) -> Result<()> {
        for (part, offset) in self.parts() {
            let values = source(part)?;
            if values.len() != part.len() {
                return Err(Error::shape(format!("{} elements for {} {:?}", values.len(), part.name, part.shape)));
            }
            let values = if part.transposed { transpose(&values, part.shape[1], part.shape[0]) } else { values };
            for flat in flats {
                flat.view(offset, &part.shape)?.set(&values)?;
            }
        }
        Ok(())
    }

    /// All checkpoint tensors with their offsets, in memory order of addition.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Part, usize)> {
        self.groups.iter().flat_map(|group| {
            let mut at = group.offset;
            group.parts.iter().map(move |part| {
                let offset = at;
                at += part.len();
                (part, offset)
            })
        })
    }
}

/// The flat buffer of a model's parameters.
#[derive(Debug)]
pub(crate) struct Params {
    /// What the network computes with.
    pub(crate) flat: Tensor,
    /// The same in f32, where `flat` is narrower and the parameters are trained.
    master: Option<Tensor>,
    layout: Arc<Layout>,
}

impl Params {
    /// Zeros, in `dtype`, with f32 masters beside bf16.
    pub(crate) fn zeros(device: &Device, dtype: DType, layout: Arc<Layout>) -> Result<Self> {
        let zeros = |dtype| Tensor::zeros(device, dtype, &[layout.len()]);
        let master = (dtype == DType::BF16).then(|| zeros(DType::F32)).transpose()?;
        Ok(Self { flat: zeros(dtype)?, master, layout })
    }

    /// The parameters as the optimizer moves them and a checkpoint keeps them.
    pub(crate) fn masters(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.flat)
    }

    /// The rounded copy that must follow the masters, if there is one.
    pub(crate) fn rounded(&self) -> Option<&Tensor> {
        self.master.as_ref().map(|_| &self.flat)
    }

    /// Gives up the masters of parameters that are trained no more.
    pub(crate) fn drop_masters(&mut self) {
        self.master = None;
    }

    /// The layout that all flat buffers of this model share.
    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Fills every tensor with what `source(part)` returns, in the checkpoint's form.
    ///
    /// # Errors
    /// What `source` answers, or a wrong number of elements.
    pub(crate) fn fill(&mut self, mut source: impl FnMut(&Part) -> Result<Vec<f32>>) -> Result<()> {
        let flats: Vec<&Tensor> = std::iter::once(&self.flat).chain(&self.master).collect();
        self.layout.fill(&flats, &mut source)
    }

    /// A tensor in the checkpoint's form, from this buffer or from another of the same layout (gradients, moments).
    pub(crate) fn stored(flat: &Tensor, part: &Part, offset: usize) -> Result<Vec<f32>> {
        let values = flat.view(offset, &part.shape)?.to_f32()?;
        Ok(if part.transposed { transpose(&values, part.shape[0], part.shape[1]) } else { values })
    }

    /// Views that receive no gradient.
    pub(crate) fn frozen(&self) -> Result<Weights> {
        let views = self.layout.groups.iter().map(|g| self.flat.view(g.offset, &g.shape));
        Ok(Weights { views: views.collect::<Result<_>>()?, recompute: Recompute::None })
    }

    /// Views whose gradients go into `grads`.
    pub(crate) fn trained(&self, grads: &Grads) -> Result<Weights> {
        let trained = |(view, slot): (&Tensor, &Arc<Grad>)| {
            let mut view = view.clone();
            view.origin = Origin::Parameter(slot.clone());
            view
        };
        let frozen = self.frozen()?;
        Ok(Weights { views: frozen.views.iter().zip(&grads.slots).map(trained).collect(), ..frozen })
    }

    /// Multiplies one group with `factor`.
    pub(crate) fn scale(&self, id: Id, factor: f64) -> Result<()> {
        let Group { offset, shape, .. } = &self.layout.groups[id.0];
        let scaled: Vec<f32> =
            self.masters().view(*offset, shape)?.to_f32()?.into_iter().map(|w| w * factor as f32).collect();
        for flat in std::iter::once(&self.flat).chain(&self.master) {
            flat.view(*offset, shape)?.set(&scaled)?;
        }
        Ok(())
    }

    /// A copy with its own buffers.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let master = self.master.as_ref().map(Tensor::duplicate).transpose()?;
        Ok(Self { flat: self.flat.duplicate()?, master, layout: self.layout.clone() })
    }
}

/// The parameters as an operation sees them, one tensor a group, and what a forward pass over them keeps.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    views: Arc<[Tensor]>,
    pub(super) recompute: Recompute,
}

impl Weights {
    /// The same, of which less is kept. Without gradients nothing is kept in any case.
    pub(crate) fn recomputing(self, recompute: Recompute) -> Self {
        Self { recompute, ..self }
    }

    /// The group's tensor.
    pub(crate) fn get(&self, id: Id) -> &Tensor {
        &self.views[id.0]
    }
}

/// The flat gradient buffer and a slot for every group.
pub(crate) struct Grads {
    pub(crate) flat: Tensor,
    slots: Vec<Arc<Grad>>,
    layout: Arc<Layout>,
}

impl Grads {
    /// Room for the gradients of `params`.
    pub(crate) fn new(params: &Params) -> Result<Self> {
        let (device, layout) = (params.flat.device(), params.layout.clone());
        let flat = Tensor::zeros(device, params.masters().dtype(), &[layout.len()])?;
        let slots = layout.groups.iter().map(|g| Ok(Arc::new(Grad::new(flat.view(g.offset, &g.shape)?))));
        Ok(Self { slots: slots.collect::<Result<_>>()?, flat, layout })
    }

    /// Marks all gradients as written, and fills the named tensor's with `value`.
    #[cfg(test)]
    pub(crate) fn poison(&self, name: &str, value: f32) {
        for slot in &self.slots {
            slot.claim();
        }
        for (part, offset) in self.layout.parts().filter(|(part, _)| part.name == name) {
            self.flat.view(offset, &part.shape).unwrap().set(&vec![value; part.len()]).unwrap();
        }
    }

    /// Forgets all gradients: the next backward pass overwrites.
    pub(crate) fn reset(&self) {
        self.slots.iter().for_each(|slot| slot.reset());
    }

    /// An error naming the parameters that received no gradient since the last reset: a gradient that was cut somewhere
    /// on its way would otherwise train half a model in silence.
    pub(crate) fn check_complete(&self) -> Result<()> {
        let cut = self.layout.groups.iter().zip(&self.slots).filter(|(_, slot)| !slot.is_written());
        let names: Vec<&str> = cut.flat_map(|(group, _)| group.parts.iter().map(|p| p.name.as_str())).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::failure("gradient-missing", "parameters received no gradient").at(names.join(", ")))
    }
}

/// Rows become columns: values of shape [rows, columns] as [columns, rows].
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| values[i * columns + j])).collect()
}
