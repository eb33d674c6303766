//! Operations that repeat a small tensor over a large one, and the joining of channels.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use super::raw::{BLOCK, chunks, column_sums, output, slice, tensor, with};

/// `x + b`, where the shape of `b` is the last dimensions of `x`: a bias `[c]`, or a table of positions `[t, d]`.
///
/// # Errors
/// If `b` does not fit.
pub fn add_bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !x.dims().ends_with(b.dims()) || b.elem_count() == 0 {
        bail!("add_bias: {:?} is not the end of {:?}", b.dims(), x.dims());
    }
    x.contiguous()?.apply_op2(&b.contiguous()?, AddBias)
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, b) = (slice(x, lx)?.to_vec(), slice(b, lb)?);
        let block = (BLOCK / b.len()).max(1) * b.len();
        chunks(&mut y, block, |_, y| {
            for row in y.chunks_exact_mut(b.len()) {
                for (y, b) in row.iter_mut().zip(b) {
                    *y += *b;
                }
            }
        });
        output(y, lx.shape())
    }

    fn bwd(&self, _: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let db = if b.track_op() { Some(tensor(with(&grad, |g| column_sums(g, b.elem_count()))?, b.shape())?) } else { None };
        Ok((Some(grad), db))
    }
}

/// Checks that each of `vectors` is `[n, c]` for `x` `[n, .., c]`, and gives (n, values of a sample, c).
fn per_sample(name: &str, x: &Tensor, vectors: &[&Tensor]) -> Result<Samples> {
    let (n, c) = (x.dim(0)?, x.dim(D::Minus1)?);
    match vectors.iter().find(|v| v.dims() != [n, c]) {
        Some(v) => bail!("{name}: {:?} does not fit {:?}: one row of channels a sample is wanted", v.dims(), x.dims()),
        None => Ok(Samples { size: x.elem_count() / n.max(1), c }),
    }
}

#[derive(Clone, Copy)]
struct Samples {
    size: usize,
    c: usize,
}

impl Samples {
    /// For each sample, the sum over its positions of `f(position's offset, channel)`.
    fn sums(self, n: usize, f: impl Fn(usize, usize) -> f32 + Sync + Send) -> Vec<f32> {
        let mut out = vec![0.0; n * self.c];
        chunks(&mut out, self.c, |sample, out| {
            for at in (sample * self.size..(sample + 1) * self.size).step_by(self.c) {
                for (i, o) in out.iter_mut().enumerate() {
                    *o += f(at, i);
                }
            }
        });
        out
    }
}

/// `x + e`, where `e` `[n, c]` holds one vector of channels for each sample of `x` `[n, .., c]`: a time embedding.
///
/// # Errors
/// If `e` does not fit.
pub fn add_per_sample(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    let op = AddPerSample(per_sample("add_per_sample", x, &[e])?);
    x.contiguous()?.apply_op2(&e.contiguous()?, op)
}

struct AddPerSample(Samples);

impl CustomOp2 for AddPerSample {
    fn name(&self) -> &'static str {
        "add_per_sample"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, e: &CpuStorage, le: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, e, s) = (slice(x, lx)?.to_vec(), slice(e, le)?, self.0);
        chunks(&mut y, s.size, |sample, y| {
            let e = &e[sample * s.c..][..s.c];
            for row in y.chunks_exact_mut(s.c) {
                for (y, e) in row.iter_mut().zip(e) {
                    *y += *e;
                }
            }
        });
        output(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, e: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let n = x.dim(0)?;
        let de = with(&grad, |g| self.0.sums(n, |at, i| g[at + i]))?;
        Ok((Some(grad), Some(tensor(de, e.shape())?)))
    }
}

/// `x · (1 + scale) + shift` with `scale` and `shift` `[n, c]` for `x` `[n, .., c]` (FiLM, Perez et al. 2018; adaLN, Peebles and Xie 2023).
///
/// # Errors
/// If the shapes do not fit.
pub fn film(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let op = Film(per_sample("film", x, &[scale, shift])?);
    x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, op)
}

struct Film(Samples);

impl CustomOp3 for Film {
    fn name(&self) -> &'static str {
        "film"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, a, b, s) = (slice(x, lx)?.to_vec(), slice(a, la)?, slice(b, lb)?, self.0);
        chunks(&mut y, s.size, |sample, y| {
            let (a, b) = (&a[sample * s.c..][..s.c], &b[sample * s.c..][..s.c]);
            for row in y.chunks_exact_mut(s.c) {
                for ((y, a), b) in row.iter_mut().zip(a).zip(b) {
                    *y = *y * (1.0 + *a) + *b;
                }
            }
        });
        output(y, lx.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (n, s) = (x.dim(0)?, self.0);
        let mut dx = super::values(&grad)?;
        with(a, |a| {
            chunks(&mut dx, s.size, |sample, dx| {
                let a = &a[sample * s.c..][..s.c];
                for row in dx.chunks_exact_mut(s.c) {
                    for (d, a) in row.iter_mut().zip(a) {
                        *d *= 1.0 + *a;
                    }
                }
            });
        })?;
        let da = with(x, |x| with(&grad, |g| s.sums(n, |at, i| g[at + i] * x[at + i])))??;
        let db = with(&grad, |g| s.sums(n, |at, i| g[at + i]))?;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}

