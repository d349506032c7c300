//! A reader for the pickles of CIFAR (protocols 2 to 4): dictionaries, lists, strings, integers and numpy
//! arrays as raw state. It calls nothing that a pickle names.
//!
//! Values are small handles into one arena, so that memory grows with the number of opcodes only, whatever
//! the references between objects, and nothing recurses.

use std::collections::HashMap;

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
    /// Anything made by calling something, with the state set on it later.
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
        let mut reader =
            Reader { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), objects: Vec::new() };
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
        self.root.iter().rfind(|(k, _)| *k == Value::Bytes(key.as_bytes())).map(|(_, value)| *value)
    }

    fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Object(id) = value else { return None };
        if let Object::Sequence(items) = self.objects.get(id)? { Some(items) } else { None }
    }

    /// The list of integers under `key`.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let items = self.sequence(self.get(key)?)?;
        items.iter().map(|item| if let Value::Int(value) = item { Some(*value) } else { None }).collect()
    }

    /// The list of strings under `key`.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let items = self.sequence(self.get(key)?)?;
        let string = |bytes| String::from_utf8_lossy(bytes).into_owned();
        items.iter().map(|item| if let Value::Bytes(bytes) = item { Some(string(bytes)) } else { None }).collect()
    }

    /// Rows, columns and bytes of the row-major two-dimensional numpy array of bytes under `key`.
    pub fn matrix(&self, key: &str) -> Option<(usize, usize, &'a [u8])> {
        // A numpy array's state: version, shape, dtype, whether column-major, bytes.
        let Value::Object(id) = self.get(key)? else { return None };
        let Object::Instance(state) = self.objects.get(id)? else { return None };
        let [_, shape, _, Value::Bool(false), Value::Bytes(bytes)] = self.sequence(*state)? else { return None };
        let [Value::Int(rows), Value::Int(columns)] = self.sequence(*shape)? else { return None };
        let (rows, columns) = (usize::try_from(*rows).ok()?, usize::try_from(*columns).ok()?);
        (rows.checked_mul(columns)? == bytes.len()).then_some((rows, columns, *bytes))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Lengths of the stack at which it was marked.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    objects: Vec<Object<'a>>,
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
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let value = self.unsigned(4)? as u32 as i32;
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.unsigned(1)?;
                self.long(length)?;
            }
            b'U' | b'C' | 0x8c => self.string(1)?,
            b'T' | b'B' | b'X' => self.string(4)?,
            b'q' => self.memoize(1)?,
            b'r' => self.memoize(4)?,
            0x94 => self.put(self.memo.len())?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            other => self.build(other)?,
        }
        Ok(None)
    }

    /// The opcodes that make and change objects.
    fn build(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b')' | b']' => self.object(Object::Sequence(Vec::new())),
            b'}' => self.object(Object::Dict(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.object(Object::Sequence(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.object(Object::Sequence(items));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
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
            b'c' => {
                self.line()?;
                self.line()?;
                self.object(Object::Instance(Value::None));
            }
            // A global or a call: whatever it would make is not made.
            0x93 | b'R' => {
                self.pop_many(2)?;
                self.object(Object::Instance(Value::None));
            }
            b'b' => {
                let state = self.pop()?;
                let Object::Instance(old) = self.top()? else {
                    return Err("state set on something that is no instance");
                };
                *old = state;
            }
            _ => return Err("unknown opcode"),
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..length).ok_or("unexpected end")?;
        self.at += length;
        Ok(taken)
    }

    fn line(&mut self) -> Step<()> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("unexpected end")?;
        self.take(length + 1).map(drop)
    }

    /// A little-endian number of up to four bytes.
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
            b"(.NKMJUTBXqrhjae)]}tsucRb\x80\x85\x86\x87\x88\x89\x8a\x93\x94\x95\x00\x01\n".to_vec()), 0..200)) {
            if let Ok(pickle) = Pickle::read(&ops) {
                let _ = (pickle.integers("a"), pickle.strings("a"), pickle.matrix("a"));
            }
        }
    }
}
