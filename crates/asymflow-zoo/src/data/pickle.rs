//! A reader for the pickles of CIFAR, of protocols 0 to 5: dictionaries, lists, strings, numbers and numpy arrays. It calls
//! nothing that a pickle names; what a few names of numpy and of the codecs would make, it makes itself ([`call`]).
//!
//! Values are small handles into one arena, so that memory grows with the number of opcodes and the length of the
//! pickle only, whatever the references between objects, and nothing recurses.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::data::array::{Array, Dtype};

/// Most opcodes read: CIFAR-100's training file has some 250,000.
const MAX_OPCODES: usize = 1 << 20;

/// Where and why a pickle cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PickleError {
    pub offset: usize,
    pub what: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Bytes(&'a [u8]),
    Object(usize),
}

#[derive(Debug)]
enum Object<'a> {
    Sequence(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// Text or bytes that do not stand in the pickle as they are.
    Owned(Vec<u8>),
    /// Last component of a module's name, and a name in it.
    Global(Cow<'a, str>, Cow<'a, str>),
    Dtype(Option<Dtype>),
    /// A numpy array as `_frombuffer` is told of it: bytes, type, shape, order.
    Buffer(Vec<Value<'a>>),
    /// Anything made by calling something else, with the state set on it later.
    Instance(Value<'a>),
}

/// A pickle whose outermost value is a dictionary.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Vec<(Value<'a>, Value<'a>)>,
}

impl<'a> Pickle<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let mut reader = Reader {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            objects: Vec::new(),
            owned: 0,
        };
        for _ in 0..MAX_OPCODES {
            let offset = reader.at;
            let result = reader.step().map_err(|what| PickleError { offset, what })?;
            if let Some(value) = result {
                let mut objects = reader.objects;
                let outermost = if let Value::Object(id) = value { objects.get_mut(id) } else { None };
                let Some(Object::Dict(items)) = outermost else {
                    return Err(PickleError { offset, what: "the outermost value is no dictionary" });
                };
                let root = std::mem::take(items);
                return Ok(Self { objects, root });
            }
        }
        Err(PickleError { offset: reader.at, what: "too many opcodes" })
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        let is_key = |k: &Value<'a>| text(*k, &self.objects) == Some(key.as_bytes());
        self.root.iter().rfind(|(k, _)| is_key(k)).map(|(_, value)| *value)
    }

    fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        if let Object::Sequence(items) = self.object(value)? { Some(items) } else { None }
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        if let Value::Object(id) = value { self.objects.get(id) } else { None }
    }

    /// The list, or the array, of integers under `key`.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let value = self.get(key)?;
        let Some(items) = self.sequence(value) else { return self.array_of(value)?.labels().ok() };
        items.iter().map(|item| if let Value::Int(value) = item { Some(*value) } else { None }).collect()
    }

    /// The list of strings under `key`.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let items = self.sequence(self.get(key)?)?;
        let string = |item: &Value<'a>| Some(String::from_utf8_lossy(text(*item, &self.objects)?).into_owned());
        items.iter().map(string).collect()
    }

    /// The numpy array under `key`.
    pub fn array(&self, key: &str) -> Option<Array<'_>> {
        self.array_of(self.get(key)?)
    }

    fn array_of(&self, value: Value<'a>) -> Option<Array<'_>> {
        let object = self.object(value)?;
        let (bytes, dtype, shape, column_major) = if let Object::Instance(state) = object {
            // A numpy array's state: version, shape, type, whether column-major, bytes.
            let [_, shape, dtype, Value::Bool(column_major), bytes] = self.sequence(*state)? else { return None };
            (*bytes, *dtype, *shape, *column_major)
        } else {
            let Object::Buffer(arguments) = object else { return None };
            let [bytes, dtype, shape, order] = arguments[..] else { return None };
            (bytes, dtype, shape, text(order, &self.objects) == Some(b"F"))
        };
        let Object::Dtype(Some(dtype)) = self.object(dtype)? else { return None };
        let side = |side: &Value<'a>| if let Value::Int(side) = side { usize::try_from(*side).ok() } else { None };
        let shape: Vec<usize> = self.sequence(shape)?.iter().map(side).collect::<Option<_>>()?;
        Array::new(shape, *dtype, column_major, Cow::Borrowed(text(bytes, &self.objects)?))
    }
}

/// The bytes of a string.
fn text<'o>(value: Value<'o>, objects: &'o [Object<'_>]) -> Option<&'o [u8]> {
    if let Value::Bytes(bytes) = value {
        return Some(bytes);
    }
    let Value::Object(id) = value else { return None };
    if let Object::Owned(bytes) = objects.get(id)? { Some(bytes) } else { None }
}

