//! The rows, one file a group of operations. A row's sizes stand in its name; what is not said is normal numbers.

mod advance;
mod append;
mod attention;
mod head;
mod linear;
mod losses;
mod optimizer;
mod rows;

use super::Case;
use crate::dtype::DType;

/// Both float types of a device.
const DTYPES: [DType; 2] = [DType::BF16, DType::F32];

/// All rows, by kernel.
pub(super) fn all() -> Vec<Case> {
    let groups = [
        advance::cases(),
        append::cases(),
        attention::cases(),
        head::cases(),
        linear::cases(),
        losses::cases(),
        optimizer::cases(),
        rows::cases(),
    ];
    let mut cases: Vec<Case> = groups.into_iter().flatten().collect();
    cases.sort_by_key(|case| case.kernel);
    cases
}
