//! The form of the optimisers for other devices against the one in place.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::nn::composed::forced;
use crate::nn::ema::Ema;
use crate::rng::Stream;

fn params() -> Params {
    let mut params = Params::new();
    for (name, shape) in [("matrix", vec![5, 7]), ("vector", vec![11])] {
        params.normal(name, &shape, 1, 1.0, &Stream::new(1, "optim")).unwrap();
    }
    params
}

/// Five clipped steps with an average; then the optimiser goes on from what it remembers, for three more. All values.
fn moved(make: &dyn Fn() -> Box<dyn Optimiser>) -> Vec<f32> {
    let params = params();
    let (mut optimiser, mut ema) = (make(), Ema::new(&params, 0.9).unwrap());
    for step in 0..8 {
        if step == 5 {
            let memory = optimiser.memory().unwrap();
            let values = memory.values.iter().map(|(name, values)| (name.clone(), values.iter().map(|v| v.to_vec()).collect()));
            let memory = Memory { steps: memory.steps, values: values.collect() };
            optimiser = make();
            optimiser.remember(memory, &params).unwrap();
            let averages = ema.averages().unwrap().into_iter().map(|(name, values)| (name.clone(), values.into_owned())).collect();
            ema = Ema::resumed(&params, 0.9, ema.steps(), averages).unwrap();
        }
        let weigh = |name: &str| {
            let var = params.get(name).unwrap();
            let weights = Stream::new(step, name).normals(var.elem_count());
            (var * Tensor::from_vec(weights, var.dims(), var.device()).unwrap()).unwrap().sum_all().unwrap()
        };
        let mut grads = (weigh("matrix") + weigh("vector")).unwrap().backward().unwrap();
        clip(&params, &mut grads, 3.0).unwrap();
        optimiser.set_momentum(0.8);
        optimiser.step_scaled(&params, &grads, 0.05, &|name| if name == "vector" { 0.5 } else { 1.0 }).unwrap();
        ema.update(&params).unwrap();
    }
    let average = ema.params(&params).unwrap();
    [&params, &average].iter().flat_map(|params| ["matrix", "vector"].map(|name| params.values(name).unwrap())).flatten().collect()
}

#[test]
fn both_forms_move_the_same_way() {
    let makers: [&dyn Fn() -> Box<dyn Optimiser>; 4] =
        [&|| Box::new(AdamW::new(0.1)), &|| Box::new(Sgd::new(0.9, false, 0.1)), &|| Box::new(Sgd::new(0.9, true, 0.1)), &|| {
            Box::new(Lamb::new(0.1))
        }];
    for make in makers {
        let want = moved(make);
        let _forced = forced();
        let got = moved(make);
        let gap = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(gap < 1e-5, "{gap}");
    }
}
