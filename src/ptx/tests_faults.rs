//! A positive control for every check: kernels with one seeded fault, which must be reported with kernel, line and
//! thread.

use super::{Arg, Error, Kind, Machine, Memory, Module, Options};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// A kernel around a body. `%out` points to 512 written bytes, `%raw` to 512 unwritten ones; `%t` is the thread, `%b`
/// the block.
pub(super) fn text(body: &str) -> String {
    format!(
        ".version 7.1\n.target sm_80\n.address_size 64\n.const .align 4 .b8 table[4] = {{1, 2, 3, 4}};\n\
         .extern .shared .align 16 .b8 dyn[];\n.visible .entry faulty(.param .u64 p0, .param .u64 p1)\n{{\n\
         .reg .pred %p<8>;\n.reg .b16 %h<8>;\n.reg .b32 %r<64>, %t, %b;\n.reg .f32 %f<8>;\n.reg .b64 %rd<16>, %out, %raw;\n\
         .local .align 16 .b8 loc[16];\n.shared .align 16 .b8 sh[528];\n.file 1 \"faulty.cu\"\n.loc 1 42 7\n\
         ld.param.u64 %out, [p0];\nld.param.u64 %raw, [p1];\nmov.u32 %t, %tid.x;\nmov.u32 %b, %ctaid.x;\n\
         mul.wide.u32 %rd1, %t, 4;\nadd.s64 %rd2, %out, %rd1;\nmov.u64 %rd3, sh;\nadd.s64 %rd4, %rd3, %rd1;\n{body}\nret;\n}}\n"
    )
    .replace(".file 1 \"faulty.cu\"\n", "")
        + ".file 1 \"faulty.cu\"\n"
}

struct Fault {
    name: &'static str,
    kind: Kind,
    /// The first thread to blame, and its block.
    thread: u32,
    block: u32,
    threads: u32,
    blocks: u32,
    body: &'static str,
}

const fn fault(name: &'static str, kind: Kind, thread: u32, threads: u32, body: &'static str) -> Fault {
    Fault { name, kind, thread, block: 0, threads, blocks: 1, body }
}

fn launch(body: &str, blocks: u32, threads: u32, options: &Options) -> std::result::Result<(), Error> {
    let module = Module::parse(&text(body))?;
    let mut memory = Memory::new();
    let (out, raw) = (memory.alloc("out", 512)?, memory.alloc("raw", 512)?);
    memory.fill(out, 512, 1)?;
    let dynamic = if body.contains("dyn") { 64 } else { 0 };
    let options = Options { branches_max: 10_000, ..options.clone() };
    let args = [Arg::U64(out), Arg::U64(raw)];
    Machine::new(options).launch(
        module.kernel("faulty")?,
        [blocks, 1, 1],
        [threads, 1, 1],
        dynamic,
        &args,
        &mut memory,
    )?;
    Ok(())
}

/// The line that carries the marker.
pub(super) fn marked(text: &str) -> u32 {
    text.lines().position(|l| l.contains("// HERE")).map_or(0, |i| i as u32 + 1)
}

