//! Every op against finite differences and a plain computation; the same bytes with any number of threads; forbidden calls.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Result, Tensor};

use super::gradcheck::check;
use super::ops::*;
use super::optim::{AdamW, Lamb, Sgd};
use super::params::Params;
use crate::rng::Stream;

fn params(shapes: &[(&str, &[usize])]) -> Params {
    let mut params = Params::new();
    for (name, shape) in shapes {
        params.normal(name, shape, 1, 1.0, &Stream::new(1, "tests")).unwrap();
    }
    params
}

/// A loss that weighs every value of `y` differently.
fn weigh(y: &Tensor) -> Tensor {
    let weights = Stream::new(2, "weights").normals(y.elem_count());
    let weights = Tensor::from_vec(weights, y.dims(), &Device::Cpu).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

fn holds(shapes: &[(&str, &[usize])], f: impl Fn(&Params) -> Result<Tensor>) {
    check(&params(shapes), |p| Ok(weigh(&f(p)?))).unwrap();
}

fn g<'p>(params: &'p Params, name: &str) -> &'p Tensor {
    params.get(name).unwrap()
}

#[test]
fn convolutions_have_right_gradients() {
    for (k, s, pad) in [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 1, 2), (3, 1, 0), (2, 2, 0), (4, 3, 1)] {
        holds(&[("x", &[2, 7, 6, 3]), ("w", &[k, k, 3, 5]), ("b", &[5])], |p| conv2d(g(p, "x"), g(p, "w"), Some(g(p, "b")), s, pad));
        holds(&[("x", &[2, 7, 6, 3]), ("w", &[k, k, 3, 5])], |p| conv2d(g(p, "x"), g(p, "w"), None, s, pad));
    }
}

#[test]
fn grouped_and_uneven_convolutions_have_right_gradients() {
    for (k, stride, pad, groups) in [
        ([3, 3], [1, 1], [1; 4], 2),
        ([3, 3], [2, 2], [1; 4], 3),
        ([1, 1], [1, 1], [0; 4], 2),
        ([3, 2], [1, 2], [0, 1, 2, 0], 1),
        ([1, 5], [1, 1], [0, 2, 0, 2], 1),
        ([2, 3], [2, 1], [1, 0, 0, 1], 6),
        ([3, 3], [1, 1], [1; 4], 6),
        ([5, 5], [2, 2], [2; 4], 6),
        ([3, 3], [1, 1], [3; 4], 1),
    ] {
        let window = Window { stride, pad, groups, fast: false };
        let shapes: [(&str, &[usize]); 3] = [("x", &[2, 7, 6, 6]), ("w", &[k[0], k[1], 6 / groups, 6]), ("b", &[6])];
        holds(&shapes, |p| conv(g(p, "x"), g(p, "w"), Some(g(p, "b")), window));
        let p = params(&shapes);
        let got = conv(g(&p, "x"), g(&p, "w"), Some(g(&p, "b")), window).unwrap();
        let want = plain_conv(&p, k, window, got.dims());
        for (at, (got, want)) in got.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().zip(want).enumerate() {
            assert!((got - want).abs() < 1e-4, "{k:?} {window:?} at {at}: {got}, not {want}");
        }
    }
    // More channels than one block of the depthwise kernel holds.
    holds(&[("x", &[2, 4, 4, 40]), ("w", &[3, 3, 1, 40]), ("b", &[40])], |p| {
        conv(g(p, "x"), g(p, "w"), Some(g(p, "b")), Window::new(1, 1).groups(40))
    });
}