/// Text of UTF-8 in Latin-1, which is how Python 3 writes bytes into old protocols.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// The bytes of a quoted string or of a raw line, with Python's escapes.
fn unescaped(line: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        let mut hex = |digits: usize| {
            let (code, after) = rest.split_at_checked(digits)?;
            rest = after;
            u32::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()
        };
        match escape {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'x' => out.push(u8::try_from(hex(2)?).ok()?),
            b'\\' | b'\'' | b'"' => out.push(escape),
            _ => return None,
        }
    }
    Some(out)
}

/// The text of a line of protocol 0, in UTF-8: Latin-1 with `\\u` and `\\U` escapes.
fn raw_unicode(line: &[u8]) -> Option<Vec<u8>> {
    let text: String = line.iter().map(|&byte| char::from(byte)).collect();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\\u").into_iter().chain(rest.find("\\U")).min() {
        out.push_str(rest.get(..at)?);
        let digits = if rest.get(at + 1..at + 2)? == "u" { 4 } else { 8 };
        out.push(char::from_u32(u32::from_str_radix(rest.get(at + 2..at + 2 + digits)?, 16).ok()?)?);
        rest = rest.get(at + 2 + digits..)?;
    }
    out.push_str(rest);
    Some(out.into_bytes())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Lengths of the stack at which it was marked.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    objects: Vec<Object<'a>>,
    /// Bytes in objects of their own.
    owned: usize,
}

type Step<T> = Result<T, &'static str>;

