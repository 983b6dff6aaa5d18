//! Mutants of a PTX text: one instruction changed, left out or fed with something else, such that the text still loads.
//! Registers stay those of the instruction, or ones that the same stretch of straight code wrote before.

use std::collections::HashMap;

/// One entry of a text: its name and its lines, from `.visible .entry` to the brace that ends it.
#[derive(Debug)]
pub(super) struct EntryText<'a> {
    pub(super) name: &'a str,
    lines: Vec<&'a str>,
    /// The lines of the text that belong to no entry: what stands at the head, and the list of files.
    around: Vec<&'a str>,
}

/// One change of one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mutant {
    /// Line of the entry, from 0.
    line: usize,
    /// The instruction as it stands there.
    pub(super) instruction: String,
    /// What was done to it.
    pub(super) change: String,
    /// The instruction that stands there now; empty if it was dropped.
    changed: String,
    /// File number and line in the CUDA source.
    pub(super) loc: (usize, usize),
    /// Which one it is among the entry's instructions of the same opcode from the same line, from 1.
    pub(super) nth: usize,
}

/// The entries of a text.
pub(super) fn entries(text: &str) -> Vec<EntryText<'_>> {
    let (mut entries, mut around): (Vec<EntryText<'_>>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut inside = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.split('(').next().unwrap_or_default();
            entries.push(EntryText { name, lines: Vec::new(), around: Vec::new() });
            inside = true;
        }
        match entries.last_mut() {
            Some(entry) if inside => entry.lines.push(line),
            _ => around.push(line),
        }
        inside &= line != "}";
    }
    entries.iter_mut().for_each(|entry| entry.around.clone_from(&around));
    entries
}

impl EntryText<'_> {
    /// A text with this entry alone, and this change.
    pub(super) fn with(&self, mutant: &Mutant) -> String {
        let head = self.around.iter().take_while(|line| !line.starts_with("\t.file"));
        let rest = self.around.iter().skip_while(|line| !line.starts_with("\t.file"));
        let body = self.lines.iter().enumerate().map(|(i, l)| if i == mutant.line { &mutant.changed } else { *l });
        head.copied().chain(body).chain(rest.copied()).flat_map(|line| [line, "\n"]).collect()
    }

    /// Registers that one instruction writes, and that one a literal or another such register.
    fn constants(&self) -> HashMap<String, String> {
        let mut found: HashMap<String, Vec<Option<String>>> = HashMap::new();
        for instruction in self.lines.iter().filter_map(|line| Instruction::read(line)) {
            let value = Some(instruction.operand(1).to_owned())
                .filter(|_| instruction.opcode.starts_with("mov.") && instruction.operands.len() == 2);
            for part in instruction.operand(0).split(['{', '}', ',', '|']).filter(|part| is_register(part)) {
                found.entry(part.to_owned()).or_default().push(value.clone());
            }
        }
        let varies = |register: &str| found.get(register).is_some_and(|writes| writes.len() > 1);
        let value = |writes: &[Option<String>]| match writes {
            [Some(value)] if !varies(value) => Some(value.clone()),
            _ => None,
        };
        found.iter().filter_map(|(register, writes)| Some((register.clone(), value(writes)?))).collect()
    }

    /// All mutants, in the order of the lines.
    pub(super) fn mutants(&self) -> Vec<Mutant> {
        let (mut mutants, mut loc, mut written, mut seen) = (Vec::new(), (0, 0), Vec::new(), HashMap::new());
        // What is known of registers: everywhere, and in this stretch of straight code.
        let constants = self.constants();
        let mut copies = HashMap::new();
        for (line, text) in self.lines.iter().enumerate() {
            if let Some(rest) = text.trim().strip_prefix(".loc") {
                let mut numbers = rest.split_whitespace().map_while(|n| n.parse().ok());
                loc = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            }
            let Some(instruction) = Instruction::read(text) else {
                // Where a label stands, other paths join.
                if text.trim_end().ends_with(':') {
                    written.clear();
                    copies.clear();
                }
                continue;
            };
            let text = instruction.text();
            let nth: &mut usize = seen.entry((loc, instruction.opcode.clone())).or_default();
            *nth += 1;
            let valued = with_values(&text, &copies, &constants);
            for (change, changed) in instruction.changes(&written) {
                let changed = changed.unwrap_or_default();
                // A register for its own value, or for another of the same value, is no change.
                if with_values(&changed, &copies, &constants) != valued {
                    mutants.push(Mutant { line, instruction: text.clone(), change, changed, loc, nth: *nth });
                }
            }
            if instruction.opcode.starts_with("bra") {
                written.clear();
                copies.clear();
            }
            instruction.copy(&mut copies, &constants);
            written.extend(instruction.destination().map(str::to_owned));
        }
        mutants
    }
}

