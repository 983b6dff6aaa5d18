//! What is not PTX, or not PTX that the emulator executes, is an error with its line when the text loads.

use super::tests_faults::{marked, text};
use super::{Kind, Module};

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    let bodies = [
        ("frobnicate.b32 %r1, %r2;", Kind::Unsupported),
        ("add.s32.fast %r1, %t, %t;", Kind::Unsupported),
        ("add.q32 %r1, %t, %t;", Kind::Unsupported),
        ("add.bf16 %h1, %h2, %h3;", Kind::Unsupported),
        ("ld.global.v3.u32 %r1, [%rd2];", Kind::Unsupported),
        ("ld.global.L3::64B.u32 %r1, [%rd2];", Kind::Unsupported),
        (
            "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%t,%t,%t,%t}, {%t,%t}, {%f1,%f1,%f1,%f1};",
            Kind::Unsupported,
        ),
        ("mbarrier.init.shared.b64 [%rd3], 1;", Kind::Unsupported),
        ("shfl.bfly.b32 %r1, %t, 1, 31;", Kind::Unsupported),
        ("call foo, (%r1);", Kind::Syntax),
        ("add.s32 %r1, %t;", Kind::Unsupported),
        ("add.s32 %rd1, %t, %t;", Kind::Unsupported),
        ("add.rn.f32 %f1, %f1, 1;", Kind::Unsupported),
        ("add.s32 %q1, %t, %t;", Kind::Unsupported),
        ("@%r1 add.s32 %r1, %t, %t;", Kind::Syntax),
        ("bra NOWHERE;", Kind::Unsupported),
        ("cvt.f32.s32 %f1, %t;", Kind::Unsupported),
        ("cvt.rn.s32.f32 %r1, %f1;", Kind::Unsupported),
        (".branchtargets A, B;", Kind::Unsupported),
        ("mov.u32 %r1, %clock;", Kind::Unsupported),
        ("ld.param.u32 %r1, [p0+6];", Kind::Unsupported),
        ("add.s32 %r1, %t, 0x;", Kind::Syntax),
        ("st.global.u32 [%rd2], \"x\";", Kind::Syntax),
        ("setp.ltu.s32 %p1, %t, %t;", Kind::Unsupported),
        ("bar.sync 0, 1, 2;", Kind::Unsupported),
    ];
    for (body, kind) in bodies {
        let text = text(&format!("{body} // HERE"));
        match Module::parse(&text) {
            Err(error) => {
                assert_eq!((error.kind(), error.fault().line), (kind, marked(&text)), "{body}: {error}");
                // A fault of the alphabet is found before kernels are known.
                let early = body.contains("0x;") && error.fault().kernel.is_empty();
                assert!(error.fault().kernel == "faulty" || early, "{body}: {error}");
            }
            Ok(_) => assert!(body.is_empty(), "{body}: accepted"),
        }
    }
}

/// Whatever the text, an answer and no panic: every prefix of a kernel, and every kernel with a word dropped.
#[test]
fn damaged_text_gives_errors() {
    let text = include_str!("../../tests/ptx/block_sum.ptx");
    for cut in (0..text.len()).step_by(7).filter(|&c| text.is_char_boundary(c)) {
        let _ = Module::parse(&text[..cut]);
    }
    let words: Vec<&str> = text.split_inclusive([' ', '\n', '\t', ',']).collect();
    for skip in 0..words.len() {
        let damaged: String = words.iter().enumerate().filter(|(i, _)| *i != skip).map(|(_, w)| *w).collect();
        let _ = Module::parse(&damaged);
    }
}
