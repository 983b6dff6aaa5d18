//! Operations on rows: norms, activations, rotary positions, sums, embeddings, the scalar head, bias gradients.

use super::{Cost, Place, Recorded, Size, Workload};
use crate::error::Result;
use crate::ops::column_sum::bias_backward;
use crate::ops::{elementwise, embedding, gelu, layer_norm, rms_norm, rope, scalar_head, swiglu};
use crate::tensor::Tensor;

const EPS: f64 = 1e-5;

pub(super) fn workloads(size: Size) -> Vec<Workload> {
    let [n, c] = if size == Size::Large { [16384, 4096] } else { [256, 512] };
    let mut all = norms(n, c);
    all.extend(activations(n, c));
    all.extend(tables(size, n, c));
    all
}

fn norms(n: usize, c: usize) -> Vec<Workload> {
    let shape = format!("N {n} C {c}");
    type Inputs = (Tensor, Tensor, Tensor, Tensor);
    let plain = move |p: &Place| Ok((p.tensor(&[n, c])?, p.tensor(&[n, c])?, p.tensor(&[c])?, p.tensor(&[c])?));
    let rms = |(x, _, w, _): &Inputs| rms_norm::rms_norm(x, w, EPS).map(|_| ());
    let layer = |(x, _, w, b): &Inputs| layer_norm::layer_norm(x, [w, b], EPS).map(|_| ());
    let add_rms = |(x, d, w, _): &Inputs| rms_norm::add_rms_norm(x, d, w, EPS).map(|_| ());
    let add_layer = |(x, d, w, b): &Inputs| layer_norm::add_layer_norm(x, d, [w, b], EPS).map(|_| ());
    let rms_back = move |p: &Place| {
        let (x, w) = (p.activation(&[n, c])?, p.parameter(&[c])?);
        Recorded::new(p, rms_norm::rms_norm(&x, &w, EPS)?, &[&w])
    };
    let layer_back = move |p: &Place| {
        let (x, w, b) = (p.activation(&[n, c])?, p.parameter(&[c])?, p.parameter(&[c])?);
        Recorded::new(p, layer_norm::layer_norm(&x, [&w, &b], EPS)?, &[&w, &b])
    };
    let [two, three, four] = [2, 3, 4].map(|k| Cost::floats(k * n * c));
    vec![
        Workload::new("rms_norm forward", &shape, two, plain, rms),
        Workload::new("rms_norm forward with residual", &shape, four, plain, add_rms),
        Workload::new("rms_norm backward", &shape, three, rms_back, Recorded::backward),
        Workload::new("layer_norm forward", &shape, two, plain, layer),
        Workload::new("layer_norm forward with residual", &shape, four, plain, add_layer),
        Workload::new("layer_norm backward", &shape, three, layer_back, Recorded::backward),
    ]
}

type Activation = fn(&Tensor) -> Result<Tensor>;

fn activations(n: usize, c: usize) -> Vec<Workload> {
    let both = |names: [&'static str; 2], operation: Activation, width: usize, elements: [usize; 2]| {
        let shape = format!("N {n} F {c}");
        let plain = move |p: &Place| p.tensor(&[n, width]);
        let back = move |p: &Place| Recorded::new(p, operation(&p.activation(&[n, width])?)?, &[]);
        let [forward, backward] = elements.map(|k| Cost::floats(k * n * c));
        [
            Workload::new(names[0], &shape, forward, plain, move |x| operation(x).map(|_| ())),
            Workload::new(names[1], &shape, backward, back, Recorded::backward),
        ]
    };
    let pair = move |p: &Place| Ok((p.tensor(&[n, c])?, p.tensor(&[n, c])?));
    let add = |(a, b): &(Tensor, Tensor)| elementwise::add(a, b).map(|_| ());
    let mut all = vec![Workload::new("elementwise add", format!("n {}", n * c), Cost::floats(3 * n * c), pair, add)];
    all.extend(both(["swiglu forward", "swiglu backward"], swiglu::swiglu, 2 * c, [3, 5]));
    all.extend(both(["gelu forward", "gelu backward"], gelu::gelu, c, [2, 3]));
    all
}

fn tables(size: Size, n: usize, c: usize) -> Vec<Workload> {
    let head = 128.min(c);
    let turned = move |p: &Place| {
        let positions = p.ints((0..n).map(|i| (i % 2048) as i32).collect())?;
        Ok((p.tensor(&[n, c / head, head])?, p.wide(&[2048, head])?, positions))
    };
    let turn = move |(x, table, at): &(Tensor, Tensor, Tensor)| rope::rope(x, table, at, c / head).map(|_| ());
    let vocabulary = if size == Size::Large { 32768 } else { 1000 };
    let ids = move || (0..n).map(|i| (i * 7919 % vocabulary) as i32).collect::<Vec<_>>();
    let looked_up = move |p: &Place| Ok((p.tensor(&[vocabulary, c])?, p.ints(ids())?));
    let scattered = move |p: &Place| {
        let table = p.parameter(&[vocabulary, c])?;
        // The gradient is added to what is there: a table's first gradient also clears the rows that nobody named.
        let recorded = Recorded::new(p, embedding::embedding(&table, &p.ints(ids())?)?, &[])?;
        recorded.backward()?;
        Ok(recorded)
    };
    let look_up = |(table, ids): &(Tensor, Tensor)| embedding::embedding(table, ids).map(|_| ());
    let scored = move |p: &Place| Ok((p.tensor(&[n, c])?, p.tensor(&[1, c])?));
    let score_back = move |p: &Place| {
        let (x, w) = (p.activation(&[n, c])?, p.parameter(&[1, c])?);
        Recorded::new(p, scalar_head::scalar_head(&x, &w)?, &[&w])
    };
    let score = |(x, w): &(Tensor, Tensor)| scalar_head::scalar_head(x, w).map(|_| ());
    let biased = move |p: &Place| Ok((p.parameter(&[c])?, p.tensor(&[n, c])?));
    let sum = |(bias, dout): &(Tensor, Tensor)| match bias.slot()? {
        Some(slot) => {
            slot.reset();
            bias_backward(&slot, dout)
        }
        None => Ok(()),
    };
    let (shape, rows) = (format!("N {n} C {c}"), format!("V {vocabulary} C {c} N {n}"));
    let angles = 4 * n.min(2048) * head;
    vec![
        Workload::new(
            "rope forward",
            format!("N {n} heads {} HD {head}", c / head),
            Cost::floats(2 * n * c).and_bytes(angles),
            turned,
            turn,
        ),
        Workload::new("embedding forward", &rows, Cost::floats(2 * n * c), looked_up, look_up),
        Workload::new(
            "embedding backward",
            &rows,
            Cost::floats(n * c).and_bytes(8 * n.min(vocabulary) * c),
            scattered,
            Recorded::backward,
        ),
        Workload::new("scalar_head forward", &shape, Cost::floats(n * c), scored, score),
        Workload::new("scalar_head backward", &shape, Cost::floats(2 * n * c), score_back, Recorded::backward),
        Workload::new("column_sum of a bias", &shape, Cost::floats(n * c), biased, sum),
    ]
}
