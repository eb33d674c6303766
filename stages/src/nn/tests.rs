#![allow(clippy::unwrap_used)]

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::gradcheck::{check, check_inputs};
use super::*;

/// Values that look random, spread over [-1, 1).
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A scalar that depends on every element of `y` by another weight.
fn project(y: &Tensor) -> Result<Tensor> {
    let weights = Tensor::from_vec(noise(99, y.elem_count()), y.shape(), &Device::Cpu)?;
    (y * weights)?.sum_all()
}

fn holds(shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let inputs: Vec<_> = shapes.iter().enumerate().map(|(i, s)| (*s, noise(i as u32 + 1, s.iter().product()))).collect();
    check_inputs(&inputs, |x| project(&f(x)?)).unwrap();
}

#[test]
fn conv_gradients() {
    for (h, w, c, o, k, stride, padding) in [
        (6, 5, 3, 4, 3, 1, 1),
        (7, 6, 2, 5, 3, 2, 1),
        (5, 5, 4, 3, 1, 1, 0),
        (6, 6, 3, 2, 2, 2, 0),
        (5, 6, 2, 3, 5, 1, 2),
        (6, 6, 2, 3, 1, 2, 0),
        (4, 4, 2, 2, 3, 1, 3),
        (5, 5, 16, 8, 3, 1, 0),
    ] {
        holds(&[&[3, h, w, c], &[k, k, c, o], &[o]], |x| conv2d(&x[0], &x[1], Some(&x[2]), stride, padding));
        holds(&[&[3, h, w, c], &[k, k, c, o]], |x| conv2d(&x[0], &x[1], None, stride, padding));
    }
}

#[test]
fn conv_is_the_sum_over_taps() {
    let (n, h, w, c, o, k) = (2, 9, 7, 3, 4, 3);
    for (stride, padding) in [(1, 1), (2, 1), (1, 0), (3, 2)] {
        let (x, wt) = (noise(1, n * h * w * c), noise(2, k * k * c * o));
        let tx = Tensor::from_vec(x.clone(), (n, h, w, c), &Device::Cpu).unwrap();
        let y = conv2d(&tx, &Tensor::from_vec(wt.clone(), (k, k, c, o), &Device::Cpu).unwrap(), None, stride, padding).unwrap();
        let (_, oh, ow, _) = y.dims4().unwrap();
        let y = values(&y).unwrap();
        for (at, got) in y.iter().enumerate() {
            let (out, xx, yy, image) = (at % o, at / o % ow, at / o / ow % oh, at / o / ow / oh);
            let mut want = 0.0;
            for ky in 0..k {
                for kx in 0..k {
                    let (iy, ix) = ((yy * stride + ky) as isize - padding as isize, (xx * stride + kx) as isize - padding as isize);
                    if (0..h as isize).contains(&iy) && (0..w as isize).contains(&ix) {
                        for ch in 0..c {
                            want += x[((image * h + iy as usize) * w + ix as usize) * c + ch] * wt[((ky * k + kx) * c + ch) * o + out];
                        }
                    }
                }
            }
            assert!((got - want).abs() < 1e-4, "{got} is not {want}");
        }
    }
}

#[test]
fn linear_and_matmul_gradients() {
    holds(&[&[5, 7], &[7, 3], &[3]], |x| linear(&x[0], &x[1], Some(&x[2])));
    holds(&[&[2, 40, 16], &[16, 24]], |x| linear(&x[0], &x[1], None));
    holds(&[&[2, 3, 4], &[2, 4, 5]], |x| matmul(&x[0], &x[1]));
    holds(&[&[2, 4, 3], &[2, 4, 5]], |x| matmul(&x[0].transpose(1, 2)?, &x[1]));
}

#[test]
fn activation_gradients() {
    holds(&[&[4, 9]], |x| relu(&x[0]));
    holds(&[&[4, 9]], |x| silu(&x[0].affine(3.0, 0.1)?));
    holds(&[&[4, 9]], |x| gelu(&x[0].affine(3.0, 0.1)?));
}