/// `r + gate · x` with `gate` `[n, c]` for `r` and `x` `[n, .., c]`: the gated residual of a DiT block.
///
/// # Errors
/// If the shapes do not fit.
pub fn gated_add(r: &Tensor, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if r.dims() != x.dims() {
        bail!("gated_add: {:?} does not fit {:?}", r.dims(), x.dims());
    }
    let op = GatedAdd(per_sample("gated_add", x, &[gate])?);
    r.contiguous()?.apply_op3(&x.contiguous()?, &gate.contiguous()?, op)
}

struct GatedAdd(Samples);

impl CustomOp3 for GatedAdd {
    fn name(&self) -> &'static str {
        "gated_add"
    }

    fn cpu_fwd(
        &self,
        r: &CpuStorage,
        lr: &Layout,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, x, a, s) = (slice(r, lr)?.to_vec(), slice(x, lx)?, slice(a, la)?, self.0);
        chunks(&mut y, s.size, |sample, y| {
            let a = &a[sample * s.c..][..s.c];
            for (y, x) in y.chunks_exact_mut(s.c).zip(x[sample * s.size..].chunks_exact(s.c)) {
                for ((y, x), a) in y.iter_mut().zip(x).zip(a) {
                    *y += *x * *a;
                }
            }
        });
        output(y, lr.shape())
    }

    fn bwd(
        &self,
        _: &Tensor,
        x: &Tensor,
        a: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (n, s) = (x.dim(0)?, self.0);
        let mut dx = super::values(&grad)?;
        with(a, |a| {
            chunks(&mut dx, s.size, |sample, dx| {
                let a = &a[sample * s.c..][..s.c];
                for row in dx.chunks_exact_mut(s.c) {
                    for (d, a) in row.iter_mut().zip(a) {
                        *d *= *a;
                    }
                }
            });
        })?;
        let da = with(x, |x| with(&grad, |g| s.sums(n, |at, i| g[at + i] * x[at + i])))??;
        Ok((Some(grad), Some(tensor(dx, x.shape())?), Some(tensor(da, a.shape())?)))
    }
}

/// `a` `[.., c1]` and `b` `[.., c2]` side by side, `[.., c1 + c2]`: the skip connection of a UNet.
///
/// # Errors
/// If the other dimensions differ.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (ca, cb) = (a.dim(D::Minus1)?, b.dim(D::Minus1)?);
    if a.dims()[..a.rank() - 1] != b.dims()[..b.rank() - 1] {
        bail!("cat_channels: {:?} does not fit {:?}", a.dims(), b.dims());
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, Cat { ca, cb })
}

struct Cat {
    ca: usize,
    cb: usize,
}

impl Cat {
    fn part(&self, g: &[f32], from: usize, len: usize) -> Vec<f32> {
        let width = self.ca + self.cb;
        let rows = (BLOCK / width).max(1);
        let mut out = vec![0.0; g.len() / width * len];
        chunks(&mut out, rows * len, |i, out| {
            for (o, g) in out.chunks_exact_mut(len).zip(g[i * rows * width..].chunks_exact(width)) {
                o.copy_from_slice(&g[from..from + len]);
            }
        });
        out
    }
}

impl CustomOp2 for Cat {
    fn name(&self) -> &'static str {
        "cat_channels"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b, width) = (slice(a, la)?, slice(b, lb)?, self.ca + self.cb);
        let rows = (BLOCK / width).max(1);
        let mut y = vec![0.0; a.len() + b.len()];
        chunks(&mut y, rows * width, |i, y| {
            let parts = a[i * rows * self.ca..].chunks_exact(self.ca).zip(b[i * rows * self.cb..].chunks_exact(self.cb));
            for (y, (a, b)) in y.chunks_exact_mut(width).zip(parts) {
                y[..self.ca].copy_from_slice(a);
                y[self.ca..].copy_from_slice(b);
            }
        });
        let mut dims = la.dims().to_vec();
        dims.pop();
        dims.push(width);
        output(y, dims)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (da, db) = with(&grad.contiguous()?, |g| (self.part(g, 0, self.ca), self.part(g, self.ca, self.cb)))?;
        Ok((Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