/// A grouped convolution of `[2, 7, 6, 6]` by its definition.
fn plain_conv(p: &Params, [kh, kw]: [usize; 2], window: Window, dims: &[usize]) -> Vec<f32> {
    let (x, w, b) = (p.values("x").unwrap(), p.values("w").unwrap(), p.values("b").unwrap());
    let width = 6 / window.groups;
    let mut y = Vec::new();
    for at in 0..dims.iter().product() {
        let (n, i, j, o) = (at / (dims[1] * dims[2] * 6), at / (dims[2] * 6) % dims[1], at / 6 % dims[2], at % 6);
        let mut sum = b[o];
        for (place, c) in (0..kh * kw).flat_map(|place| (0..width).map(move |c| (place, c))) {
            let row = (i * window.stride[0] + place / kw) as isize - window.pad[0] as isize;
            let column = (j * window.stride[1] + place % kw) as isize - window.pad[1] as isize;
            if (0..7).contains(&row) && (0..6).contains(&column) {
                let channel = o / width * width + c;
                sum += x[((n * 7 + row as usize) * 6 + column as usize) * 6 + channel] * w[(place * width + c) * 6 + o];
            }
        }
        y.push(sum);
    }
    y
}

#[test]
fn same_padding_is_tensorflows() {
    assert_eq!(Window::same(224, 224, 3, 2).pad, [0, 0, 1, 1]);
    assert_eq!(Window::same(112, 7, 3, 1).pad, [1; 4]);
    assert_eq!(Window::same(56, 7, 5, 2).pad, [1, 2, 2, 2]);
}

#[test]
fn a_convolution_is_the_sum_that_it_should_be() {
    let p = params(&[("x", &[2, 5, 6, 2]), ("w", &[3, 3, 2, 4])]);
    let (x, w) = (p.values("x").unwrap(), p.values("w").unwrap());
    let y = conv2d(g(&p, "x"), g(&p, "w"), None, 2, 1).unwrap();
    assert_eq!(y.dims(), [2, 3, 3, 4]);
    let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (at, got) in y.iter().enumerate() {
        let (n, i, j, o) = (at / 36, at / 12 % 3, at / 4 % 3, at % 4);
        let mut want = 0.0;
        for (di, dj, c) in (0..3).flat_map(|di| (0..3).flat_map(move |dj| (0..2).map(move |c| (di, dj, c)))) {
            let (row, column) = ((2 * i + di) as isize - 1, (2 * j + dj) as isize - 1);
            if (0..5).contains(&row) && (0..6).contains(&column) {
                want += x[((n * 5 + row as usize) * 6 + column as usize) * 2 + c] * w[((di * 3 + dj) * 2 + c) * 4 + o];
            }
        }
        assert!((got - want).abs() < 1e-4, "at {at}: {got}, not {want}");
    }
}

#[test]
fn products_have_right_gradients() {
    holds(&[("x", &[3, 4, 5]), ("w", &[5, 7]), ("b", &[7])], |p| linear(g(p, "x"), g(p, "w"), Some(g(p, "b"))));
    holds(&[("x", &[300, 20]), ("w", &[20, 33])], |p| linear(g(p, "x"), g(p, "w"), None));
    holds(&[("x", &[20, 30]), ("w", &[30, 600])], |p| linear(g(p, "x"), g(p, "w"), None));
    holds(&[("x", &[3, 4, 5]), ("y", &[3, 5, 6])], |p| matmul(g(p, "x"), g(p, "y"), false));
    holds(&[("x", &[3, 4, 5]), ("y", &[3, 6, 5])], |p| matmul(g(p, "x"), g(p, "y"), true));
    holds(&[("q", &[2, 4, 6]), ("k", &[2, 5, 6]), ("v", &[2, 5, 6])], |p| attention(g(p, "q"), g(p, "k"), g(p, "v"), 2));
}

#[test]
fn large_products_equal_candles() {
    for (m, k, n) in [(300, 40, 70), (40, 100, 700), (1000, 3, 5), (7, 2000, 9)] {
        let p = params(&[("x", &[m, k]), ("w", &[k, n])]);
        let ours = linear(g(&p, "x"), g(&p, "w"), None).unwrap();
        let theirs = g(&p, "x").matmul(g(&p, "w")).unwrap();
        let gap = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(gap < 1e-3, "{m}×{k}×{n}: {gap}");
    }
}