#[test]
fn relu_has_no_slope_at_zero_and_lets_nan_through() {
    let x = candle_core::Var::new(&[-1f32, 0.0, 2.0, f32::NAN], &Device::Cpu).unwrap();
    let y = relu(&x).unwrap();
    assert!(values(&y).unwrap()[3].is_nan());
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()).unwrap()[..3], [0.0, 0.0, 1.0]);
}

#[test]
fn pool_gradients() {
    holds(&[&[2, 6, 5, 3]], |x| max_pool(&x[0]));
    holds(&[&[2, 5, 6, 3], &[3]], |x| bias_relu_pool(&x[0], &x[1]));
    holds(&[&[2, 7, 6, 3]], |x| avg_pool(&x[0], 3));
    holds(&[&[2, 4, 5, 3]], |x| global_avg_pool(&x[0]));
    holds(&[&[2, 3, 4, 2]], |x| upsample2x(&x[0]));
    // Used twice: the gradients add up.
    holds(&[&[2, 3, 4, 2]], |x| upsample2x(&x[0])? + upsample2x(&x[0].sqr()?)?);
}

#[test]
fn fused_pool_is_the_composition() {
    let x = Tensor::from_vec(noise(3, 2 * 6 * 8 * 5), (2, 6, 8, 5), &Device::Cpu).unwrap();
    let b = Tensor::from_vec(noise(4, 5), 5, &Device::Cpu).unwrap();
    let fused = bias_relu_pool(&x, &b).unwrap();
    let composed = max_pool(&relu(&add_bias(&x, &b).unwrap()).unwrap()).unwrap();
    assert_eq!(values(&fused).unwrap(), values(&composed).unwrap());
}

#[test]
fn norm_gradients() {
    holds(&[&[3, 4, 5, 6], &[6], &[6]], |x| group_norm(&x[0], &x[1], &x[2], 2, 1e-5, Post::None));
    holds(&[&[3, 4, 5, 6], &[6], &[6]], |x| group_norm(&x[0], &x[1], &x[2], 3, 1e-5, Post::Silu));
    holds(&[&[70, 12], &[12], &[12]], |x| layer_norm(&x[0], &x[1], &x[2], 1e-5));
    holds(&[&[2, 40, 12], &[12]], |x| rms_norm(&x[0], &x[1], 1e-6));
}

#[test]
fn norms_have_the_moments_they_promise() {
    let x = Tensor::from_vec(noise(5, 3 * 20 * 8).iter().map(|v| v * 4.0 + 7.0).collect::<Vec<_>>(), (3, 20, 8), &Device::Cpu).unwrap();
    let (one, zero) =
        (Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap(), Tensor::zeros(8, candle_core::DType::F32, &Device::Cpu).unwrap());
    let groups = values(&group_norm(&x, &one, &zero, 2, 0.0, Post::None).unwrap()).unwrap();
    for (sample, group) in (0..3).flat_map(|s| (0..2).map(move |g| (s, g))) {
        let member: Vec<f32> = (0..20).flat_map(|r| groups[(sample * 20 + r) * 8 + group * 4..][..4].to_vec()).collect();
        moments(&member);
    }
    values(&layer_norm(&x, &one, &zero, 0.0).unwrap()).unwrap().chunks(8).for_each(moments);
}

fn moments(x: &[f32]) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
    assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "mean {mean}, variance {variance}");
}

#[test]
fn loss_gradients() {
    holds(&[&[4, 9]], |x| softmax(&x[0].affine(3.0, 0.0)?));
    let targets = one_hot(&[0, 2, 1, 4], 5, 0.1).unwrap();
    holds(&[&[4, 5]], |x| cross_entropy(&x[0].affine(3.0, 0.0)?, &targets));
    let target = Tensor::from_vec(noise(7, 20), (4, 5), &Device::Cpu).unwrap();
    holds(&[&[4, 5]], |x| mse(&x[0], &target));
}