#[derive(Debug, Clone)]
struct Instruction<'a> {
    guard: &'a str,
    opcode: String,
    operands: Vec<String>,
}

/// A change in words, and the new line; none if the instruction is gone.
type Change = (String, Option<String>);

/// One opcode for another: what its first part is, and what stands there instead.
const OPCODES: &[(&str, &str)] = &[
    ("add.", "sub."),
    ("sub.", "add."),
    ("mul.rn.", "add.rn."),
    ("mul.lo.", "add."),
    ("min.", "max."),
    ("max.", "min."),
    ("and.", "or."),
    ("or.", "and."),
    ("xor.", "or."),
    ("shl.b32", "shr.u32"),
    ("shl.b64", "shr.u64"),
    ("shr.u32", "shl.b32"),
    ("shr.s32", "shr.u32"),
    ("shr.u64", "shl.b64"),
    ("shr.s64", "shr.u64"),
    ("div.rn.", "mul.rn."),
    ("div.s32", "rem.s32"),
    ("rem.s32", "div.s32"),
    ("ex2.", "lg2."),
    ("lg2.", "ex2."),
    ("rcp.rn.", "sqrt.rn."),
    ("rcp.approx.", "sqrt.approx."),
    ("sqrt.rn.", "rcp.rn."),
    ("neg.", "abs."),
    ("abs.", "neg."),
    ("not.b32", "mov.b32"),
    ("not.pred", "mov.pred"),
    ("cvt.sat.f32.f32", "mov.f32"),
    ("cvt.rni.", "cvt.rzi."),
    ("fma.rm.", "fma.rn."),
    ("ldmatrix.sync.aligned.m8n8.x4.shared", "ldmatrix.sync.aligned.m8n8.x4.trans.shared"),
    ("ldmatrix.sync.aligned.m8n8.x4.trans.shared", "ldmatrix.sync.aligned.m8n8.x4.shared"),
    ("shfl.sync.bfly.", "shfl.sync.up."),
    ("shfl.sync.idx.", "shfl.sync.up."),
    ("shfl.sync.up.", "shfl.sync.down."),
    ("atom.shared.add.", "atom.shared.max."),
];

/// A comparison, its negation, and its neighbour.
const COMPARISONS: &[(&str, &str, &str)] = &[
    ("eq", "ne", "ge"),
    ("ne", "eq", "lt"),
    ("lt", "ge", "le"),
    ("le", "gt", "lt"),
    ("gt", "le", "ge"),
    ("ge", "lt", "gt"),
    ("equ", "ne", "eq"),
    ("neu", "eq", "ne"),
    ("ltu", "ge", "lt"),
    ("leu", "gt", "le"),
    ("gtu", "le", "gt"),
    ("geu", "lt", "ge"),
];

/// What has no result and can be left out.
const DROPPED: &[&str] = &["st.", "bar.", "cp.async.ca", "cp.async.cg", "cp.async.commit", "red.", "atom."];

impl<'a> Instruction<'a> {
    /// The instruction of a line, if there is one.
    fn read(line: &'a str) -> Option<Self> {
        let line = line.split("//").next()?.trim().strip_suffix(';')?;
        let (guard, rest) = match line.strip_prefix('@') {
            Some(rest) => (line.split_whitespace().next()?, rest.split_once(char::is_whitespace)?.1.trim()),
            None => ("", line),
        };
        let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if !opcode.starts_with(|c: char| c.is_ascii_lowercase()) {
            return None;
        }
        let (mut parts, mut depth) = (vec![String::new()], 0);
        for c in operands.chars().filter(|c| !c.is_whitespace()) {
            depth += i32::from("{[".contains(c)) - i32::from("}]".contains(c));
            match parts.last_mut() {
                Some(_) if c == ',' && depth == 0 => parts.push(String::new()),
                Some(part) => part.push(c),
                None => {}
            }
        }
        parts.retain(|part| !part.is_empty());
        Some(Self { guard, opcode: opcode.to_owned(), operands: parts })
    }