const MEMORY: &[Fault] = &[
    fault("global, one element too far", Kind::OutOfBounds, 31, 32, "st.global.u32 [%rd2+388], %t; // HERE"),
    fault("global, before the start", Kind::OutOfBounds, 0, 32, "ld.global.u32 %r1, [%rd2+-4]; // HERE"),
    fault("null pointer", Kind::OutOfBounds, 0, 32, "ld.global.u32 %r1, [%rd1]; // HERE"),
    fault(
        "vector across the end",
        Kind::OutOfBounds,
        31,
        32,
        "mul.wide.u32 %rd5, %t, 16;\nadd.s64 %rd5, %out, %rd5;\n\
        ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%rd5+16]; // HERE",
    ),
    fault("shared, past a variable", Kind::OutOfBounds, 5, 32, "st.shared.u32 [%rd4+508], %t; // HERE"),
    fault(
        "shared, past the dynamic part",
        Kind::OutOfBounds,
        16,
        32,
        "mov.u64 %rd5, dyn;\nadd.s64 %rd5, %rd5, %rd1;\n\
        st.shared.u32 [%rd5], %t; // HERE",
    ),
    fault(
        "a generic address given to ld.shared",
        Kind::OutOfBounds,
        0,
        32,
        "st.shared.u32 [%rd4], %t;\ncvta.shared.u64 %rd5, %rd4;\nld.u32 %r1, [%rd5];\nld.shared.u32 %r1, [%rd5]; // HERE",
    ),
    fault(
        "local",
        Kind::OutOfBounds,
        4,
        32,
        "mov.u64 %rd5, loc;\nadd.s64 %rd5, %rd5, %rd1;\nst.local.u32 [%rd5], %t; // HERE",
    ),
    fault(
        "constants",
        Kind::OutOfBounds,
        1,
        32,
        "mov.u64 %rd5, table;\nadd.s64 %rd5, %rd5, %rd1;\n\
        ld.const.u32 %r1, [%rd5]; // HERE",
    ),
    fault("global vector misaligned", Kind::Misaligned, 1, 32, "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%rd2]; // HERE"),
    fault("shared misaligned", Kind::Misaligned, 0, 32, "st.shared.u32 [%rd4+2], %t; // HERE"),
    fault(
        "global never written",
        Kind::UninitialisedMemory,
        0,
        32,
        "add.s64 %rd5, %raw, %rd1;\nld.global.u32 %r1, [%rd5]; // HERE",
    ),
    fault(
        "shared never written",
        Kind::UninitialisedMemory,
        8,
        32,
        "setp.lt.u32 %p1, %t, 8;\n@%p1 st.shared.u32 [%rd4], %t;\n\
        ld.shared.u32 %r1, [%rd4]; // HERE",
    ),
    fault(
        "half a word written",
        Kind::UninitialisedMemory,
        0,
        32,
        "cvt.u16.u32 %h1, %t;\nst.shared.u16 [%rd4], %h1;\n\
        ld.shared.u32 %r1, [%rd4]; // HERE",
    ),
    fault("local never written", Kind::UninitialisedMemory, 0, 32, "ld.local.u32 %r1, [loc+8]; // HERE"),
    fault(
        "register written on one path",
        Kind::UninitialisedRegister,
        3,
        32,
        "setp.lt.u32 %p1, %t, 3;\n\
        @%p1 mov.u32 %r1, 7;\nadd.s32 %r2, %r1, 1; // HERE",
    ),
    fault("guard never written", Kind::UninitialisedRegister, 0, 32, "@%p3 mov.u32 %r1, 7; // HERE"),
    fault("atomic on unwritten memory", Kind::UninitialisedMemory, 0, 32, "red.global.add.u32 [%raw], 1; // HERE"),
];

