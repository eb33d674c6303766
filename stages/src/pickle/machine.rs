//! The stack machine.

use std::collections::BTreeMap;

use super::globals::build;
use super::{Global, Heap, Node, PickleError, Value};

/// What a pickle holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Pickle<'a> {
    /// The nodes.
    pub heap: Heap<'a>,
    /// The value on top.
    pub root: Value,
    /// Bytes that it took; another pickle may follow.
    pub length: usize,
}

/// Reads the pickle that `bytes` begin with.
///
/// # Errors
/// If the bytes end early, or name an opcode or a global that is not known.
pub fn read(bytes: &[u8]) -> Result<Pickle<'_>, PickleError> {
    let mut machine =
        Machine { bytes, at: 0, heap: Heap::for_bytes(bytes.len()), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Pickle { heap: machine.heap, root, length: machine.at }),
            Err(message) => return Err(PickleError { at: start, message }),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap<'a>,
    stack: Vec<Value>,
    /// Heights of the stack where a mark stands.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
}

type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("{count} bytes are wanted, and {} are left", self.bytes.len() - self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `size` bytes.
    fn number(&mut self, size: usize) -> Step<u64> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn sized(&mut self, size: usize) -> Step<&'a [u8]> {
        let count = self.number(size)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// The rest of the line.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("a line without its end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map(|line| line.trim_end_matches('\r')).map_err(|e| e.to_string())
    }

    fn utf8(&mut self, size: usize) -> Step<&'a str> {
        // Python lets single surrogates through; no name of a tensor has one.
        std::str::from_utf8(self.sized(size)?).map_err(|e| e.to_string())
    }

    fn push(&mut self, value: Value) -> Step {
        self.stack.push(value);
        Ok(())
    }

    fn put(&mut self, node: Node<'a>) -> Step {
        let value = self.heap.add(node);
        self.push(value)
    }

    /// Nothing below the last mark is taken.
    fn pop(&mut self) -> Step<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("nothing is on the stack".into());
        }
        self.stack.pop().ok_or_else(|| "nothing is on the stack".into())
    }

    fn top(&self) -> Step<Value> {
        self.stack.last().copied().ok_or_else(|| "nothing is on the stack".into())
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("no mark is on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_n(&mut self, count: usize) -> Step<Vec<Value>> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
        items.reverse();
        Ok(items)
    }

    fn memoise(&mut self, at: u64) -> Step {
        let at = u32::try_from(at).map_err(|_| "a memo of more than 32 bits")?;
        let value = self.top()?;
        self.memo.insert(at, value);
        Ok(())
    }

    fn recall(&mut self, at: u64) -> Step {
        let found = u32::try_from(at).ok().and_then(|at| self.memo.get(&at).copied());
        self.push(found.ok_or_else(|| format!("nothing was kept under {at}"))?)
    }

    fn append(&mut self, items: Vec<Value>) -> Step {
        match self.top()? {
            Value::Node(i) => match &mut self.heap.nodes[i] {
                Node::List(list) => list.extend(items),
                _ => return Err("items are added to what is no list".into()),
            },
            _ => return Err("items are added to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Value]) -> Step {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without its value".into()) };
        match self.top()? {
            Value::Node(i) => match &mut self.heap.nodes[i] {
                Node::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
                _ => return Err("entries are added to what is no dictionary".into()),
            },
            _ => return Err("entries are added to what is no dictionary".into()),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        self.push(Value::Global(Global::named(module, name)?))
    }

    fn reduce(&mut self) -> Step {
        let arguments = self.pop()?;
        let Value::Global(function) = self.pop()? else { return Err("what is called is no global".into()) };
        let result = function.call(&mut self.heap, arguments)?;
        self.push(result)
    }

    /// `("storage", type, key, location, count)`: where PyTorch says what lies elsewhere in the file. In the legacy format a sixth item can
    /// make it a part of another storage.
    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let wrong = || "a persistent id that is no storage of PyTorch".to_owned();
        let items = self.heap.list(id).ok_or_else(wrong)?;
        let [kind, Value::Global(Global::Storage(number)), key, _, Value::Int(count), rest @ ..] = items else { return Err(wrong()) };
        if self.heap.text(*kind) != Some("storage") {
            return Err(wrong());
        }
        if rest.iter().any(|view| *view != Value::None) {
            return Err("a storage that is a part of another".into());
        }
        let key = self.heap.text(*key).filter(|key| key.len() <= 256).ok_or_else(wrong)?.to_owned();
        let count = usize::try_from(*count).map_err(|_| wrong())?;
        self.put(Node::Storage { key, number: *number, count })
    }

    fn long(&mut self, bytes: &'a [u8]) -> Step {
        if bytes.len() > 8 {
            return self.put(Node::Long(bytes));
        }
        let sign = if bytes.last().is_some_and(|byte| *byte > 0x7f) { -1i64 } else { 0 };
        self.push(Value::Int(bytes.iter().rev().fold(sign, |number, byte| number << 8 | i64::from(*byte))))
    }

    /// One instruction; at the end the result.
    fn step(&mut self) -> Step<Option<Value>> {
        match self.take(1)?[0] {
            b'.' => return self.pop().map(Some),
            // PROTO, FRAME
            0x80 => match self.take(1)?[0] {
                0..=5 => {}
                protocol => return Err(format!("protocol {protocol}; 0 to 5 are read")),
            },
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            // POP, POP_MARK, DUP
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => self.push(self.top()?)?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            // numbers
            b'K' | b'M' | b'J' | b'I' | b'L' | 0x8a | 0x8b | b'F' | b'G' => self.numbers()?,
            // texts and bytes
            b'V' | b'X' | 0x8c | 0x8d | b'S' | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => self.texts()?,
            // PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'p' => {
                let at = self.line()?.parse::<u64>().map_err(|e| e.to_string())?;
                self.memoise(at)?;
            }
            b'q' => self.number(1).and_then(|at| self.memoise(at))?,
            b'r' => self.number(4).and_then(|at| self.memoise(at))?,
            0x94 => self.memoise(self.memo.len() as u64)?,
            // GET, BINGET, LONG_BINGET
            b'g' => {
                let at = self.line()?.parse::<u64>().map_err(|e| e.to_string())?;
                self.recall(at)?;
            }
            b'h' => self.number(1).and_then(|at| self.recall(at))?,
            b'j' => self.number(4).and_then(|at| self.recall(at))?,
            // GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |value| self.heap.text(value).map(str::to_owned).ok_or("a global whose name is no text");
                let (module, name) = (text(module)?, text(name)?);
                self.global(&module, &name)?;
            }
            b'R' => self.reduce()?,
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                build(&mut self.heap, object, state)?;
            }
            b'Q' => self.persistent()?,
            code => self.containers(code)?,
        }
        Ok(None)
    }

    /// The instruction before `at` about a number.
    fn numbers(&mut self) -> Step {
        let wrong = |text: &str| format!("`{}` is no number", text.chars().take(40).collect::<String>());
        match self.bytes[self.at - 1] {
            b'K' => self.number(1).and_then(|n| self.push(Value::Int(n as i64))),
            b'M' => self.number(2).and_then(|n| self.push(Value::Int(n as i64))),
            b'J' => self.number(4).and_then(|n| self.push(Value::Int((n as u32 as i32).into()))),
            0x8a => self.sized(1).and_then(|bytes| self.long(bytes)),
            0x8b => self.sized(4).and_then(|bytes| self.long(bytes)),
            b'G' => self.take(8).and_then(|bytes| {
                let bits = bytes.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
                self.push(Value::Float(f64::from_bits(bits)))
            }),
            b'F' => self.line().and_then(|text| self.push(Value::Float(text.parse().map_err(|_| wrong(text))?))),
            // `I01` and `I00` are True and False.
            _ => match self.line()? {
                "01" => self.push(Value::Bool(true)),
                "00" => self.push(Value::Bool(false)),
                text => self.push(Value::Int(text.trim_end_matches('L').parse().map_err(|_| wrong(text))?)),
            },
        }
    }

    /// The instruction before `at` about a text or bytes.
    fn texts(&mut self) -> Step {
        let node = match self.bytes[self.at - 1] {
            b'X' => Node::Text(self.utf8(4)?.into()),
            0x8c => Node::Text(self.utf8(1)?.into()),
            0x8d => Node::Text(self.utf8(8)?.into()),
            b'V' => {
                let line = self.line()?;
                if line.contains('\\') {
                    return Err("an escape in a text of protocol 0".into());
                }
                Node::Text(line.into())
            }
            // STRING: quoted.
            b'S' => {
                let line = self.line()?;
                let plain = ['\'', '"'].into_iter().find_map(|quote| line.strip_prefix(quote)?.strip_suffix(quote));
                match plain.filter(|text| !text.contains('\\')) {
                    Some(text) => Node::Bytes(text.as_bytes().into()),
                    None => return Err("an escape in a text of protocol 0, or one without quotes".into()),
                }
            }
            b'U' | b'C' => Node::Bytes(self.sized(1)?.into()),
            b'T' | b'B' => Node::Bytes(self.sized(4)?.into()),
            _ => Node::Bytes(self.sized(8)?.into()),
        };
        self.put(node)
    }

    fn containers(&mut self, code: u8) -> Step {
        match code {
            b']' | b')' | 0x8f => self.put(Node::List(Vec::new())),
            b'}' => self.put(Node::Dict(Vec::new())),
            // APPEND, APPENDS and ADDITEMS
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' | 0x90 => self.pop_to_mark().and_then(|items| self.append(items)),
            // LIST, TUPLE, FROZENSET
            b'l' | b't' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.put(Node::List(items))
            }
            // TUPLE1 to TUPLE3
            0x85..=0x87 => {
                let items = self.pop_n(usize::from(code - 0x84))?;
                self.put(Node::List(items))
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.put(Node::Dict(Vec::new()))?;
                self.set(&items)
            }
            b's' => self.pop_n(2).and_then(|pair| self.set(&pair)),
            b'u' => self.pop_to_mark().and_then(|items| self.set(&items)),
            _ => Err(format!("the instruction 0x{code:02x} is not one that files of weights have")),
        }
    }
}