    fn text(&self) -> String {
        let text = format!("{} {} {};", self.guard, self.opcode, self.operands.join(", "));
        text.trim().replace(" ;", ";")
    }

    fn operand(&self, i: usize) -> &str {
        self.operands.get(i).map_or("", String::as_str)
    }

    /// The register that it writes, if it writes one for all lanes.
    fn destination(&self) -> Option<&str> {
        let none = ["st.", "bar.", "bra", "cp.", "red.", "ret", "trap"].iter().any(|o| self.opcode.starts_with(o));
        Some(self.operand(0)).filter(|d| !none && self.guard.is_empty() && is_register(d))
    }

    /// Brings `copies`, the registers that hold a literal's or another register's value, behind this instruction.
    fn copy(&self, copies: &mut HashMap<String, String>, constants: &HashMap<String, String>) {
        let value = value_of(self.operand(1), copies, constants);
        for part in self.operand(0).split(['{', '}', ',', '|']).filter(|part| is_register(part)) {
            copies.retain(|register, value| register != part && value != part);
        }
        let whole = self.opcode.starts_with("mov.") && self.operands.len() == 2 && !self.operand(1).starts_with('{');
        if let Some(register) = self.destination().filter(|register| whole && *register != value) {
            copies.insert(register.to_owned(), value);
        }
    }

    fn with_operand(&self, i: usize, operand: impl Into<String>) -> Option<String> {
        let mut new = self.clone();
        new.operands[i] = operand.into();
        Some(new.text())
    }

    fn with_opcode(&self, opcode: impl Into<String>) -> Option<String> {
        Some(Self { opcode: opcode.into(), ..self.clone() }.text())
    }

    fn swapped(&self, i: usize, j: usize) -> Change {
        let mut new = self.clone();
        new.operands.swap(i, j);
        (format!("operands {i} and {j} swapped"), Some(new.text()))
    }

    fn changes(&self, written: &[String]) -> Vec<Change> {
        let is = |opcodes: &[&str]| opcodes.iter().any(|o| self.opcode.starts_with(o));
        let mut changes = Vec::new();
        if is(DROPPED) && !(is(&["atom."]) || is(&["bar.red"])) {
            changes.push(("dropped".to_owned(), None));
        }
        if !self.guard.is_empty() {
            let guard = match self.guard.strip_prefix("@!") {
                Some(p) => format!("@{p}"),
                None => self.guard.replace('@', "@!"),
            };
            changes.push(("guard negated".to_owned(), Some(Instruction { guard: &guard, ..self.clone() }.text())));
        }
        if is(&["bra", "ret", "trap", "bar.", "cp.async.commit", "ld.param", "cvta"]) {
            return changes;
        }
        if is(&["cp.async.wait_group"]) {
            let n: u32 = self.operand(0).parse().unwrap_or(0);
            changes.push(("waits for one group less".to_owned(), self.with_operand(0, (n + 1).to_string())));
            return changes;
        }
        self.opcode_changes(&mut changes);
        self.order_changes(&mut changes);
        for i in 0..self.operands.len() {
            self.operand_changes(i, written, &mut changes);
        }
        changes
    }

    fn opcode_changes(&self, changes: &mut Vec<Change>) {
        for (from, to) in OPCODES.iter().filter(|(from, _)| self.opcode.starts_with(from)) {
            let to = self.opcode.replacen(from, to, 1);
            changes.push((format!("to {to}"), self.with_opcode(to.clone())));
        }
        if let Some(rest) = self.opcode.strip_prefix("setp.") {
            let (comparison, ty) = rest.split_once('.').unwrap_or((rest, ""));
            for (_, negation, near) in COMPARISONS.iter().filter(|row| row.0 == comparison) {
                for other in [negation, near] {
                    // Bits know only equality.
                    let ty = if ty.starts_with('b') { ty.replace('b', "u") } else { ty.to_owned() };
                    changes.push((format!("to {other}"), self.with_opcode(format!("setp.{other}.{ty}"))));
                }
            }
        }
    }

