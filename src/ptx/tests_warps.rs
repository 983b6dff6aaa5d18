//! Rows for what a whole warp or block does together. Each thread stores one word; the expectation is a formula of the
//! thread.

use super::{Arg, Machine, Memory, Module, Options};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Runs a body in a block; `%t` is the thread, `%r0` the result.
fn run(body: &str, threads: u32) -> std::result::Result<Vec<u32>, Box<dyn std::error::Error>> {
    let text = format!(
        ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry row(.param .u64 p0)\n{{\n.reg .pred %p<10>;\n\
         .reg .b16 %h<8>;\n.reg .b32 %r<40>, %t;\n.reg .f32 %f<10>;\n.reg .b64 %rd<20>;\n\
         .shared .align 16 .b8 sh[4096];\nmov.u32 %t, %tid.x;\nsetp.gt.u32 %p1, %t, 15;\nmov.u64 %rd3, sh;\n\
         mul.wide.u32 %rd1, %t, 4;\nadd.s64 %rd4, %rd3, %rd1;\nmul.wide.u32 %rd5, %t, 16;\nadd.s64 %rd6, %rd3, %rd5;\n\
         {body}\nld.param.u64 %rd2, [p0];\nadd.s64 %rd2, %rd2, %rd1;\nst.global.u32 [%rd2], %r0;\nret;\n}}\n"
    );
    let module = Module::parse(&text)?;
    let mut seen: Option<Vec<u32>> = None;
    for shuffle in [None, Some(5), Some(6)] {
        let mut memory = Memory::new();
        let bytes = 4 * u64::from(threads);
        let out = memory.alloc("out", bytes)?;
        memory.expect_written(out, bytes)?;
        let machine = Machine::new(Options { shuffle, ..Options::default() });
        machine.launch(module.kernel("row")?, [1, 1, 1], [threads, 1, 1], 0, &[Arg::U64(out)], &mut memory)?;
        let mut raw = vec![0u8; bytes as usize];
        memory.download(out, &mut raw)?;
        let words: Vec<u32> = raw.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert!(seen.as_ref().is_none_or(|s| *s == words), "{body}: order changes the result");
        seen = Some(words);
    }
    seen.ok_or_else(|| "no run".into())
}

fn expect(body: &str, threads: u32, want: impl Fn(u32) -> u32) -> Outcome {
    let got = run(body, threads).map_err(|e| format!("{body}: {e}"))?;
    let want: Vec<u32> = (0..threads).map(want).collect();
    assert_eq!(got, want, "{body}");
    Ok(())
}

#[test]
fn shuffles() -> Outcome {
    let x = "mad.lo.u32 %r1, %t, 3, 1;\n";
    let v = |l: u32| l * 3 + 1;
    let row = |code: &str, want: &dyn Fn(u32) -> u32| expect(&format!("{x}{code}"), 32, want);
    row("shfl.sync.bfly.b32 %r0, %r1, 5, 31, -1;", &|l| v(l ^ 5))?;
    // Segments of 16: an earlier one can be read, a later one cannot.
    row("shfl.sync.bfly.b32 %r0|%p2, %r1, 16, 0x100f, -1;", &|l| v(l % 16))?;
    row("shfl.sync.idx.b32 %r0, %r1, 7, 31, -1;", &|_| v(7))?;
    row("shfl.sync.idx.b32 %r0, %r1, 3, 0x181f, -1;", &|l| v(l / 8 * 8 + 3))?;
    row("shfl.sync.up.b32 %r0, %r1, 2, 0, -1;", &|l| if l < 2 { v(l) } else { v(l - 2) })?;
    row("shfl.sync.up.b32 %r0, %r1, 1, 0x1000, -1;", &|l| if l % 16 == 0 { v(l) } else { v(l - 1) })?;
    row("shfl.sync.down.b32 %r0, %r1, 4, 31, -1;", &|l| if l > 27 { v(l) } else { v(l + 4) })?;
    row("shfl.sync.down.b32 %r2|%p2, %r1, 4, 0x181f, -1;\nselp.u32 %r0, %r2, 0, %p2;", &|l| {
        if l % 8 < 4 { v(l + 4) } else { 0 }
    })?;
    // Half a warp: the others skip it.
    row("mov.u32 %r0, 9;\n@%p1 bra E;\nshfl.sync.bfly.b32 %r0, %r1, 15, 31, 0xffff;\nE:", &|l| {
        if l < 16 { v(15 - l) } else { 9 }
    })
}