#[test]
fn the_rest_has_right_gradients() {
    holds(&[("x", &[2, 3, 50])], |p| silu(g(p, "x")));
    holds(&[("x", &[2, 3, 50])], |p| gelu(g(p, "x")));
    holds(&[("x", &[4, 9])], |p| softmax(g(p, "x")));
    holds(&[("x", &[2, 3, 4, 5])], |p| upsample2(g(p, "x")));
    holds(&[("x", &[2, 3, 4, 5])], |p| global_avg_pool(g(p, "x")));
    holds(&[("x", &[2, 3, 4, 6]), ("a", &[6]), ("b", &[6])], |p| group_norm(g(p, "x"), 3, g(p, "a"), g(p, "b"), 1e-5));
    holds(&[("x", &[70, 3, 3, 6]), ("a", &[6]), ("b", &[6])], |p| group_norm(g(p, "x"), 2, g(p, "a"), g(p, "b"), 1e-5));
    holds(&[("x", &[5, 8]), ("a", &[8]), ("b", &[8])], |p| layer_norm(g(p, "x"), g(p, "a"), g(p, "b"), 1e-5));
    holds(&[("t", &[5, 4])], |p| embedding(g(p, "t"), &[0, 3, 3, 1, 4, 2]));
    let targets: Vec<f32> = Stream::new(3, "t").normals(12).iter().map(|v| v.abs()).collect();
    check(&params(&[("x", &[3, 4])]), |p| Ok(cross_entropy(g(p, "x"), &targets)?)).unwrap();
    let target = Tensor::from_vec(Stream::new(4, "t").normals(12), (3, 4), &Device::Cpu).unwrap();
    check(&params(&[("x", &[3, 4])]), |p| Ok(mse(g(p, "x"), &target)?)).unwrap();
}

#[test]
fn newer_ops_have_right_gradients() {
    holds(&[("x", &[2, 3, 50])], |p| gelu_erf(g(p, "x")));
    holds(&[("x", &[3, 4, 20]), ("a", &[20])], |p| rms_norm(g(p, "x"), g(p, "a"), 1e-5));
    holds(&[("x", &[3, 200, 6]), ("b", &[6])], |p| bias_add(g(p, "x"), g(p, "b")));
    holds(&[("x", &[3, 4, 6]), ("b", &[4, 6])], |p| bias_add(g(p, "x"), g(p, "b")));
    holds(&[("x", &[3, 200, 6]), ("b", &[6])], |p| scale(g(p, "x"), g(p, "b")));
    holds(&[("x", &[3, 2, 4, 6]), ("b", &[3, 6])], |p| scale_samples(g(p, "x"), g(p, "b")));
    holds(&[("x", &[2, 5, 36])], |p| self_attention(g(p, "x"), 3));
    holds(&[("x", &[2, 7, 6, 5])], |p| avg_pool(g(p, "x"), 3, 2, 1, true));
    holds(&[("x", &[2, 7, 6, 5])], |p| adaptive_avg_pool(g(p, "x"), [3, 2]));
    let norm = BatchNorm { eps: 1e-5, relu: false };
    let shapes: [(&str, &[usize]); 4] = [("x", &[40, 4, 4, 6]), ("a", &[6]), ("b", &[6]), ("r", &[40, 4, 4, 6])];
    holds(&shapes[..3], |p| Ok(norm.train(g(p, "x"), g(p, "a"), g(p, "b"), None)?.0));
    holds(&shapes, |p| Ok(norm.train(g(p, "x"), g(p, "a"), g(p, "b"), Some(g(p, "r")))?.0));
    let running = [Tensor::zeros(6, candle_core::DType::F32, &Device::Cpu).unwrap(), Tensor::new(&[0.5f32; 6], &Device::Cpu).unwrap()];
    holds(&shapes[..3], |p| norm.eval(g(p, "x"), [g(p, "a"), g(p, "b")], [&running[0], &running[1]], None));
}