    /// Operands in another order, where the order has a meaning.
    fn order_changes(&self, changes: &mut Vec<Change>) {
        let is = |opcodes: &[&str]| opcodes.iter().any(|o| self.opcode.starts_with(o));
        if is(&["sub.", "div.", "rem.", "selp.", "cvt.rn.bf16x2", "shl.b32", "copysign."]) {
            changes.push(self.swapped(1, 2));
        }
        if is(&["fma.", "mad."]) {
            changes.push(self.swapped(1, 3));
            changes.push(self.swapped(2, 3));
        }
        for i in 0..self.operands.len() {
            let Some(list) = self.operand(i).strip_prefix('{').and_then(|l| l.strip_suffix('}')) else { continue };
            let parts: Vec<&str> = list.split(',').collect();
            let turned = |n: usize| format!("{{{}}}", [&parts[n..], &parts[..n]].concat().join(","));
            // The result of mma stays where it is, so that what is added to it and what it becomes part.
            if !(is(&["mma"]) && i == 0) && parts.len() > 1 && parts.windows(2).any(|p| p[0] != p[1]) {
                changes.push((format!("parts of operand {i} turned"), self.with_operand(i, turned(1))));
            }
        }
    }

    fn operand_changes(&self, i: usize, written: &[String], changes: &mut Vec<Change>) {
        let operand = self.operand(i);
        let stores = ["st.", "red.", "cp."].iter().any(|o| self.opcode.starts_with(o));
        if let Some(inner) = operand.strip_prefix('[').and_then(|o| o.strip_suffix(']')) {
            let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
            let offset: i64 = offset.parse().unwrap_or(0);
            for step in [4, -4] {
                let text = format!("[{base}+{}]", offset + step);
                changes.push((format!("address {step:+}"), self.with_operand(i, text)));
            }
            return;
        }
        if i == 0 && !stores {
            return;
        }
        for (what, value) in constants(operand) {
            // The size of a copy stands in its form.
            if !(self.opcode.starts_with("cp.") && i == 2) {
                changes.push((format!("operand {i} {what}"), self.with_operand(i, value)));
            }
        }
        if !is_register(operand) {
            return;
        }
        let class = |r: &str| r.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let own = self.operands.get(1..).unwrap_or_default().iter().rev();
        let alike = |r: &&String| is_register(r) && class(r) == class(operand) && r.as_str() != operand;
        if let Some(other) = own.clone().find(alike) {
            changes.push((format!("operand {i} from another operand"), self.with_operand(i, other)));
        }
        let used = |r: &&String| self.operands.iter().any(|o| o == *r);
        if let Some(other) = written.iter().rev().find(|r| alike(r) && !used(r)) {
            changes.push((format!("operand {i} from an earlier result"), self.with_operand(i, other)));
        }
        if self.opcode.starts_with("shfl.") && (i == 2 || i == 3) {
            changes.push((format!("operand {i} to 0"), self.with_operand(i, "0")));
        }
    }
}

/// What a register is a copy of, if it is one.
fn value_of(word: &str, copies: &HashMap<String, String>, constants: &HashMap<String, String>) -> String {
    let mut word = word;
    while let Some(value) = copies.get(word).or_else(|| constants.get(word)) {
        word = value;
    }
    word.to_owned()
}

/// The text with the values of registers that are copies. The first operand stays: it is what is written.
fn with_values(text: &str, copies: &HashMap<String, String>, constants: &HashMap<String, String>) -> String {
    let (head, operands) = text.split_once(',').unwrap_or((text, ""));
    let words = operands.split_inclusive([',', ' ', ';', '{', '}', '[', ']', '+']).map(|part| {
        let word = part.trim_end_matches([',', ' ', ';', '{', '}', '[', ']', '+']);
        value_of(word, copies, constants) + &part[word.len()..]
    });
    std::iter::once(head.to_owned()).chain(words).collect()
}

fn is_register(operand: &str) -> bool {
    operand.starts_with('%') && operand.ends_with(|c: char| c.is_ascii_digit()) && !operand.contains('|')
}