const RACES: &[Fault] = &[
    fault(
        "missing barrier after a write",
        Kind::Race,
        32,
        64,
        "st.shared.u32 [%rd4], %t;\nxor.b32 %r1, %t, 32;\n\
        mul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd5, %rd3, %rd5;\nsetp.gt.u32 %p1, %t, 31;\n@%p1 ld.shared.u32 %r2, [%rd5]; // HERE",
    ),
    fault(
        "missing barrier before a rewrite",
        Kind::Race,
        32,
        64,
        "st.shared.u32 [%rd4], %t;\nbar.sync 0;\nxor.b32 %r1, %t, 32;\n\
        mul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd5, %rd3, %rd5;\nld.shared.u32 %r2, [%rd5]; // HERE\nst.shared.u32 [%rd4], %r2;",
    ),
    fault(
        "two warps write one word",
        Kind::Race,
        32,
        64,
        "setp.eq.u32 %p1, %t, 0;\nsetp.eq.or.u32 %p1, %t, 32, %p1;\n\
        @%p1 st.shared.u32 [sh], %t; // HERE",
    ),
    fault(
        "lanes of a warp without bar.warp",
        Kind::Race,
        0,
        32,
        "st.shared.u32 [%rd4], %t;\nxor.b32 %r1, %t, 1;\n\
        mul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd5, %rd3, %rd5;\nld.shared.u32 %r2, [%rd5]; // HERE",
    ),
    fault("lanes of one store", Kind::Race, 1, 32, "st.shared.u32 [sh], %t; // HERE"),
    fault("lanes of one global store", Kind::Race, 1, 32, "st.global.u32 [%out], %t; // HERE"),
    fault(
        "warps in global memory",
        Kind::Race,
        32,
        64,
        "st.global.u32 [%rd2], %t;\nsetp.gt.u32 %p1, %t, 31;\n\
        @%p1 ld.global.u32 %r1, [%rd2+-128]; // HERE",
    ),
    fault(
        "barrier of half a block",
        Kind::Race,
        64,
        96,
        "setp.gt.u32 %p1, %t, 31;\nst.shared.u32 [%rd4], %t;\n\
        setp.gt.u32 %p2, %t, 63;\n@%p2 bra R;\nbar.sync 1, 64;\nbra E;\nR:\nld.shared.u32 %r1, [%rd4+-128]; // HERE\nE:",
    ),
    Fault {
        name: "blocks write one word",
        kind: Kind::Race,
        thread: 0,
        block: 1,
        threads: 32,
        blocks: 2,
        body: "st.global.u32 [%rd2], %b; // HERE",
    },
    Fault {
        name: "a block reads what another wrote",
        kind: Kind::Race,
        thread: 0,
        block: 1,
        threads: 32,
        blocks: 2,
        body: "setp.eq.u32 %p1, %b, 0;\n@%p1 st.global.u32 [%rd2], %b;\n@!%p1 ld.global.u32 %r1, [%rd2]; // HERE",
    },
    Fault {
        name: "a block writes what another read",
        kind: Kind::Race,
        thread: 0,
        block: 1,
        threads: 32,
        blocks: 2,
        body: "setp.eq.u32 %p1, %b, 0;\n@%p1 ld.global.u32 %r1, [%rd2];\n@!%p1 st.global.u32 [%rd2], %b; // HERE",
    },
    Fault {
        name: "atomic against plain write",
        kind: Kind::Race,
        thread: 0,
        block: 1,
        threads: 1,
        blocks: 2,
        body: "red.global.add.u32 [%out], 1;\nsetp.eq.u32 %p1, %b, 1;\n@%p1 st.global.u32 [%out], %b; // HERE",
    },
];

