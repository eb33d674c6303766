//! Every composed op against our kernels: the result and all gradients, without a tape and with one; in `bf16`, loosely.
#![allow(clippy::unwrap_used)]

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor};

use super::forced;
use crate::nn::ops::*;
use crate::nn::params::Params;
use crate::nn::{gradcheck, tape};
use crate::rng::Stream;

type Shapes<'a> = &'a [(&'a str, &'a [usize])];

fn params(shapes: Shapes<'_>) -> Params {
    let mut params = Params::new();
    for (name, shape) in shapes {
        params.normal(name, shape, 1, 1.0, &Stream::new(1, "tests")).unwrap();
    }
    params
}

fn g<'p>(params: &'p Params, name: &str) -> &'p Tensor {
    params.get(name).unwrap()
}

/// A loss that weighs every value of `y` differently, by ops that a tape takes.
fn weigh(y: &Tensor) -> Result<Tensor> {
    let target = Tensor::from_vec(Stream::new(2, "target").normals(y.elem_count()), y.dims(), &Device::Cpu)?;
    mse(y, &target)
}

fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The root of the mean squared gap between two lists, relative to that of the second.
fn gap(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let gaps: f32 = got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum();
    (gaps / want.iter().map(|v| v * v).sum::<f32>().max(1e-12)).sqrt()
}

fn compare(p: &Params, got: (&Tensor, &GradStore), want: (&Tensor, &GradStore), within: f32, what: &str) {
    assert_eq!(got.0.dims(), want.0.dims(), "{what}");
    let off = gap(&floats(got.0), &floats(want.0));
    assert!(off < within, "{what}: the results are {off} apart");
    for (name, var) in p.iter() {
        let (got, want) = (got.1.get(var).unwrap(), want.1.get(var).unwrap());
        assert_eq!((got.dims(), got.dtype()), (want.dims(), DType::F32), "{what}, {name}");
        let off = gap(&floats(got), &floats(want));
        assert!(off < within, "{what}: the gradients of {name} are {off} apart");
    }
}

/// Composed in `f32` by candle's way back and by the tape, and in `bf16` of `x` (where the op takes such), all against the kernels.
fn same(what: &str, shapes: Shapes<'_>, f: impl Fn(&Params, &Tensor) -> Result<Tensor>) {
    let p = params(shapes);
    let run = |dtype: DType| -> Result<(Tensor, GradStore)> {
        let y = f(&p, &g(&p, "x").to_dtype(dtype)?)?;
        assert_eq!(y.dtype(), dtype, "{what}");
        let grads = weigh(&y)?.backward()?;
        Ok((y, grads))
    };
    let want = run(DType::F32).unwrap();
    let _forced = forced();
    let plain = run(DType::F32).unwrap();
    compare(&p, (&plain.0, &plain.1), (&want.0, &want.1), 1e-5, what);
    let taped = || {
        let y = f(&p, g(&p, "x"))?;
        Ok::<_, candle_core::Error>((y.clone(), weigh(&y)?))
    };
    let ((y, loss), tape) = tape::record(taped).unwrap();
    compare(&p, (&y, &tape.backward(&loss).unwrap()), (&want.0, &want.1), 1e-5, &format!("{what} on a tape"));
    let half = run(DType::BF16).unwrap();
    compare(&p, (&half.0, &half.1), (&want.0, &want.1), 0.04, &format!("{what} in bf16"));
}