/// Other values for a literal.
fn constants(operand: &str) -> Vec<(&'static str, String)> {
    if let Some(bits) = operand.strip_prefix("0f").and_then(|hex| u32::from_str_radix(hex, 16).ok()) {
        let float = |bits: u32| format!("0f{bits:08X}");
        return match bits << 1 {
            0 => vec![("to 1", float(1f32.to_bits()))],
            0xff00_0000 => vec![("negated", float(bits ^ 1 << 31))],
            _ => vec![("negated", float(bits ^ 1 << 31)), ("doubled", float(bits.saturating_add(1 << 23)))],
        };
    }
    match operand.parse::<i64>() {
        Ok(0) => vec![("plus 1", "1".to_owned())],
        Ok(n) => vec![("plus 1", (n + 1).to_string()), ("to 0", "0".to_owned())],
        Err(_) => Vec::new(),
    }
}

#[test]
fn instructions_are_changed_one_at_a_time() {
    let text = ".version 7.1\n.visible .entry a(\n)\n{\n\t.reg .f32 %f<9>;\n\t.loc\t2 7 1\n\
                \tmov.f32 \t%f1, 0f3F800000;\n\tmov.f32 \t%f2, 0f00000000;\n\
                \tsub.rn.f32 \t%f3, %f1, %f2;\n\t@%p1 bra \t$L;\n\n$L:\n\tst.global.f32 \t[%rd1], %f3;\n\
                \tcp.async.wait_group 1;\n\tmma.x {%f1,%f2}, {%r1,%r2}, {%r3,%r4}, {%f1,%f2};\n\
                \tsetp.lt.s32 %p1, %r1, 5;\n\tret;\n\n}\n\n.visible .entry b()\n{\n\tret;\n}\n\
                \t.file\t1 \"a.cu\"\n";
    let entries = entries(text);
    assert_eq!(entries.iter().map(|e| (e.name, e.mutants().len())).collect::<Vec<_>>(), [("a", 19), ("b", 0)]);
    let mutants = entries[0].mutants();
    let changed = |n: usize| (mutants[n].change.as_str(), mutants[n].changed.as_str());
    assert_eq!(changed(0), ("operand 1 negated", "mov.f32 %f1, 0fBF800000;"));
    assert_eq!(changed(2), ("operand 1 to 1", "mov.f32 %f2, 0f3F800000;"));
    assert_eq!(changed(3), ("to add.rn.f32", "add.rn.f32 %f3, %f1, %f2;"));
    let all: Vec<&str> = mutants.iter().map(|m| m.changed.as_str()).collect();
    for line in [
        "",
        "@!%p1 bra $L;",
        "sub.rn.f32 %f3, %f2, %f1;",
        "sub.rn.f32 %f3, %f2, %f2;",
        "st.global.f32 [%rd1+4], %f3;",
        "cp.async.wait_group 2;",
        "mma.x {%f1,%f2}, {%r1,%r2}, {%r4,%r3}, {%f1,%f2};",
        "mma.x {%f1,%f2}, {%r1,%r2}, {%r3,%r4}, {%f2,%f1};",
        "setp.ge.s32 %p1, %r1, 5;",
        "setp.le.s32 %p1, %r1, 5;",
        "setp.lt.s32 %p1, %r1, 6;",
    ] {
        assert!(all.contains(&line), "{line} is not among {all:?}");
    }
    // The result that stands before the branch is not offered behind the label.
    assert!(!all.contains(&"st.global.f32 [%rd1], %f2;"));
    let whole = entries[0].with(&mutants[3]);
    assert!(whole.contains("add.rn.f32 %f3") && whole.contains(".file") && !whole.contains("entry b"), "{whole}");
    assert_eq!((mutants[0].loc, mutants[0].instruction.as_str()), ((2, 7), "mov.f32 %f1, 0f3F800000;"));
}

#[test]
fn a_copy_for_its_original_is_no_change() {
    let text = ".visible .entry a(\n)\n{\n\tadd.rn.f32 %f9, %f8, %f8;\n\tmov.f32 %f1, %f9;\n\tmov.f32 %f2, %f9;\n\
                \tadd.rn.f32 %f9, %f1, %f1;\n\tmov.f32 %f3, %f9;\n\tret;\n}\n";
    let changed: Vec<String> = entries(text)[0].mutants().into_iter().map(|m| m.changed).collect();
    // %f1 is %f9 when %f2 is written, and no longer when %f3 is.
    assert!(!changed.contains(&"mov.f32 %f2, %f1;".to_owned()), "{changed:?}");
    assert!(changed.contains(&"mov.f32 %f3, %f2;".to_owned()), "{changed:?}");
}
