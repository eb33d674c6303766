//! The globals that a pickle may name, and what calling them gives.

use super::{Array, Heap, Node, Number, TensorView, Value};

/// A known global. Everything else is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: `(storage, offset, sizes, strides, …)`.
    Tensor,
    /// `torch._utils._rebuild_parameter`: `(tensor, …)`.
    Parameter,
    /// `torch.FloatStorage` and its like.
    Storage(Number),
    /// `torch.Size`: `(sizes,)`.
    Size,
    /// `numpy.core.multiarray._reconstruct`: an array without its state.
    Reconstruct,
    /// `numpy.core.numeric._frombuffer`, in protocol 5: `(bytes, type, shape, order)`.
    FromBuffer,
    /// `numpy.core.multiarray.scalar`: `(type, bytes)`.
    Scalar,
    /// `numpy.ndarray`, as an argument.
    NdArray,
    /// `numpy.dtype`: `(name, …)`.
    DType,
    /// `_codecs.encode`: `(text, "latin1")`, how protocol 2 writes bytes.
    Encode,
    /// `set` and `frozenset`: `(list,)`.
    Set,
}

/// NumPy's names of types.
pub const ARRAY_TYPES: [(&str, Number); 10] = [
    ("f2", Number::F16),
    ("f4", Number::F32),
    ("f8", Number::F64),
    ("u1", Number::U8),
    ("i1", Number::I8),
    ("i2", Number::I16),
    ("i4", Number::I32),
    ("i8", Number::I64),
    ("b1", Number::Bool),
    ("?", Number::Bool),
];

const STORAGES: [(&str, Number); 10] = [
    ("HalfStorage", Number::F16),
    ("BFloat16Storage", Number::BF16),
    ("FloatStorage", Number::F32),
    ("DoubleStorage", Number::F64),
    ("ByteStorage", Number::U8),
    ("CharStorage", Number::I8),
    ("ShortStorage", Number::I16),
    ("IntStorage", Number::I32),
    ("LongStorage", Number::I64),
    ("BoolStorage", Number::Bool),
];

/// The words about a global that is not known.
fn refusal(module: &str, name: &str) -> String {
    let cut = |text: &str| text.chars().take(80).collect::<String>();
    format!(
        "it wants to call `{}.{}`, which is not among the few that only describe arrays; nothing was run (a file that holds a whole module instead of its tensors must be saved again as `state_dict()`)",
        cut(module),
        cut(name)
    )
}

impl Global {
    /// The global of that name.
    ///
    /// # Errors
    /// Naming it, if it is not known.
    pub fn named(module: &str, name: &str) -> Result<Self, String> {
        let storage = |name: &str| STORAGES.iter().find(|(known, _)| *known == name).map(|(_, number)| Self::Storage(*number));
        let known = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::Tensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::Parameter),
            ("torch", "Size") => Some(Self::Size),
            ("torch" | "torch.cuda" | "torch.storage", _) => storage(name),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Some(Self::Reconstruct),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Self::Scalar),
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Self::FromBuffer),
            ("numpy", "ndarray") => Some(Self::NdArray),
            ("numpy", "dtype") => Some(Self::DType),
            ("_codecs", "encode") => Some(Self::Encode),
            ("builtins" | "__builtin__", "set" | "frozenset") => Some(Self::Set),
            _ => None,
        };
        known.ok_or_else(|| refusal(module, name))
    }

    /// What calling it with `arguments` (a tuple) gives.
    pub(super) fn call<'a>(self, heap: &mut Heap<'a>, arguments: Value) -> Result<Value, String> {
        let wrong = || format!("{self:?} is called with arguments that it does not have");
        let given = heap.list(arguments).ok_or_else(wrong)?.to_vec();
        let inner: usize = given.iter().map(|value| heap.weight(*value)).sum();
        heap.spend(given.len() + inner)?;
        let node = match (self, given.as_slice()) {
            (Self::OrderedDict, []) => Node::Dict(Vec::new()),
            (Self::OrderedDict, [pairs, ..]) => Node::Dict(pairs_of(heap, *pairs).ok_or_else(wrong)?),
            (Self::Set | Self::Size, [items, ..]) => Node::List(heap.list(*items).ok_or_else(wrong)?.to_vec()),
            (Self::Set, []) => Node::List(Vec::new()),
            (Self::Tensor, [Value::Node(storage), Value::Int(offset), sizes, strides, ..]) => {
                let (shape, strides) = (heap.sizes(*sizes).ok_or_else(wrong)?, heap.sizes(*strides).ok_or_else(wrong)?);
                let offset = usize::try_from(*offset).map_err(|_| wrong())?;
                Node::Tensor(checked(heap, TensorView { storage: *storage, offset, shape, strides })?)
            }
            (Self::Parameter, [tensor, ..]) => return Ok(*tensor),
            (Self::Reconstruct, _) => Node::Array(None),
            (Self::FromBuffer, [bytes, kind, shape, order]) => {
                let fortran = Value::Bool(heap.text(*order) == Some("F"));
                Node::Array(Some(array(heap, &[Value::None, *shape, *kind, fortran, *bytes]).ok_or_else(wrong)??))
            }
            (Self::Scalar, [kind, _]) if matches!(heap.node(*kind), Some(Node::Type { .. })) => return Ok(Value::None),
            (Self::DType, [name, ..]) => array_type(heap.text(*name).ok_or_else(wrong)?)?,
            (Self::Encode, [text, ..]) => {
                let latin: Option<Vec<u8>> = heap.text(*text).ok_or_else(wrong)?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                Node::Bytes(latin.ok_or_else(wrong)?.into())
            }
            _ => return Err(wrong()),
        };
        Ok(heap.add(node))
    }
}

