//! A way back through our own ops alone, without candle's.
//!
//! candle's backward pass makes a tensor of zeros for every gradient and adds the gradient to it, on threads of its own: three times the
//! memory traffic. Under [`record`] the ops write down what they did instead, and [`Tape::backward`] hands gradients on as they are. The
//! bits are the same, since 0 + g is g. Between ops only the functions of this module may be used: a tensor that candle itself has
//! made from one that wants a gradient is refused, so that no gradient is cut.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Device, Result, Shape, Tensor, TensorId, bail};

use super::storage::{gradient, with};

enum Op {
    One(Box<dyn CustomOp1>),
    Two(Box<dyn CustomOp2>),
    Three(Box<dyn CustomOp3>),
    Reshape,
    Add,
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
    /// The results that want a gradient, during a backward pass.
    static GOING_BACK: RefCell<HashSet<TensorId>> = RefCell::new(HashSet::new());
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

fn recording() -> bool {
    RECORDING.with(|tape| tape.borrow().is_some())
}

/// Whether a backward pass wants the gradient of `x`.
pub fn wanted(x: &Tensor) -> bool {
    x.track_op() || GOING_BACK.with(|made| made.borrow().contains(&x.id()))
}

/// Writes down one op.
fn push(args: &[&Tensor], y: &Tensor, op: Op) -> Result<()> {
    RECORDING.with(|tape| {
        let Some(tape) = &mut *tape.borrow_mut() else { return Ok(()) };
        if args.iter().any(|x| x.track_op() && !x.is_variable()) {
            bail!("a tensor that candle made from one that wants a gradient came onto a tape");
        }
        if args.iter().any(|x| x.is_variable() || tape.made.contains(&x.id())) {
            tape.made.insert(y.id());
            tape.nodes.push(Node { args: args.iter().map(|x| (*x).clone()).collect(), y: y.clone(), op });
        }
        Ok(())
    })
}

/// The contiguous form, which under a tape every tensor has that wants a gradient.
fn plain(x: &Tensor) -> Result<Tensor> {
    let lost = |tape: &Tape| tape.made.contains(&x.id()) || x.is_variable();
    if !x.is_contiguous() && RECORDING.with(|tape| tape.borrow().as_ref().is_some_and(lost)) {
        bail!("a tensor that is not contiguous came onto a tape");
    }
    x.contiguous()
}

/// Applies an op of one tensor.
pub fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    let x = plain(x)?;
    if !recording() {
        return x.apply_op1(op);
    }
    let y = x.apply_op1_no_bwd(&op)?;
    push(&[&x], &y, Op::One(Box::new(op)))?;
    Ok(y)
}

/// Applies an op of two tensors.
pub fn apply2(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    let (a, b) = (plain(a)?, plain(b)?);
    if !recording() {
        return a.apply_op2(&b, op);
    }
    let y = a.apply_op2_no_bwd(&b, &op)?;
    push(&[&a, &b], &y, Op::Two(Box::new(op)))?;
    Ok(y)
}

/// Applies an op of three tensors.
pub fn apply3(a: &Tensor, b: &Tensor, c: &Tensor, op: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    let (a, b, c) = (plain(a)?, plain(b)?, plain(c)?);
    if !recording() {
        return a.apply_op3(&b, &c, op);
    }
    let y = a.apply_op3_no_bwd(&b, &c, &op)?;
    push(&[&a, &b, &c], &y, Op::Three(Box::new(op)))?;
    Ok(y)
}

/// The same values in another shape.
///
/// # Errors
/// If it does not hold as many.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if !recording() {
        return x.reshape(shape);
    }
    let y = plain(x)?.detach().reshape(shape)?;
    push(&[x], &y, Op::Reshape)?;
    Ok(y)
}

fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    gradient(with(a, |a| with(b, |b| Ok(super::math::map2(a, b, |a, b| a + b))))?, a)
}

/// `a + b`, of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("add: {:?} and {:?} differ", a.shape(), b.shape());
    }
    if !recording() {
        return a + b;
    }
    let y = sum(a, b)?;
    push(&[a, b], &y, Op::Add)?;
    Ok(y)
}

/// Tensors one after the other, along the last dimension or along the first.
///
/// # Errors
/// If their other dimensions differ.
pub fn join(parts: &[&Tensor], last: bool) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("join: nothing to join") };
    let dim = if last { first.rank().saturating_sub(1) } else { 0 };
    if !recording() {
        return Tensor::cat(parts, dim);
    }
    let constants: Vec<Tensor> = parts.iter().map(|part| part.detach()).collect();
    let y = Tensor::cat(&constants, dim)?.contiguous()?;
    push(parts, &y, Op::Join { last })?;
    Ok(y)
}

impl Node {
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
            (Op::Reshape, [x]) => vec![Some(dy.reshape(x.shape())?)],
            (Op::Add, _) => vec![Some(dy.clone()), Some(dy.clone())],
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
    /// The gradients of all variables, given the `loss` of one value that was made last. What the ops have kept is let go on the way.
    ///
    /// # Errors
    /// If the loss is not on the tape, or an op fails.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        if !self.made.contains(&loss.id()) || loss.elem_count() != 1 {
            bail!("the loss is not one value made on this tape");
        }
        let mut grads: HashMap<TensorId, (Tensor, Tensor)> = HashMap::new();
        grads.insert(loss.id(), (loss.clone(), Tensor::ones(loss.shape(), DType::F32, &Device::Cpu)?));
        GOING_BACK.with(|made| *made.borrow_mut() = self.made);
        let result = Self::go(self.nodes, &mut grads);
        GOING_BACK.with(|made| made.borrow_mut().clear());
        result?;
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
            for (x, dx) in node.args.iter().zip(node.backward(&dy)?) {
                let Some(dx) = dx.filter(|_| wanted(x)) else { continue };
                let total = match grads.remove(&x.id()) {
                    Some((_, other)) => sum(&other, &dx)?,
                    None => dx,
                };
                grads.insert(x.id(), (x.clone(), total));
            }
        }
        Ok(())
    }
}