#[test]
fn labels_out_of_range_name_the_index() {
    assert!(one_hot(&[0, 7], 5, 0.0).unwrap_err().to_string().contains("label 7 at index 1"));
}

#[test]
fn attention_gradients() {
    for mask in [Mask::None, Mask::Causal, Mask::Lengths(vec![2, 5])] {
        holds(&[&[2, 4, 6], &[2, 5, 6], &[2, 5, 6]], |x| attention(&x[0].affine(2.0, 0.0)?, &x[1], &x[2], 3, mask.clone()));
    }
}

#[test]
fn attention_is_softmax_of_products() {
    let t = |seed, n| Tensor::from_vec(noise(seed, 2 * n * 4), (2, n, 4), &Device::Cpu).unwrap();
    let (q, k, v) = (t(1, 3), t(2, 5), t(3, 5));
    let fused = values(&attention(&q, &k, &v, 1, Mask::None).unwrap()).unwrap();
    let scores = matmul(&q, &k.transpose(1, 2).unwrap()).unwrap().affine(0.5, 0.0).unwrap();
    let plain = values(&matmul(&softmax(&scores).unwrap(), &v).unwrap()).unwrap();
    assert!(fused.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn embedding_gradient_adds_up_repeated_rows() {
    holds(&[&[6, 4]], |x| embedding(&x[0], &[1, 5, 1, 0, 1]));
}

#[test]
fn tile_gradients() {
    holds(&[&[3, 4, 5], &[4, 5]], |x| add_bias(&x[0], &x[1]));
    holds(&[&[3, 4, 5], &[5]], |x| add_bias(&x[0], &x[1]));
    holds(&[&[3, 2, 4, 5], &[3, 5]], |x| add_per_sample(&x[0], &x[1]));
    holds(&[&[3, 4, 5], &[3, 5], &[3, 5]], |x| film(&x[0], &x[1], &x[2]));
    holds(&[&[3, 4, 5], &[3, 4, 5], &[3, 5]], |x| gated_add(&x[0], &x[1], &x[2]));
    holds(&[&[3, 4, 5], &[3, 4, 2]], |x| cat_channels(&x[0], &x[1]));
}

/// The candle operations that models may use.
#[test]
fn allowed_candle_gradients() {
    holds(&[&[3, 4], &[3, 4]], |x| (&x[0] + &x[1])? * (&x[0] - &x[1])?);
    holds(&[&[3, 4]], |x| x[0].affine(2.0, 1.0)?.reshape((2, 6))?.transpose(0, 1)?.contiguous());
    holds(&[&[3, 4, 2]], |x| x[0].permute((2, 0, 1))?.narrow(1, 1, 2)?.contiguous());
    holds(&[&[3, 4], &[2, 4]], |x| Tensor::cat(&[&x[0], &x[1]], 0)?.sqr()?.sum(1));
}

/// `y = 2x` with the gradient of `y = 2x + wrong · x`, or none at all.
struct Wrong(Option<f64>);

impl CustomOp1 for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        raw::output(raw::map(raw::slice(x, layout)?, |x| 2.0 * x), layout.shape())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.0.map(|wrong| grad.affine(2.0 + wrong, 0.0)).transpose()
    }
}

#[test]
fn the_check_finds_wrong_and_severed_gradients() {
    let with = |wrong: Option<f64>| check_inputs(&[(&[5, 4], noise(1, 20))], |x| project(&x[0].apply_op1(Wrong(wrong))?.sqr()?));
    with(Some(0.0)).unwrap();
    for wrong in [0.05, -0.05, -4.0] {
        assert!(with(Some(wrong)).unwrap_err().to_string().contains("finite differences say"), "{wrong} was not found");
    }
    assert!(with(None).unwrap_err().to_string().contains("severs it"));
}