#[test]
fn attention_of_one_tensor_is_that_of_three() {
    let p = params(&[("x", &[2, 5, 36])]);
    let parts: Vec<Tensor> = (0..3).map(|i| g(&p, "x").narrow(2, 12 * i, 12).unwrap()).collect();
    let want = attention(&parts[0], &parts[1], &parts[2], 3).unwrap();
    let gap = (self_attention(g(&p, "x"), 3).unwrap() - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(gap < 1e-5, "{gap}");
}

fn pool(k: usize, stride: usize) -> PoolWindow {
    PoolWindow { k, stride, pad: 1, ceil: true }
}

#[test]
fn what_is_made_without_gradients_to_come_is_the_same_to_the_bit() {
    let p = params(&[
        ("x", &[3, 65, 3 * 64]),
        ("w", &[3 * 64, 70]),
        ("b", &[70]),
        ("image", &[2, 9, 7, 85]),
        ("kernel", &[3, 3, 85, 85]),
        ("more", &[3, 65, 70]),
    ]);
    let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let same = |name: &str, op: &dyn Fn(&[Tensor]) -> Result<Tensor>, args: &[&str]| {
        let kept = op(&args.iter().map(|arg| g(&p, arg).clone()).collect::<Vec<_>>()).unwrap();
        let free = op(&args.iter().map(|arg| g(&p, arg).detach()).collect::<Vec<_>>()).unwrap();
        assert!(kept.track_op() && !free.track_op(), "{name}");
        assert_eq!(values(kept), values(free), "{name}");
    };
    same("linear_gelu", &|t| linear_gelu(&t[0], &t[1], &t[2]), &["x", "w", "b"]);
    same("linear_add", &|t| linear_add(&t[0], &t[1], &t[2], &t[3]), &["x", "w", "b", "more"]);
    same("self_attention", &|t| self_attention(&t[0], 1), &["x"]);
    same("max_pool", &|t| max_pool(&t[0], pool(3, 2)), &["image"]);
    for window in [Window::new(1, 1), Window::new(2, 0), Window::new(1, 1).fast()] {
        same("conv_relu_max_pool", &|t| conv_relu_max_pool(&t[0], &t[1], None, window, pool(3, 2)), &["image", "kernel"]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let p = params(&[("x", &[2, 4, 4, 6]), ("w", &[3, 3, 3, 4]), ("v", &[5])]);
    let (x, w, v) = (g(&p, "x"), g(&p, "w"), g(&p, "v"));
    assert!(conv(x, w, None, Window::new(1, 1)).is_err());
    assert!(conv(x, w, None, Window::new(1, 1).groups(4)).is_err());
    assert!(conv(x, w, None, Window::new(0, 1).groups(2)).is_err());
    assert!(conv(x, w, Some(v), Window::new(1, 1).groups(2)).is_err());
    assert!(max_pool(x, pool(7, 1)).is_err() && max_pool(x, pool(3, 0)).is_err() && avg_pool(x, 2, 2, 2, true).is_err());
    assert!(bias_add(x, v).is_err() && scale(x, v).is_err() && scale_samples(x, v).is_err() && rms_norm(x, v, 1e-5).is_err());
    assert!(BatchNorm { eps: 1e-5, relu: true }.train(x, v, v, None).is_err());
    assert!(one_hot(&[0, 7], 7, 0.0).unwrap_err().to_string().contains("label 1 is 7"));
    assert!(one_hot(&[0], 7, 1.5).is_err());
}

#[test]
fn a_tape_gives_the_same_gradients_to_the_bit() {
    let shapes: [(&str, &[usize]); 5] = [("c", &[3, 3, 3, 16]), ("a", &[16]), ("b", &[16]), ("d", &[1, 1, 16, 16]), ("f", &[16, 10])];
    let p = params(&shapes);
    let x = Tensor::from_vec(Stream::new(3, "x").normals(4 * 64 * 3), (4, 8, 8, 3), &Device::Cpu).unwrap();
    let targets = one_hot(&[0, 3, 9, 3], 10, 0.1).unwrap();
    let loss = || -> Result<Tensor> {
        let y = BatchNorm { eps: 1e-5, relu: true }.train(&conv2d(&x, g(&p, "c"), None, 1, 1)?, g(&p, "a"), g(&p, "b"), None)?.0;
        let z = super::tape::add(&conv2d(&y, g(&p, "d"), None, 1, 0)?, &y)?;
        let z = global_avg_pool(&super::tape::join(&[&z, &y], true)?)?;
        let z = super::tape::join(&[&z, &z], false)?;
        let z = super::tape::reshape(&z, (16, 16))?;
        cross_entropy(&linear(&z, g(&p, "f"), None)?, &targets.repeat(4))
    };
    let theirs = loss().unwrap().backward().unwrap();
    let (made, tape) = super::tape::record(loss).unwrap();
    let ours = tape.backward(&made).unwrap();
    for (name, var) in p.iter() {
        let bits = |grads: &candle_core::backprop::GradStore| -> Vec<u32> {
            grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| (v + 0.0).to_bits()).collect()
        };
        assert_eq!(bits(&ours), bits(&theirs), "{name}");
    }
}

#[test]
fn a_tape_refuses_what_would_cut_a_gradient() {
    let p = params(&[("x", &[3, 4])]);
    let cut = super::tape::record(|| relu(&(g(&p, "x") * 2.0)?)).err().unwrap().to_string();
    assert!(cut.contains("candle made"), "{cut}");
    let turned = super::tape::record(|| relu(&relu(g(&p, "x"))?.t()?)).err().unwrap().to_string();
    assert!(turned.contains("candle made"), "{turned}");
    let (kept, _tape) = super::tape::record(|| relu(g(&p, "x"))).unwrap();
    let without = kept.sum_all().unwrap().backward().err().unwrap().to_string();
    assert!(without.contains("from the tape"), "{without}");
    let nested = super::tape::record(|| super::tape::record(|| relu(g(&p, "x"))).map(|_| ())).err().unwrap().to_string();
    assert!(nested.contains("a tape inside of a tape"), "{nested}");
    let (loss, tape) = super::tape::record(|| relu(g(&p, "x"))).unwrap();
    assert!(tape.backward(&loss).is_err(), "not one value");
}

/// Kinks spoil differences at random points, so these are checked by hand.
#[test]
fn kinked_functions_pass_the_gradient_where_they_should() {
    let mut p = Params::new();
    p.insert("x", &[1, 2, 4, 1], vec![1.0, 2.0, 0.0, -1.0, 4.0, 3.0, 0.0, 0.0]).unwrap();
    let grads = weigh(&max_pool2(g(&p, "x")).unwrap()).backward().unwrap();
    let weights = Stream::new(2, "weights").normals(2);
    let got = grads.get(g(&p, "x")).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got, [0.0, 0.0, weights[1], 0.0, weights[0], 0.0, 0.0, 0.0]);
    let grads = relu(g(&p, "x")).unwrap().sum_all().unwrap().backward().unwrap();
    let got = grads.get(g(&p, "x")).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], "the gradient at 0 is 0");
}