const WARPS: &[Fault] = &[
    fault(
        "shuffle in a divergent branch",
        Kind::Divergence,
        0,
        32,
        "setp.gt.u32 %p1, %t, 15;\n@%p1 bra E;\n\
        shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; // HERE\nE:",
    ),
    fault(
        "shuffle with lanes that exited",
        Kind::Divergence,
        0,
        32,
        "setp.gt.u32 %p1, %t, 15;\n@%p1 ret;\n\
        shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; // HERE",
    ),
    fault(
        "shuffle from a lane outside",
        Kind::Divergence,
        0,
        32,
        "setp.gt.u32 %p1, %t, 15;\n@%p1 bra E;\n\
        shfl.sync.bfly.b32 %r1, %t, 16, 31, 65535; // HERE\nE:",
    ),
    fault(
        "vote without oneself",
        Kind::Divergence,
        0,
        32,
        "setp.gt.u32 %p1, %t, 15;\nvote.sync.ballot.b32 %r1, %p1, -2; // HERE",
    ),
    fault(
        "bar.warp in a branch",
        Kind::Divergence,
        16,
        32,
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra E;\nbar.warp.sync -1; // HERE\nE:",
    ),
    fault(
        "redux in a branch",
        Kind::Divergence,
        16,
        32,
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra E;\n\
        redux.sync.add.u32 %r1, %t, -1; // HERE\nE:",
    ),
    fault(
        "ldmatrix in part of a warp",
        Kind::Divergence,
        0,
        16,
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rd3]; // HERE",
    ),
    fault(
        "mma under a guard",
        Kind::Divergence,
        0,
        32,
        "mov.f32 %f1, 0f00000000;\nsetp.lt.u32 %p1, %t, 31;\n@%p1 mma.sync.aligned\
        .m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%t,%t,%t,%t}, {%t,%t}, {%f1,%f1,%f1,%f1}; // HERE",
    ),
    fault(
        "bra.uni that parts",
        Kind::Divergence,
        0,
        32,
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra.uni E; // HERE\nadd.s32 %r1, %t, 1;\nE:",
    ),
    fault(
        "barrier in a divergent branch",
        Kind::Divergence,
        0,
        64,
        "setp.gt.u32 %p1, %t, 15;\n@%p1 bra E;\nbar.sync 0; // HERE\nE:",
    ),
    fault(
        "barrier after lanes exited",
        Kind::Deadlock,
        0,
        32,
        "setp.gt.u32 %p1, %t, 15;\n@%p1 ret;\nbar.sync 0; // HERE",
    ),
    fault(
        "a warp exits while others wait",
        Kind::Deadlock,
        0,
        64,
        "setp.gt.u32 %p1, %t, 31;\n@%p1 ret;\nbar.sync 0; // HERE",
    ),
    fault(
        "warps wait at two barriers",
        Kind::Deadlock,
        0,
        64,
        "setp.gt.u32 %p1, %t, 31;\n@%p1 bra B;\nbar.sync 1; // HERE\nbra E;\n\
        B:\nbar.sync 2;\nE:",
    ),
    fault("trap", Kind::Trap, 7, 32, "setp.eq.u32 %p1, %t, 7;\n@%p1 bra T;\nbra E;\nT:\ntrap; // HERE\nE:"),
    fault("a loop without end", Kind::Trap, 0, 32, "L:\nadd.s32 %r1, %t, 1;\nbra L; // HERE"),
];

const COPIES: &[Fault] = &[
    fault(
        "read before wait",
        Kind::AsyncCopy,
        0,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\ncp.async.commit_group;\n\
        ld.shared.u32 %r1, [%rd4]; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "write before wait",
        Kind::AsyncCopy,
        0,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\nst.shared.u32 [%rd4], %t; // HERE\n\
        cp.async.wait_all;",
    ),
    fault(
        "wait one group too weak",
        Kind::AsyncCopy,
        0,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\ncp.async.commit_group;\n\
        cp.async.ca.shared.global [%rd4+128], [%rd2], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\n\
        ld.shared.u32 %r1, [%rd4];\nld.shared.u32 %r1, [%rd4+128]; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "no commit before the wait",
        Kind::AsyncCopy,
        0,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\n\
        cp.async.wait_group 0;\nld.shared.u32 %r1, [%rd4]; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "end with copies in flight",
        Kind::AsyncCopy,
        0,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\n\
        cp.async.commit_group;\nret; // HERE",
    ),
    fault(
        "copy from unwritten memory",
        Kind::UninitialisedMemory,
        0,
        32,
        "add.s64 %rd5, %raw, %rd1;\n\
        cp.async.ca.shared.global [%rd4], [%rd5], 4; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "copy to where others read",
        Kind::Race,
        32,
        64,
        "st.shared.u32 [%rd4], %t;\nbar.sync 0;\nld.shared.u32 %r1, [%rd4];\n\
        xor.b32 %r2, %t, 32;\nmul.wide.u32 %rd5, %r2, 4;\nadd.s64 %rd5, %rd3, %rd5;\nsetp.gt.u32 %p1, %t, 31;\n\
        @%p1 cp.async.ca.shared.global [%rd5], [%rd2], 4; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "waited for, but no barrier",
        Kind::Race,
        32,
        64,
        "cp.async.ca.shared.global [%rd4], [%rd2], 4;\ncp.async.wait_all;\n\
        xor.b32 %r2, %t, 32;\nmul.wide.u32 %rd5, %r2, 4;\nadd.s64 %rd5, %rd3, %rd5;\nsetp.gt.u32 %p1, %t, 31;\n\
        @%p1 ld.shared.u32 %r1, [%rd5]; // HERE",
    ),
    fault(
        "copy misaligned",
        Kind::Misaligned,
        1,
        32,
        "cp.async.cg.shared.global [%rd4], [%rd2], 16; // HERE\ncp.async.wait_all;",
    ),
];