impl<'a> Reader<'a> {
    /// Reads one opcode; the outermost value at the end.
    fn step(&mut self) -> Step<Option<Value<'a>>> {
        match self.take(1)?[0] {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(*self.stack.last().ok_or("empty stack")?),
            b'q' => self.memoize(1)?,
            b'r' => self.memoize(4)?,
            b'p' => {
                let id = self.decimal()?;
                self.put(usize::try_from(id).map_err(|_| "reference to nothing")?)?;
            }
            0x94 => self.put(self.memo.len())?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'g' => {
                let id = self.decimal()?;
                self.recall_at(usize::try_from(id).map_err(|_| "reference to nothing")?)?;
            }
            // Only a view of what lies on the stack.
            0x98 => {}
            other => self.scalar(other)?,
        }
        Ok(None)
    }

    /// The opcodes of numbers and strings.
    fn scalar(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let value = self.unsigned(4)? as u32 as i32;
                self.stack.push(Value::Int(value.into()));
            }
            b'I' | b'L' => {
                let value = self.decimal_or_bool()?;
                self.stack.push(value);
            }
            0x8a => {
                let length = self.unsigned(1)?;
                self.long(length)?;
            }
            0x8b => {
                let length = self.unsigned(4)?;
                self.long(length)?;
            }
            b'F' => {
                self.line()?;
                self.stack.push(Value::None);
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::None);
            }
            b'S' => {
                let line = self.line()?;
                let quoted = line.get(1..line.len().saturating_sub(1)).unwrap_or_default();
                self.own(unescaped(quoted).ok_or("a string of no known form")?)?;
            }
            b'V' => {
                let line = self.line()?;
                self.own(raw_unicode(line).ok_or("a string of no known form")?)?;
            }
            b'U' | b'C' | 0x8c => self.string(1)?,
            b'T' | b'B' | b'X' => self.string(4)?,
            0x8d | 0x8e | 0x96 => self.string(8)?,
            other => self.build(other)?,
        }
        Ok(())
    }

    /// The opcodes that make and change objects.
    fn build(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b')' | b']' | 0x8f => self.object(Object::Sequence(Vec::new())),
            b'}' => self.object(Object::Dict(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.object(Object::Sequence(items));
            }
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.object(Object::Sequence(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.object(Object::Dict(Vec::new()));
                self.set_items(&items)?;
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            other => self.make(other)?,
        }
        Ok(())
    }

    /// The opcodes that name things and call them.
    fn make(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name);
            }
            0x93 => {
                let [module, name] = self.pop_many(2)?[..] else { return Err("empty stack") };
                let of = |value| text(value, &self.objects).map(<[u8]>::to_vec);
                let (module, name) = (of(module).unwrap_or_default(), of(name).unwrap_or_default());
                self.global(&module, &name);
            }
            b'R' | 0x81 => {
                let [function, arguments] = self.pop_many(2)?[..] else { return Err("empty stack") };
                self.call(function, arguments)?;
            }
            0x92 => {
                self.pop_many(3)?;
                self.object(Object::Instance(Value::None));
            }
            b'i' => {
                self.line()?;
                self.line()?;
                self.pop_mark()?;
                self.object(Object::Instance(Value::None));
            }
            b'o' => {
                self.pop_mark()?;
                self.object(Object::Instance(Value::None));
            }
            b'b' => {
                let state = self.pop()?;
                self.set_state(state)?;
            }
            b'P' | b'Q' => return Err("an object kept outside the pickle"),
            0x97 => return Err("a buffer kept outside the pickle"),
            _ => return Err("a byte that begins nothing in a pickle"),
        }
        Ok(())
    }

    fn global(&mut self, module: &[u8], name: &[u8]) {
        let last = module.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
        let text =
            |bytes: &[u8]| Cow::Owned(String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).trim_end().to_owned());
        self.object(Object::Global(text(last), text(name)));
    }

    /// What a call would make, for the calls by which numpy and Python write bytes and arrays; else something of no content.
    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Step<()> {
        let object = |value| if let Value::Object(id) = value { self.objects.get(id) } else { None };
        let (module, name) = if let Some(Object::Global(module, name)) = object(function) {
            (module.as_ref(), name.as_ref())
        } else {
            ("", "")
        };
        let arguments: &[Value<'a>] = if let Some(Object::Sequence(items)) = object(arguments) { items } else { &[] };
        let of = |index: usize| arguments.get(index).and_then(|value| text(*value, &self.objects));
        let made = match (module, name) {
            ("_codecs", "encode") => Object::Owned(of(0).and_then(latin1).ok_or("bytes of no known encoding")?),
            ("builtins" | "__builtin__", "bytes" | "bytearray") => {
                let bytes = of(0).unwrap_or_default();
                let encoded = if arguments.len() == 2 { latin1(bytes) } else { Some(bytes.to_vec()) };
                Object::Owned(encoded.ok_or("bytes of no known encoding")?)
            }
            ("collections", "OrderedDict") if arguments.is_empty() => Object::Dict(Vec::new()),
            ("numpy", "dtype") => Object::Dtype(of(0).and_then(|name| Dtype::parse(std::str::from_utf8(name).ok()?))),
            ("numeric", "_frombuffer") => Object::Buffer(arguments.to_vec()),
            ("multiarray", "scalar") => {
                let dtype = arguments.first().and_then(|value| object(*value));
                let (Some(Object::Dtype(Some(dtype))), Some(bytes)) = (dtype, of(1)) else {
                    return Err("a number of no known type");
                };
                let number = dtype.number(bytes);
                self.stack.push(if number.fract() == 0.0 { Value::Int(number as i64) } else { Value::None });
                return Ok(());
            }
            _ => Object::Instance(Value::None),
        };
        if let Object::Owned(bytes) = made {
            return self.own(bytes);
        }
        self.object(made);
        Ok(())
    }

    fn set_state(&mut self, state: Value<'a>) -> Step<()> {
        // A type's state: version, order of bytes, …
        let object = if let Value::Object(id) = state { self.objects.get(id) } else { None };
        let order = if let Some(Object::Sequence(items)) = object { items.get(1) } else { None };
        let is_big = order.and_then(|order| text(*order, &self.objects)) == Some(b">");
        let top = self.top()?;
        if let Object::Dtype(dtype) = top {
            dtype.iter_mut().for_each(|dtype| dtype.big_endian |= is_big);
            return Ok(());
        }
        let Object::Instance(old) = top else { return Err("state set on something that is no instance") };
        *old = state;
        Ok(())
    }

    /// Keeps bytes that do not stand in the pickle as they are: in all no more than four times its length.
    fn own(&mut self, bytes: Vec<u8>) -> Step<()> {
        self.owned = self.owned.saturating_add(bytes.len());
        if self.owned > 4 * self.bytes.len() {
            return Err("more text than the pickle has");
        }
        self.object(Object::Owned(bytes));
        Ok(())
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..length).ok_or("unexpected end")?;
        self.at += length;
        Ok(taken)
    }

    /// A line without its end.
    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("unexpected end")?;
        let line = self.take(length + 1)?;
        Ok(line.get(..length).unwrap_or_default())
    }

    fn decimal(&mut self) -> Step<i64> {
        let line = std::str::from_utf8(self.line()?).map_err(|_| "no number")?;
        line.trim_end().trim_end_matches('L').parse().map_err(|_| "no number of 64 bits")
    }

    /// Protocol 0 writes `I01` and `I00` for true and false.
    fn decimal_or_bool(&mut self) -> Step<Value<'a>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let truth = [(&b"01\n"[..], true), (b"00\n", false)].into_iter().find(|(line, _)| rest.starts_with(line));
        if let Some((_, truth)) = truth {
            self.line()?;
            return Ok(Value::Bool(truth));
        }
        self.decimal().map(Value::Int)
    }

    /// A little-endian number of up to eight bytes.
    fn unsigned(&mut self, bytes: usize) -> Step<usize> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    }

    fn integer(&mut self, bytes: usize) -> Step<()> {
        let value = self.unsigned(bytes)? as i64;
        self.stack.push(Value::Int(value));
        Ok(())
    }

    /// A little-endian two's complement number of `length` bytes.
    fn long(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Err("integer of more than 64 bits");
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let start = if negative { -1 } else { 0 };
        let value = bytes.iter().rev().fold(start, |value: i64, &byte| value << 8 | i64::from(byte));
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn string(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.unsigned(length_bytes)?;
        let bytes = self.take(length)?;
        self.stack.push(Value::Bytes(bytes));
        Ok(())
    }

    fn memoize(&mut self, id_bytes: usize) -> Step<()> {
        let id = self.unsigned(id_bytes)?;
        self.put(id)
    }

    fn put(&mut self, id: usize) -> Step<()> {
        let top = *self.stack.last().ok_or("empty stack")?;
        self.memo.insert(id, top);
        Ok(())
    }

    fn recall(&mut self, id_bytes: usize) -> Step<()> {
        let id = self.unsigned(id_bytes)?;
        self.recall_at(id)
    }

    fn recall_at(&mut self, id: usize) -> Step<()> {
        let value = *self.memo.get(&id).ok_or("reference to nothing")?;
        self.stack.push(value);
        Ok(())
    }

    fn object(&mut self, object: Object<'a>) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        self.pop_many(1)?.pop().ok_or("empty stack")
    }

    /// The last `count` values, none of them from below the last mark.
    fn pop_many(&mut self, count: usize) -> Step<Vec<Value<'a>>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err("empty stack"),
        }
    }

    /// The values since the last mark, which is taken away.
    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let start = self.marks.pop().ok_or("no mark")?;
        if start > self.stack.len() {
            return Err("empty stack");
        }
        Ok(self.stack.split_off(start))
    }

    fn top(&mut self) -> Step<&mut Object<'a>> {
        let Some(Value::Object(id)) = self.stack.last() else { return Err("no object on the stack") };
        self.objects.get_mut(*id).ok_or("no object")
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        let Object::Sequence(list) = self.top()? else { return Err("append to something that is no list") };
        list.extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Step<()> {
        let (Object::Dict(dict), (pairs, [])) = (self.top()?, items.as_chunks::<2>()) else {
            return Err("items that make no dictionary");
        };
        dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_to_one_list_are_one_list() {
        // d = {}; l = []; d['a'] = l; d['b'] = l; l.append(7) through the memo
        let bytes = b"\x80\x02}(U\x01a]q\x00U\x01bh\x00K\x07au.";
        let pickle = Pickle::read(bytes).unwrap();
        assert_eq!(pickle.integers("a"), Some(vec![7]));
        assert_eq!(pickle.integers("b"), Some(vec![7]));
        assert_eq!(pickle.integers("c"), None);
    }

    #[test]
    fn integers_of_every_width() {
        let bytes = b"\x80\x02}U\x01a](K\xffM\x00\x01J\xfe\xff\xff\xff\x8a\x02\x00\x80\x8a\x00es.";
        assert_eq!(Pickle::read(bytes).unwrap().integers("a"), Some(vec![255, 256, -2, -32768, 0]));
    }

    #[test]
    fn nests_and_bombs_are_read_in_bounds() {
        let mut deep = vec![b']'; 200_000];
        deep.extend(std::iter::repeat_n(b'a', 199_999));
        deep.push(b'.');
        assert_eq!(Pickle::read(&deep).unwrap_err().what, "the outermost value is no dictionary");
        let endless = vec![b'('; MAX_OPCODES + 1];
        assert_eq!(Pickle::read(&endless).unwrap_err(), PickleError { offset: MAX_OPCODES, what: "too many opcodes" });
        assert_eq!(Pickle::read(b"\x80\x02T\xff\xff\xff\x7f").unwrap_err().what, "unexpected end");
        assert_eq!(Pickle::read(b"(K\x01(R").unwrap_err().what, "empty stack");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pickle::read(&bytes);
        }

        #[test]
        fn arbitrary_opcodes_never_panic(ops in prop::collection::vec(prop::sample::select(
            b"(.NKMJUTBXqrhjae)]}tsucRbFGILSVdgilop012\\'\x81\x8b\x8d\x8f\x90\x91\x92\x96\x97\x98\x80\x85\x86\x87\x88\x89\x8a\x93\x94\x95\x00\x01\n".to_vec()), 0..200)) {
            if let Ok(pickle) = Pickle::read(&ops) {
                let _ = (pickle.integers("a"), pickle.strings("a"), pickle.array("a").map(|array| array.images()));
            }
        }
    }
}