fn pairs_of(heap: &Heap<'_>, pairs: Value) -> Option<Vec<(Value, Value)>> {
    let pair = |value: &Value| match heap.list(*value)? {
        [key, value] => Some((*key, *value)),
        _ => None,
    };
    heap.list(pairs)?.iter().map(pair).collect()
}

/// A tensor that lies within its storage and is not larger than it: a small file describes no large tensor.
fn checked(heap: &Heap<'_>, view: TensorView) -> Result<TensorView, String> {
    let Some(Node::Storage { count, key, .. }) = heap.node(Value::Node(view.storage)) else {
        return Err("a tensor without a storage".into());
    };
    let wrong = || {
        format!(
            "a tensor of {:?} with strides {:?} from {} on is not within its storage {key} of {count}",
            view.shape, view.strides, view.offset
        )
    };
    if view.shape.len() != view.strides.len() {
        return Err(wrong());
    }
    let size = view.shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n)).ok_or_else(wrong)?;
    let reach = |at: usize, (n, stride): (&usize, &usize)| n.saturating_sub(1).checked_mul(*stride)?.checked_add(at);
    let last = view.shape.iter().zip(&view.strides).try_fold(view.offset, reach).ok_or_else(wrong)?;
    if size > *count || (size > 0 && last >= *count) { Err(wrong()) } else { Ok(view) }
}

/// A NumPy type by its name, such as `f4` or `<f4`.
fn array_type<'a>(name: &str) -> Result<Node<'a>, String> {
    let plain = name.trim_start_matches(['<', '>', '=', '|']);
    let number = ARRAY_TYPES.iter().find(|(known, _)| *known == plain).map(|(_, number)| *number);
    let number = number.ok_or_else(|| format!("arrays of the NumPy type `{}` are not read", name.chars().take(40).collect::<String>()))?;
    Ok(Node::Type { number, big_endian: name.starts_with('>') })
}

/// Sets the state of an object: the elements of an array, the order of bytes of a type; whatever else is set (PyTorch keeps versions in
/// an attribute of its dictionaries) is not looked at.
pub(super) fn build(heap: &mut Heap<'_>, object: Value, state: Value) -> Result<(), String> {
    let inner = heap.list(state).map_or(0, |state| state.iter().map(|value| heap.weight(*value)).sum());
    heap.spend(inner)?;
    let new = match heap.node(object) {
        Some(Node::Type { number, .. }) => {
            let order = heap.list(state).and_then(|state| state.get(1)).and_then(|order| heap.text(*order));
            Node::Type { number: *number, big_endian: order == Some(">") }
        }
        Some(Node::Array(_)) => {
            Node::Array(Some(heap.list(state).and_then(|state| array(heap, state)).ok_or("an array whose state is not NumPy's")??))
        }
        Some(Node::Dict(_)) => return Ok(()),
        _ => return Err("a state is set of what has none".into()),
    };
    if let Value::Node(i) = object {
        heap.nodes[i] = new;
    }
    Ok(())
}

/// An array from its state `(version, shape, type, is Fortran, bytes)`.
fn array<'a>(heap: &Heap<'a>, state: &[Value]) -> Option<Result<Array<'a>, String>> {
    let [_, shape, kind, Value::Bool(fortran), bytes] = state else { return None };
    let (shape, Node::Type { number, big_endian }, Node::Bytes(bytes)) = (heap.sizes(*shape)?, heap.node(*kind)?, heap.node(*bytes)?)
    else {
        return None;
    };
    let want = shape.iter().try_fold(number.size(), |product, n| product.checked_mul(*n));
    if want != Some(bytes.len()) {
        return Some(Err(format!("an array of {shape:?} {number:?} has {} bytes", bytes.len())));
    }
    Some(Ok(Array { shape, number: *number, fortran: *fortran, big_endian: *big_endian, bytes: bytes.clone() }))
}
