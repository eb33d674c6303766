//! A way back through our own ops alone, without candle's.
//!
//! candle's backward pass makes a tensor of zeros for every gradient and adds the gradient to it, on threads of its own: three times the
//! memory traffic. Under [`record`] the ops write down what they did instead, and [`Tape::backward`] hands gradients on as they are. The
//! bits are the same, since 0 + g is g. Between ops only the functions of this module may be used: a tensor that candle itself has
//! made from one that wants a gradient is refused, so that no gradient is cut. Ops in their [composed](super::composed) form, on a GPU or
//! in `bf16`, go onto the tape as all others do.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, TensorId, Var, bail,
};

use super::composed::{self, Composed};
use super::profile::time;
use super::storage::{gradient, output, slice, with};

enum Op {
    One(Box<dyn CustomOp1>),
    Two(Box<dyn CustomOp2>),
    Three(Box<dyn CustomOp3>),
    Composed(Composed),
    Reshape,
    /// Along the last dimension, or along the first.
    Join {
        last: bool,
    },
}

struct Node {
    args: Vec<Tensor>,
    y: Tensor,
    op: Op,
}

/// What the ops did, in their order.
#[derive(Default)]
pub struct Tape {
    nodes: Vec<Node>,
    /// The results among them. Only ever asked for one id, never gone through.
    made: HashSet<TensorId>,
}

thread_local! {
    static RECORDING: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Ends a recording however its work ends.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        RECORDING.with(|tape| tape.borrow_mut().take());
    }
}

/// Runs `f`, whose ops are written down when they work on a variable or on what was made from one.
///
/// # Errors
/// Those of `f`; or if a recording is under way already.
pub fn record<R, E: From<candle_core::Error>>(f: impl FnOnce() -> std::result::Result<R, E>) -> std::result::Result<(R, Tape), E> {
    let begin = || -> Result<Ended> {
        RECORDING.with(|tape| match &mut *tape.borrow_mut() {
            Some(_) => bail!("a tape inside of a tape"),
            none => {
                *none = Some(Tape::default());
                Ok(Ended)
            }
        })
    };
    let ended = begin()?;
    let result = f()?;
    let tape = RECORDING.with(|tape| tape.borrow_mut().take()).unwrap_or_default();
    drop(ended);
    Ok((result, tape))
}

/// Whether ops on these tensors are to be written down.
fn recording(args: &[&Tensor]) -> bool {
    args.iter().any(|x| x.track_op()) && RECORDING.with(|tape| tape.borrow().is_some())
}

/// Writes down one op.
fn push(args: &[&Tensor], y: &Tensor, op: Op) -> Result<()> {
    RECORDING.with(|tape| {
        let Some(tape) = &mut *tape.borrow_mut() else { return Ok(()) };
        if args.iter().any(|x| x.track_op() && !x.is_variable() && !tape.made.contains(&x.id())) {
            bail!("a tensor that candle made from one that wants a gradient came onto a tape");
        }
        tape.made.insert(y.id());
        tape.nodes.push(Node { args: args.iter().map(|x| (*x).clone()).collect(), y: y.clone(), op });
        Ok(())
    })
}

/// What an op has made, as the result of an op of a variable that nobody else has: so candle knows, and hands on to all that is made from
/// it, that it wants a gradient, and yet does not keep what it was made from.
struct Made(Mutex<Option<(CpuStorage, Shape)>>);