#[test]
fn votes_and_reductions() -> Outcome {
    let pred = |p: &str| format!("vote.sync.{p}.pred %p2, %p1, -1;\nselp.u32 %r0, 1, 0, %p2;");
    expect(&pred("any"), 32, |_| 1)?;
    expect(&pred("all"), 32, |_| 0)?;
    expect(&pred("uni"), 32, |_| 0)?;
    expect("vote.sync.ballot.b32 %r0, %p1, -1;", 32, |_| 0xffff_0000)?;
    expect("vote.sync.ballot.b32 %r0, !%p1, -1;", 32, |_| 0x0000_ffff)?;
    // Two halves with their own masks at one instruction.
    expect("selp.u32 %r1, 0xffff0000, 0x0000ffff, %p1;\nredux.sync.add.u32 %r0, %t, %r1;", 32, |l| {
        if l < 16 { 120 } else { 376 }
    })?;
    expect("redux.sync.max.u32 %r0, %t, -1;", 32, |_| 31)?;
    expect("sub.s32 %r1, %t, 9;\nredux.sync.min.s32 %r0, %r1, -1;", 32, |_| (-9i32) as u32)?;
    expect("shl.b32 %r1, 1, %t;\nredux.sync.or.b32 %r0, %r1, -1;", 32, |_| u32::MAX)?;
    expect("redux.sync.xor.b32 %r0, %t, -1;", 32, |_| 0)?;
    expect("redux.sync.and.b32 %r0, %t, -1;", 32, |_| 0)?;
    expect("and.b32 %r1, %t, 3;\nmatch.any.sync.b32 %r0, %r1, -1;", 32, |l| 0x1111_1111 << (l & 3))?;
    expect("activemask.b32 %r0;\n@%p1 activemask.b32 %r0;", 32, |l| if l > 15 { 0xffff_0000 } else { u32::MAX })?;
    expect("mov.u32 %r0, %lanemask_lt;", 32, |l| (1u32 << l) - 1)?;
    expect("mov.u32 %r0, %warpid;", 96, |t| t / 32)
}

#[test]
fn divergence_joins() -> Outcome {
    // Each lane runs its own number of turns, then all shuffle together.
    let body = "mov.u32 %r0, 0;\nmov.u32 %r1, 0;\nL:\nsetp.ge.u32 %p2, %r1, %t;\n@%p2 bra E;\nadd.u32 %r0, %r0, %r1;\n\
                add.u32 %r1, %r1, 1;\nbra L;\nE:\nshfl.sync.idx.b32 %r0, %r0, 31, 31, -1;";
    expect(body, 32, |_| (0..31).sum())?;
    // Nested: four ways, then together.
    let body = "and.b32 %r1, %t, 1;\nsetp.eq.u32 %p2, %r1, 0;\n@%p2 bra A;\n@%p1 bra B;\nmov.u32 %r0, 1;\nbra J;\nB:\n\
                mov.u32 %r0, 2;\nJ:\nbra K;\nA:\n@%p1 bra C;\nmov.u32 %r0, 3;\nbra K;\nC:\nmov.u32 %r0, 4;\nK:\n\
                redux.sync.add.u32 %r2, %r0, -1;\nmad.lo.u32 %r0, %r2, 100, %r0;";
    expect(body, 32, |l| {
        100 * 80
            + if l % 2 == 1 {
                if l > 15 { 2 } else { 1 }
            } else if l > 15 {
                4
            } else {
                3
            }
    })?;
    // Lanes exit early; the others go on to a join of their own.
    expect(
        "mov.u32 %r0, %t;\nsetp.lt.u32 %p2, %t, 8;\n@%p2 bra S;\n@%p1 bra X;\nadd.u32 %r0, %r0, 100;\nX:\nadd.u32 %r0, %r0, 1000;\nS:",
        32,
        |l| {
            if l < 8 {
                l
            } else if l < 16 {
                l + 1100
            } else {
                l + 1000
            }
        },
    )
}

