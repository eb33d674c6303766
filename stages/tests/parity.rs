//! Our ops against candle's and candle-nn's, forward, where those are right.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Module, Result, Tensor};
use trestle_stages::nn::ops;
use trestle_stages::rng::Stream;

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(Stream::new(1, name).normals(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

#[track_caller]
fn same(ours: &Tensor, theirs: Result<Tensor>) {
    let theirs = theirs.unwrap();
    assert_eq!(ours.dims(), theirs.dims());
    let gap = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(gap < 2e-5, "they differ by {gap}");
}

/// NHWC to NCHW.
fn nchw(x: &Tensor) -> Tensor {
    x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

/// NCHW to NHWC.
fn nhwc(x: Result<Tensor>) -> Result<Tensor> {
    x?.permute((0, 2, 3, 1))?.contiguous()
}

#[test]
fn softmax_and_norms() {
    let x = tensor("x", &[3, 4, 4, 12]);
    let (gamma, beta) = (tensor("gamma", &[12]), tensor("beta", &[12]));
    same(&ops::softmax(&x).unwrap(), candle_nn::ops::softmax(&x, 3));
    same(&ops::layer_norm(&x, &gamma, &beta, 1e-5).unwrap(), candle_nn::ops::layer_norm_slow(&x, &gamma, &beta, 1e-5));
    let norm = candle_nn::GroupNorm::new(gamma.clone(), beta.clone(), 12, 3, 1e-5).unwrap();
    same(&ops::group_norm(&x, 3, &gamma, &beta, 1e-5).unwrap(), nhwc(norm.forward(&nchw(&x))));
}

#[test]
fn convolutions() {
    for (k, stride, pad) in [(3, 1, 1), (3, 2, 1), (1, 1, 0), (5, 1, 2)] {
        let (x, w) = (tensor("x", &[2, 9, 8, 5]), tensor("w", &[k, k, 5, 7]));
        let theirs = nchw(&x).conv2d(&w.permute((3, 2, 0, 1)).unwrap().contiguous().unwrap(), pad, stride, 1, 1);
        let scale = 1.0 / (k * k * 5) as f64;
        same(&(ops::conv2d(&x, &w, None, stride, pad).unwrap() * scale).unwrap(), nhwc(theirs.and_then(|y| y * scale)));
    }
}

#[test]
fn activations_and_losses() {
    let x = tensor("x", &[6, 10]);
    same(&ops::silu(&x).unwrap(), candle_nn::ops::silu(&x));
    same(&ops::gelu(&x).unwrap(), x.gelu());
    let labels = Tensor::new(&[0u32, 3, 9, 3, 1, 7], &Device::Cpu).unwrap();
    let mut targets = vec![0.0f32; 60];
    for (row, label) in [0, 3, 9, 3, 1, 7].into_iter().enumerate() {
        targets[row * 10 + label] = 1.0;
    }
    same(&ops::cross_entropy(&x, &targets).unwrap(), candle_nn::loss::cross_entropy(&x, &labels));
    let y = tensor("y", &[6, 10]);
    same(&ops::mse(&x, &y).unwrap(), candle_nn::loss::mse(&x, &y));
}