#[test]
fn convolutions_are_the_kernels() {
    for (k, stride, pad, groups) in [
        ([3, 3], [1, 1], [1; 4], 1),
        ([3, 3], [2, 2], [1; 4], 1),
        ([1, 1], [1, 1], [0; 4], 1),
        ([1, 1], [2, 2], [0; 4], 1),
        ([2, 2], [2, 2], [0; 4], 1),
        ([4, 3], [3, 2], [1, 0, 2, 1], 1),
        ([3, 2], [1, 2], [0, 1, 2, 0], 1),
        ([3, 3], [1, 1], [3; 4], 1),
        ([3, 3], [1, 1], [1; 4], 2),
        ([1, 1], [1, 1], [0; 4], 3),
        ([2, 3], [2, 1], [1, 0, 0, 1], 3),
        ([3, 3], [1, 1], [1; 4], 6),
        ([5, 5], [2, 2], [1, 2, 2, 2], 6),
    ] {
        let window = Window { stride, pad, groups, fast: false };
        let shapes: [(&str, &[usize]); 3] = [("x", &[2, 7, 6, 6]), ("w", &[k[0], k[1], 6 / groups, 6]), ("b", &[6])];
        same(&format!("conv {k:?} {window:?}"), &shapes, |p, x| conv(x, g(p, "w"), Some(g(p, "b")), window));
        same("conv without bias", &shapes[..2], |p, x| conv(x, g(p, "w"), None, window));
    }
    // More kernels than channels in each group; more rows than windows.
    let shapes: [(&str, &[usize]); 2] = [("x", &[3, 5, 4, 4]), ("w", &[3, 3, 1, 8])];
    same("conv with multiplier", &shapes, |p, x| conv(x, g(p, "w"), None, Window::new(1, 1).groups(4)));
}

#[test]
fn products_are_the_kernels() {
    same("linear", &[("x", &[3, 4, 5]), ("w", &[5, 7]), ("b", &[7])], |p, x| linear(x, g(p, "w"), Some(g(p, "b"))));
    same("linear without bias", &[("x", &[30, 20]), ("w", &[20, 33])], |p, x| linear(x, g(p, "w"), None));
    same("linear with gelu", &[("x", &[3, 4, 5]), ("w", &[5, 7]), ("b", &[7])], |p, x| linear_gelu(x, g(p, "w"), g(p, "b")));
    for (shape, turned) in [([3, 5, 6], false), ([3, 6, 5], true)] {
        same("matmul", &[("x", &[3, 4, 5]), ("y", &shape)], |p, x| matmul(x, &g(p, "y").to_dtype(x.dtype())?, turned));
    }
}

#[test]
fn attention_is_the_kernels() {
    same("softmax", &[("x", &[4, 9])], |_, x| softmax(x));
    same("self_attention", &[("x", &[2, 5, 36])], |_, x| self_attention(x, 3));
    same("attention", &[("x", &[2, 4, 6]), ("k", &[2, 5, 6]), ("v", &[2, 5, 6])], |p, x| {
        attention(x, &g(p, "k").to_dtype(x.dtype())?, &g(p, "v").to_dtype(x.dtype())?, 2)
    });
}

#[test]
fn norms_are_the_kernels() {
    let affine: [(&str, &[usize]); 2] = [("a", &[6]), ("b", &[6])];
    let with = |x: &'static [usize]| [&[("x", x)], &affine[..]].concat();
    same("group_norm", &with(&[3, 4, 5, 6]), |p, x| group_norm(x, 3, g(p, "a"), g(p, "b"), 1e-5));
    same("group_norm with silu", &with(&[3, 4, 5, 6]), |p, x| group_norm_silu(x, 2, g(p, "a"), g(p, "b"), 1e-5));
    same("layer_norm", &with(&[5, 7, 6]), |p, x| layer_norm(x, g(p, "a"), g(p, "b"), 1e-5));
    same("rms_norm", &[("x", &[3, 4, 6]), ("a", &[6])], |p, x| rms_norm(x, g(p, "a"), 1e-5));
    for relu in [false, true] {
        let norm = BatchNorm { eps: 1e-5, relu };
        same("batch_norm", &with(&[9, 4, 3, 6]), |p, x| Ok(norm.train(x, g(p, "a"), g(p, "b"), None)?.0));
        let shapes = [&with(&[9, 4, 3, 6])[..], &[("r", &[9, 4, 3, 6])]].concat();
        same("batch_norm with shortcut", &shapes, |p, x| Ok(norm.train(x, g(p, "a"), g(p, "b"), Some(&g(p, "r").to_dtype(x.dtype())?))?.0));
        let running = [Tensor::new(&[0.3f32; 6], &Device::Cpu).unwrap(), Tensor::new(&[0.5f32; 6], &Device::Cpu).unwrap()];
        same("batch_norm with running statistics", &with(&[9, 4, 3, 6]), |p, x| {
            norm.eval(x, [g(p, "a"), g(p, "b")], [&running[0], &running[1]], None)
        });
    }
}

