//! Our ops, their gradients and the optimisers against PyTorch's, from `fixtures/ops.safetensors` (made by `fixtures/ops.py`).
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor, Var};
use trestle_stages::nn::Params;
use trestle_stages::nn::composed;
use trestle_stages::nn::ops::{self, BatchNorm, Window};
use trestle_stages::nn::optim::{AdamW, Lamb, Sgd};

/// The tensors of one case of the fixtures.
struct Case {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
    inputs: HashMap<String, Var>,
}

impl Case {
    fn of(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ops.safetensors");
        let all = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let tensors: HashMap<String, Tensor> =
            all.into_iter().filter_map(|(key, t)| Some((key.strip_prefix(name)?.strip_prefix('/')?.to_owned(), t))).collect();
        let has_gradient = |key: &str| tensors.contains_key(&format!("d{key}")) && key != "y";
        let inputs =
            tensors.iter().filter(|(key, _)| has_gradient(key)).map(|(key, t)| (key.clone(), Var::from_tensor(t).unwrap())).collect();
        Self { name, tensors, inputs }
    }

    fn x(&self, key: &str) -> &Tensor {
        self.inputs[key].as_tensor()
    }

    #[track_caller]
    fn near(&self, what: &str, got: &Tensor, want: &Tensor) {
        assert_eq!(got.dims(), want.dims(), "{} {what}", self.name);
        let (got, want) = (got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() <= 2e-5 * w.abs().max(1.0), "{} {what} at {i}: {g}, PyTorch has {w}", self.name);
        }
    }

    /// Compares the result of `f` and the gradients of all inputs: by our kernels, and in the form that a GPU takes.
    #[track_caller]
    fn holds(self, f: impl Fn(&Self) -> Result<Tensor>) {
        self.holds_once(&f);
        let _forced = composed::forced();
        self.holds_once(&f);
    }

    #[track_caller]
    fn holds_once(&self, f: &impl Fn(&Self) -> Result<Tensor>) {
        let y = f(self).unwrap();
        self.near("result", &y, &self.tensors["y"]);
        assert!(!self.inputs.is_empty());
        let grads = (y * &self.tensors["dy"]).unwrap().sum_all().unwrap().backward().unwrap();
        for (key, var) in &self.inputs {
            self.near(&format!("gradient of {key}"), grads.get(var).unwrap(), &self.tensors[&format!("d{key}")]);
        }
    }
}

#[test]
fn convolutions() {
    for (name, stride, pad, groups) in
        [("conv_1_1_1", 1, 1, 1), ("conv_2_1_2", 2, 1, 2), ("conv_2_2_6", 2, 2, 6), ("conv_1_0_3", 1, 0, 3), ("conv_3_0_1", 3, 0, 1)]
    {
        Case::of(name).holds(|c| ops::conv(c.x("x"), c.x("w"), Some(c.x("b")), Window::new(stride, pad).groups(groups)));
    }
}

fn pool(pad: usize, ceil: bool) -> ops::PoolWindow {
    ops::PoolWindow { k: 3, stride: 2, pad, ceil }
}

#[test]
fn pools() {
    Case::of("max_pool_3_2_1").holds(|c| ops::max_pool(c.x("x"), pool(1, false)));
    Case::of("max_pool_3_2_0_ceil").holds(|c| ops::max_pool(c.x("x"), pool(0, true)));
    Case::of("avg_pool_3_2_1").holds(|c| ops::avg_pool(c.x("x"), 3, 2, 1, true));
    Case::of("avg_pool_3_2_1_inside").holds(|c| ops::avg_pool(c.x("x"), 3, 2, 1, false));
    Case::of("adaptive_avg_pool").holds(|c| ops::adaptive_avg_pool(c.x("x"), [3, 4]));
}

