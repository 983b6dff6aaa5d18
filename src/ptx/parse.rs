//! Tokens to tree. NVRTC writes a narrow, regular dialect; whatever lies outside of it is an error with its line.

use std::collections::HashMap;

use super::ast::{Class, Operand, Param, Reg, Source, Space, Statement, Text, Variable};
use super::error::{Error, Result};
use super::lex::{Token, tokens};

/// Names declared by `.reg`: a single one, or `%r<n>` as a stem with a first number and a count.
#[derive(Default)]
struct Scope<'a> {
    single: HashMap<&'a str, Reg>,
    ranges: HashMap<&'a str, (Class, u32, u32)>,
}

struct Parser<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
    loc: (u32, u32),
    scopes: Vec<Scope<'a>>,
    /// Brackets open in the operand: a list inside of an address or the like is none of PTX.
    depth: u32,
    text: Text<'a>,
}

/// Parses a whole PTX text.
pub(super) fn parse(text: &str) -> Result<Text<'_>> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0, loc: (0, 0), scopes: Vec::new(), depth: 0, text: Text::default() };
    while let Some(token) = parser.peek().cloned() {
        parser.directive(token)?;
    }
    if parser.text.version.is_empty() {
        return Err(Error::syntax(1, "no .version: this is not PTX"));
    }
    Ok(parser.text)
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|t| &t.0)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.1)
    }

    fn next(&mut self) -> Result<Token<'a>> {
        let token = self.peek().cloned().ok_or_else(|| Error::syntax(self.line(), "the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn wrong<T>(&self, wanted: &str) -> Result<T> {
        let got = self.peek().map_or("the end".to_owned(), |t| format!("{t:?}"));
        Err(Error::syntax(self.line(), format!("expected {wanted}, got {got}")))
    }

    fn eat(&mut self, mark: char) -> bool {
        let hit = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(hit);
        hit
    }

    fn want(&mut self, mark: char) -> Result<()> {
        if self.eat(mark) { Ok(()) } else { self.wrong(&format!("`{mark}`")) }
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let hit = self.peek() == Some(&Token::Word(word));
        self.at += usize::from(hit);
        hit
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(&Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.wrong("a name"),
        }
    }

    fn int(&mut self) -> Result<u64> {
        let negative = self.eat('-');
        match self.peek() {
            Some(&Token::Int(value)) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.wrong("an integer"),
        }
    }

    fn small(&mut self) -> Result<u32> {
        let line = self.line();
        u32::try_from(self.int()?).map_err(|_| Error::syntax(line, "number out of range"))
    }

    /// A statement at the level of the module.
    fn directive(&mut self, token: Token<'a>) -> Result<()> {
        let Token::Word(word) = token else { return self.wrong("a directive") };
        self.at += 1;
        match word {
            ".version" => self.text.version = self.word()?,
            ".target" => {
                self.text.target = self.word()?;
                while self.eat(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.int()? != 64 {
                    return Err(Error::unsupported(self.line(), "only 64-bit addresses"));
                }
            }
            ".visible" | ".weak" => {}
            ".file" => {
                let number = self.small()?;
                if let Token::Text(name) = self.next()? {
                    self.text.files.insert(number, name);
                }
                while self.eat(',') {
                    self.int()?;
                }
            }
            // Debug sections say nothing about execution.
            ".section" => self.skip_section()?,
            ".entry" => self.entry()?,
            ".extern" | ".global" | ".const" | ".shared" => {
                self.at -= 1;
                let variable = self.variable()?;
                self.text.variables.push(variable);
            }
            ".func" => {
                return Err(Error::unsupported(self.line(), "device functions (.func): inline them (__forceinline__)"));
            }
            _ => return Err(Error::unsupported(self.line(), format!("directive `{word}`"))),
        }
        Ok(())
    }

    fn skip_section(&mut self) -> Result<()> {
        self.word()?;
        self.want('{')?;
        while !self.eat('}') {
            self.next()?;
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<()> {
        let line = self.line();
        let name = self.word()?;
        let mut kernel = Source {
            name,
            line,
            params: Vec::new(),
            variables: Vec::new(),
            statements: Vec::new(),
            labels: HashMap::new(),
            registers: [0; 3],
            max_threads: None,
            required_threads: None,
        };
        self.entry_parts(&mut kernel).map_err(|e| e.in_kernel(name))?;
        self.text.kernels.push(kernel);
        Ok(())
    }

    fn entry_parts(&mut self, kernel: &mut Source<'a>) -> Result<()> {
        if self.eat('(') {
            while !self.eat(')') {
                self.param(kernel)?;
                self.eat(',');
            }
        }
        loop {
            if self.eat_word(".maxntid") {
                kernel.max_threads = Some(self.triple()?);
            } else if self.eat_word(".reqntid") {
                kernel.required_threads = Some(self.triple()?);
            } else if self.eat_word(".minnctapersm") || self.eat_word(".maxnreg") || self.eat_word(".maxnctapersm") {
                // Hints to ptxas: they change no result.
                self.int()?;
            } else {
                break;
            }
        }
        self.loc = (0, 0);
        self.want('{')?;
        self.body(kernel)
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut out = [self.small()?, 1, 1];
        for slot in out.iter_mut().skip(1) {
            if self.eat(',') {
                *slot = self.small()?;
            }
        }
        Ok(out)
    }

    fn param(&mut self, kernel: &mut Source<'a>) -> Result<()> {
        if !self.eat_word(".param") {
            return self.wrong("`.param`");
        }
        let mut align = None;
        let mut ty = self.word()?;
        loop {
            match ty {
                ".align" => align = Some(self.small()?),
                // `.ptr` attributes describe what a pointer points to.
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                _ => break,
            }
            ty = self.word()?;
        }
        let size = type_bytes(ty).ok_or_else(|| Error::unsupported(self.line(), format!("parameter type `{ty}`")))?;
        // Attributes may also follow the type.
        while self.eat_word(".ptr") || self.eat_word(".global") {}
        let mut align_of_pointee = false;
        if self.eat_word(".align") {
            self.small()?;
            align_of_pointee = true;
        }
        let name = self.word()?.to_owned();
        let count = if self.eat('[') {
            let n = self.small()?;
            self.want(']')?;
            n
        } else {
            1
        };
        let align = if align_of_pointee { size } else { align.unwrap_or(size).max(1) };
        let end = kernel.params.last().map_or(0, |p| p.offset + p.bytes);
        let bytes = size.checked_mul(count).filter(|&b| b <= 4096);
        let bytes = bytes.ok_or_else(|| Error::syntax(self.line(), "parameter too large"))?;
        if !align.is_power_of_two() || align > 256 {
            return Err(Error::syntax(self.line(), "bad alignment"));
        }
        let float = matches!(ty, ".f32" | ".f64");
        kernel.params.push(Param { name, bytes, align, offset: end.next_multiple_of(align), float });
        Ok(())
    }

    fn variable(&mut self) -> Result<Variable> {
        let line = self.line();
        let (mut space, mut align, mut dynamic) = (None, None, false);
        let size = loop {
            match self.word()? {
                ".extern" => dynamic = true,
                ".visible" | ".weak" => {}
                ".shared" => space = Some(Space::Shared),
                ".local" => space = Some(Space::Local),
                ".const" => space = Some(Space::Const),
                ".global" => space = Some(Space::Global),
                ".align" => align = Some(self.small()?),
                ty => break type_bytes(ty).ok_or_else(|| Error::unsupported(line, format!("variable of `{ty}`")))?,
            }
        };
        let name = self.word()?.to_owned();
        let mut count = 1u64;
        while self.eat('[') {
            count = if self.peek() == Some(&Token::Mark(']')) { 0 } else { count.saturating_mul(self.int()?) };
            self.want(']')?;
        }
        let bytes = count.saturating_mul(u64::from(size));
        let mut init = Vec::new();
        if self.eat('=') {
            self.initialiser(size, &mut init)?;
        }
        self.want(';')?;
        let Some(space) = space else { return Err(Error::syntax(line, "variable without a space")) };
        let align = align.unwrap_or(size).max(1);
        if !align.is_power_of_two() || align > 4096 || bytes > 1 << 24 || init.len() as u64 > bytes {
            return Err(Error::syntax(line, format!("variable {name}: bad alignment or size")));
        }
        if !init.is_empty() {
            init.resize(bytes as usize, 0);
        }
        if dynamic && (space != Space::Shared || bytes != 0) {
            return Err(Error::unsupported(line, format!("extern variable {name}")));
        }
        Ok(Variable { name, space, align, bytes, dynamic, init })
    }

    fn initialiser(&mut self, size: u32, out: &mut Vec<u8>) -> Result<()> {
        let list = self.eat('{');
        loop {
            let bits = match self.peek() {
                Some(&Token::Float(bits)) => {
                    self.at += 1;
                    u64::from(bits)
                }
                Some(&Token::Double(bits)) => {
                    self.at += 1;
                    bits
                }
                _ => self.int()?,
            };
            out.extend_from_slice(&bits.to_le_bytes()[..size as usize]);
            if !list || !self.eat(',') {
                break;
            }
        }
        if list { self.want('}') } else { Ok(()) }
    }

    /// The statements up to the closing brace, nested braces included: they only open a scope for register names.
    fn body(&mut self, kernel: &mut Source<'a>) -> Result<()> {
        self.scopes = vec![Scope::default()];
        while !self.scopes.is_empty() {
            match self.next()? {
                Token::Mark('{') => self.scopes.push(Scope::default()),
                Token::Mark('}') => {
                    self.scopes.pop();
                }
                Token::Mark(';') => {}
                Token::Mark('@') => self.instruction(kernel, true)?,
                Token::Word(".reg") => self.registers(kernel)?,
                Token::Word(".loc") => self.location()?,
                Token::Word(".shared" | ".local" | ".const" | ".global") => {
                    self.at -= 1;
                    let variable = self.variable()?;
                    kernel.variables.push(variable);
                }
                // The text of pragmas is advice to ptxas (unrolling).
                Token::Word(".pragma") => {
                    self.next()?;
                }
                Token::Word(word) if word.starts_with('.') => {
                    return Err(Error::unsupported(self.line(), format!("directive `{word}`")));
                }
                Token::Word(label) if self.peek() == Some(&Token::Mark(':')) => {
                    self.at += 1;
                    if kernel.labels.insert(label, kernel.statements.len()).is_some() {
                        return Err(Error::syntax(self.line(), format!("label {label} stands twice")));
                    }
                }
                Token::Word(_) => {
                    self.at -= 1;
                    self.instruction(kernel, false)?;
                }
                _ => {
                    self.at -= 1;
                    return self.wrong("an instruction");
                }
            }
        }
        Ok(())
    }

    /// `.loc file line column [, function_name label, inlined_at file line column]`: the innermost place is kept.
    fn location(&mut self) -> Result<()> {
        let file = self.small()?;
        let line = self.small()?;
        self.small()?;
        // Line 0 marks code of the compiler's own: the last real line says more.
        if line > 0 {
            self.loc = (file, line);
        }
        while self.eat(',') {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.eat('+') {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    self.small()?;
                    self.small()?;
                    self.small()?;
                }
                word => return Err(Error::unsupported(self.line(), format!(".loc attribute `{word}`"))),
            }
        }
        Ok(())
    }

    fn registers(&mut self, kernel: &mut Source<'a>) -> Result<()> {
        let line = self.line();
        let ty = self.word()?;
        let class = match ty {
            ".pred" => Class::Pred,
            _ => match type_bytes(ty) {
                Some(8) => Class::Long,
                Some(_) => Class::Word,
                None => return Err(Error::unsupported(line, format!("registers of `{ty}`"))),
            },
        };
        loop {
            let name = self.word()?;
            let count = if self.eat('<') {
                let n = self.small()?;
                self.want('>')?;
                Some(n)
            } else {
                None
            };
            let next = &mut kernel.registers[class as usize];
            let first = *next;
            *next = first
                .checked_add(count.unwrap_or(1))
                .filter(|&n| n <= 1 << 20)
                .ok_or_else(|| Error::unsupported(line, "more than a million registers"))?;
            if let Some(scope) = self.scopes.last_mut() {
                match count {
                    Some(n) => drop(scope.ranges.insert(name, (class, first, n))),
                    None => drop(scope.single.insert(name, Reg { class, id: first })),
                }
            }
            if !self.eat(',') {
                break;
            }
        }
        self.want(';')
    }

    fn lookup(&self, name: &str) -> Option<Reg> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u32> = name[stem.len()..].parse().ok();
        self.scopes.iter().rev().find_map(|scope| {
            scope.single.get(name).copied().or_else(|| {
                let &(class, first, count) = scope.ranges.get(stem)?;
                number.filter(|&n| n < count).map(|n| Reg { class, id: first + n })
            })
        })
    }

    fn register(&mut self) -> Result<Reg> {
        let name = self.word()?;
        let line = self.line();
        self.lookup(name).ok_or_else(|| Error::syntax(line, format!("register {name} is not declared")))
    }

    fn instruction(&mut self, kernel: &mut Source<'a>, guarded: bool) -> Result<()> {
        let line = self.line();
        let guard = if guarded {
            let negated = self.eat('!');
            let reg = self.register()?;
            if reg.class != Class::Pred {
                return Err(Error::syntax(line, "a guard must be a predicate"));
            }
            Some((reg, negated))
        } else {
            None
        };
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.eat(';') {
            operands.push(self.operand()?);
            if !self.eat(',') {
                self.want(';')?;
                break;
            }
        }
        kernel.statements.push(Statement { guard, opcode, operands, line, loc: self.loc });
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        if self.depth > 1 {
            return self.wrong("a plain operand");
        }
        self.depth += 1;
        let operand = self.nested();
        self.depth -= 1;
        operand
    }

    fn nested(&mut self) -> Result<Operand<'a>> {
        if self.eat('{') {
            let mut list = vec![self.operand()?];
            while self.eat(',') {
                list.push(self.operand()?);
            }
            self.want('}')?;
            return Ok(Operand::Vector(list));
        }
        if self.eat('[') {
            return self.address();
        }
        if self.eat('!') {
            return Ok(Operand::Not(self.register()?));
        }
        match self.peek().cloned() {
            Some(Token::Word("_")) => {
                self.at += 1;
                Ok(Operand::Sink)
            }
            Some(Token::Word(name)) => {
                self.at += 1;
                let Some(reg) = self.lookup(name) else { return Ok(Operand::Name(name)) };
                if self.eat('|') {
                    return Ok(Operand::Pair(reg, self.register()?));
                }
                Ok(Operand::Reg(reg))
            }
            Some(Token::Float(bits)) => {
                self.at += 1;
                Ok(Operand::Float(bits))
            }
            Some(Token::Double(bits)) => {
                self.at += 1;
                Ok(Operand::Double(bits))
            }
            _ => Ok(Operand::Int(self.int()?)),
        }
    }

    fn address(&mut self) -> Result<Operand<'a>> {
        let base = self.operand()?;
        let signed = self.eat('+') || self.peek() == Some(&Token::Mark('-'));
        let offset = if signed { self.int()? as i64 } else { 0 };
        self.want(']')?;
        Ok(Operand::Address(Box::new(base), offset))
    }
}

fn type_bytes(ty: &str) -> Option<u32> {
    Some(match ty {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}
