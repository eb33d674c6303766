//! A convolution whose results nobody sees but the pooling behind it.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::conv::{self, Window, conv_relu};
use super::window_pool::{MaxPool, PoolWindow, max_pool};
use crate::nn::composed;
use crate::nn::kernel::{Conv, Then, with_scratch};
use crate::nn::parallel::Parallel;
use crate::nn::storage::{unwritten, with};

/// [`conv_relu`] and then [`max_pool`]. Where no gradients can be asked for, image by image, so that what lies between stays in a cache.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv_relu_max_pool(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, window: Window, pool: PoolWindow) -> Result<Tensor> {
    let conv = conv::shape(x, w, bias, window)?;
    let tracked = std::iter::once(x).chain([w]).chain(bias).any(Tensor::track_op);
    if tracked || composed::wanted(x) || !conv.is_direct() {
        return max_pool(&conv_relu(x, w, bias, window)?, pool);
    }
    let pool = MaxPool::over([conv.n, conv.out_h(), conv.out_w(), conv.o], pool)?;
    let [down, across] = pool.size();
    let y = with(x, |x| {
        with(w, |w| match bias {
            None => Ok(images(&conv, &pool, [x, w], None)),
            Some(bias) => with(bias, |bias| Ok(images(&conv, &pool, [x, w], Some(bias)))),
        })
    })?;
    Tensor::from_vec(y, (conv.n, down, across, conv.o), x.device())
}

fn images(conv: &Conv, pool: &MaxPool, [x, w]: [&[f32]; 2], bias: Option<&[f32]>) -> Vec<f32> {
    let (kernels, pixels) = (conv.kernels_of(w), conv.out_h() * conv.out_w());
    let size = pool.values_of_image();
    // SAFETY: every image writes all of its part, and does not read what was there.
    let mut y = unsafe { unwritten(conv.n * size) };
    y.par_chunks_mut(size).enumerate().run(|(image, y)| {
        with_scratch(pixels * conv.o, |between| {
            conv.pixels_into(x, &kernels, image * pixels, Then { bias, relu: true }, between);
            pool.image_into(between, y);
        });
    });
    y
}