const OPERANDS: &[Fault] = &[
    fault("barrier number differs", Kind::Divergence, 0, 32, "and.b32 %r1, %t, 1;\nbar.sync %r1; // HERE"),
    fault("barrier number too large", Kind::Divergence, 0, 32, "mov.u32 %r1, 16;\nbar.sync %r1; // HERE"),
    fault("barrier of a part of a warp", Kind::Divergence, 0, 64, "mov.u32 %r1, 48;\nbar.sync 1, %r1; // HERE"),
    fault("barrier of more warps than there are", Kind::Deadlock, 0, 64, "bar.sync 1, 96; // HERE"),
    fault(
        "warps disagree on a barrier's threads",
        Kind::Deadlock,
        32,
        96,
        "setp.gt.u32 %p1, %t, 31;\n@%p1 bra B;\nbar.sync 1, 64;\nbra E;\nB:\nbar.sync 1, 96; // HERE\nE:",
    ),
    fault(
        "a warp arrives twice",
        Kind::Deadlock,
        0,
        96,
        "setp.gt.u32 %p1, %t, 31;\n@%p1 bra E;\nbar.arrive 1, 96;\nbar.arrive 1, 96; // HERE\nE:",
    ),
    fault(
        "vote by less than its mask",
        Kind::Divergence,
        16,
        32,
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra E;\nvote.sync.any.pred %p2, %p1, -1; // HERE\nE:",
    ),
    fault(
        "match by less than its mask",
        Kind::Divergence,
        16,
        32,
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra E;\nmatch.any.sync.b32 %r1, %t, -1; // HERE\nE:",
    ),
    fault(
        "mma on unwritten registers",
        Kind::UninitialisedRegister,
        0,
        32,
        "mov.f32 %f1, 0f00000000;\nmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, \
        {%t,%t,%t,%r9}, {%t,%t}, {%f1,%f1,%f1,%f1}; // HERE",
    ),
    fault(
        "shuffle of an unwritten register",
        Kind::UninitialisedRegister,
        0,
        32,
        "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1; // HERE",
    ),
    fault(
        "ldmatrix from unwritten memory",
        Kind::UninitialisedMemory,
        0,
        32,
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rd3]; // HERE",
    ),
    fault(
        "ldmatrix misaligned",
        Kind::Misaligned,
        0,
        32,
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rd3+4]; // HERE",
    ),
    fault(
        "ldmatrix past a variable",
        Kind::OutOfBounds,
        7,
        32,
        "st.shared.u32 [%rd4], %t;\nst.shared.u32 [%rd4+128], %t;\nst.shared.u32 [%rd4+256], %t;\n\
        st.shared.u32 [%rd4+384], %t;\nsetp.lt.u32 %p1, %t, 4;\n@%p1 st.shared.u32 [%rd4+512], %t;\nbar.warp.sync -1;\n\
        mul.wide.u32 %rd5, %t, 16;\nadd.s64 %rd5, %rd3, %rd5;\n\
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rd5+416]; // HERE",
    ),
    fault(
        "copy of more bytes than it has",
        Kind::OutOfBounds,
        0,
        32,
        "mov.u32 %r1, 8;\ncp.async.ca.shared.global [%rd4], [%rd2], 4, %r1; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "copy from beyond the end",
        Kind::OutOfBounds,
        31,
        32,
        "cp.async.ca.shared.global [%rd4], [%rd2+388], 4; // HERE\ncp.async.wait_all;",
    ),
    fault(
        "copy to beyond the end",
        Kind::OutOfBounds,
        31,
        32,
        "cp.async.ca.shared.global [%rd4+404], [%rd2], 4; // HERE\ncp.async.wait_all;",
    ),
    fault("write to a constant", Kind::OutOfBounds, 0, 32, "mov.u64 %rd5, table;\nst.u32 [%rd5], %t; // HERE"),
    fault(
        "atomic against plain read in shared memory",
        Kind::Race,
        32,
        64,
        "setp.gt.u32 %p1, %t, 31;\nsetp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [sh], 0;\nbar.sync 0;\n\
        @!%p1 red.shared.add.u32 [sh], 1;\n@%p1 ld.shared.u32 %r1, [sh]; // HERE",
    ),
];

