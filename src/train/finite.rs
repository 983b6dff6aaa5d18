//! Who is named where a number is not finite. All that a step depends on is checked before it changes anything: the
//! numbers of a rollout as they come to the host, losses, statistics and norms together at a step's end. What is seen
//! is a symptom in some rows; where a parameter itself is not finite it is the cause, and no row is to blame.

use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::params::{Layout, Params};
use crate::tensor::Tensor;

/// The first tensor of a flat buffer that has an element which is not finite. Reads all of it: for errors alone.
pub(super) fn first_broken<'a>(flat: &Tensor, layout: &'a Layout) -> Option<&'a str> {
    let broken = |values: Vec<f32>| values.iter().any(|x| !x.is_finite());
    let mut parts = layout.parts();
    parts.find(|(part, at)| Params::stored(flat, part, *at).is_ok_and(broken)).map(|(part, _)| &*part.name)
}

/// The error of a number that came from `model`, with the parameter that caused it where there is one; `role` is a
/// prefix such as `policy: `.
pub(crate) fn blame(error: Error, role: &str, model: &Model) -> Error {
    match first_broken(&model.params.flat, model.params.layout()) {
        Some(name) if error.code() == Code::NonFinite => error
            .before(format!("{role}{name}"))
            .because("this parameter itself is not finite")
            .fix("check the model that the run began with, or go on from an earlier checkpoint"),
        _ => error,
    }
}

/// Rows, by the places of the first and the last.
pub(super) fn among<'a>(mut places: impl DoubleEndedIterator<Item = &'a str>) -> String {
    let first = places.next().unwrap_or_default();
    format!("among {first} ... {}", places.next_back().unwrap_or(first))
}

/// An error unless a rollout's numbers [N] are finite; episode b's stand at offsets[b]..offsets[b + 1].
pub(super) fn check_column(name: &str, column: &[f32], offsets: &[i32]) -> Result<()> {
    let Some(at) = column.iter().position(|x| !x.is_finite()) else { return Ok(()) };
    let episode = offsets.partition_point(|start| *start as usize <= at).saturating_sub(1);
    let token = at - offsets.get(episode).map_or(0, |start| *start as usize);
    Err(Error::new(Code::NonFinite, "rollout-not-finite", "a number of the rollout is not finite")
        .at(format!("{name} of episode {episode} of the batch, response token {token}"))
        .because(format!("it is {}", column[at]))
        .fix("check the models, lower the learning rate, or raise --kl-coef"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_number_of_a_column_is_named() {
        let offsets = [0, 2, 2, 5];
        let place = |column: &[f32]| {
            let error = check_column("values", column, &offsets).unwrap_err();
            assert_eq!((error.code(), error.id()), (Code::NonFinite, "rollout-not-finite"));
            error.place().unwrap_or_default().to_owned()
        };
        assert_eq!(place(&[1.0, f32::NAN, 1.0, f32::NAN, 1.0]), "values of episode 0 of the batch, response token 1");
        assert_eq!(place(&[1.0, 1.0, f32::INFINITY, 1.0, 1.0]), "values of episode 2 of the batch, response token 0");
        assert_eq!(place(&[1.0, 1.0, 1.0, 1.0, -f32::INFINITY]), "values of episode 2 of the batch, response token 2");
        assert!(check_column("values", &[f32::MAX; 5], &offsets).is_ok());
    }
}
