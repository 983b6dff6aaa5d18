//! A row per instruction form: operands, result. Expectations are computed by hand or by a formula in integers or f64
//! that shares nothing with the executor. Inputs arrive in every kind of register: `%r1..4` words, `%f1..4` the same
//! bits as floats, `%h1..4` their low halves, `%rd1..4` longs, `%fd1..4` doubles; the result is number 0 of a kind.

use super::{Arg, Machine, Memory, Module};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Where a row leaves its result.
#[derive(Clone, Copy)]
enum To {
    R,
    F,
    H,
    L,
    D,
    P,
}
use To::{D, F, H, L, P, R};

struct Row(&'static str, To, [u64; 4], u64);

fn run(code: &str, to: To, inputs: [u64; 4]) -> super::Result<u64> {
    let result = match to {
        R => "cvt.u64.u32 %rd9, %r0;",
        F => "mov.b32 %r9, %f0;\ncvt.u64.u32 %rd9, %r9;",
        H => "cvt.u64.u16 %rd9, %h0;",
        L => "mov.b64 %rd9, %rd0;",
        D => "mov.b64 %rd9, %fd0;",
        P => "selp.u64 %rd9, 1, 0, %p0;",
    };
    let load: String = (1..5)
        .map(|i| {
            format!(
                "ld.param.u64 %rd{i}, [p{i}];\ncvt.u32.u64 %r{i}, %rd{i};\nmov.b32 %f{i}, %r{i};\nmov.b64 %fd{i}, %rd{i};\n\
                 cvt.u16.u64 %h{i}, %rd{i};\nsetp.ne.u64 %p{i}, %rd{i}, 0;\n"
            )
        })
        .collect();
    let text = format!(
        ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry row(.param .u64 p0, .param .u64 p1, .param .u64 p2, \
         .param .u64 p3, .param .u64 p4)\n{{\n.reg .pred %p<10>;\n.reg .b16 %h<10>;\n.reg .b32 %r<20>;\n.reg .f32 %f<10>;\n\
         .reg .b64 %rd<20>;\n.reg .f64 %fd<10>;\n.shared .align 16 .b8 sh[256];\n.local .align 16 .b8 lo[64];\n{load}\
         ld.param.u64 %rd10, [p0];\n{code}\n{result}\nmov.u32 %r10, %tid.x;\nsetp.eq.u32 %p9, %r10, 0;\n\
         @%p9 st.global.u64 [%rd10], %rd9;\nret;\n}}\n"
    );
    let module = Module::parse(&text)?;
    let mut memory = Memory::new();
    let out = memory.alloc("out", 64)?;
    memory.fill(out, 64, 0)?;
    memory.expect_written(out, 8)?;
    let args = [out, inputs[0], inputs[1], inputs[2], inputs[3]].map(Arg::U64);
    Machine::default().launch(module.kernel("row")?, [1, 1, 1], [1, 1, 1], 0, &args, &mut memory)?;
    let mut bytes = [0; 8];
    memory.download(out, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for Row(code, to, inputs, want) in rows {
        match run(code, *to, *inputs) {
            Ok(got) if got == *want => {}
            Ok(got) => wrong.push(format!("{code} {inputs:x?}: {got:#x}, not {want:#x}")),
            Err(error) => wrong.push(format!("{code}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

const fn f(x: f32) -> u64 {
    x.to_bits() as u64
}

const fn d(x: f64) -> u64 {
    x.to_bits()
}

/// A word from a negative number.
const fn n(x: i32) -> u64 {
    x as u32 as u64
}

const fn l(x: i64) -> u64 {
    x as u64
}

const NAN: u64 = 0x7fff_ffff;
const INF: f32 = f32::INFINITY;

#[test]
fn integers_of_32_bits() {
    check(&[
        Row("add.s32 %r0, %r1, %r2;", R, [n(-1), 3, 0, 0], 2),
        Row("add.u32 %r0, %r1, -5;", R, [3, 0, 0, 0], n(-2)),
        Row("add.sat.s32 %r0, %r1, %r2;", R, [n(i32::MAX), 3, 0, 0], n(i32::MAX)),
        Row("sub.s32 %r0, %r1, %r2;", R, [2, 5, 0, 0], n(-3)),
        Row("sub.sat.s32 %r0, %r1, %r2;", R, [n(i32::MIN), 3, 0, 0], n(i32::MIN)),
        Row("mul.lo.s32 %r0, %r1, %r2;", R, [n(-7), 6, 0, 0], n(-42)),
        Row("mul.lo.u32 %r0, %r1, %r2;", R, [0x1_0001, 0x1_0001, 0, 0], 0x2_0001),
        Row("mul.hi.u32 %r0, %r1, %r2;", R, [0xffff_ffff, 0xffff_ffff, 0, 0], 0xffff_fffe),
        Row("mul.hi.s32 %r0, %r1, %r2;", R, [n(-1), 5, 0, 0], n(-1)),
        Row("mul.wide.s32 %rd0, %r1, %r2;", L, [n(-3), 5, 0, 0], l(-15)),
        Row("mul.wide.u32 %rd0, %r1, %r2;", L, [0xffff_ffff, 2, 0, 0], 0x1_ffff_fffe),
        Row("mul.wide.u16 %r0, %h1, %h2;", R, [0xffff, 0xffff, 0, 0], 0xfffe_0001),
        Row("mul.wide.s16 %r0, %h1, %h2;", R, [0xffff, 7, 0, 0], n(-7)),
        Row("mad.lo.s32 %r0, %r1, %r2, %r3;", R, [n(-2), 3, 10, 0], 4),
        Row("mad.hi.u32 %r0, %r1, %r2, %r3;", R, [0x8000_0000, 4, 10, 0], 12),
        Row("mad.hi.s32 %r0, %r1, %r2, %r3;", R, [n(-1), 4, 10, 0], 9),
        Row("mad.wide.s32 %rd0, %r1, %r2, %rd3;", L, [n(-2), 3, 10, 0], 4),
        Row("mad.wide.u32 %rd0, %r1, %r2, %rd3;", L, [0xffff_ffff, 1, 1, 0], 0x1_0000_0000),
        Row("div.u32 %r0, %r1, %r2;", R, [100, 7, 0, 0], 14),
        Row("div.s32 %r0, %r1, %r2;", R, [n(-100), 7, 0, 0], n(-14)),
        Row("rem.u32 %r0, %r1, %r2;", R, [100, 7, 0, 0], 2),
        Row("rem.s32 %r0, %r1, %r2;", R, [n(-100), 7, 0, 0], n(-2)),
        Row("min.s32 %r0, %r1, %r2;", R, [n(-1), 1, 0, 0], n(-1)),
        Row("min.u32 %r0, %r1, %r2;", R, [n(-1), 1, 0, 0], 1),
        Row("max.s32 %r0, %r1, %r2;", R, [n(-1), 1, 0, 0], 1),
        Row("max.u32 %r0, %r1, %r2;", R, [n(-1), 1, 0, 0], n(-1)),
        Row("abs.s32 %r0, %r1;", R, [n(-9), 0, 0, 0], 9),
        Row("neg.s32 %r0, %r1;", R, [9, 0, 0, 0], n(-9)),
        Row("sad.u32 %r0, %r1, %r2, %r3;", R, [3, 10, 5, 0], 12),
        Row("sad.s32 %r0, %r1, %r2, %r3;", R, [n(-3), 10, 5, 0], 18),
    ]);
}

#[test]
fn bits_of_32_and_64() {
    check(&[
        Row("and.b32 %r0, %r1, %r2;", R, [0xf0f0, 0xff00, 0, 0], 0xf000),
        Row("or.b32 %r0, %r1, %r2;", R, [0xf0f0, 0xff00, 0, 0], 0xfff0),
        Row("xor.b32 %r0, %r1, %r2;", R, [0xf0f0, 0xff00, 0, 0], 0x0ff0),
        Row("not.b32 %r0, %r1;", R, [0xf0f0, 0, 0, 0], 0xffff_0f0f),
        Row("cnot.b32 %r0, %r1;", R, [0, 0, 0, 0], 1),
        Row("shl.b32 %r0, %r1, %r2;", R, [3, 4, 0, 0], 48),
        Row("shl.b32 %r0, %r1, %r2;", R, [3, 32, 0, 0], 0),
        Row("shr.u32 %r0, %r1, %r2;", R, [0x8000_0000, 31, 0, 0], 1),
        Row("shr.u32 %r0, %r1, %r2;", R, [0x8000_0000, 40, 0, 0], 0),
        Row("shr.s32 %r0, %r1, %r2;", R, [n(-16), 2, 0, 0], n(-4)),
        Row("shr.s32 %r0, %r1, %r2;", R, [n(-16), 77, 0, 0], n(-1)),
        Row("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", R, [0x8000_0001, 2, 33, 0], 5),
        Row("shf.l.clamp.b32 %r0, %r1, %r2, %r3;", R, [0x8000_0001, 2, 33, 0], 0x8000_0001),
        Row("shf.r.wrap.b32 %r0, %r1, %r2, %r3;", R, [2, 1, 1, 0], 0x8000_0001),
        Row("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", R, [2, 7, 40, 0], 7),
        Row("bfe.u32 %r0, %r1, 4, 8;", R, [0xabcd_1234, 0, 0, 0], 0x23),
        Row("bfe.s32 %r0, %r1, 4, 8;", R, [0x0000_0f80, 0, 0, 0], n(-8)),
        Row("bfe.s32 %r0, %r1, 28, 8;", R, [0x8000_0000, 0, 0, 0], n(-8)),
        Row("bfe.u32 %r0, %r1, %r2, %r3;", R, [0xffff_ffff, 40, 4, 0], 0),
        Row("bfi.b32 %r0, %r1, %r2, 8, 4;", R, [0xf5, 0xffff_ffff, 0, 0], 0xffff_f5ff),
        Row("bfi.b32 %r0, %r1, %r2, 32, 4;", R, [0xf5, 0x1234, 0, 0], 0x1234),
        Row("bfi.b64 %rd0, %rd1, %rd2, 60, 8;", L, [0x75, 0, 0, 0], 0x5000_0000_0000_0000),
        Row("bfe.u64 %rd0, %rd1, 32, 16;", L, [0x1234_5678_9abc_def0, 0, 0, 0], 0x5678),
        Row("brev.b32 %r0, %r1;", R, [0x0000_0005, 0, 0, 0], 0xa000_0000),
        Row("brev.b64 %rd0, %rd1;", L, [1, 0, 0, 0], 1 << 63),
        Row("clz.b32 %r0, %r1;", R, [0x0001_0000, 0, 0, 0], 15),
        Row("clz.b32 %r0, %r1;", R, [0, 0, 0, 0], 32),
        Row("clz.b64 %r0, %rd1;", R, [1, 0, 0, 0], 63),
        Row("popc.b32 %r0, %r1;", R, [0xf0f1, 0, 0, 0], 9),
        Row("popc.b64 %r0, %rd1;", R, [0xf000_0000_0000_0001, 0, 0, 0], 5),
        Row("bfind.u32 %r0, %r1;", R, [0x0001_0000, 0, 0, 0], 16),
        Row("bfind.s32 %r0, %r1;", R, [n(-3), 0, 0, 0], 1),
        Row("bfind.shiftamt.u32 %r0, %r1;", R, [0x0001_0000, 0, 0, 0], 15),
        Row("bfind.u32 %r0, %r1;", R, [0, 0, 0, 0], 0xffff_ffff),
        Row("lop3.b32 %r0, %r1, %r2, %r3, 0xe2;", R, [0b1010, 0b1100, 0b1111_0000, 0], {
            // (a & c) | (b & !c) with a = 0xf0, b = 0xcc, c = 0xaa: table 0xe4 selects by c; 0xe2 by b.
            ((0b1010u64 & 0b1100) | (0b1111_0000 & !0b1100u64)) & 0xffff_ffff
        }),
        Row("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", R, [0b1010, 0b1100, 0b0110, 0], 0b1010 ^ 0b1100 ^ 0b0110),
        Row("prmt.b32 %r0, %r1, %r2, 0x5140;", R, [0x0302_0100, 0x0706_0504, 0, 0], 0x0501_0400),
        Row("prmt.b32 %r0, %r1, %r2, 0x3b80;", R, [0x8302_0100, 0, 0, 0], 0x83ff_0000),
        Row("and.b64 %rd0, %rd1, %rd2;", L, [0xf0f0 << 32, 0xff00 << 32, 0, 0], 0xf000 << 32),
        Row("or.b64 %rd0, %rd1, %rd2;", L, [1 << 40, 1, 0, 0], 1 << 40 | 1),
        Row("xor.b64 %rd0, %rd1, -1;", L, [0, 0, 0, 0], u64::MAX),
        Row("not.b64 %rd0, %rd1;", L, [5, 0, 0, 0], !5),
        Row("shl.b64 %rd0, %rd1, %r2;", L, [3, 40, 0, 0], 3 << 40),
        Row("shl.b64 %rd0, %rd1, %r2;", L, [3, 64, 0, 0], 0),
        Row("shr.u64 %rd0, %rd1, 63;", L, [1 << 63, 0, 0, 0], 1),
        Row("shr.s64 %rd0, %rd1, 70;", L, [1 << 63, 0, 0, 0], u64::MAX),
    ]);
}

#[test]
fn integers_of_16_and_64_bits() {
    check(&[
        Row("add.s16 %h0, %h1, %h2;", H, [0xffff, 2, 0, 0], 1),
        Row("sub.u16 %h0, %h1, %h2;", H, [1, 2, 0, 0], 0xffff),
        Row("mul.lo.s16 %h0, %h1, %h2;", H, [0x0101, 0x0101, 0, 0], 0x0201),
        Row("mad.lo.s16 %h0, %h1, %h2, %h3;", H, [3, 4, 0xfffe, 0], 10),
        Row("div.s16 %h0, %h1, %h2;", H, [0xfff6, 3, 0, 0], 0xfffd),
        Row("min.s16 %h0, %h1, %h2;", H, [0x8000, 3, 0, 0], 0x8000),
        Row("max.u16 %h0, %h1, %h2;", H, [0x8000, 3, 0, 0], 0x8000),
        Row("shl.b16 %h0, %h1, 4;", H, [0xf00f, 0, 0, 0], 0x00f0),
        Row("shr.u16 %h0, %h1, 4;", H, [0xf00f, 0, 0, 0], 0x0f00),
        Row("shr.s16 %h0, %h1, 4;", H, [0xf00f, 0, 0, 0], 0xff00),
        Row("and.b16 %h0, %h1, %h2;", H, [0xf00f, 0x0fff, 0, 0], 0x000f),
        Row("not.b16 %h0, %h1;", H, [0xf00f, 0, 0, 0], 0x0ff0),
        Row("neg.s16 %h0, %h1;", H, [1, 0, 0, 0], 0xffff),
        Row("add.s64 %rd0, %rd1, %rd2;", L, [u64::MAX, 3, 0, 0], 2),
        Row("sub.s64 %rd0, %rd1, %rd2;", L, [1, 3, 0, 0], l(-2)),
        Row("mul.lo.s64 %rd0, %rd1, %rd2;", L, [1 << 33, 3, 0, 0], 3 << 33),
        Row("mul.hi.u64 %rd0, %rd1, %rd2;", L, [1 << 63, 4, 0, 0], 2),
        Row("mul.hi.s64 %rd0, %rd1, %rd2;", L, [l(-1), 4, 0, 0], l(-1)),
        Row("mad.lo.s64 %rd0, %rd1, %rd2, %rd3;", L, [5, l(-6), 1, 0], l(-29)),
        Row("div.s64 %rd0, %rd1, %rd2;", L, [l(-100), 7, 0, 0], l(-14)),
        Row("div.u64 %rd0, %rd1, %rd2;", L, [u64::MAX, 2, 0, 0], u64::MAX / 2),
        Row("rem.s64 %rd0, %rd1, %rd2;", L, [l(-100), 7, 0, 0], l(-2)),
        Row("rem.u64 %rd0, %rd1, %rd2;", L, [100, 7, 0, 0], 2),
        Row("min.s64 %rd0, %rd1, %rd2;", L, [l(-1), 1, 0, 0], l(-1)),
        Row("min.u64 %rd0, %rd1, %rd2;", L, [l(-1), 1, 0, 0], 1),
        Row("max.s64 %rd0, %rd1, %rd2;", L, [l(-1), 1, 0, 0], 1),
        Row("max.u64 %rd0, %rd1, %rd2;", L, [l(-1), 1, 0, 0], l(-1)),
        Row("neg.s64 %rd0, %rd1;", L, [5, 0, 0, 0], l(-5)),
        Row("abs.s64 %rd0, %rd1;", L, [l(-5), 0, 0, 0], 5),
    ]);
}

#[test]
fn floats() {
    const TINY: f32 = 1e-40;
    const EPS: f32 = f32::EPSILON;
    check(&[
        Row("add.rn.f32 %f0, %f1, %f2;", F, [f(1.5), f(2.25), 0, 0], f(3.75)),
        Row("add.f32 %f0, %f1, 0f3F800000;", F, [f(1.5), 0, 0, 0], f(2.5)),
        Row("add.rn.f32 %f0, %f1, %f2;", F, [f(INF), f(-INF), 0, 0], NAN),
        Row("add.ftz.f32 %f0, %f1, %f2;", F, [f(TINY), f(TINY), 0, 0], 0),
        Row("add.sat.f32 %f0, %f1, %f2;", F, [f(0.75), f(2.25), 0, 0], f(1.0)),
        // 1 + 2^-25: up goes to the next float, the others stay; 1 - 2^-26: zero and down go below.
        Row("add.rp.f32 %f0, %f1, %f2;", F, [f(1.0), f(EPS / 4.0), 0, 0], f(1.0 + EPS)),
        Row("add.rn.f32 %f0, %f1, %f2;", F, [f(1.0), f(EPS / 4.0), 0, 0], f(1.0)),
        Row("add.rz.f32 %f0, %f1, %f2;", F, [f(1.0), f(-EPS / 8.0), 0, 0], f(1.0 - EPS / 2.0)),
        Row("add.rm.f32 %f0, %f1, %f2;", F, [f(-1.0), f(-EPS / 8.0), 0, 0], f(-1.0 - EPS)),
        Row("add.rm.f32 %f0, %f1, %f2;", F, [f(1.0), f(-1.0), 0, 0], f(-0.0)),
        // The second operand is far below the first: the f64 sum alone would not see it.
        Row("add.rp.f32 %f0, %f1, %f2;", F, [f(1.0), f(1e-38), 0, 0], f(1.0 + EPS)),
        Row("sub.rn.f32 %f0, %f1, %f2;", F, [f(1.5), f(2.25), 0, 0], f(-0.75)),
        Row("mul.rn.f32 %f0, %f1, %f2;", F, [f(1.5), f(-2.0), 0, 0], f(-3.0)),
        Row("mul.rz.f32 %f0, %f1, %f2;", F, [f(1.0 + EPS), f(1.0 + EPS), 0, 0], f(1.0 + 2.0 * EPS)),
        Row("mul.rp.f32 %f0, %f1, %f2;", F, [f(1.0 + EPS), f(1.0 + EPS), 0, 0], f(1.0 + 3.0 * EPS)),
        Row("mul.ftz.f32 %f0, %f1, %f2;", F, [f(1e-30), f(1e-10), 0, 0], 0),
        Row("mul.f32 %f0, %f1, %f2;", F, [f(0.0), f(INF), 0, 0], NAN),
        // (1 + e)(1 - e) - 1 = -e^2: only a fused sum keeps it.
        Row("fma.rn.f32 %f0, %f1, %f2, %f3;", F, [f(1.0 + EPS), f(1.0 - EPS), f(-1.0), 0], f(-EPS * EPS)),
        // 2^24 + 1 lies on the middle; the sticky 2^-60 of the product must break the tie upward.
        Row("fma.rn.f32 %f0, %f1, %f2, %f3;", F, [f(8.673_617_4e-19), f(1.0), f(16_777_216.0), 0], f(16_777_216.0)),
        Row("fma.rn.f32 %f0, %f1, %f2, %f3;", F, [0x3f80_0001, 0x3300_0000, f(1.0), 0], f(1.0)),
        Row("fma.rn.f32 %f0, %f1, %f2, %f3;", F, [0x3f80_0001, 0x3380_0000, f(1.0), 0], f(1.0 + EPS)),
        Row("fma.rz.f32 %f0, %f1, %f2, %f3;", F, [0x3f80_0001, 0x3380_0000, f(1.0), 0], f(1.0)),
        Row("fma.rm.f32 %f0, %f1, %f2, %f3;", F, [f(1.0), f(1.0), f(-1e-20), 0], f(1.0 - EPS / 2.0)),
        Row("fma.rn.sat.f32 %f0, %f1, %f2, %f3;", F, [f(3.0), f(3.0), f(-20.0), 0], 0),
        Row("div.rn.f32 %f0, %f1, %f2;", F, [f(1.0), f(3.0), 0, 0], 0x3eaa_aaab),
        Row("div.rz.f32 %f0, %f1, %f2;", F, [f(1.0), f(3.0), 0, 0], 0x3eaa_aaaa),
        Row("div.full.f32 %f0, %f1, %f2;", F, [f(1.0), f(4.0), 0, 0], f(0.25)),
        Row("div.approx.ftz.f32 %f0, %f1, %f2;", F, [f(1.0), f(4.0), 0, 0], f(0.25)),
        Row("rcp.rn.f32 %f0, %f1;", F, [f(3.0), 0, 0, 0], 0x3eaa_aaab),
        Row("rcp.rp.f32 %f0, %f1;", F, [f(5.0), 0, 0, 0], 0x3e4c_cccd),
    ]);
}

#[test]
fn floats_special_extreme_and_double() {
    const TINY: f32 = 1e-40;
    check(&[
        Row("rcp.approx.ftz.f32 %f0, %f1;", F, [f(-0.0), 0, 0, 0], f(-INF)),
        Row("sqrt.rn.f32 %f0, %f1;", F, [f(2.0), 0, 0, 0], 0x3fb5_04f3),
        Row("sqrt.rp.f32 %f0, %f1;", F, [f(2.0), 0, 0, 0], 0x3fb5_04f4),
        Row("sqrt.approx.f32 %f0, %f1;", F, [f(-1.0), 0, 0, 0], NAN),
        Row("rsqrt.approx.f32 %f0, %f1;", F, [f(16.0), 0, 0, 0], f(0.25)),
        Row("rsqrt.approx.ftz.f32 %f0, %f1;", F, [0, 0, 0, 0], f(INF)),
        Row("ex2.approx.f32 %f0, %f1;", F, [f(-3.0), 0, 0, 0], f(0.125)),
        Row("ex2.approx.f32 %f0, %f1;", F, [f(-140.0), 0, 0, 0], 1 << 9),
        Row("ex2.approx.ftz.f32 %f0, %f1;", F, [f(-140.0), 0, 0, 0], 0),
        Row("ex2.approx.ftz.f32 %f0, %f1;", F, [f(-INF), 0, 0, 0], 0),
        Row("ex2.approx.f32 %f0, %f1;", F, [f(128.0), 0, 0, 0], f(INF)),
        Row("ex2.approx.f32 %f0, %f1;", F, [NAN, 0, 0, 0], NAN),
        Row("lg2.approx.f32 %f0, %f1;", F, [f(0.125), 0, 0, 0], f(-3.0)),
        Row("lg2.approx.f32 %f0, %f1;", F, [0, 0, 0, 0], f(-INF)),
        Row("sin.approx.f32 %f0, %f1;", F, [0, 0, 0, 0], 0),
        Row("cos.approx.f32 %f0, %f1;", F, [0, 0, 0, 0], f(1.0)),
        Row("tanh.approx.f32 %f0, %f1;", F, [f(100.0), 0, 0, 0], f(1.0)),
        Row("min.f32 %f0, %f1, %f2;", F, [f(-0.0), f(0.0), 0, 0], f(-0.0)),
        Row("max.f32 %f0, %f1, %f2;", F, [f(-0.0), f(0.0), 0, 0], 0),
        Row("max.f32 %f0, %f1, %f2;", F, [NAN, f(-2.0), 0, 0], f(-2.0)),
        Row("min.f32 %f0, %f1, %f2;", F, [NAN, 0xffff_ffff, 0, 0], NAN),
        Row("max.NaN.f32 %f0, %f1, %f2;", F, [NAN, f(-2.0), 0, 0], NAN),
        Row("min.NaN.f32 %f0, %f1, %f2;", F, [f(3.0), f(-2.0), 0, 0], f(-2.0)),
        Row("min.ftz.f32 %f0, %f1, %f2;", F, [f(TINY), f(2.0), 0, 0], 0),
        Row("neg.f32 %f0, %f1;", F, [f(2.0), 0, 0, 0], f(-2.0)),
        Row("neg.ftz.f32 %f0, %f1;", F, [f(TINY), 0, 0, 0], f(-0.0)),
        Row("abs.f32 %f0, %f1;", F, [f(-2.0), 0, 0, 0], f(2.0)),
        Row("copysign.f32 %f0, %f1, %f2;", F, [f(-2.0), f(3.0), 0, 0], f(-3.0)),
        Row("add.rn.f64 %fd0, %fd1, %fd2;", D, [d(1.5), d(2.25), 0, 0], d(3.75)),
        Row("sub.f64 %fd0, %fd1, %fd2;", D, [d(1.5), d(2.25), 0, 0], d(-0.75)),
        Row("mul.rn.f64 %fd0, %fd1, 0d4000000000000000;", D, [d(1.5), 0, 0, 0], d(3.0)),
        Row("fma.rn.f64 %fd0, %fd1, %fd2, %fd3;", D, [d(1.5), d(2.0), d(0.25), 0], d(3.25)),
        Row("div.rn.f64 %fd0, %fd1, %fd2;", D, [d(1.0), d(3.0), 0, 0], d(1.0 / 3.0)),
        Row("rcp.rn.f64 %fd0, %fd1;", D, [d(4.0), 0, 0, 0], d(0.25)),
        Row("sqrt.rn.f64 %fd0, %fd1;", D, [d(9.0), 0, 0, 0], d(3.0)),
        Row("min.f64 %fd0, %fd1, %fd2;", D, [d(f64::NAN), d(3.0), 0, 0], d(3.0)),
        Row("max.f64 %fd0, %fd1, %fd2;", D, [d(-1.0), d(3.0), 0, 0], d(3.0)),
        Row("neg.f64 %fd0, %fd1;", D, [d(-1.0), 0, 0, 0], d(1.0)),
        Row("abs.f64 %fd0, %fd1;", D, [d(-1.0), 0, 0, 0], d(1.0)),
    ]);
}

#[test]
fn comparisons_and_selection() {
    check(&[
        Row("setp.eq.s32 %p0, %r1, %r2;", P, [5, 5, 0, 0], 1),
        Row("setp.ne.u32 %p0, %r1, %r2;", P, [5, 5, 0, 0], 0),
        Row("setp.lt.s32 %p0, %r1, %r2;", P, [n(-1), 1, 0, 0], 1),
        Row("setp.lt.u32 %p0, %r1, %r2;", P, [n(-1), 1, 0, 0], 0),
        Row("setp.lo.u32 %p0, %r1, %r2;", P, [0, 1, 0, 0], 1),
        Row("setp.hs.u32 %p0, %r1, %r2;", P, [n(-1), 1, 0, 0], 1),
        Row("setp.le.s32 %p0, %r1, %r2;", P, [1, 1, 0, 0], 1),
        Row("setp.gt.s64 %p0, %rd1, %rd2;", P, [l(-1), 1, 0, 0], 0),
        Row("setp.gt.u64 %p0, %rd1, %rd2;", P, [l(-1), 1, 0, 0], 1),
        Row("setp.eq.b64 %p0, %rd1, %rd2;", P, [1 << 40, 1 << 40, 0, 0], 1),
        Row("setp.ge.s16 %p0, %h1, %h2;", P, [0xffff, 1, 0, 0], 0),
        Row("setp.ge.u16 %p0, %h1, %h2;", P, [0xffff, 1, 0, 0], 1),
        Row("setp.eq.b16 %p0, %h1, %h2;", P, [0x1_0001, 1, 0, 0], 1),
        Row("setp.lt.f32 %p0, %f1, %f2;", P, [f(-1.0), f(1.0), 0, 0], 1),
        Row("setp.lt.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 0),
        Row("setp.ltu.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 1),
        Row("setp.ne.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 0),
        Row("setp.neu.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 1),
        Row("setp.equ.f32 %p0, %f1, %f2;", P, [f(2.0), f(1.0), 0, 0], 0),
        Row("setp.leu.f32 %p0, %f1, %f2;", P, [f(2.0), f(1.0), 0, 0], 0),
        Row("setp.gtu.f32 %p0, %f1, %f2;", P, [f(2.0), f(1.0), 0, 0], 1),
        Row("setp.geu.f32 %p0, %f1, %f2;", P, [f(1.0), f(2.0), 0, 0], 0),
        Row("setp.num.f32 %p0, %f1, %f2;", P, [f(1.0), NAN, 0, 0], 0),
        Row("setp.nan.f32 %p0, %f1, %f2;", P, [f(1.0), NAN, 0, 0], 1),
        Row("setp.eq.ftz.f32 %p0, %f1, %f2;", P, [f(1e-40), 0, 0, 0], 1),
        Row("setp.gt.f64 %p0, %fd1, %fd2;", P, [d(2.0), d(1.0), 0, 0], 1),
        Row("setp.lt.and.s32 %p0, %r1, %r2, %p3;", P, [1, 2, 0, 0], 0),
        Row("setp.lt.and.s32 %p0, %r1, %r2, !%p3;", P, [1, 2, 0, 0], 1),
        Row("setp.gt.or.s32 %p0, %r1, %r2, %p3;", P, [1, 2, 1, 0], 1),
        Row("setp.lt.xor.s32 %p0, %r1, %r2, %p3;", P, [1, 2, 1, 0], 0),
        Row("setp.lt.s32 %p5|%p0, %r1, %r2;", P, [1, 2, 0, 0], 0),
        Row("testp.infinite.f32 %p0, %f1;", P, [f(-INF), 0, 0, 0], 1),
        Row("testp.notanumber.f32 %p0, %f1;", P, [f(-INF), 0, 0, 0], 0),
        Row("testp.finite.f32 %p0, %f1;", P, [f(1.0), 0, 0, 0], 1),
        Row("and.pred %p0, %p1, %p2;", P, [1, 0, 0, 0], 0),
        Row("or.pred %p0, %p1, %p2;", P, [1, 0, 0, 0], 1),
        Row("xor.pred %p0, %p1, %p2;", P, [1, 1, 0, 0], 0),
        Row("not.pred %p0, %p1;", P, [1, 0, 0, 0], 0),
        Row("mov.pred %p0, %p1;", P, [1, 0, 0, 0], 1),
        Row("mov.pred %p0, -1;", P, [0; 4], 1),
        Row("mov.pred %p0, 1;", P, [0; 4], 1),
        Row("mov.pred %p0, 0;", P, [0; 4], 0),
        Row("mov.pred %p0, -1;\n@%p1 mov.pred %p0, 0;", P, [1, 0, 0, 0], 0),
        Row("selp.b32 %r0, %r1, %r2, %p3;", R, [7, 8, 0, 0], 8),
        Row("selp.f32 %f0, %f1, 0f00000000, %p3;", F, [f(2.0), 0, 1, 0], f(2.0)),
        Row("selp.b64 %rd0, %rd1, %rd2, %p3;", L, [7 << 40, 8, 1, 0], 7 << 40),
        Row("selp.b16 %h0, %h1, %h2, %p3;", H, [7, 8, 1, 0], 7),
        Row("slct.b32.s32 %r0, %r1, %r2, %r3;", R, [7, 8, n(-1), 0], 8),
        Row("slct.f32.f32 %f0, %f1, %f2, %f3;", F, [f(7.0), f(8.0), f(-0.0), 0], f(7.0)),
        Row("@%p1 mov.u32 %r0, 3;\n@!%p1 mov.u32 %r0, 4;", R, [0, 0, 0, 0], 4),
    ]);
}

/// What stands on either side of a border: equal, below, above; signs; NaN.
#[test]
fn comparisons_at_borders() {
    const M: u64 = n(-1);
    const ML: u64 = l(-1);
    const BIG: u64 = 1 << 40;
    check(&[
        Row("setp.eq.b32 %p0, %r1, %r2;", P, [M, M, 0, 0], 1),
        Row("setp.eq.b32 %p0, %r1, 1;", P, [0x101, 0, 0, 0], 0),
        Row("setp.eq.f32 %p0, %f1, 0f00000000;", P, [f(-0.0), 0, 0, 0], 1),
        Row("setp.eq.f32 %p0, %f1, %f2;", P, [NAN, NAN, 0, 0], 0),
        Row("setp.eq.s64 %p0, %rd1, %rd2;", P, [BIG, BIG, 0, 0], 1),
        Row("setp.eq.s64 %p0, %rd1, 0;", P, [BIG, 0, 0, 0], 0),
        Row("setp.ne.s32 %p0, %r1, %r2;", P, [5, 6, 0, 0], 1),
        Row("setp.ne.s32 %p0, %r1, 5;", P, [5, 0, 0, 0], 0),
        Row("setp.ne.s64 %p0, %rd1, 0;", P, [BIG, 0, 0, 0], 1),
        Row("setp.ne.s64 %p0, %rd1, -1;", P, [ML, 0, 0, 0], 0),
        Row("setp.ge.s32 %p0, %r1, %r2;", P, [M, 1, 0, 0], 0),
        Row("setp.ge.s32 %p0, %r1, %r2;", P, [M, M, 0, 0], 1),
        Row("setp.ge.s64 %p0, %rd1, %rd2;", P, [ML, 1, 0, 0], 0),
        Row("setp.ge.s64 %p0, %rd1, %rd2;", P, [BIG, BIG, 0, 0], 1),
        Row("setp.ge.u64 %p0, %rd1, %rd2;", P, [ML, 1, 0, 0], 1),
        Row("setp.ge.u64 %p0, %rd1, %rd2;", P, [1, ML, 0, 0], 0),
        Row("setp.ge.u32 %p0, %r1, %r2;", P, [M, 1, 0, 0], 1),
        Row("setp.ge.u32 %p0, %r1, %r2;", P, [1, M, 0, 0], 0),
        Row("setp.gt.s32 %p0, %r1, %r2;", P, [M, 1, 0, 0], 0),
        Row("setp.gt.s32 %p0, %r1, %r2;", P, [1, M, 0, 0], 1),
        Row("setp.gt.s32 %p0, %r1, %r2;", P, [1, 1, 0, 0], 0),
        Row("setp.gt.u32 %p0, %r1, 15;", P, [15, 0, 0, 0], 0),
        Row("setp.gt.u32 %p0, %r1, 15;", P, [M, 0, 0, 0], 1),
        Row("setp.le.u64 %p0, %rd1, %rd2;", P, [ML, 1, 0, 0], 0),
        Row("setp.le.u64 %p0, %rd1, %rd2;", P, [BIG, BIG, 0, 0], 1),
        Row("setp.lt.s64 %p0, %rd1, %rd2;", P, [ML, 1, 0, 0], 1),
        Row("setp.lt.s64 %p0, %rd1, %rd2;", P, [BIG, BIG, 0, 0], 0),
        Row("setp.lt.u64 %p0, %rd1, %rd2;", P, [ML, 1, 0, 0], 0),
        Row("setp.lt.u64 %p0, %rd1, 3;", P, [2, 0, 0, 0], 1),
        Row("setp.ge.f32 %p0, %f1, %f2;", P, [f(2.0), f(2.0), 0, 0], 1),
        Row("setp.ge.f32 %p0, %f1, %f2;", P, [NAN, f(2.0), 0, 0], 0),
        Row("setp.gt.f32 %p0, %f1, 0f00000000;", P, [f(1e-40), 0, 0, 0], 1),
        Row("setp.gt.f32 %p0, %f1, %f2;", P, [f(2.0), f(2.0), 0, 0], 0),
        Row("setp.gt.f32 %p0, %f1, %f2;", P, [f(2.0), NAN, 0, 0], 0),
        Row("setp.le.f32 %p0, %f1, %f2;", P, [f(1.0), f(1.0), 0, 0], 1),
        Row("setp.le.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 0),
        Row("setp.geu.f32 %p0, %f1, 0f7F800000;", P, [NAN, 0, 0, 0], 1),
        Row("setp.leu.f32 %p0, %f1, %f2;", P, [NAN, f(1.0), 0, 0], 1),
        Row("setp.lt.f64 %p0, %fd1, 0d7FF0000000000000;", P, [d(1e300), 0, 0, 0], 1),
        Row("setp.lt.f64 %p0, %fd1, %fd2;", P, [d(f64::NAN), d(1.0), 0, 0], 0),
        Row("selp.f64 %fd0, 0d3FF0000000000000, %fd1, %p3;", D, [d(3.0), 0, 1, 0], d(1.0)),
        Row("selp.f64 %fd0, 0d3FF0000000000000, %fd1, %p3;", D, [d(3.0), 0, 0, 0], d(3.0)),
    ]);
}

#[test]
fn conversions() {
    let h = |x: f32| u64::from(half::f16::from_f32(x).to_bits());
    check(&[
        Row("cvt.u32.u16 %r0, %h1;", R, [0xffff, 0, 0, 0], 0xffff),
        Row("cvt.s32.s16 %r0, %h1;", R, [0xffff, 0, 0, 0], n(-1)),
        Row("cvt.s32.s8 %r0, %r1;", R, [0x80, 0, 0, 0], n(-128)),
        Row("cvt.u32.u8 %r0, %r1;", R, [0x1ff, 0, 0, 0], 0xff),
        Row("cvt.u16.u32 %h0, %r1;", H, [0x1_2345, 0, 0, 0], 0x2345),
        Row("cvt.s64.s32 %rd0, %r1;", L, [n(-2), 0, 0, 0], l(-2)),
        Row("cvt.u64.u32 %rd0, %r1;", L, [n(-2), 0, 0, 0], 0xffff_fffe),
        Row("cvt.u32.u64 %r0, %rd1;", R, [0x1_2345_6789_abcd, 0, 0, 0], 0x6789_abcd),
        Row("cvt.s64.s16 %rd0, %h1;", L, [0x8000, 0, 0, 0], l(-32768)),
        Row("cvt.sat.u8.s32 %r0, %r1;", R, [n(-5), 0, 0, 0], 0),
        Row("cvt.sat.s8.s32 %r0, %r1;", R, [200, 0, 0, 0], 127),
        Row("cvt.sat.u16.u32 %h0, %r1;", H, [70000, 0, 0, 0], 65535),
        Row("cvt.rn.f32.s32 %f0, %r1;", F, [n(-16_777_217), 0, 0, 0], f(-16_777_216.0)),
        Row("cvt.rz.f32.u32 %f0, %r1;", F, [0xffff_ffff, 0, 0, 0], f(4_294_967_040.0)),
        Row("cvt.rn.f32.u32 %f0, %r1;", F, [0xffff_ffff, 0, 0, 0], f(4_294_967_296.0)),
        Row("cvt.rp.f32.s32 %f0, %r1;", F, [16_777_217, 0, 0, 0], f(16_777_218.0)),
        Row("cvt.rm.f32.s32 %f0, %r1;", F, [n(-16_777_217), 0, 0, 0], f(-16_777_218.0)),
        Row("cvt.rn.f32.s64 %f0, %rd1;", F, [l(-3), 0, 0, 0], f(-3.0)),
        Row("cvt.rn.f32.u64 %f0, %rd1;", F, [u64::MAX, 0, 0, 0], f(18_446_744_073_709_551_616.0)),
        Row("cvt.rn.f64.s32 %fd0, %r1;", D, [n(-3), 0, 0, 0], d(-3.0)),
        Row("cvt.rn.f64.u64 %fd0, %rd1;", D, [1 << 60, 0, 0, 0], d((1u64 << 60) as f64)),
        Row("cvt.rn.f32.u8 %f0, %r1;", F, [0x1ff, 0, 0, 0], f(255.0)),
        Row("cvt.rzi.s32.f32 %r0, %f1;", R, [f(-2.7), 0, 0, 0], n(-2)),
        Row("cvt.rni.s32.f32 %r0, %f1;", R, [f(2.5), 0, 0, 0], 2),
        Row("cvt.rmi.s32.f32 %r0, %f1;", R, [f(-2.1), 0, 0, 0], n(-3)),
        Row("cvt.rpi.s32.f32 %r0, %f1;", R, [f(2.1), 0, 0, 0], 3),
        Row("cvt.rzi.s32.f32 %r0, %f1;", R, [f(1e20), 0, 0, 0], n(i32::MAX)),
        Row("cvt.rzi.u32.f32 %r0, %f1;", R, [f(-5.0), 0, 0, 0], 0),
        Row("cvt.rzi.s32.f32 %r0, %f1;", R, [NAN, 0, 0, 0], 0),
        Row("cvt.rni.s64.f32 %rd0, %f1;", L, [f(3.5), 0, 0, 0], 4),
        Row("cvt.rzi.u64.f32 %rd0, %f1;", L, [f(1e10), 0, 0, 0], 10_000_000_000),
        Row("cvt.rzi.s32.f64 %r0, %fd1;", R, [d(-7.9), 0, 0, 0], n(-7)),
        Row("cvt.rni.f32.f32 %f0, %f1;", F, [f(-2.5), 0, 0, 0], f(-2.0)),
        Row("cvt.rmi.f32.f32 %f0, %f1;", F, [f(-2.1), 0, 0, 0], f(-3.0)),
        Row("cvt.rpi.f32.f32 %f0, %f1;", F, [f(2.1), 0, 0, 0], f(3.0)),
        Row("cvt.rzi.f32.f32 %f0, %f1;", F, [f(-2.9), 0, 0, 0], f(-2.0)),
        Row("cvt.sat.f32.f32 %f0, %f1;", F, [f(1.5), 0, 0, 0], f(1.0)),
        Row("cvt.sat.f32.f32 %f0, %f1;", F, [NAN, 0, 0, 0], 0),
        Row("cvt.ftz.f32.f32 %f0, %f1;", F, [f(-1e-40), 0, 0, 0], f(-0.0)),
        Row("cvt.f64.f32 %fd0, %f1;", D, [f(1.1), 0, 0, 0], d(1.1f32 as f64)),
        Row("cvt.rn.f32.f64 %f0, %fd1;", F, [d(1.1), 0, 0, 0], f(1.1)),
        Row("cvt.rz.f32.f64 %f0, %fd1;", F, [d(0.1), 0, 0, 0], f(0.1).wrapping_sub(1)),
        Row("cvt.rn.bf16.f32 %h0, %f1;", H, [0x3f80_8000, 0, 0, 0], 0x3f80),
        Row("cvt.rn.bf16.f32 %h0, %f1;", H, [0x3f81_8000, 0, 0, 0], 0x3f82),
        Row("cvt.rz.bf16.f32 %h0, %f1;", H, [0x3f81_ffff, 0, 0, 0], 0x3f81),
        Row("cvt.rn.bf16.f32 %h0, %f1;", H, [NAN, 0, 0, 0], 0x7fff),
        Row("cvt.f32.bf16 %f0, %h1;", F, [0xc040, 0, 0, 0], f(-3.0)),
        Row("cvt.rn.f16.f32 %h0, %f1;", H, [f(0.1), 0, 0, 0], h(0.1)),
        Row("cvt.rn.f16.f32 %h0, %f1;", H, [f(70000.0), 0, 0, 0], 0x7c00),
        Row("cvt.f32.f16 %f0, %h1;", F, [0xc200, 0, 0, 0], f(-3.0)),
        Row("cvt.rn.bf16x2.f32 %r0, %f1, %f2;", R, [f(1.0), f(-3.0), 0, 0], 0x3f80_c040),
        Row("cvt.rn.relu.bf16x2.f32 %r0, %f1, %f2;", R, [f(1.0), f(-3.0), 0, 0], 0x3f80_0000),
        Row("cvt.rn.f16x2.f32 %r0, %f1, %f2;", R, [f(1.0), f(-3.0), 0, 0], 0x3c00_c200),
        Row("cvt.rna.tf32.f32 %r0, %f1;", R, [0x3f80_1000, 0, 0, 0], 0x3f80_2000),
    ]);
}

#[test]
fn moves_and_memory() {
    const V: [u64; 4] = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00, 0x0123_4567_89ab_cdef, 5];
    check(&[
        Row("mov.u32 %r0, %r1;", R, [5, 0, 0, 0], 5),
        Row("mov.f32 %f0, 0f3F800000;", F, [5, 0, 0, 0], f(1.0)),
        Row("mov.f64 %fd0, 0d3FF0000000000000;", D, [5, 0, 0, 0], d(1.0)),
        Row("mov.b32 %r0, {%h1, %h2};", R, [0x1234, 0x5678, 0, 0], 0x5678_1234),
        Row("mov.b32 {%h5, %h0}, %r1;", H, [0x5678_1234, 0, 0, 0], 0x5678),
        Row("mov.b32 {%h0, _}, %r1;", H, [0x5678_1234, 0, 0, 0], 0x1234),
        Row("mov.b64 %rd0, {%r1, %r2};", L, [1, 2, 0, 0], 2 << 32 | 1),
        Row("mov.b64 {%r5, %r0}, %rd1;", R, V, 0x1122_3344),
        Row("mov.b64 %rd0, {%h1, %h2, %h3, %h4};", L, [1, 2, 3, 4], 0x0004_0003_0002_0001),
        Row("mov.b64 {%h5, %h6, %h0, %h7}, %rd1;", H, V, 0x3344),
        Row("mov.u32 %r0, %ntid.x;", R, [0; 4], 1),
        Row("mov.u32 %r0, %nctaid.z;", R, [0; 4], 1),
        Row("mov.u32 %r0, %laneid;", R, [0; 4], 0),
        Row("mov.u32 %r0, %lanemask_gt;", R, [0; 4], 0xffff_fffe),
        Row("mov.u32 %r0, %lanemask_le;", R, [0; 4], 1),
        Row("mov.u32 %r0, WARP_SZ;", R, [0; 4], 32),
        Row("ld.param.u32 %r0, [p1+4];", R, V, 0x1122_3344),
        Row("ld.param.s8 %r0, [p2+7];", R, V, n(-103)),
        Row("st.shared.u64 [sh+8], %rd1;\nld.shared.u32 %r0, [sh+12];", R, V, 0x1122_3344),
        Row("st.shared.u32 [sh], %r1;\nld.shared.u8 %h0, [sh+1];", H, V, 0x77),
        Row("st.shared.u32 [sh], %r2;\nld.shared.s8 %r0, [sh+1];", R, V, 0xffff_ffff),
        Row("st.shared.u32 [sh], %r2;\nld.shared.s16 %r0, [sh+2];", R, V, n(-8722)),
        Row("st.shared.v2.u16 [sh], {%h1, %h2};\nld.shared.u32 %r0, [sh];", R, V, 0xff00_7788),
        Row("st.shared.v4.u8 [sh], {%h1, %h2, %h3, %h4};\nld.shared.u32 %r0, [sh];", R, V, 0x05ef_0088),
        Row("st.shared.v4.u32 [sh], {%r1, %r2, %r3, %r4};\nld.shared.v2.u64 {%rd5, %rd0}, [sh];", L, V, 0x5_89ab_cdef),
        Row("st.shared.v2.u64 [sh], {%rd1, %rd2};\nld.shared.v4.u32 {%r5, _, %r6, %r0}, [sh];", R, V, 0x99aa_bbcc),
        Row("st.local.v2.f32 [lo+8], {%f1, %f2};\nld.local.u64 %rd0, [lo+8];", L, V, 0xddee_ff00_5566_7788),
        Row("st.local.u8 [lo], %h1;\nst.local.u8 [lo+1], %h3;\nld.local.u16 %h0, [lo];", H, V, 0xef88),
        Row(
            "mov.u64 %rd5, lo;\ncvta.local.u64 %rd6, %rd5;\nst.u32 [%rd6+4], %r1;\nld.local.u32 %r0, [%rd5+4];",
            R,
            V,
            0x5566_7788,
        ),
        Row(
            "mov.u64 %rd5, sh;\ncvta.shared.u64 %rd6, %rd5;\nst.u32 [%rd6+4], %r1;\nld.shared.u32 %r0, [sh+4];",
            R,
            V,
            0x5566_7788,
        ),
        Row(
            "mov.u64 %rd5, sh;\ncvta.shared.u64 %rd6, %rd5;\ncvta.to.shared.u64 %rd7, %rd6;\nst.shared.u32 [%rd7], %r1;\n\
            cvt.u32.u64 %r5, %rd7;\nld.shared.u32 %r0, [%r5];",
            R,
            V,
            0x5566_7788,
        ),
        Row("st.global.u16 [%rd10+10], %h1;\nld.global.u16 %h0, [%rd10+10];", H, V, 0x7788),
        Row("st.u32 [%rd10+12], %r1;\nld.global.u8 %h0, [%rd10+15];", H, V, 0x55),
        Row("st.volatile.global.u32 [%rd10+12], %r1;\nld.relaxed.gpu.global.u32 %r0, [%rd10+12];", R, V, 0x5566_7788),
        Row("st.global.cs.u32 [%rd10+12], %r1;\nld.global.L2::128B.u32 %r0, [%rd10+12];", R, V, 0x5566_7788),
        Row("ld.global.nc.L1::no_allocate.v2.u32 {%r5, %r0}, [%rd10+16];", R, V, 0),
    ]);
}

/// Several elements at once, and where each of them goes; counts in shared memory.
#[test]
fn vectors_and_counts() {
    const V: [u64; 4] = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00, 0x0123_4567_89ab_cdef, 5];
    check(&[
        Row(
            "cvta.to.global.u64 %rd5, %rd10;\nst.global.u32 [%rd5+12], %r1;\nld.global.u32 %r0, [%rd10+12];",
            R,
            V,
            0x5566_7788,
        ),
        Row("st.global.v2.u32 [%rd10+16], {%r1, %r2};\nld.global.u64 %rd0, [%rd10+16];", L, V, 0xddee_ff00_5566_7788),
        Row(
            "st.global.v4.u32 [%rd10+16], {%r1, %r2, %r3, %r4};\nld.global.u64 %rd0, [%rd10+24];",
            L,
            V,
            0x0000_0005_89ab_cdef,
        ),
        Row(
            "st.global.v4.b32 [%rd10+16], {%r1, %r2, %r3, %r4};\nld.global.u64 %rd0, [%rd10+16];",
            L,
            V,
            0xddee_ff00_5566_7788,
        ),
        Row(
            "st.global.v4.f32 [%rd10+16], {%f4, %f3, %f2, %f1};\nld.global.u64 %rd0, [%rd10+24];",
            L,
            V,
            0x5566_7788_ddee_ff00,
        ),
        Row(
            "st.global.u64 [%rd10+16], %rd1;\nst.global.u64 [%rd10+24], %rd2;\n\
            ld.global.v4.u32 {%r5, %r6, %r0, %r7}, [%rd10+16];",
            R,
            V,
            0xddee_ff00,
        ),
        Row(
            "st.global.u64 [%rd10+16], %rd1;\nst.global.u64 [%rd10+24], %rd2;\n\
            ld.global.v4.f32 {%f5, %f0, %f6, %f7}, [%rd10+16];",
            F,
            V,
            0x1122_3344,
        ),
        Row("st.shared.u64 [sh+8], %rd1;\nld.shared.v2.u32 {%r5, %r0}, [sh+8];", R, V, 0x1122_3344),
        Row("st.shared.u64 [sh+8], %rd1;\nld.shared.v2.f32 {%f0, %f5}, [sh+8];", F, V, 0x5566_7788),
        Row("st.shared.v4.f32 [sh], {%f1, %f2, %f3, %f4};\nld.shared.u64 %rd0, [sh+8];", L, V, 0x5_89ab_cdef),
        Row(
            "st.shared.u64 [sh], %rd1;\nst.shared.u64 [sh+8], %rd2;\nld.shared.v4.f32 {%f5, %f6, %f7, %f0}, [sh];",
            F,
            V,
            0x99aa_bbcc,
        ),
        Row("st.shared.u32 [sh], %r1;\natom.shared.add.u32 %r0, [sh], 1;", R, [7, 0, 0, 0], 7),
        Row(
            "st.shared.u32 [sh], %r1;\natom.shared.add.u32 %r5, [sh], %r2;\nld.shared.u32 %r0, [sh];",
            R,
            [7, n(-3), 0, 0],
            4,
        ),
    ]);
}

#[test]
fn atomics() {
    const NEG: u64 = n(-3);
    for (code, old, arg, result) in [
        ("add.u32", 5, 7, 12),
        ("min.u32", 5, NEG, 5),
        ("min.s32", 5, NEG, NEG),
        ("max.u32", 5, NEG, NEG),
        ("max.s32", 5, NEG, 5),
        ("and.b32", 5, 4, 4),
        ("or.b32", 5, 2, 7),
        ("xor.b32", 5, 1, 4),
        ("exch.b32", 5, 9, 9),
        ("inc.u32", 5, 5, 0),
        ("dec.u32", 0, 5, 5),
        ("add.f32", f(1.5), f(2.0), f(3.5)),
    ] {
        let ty = if code.ends_with("f32") { ("f32", "f", F) } else { ("u32", "r", R) };
        for (space, base) in [("shared", "sh"), ("global", "%rd10+16")] {
            let body = |op: &str, d: &str, show: &str| {
                format!(
                    "st.{space}.{} [{base}], %{}1;\n{op}.{space}.{code} {d}[{base}], %{}2;\n{show}",
                    ty.0, ty.1, ty.1
                )
            };
            let read = format!("ld.{space}.{} %{}0, [{base}];", ty.0, ty.1);
            let inputs = [old, arg, 0, 0];
            assert_eq!(run(&body("red", "", &read), ty.2, inputs).ok(), Some(result), "red.{space}.{code}");
            let before = run(&body("atom", &format!("%{}0, ", ty.1), ""), ty.2, inputs);
            assert_eq!(before.ok(), Some(old), "atom.{space}.{code}");
        }
    }
    check(&[
        Row(
            "st.shared.u32 [sh], %r1;\natom.shared.cas.b32 %r5, [sh], 5, %r2;\nld.shared.u32 %r0, [sh];",
            R,
            [5, 9, 0, 0],
            9,
        ),
        Row(
            "st.shared.u32 [sh], %r1;\natom.shared.cas.b32 %r5, [sh], 4, %r2;\nld.shared.u32 %r0, [sh];",
            R,
            [5, 9, 0, 0],
            5,
        ),
        Row(
            "st.shared.u64 [sh], %rd1;\natom.shared.add.u64 %rd5, [sh], %rd2;\nld.shared.u64 %rd0, [sh];",
            L,
            [u64::from(u32::MAX), 1, 0, 0],
            1 << 32,
        ),
        Row(
            "st.global.u64 [%rd10+16], %rd1;\natom.global.max.s64 %rd5, [%rd10+16], %rd2;\nld.global.u64 %rd0, [%rd10+16];",
            L,
            [l(-5), 1, 0, 0],
            1,
        ),
        Row("st.global.u64 [%rd10+16], %rd1;\natom.global.cas.b64 %rd0, [%rd10+16], %rd1, %rd2;", L, [7, 1, 0, 0], 7),
        Row(
            "st.global.f64 [%rd10+16], %fd1;\nred.global.add.f64 [%rd10+16], %fd2;\nld.global.f64 %fd0, [%rd10+16];",
            D,
            [d(1.5), d(2.0), 0, 0],
            d(3.5),
        ),
        Row("st.global.u32 [%rd10+16], %r1;\natom.add.u32 %r0, [%rd10+16], 1;", R, [7, 1, 0, 0], 7),
    ]);
}

#[test]
fn tables_of_inputs_match_formulas() -> Outcome {
    // ex2 against f64 over its range: correct rounding but for ties that f64 cannot tell.
    for i in -200..200 {
        let x = i as f32 * 0.61 + 0.017;
        let got = f32::from_bits(run("ex2.approx.f32 %f0, %f1;", F, [f(x), 0, 0, 0])? as u32);
        let want = f64::from(x).exp2();
        assert!((f64::from(got) - want).abs() <= want * 6.0e-8 + 1e-45 || want > 3.4e38, "ex2 {x}: {got} {want}");
    }
    Ok(())
}

/// fma, bf16 and f16 rounding on random bits, against the host's fma and the `half` crate.
#[test]
fn random_bits_round_as_elsewhere() -> Outcome {
    let mut order = super::block::Order(99);
    let mut near = |scale: u32| {
        // Exponents near 1 make ties and cancellations likely; every eighth is any bit pattern.
        let x = order.next();
        if x & 7 == 0 { (x >> 32) as u32 } else { (x >> 32) as u32 & 0x8080_ffff | (127 - scale) << 23 }
    };
    for i in 0..1500 {
        let (a, b, c) = (near(0), near(i % 30), near(i % 13));
        let [x, y, z] = [a, b, c].map(f32::from_bits);
        let got = run("fma.rn.f32 %f0, %f1, %f2, %f3;", F, [a, b, c, 0].map(u64::from))? as u32;
        let want = x.mul_add(y, z);
        assert!(got == want.to_bits() || want.is_nan() && u64::from(got) == NAN, "{x:e} {y:e} {z:e}: {got:x} {want:e}");
        let pair = run("cvt.rn.bf16x2.f32 %r0, %f1, %f2;", R, [a, b, 0, 0].map(u64::from))? as u32;
        let short = half::bf16::from_f32(x);
        assert!(short.is_nan() || pair >> 16 == u32::from(short.to_bits()), "{x:e}");
        let half = run("cvt.rn.f16.f32 %h0, %f1;", H, [a, 0, 0, 0].map(u64::from))?;
        let short = half::f16::from_f32(x);
        assert!(short.is_nan() || half == u64::from(short.to_bits()), "{x:e}");
    }
    Ok(())
}
