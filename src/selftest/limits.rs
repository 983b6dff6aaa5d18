//! What no form of a kernel can do without: the bytes that must cross the memory bus, or the FLOPs of its formula. N
//! rows (tokens), C width, F width of the MLP, V vocabulary, R rows of logits, b bytes an element, NH and NKV heads, HD
//! head size, T length of a sequence.

/// One row for each file of `kernels/`.
const LIMITS: &[(&str, &str)] = &[
    ("adamw", "30 bytes a parameter: gradient 4, master and both moments read and written 24, bf16 copy 2"),
    ("advance", "56 bytes a row"),
    ("append", "2 NH HD + 4 NKV HD elements a token, and HD angles of 4 bytes"),
    (
        "attention",
        "4 NH HD sum(T^2) / 2 FLOP forward, 2.5 times that backward; decode reads 2 NKV HD T elements a sequence",
    ),
    ("column_sum", "N C b bytes, and 8 N / chunk C for the partial sums"),
    ("elementwise", "each element read and written once"),
    ("embedding", "2 N C b bytes forward; gradient N C b + 8 U C for U different indices (activations N C b + U C b)"),
    ("gae", "24 bytes a token; 16 where the rewards are given, 12 for the rewards alone"),
    ("gelu", "2 elements read and written an element forward, 3 backward"),
    ("gemm", "2 M N K FLOP at the rate of mma.sync (bf16) or of FMA (f32)"),
    ("global_norm", "4 bytes an element"),
    ("layer_norm", "2 N C b bytes forward (with the residual sum 4 N C b), 3 N C b backward (4 N C b)"),
    ("pairwise_loss", "20 bytes a pair"),
    ("ppo_loss", "32 bytes a token; one multiprocessor does it all"),
    ("rms_norm", "2 N C b bytes forward (with the residual sum 4 N C b), 3 N C b backward (4 N C b)"),
    ("rope", "2 N heads HD elements, and the rows of the table that are used"),
    ("sample", "one pass, R V b bytes; later passes find the row in cache"),
    ("scalar_head", "N C b bytes forward, 2 N C b backward"),
    ("swiglu", "3 N F elements forward, 5 N F backward"),
    ("token_logprobs", "R V b bytes, with the gradient in place 3 R V b; with the head's products 6 N C V FLOP"),
    ("whiten", "8 bytes an element with statistics; without, each block reads all elements twice, from L2"),
];

/// The limit of the kernels in the file of this name; empty for a name that is none.
pub(crate) fn limit(kernel: &str) -> &'static str {
    LIMITS.iter().find(|(name, _)| *name == kernel).map_or("", |(_, limit)| limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::kernel::SOURCES;

    #[test]
    fn every_text_has_its_limit() {
        let names: Vec<&str> = SOURCES.iter().map(|source| source.name).collect();
        assert_eq!(LIMITS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    }
}