#[test]
fn what_is_not_a_number_is_passed_on() {
    let mut p = Params::new();
    p.insert("x", &[1, 2, 4, 1], vec![1.0, 2.0, f32::NAN, -1.0, 4.0, f32::NAN, 0.0, 0.0]).unwrap();
    let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values(max_pool2(g(&p, "x")).unwrap()).iter().all(|v| v.is_nan()));
    assert_eq!(values(relu(g(&p, "x")).unwrap()).iter().filter(|v| v.is_nan()).count(), 2);
}

#[test]
fn a_wrong_gradient_is_found() {
    let p = params(&[("x", &[2, 3, 50])]);
    // Forward silu, backward as if it were the identity.
    let wrong = check(&p, |p| {
        let x = p.get("x")?;
        Ok(weigh(&(x + (silu(x)? - x)?.detach())?))
    });
    assert!(wrong.unwrap_err().to_string().contains("`x`: backward says"));
    let cut = check(&params(&[("x", &[3]), ("y", &[3])]), |p| Ok(weigh(&(p.get("x")? + p.get("y")?.detach())?)));
    assert!(cut.unwrap_err().to_string().contains("`y` has no gradient"));
}

/// A small net, trained for some steps: the digest of its weights.
fn trained() -> Vec<u32> {
    let stream = Stream::new(5, "net");
    let mut p = Params::new();
    p.normal("c1", &[3, 3, 1, 16], 9, 2.0, &stream).unwrap();
    p.constant("g", &[16], 1.0).unwrap();
    p.constant("b", &[16], 0.0).unwrap();
    p.normal("c2", &[3, 3, 16, 32], 144, 2.0, &stream).unwrap();
    p.normal("f", &[32 * 64, 10], 2048, 1.0, &stream).unwrap();
    let x = Tensor::from_vec(stream.child("x").normals(32 * 256), (32, 16, 16, 1), &Device::Cpu).unwrap();
    let targets: Vec<f32> = (0..320).map(|i| f32::from(u8::from(i % 10 == i / 10 % 10))).collect();
    let mut adam = AdamW::new(0.01);
    for _ in 0..4 {
        let y = conv2d(&x, g(&p, "c1"), None, 1, 1).unwrap();
        let y = silu(&group_norm(&y, 4, g(&p, "g"), g(&p, "b"), 1e-5).unwrap()).unwrap();
        let y = max_pool2(&relu(&conv2d(&y, g(&p, "c2"), None, 1, 1).unwrap()).unwrap()).unwrap();
        let logits = linear(&y.flatten_from(1).unwrap(), g(&p, "f"), None).unwrap();
        let grads = cross_entropy(&logits, &targets).unwrap().backward().unwrap();
        adam.step(&p, &grads, 1e-2, |_| true).unwrap();
    }
    p.iter().flat_map(|(name, _)| p.values(name).unwrap()).map(f32::to_bits).collect()
}

