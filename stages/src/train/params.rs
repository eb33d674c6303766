//! The parameters that the training stages share.

/// Params that cannot change what comes out.
pub(crate) const UNKEYED: [&str; 1] = ["checkpoint_every"];

/// Defines a stage's parameters: its own with their defaults, then those of every training, whose defaults are the recipe's.
macro_rules! training_params {
    ($(#[$doc:meta])* $name:ident { $($own:tt)* }) => {
        $crate::train::training_params! {
            @define $(#[$doc])* $name { $($own)* }
            {
                /// Images of one forward pass.
                batch: usize,
                /// Batches whose gradients are averaged for one step: a step of `accumulate` × `batch` images in the memory of `batch`.
                accumulate: usize,
                /// What moves the weights.
                optimiser: $crate::train::Optimiser,
                /// Momentum of `sgd`; without, 0.9.
                momentum: Option<f64>,
                /// Nesterov's variant of `sgd`.
                nesterov: bool,
                /// Largest learning rate; it rises over `warmup` and then follows `schedule`.
                lr: f64,
                /// Share of the steps over which the learning rate rises.
                warmup: f64,
                /// What the learning rate does after its warm-up.
                schedule: $crate::train::Shape,
                /// Of the schedule `step`: the shares of the steps after which the learning rate falls.
                milestones: Vec<f64>,
                /// Of the schedule `step`: what the learning rate is multiplied with then.
                gamma: f64,
                /// Of the schedule `one-cycle`: least and largest momentum (β₁ of `adamw` and `lamb`), such as `[0.85, 0.95]`; it falls while the
                /// learning rate rises, and the other way round. Without, it stays.
                cycle_momentum: Option<[f64; 2]>,
                /// Factors of the learning rate by unit, such as `{stem: 0.1}`; the other units have 1.
                lr_scale: std::collections::BTreeMap<String, f64>,
                /// Decay of the weights of convolutions and linear layers.
                weight_decay: f64,
                /// Largest Euclidean norm of all gradients together; longer ones are scaled down to it.
                clip: Option<f64>,
                /// Decay of a moving average of the weights, such as 0.999; the average is what the stage gives.
                ema: Option<f64>,
                /// Units whose weights stay as they are, such as `stem`; through the first ones no gradient is computed.
                freeze: Vec<String>,
                /// Whether the batch normalisations of frozen units keep their running statistics or adapt them to the images.
                frozen_norms: $crate::train::Norms,
                /// α of mixup's Beta(α, α); 0 is off.
                mixup: f64,
                /// α of CutMix's Beta(α, α); 0 is off. With `mixup` too, each batch gets one of the two.
                cutmix: f64,
                /// Share of the target that is spread over all classes.
                label_smoothing: f64,
                /// Random changes of the images.
                augment: $crate::train::Augment,
                /// Draws every class of a set equally often, however many images it has.
                balanced: bool,
                /// Ends the training when the loss on held-out images of `data` stops falling; the weights of the best epoch are kept.
                early_stopping: Option<$crate::train::EarlyStopping>,
            }
        }
    };
    (@define $(#[$doc:meta])* $name:ident
        { $($(#[$own_doc:meta])* $own:ident: $type:ty = $default:expr,)* }
        { $($(#[$shared_doc:meta])* $shared:ident: $shared_type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_doc])* pub $own: $type,)*
            /// Passes over the data; without `epochs` and `steps`, 10.
            pub epochs: Option<f64>,
            /// Updates of the weights, instead of `epochs`.
            pub steps: Option<usize>,
            $($(#[$shared_doc])* pub $shared: $shared_type,)*
            /// Where the training is computed: `cpu` or `cuda`.
            #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
            pub device: $crate::nn::compute::DeviceKind,
            /// What activations are computed in: `f32`, or with `device: cuda` also `bf16`.
            #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
            pub precision: $crate::nn::compute::Precision,
            /// Steps after which a checkpoint is written, from which a killed stage goes on; 0 is never, and without it one is written every
            /// five minutes. It changes nothing of what comes out, and is not part of the key.
            pub checkpoint_every: Option<usize>,
            /// Seed of the initial weights, the order, mixing and the augmentation, each with its own stream.
            pub seed: u64,
        }

        impl Default for $name {
            fn default() -> Self {
                let recipe = $crate::train::Recipe::default();
                Self {
                    $($own: $default,)*
                    epochs: None,
                    steps: None,
                    $($shared: recipe.$shared,)*
                    device: Default::default(),
                    precision: Default::default(),
                    checkpoint_every: None,
                    seed: 0,
                }
            }
        }

        impl $name {
            fn recipe(&self) -> $crate::train::Recipe {
                $crate::train::Recipe { length: $crate::train::Length::of(self.epochs, self.steps), $($shared: self.$shared.clone(),)* }
            }

            fn compute(&self) -> $crate::nn::compute::Compute {
                $crate::nn::compute::Compute { device: self.device, precision: self.precision }
            }

            fn complaints(&self) -> Vec<trestle_engine::stage::ParamError> {
                let mut errors = self.recipe().check();
                errors.extend(self.compute().complaints());
                if self.epochs.is_some() && self.steps.is_some() {
                    errors.push(trestle_engine::stage::ParamError::new("steps", "`epochs` and `steps` both say how long to train; keep one"));
                }
                errors
            }
        }
    };
}

pub(crate) use training_params;