impl CustomOp1 for Made {
    fn name(&self) -> &'static str {
        "made on a tape"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.0.lock().map(|mut made| made.take()) {
            Ok(Some(made)) => Ok(made),
            _ => bail!("a result was taken twice"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        bail!("what was made on a tape has its gradients from the tape")
    }
}

fn made(result: (CpuStorage, Shape)) -> Result<Tensor> {
    let mark = Var::zeros((), DType::F32, &Device::Cpu)?;
    mark.apply_op1(Made(Mutex::new(Some(result))))
}

/// The same of a tensor on any device.
struct MadeThere(Mutex<Option<Tensor>>);

impl MadeThere {
    fn take(&self) -> Result<Tensor> {
        match self.0.lock().map(|mut made| made.take()) {
            Ok(Some(made)) => Ok(made),
            _ => bail!("a result was taken twice"),
        }
    }
}

impl CustomOp1 for MadeThere {
    fn name(&self) -> &'static str {
        "made on a tape"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        composed::copied(&self.take()?, composed::on_cpu)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        composed::copied(&self.take()?, composed::on_cuda)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        bail!("what was made on a tape has its gradients from the tape")
    }
}

/// Puts an op whose result is there already onto the tape, or into candle's graph if nothing is written down.
///
/// # Errors
/// If the op takes more than three tensors, or a tensor that candle made came onto a tape.
pub fn apply_composed(args: &[&Tensor], op: Composed) -> Result<Tensor> {
    if recording(args) {
        let result = op.take()?;
        let mark = Var::zeros((), DType::F32, result.device())?;
        let y = mark.apply_op1(MadeThere(Mutex::new(Some(result))))?;
        push(args, &y, Op::Composed(op))?;
        return Ok(y);
    }
    match args {
        [x] => x.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{}: an op of {} tensors", op.name(), args.len()),
    }
}

/// Calls `f` with the storage of a tensor on the CPU.
fn stored<R>(x: &Tensor, f: impl FnOnce(&CpuStorage, &Layout) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(storage, layout),
        _ => bail!("these ops run on the CPU only"),
    }
}

/// Applies an op of one tensor.
pub fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    let x = x.contiguous()?;
    if !recording(&[&x]) {
        return x.apply_op1(op);
    }
    let y = made(time("forward", op.name(), || stored(&x, |s, l| op.cpu_fwd(s, l)))?)?;
    push(&[&x], &y, Op::One(Box::new(op)))?;
    Ok(y)
}

/// Applies an op of two tensors.
pub fn apply2(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    if !recording(&[&a, &b]) {
        return a.apply_op2(&b, op);
    }
    let forward = || stored(&a, |sa, la| stored(&b, |sb, lb| op.cpu_fwd(sa, la, sb, lb)));
    let y = made(time("forward", op.name(), forward)?)?;
    push(&[&a, &b], &y, Op::Two(Box::new(op)))?;
    Ok(y)
}

/// Applies an op of three tensors.
pub fn apply3(a: &Tensor, b: &Tensor, c: &Tensor, op: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    let (a, b, c) = (a.contiguous()?, b.contiguous()?, c.contiguous()?);
    if !recording(&[&a, &b, &c]) {
        return a.apply_op3(&b, &c, op);
    }
    let forward = || stored(&a, |sa, la| stored(&b, |sb, lb| stored(&c, |sc, lc| op.cpu_fwd(sa, la, sb, lb, sc, lc))));
    let y = made(time("forward", op.name(), forward)?)?;
    push(&[&a, &b, &c], &y, Op::Three(Box::new(op)))?;
    Ok(y)
}

/// The same values in another shape.
///
/// # Errors
/// If it does not hold as many.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let y = x.reshape(shape.into())?;
    if recording(&[x]) {
        push(&[x], &y, Op::Reshape)?;
    }
    Ok(y)
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    super::math::map2(a, b, |a, b| a + b)
}

/// The sum of two gradients of `x`.
fn both(a: &Tensor, b: &Tensor, x: &Tensor) -> Result<Tensor> {
    if composed::wanted(a) { a + b } else { gradient(with(a, |a| with(b, |b| Ok(sum(a, b))))?, x) }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        output(sum(slice(a, la)?, slice(b, lb)?), la.shape().clone())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.clone()), Some(dy.clone())))
    }
}

/// `a + b`, of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("add: {:?} and {:?} differ", a.shape(), b.shape());
    }
    if composed::wanted(a) {
        return composed::add(a, b);
    }
    apply2(a, b, Add)
}