/// The same for the ops of larger nets.
fn trained_by_others() -> Vec<u32> {
    let stream = Stream::new(6, "net");
    let mut p = Params::new();
    for (name, shape, fan) in [
        ("c1", vec![7, 7, 3, 32], 147),
        ("c2", vec![3, 3, 8, 32], 72),
        ("c3", vec![3, 3, 1, 32], 9),
        ("c4", vec![3, 3, 32, 32], 288),
        ("qkv", vec![32, 96], 32),
        ("f", vec![32, 10], 32),
    ] {
        p.normal(name, &shape, fan, 2.0, &stream).unwrap();
    }
    for (name, value) in [("g", 1.0), ("b", 0.0), ("r", 1.0)] {
        p.constant(name, &[32], value).unwrap();
    }
    let x = Tensor::from_vec(stream.child("x").normals(24 * 32 * 32 * 3), (24, 32, 32, 3), &Device::Cpu).unwrap();
    let targets = one_hot(&(0..24).map(|i| i % 10).collect::<Vec<_>>(), 10, 0.1).unwrap();
    let (mut sgd, mut lamb) = (Sgd::new(0.9, true, 0.01), Lamb::new(0.01));
    let norm = BatchNorm { eps: 1e-5, relu: true };
    for step in 0..4 {
        let bn = |y: &Tensor, r: Option<&Tensor>| norm.train(y, g(&p, "g"), g(&p, "b"), r).unwrap().0;
        let y = max_pool(&bn(&conv2d(&x, g(&p, "c1"), None, 2, 3).unwrap(), None), PoolWindow { k: 3, stride: 2, pad: 1, ceil: false })
            .unwrap();
        let z = bn(&conv(&y, g(&p, "c2"), None, Window::new(1, 1).groups(4)).unwrap(), Some(&y));
        let z = conv(&z, g(&p, "c3"), Some(g(&p, "b")), Window::new(1, 1).groups(32)).unwrap();
        let z = conv(&hard_swish(&z).unwrap(), g(&p, "c4"), None, Window::new(1, 1).fast()).unwrap();
        let z = scale_samples(&z, &hard_sigmoid(&global_avg_pool(&y).unwrap()).unwrap()).unwrap();
        let t = rms_norm(&z.reshape((24, 64, 32)).unwrap(), g(&p, "r"), 1e-6).unwrap();
        let t = self_attention(&linear(&t, g(&p, "qkv"), None).unwrap(), 4).unwrap();
        let logits = linear(&gelu_erf(&t.mean(1).unwrap()).unwrap(), g(&p, "f"), None).unwrap();
        let grads = cross_entropy(&logits, &targets).unwrap().backward().unwrap();
        if step % 2 == 0 { sgd.step(&p, &grads, 1e-2, |_| true).unwrap() } else { lamb.step(&p, &grads, 1e-3, |_| true).unwrap() }
    }
    p.iter().flat_map(|(name, _)| p.values(name).unwrap()).map(f32::to_bits).collect()
}