#[test]
fn the_check_finds_what_candle_gets_wrong() {
    let cut = check_inputs(&[(&[3, 4], noise(1, 12))], |x| project(&candle_nn::ops::softmax_last_dim(&x[0])?));
    assert!(cut.unwrap_err().to_string().contains("severs it"));
    assert!(check_inputs(&[(&[1, 1, 4, 4], noise(1, 16))], |x| project(&x[0].max_pool2d(2)?)).is_err());
}

#[test]
fn one_wrong_entry_of_many_is_found() {
    struct OneOff;
    impl CustomOp1 for OneOff {
        fn name(&self) -> &'static str {
            "one off"
        }
        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            raw::output(raw::slice(x, layout)?.to_vec(), layout.shape())
        }
        fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            let mut g = values(grad)?;
            g[17] = 0.0;
            Ok(Some(Tensor::from_vec(g, x.shape(), &Device::Cpu)?))
        }
    }
    assert!(check_inputs(&[(&[60], noise(1, 60))], |x| project(&x[0].apply_op1(OneOff)?)).is_err());
}

fn small_model(params: &Params, x: &Tensor) -> Result<Tensor> {
    let y = bias_relu_pool(&conv2d(x, &params.get("w")?, None, 1, 1)?, &params.get("b")?)?;
    linear(&global_avg_pool(&y)?, &params.get("head")?, None)
}

fn small_params() -> Params {
    let mut params = Params::new();
    params.insert("w", noise(1, 9 * 2 * 6), (3, 3, 2, 6)).unwrap();
    params.insert("b", noise(2, 6), 6).unwrap();
    params.insert("head", noise(3, 18), (6, 3)).unwrap();
    params
}

#[test]
fn a_frozen_parameter_is_left_out_of_graph_and_step() {
    let mut params = small_params();
    params.freeze(|name| name != "head");
    let x = Tensor::from_vec(noise(5, 4 * 64 * 2), (4, 8, 8, 2), &Device::Cpu).unwrap();
    let targets = one_hot(&[0, 1, 2, 0], 3, 0.0).unwrap();
    let before = params.values().unwrap();
    let loss = cross_entropy(&small_model(&params, &x).unwrap(), &targets).unwrap();
    let grads = loss.backward().unwrap();
    AdamW::new(AdamWConfig::default()).step(&params, &grads, 0.1).unwrap();
    let after = params.values().unwrap();
    assert_eq!(before["w"], after["w"]);
    assert_ne!(before["head"], after["head"]);
    check(&params, || cross_entropy(&small_model(&params, &x)?, &targets)).unwrap();
    params.freeze(|_| false);
    let error = AdamW::new(AdamWConfig::default()).step(&params, &grads, 0.1).unwrap_err();
    assert!(error.to_string().contains("`b` received no gradient"), "{error}");
}

#[test]
fn optimisers_follow_their_formulas() {
    let mut params = Params::new();
    params.insert("w", vec![1.0, -2.0], (1, 2)).unwrap();
    let loss = |p: &Params| p.get("w")?.sqr()?.sum_all();
    let mut sgd = Sgd::new(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 0.0, clip: None });
    for _ in 0..2 {
        let grads = loss(&params).unwrap().backward().unwrap();
        sgd.step(&params, &grads, 0.1).unwrap();
    }
    // v: 2, then 0.9·2 + 1.6 = 3.4; w: 1 − 0.2 − 0.34.
    assert!((params.values().unwrap()["w"][0] - 0.46).abs() < 1e-6);
    let mut params = Params::new();
    params.insert("w", vec![1.0, -2.0], (1, 2)).unwrap();
    let grads = loss(&params).unwrap().backward().unwrap();
    AdamW::new(AdamWConfig { weight_decay: 0.5, clip: Some(1e-3), ..AdamWConfig::default() }).step(&params, &grads, 0.1).unwrap();
    // The first step of Adam has size lr whatever the gradient's scale: 1·(1 − 0.1·0.5) − 0.1.
    assert!((params.values().unwrap()["w"][0] - 0.85).abs() < 1e-4);
}