/// Every thread of a grid in three dimensions writes where it stands, at the place that its indices give.
#[test]
fn places() -> Outcome {
    let text = ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry row(.param .u64 p0)\n{\n.reg .b32 %r<20>;\n\
                .reg .b64 %rd<9>;\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %tid.y;\nmov.u32 %r2, %tid.z;\nmov.u32 %r3, %ctaid.x;\n\
                mov.u32 %r4, %ctaid.y;\nmov.u32 %r5, %ctaid.z;\nmov.u32 %r6, %ntid.x;\nmov.u32 %r7, %ntid.y;\n\
                mov.u32 %r8, %nctaid.x;\nmov.u32 %r9, %nctaid.y;\nmad.lo.s32 %r10, %r5, %r9, %r4;\n\
                mad.lo.s32 %r10, %r10, %r8, %r3;\nmad.lo.s32 %r11, %r2, %r7, %r1;\nmad.lo.s32 %r11, %r11, %r6, %r0;\n\
                mad.lo.s32 %r12, %r10, 30, %r11;\nshl.b32 %r13, %r4, 8;\nor.b32 %r13, %r13, %r3;\nshl.b32 %r14, %r5, 16;\n\
                or.b32 %r13, %r13, %r14;\nld.param.u64 %rd1, [p0];\nmul.wide.u32 %rd2, %r12, 4;\nadd.s64 %rd1, %rd1, %rd2;\n\
                st.global.u32 [%rd1], %r13;\nret;\n}\n";
    let (grid, block) = ([3u32, 4, 2], [5u32, 3, 2]);
    let module = Module::parse(text)?;
    let mut memory = Memory::new();
    let out = memory.alloc("out", 4 * 24 * 30)?;
    memory.expect_written(out, 4 * 24 * 30)?;
    Machine::default().launch(module.kernel("row")?, grid, block, 0, &[Arg::U64(out)], &mut memory)?;
    let mut raw = vec![0u8; 4 * 24 * 30];
    memory.download(out, &mut raw)?;
    for (i, bytes) in raw.chunks_exact(4).enumerate() {
        let b = i as u32 / 30;
        let want = [b % 3, b / 3 % 4, b / 12, 0];
        assert_eq!(bytes, want.map(|x| x as u8), "thread {i}");
    }
    Ok(())
}

#[test]
fn uniform_branches() -> Outcome {
    expect("mov.u32 %r0, 1;\nbra.uni E;\nmov.u32 %r0, 2;\nE:", 64, |_| 1)?;
    // A guard that holds for all lanes of a warp, or for none.
    expect("mov.u32 %r0, 1;\nsetp.lt.u32 %p2, %t, 32;\n@%p2 bra.uni E;\nmov.u32 %r0, 2;\nE:", 64, |t| 1 + t / 32)
}