#[test]
fn norms() {
    let plain = BatchNorm { eps: 1e-5, relu: false };
    let train = Case::of("batch_norm_train");
    let (_, moments) = plain.train(train.x("x"), train.x("a"), train.x("b"), None).unwrap();
    for ((key, start), towards) in [("running_mean", 0.0), ("running_var", 1.0)].into_iter().zip(moments.towards().unwrap()) {
        train.near(key, &towards.affine(0.1, 0.9 * start).unwrap(), &train.tensors[key]);
    }
    let running = [train.tensors["running_mean"].clone(), train.tensors["running_var"].clone()];
    train.holds(|c| Ok(plain.train(c.x("x"), c.x("a"), c.x("b"), None)?.0));
    Case::of("batch_norm_relu").holds(|c| Ok(BatchNorm { eps: 1e-3, relu: true }.train(c.x("x"), c.x("a"), c.x("b"), Some(c.x("r")))?.0));
    Case::of("batch_norm_eval").holds(|c| plain.eval(c.x("x"), [c.x("a"), c.x("b")], [&running[0], &running[1]], None));
    Case::of("group_norm").holds(|c| ops::group_norm(c.x("x"), 3, c.x("a"), c.x("b"), 1e-5));
    Case::of("layer_norm").holds(|c| ops::layer_norm(c.x("x"), c.x("a"), c.x("b"), 1e-6));
    Case::of("rms_norm").holds(|c| ops::rms_norm(c.x("x"), c.x("a"), 1e-6));
}

#[test]
fn activations() {
    Case::of("gelu_erf").holds(|c| ops::gelu_erf(c.x("x")));
    Case::of("gelu").holds(|c| ops::gelu(c.x("x")));
    Case::of("silu").holds(|c| ops::silu(c.x("x")));
    Case::of("relu").holds(|c| ops::relu(c.x("x")));
    Case::of("relu6").holds(|c| ops::relu6(c.x("x")));
    Case::of("hard_swish").holds(|c| ops::hard_swish(c.x("x")));
    Case::of("hard_sigmoid").holds(|c| ops::hard_sigmoid(c.x("x")));
}

#[test]
fn losses_and_attention() {
    let targets = ops::one_hot(&[3, 0, 6, 3], 7, 0.1).unwrap();
    Case::of("cross_entropy_smooth").holds(|c| ops::cross_entropy(c.x("x"), &targets));
    Case::of("cross_entropy_soft").holds(|c| ops::cross_entropy(c.x("x"), &c.tensors["targets"].flatten_all()?.to_vec1()?));
    Case::of("attention").holds(|c| ops::attention(c.x("q"), c.x("k"), c.x("v"), 3));
}

/// Five steps under the fixtures' gradients.
fn optimised(name: &str, mut step: impl FnMut(&Params, &candle_core::backprop::GradStore)) {
    let case = Case::of("optim");
    let mut params = Params::new();
    for key in ["w", "b"] {
        let start = &case.tensors[key];
        params.insert(key, start.dims(), start.flatten_all().unwrap().to_vec1().unwrap()).unwrap();
    }
    for i in 0..5 {
        let part = |key: &str| (params.get(key).unwrap() * &case.tensors[&format!("g{key}{i}")]).unwrap().sum_all().unwrap();
        let grads = (part("w") + part("b")).unwrap().backward().unwrap();
        step(&params, &grads);
    }
    for key in ["w", "b"] {
        case.near(&format!("{name} {key}"), params.get(key).unwrap(), &case.tensors[&format!("{name}/{key}")]);
    }
}

#[test]
fn optimisers() {
    let (mut sgd, mut nesterov) = (Sgd::new(0.9, false, 0.1), Sgd::new(0.9, true, 0.1));
    optimised("sgd", |p, g| sgd.step(p, g, 0.05, |_| true).unwrap());
    optimised("nesterov", |p, g| nesterov.step(p, g, 0.05, |_| true).unwrap());
    let (mut adamw, mut lamb) = (AdamW::new(0.1), Lamb::new(0.1));
    optimised("adamw", |p, g| adamw.step(p, g, 0.05, |_| true).unwrap());
    optimised("lamb", |p, g| lamb.step(p, g, 0.05, |_| true).unwrap());
}
