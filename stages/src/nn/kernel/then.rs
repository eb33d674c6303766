//! What follows a product or a convolution in the same pass, while the result is in registers.

/// A bias and a ReLU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// Where the sums of every row begin.
    pub bias: Option<&'a [f32]>,
    /// A ReLU at the end.
    pub relu: bool,
}

impl<'a> Then<'a> {
    /// The part that belongs to some of the columns.
    pub fn columns(self, columns: std::ops::Range<usize>) -> Self {
        Self { bias: self.bias.map(|bias| &bias[columns]), ..self }
    }
}

/// `max(y, 0)`; what is not a number stays.
#[inline(always)]
pub fn floor(y: &mut [f32]) {
    for y in y {
        *y = if *y < 0.0 { 0.0 } else { *y };
    }
}