#[test]
fn threads_do_not_change_a_bit() {
    for train in [trained, trained_by_others] {
        let with = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(train);
        let one = with(1);
        assert!(one.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        assert_eq!(one, with(2));
        assert_eq!(one, with(5));
    }
}

#[test]
fn parameters_survive_a_file_and_lies_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let p = params(&[("a", &[2, 3]), ("b", &[4])]);
    p.save(&path).unwrap();
    let back = Params::load(&path).unwrap();
    back.expect_like(&p, &path).unwrap();
    assert_eq!(back.values("a").unwrap(), p.values("a").unwrap());
    let bytes = std::fs::read(&path).unwrap();
    back.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let mut spoiled = bytes.clone();
    let end = spoiled.len();
    spoiled[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &spoiled).unwrap();
    assert!(Params::load(&path).unwrap_err().to_string().contains("value 3 of tensor `b` is not finite"));
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(Params::load(&path).is_err());
    assert!(params(&[("a", &[3, 2]), ("b", &[4])]).expect_like(&p, &path).unwrap_err().to_string().contains("tensor `a` has the shape"));
}

/// candle calls whose gradient is cut or wrong; `tests/seeded.rs` has those that draw unseeded random numbers (spelt in two parts, so that this list is not found itself).
const FORBIDDEN: [(&str, &str); 15] = [
    (".max_", "pool2d"),
    (".avg_", "pool2d"),
    (".upsample_", "nearest"),
    (".conv2", "d("),
    (".conv_", "transpose"),
    (".re", "lu()"),
    (".ge", "lu()"),
    (".si", "lu()"),
    ("softmax_", "last_dim"),
    ("candle_nn::", "ops"),
    ("candle_nn::", "LayerNorm"),
    ("candle_nn::", "RmsNorm"),
    ("candle_nn::", "VarBuilder"),
    ("candle_nn::", "VarMap"),
    (".set_", "seed("),
];

/// candle calls whose own gradient is slow, or cut; where values are apart from any graph they do what they should.
const APART: [(&str, &str); 6] =
    [(".index_", "select("), (".index_", "add("), (".where_", "cond("), (".max_", "keepdim("), (".maxi", "mum("), (".er", "f()")];
/// Where they are.
const APART_IN: [&str; 2] = ["nn/composed/", "nn/optim/"];

#[test]
fn no_forbidden_candle_call_is_used() {
    let mut open = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
                let apart = APART_IN.iter().any(|folder| path.to_string_lossy().contains(folder));
                let forbidden = FORBIDDEN.iter().chain(APART.iter().filter(|_| !apart));
                for (a, b) in forbidden.filter(|(a, b)| line.contains(&format!("{a}{b}"))) {
                    found.push(format!("{}:{}: {a}{b}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(
        found.is_empty(),
        "these candle calls have no right gradient or no seed; use crate::nn::ops and crate::rng:\n{}",
        found.join("\n")
    );
}