/// The same values in the type of `like`.
///
/// # Errors
/// Those of candle.
pub fn like(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    if x.dtype() == like.dtype() { Ok(x.clone()) } else { composed::cast(x, like.dtype()) }
}

/// Tensors one after the other, along the last dimension or along the first.
///
/// # Errors
/// If their other dimensions differ.
pub fn join(parts: &[&Tensor], last: bool) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("join: nothing to join") };
    let dim = if last { first.rank().saturating_sub(1) } else { 0 };
    let y = time("forward", "join", || Tensor::cat(parts, dim)?.contiguous())?;
    if recording(parts) {
        push(parts, &y, Op::Join { last })?;
    }
    Ok(y)
}

impl Node {
    fn name(&self) -> &'static str {
        match &self.op {
            Op::One(op) => op.name(),
            Op::Two(op) => op.name(),
            Op::Three(op) => op.name(),
            Op::Composed(op) => op.name(),
            Op::Reshape => "reshape",
            Op::Join { .. } => "join",
        }
    }

    fn backward(&self, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(match (&self.op, self.args.as_slice()) {
            (Op::One(op), [x]) => vec![op.bwd(x, &self.y, dy)?],
            (Op::Two(op), [a, b]) => {
                let (a, b) = op.bwd(a, b, &self.y, dy)?;
                vec![a, b]
            }
            (Op::Three(op), [a, b, c]) => {
                let (a, b, c) = op.bwd(a, b, c, &self.y, dy)?;
                vec![a, b, c]
            }
            (Op::Composed(op), _) => op.gradients(&self.y, dy)?,
            (Op::Reshape, [x]) => vec![Some(dy.reshape(x.shape())?)],
            (Op::Join { last }, parts) => {
                let dim = if *last { dy.rank().saturating_sub(1) } else { 0 };
                let mut from = 0;
                let mut part = |x: &Tensor| {
                    let dx = dy.narrow(dim, from, x.dim(dim)?)?.contiguous()?;
                    from += x.dim(dim)?;
                    Ok(Some(dx))
                };
                parts.iter().map(&mut part).collect::<Result<_>>()?
            }
            _ => bail!("an op on the tape has another number of tensors"),
        })
    }
}

impl Tape {
    /// How many ops were written down: what a way back goes through at most.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there was nothing to write down.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The gradients of all variables, given the `loss` of one value that was made last. What the ops have kept is let go on the way.
    ///
    /// # Errors
    /// If the loss is not on the tape, or an op fails.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        if !self.made.contains(&loss.id()) || loss.elem_count() != 1 {
            bail!("the loss is not one value made on this tape");
        }
        let mut grads: HashMap<TensorId, (Tensor, Tensor)> = HashMap::new();
        grads.insert(loss.id(), (loss.clone(), Tensor::ones(loss.shape(), loss.dtype(), loss.device())?));
        Self::go(self.nodes, &mut grads)?;
        // An empty store cannot be made from outside of candle; that of a constant is nearly so.
        let mut store = Tensor::zeros((), DType::F32, &Device::Cpu)?.backward()?;
        for (var, grad) in grads.into_values() {
            store.insert(&var, grad);
        }
        Ok(store)
    }

    fn go(mut nodes: Vec<Node>, grads: &mut HashMap<TensorId, (Tensor, Tensor)>) -> Result<()> {
        while let Some(node) = nodes.pop() {
            let Some((_, dy)) = grads.remove(&node.y.id()) else { continue };
            for (x, dx) in node.args.iter().zip(time("backward", node.name(), || node.backward(&dy))?) {
                let Some(dx) = dx.filter(|_| x.track_op()) else { continue };
                let total = match grads.remove(&x.id()) {
                    Some((_, other)) => time("backward", "sums of gradients", || both(&other, &dx, x))?,
                    None => dx,
                };
                grads.insert(x.id(), (x.clone(), total));
            }
        }
        Ok(())
    }
}