#[test]
fn the_average_follows_and_is_copied_back() {
    let mut params = Params::new();
    params.constant("w", 2, 0.0).unwrap();
    let mut ema = Ema::new(&params, 0.5).unwrap();
    params.set("w", &[1.0, 2.0]).unwrap();
    (0..60).for_each(|_| ema.update(&params).unwrap());
    params.set("w", &[9.0, 9.0]).unwrap();
    ema.copy_to(&mut params).unwrap();
    let w = params.values().unwrap()["w"].clone();
    assert!((w[0] - 1.0).abs() < 1e-4 && (w[1] - 2.0).abs() < 1e-4);
}

#[test]
fn parameters_survive_a_file_and_lies_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut params = small_params();
    params.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let read = Params::load(&path).unwrap();
    assert_eq!(read.values().unwrap(), params.values().unwrap());
    params.same_shapes(&read).unwrap();
    read.save(&path).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    params.constant("extra", 1, 0.0).unwrap();
    assert!(params.same_shapes(&read).unwrap_err().to_string().contains("`extra` is missing"));
    params.set("b", &[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0]).unwrap();
    params.save(&path).unwrap();
    let error = Params::load(&path).unwrap_err().to_string();
    assert!(error.contains("tensor `b` holds NaN at index 2"), "{error}");
}

/// Trains a little and gives the bytes of the weights.
fn train(threads: usize) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut params = Params::new();
        for (name, shape) in [
            ("c1", vec![3, 3, 2, 16]),
            ("c2", vec![3, 3, 16, 16]),
            ("c3", vec![3, 3, 16, 32]),
            ("up", vec![1, 1, 48, 24]),
            ("q", vec![24, 24]),
            ("head", vec![24, 5]),
        ] {
            params.insert(name, noise(shape.len() as u32, shape.iter().product()).iter().map(|v| v * 0.2).collect(), shape).unwrap();
        }
        for (name, n) in [("b1", 16), ("s", 24), ("t", 24), ("film", 24)] {
            params.insert(name, noise(n as u32, n), n).unwrap();
        }
        let x = Tensor::from_vec(noise(5, 40 * 256 * 2), (40, 16, 16, 2), &Device::Cpu).unwrap();
        let labels: Vec<u32> = (0..40).map(|i| i % 5).collect();
        let targets = one_hot(&labels, 5, 0.1).unwrap();
        let mut adam = AdamW::new(AdamWConfig { clip: Some(1.0), ..AdamWConfig::default() });
        for _ in 0..4 {
            let p = |name| params.get(name);
            let loss = (|| {
                let a = bias_relu_pool(&conv2d(&x, &p("c1")?, None, 1, 1)?, &p("b1")?)?;
                let b = conv2d(&conv2d(&a, &p("c2")?, None, 1, 1)?, &p("c3")?, None, 2, 1)?;
                let c = conv2d(&cat_channels(&upsample2x(&b)?, &a)?, &p("up")?, None, 1, 0)?;
                let c = group_norm(&c, &p("s")?, &p("t")?, 4, 1e-5, Post::Silu)?;
                let c = add_bias(&c, &p("film")?)?.reshape((40, 64, 24))?;
                let c = attention(&linear(&c, &p("q")?, None)?, &c, &c, 4, Mask::None)?;
                cross_entropy(&linear(&gelu(&c)?.reshape((40, 8, 8, 24)).and_then(|c| global_avg_pool(&c))?, &p("head")?, None)?, &targets)
            })()
            .unwrap();
            adam.step(&params, &loss.backward().unwrap(), 1e-2).unwrap();
        }
        params.values().unwrap().into_values().flatten().map(f32::to_bits).collect()
    })
}

#[test]
fn one_two_and_three_threads_give_the_same_bytes() {
    let one = train(1);
    assert_eq!(one, train(2));
    assert_eq!(one, train(3));
}