#[test]
fn barriers() -> Outcome {
    expect("bar.red.popc.u32 %r0, 0, %p1;", 96, |_| 80)?;
    expect("bar.red.or.pred %p2, 0, %p1;\nselp.u32 %r0, 1, 0, %p2;", 64, |_| 1)?;
    expect("bar.red.and.pred %p2, 0, %p1;\nselp.u32 %r0, 1, 0, %p2;", 64, |_| 0)?;
    expect("bar.red.and.pred %p2, 0, !%p3;\nselp.u32 %r0, 1, 0, %p2;", 64, |_| 1)
        .err()
        .ok_or("an unwritten predicate passed")?;
    // Neighbour warps through shared memory, sixteen times.
    let body = "mov.u32 %r0, %t;\nmov.u32 %r1, 0;\nadd.u32 %r2, %t, 32;\nrem.u32 %r2, %r2, 96;\nmul.wide.u32 %rd7, %r2, 4;\n\
                add.s64 %rd7, %rd3, %rd7;\nL:\nst.shared.u32 [%rd4], %r0;\nbarrier.sync.aligned 3;\nld.shared.u32 %r0, [%rd7];\n\
                bar.sync 3;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p2, %r1, 16;\n@%p2 bra L;";
    expect(body, 96, |t| (t + 16 * 32) % 96)?;
    expect("bar.sync 0;\nmembar.gl;\nmembar.cta;\nfence.acq_rel.gpu;\nmov.u32 %r0, 1;", 64, |_| 1)
}

/// Words that tell where they came from: row and column of an 8 x 8 matrix of halves, 16 bytes a row.
#[test]
fn ldmatrix() -> Outcome {
    // sh as halves: half i has value i, written as words (2i+1) << 16 | 2i.
    let fill: String = (0..16)
        .map(|n| {
            format!(
                "add.u32 %r30, %t, {};\nshl.b32 %r31, %r30, 1;\nadd.u32 %r32, %r31, 1;\nshl.b32 %r33, %r32, 16;\n\
                 or.b32 %r33, %r33, %r31;\nst.shared.u32 [%rd4+{}], %r33;\n",
                32 * n,
                128 * n
            )
        })
        .collect();
    let fill = format!("{fill}bar.warp.sync -1;\n");
    let word = |row: u32, column: u32| (row * 8 + column + 1) << 16 | (row * 8 + column);
    let plain = |m: u32, l: u32| word(8 * m + l / 4, 2 * (l % 4));
    let turned = |m: u32, l: u32| {
        let half = |r: u32| (8 * m + r) * 8 + l / 4;
        half(2 * (l % 4) + 1) << 16 | half(2 * (l % 4))
    };
    for m in 0..4 {
        let list = ["%r1", "%r2", "%r3", "%r4"].map(|r| if r == format!("%r{}", m + 1) { "%r0" } else { r }).join(", ");
        let code = |opcode: &str| format!("{fill}{opcode} {{{list}}}, [%rd6];");
        expect(&code("ldmatrix.sync.aligned.m8n8.x4.shared.b16"), 32, |l| plain(m, l))?;
        expect(&code("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"), 32, |l| turned(m, l))?;
    }
    expect(&format!("{fill}ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r1, %r0}}, [%rd6];"), 32, |l| plain(1, l))?;
    expect(&format!("{fill}ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{%r0}}, [%rd6+128];"), 32, |l| {
        turned(1, l)
    })?;
    expect(
        &format!("{fill}cvt.u32.u64 %r5, %rd6;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r0}}, [%r5];"),
        32,
        |l| plain(0, l),
    )
}

/// Which row and column a fragment's element is, from the ISA's text: the product of unit matrices must find it.
#[test]
fn mma() -> Outcome {
    // A holds 1 at (row, k) and B holds 3 at (k, n): D must be 3 at (row, n), c elsewhere.
    for (row, k, n) in [(0, 0, 0), (5, 3, 7), (13, 9, 2), (8, 15, 6), (7, 8, 1), (15, 14, 5)] {
        for (ty, one, three) in [("bf16", 0x3f80u32, 0x4040u32), ("f16", 0x3c00, 0x4200)] {
            let put = |reg: String, lane: usize, low: bool, value: u32| {
                let value = if low { value } else { value << 16 };
                format!("mov.b32 {reg}, 0;\nsetp.eq.u32 %p2, %t, {lane};\n@%p2 mov.b32 {reg}, {value};\n")
            };
            let mut code = String::new();
            for r in 0..4 {
                let hit = r == usize::from(row >= 8) + 2 * usize::from(k >= 8);
                let lane = if hit { (row % 8) * 4 + k % 8 / 2 } else { 99 };
                code += &put(format!("%r{}", 10 + r), lane, k % 2 == 0, one);
            }
            for r in 0..2 {
                let lane = if r == usize::from(k >= 8) { n * 4 + k % 8 / 2 } else { 99 };
                code += &put(format!("%r{}", 20 + r), lane, k % 2 == 0, three);
            }
            let found = usize::from(row >= 8) * 2 + n % 2;
            code += &format!(
                "mov.f32 %f5, 0f3F800000;\nmma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{%f1,%f2,%f3,%f4}}, \
                 {{%r10,%r11,%r12,%r13}}, {{%r20,%r21}}, {{%f5,%f5,%f5,%f5}};\nmov.b32 %r0, %f{};",
                found + 1
            );
            let lane = (row % 8 * 4 + n / 2) as u32;
            expect(&code, 32, |l| if l == lane { 4f32.to_bits() } else { 1f32.to_bits() })?;
        }
    }
    Ok(())
}