/// What a launch can be stopped for while it runs.
const WHILE_RUNNING: [Kind; 9] = [
    Kind::OutOfBounds,
    Kind::Misaligned,
    Kind::UninitialisedMemory,
    Kind::UninitialisedRegister,
    Kind::Race,
    Kind::Divergence,
    Kind::Deadlock,
    Kind::AsyncCopy,
    Kind::Trap,
];

#[test]
fn every_seeded_fault_is_reported_with_its_place() {
    let mut wrong = Vec::new();
    let all: Vec<&Fault> = [MEMORY, RACES, WARPS, COPIES, OPERANDS].into_iter().flatten().collect();
    for f in &all {
        let line = marked(&text(f.body));
        let error = match launch(f.body, f.blocks, f.threads, &Options::default()) {
            Err(error) => error,
            Ok(()) => {
                wrong.push(format!("{}: not reported", f.name));
                continue;
            }
        };
        let got = error.fault();
        let exact = got.kind == f.kind
            && got.kernel == "faulty"
            && got.line == line
            && got.source == Some(("faulty.cu".to_owned(), 42))
            && got.block == Some([f.block, 0, 0])
            && got.thread == Some([f.thread, 0, 0]);
        if !exact {
            wrong.push(format!("{}: wanted {:?} line {line} thread {}, got {error}", f.name, f.kind, f.thread));
        }
    }
    let seeded = |kind: &Kind| all.iter().any(|f| f.kind == *kind);
    assert!(WHILE_RUNNING.iter().all(seeded), "a kind of fault has no seed");
    assert!(all.len() >= 70 && wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

/// What must not be reported: the same kernels, mended.
#[test]
fn sound_kernels_pass() -> Outcome {
    let bodies = [
        (
            "a barrier orders",
            "st.shared.u32 [%rd4], %t;\nbar.sync 0;\nxor.b32 %r1, %t, 32;\nmul.wide.u32 %rd5, %r1, 4;\n\
            add.s64 %rd5, %rd3, %rd5;\nld.shared.u32 %r2, [%rd5];\nbar.sync 0;\nst.shared.u32 [%rd4], %r2;",
        ),
        (
            "bar.warp orders lanes",
            "st.shared.u32 [%rd4], %t;\nbar.warp.sync -1;\nxor.b32 %r1, %t, 1;\nmul.wide.u32 %rd5, %r1, 4;\n\
            add.s64 %rd5, %rd3, %rd5;\nld.shared.u32 %r2, [%rd5];\nbar.warp.sync -1;\nst.shared.u32 [%rd4], %r2;",
        ),
        (
            "neighbouring halves",
            "mul.wide.u32 %rd5, %t, 2;\nadd.s64 %rd6, %rd3, %rd5;\nadd.s64 %rd7, %out, %rd5;\n\
            cvt.u16.u32 %h1, %t;\nst.shared.u16 [%rd6], %h1;\nst.global.u16 [%rd7], %h1;",
        ),
        (
            "everybody reads one word",
            "ld.global.u32 %r1, [%out];\nsetp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [sh], %t;\nbar.sync 0;\n\
            ld.shared.u32 %r1, [sh];",
        ),
        (
            "atomics among themselves",
            "red.global.add.u32 [%out], 1;\nsetp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [sh], 0;\nbar.sync 0;\n\
            red.shared.add.u32 [sh], 1;\nbar.sync 0;\nld.shared.u32 %r1, [sh];",
        ),
        (
            "half a warp votes",
            "setp.gt.u32 %p1, %t, 15;\n@%p1 bra E;\nshfl.sync.bfly.b32 %r1, %t, 1, 31, 65535;\n\
            bar.warp.sync 65535;\nE:",
        ),
        (
            "producer arrives, consumer waits",
            "setp.gt.u32 %p1, %t, 31;\n@%p1 bra C;\nst.shared.u32 [%rd4], %t;\nbar.arrive 1, 64;\nbra E;\n\
            C:\nbar.sync 1, 64;\nld.shared.u32 %r1, [%rd4+-128];\nE:",
        ),
        (
            "copies in two stages",
            "cp.async.ca.shared.global [%rd4], [%rd2], 4;\ncp.async.commit_group;\n\
            cp.async.ca.shared.global [%rd4+256], [%rd2], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\n\
            ld.shared.u32 %r1, [%rd4];\ncp.async.wait_group 0;\nld.shared.u32 %r1, [%rd4+256];",
        ),
        ("an early exit before no barrier", "setp.gt.u32 %p1, %t, 40;\n@%p1 ret;\nadd.s32 %r1, %t, 1;"),
    ];
    for (name, body) in bodies {
        for options in [Options::default(), Options { shuffle: Some(3), ..Options::default() }] {
            launch(body, 1, 64, &options).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    Ok(())
}

/// Races between blocks are found whichever thread of the host runs them, and in any order.
#[test]
fn threads_and_orders_hide_no_race() {
    for round in 0..20 {
        for f in RACES.iter().filter(|f| f.blocks > 1) {
            let options = Options { threads: 2, shuffle: Some(round), ..Options::default() };
            let kind = launch(f.body, f.blocks, f.threads, &options).err().map(|e| e.kind());
            assert_eq!(kind, Some(Kind::Race), "{}, round {round}", f.name);
        }
    }
}

#[test]
fn unwritten_outputs_are_reported() -> Outcome {
    let module = Module::parse(&text("setp.lt.u32 %p1, %t, 31;\n@%p1 st.global.u32 [%rd2], %t;"))?;
    let mut memory = Memory::new();
    let (out, raw) = (memory.alloc("out", 512)?, memory.alloc("raw", 512)?);
    memory.expect_written(out, 128)?;
    let args = [Arg::U64(out), Arg::U64(raw)];
    let error = Machine::default().launch(module.kernel("faulty")?, [1, 1, 1], [32, 1, 1], 0, &args, &mut memory);
    let error = error.err().ok_or("not reported")?;
    assert_eq!(error.kind(), Kind::Unwritten);
    assert!(error.to_string().contains("byte 124 of `out`") && error.fault().kernel == "faulty", "{error}");
    // Freed memory is no memory.
    memory.free(out)?;
    let error = Machine::default().launch(module.kernel("faulty")?, [1, 1, 1], [32, 1, 1], 0, &args, &mut memory);
    assert!(error.is_err_and(|e| e.kind() == Kind::OutOfBounds && e.to_string().contains("freed")));
    Ok(())
}

#[test]
fn launches_are_checked() -> Outcome {
    let module = Module::parse(&text("add.s32 %r1, %t, 1;"))?;
    let kernel = module.kernel("faulty")?;
    let mut memory = Memory::new();
    let mut fails = |grid, block, bytes, args: &[Arg<'_>]| {
        Machine::default()
            .launch(kernel, grid, block, bytes, args, &mut memory)
            .is_err_and(|e| e.kind() == Kind::Launch)
    };
    let args = [Arg::U64(0), Arg::U64(0)];
    assert!(fails([1, 1, 1], [1025, 1, 1], 0, &args) && fails([0, 1, 1], [32, 1, 1], 0, &args));
    assert!(fails([1, 1, 1], [32, 1, 1], 64, &args) && fails([1, 1, 1], [32, 1, 1], 0, &args[..1]));
    assert!(fails([1, 1, 1], [32, 1, 1], 0, &[Arg::U32(0), Arg::U64(0)]));
    assert!(fails([1, 1, 1], [32, 1, 1], 0, &[Arg::F64(0.0), Arg::U64(0)]));
    assert!(module.kernel("other").is_err());
    Ok(())
}
