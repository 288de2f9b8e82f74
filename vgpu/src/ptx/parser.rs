//! Tokens to a syntax tree.

use super::lexer::{Spanned, Token, tokenize};
use super::{
    Function, Init, Instruction, Loc, Operand, Space, Statement, SyntaxError, Type, Unit, Variable,
};

type Result<T> = std::result::Result<T, SyntaxError>;

/// Parses a whole translation unit.
pub(crate) fn parse(text: &str) -> Result<Unit<'_>> {
    let mut parser = Parser { tokens: tokenize(text)?, at: 0 };
    let mut unit = Unit::default();
    while parser.peek() != Token::End {
        parser.top_level(&mut unit)?;
    }
    if unit.version == 0 {
        return Err(SyntaxError::new(1, "no .version directive: this is not PTX"));
    }
    Ok(unit)
}

struct Parser<'a> {
    tokens: Vec<Spanned<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens[self.at].0
    }

    fn peek_second(&self) -> Token<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    fn fail<T>(&self, expected: &str) -> Result<T> {
        Err(SyntaxError::new(
            self.line(),
            format!("expected {expected}, found {}", self.peek().show()),
        ))
    }

    fn eat(&mut self, c: u8) -> bool {
        let found = self.peek() == Token::Punct(c);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, c: u8) -> Result<()> {
        if self.eat(c) { Ok(()) } else { self.fail(&format!("'{}'", c as char)) }
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.peek() {
            Token::Word(w) => {
                self.at += 1;
                Ok(w)
            }
            _ => self.fail(what),
        }
    }

    fn int(&mut self) -> Result<i64> {
        let negative = self.eat(b'-');
        match self.peek() {
            Token::Int(i) => {
                self.at += 1;
                Ok(if negative { (i as i64).wrapping_neg() } else { i as i64 })
            }
            _ => self.fail("an integer"),
        }
    }

    fn small(&mut self) -> Result<u32> {
        let line = self.line();
        let value = self.int()?;
        u32::try_from(value).map_err(|_| SyntaxError::new(line, format!("{value} is out of range")))
    }

    /// Skips to just past the next `;`.
    fn skip_statement(&mut self) -> Result<()> {
        while !self.eat(b';') {
            if self.next() == Token::End {
                return self.fail("';'");
            }
        }
        Ok(())
    }

    fn top_level(&mut self, unit: &mut Unit<'a>) -> Result<()> {
        match self.word("a directive")? {
            ".version" => {
                unit.version = match self.next() {
                    Token::F64(bits) => (f64::from_bits(bits) * 10.0).round() as u32,
                    Token::Int(i) => (i as u32).saturating_mul(10),
                    _ => return self.fail("a version number"),
                };
            }
            ".target" => {
                unit.target = self.word("a target")?;
                while self.eat(b',') {
                    self.word("a target option")?;
                }
            }
            ".address_size" => {
                let line = self.line();
                if self.int()? != 64 {
                    return Err(SyntaxError::new(line, "only 64-bit addresses are supported"));
                }
            }
            ".file" => {
                let index = self.small()?;
                match self.next() {
                    Token::Str(path) => unit.files.push((index, path)),
                    _ => return self.fail("a file name"),
                }
                while self.eat(b',') {
                    self.int()?;
                }
            }
            ".section" => self.skip_section()?,
            ".pragma" => self.skip_statement()?,
            ".extern" | ".visible" | ".weak" | ".common" | ".entry" | ".func" | ".global"
            | ".const" | ".shared" | ".local" => {
                self.at -= 1;
                self.linkage(unit)?;
            }
            other => {
                self.at -= 1;
                return Err(SyntaxError::new(
                    self.line(),
                    format!("directive '{other}' is not supported here"),
                ));
            }
        }
        Ok(())
    }

    fn skip_section(&mut self) -> Result<()> {
        self.word("a section name")?;
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Token::Punct(b'{') => depth += 1,
                Token::Punct(b'}') => depth -= 1,
                Token::End => return self.fail("'}'"),
                _ => {}
            }
        }
        Ok(())
    }

    fn linkage(&mut self, unit: &mut Unit<'a>) -> Result<()> {
        let mut is_extern = false;
        loop {
            match self.peek() {
                Token::Word(w @ (".extern" | ".visible" | ".weak" | ".common")) => {
                    is_extern |= w == ".extern";
                    self.at += 1;
                }
                Token::Word(".func") => {
                    self.at += 1;
                    let function = self.function(false)?;
                    unit.functions.push(function);
                    return Ok(());
                }
                Token::Word(".entry") => {
                    self.at += 1;
                    let function = self.function(true)?;
                    unit.functions.push(function);
                    return Ok(());
                }
                _ => {
                    let variables = self.variables(is_extern)?;
                    unit.variables.extend(variables);
                    return self.expect(b';');
                }
            }
        }
    }

    fn function(&mut self, is_entry: bool) -> Result<Function<'a>> {
        let line = self.line();
        let results = if self.peek() == Token::Punct(b'(') { self.params()? } else { Vec::new() };
        let name = self.word("a function name")?;
        let params = if self.peek() == Token::Punct(b'(') { self.params()? } else { Vec::new() };
        let (mut max_threads, mut required_threads) = (None, None);
        loop {
            match self.peek() {
                Token::Word(".maxntid") => {
                    self.at += 1;
                    max_threads =
                        Some(self.shape()?.iter().fold(1u32, |p, n| p.saturating_mul(*n)));
                }
                Token::Word(".reqntid") => {
                    self.at += 1;
                    let shape = self.shape()?;
                    required_threads = Some(shape);
                    max_threads = Some(shape.iter().fold(1u32, |p, n| p.saturating_mul(*n)));
                }
                Token::Word(".minnctapersm" | ".maxnreg") => {
                    self.at += 1;
                    self.int()?;
                }
                Token::Word(".noreturn") => self.at += 1,
                Token::Word(".pragma") => self.skip_statement()?,
                _ => break,
            }
        }
        let body = if self.eat(b';') { None } else { Some(self.body()?) };
        Ok(Function { name, is_entry, results, params, body, max_threads, required_threads, line })
    }

    fn shape(&mut self) -> Result<[u32; 3]> {
        let mut shape = [1; 3];
        shape[0] = self.small()?;
        for extent in &mut shape[1..] {
            if !self.eat(b',') {
                break;
            }
            *extent = self.small()?;
        }
        Ok(shape)
    }

    fn params(&mut self) -> Result<Vec<Variable<'a>>> {
        self.expect(b'(')?;
        let mut params = Vec::new();
        while !self.eat(b')') {
            if !params.is_empty() {
                self.expect(b',')?;
            }
            params.extend(self.variable_list(false, false)?);
        }
        Ok(params)
    }

    fn variables(&mut self, is_extern: bool) -> Result<Vec<Variable<'a>>> {
        self.variable_list(is_extern, true)
    }

    /// `.space .align n .type name[size] = init {, name ...}`
    fn variable_list(&mut self, is_extern: bool, many: bool) -> Result<Vec<Variable<'a>>> {
        let line = self.line();
        let mut space = None;
        let mut align = None;
        let ty = loop {
            let word = self.word("a type")?;
            match word {
                ".global" => space = Some(Space::Global),
                ".const" => space = Some(Space::Const),
                ".shared" => space = Some(Space::Shared),
                ".local" => space = Some(Space::Local),
                ".param" | ".reg" => space = Some(Space::Param),
                ".align" => {
                    let value = self.small()? as usize;
                    if !value.is_power_of_two() || value > 1 << 16 {
                        return Err(SyntaxError::new(
                            line,
                            format!("alignment {value} is not a small power of two"),
                        ));
                    }
                    align = Some(value);
                }
                // Parameter attributes: what the pointer points to. Not needed.
                ".ptr" => {}
                _ => match Type::parse(word.trim_start_matches('.')) {
                    Some(ty) if word.starts_with('.') => break ty,
                    _ => {
                        return Err(SyntaxError::new(
                            line,
                            format!("'{word}' is not supported in a declaration"),
                        ));
                    }
                },
            }
        };
        // `.param .u64 .ptr .global .align 1 name`
        while let Token::Word(
            w @ (".ptr" | ".global" | ".const" | ".shared" | ".local" | ".align"),
        ) = self.peek()
        {
            self.at += 1;
            if w == ".align" {
                self.small()?;
            }
        }
        let Some(space) = space else {
            return Err(SyntaxError::new(line, "declaration without a state space"));
        };
        let mut variables = Vec::new();
        loop {
            let name = self.word("a variable name")?;
            let mut count = 1usize;
            let mut is_unsized = false;
            while self.eat(b'[') {
                if self.eat(b']') {
                    is_unsized = true;
                    continue;
                }
                count = count.saturating_mul(self.small()? as usize);
                self.expect(b']')?;
            }
            let init = if self.eat(b'=') { self.initializer()? } else { Vec::new() };
            if is_unsized {
                count = init.len();
            }
            let size = ty.size().saturating_mul(count);
            if size > 1 << 30 {
                return Err(SyntaxError::new(line, format!("'{name}' is larger than 1 GiB")));
            }
            if init.len() > count {
                return Err(SyntaxError::new(
                    line,
                    format!("'{name}' has more initialisers than elements"),
                ));
            }
            let align = align.unwrap_or(ty.size().max(1));
            is_unsized &= size == 0;
            variables.push(Variable {
                space,
                name,
                ty,
                size,
                align,
                init,
                is_extern,
                is_unsized,
                line,
            });
            if !(many && self.eat(b',')) {
                return Ok(variables);
            }
        }
    }

    fn initializer(&mut self) -> Result<Vec<Init<'a>>> {
        let mut values = Vec::new();
        if !self.eat(b'{') {
            values.push(self.init_value()?);
            return Ok(values);
        }
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Token::Punct(b'{') => {
                    self.at += 1;
                    depth += 1;
                }
                Token::Punct(b'}') => {
                    self.at += 1;
                    depth -= 1;
                }
                Token::Punct(b',') => self.at += 1,
                _ => values.push(self.init_value()?),
            }
        }
        Ok(values)
    }

    fn init_value(&mut self) -> Result<Init<'a>> {
        let negative = self.eat(b'-');
        match self.next() {
            Token::Int(i) => Ok(Init::Bits(if negative { i.wrapping_neg() } else { i })),
            Token::F32(bits) => Ok(Init::Bits(bits as u64)),
            Token::F64(bits) => {
                let value = f64::from_bits(bits);
                Ok(Init::Float(if negative { -value } else { value }))
            }
            Token::Word(name) if !negative => {
                let name = if name == "generic" {
                    self.expect(b'(')?;
                    let inner = self.word("a variable name")?;
                    self.expect(b')')?;
                    inner
                } else {
                    name
                };
                let offset = if self.eat(b'+') { self.int()? } else { 0 };
                Ok(Init::Symbol(name, offset))
            }
            _ => {
                self.at -= 1;
                self.fail("an initial value")
            }
        }
    }

    fn body(&mut self) -> Result<Vec<Statement<'a>>> {
        self.expect(b'{')?;
        let mut statements = Vec::new();
        let mut depth = 1;
        while depth > 0 {
            let line = self.line();
            match self.peek() {
                Token::Punct(b'{') => {
                    self.at += 1;
                    depth += 1;
                    statements.push(Statement::Open);
                }
                Token::Punct(b'}') => {
                    self.at += 1;
                    depth -= 1;
                    if depth > 0 {
                        statements.push(Statement::Close);
                    }
                }
                Token::Punct(b';') => self.at += 1,
                Token::Word(label) if self.peek_second() == Token::Punct(b':') => {
                    self.at += 2;
                    if self.peek() == Token::Word(".branchtargets") {
                        self.at += 1;
                        let mut targets = vec![self.word("a label")?];
                        while self.eat(b',') {
                            targets.push(self.word("a label")?);
                        }
                        self.expect(b';')?;
                        statements.push(Statement::BranchTargets { label, targets });
                    } else {
                        statements.push(Statement::Label(label, line));
                    }
                }
                Token::Word(".loc") => {
                    self.at += 1;
                    statements.push(Statement::Loc(self.loc()?));
                }
                Token::Word(".pragma") => self.skip_statement()?,
                Token::Word(".reg") => {
                    self.at += 1;
                    self.registers(&mut statements)?;
                }
                Token::Word(".local" | ".shared" | ".param" | ".global" | ".const") => {
                    let variables = self.variables(false)?;
                    self.expect(b';')?;
                    statements.extend(variables.into_iter().map(Statement::Variable));
                }
                Token::Word(w) if w.starts_with('.') => {
                    return Err(SyntaxError::new(
                        line,
                        format!("directive '{w}' is not supported in a body"),
                    ));
                }
                Token::Word(_) | Token::Punct(b'@') => {
                    let instruction = self.instruction()?;
                    statements.push(Statement::Instruction(instruction));
                }
                _ => return self.fail("an instruction"),
            }
        }
        Ok(statements)
    }

    fn loc(&mut self) -> Result<Loc> {
        let (file, line) = (self.small()?, self.small()?);
        self.int()?;
        let mut inlined_at = None;
        while self.eat(b',') {
            match self.word("a .loc attribute")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.eat(b'+') {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    inlined_at = Some((self.small()?, self.small()?));
                    self.int()?;
                }
                _ => {
                    self.at -= 1;
                    return self.fail("function_name or inlined_at");
                }
            }
        }
        Ok(Loc { file, line, inlined_at })
    }

    fn registers(&mut self, statements: &mut Vec<Statement<'a>>) -> Result<()> {
        let line = self.line();
        let word = self.word("a type")?;
        let ty = word.strip_prefix('.').and_then(Type::parse);
        let Some(ty) = ty else {
            return Err(SyntaxError::new(
                line,
                format!("registers of type '{word}' are not supported"),
            ));
        };
        loop {
            let name = self.word("a register name")?;
            let count = if self.eat(b'<') {
                let count = self.small()?;
                self.expect(b'>')?;
                if count > 1 << 20 {
                    return Err(SyntaxError::new(line, format!("{count} registers are too many")));
                }
                Some(count)
            } else {
                None
            };
            statements.push(Statement::Register { name, ty, count, line });
            if !self.eat(b',') {
                return self.expect(b';');
            }
        }
    }

    fn instruction(&mut self) -> Result<Instruction<'a>> {
        let guard = if self.eat(b'@') {
            let negated = self.eat(b'!');
            Some((self.word("a predicate")?, negated))
        } else {
            None
        };
        let line = self.line();
        let opcode = self.word("an opcode")?;
        let mut operands = Vec::new();
        while !self.eat(b';') {
            if !operands.is_empty() {
                self.expect(b',')?;
            }
            operands.push(self.operand(0)?);
        }
        Ok(Instruction { guard, opcode, operands, line })
    }

    fn operand(&mut self, depth: u32) -> Result<Operand<'a>> {
        if depth > 3 {
            return self.fail("a simpler operand");
        }
        let operand = match self.next() {
            Token::Word(name) => Operand::Name(name),
            Token::Int(i) => Operand::Int(i as i64),
            Token::F32(bits) => Operand::F32(bits),
            Token::F64(bits) => Operand::F64(bits),
            Token::Punct(b'-') => match self.next() {
                Token::Int(i) => Operand::Int((i as i64).wrapping_neg()),
                Token::F32(bits) => Operand::F32(bits ^ 1 << 31),
                Token::F64(bits) => Operand::F64(bits ^ 1 << 63),
                _ => {
                    self.at -= 1;
                    return self.fail("a number");
                }
            },
            Token::Punct(b'!') => Operand::Not(self.word("a predicate")?),
            Token::Punct(b'{') => Operand::Vector(self.operand_list(b'}', depth)?),
            Token::Punct(b'(') => Operand::List(self.operand_list(b')', depth)?),
            Token::Punct(b'[') => {
                let (base, mut offset) = match self.peek() {
                    Token::Word(w) => {
                        self.at += 1;
                        (Some(w), 0)
                    }
                    _ => (None, self.int()?),
                };
                if self.eat(b'+') || self.peek() == Token::Punct(b'-') {
                    offset = self.int()?;
                }
                let mut more = 0;
                while self.eat(b',') {
                    self.operand(depth + 1)?;
                    more += 1;
                }
                self.expect(b']')?;
                Operand::Memory { base, offset, more }
            }
            _ => {
                self.at = self.at.saturating_sub(1);
                return self.fail("an operand");
            }
        };
        if self.eat(b'|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new((operand, second))));
        }
        Ok(operand)
    }

    fn operand_list(&mut self, close: u8, depth: u32) -> Result<Vec<Operand<'a>>> {
        let mut list = Vec::new();
        while !self.eat(close) {
            if !list.is_empty() {
                self.expect(b',')?;
            }
            list.push(self.operand(depth + 1)?);
        }
        Ok(list)
    }
}