#[test]
fn copies_land_when_waited_for() -> Outcome {
    // Sizes 4, 8, 16, with fewer source bytes: the rest becomes zero.
    for (bytes, size, want) in [(16u32, 16u32, 4u32), (16, 8, 2), (16, 0, 0), (8, 4, 1), (4, 4, 1)] {
        let operator = if bytes == 16 { "cg" } else { "ca" };
        let body = format!(
            "ld.param.u64 %rd8, [p0];\nadd.s64 %rd9, %rd8, %rd1;\nst.global.u32 [%rd9], %t;\nbar.sync 0;\n\
             and.b32 %r1, %t, 7;\nmul.wide.u32 %rd10, %r1, 16;\nadd.s64 %rd11, %rd8, %rd10;\nmov.u32 %r2, {size};\n\
             setp.lt.u32 %p2, %t, 8;\nmov.u32 %r0, 0;\n@!%p2 bra E;\n\
             cp.async.{operator}.shared.global [%rd6], [%rd11], {bytes}, %r2;\ncp.async.commit_group;\ncp.async.wait_group 0;\n\
             ld.shared.u32 %r5, [%rd6+{}];\nadd.u32 %r0, %r5, 1000;\nE:\nbar.sync 0;",
            bytes - 4
        );
        let last = bytes / 4;
        expect(&body, 32, |t| match t {
            8.. => 0,
            _ if want == last => 1000 + 4 * t + last - 1,
            _ => 1000,
        })?;
    }
    Ok(())
}

#[test]
fn counters_are_exact() -> Outcome {
    let text = |stride: u32| {
        format!(
            ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry row(.param .u64 p0)\n{{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n\
             .shared .align 16 .b8 sh[4096];\nld.param.u64 %rd1, [p0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, {stride};\n\
             add.s64 %rd1, %rd1, %rd2;\nmov.u64 %rd3, sh;\nadd.s64 %rd3, %rd3, %rd2;\nst.shared.u32 [%rd3], %r1;\n\
             st.global.u32 [%rd1], %r1;\nret;\n}}\n"
        )
    };
    for (stride, wavefronts, ideal, sectors) in
        [(4, 1, 1, 4), (8, 2, 1, 8), (32, 8, 1, 32), (128, 32, 1, 32), (36, 1, 1, 32)]
    {
        let module = Module::parse(&text(stride))?;
        let mut memory = Memory::new();
        let out = memory.alloc("out", 4096)?;
        let c = Machine::default().launch(
            module.kernel("row")?,
            [1, 1, 1],
            [32, 1, 1],
            0,
            &[Arg::U64(out)],
            &mut memory,
        )?;
        assert_eq!((c.shared_wavefronts, c.shared_wavefronts_ideal), (wavefronts, ideal), "stride {stride}");
        assert_eq!((c.global_store.sectors, c.global_store.bytes), (sectors, 128), "stride {stride}");
        assert_eq!((c.warp_instructions, c.lane_instructions), (9, 9 * 32));
        assert_eq!(c.classes.iter().sum::<u64>(), 9);
    }
    Ok(())
}
