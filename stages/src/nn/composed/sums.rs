//! Products and sums.

use candle_core::{DType, Result, Tensor};

use super::single;

/// `a · b` of matrices, or of stacks of them.
///
/// candle's CPU has no product of `bf16`; there it is made in `f32` and rounded once, which is what a GPU does too.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() == DType::BF16 && a.device().is_cpu() {
        return single(a)?.matmul(&single(b)?)?.to_dtype(DType::BF16);
    }
    a.matmul(b)
}

/// The sum of the rows of `x` `[m, c]`: `[c]`, in `f32`. As a product with ones: candle's own sum over a dimension that is not the last reads
/// memory across its order on a GPU, and sums `bf16` in `bf16`.
pub fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (m, c) = x.dims2()?;
    let ones = Tensor::ones((1, m), x.dtype(), x.device())?;
    single(&product(&ones, x)?)?.reshape(c)
}

/// The mean over each row of `x` `[m, c]`, in `f32`: `[m, 1]`.
pub fn row_means(x: &Tensor) -> Result<Tensor> {
    let c = x.dim(1)?;
    x.sum_keepdim(1)?.affine(1.0 / c as f64, 0.0)
}

/// `1 / √(x + ε)`.
pub fn inverse_root(x: &Tensor, eps: f32) -> Result<Tensor> {
    x.affine(1.0, f64::from(eps))?.sqrt()?.recip()
}