#[test]
fn statistics_of_a_batch_are_the_kernels() {
    let p = params(&[("x", &[9, 4, 3, 6]), ("a", &[6]), ("b", &[6])]);
    let towards = || BatchNorm { eps: 1e-5, relu: true }.train(g(&p, "x"), g(&p, "a"), g(&p, "b"), None).unwrap().1.towards().unwrap();
    let want = towards();
    let _forced = forced();
    let got = towards();
    assert!(gap(&floats(&got[0]), &floats(&want[0])) < 1e-5 && gap(&floats(&got[1]), &floats(&want[1])) < 1e-5);
}

#[test]
fn activations_are_the_kernels() {
    type Activation = (&'static str, fn(&Tensor) -> Result<Tensor>);
    let all: [Activation; 7] = [
        ("relu", relu),
        ("relu6", relu6),
        ("hard_sigmoid", hard_sigmoid),
        ("hard_swish", hard_swish),
        ("silu", silu),
        ("gelu", gelu),
        ("gelu_erf", gelu_erf),
    ];
    for (name, f) in all {
        // Wide, so that all branches are met.
        same(name, &[("x", &[2, 3, 50]), ("s", &[50])], |p, x| f(&scale(&scale(x, g(p, "s"))?, g(p, "s"))?));
    }
}

#[test]
fn kinks_and_what_is_no_number_are_the_kernels() {
    let mut p = Params::new();
    p.insert("x", &[1, 2, 4, 1], vec![1.0, 2.0, f32::NAN, -1.0, 2.0, 2.0, 0.0, -0.0]).unwrap();
    for f in [relu, relu6, hard_swish, max_pool2] {
        let run = || {
            let y = f(g(&p, "x")).unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            let bits = |x: &Tensor| floats(x).iter().map(|v| (v + 0.0).to_bits()).collect::<Vec<u32>>();
            (floats(&y).iter().map(|v| v.is_nan()).collect::<Vec<bool>>(), bits(grads.get(g(&p, "x")).unwrap()))
        };
        let want = run();
        let _forced = forced();
        assert_eq!(run(), want);
    }
}

#[test]
fn pools_are_the_kernels() {
    same("max_pool2", &[("x", &[2, 6, 4, 5])], |_, x| max_pool2(x));
    for (k, stride, pad, ceil) in [(3, 2, 1, false), (3, 2, 0, true), (2, 2, 0, false), (3, 1, 1, false), (2, 3, 1, true)] {
        same("max_pool", &[("x", &[2, 7, 6, 5])], |_, x| max_pool(x, PoolWindow { k, stride, pad, ceil }));
    }
    for (k, stride, pad, count) in [(3, 2, 1, true), (3, 2, 1, false), (2, 2, 0, false)] {
        same("avg_pool", &[("x", &[2, 7, 6, 5])], |_, x| avg_pool(x, k, stride, pad, count));
    }
    same("adaptive_avg_pool", &[("x", &[2, 7, 6, 5])], |_, x| adaptive_avg_pool(x, [3, 2]));
    same("global_avg_pool", &[("x", &[2, 3, 4, 5])], |_, x| global_avg_pool(x));
    same("upsample2", &[("x", &[2, 3, 4, 5])], |_, x| upsample2(x));
    same("pixel_shuffle2", &[("x", &[2, 3, 4, 8])], |_, x| pixel_shuffle2(x));
}

#[test]
fn small_tensors_repeated_are_the_kernels() {
    same("bias_add", &[("x", &[3, 20, 6]), ("b", &[6])], |p, x| bias_add(x, g(p, "b")));
    same("bias_add of a table", &[("x", &[3, 4, 6]), ("b", &[4, 6])], |p, x| bias_add(x, g(p, "b")));
    same("scale", &[("x", &[3, 20, 6]), ("b", &[6])], |p, x| scale(x, g(p, "b")));
    same("scale_samples", &[("x", &[3, 2, 4, 6]), ("b", &[3, 6])], |p, x| scale_samples(x, g(p, "b")));
    same("add_samples", &[("x", &[3, 2, 4, 6]), ("b", &[3, 6])], |p, x| add_samples(x, g(p, "b")));
    same("add", &[("x", &[3, 4]), ("y", &[3, 4])], |p, x| tape::add(x, &g(p, "y").to_dtype(x.dtype())?));
    same("a sum of gradients", &[("x", &[3, 4])], |_, x| tape::add(&silu(x)?, &relu(x)?));
    same("join", &[("x", &[3, 4])], |_, x| tape::join(&[&silu(x)?, &relu(x)?], true));
    same("like", &[("x", &[3, 4]), ("y", &[3, 4])], |p, x| tape::add(x, &tape::like(g(p, "y"), x)?));
    same("first", &[("x", &[3, 4, 5])], |_, x| first(x));
    let p = params(&[("x", &[5, 4])]);
    let run = || {
        let y = embedding(g(&p, "x"), &[0, 3, 3, 1, 4, 2])?;
        Ok::<_, candle_core::Error>((y.clone(), weigh(&y)?.backward()?))
    };
    let want = run().unwrap();
    let _forced = forced();
    let got = run().unwrap();
    compare(&p, (&got.0, &got.1), (&want.0, &want.1), 1e-5, "embedding");
}

#[test]
fn losses_are_the_kernels() {
    let targets: Vec<f32> = Stream::new(3, "t").normals(12).iter().map(|v| v.abs()).collect();
    let target = Tensor::from_vec(Stream::new(4, "t").normals(12), (3, 4), &Device::Cpu).unwrap();
    let p = params(&[("x", &[3, 4])]);
    for i in 0..2 {
        let run = |dtype| {
            let x = g(&p, "x").to_dtype(dtype).unwrap();
            let y = if i == 0 { cross_entropy(&x, &targets) } else { mse(&x, &target) }.unwrap();
            assert_eq!((y.dtype(), y.rank()), (DType::F32, 0));
            (y.clone(), (y * 3.0).unwrap().backward().unwrap())
        };
        let want = run(DType::F32);
        let _forced = forced();
        for (dtype, within) in [(DType::F32, 1e-5), (DType::BF16, 0.03)] {
            let got = run(dtype);
            compare(&p, (&got.0, &got.1), (&want.0, &want.1), within, "loss");
        }
    }
}

/// Independently of the kernels: some ops against finite differences.
#[test]
fn composed_gradients_are_right() {
    let _forced = forced();
    let holds = |shapes: Shapes<'_>, f: &dyn Fn(&Params) -> Result<Tensor>| {
        gradcheck::check(&params(shapes), |p| Ok(weigh(&f(p)?)?)).unwrap();
    };
    holds(&[("x", &[2, 5, 4, 4]), ("w", &[3, 3, 4, 6]), ("b", &[6])], &|p| {
        conv(g(p, "x"), g(p, "w"), Some(g(p, "b")), Window { stride: [2, 1], ..Window::new(1, 1) })
    });
    holds(&[("x", &[2, 5, 12])], &|p| self_attention(g(p, "x"), 2));
    holds(&[("x", &[3, 4, 6]), ("a", &[6]), ("b", &[6])], &|p| layer_norm(g(p, "x"), g(p, "a"), g(p, "b"), 1e-5));
}

#[test]
fn without_anything_to_train_nothing_is_kept() {
    let _forced = forced();
    let x = Tensor::ones((2, 4, 4, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(!relu(&x).unwrap().track_op());
}
